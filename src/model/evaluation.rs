//! Evaluation with statistics folded in: a copy of the weights, made anew whenever the model has changed.
//!
//! At evaluation a BatchNorm behind a Linear is part of it (`fold` has the formulas and the bound). While a model is trained it must stay
//! as it is, so what is folded lies here: the product with its bias, the normalisation and a ReLU behind them are then one kernel. Layers
//! that cannot be folded run by their own [`Layer::infer`](crate::layers::Layer::infer), as does a normalisation without running
//! statistics, and one whose folded weights would not be finite.
//!
//! A model that is folded throughout, and not too large for it, is evaluated in blocks of rows, each through all layers, so that what lies
//! between two of them stays near; threads share the blocks. Their number follows from model and batch alone.

use super::plan::steps::{Step, downcast, fused};
use super::{Extent, Sequential, check_batch, checked_len, disjoint, named};
use crate::error::{Error, Result};
use crate::kernels::gemm::{self, Epilogue, PackedB, gemm, gemm_packed};
use crate::layers::{AffineMap, Linear, as_norm};
use crate::matrix::{MatMut, MatRef};
use crate::parallel::{self, Blocks, BlocksMut, Cost};
use crate::simd::{Element, Isa, with_isa};
use crate::tensor::{Shape, Tensor, TensorMut, TensorRef};
use std::ops::Range;
use std::sync::OnceLock;

/// Most rows of a block: few enough that four threads have one of a batch of 256 each, and enough for the speed of a product. With 32 an
/// evaluation of mlp100 took 7 % longer on one thread of a Zen 3 than with 64, and as long on a Zen 4.
const BLOCK: usize = 64;

/// Most bytes of weights that stay near while blocks pass by. More are read once for all rows, and threads share each product: an
/// evaluation of 784-1024-1024-10 took 9 % longer in blocks on a Zen 3, and as long on a Zen 4.
const NEAR: usize = 1 << 20;

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
pub struct Evaluation<T: Element> {
    largest: Shape,
    layers: usize,
    stages: Vec<Stage<T>>,
    weights: Tensor<T>,
    maps: Vec<AffineMap>,
    /// For all rows at once, and for a block of them.
    whole: Room,
    block_rows: usize,
    block: Room,
    space: Tensor<T>,
    output: Tensor<T>,
    output_shape: Shape,
}

/// Layers that run as one where they can.
#[derive(Debug)]
struct Stage<T: Element> {
    layers: Range<usize>,
    /// Whether the first is a product, which the others are folded into.
    product: Option<Product<T>>,
    relu: bool,
    is_folded: bool,
}

#[derive(Debug)]
struct Product<T: Element> {
    inputs: usize,
    outputs: usize,
    weight: Range<usize>,
    bias: Range<usize>,
    norm: Option<usize>,
    /// The weight once more, in panels, where that pays.
    panels: Option<PackedB<T>>,
}

/// Where the tensors of a pass over some rows lie: two that take turns, and scratch.
#[derive(Clone, Debug)]
struct Room {
    turns: [Range<usize>; 2],
    scratch: Range<usize>,
    len: usize,
}

impl Room {
    fn new<T>(largest: Shape, turn: usize, scratch: usize) -> Result<Self> {
        let mut extent = Extent::new::<T>(largest);
        let (turns, scratch) = ([extent.take(turn)?, extent.take(turn)?], extent.take(scratch)?);
        Ok(Room { turns, scratch, len: extent.len() })
    }
}

fn another_model() -> Error {
    Error::shape("evaluation", "the model that it was made for", "another")
}

