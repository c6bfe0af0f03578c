//! Evaluation with statistics folded in: a copy of the weights, made anew whenever the model has changed.
//!
//! At evaluation a BatchNorm behind a Linear is part of it (`fold` has the formulas and the bound). While a model is trained it must stay
//! as it is, so what is folded lies here: the product with its bias, the normalisation and a ReLU behind them are then one kernel. Layers
//! that cannot be folded run by their own [`Layer::infer`](crate::layers::Layer::infer), as does a normalisation without running
//! statistics, and one whose folded weights would not be finite.

use super::{Sequential, check_batch, checked_len, disjoint, named};
use crate::error::{Error, Result};
use crate::kernels::gemm::{self, Epilogue, gemm};
use crate::layers::{AffineMap, Layer, Linear, Relu, as_norm};
use crate::matrix::{MatMut, MatRef};
use crate::simd::Element;
use crate::tensor::{Shape, Tensor, TensorMut, TensorRef};
use std::any::Any;
use std::ops::Range;

/// What evaluating a model takes: weights with the statistics in them, and memory for a pass.
///
/// # Examples
/// ```
/// use evenkeel::layers::{BatchNorm1d, Linear, Relu};
/// use evenkeel::tensor::Tensor;
/// use evenkeel::{Rng, Sequential};
/// let rng = &mut Rng::new(1, "init");
/// let model = Sequential::<f64>::new()
///     .push(Linear::new(3, 2, rng)?).push(BatchNorm1d::new(2)?).push(Relu::new());
/// let (x, mut space) = (Tensor::from_slice([1, 3], &[1.0, 2.0, 3.0])?, model.infer_space([1, 3].into())?);
/// let mut evaluation = model.evaluation([1, 3].into())?;
/// evaluation.refresh(&model)?;
/// let folded = evaluation.infer(&model, x.view())?.data().to_vec();
/// for (folded, plain) in folded.iter().zip(model.infer(x.view(), &mut space)?.data()) {
///     assert!((folded - plain).abs() < 1e-14);
/// }
/// # Ok::<(), evenkeel::Error>(())
/// ```
#[derive(Debug)]
pub struct Evaluation<T> {
    largest: Shape,
    layers: usize,
    stages: Vec<Stage>,
    weights: Tensor<T>,
    maps: Vec<AffineMap>,
    current: Tensor<T>,
    next: Tensor<T>,
    scratch: Tensor<T>,
}

/// Layers that run as one where they can.
#[derive(Debug)]
struct Stage {
    layers: Range<usize>,
    /// Whether the first is a product, which the others are folded into.
    product: Option<Product>,
    relu: bool,
    is_folded: bool,
}

#[derive(Debug)]
struct Product {
    inputs: usize,
    outputs: usize,
    weight: Range<usize>,
    bias: Range<usize>,
    norm: Option<usize>,
}

fn as_linear<T: Element>(layer: &dyn Layer<T>) -> Option<&Linear<T>> {
    let layer: &dyn Any = layer;
    layer.downcast_ref()
}

impl<T: Element> Sequential<T> {
    /// What evaluating this model with batches of at most this shape takes; to be [refreshed](Evaluation::refresh) first.
    ///
    /// # Errors
    /// If the layers do not fit one another, or if the memory cannot be addressed.
    pub fn evaluation(&self, input: Shape) -> Result<Evaluation<T>> {
        let too_large = || Error::shape("model", "a size that fits an address", input);
        checked_len(input)?;
        let mut stages: Vec<Stage> = Vec::new();
        let (mut shape, mut widest, mut scratch, mut end, mut channels) = (input, 0usize, 0usize, 0usize, 0usize);
        for (i, layer) in self.layers.iter().enumerate() {
            let output = named(i, layer.output_shape(shape))?;
            widest = widest.max(checked_len(output)?);
            scratch = scratch.max(layer.scratch_len(shape));
            let is_relu = (layer.as_ref() as &dyn Any).is::<Relu>();
            if let Some(linear) = as_linear(layer.as_ref()) {
                let (inputs, outputs) = (linear.in_features(), linear.out_features());
                let mut take = |len: usize| -> Option<Range<usize>> {
                    let start = end.checked_next_multiple_of(crate::tensor::ALIGNMENT / size_of::<T>())?;
                    end = start.checked_add(len)?;
                    Some(start..end)
                };
                let weight = inputs.checked_mul(outputs).and_then(&mut take).ok_or_else(too_large)?;
                let bias = take(outputs).ok_or_else(too_large)?;
                scratch = scratch.max(gemm::scratch_len::<T>(shape.dims()[0], inputs, outputs));
                channels = channels.max(outputs);
                let product = Some(Product { inputs, outputs, weight, bias, norm: None });
                stages.push(Stage { layers: i..i + 1, product, relu: false, is_folded: false });
            } else {
                let joined = match stages.last_mut() {
                    Some(Stage { product: Some(product), relu: false, .. })
                        if product.norm.is_none() && as_norm(layer.as_ref()).is_some() =>
                    {
                        product.norm = Some(i);
                        true
                    }
                    Some(stage @ Stage { product: Some(_), relu: false, .. }) if is_relu => {
                        stage.relu = true;
                        true
                    }
                    _ => false,
                };
                match stages.last_mut().filter(|_| joined) {
                    Some(stage) => stage.layers.end = i + 1,
                    None => stages.push(Stage { layers: i..i + 1, product: None, relu: false, is_folded: false }),
                }
            }
            shape = output;
        }
        let none = AffineMap { scale: 1.0, centre: 0.0, shift: 0.0 };
        Ok(Evaluation {
            largest: input,
            layers: self.layers.len(),
            stages,
            weights: Tensor::zeros([end])?,
            maps: vec![none; channels],
            current: Tensor::zeros([widest])?,
            next: Tensor::zeros([widest])?,
            scratch: Tensor::zeros([scratch])?,
        })
    }
}