impl<T: Element> Sequential<T> {
    /// What evaluating this model with batches of at most this shape takes; to be [refreshed](Evaluation::refresh) first.
    ///
    /// # Errors
    /// If the layers do not fit one another, if one of them does not keep the number of rows, or if the memory cannot be addressed.
    pub fn evaluation(&self, input: Shape) -> Result<Evaluation<T>> {
        if input.dims().is_empty() {
            return Err(Error::shape("model: batch", "at least one dimension", input));
        }
        let most_rows = input.dims()[0];
        let parameters = |step: &Step| step.product.map_or(0, |product| product.inputs * product.outputs);
        let steps = fused(self, input)?;
        let is_near = steps.iter().map(parameters).fold(0, usize::saturating_add) <= NEAR / size_of::<T>();
        let block_rows = if is_near { BLOCK } else { most_rows.max(1) };
        let mut extent = Extent::new::<T>(input);
        let mut stages = Vec::new();
        checked_len(input)?;
        let (mut widest, mut channels, mut whole, mut block) = (0, 0, 0, 0);
        let mut output_shape = input;
        for Step { layers, product, norm, relu, output, .. } in steps {
            let mut shape = output_shape;
            for layer in layers.clone() {
                let layer = &self.layers[layer];
                whole = layer.scratch_len(shape).max(whole);
                shape = layer.output_shape(shape)?;
                widest = checked_len(shape)?.max(widest);
            }
            let product = match product {
                None => None,
                Some(step) => {
                    let (inputs, outputs) = (step.inputs, step.outputs);
                    let (weight, bias) = (extent.take(inputs * outputs)?, extent.take(outputs)?);
                    block = gemm::scratch_len::<T>(block_rows.min(most_rows), inputs, outputs).max(block);
                    channels = outputs.max(channels);
                    Some(Product { inputs, outputs, weight, bias, norm: norm.map(|norm| norm.layer), panels: None })
                }
            };
            stages.push(Stage { layers, product, relu, is_folded: false });
            output_shape = output;
        }
        let whole = Room::new::<T>(input, widest, whole)?;
        let turn = widest.div_ceil(most_rows.max(1)).saturating_mul(block_rows.min(most_rows));
        let block = Room::new::<T>(input, turn, block)?;
        let blocks = block.len.checked_mul(most_rows.div_ceil(block_rows));
        let blocks = blocks.ok_or_else(|| Error::shape("model", "a size that fits an address", input))?;
        let none = AffineMap { scale: 1.0, centre: 0.0, shift: 0.0 };
        let mut evaluation = Evaluation {
            largest: input,
            layers: self.layers.len(),
            stages,
            weights: Tensor::zeros([extent.len()])?,
            maps: vec![none; channels],
            space: Tensor::zeros([whole.len.max(blocks)])?,
            whole,
            block_rows,
            block,
            output: Tensor::zeros([output_shape.len()])?,
            output_shape,
        };
        evaluation.make_panels()?;
        Ok(evaluation)
    }
}

impl<T: Element> Evaluation<T> {
    /// Panels for the current instruction set, where there are none.
    fn make_panels(&mut self) -> Result<()> {
        for Product { inputs, outputs, weight, panels, .. } in self.stages.iter_mut().filter_map(|s| s.product.as_mut())
        {
            let is_there = panels.as_ref().is_some_and(|panels| panels.isa() == Isa::current());
            if !is_there && PackedB::<T>::pays(*inputs, *outputs) {
                *panels = Some(PackedB::new(MatRef::new(&self.weights.data()[weight.clone()], *inputs, *outputs))?);
            }
        }
        Ok(())
    }

    /// Takes weights and statistics of `model` as they are now; nothing is allocated, unless it is for another instruction set.
    ///
    /// # Errors
    /// If the model is not the one that this was made for, or one of the same layers.
    pub fn refresh(&mut self, model: &Sequential<T>) -> Result<()> {
        if model.len() != self.layers {
            return Err(another_model());
        }
        self.make_panels()?;
        for stage in &mut self.stages {
            let Some(Product { inputs, outputs, weight, bias, norm, panels }) = &mut stage.product else { continue };
            let linear =
                downcast::<T, Linear<T>>(model.layers[stage.layers.start].as_ref()).ok_or_else(another_model)?;
            if (linear.in_features(), linear.out_features()) != (*inputs, *outputs) {
                return Err(another_model());
            }
            let maps = &mut self.maps[..*outputs];
            maps.fill(AffineMap { scale: 1.0, centre: 0.0, shift: 0.0 });
            let mut is_mapped = true;
            if let Some(norm) = norm {
                let norm = as_norm(model.layers[*norm].as_ref()).filter(|norm| norm.channels() == *outputs);
                let norm = norm.ok_or_else(another_model)?;
                for (c, slot) in maps.iter_mut().enumerate() {
                    match norm.map(c) {
                        Some(map) => *slot = map,
                        None => is_mapped = false,
                    }
                }
            }
            let [weight, bias] = disjoint(self.weights.data_mut(), [weight.clone(), bias.clone()]);
            stage.is_folded = is_mapped && linear.with_maps(maps, weight, bias);
            if let Some(panels) = panels {
                panels.fill(MatRef::new(weight, *inputs, *outputs));
            }
        }
        Ok(())
    }

    /// Evaluates a batch by what was taken from `model` last; the output stays here until the next call.
    ///
    /// `model` is the one that was taken, unchanged since: only the layers that are not folded are asked now. The same bits for any number
    /// of threads.
    ///
    /// # Numerics
    /// Each folded layer is off what its layers would give for the same inputs by at most what [`Sequential::fold`] says. The order of a
    /// sum may be another than in one product for all rows, where a block of few columns is another kind of product
    /// ([`gemm`](crate::kernels::gemm)).
    ///
    /// # Errors
    /// If the batch is larger than the largest, if the model has other layers, or if one of them refuses.
    pub fn infer(&mut self, model: &Sequential<T>, x: TensorRef<'_, T>) -> Result<TensorRef<'_, T>> {
        check_batch(x.shape(), self.largest)?;
        if model.is_empty() || model.len() != self.layers {
            return Err(Error::shape("evaluation: layers", self.layers.max(1), model.len()));
        }
        let rows = x.shape().dims()[0];
        let shape = self.output_shape.with_rows(rows);
        let y = &mut self.output.data_mut()[..shape.len()];
        let pass = Pass { stages: &self.stages, weights: self.weights.data(), model };
        if self.stages.iter().any(|stage| !stage.is_folded) {
            pass.run(x, TensorMut::first_of(shape, y), &self.whole, self.space.data_mut())?;
            return Ok(TensorRef::first_of(shape, self.output.data()));
        }
        let count = rows.div_ceil(self.block_rows).max(1);
        let each = rows.div_ceil(count);
        let per_row = |shape: Shape| shape.dims()[1..].iter().product::<usize>();
        let (inputs, outputs) = (per_row(x.shape()), per_row(shape));
        let cost = Cost { flops: 2 * rows * self.weights.data().len(), bytes: size_of_val(x.data()) };
        let (isa, failed) = (Isa::current(), OnceLock::new());
        let work = (
            Blocks { data: x.data(), block: each * inputs },
            (
                BlocksMut { data: y, block: each * outputs },
                BlocksMut { data: self.space.data_mut(), block: self.block.len },
            ),
        );
        parallel::for_each(count, cost, work, |index, (from, (to, space))| {
            let rows = each.min(rows - index * each);
            let from = TensorRef::first_of(x.shape().with_rows(rows), from.data);
            let to = TensorMut::first_of(shape.with_rows(rows), to.data);
            if let Err(error) = with_isa(isa, || pass.run(from, to, &self.block, space.data)) {
                failed.get_or_init(|| error);
            }
        });
        match failed.into_inner() {
            Some(error) => Err(error),
            None => Ok(TensorRef::first_of(shape, self.output.data())),
        }
    }
}

/// What a pass over some rows takes besides them.
#[derive(Clone, Copy)]
struct Pass<'a, T: Element> {
    stages: &'a [Stage<T>],
    weights: &'a [T],
    model: &'a Sequential<T>,
}

impl<T: Element> Pass<'_, T> {
    fn run(self, x: TensorRef<'_, T>, mut y: TensorMut<'_, T>, room: &Room, space: &mut [T]) -> Result<()> {
        let [a, b] = room.turns.clone();
        let [mut current, mut next, scratch] = disjoint(space, [a, b, room.scratch.clone()]);
        let (mut shape, expected, mut is_first) = (x.shape(), y.shape(), true);
        for stage in self.stages {
            let folded = stage.product.as_ref().filter(|_| stage.is_folded);
            let ends = if folded.is_some() { stage.layers.end - 1..stage.layers.end } else { stage.layers.clone() };
            for i in ends {
                let input = if is_first { x } else { TensorRef::first_of(shape, current) };
                let output = match folded {
                    Some(product) => Shape::new(&[shape.dims()[0], product.outputs]),
                    None => named(i, self.model.layers[i].output_shape(shape))?,
                };
                let is_last = i + 1 == self.model.len();
                let fits = if is_last { output == expected } else { output.len() <= next.len() };
                if !fits {
                    return Err(another_model());
                }
                let to = if is_last { &mut *y.data() } else { &mut *next };
                match folded {
                    Some(Product { inputs, .. }) if shape != Shape::new(&[shape.dims()[0], *inputs]) => {
                        return Err(another_model());
                    }
                    Some(product) => self.multiply(product, stage.relu, input, to, scratch)?,
                    None => {
                        let layer = &self.model.layers[i];
                        named(i, layer.infer(input, TensorMut::first_of(output, to), scratch))?;
                    }
                }
                std::mem::swap(&mut current, &mut next);
                (shape, is_first) = (output, false);
            }
        }
        Ok(())
    }

    fn multiply(
        self,
        product: &Product<T>,
        relu: bool,
        x: TensorRef<'_, T>,
        y: &mut [T],
        scratch: &mut [T],
    ) -> Result<()> {
        let (rows, inputs, outputs) = (x.shape().dims()[0], product.inputs, product.outputs);
        let (weight, bias) = (&self.weights[product.weight.clone()], &self.weights[product.bias.clone()]);
        let epilogue = if relu { Epilogue::BiasRelu(bias) } else { Epilogue::Bias(bias) };
        let (a, c) = (MatRef::new(x.data(), rows, inputs), MatMut::new(&mut y[..rows * outputs], rows, outputs));
        match &product.panels {
            Some(panels) if panels.isa() == Isa::current() => {
                gemm_packed(T::ONE, a, panels, T::ZERO, c, epilogue, scratch)?;
            }
            _ => gemm(T::ONE, a, MatRef::new(weight, inputs, outputs), T::ZERO, c, epilogue, scratch),
        }
        Ok(())
    }
}