impl<T: Element> Evaluation<T> {
    /// Takes weights and statistics of `model` as they are now; nothing is allocated.
    ///
    /// # Errors
    /// If the model is not the one that this was made for, or one of the same layers.
    pub fn refresh(&mut self, model: &Sequential<T>) -> Result<()> {
        let other = || Error::shape("evaluation", "the model that it was made for", "another");
        if model.len() != self.layers {
            return Err(other());
        }
        for stage in &mut self.stages {
            let Some(Product { inputs, outputs, weight, bias, norm }) = &stage.product else { continue };
            let linear = as_linear(model.layers[stage.layers.start].as_ref()).ok_or_else(other)?;
            if (linear.in_features(), linear.out_features()) != (*inputs, *outputs) {
                return Err(other());
            }
            let maps = &mut self.maps[..*outputs];
            maps.fill(AffineMap { scale: 1.0, centre: 0.0, shift: 0.0 });
            let mut is_mapped = true;
            if let Some(norm) = norm {
                let norm = as_norm(model.layers[*norm].as_ref()).filter(|norm| norm.channels() == *outputs);
                let norm = norm.ok_or_else(other)?;
                for (c, slot) in maps.iter_mut().enumerate() {
                    match norm.map(c) {
                        Some(map) => *slot = map,
                        None => is_mapped = false,
                    }
                }
            }
            let [weight, bias] = disjoint(self.weights.data_mut(), [weight.clone(), bias.clone()]);
            stage.is_folded = is_mapped && linear.with_maps(maps, weight, bias);
        }
        Ok(())
    }

    /// Evaluates a batch by what was taken from `model` last; the output stays here until the next call.
    ///
    /// `model` is the one that was taken, unchanged since: only the layers that are not folded are asked now.
    ///
    /// # Numerics
    /// Each folded layer is off what its layers would give for the same inputs by at most what [`Sequential::fold`] says.
    ///
    /// # Errors
    /// If the batch is larger than the largest, if the model has other layers, or if one of them refuses.
    pub fn infer(&mut self, model: &Sequential<T>, x: TensorRef<'_, T>) -> Result<TensorRef<'_, T>> {
        check_batch(x.shape(), self.largest)?;
        if model.is_empty() || model.len() != self.layers {
            return Err(Error::shape("evaluation: layers", self.layers.max(1), model.len()));
        }
        let mut shape = x.shape();
        let mut is_first = true;
        for stage in &self.stages {
            let folded = stage.product.as_ref().filter(|_| stage.is_folded);
            let ends = if folded.is_some() { stage.layers.end - 1..stage.layers.end } else { stage.layers.clone() };
            for i in ends {
                let input = if is_first { x } else { TensorRef::first_of(shape, self.current.data()) };
                let output = match folded {
                    Some(product) => Shape::new(&[shape.dims()[0], product.outputs]),
                    None => named(i, model.layers[i].output_shape(shape))?,
                };
                if output.len() > self.next.data().len() {
                    let room = format!("room for {} elements", output.len());
                    return Err(Error::shape("evaluation", room, self.next.data().len()));
                }
                let mut y = TensorMut::first_of(output, self.next.data_mut());
                let scratch = self.scratch.data_mut();
                match folded {
                    Some(Product { inputs, .. }) if shape != Shape::new(&[shape.dims()[0], *inputs]) => {
                        return Err(Error::shape("evaluation", "the model that it was made for", "another"));
                    }
                    Some(Product { inputs, outputs, weight, bias, .. }) => {
                        let weights = self.weights.data();
                        let (weight, bias) = (&weights[weight.clone()], &weights[bias.clone()]);
                        let epilogue = if stage.relu { Epilogue::BiasRelu(bias) } else { Epilogue::Bias(bias) };
                        let rows = shape.dims()[0];
                        let (a, b) = (MatRef::new(input.data(), rows, *inputs), MatRef::new(weight, *inputs, *outputs));
                        gemm(T::ONE, a, b, T::ZERO, MatMut::new(y.data(), rows, *outputs), epilogue, scratch);
                    }
                    None => named(i, model.layers[i].infer(input, y, scratch))?,
                }
                std::mem::swap(&mut self.current, &mut self.next);
                (shape, is_first) = (output, false);
            }
        }
        Ok(TensorRef::first_of(shape, self.current.data()))
    }
}
