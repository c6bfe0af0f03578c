//! Models: layers one after another, and the memory that a pass through them needs.

mod evaluation;
mod fold;
pub mod plan;

pub use evaluation::Evaluation;

use crate::error::{Error, Result};
use crate::layers::{Layer, Parameter, ParameterMut};
use crate::optim::Optimizer;
use crate::simd::Element;
use crate::tensor::{ALIGNMENT, Shape, Tensor, TensorMut, TensorRef};
use std::ops::Range;

/// Layers in a row: the output of each is the input of the next.
///
/// # Examples
/// ```
/// use evenkeel::layers::{BatchNorm1d, Linear, Relu};
/// use evenkeel::{Rng, Sequential};
/// let mut rng = Rng::new(1, "init");
/// let model = Sequential::<f32>::new()
///     .push(Linear::new(784, 32, &mut rng)?)
///     .push(BatchNorm1d::new(32)?)
///     .push(Relu::new())
///     .push(Linear::new(32, 10, &mut rng)?);
/// assert_eq!(model.output_shape([64, 784].into())?, [64, 10].into());
/// # Ok::<(), evenkeel::Error>(())
/// ```
#[derive(Default)]
pub struct Sequential<T> {
    layers: Vec<Box<dyn Layer<T>>>,
}

impl<T: Element> Sequential<T> {
    /// A model without layers.
    pub fn new() -> Self {
        Sequential { layers: Vec::new() }
    }

    /// The model with one more layer at its end.
    pub fn push(mut self, layer: impl Layer<T> + 'static) -> Self {
        self.layers.push(Box::new(layer));
        self
    }

    /// Number of layers.
    pub fn len(&self) -> usize {
        self.layers.len()
    }

    /// Whether there are no layers.
    pub fn is_empty(&self) -> bool {
        self.layers.is_empty()
    }

    /// The layers, first to last.
    pub fn layers(&self) -> impl Iterator<Item = &dyn Layer<T>> {
        self.layers.iter().map(|layer| layer.as_ref())
    }

    /// Shape of the output for a batch of this shape.
    ///
    /// # Errors
    /// If a layer does not take what the one before it gives; the error names its place.
    pub fn output_shape(&self, input: Shape) -> Result<Shape> {
        self.layers.iter().enumerate().try_fold(input, |shape, (i, layer)| named(i, layer.output_shape(shape)))
    }

    /// Memory for training with batches of at most this shape.
    ///
    /// # Errors
    /// If the layers do not fit one another, or if the memory cannot be addressed.
    pub fn workspace(&self, input: Shape) -> Result<Workspace<T>> {
        Workspace::new(self, input)
    }

    /// Memory for evaluating batches of at most this shape.
    ///
    /// # Errors
    /// If the layers do not fit one another, or if the memory cannot be addressed.
    pub fn infer_space(&self, input: Shape) -> Result<InferSpace<T>> {
        checked_len(input)?;
        let (mut widest, mut scratch, mut shape) = (0, 0, input);
        for (i, layer) in self.layers.iter().enumerate() {
            let output = named(i, layer.output_shape(shape))?;
            widest = widest.max(checked_len(output)?);
            scratch = scratch.max(layer.scratch_len(shape));
            shape = output;
        }
        Ok(InferSpace {
            current: Tensor::zeros([widest])?,
            next: Tensor::zeros([widest])?,
            scratch: Tensor::zeros([scratch])?,
            largest: input,
        })
    }

    /// Prepares every layer for many calls of [`Sequential::infer`] with parameters that no longer change: [`Layer::prepare`].
    ///
    /// For serving, after training or loading and [`Sequential::fold`]: it gains most where batches are small and layers wide
    /// (`cargo bench --bench gemm` times `-packed` beside the plain product). Results are the same bits, wide weights are held twice,
    /// and a model that is trained further is as if never prepared.
    ///
    /// # Errors
    /// If the memory cannot be addressed; the model works as before then.
    ///
    /// # Examples
    /// ```
    /// use evenkeel::layers::Linear;
    /// use evenkeel::tensor::Tensor;
    /// use evenkeel::{Rng, Sequential};
    /// let mut model = Sequential::<f32>::new().push(Linear::new(784, 100, &mut Rng::new(1, "init"))?);
    /// let (x, mut space) = (Tensor::zeros([1, 784])?, model.infer_space([1, 784].into())?);
    /// let before = model.infer(x.view(), &mut space)?.data().to_vec();
    /// model.prepare()?;
    /// assert_eq!(model.infer(x.view(), &mut space)?.data(), before);
    /// # Ok::<(), evenkeel::Error>(())
    /// ```
    pub fn prepare(&mut self) -> Result<()> {
        self.layers.iter_mut().enumerate().try_for_each(|(i, layer)| named(i, layer.prepare()))
    }

    /// Evaluates a batch: running statistics, nothing changed. The output stays in `space` until its next use.
    ///
    /// # Errors
    /// If the batch is not one that `space` was made for, or if a layer refuses it.
    pub fn infer<'s>(&self, x: TensorRef<'_, T>, space: &'s mut InferSpace<T>) -> Result<TensorRef<'s, T>> {
        check_batch(x.shape(), space.largest)?;
        let mut shape = x.shape();
        if self.layers.is_empty() {
            return Err(Error::shape("model", "at least one layer", 0));
        }
        for (i, layer) in self.layers.iter().enumerate() {
            let output = named(i, layer.output_shape(shape))?;
            if output.len() > space.next.data().len() {
                let room = format!("room for {} elements", output.len());
                return Err(Error::shape("model: space for evaluation", room, space.next.data().len()));
            }
            let (input_data, output_data) = (space.current.data(), space.next.data_mut());
            let input = if i == 0 { x } else { TensorRef::first_of(shape, input_data) };
            named(i, layer.infer(input, TensorMut::first_of(output, output_data), space.scratch.data_mut()))?;
            std::mem::swap(&mut space.current, &mut space.next);
            shape = output;
        }
        Ok(TensorRef::first_of(shape, space.current.data()))
    }

    /// Runs a training batch forward; outputs and what backward needs stay in `space`.
    ///
    /// # Errors
    /// If the batch is not one that `space` was made for, or if a layer refuses it (a batch of one before BatchNorm); the layers before
    /// that one have seen the batch then. With an error of either kind `space` holds no forward pass.
    pub fn forward(&mut self, x: TensorRef<'_, T>, space: &mut Workspace<T>) -> Result<()> {
        self.run(x, space, None)
    }

    /// [`Sequential::forward`] with every decision of every layer taken as in `base`, a forward pass of this model.
    ///
    /// # Errors
    /// As [`Sequential::forward`].
    pub(crate) fn forward_held(
        &mut self,
        x: TensorRef<'_, T>,
        space: &mut Workspace<T>,
        base: (TensorRef<'_, T>, &Workspace<T>),
    ) -> Result<()> {
        self.run(x, space, Some(base))
    }

    fn run(
        &mut self,
        x: TensorRef<'_, T>,
        space: &mut Workspace<T>,
        base: Option<(TensorRef<'_, T>, &Workspace<T>)>,
    ) -> Result<()> {
        space.holds_forward = false;
        space.fit(self, x.shape())?;
        for (i, layer) in self.layers.iter_mut().enumerate() {
            let ForwardParts { input, output, saved, scratch } = space.forward_parts(i);
            let input = input.unwrap_or(x);
            let result = match base {
                None => layer.forward(input, output, saved, scratch),
                Some((base_x, base_space)) => {
                    let base_input = if i == 0 { base_x } else { base_space.output_of(i - 1) };
                    layer.forward_held(base_input, input, output, saved, scratch)
                }
            };
            named(i, result)?;
        }
        space.holds_forward = true;
        Ok(())
    }

    /// Runs backward from the gradient of the output ([`Workspace::output_and_gradient`]); adds to the parameters' gradients.
    ///
    /// The gradient of `x` itself is computed only if `dx` asks for it.
    ///
    /// # Errors
    /// If `space` does not hold a forward pass of this model over a batch of the shape of `x`, or if `dx` has another shape; nothing is
    /// changed then. If a layer refuses, the layers behind it have their gradients already.
    pub fn backward(
        &mut self,
        x: TensorRef<'_, T>,
        space: &mut Workspace<T>,
        dx: Option<TensorMut<'_, T>>,
    ) -> Result<()> {
        if !space.holds_forward || x.shape() != space.input {
            let found = format!("a backward pass over {}", x.shape());
            return Err(Error::shape("model", "a forward pass over the same batch first", found));
        }
        space.fit(self, x.shape())?;
        if let Some(dx) = dx.as_ref().filter(|dx| dx.shape() != x.shape()) {
            return Err(Error::shape("model: dx", x.shape(), dx.shape()));
        }
        let mut dx = dx;
        for (i, layer) in self.layers.iter_mut().enumerate().rev() {
            let BackwardParts { input, dy, dx: previous, saved, scratch } = space.backward_parts(i);
            let target = if i == 0 { dx.take() } else { Some(previous) };
            named(i, layer.backward(input.unwrap_or(x), dy, target, saved, scratch))?;
        }
        Ok(())
    }

    /// Sets all gradients to zero.
    pub fn zero_grad(&mut self) {
        self.visit_mut(&mut |_, parameter| parameter.grad.fill(T::ZERO));
    }

    /// One step of an optimiser along the gradients.
    ///
    /// # Errors
    /// If the optimiser was used with another model before; parameters in front of the first that differs have moved then.
    pub fn step(&mut self, optimizer: &mut dyn Optimizer<T>) -> Result<()> {
        optimizer.begin_step();
        let mut index = 0;
        let mut result = Ok(());
        self.visit_mut(&mut |_, parameter| {
            if result.is_ok() {
                result = optimizer.update(index, parameter.value, parameter.grad);
            }
            index += 1;
        });
        result
    }

    /// Calls `f` with the index of the layer and each of its parameters, in order.
    pub fn visit(&self, f: &mut dyn FnMut(usize, Parameter<'_, T>)) {
        for (i, layer) in self.layers.iter().enumerate() {
            layer.visit(&mut |parameter| f(i, parameter));
        }
    }

    /// Calls `f` with the index of the layer and each of its parameters, in order.
    pub fn visit_mut(&mut self, f: &mut dyn FnMut(usize, ParameterMut<'_, T>)) {
        for (i, layer) in self.layers.iter_mut().enumerate() {
            layer.visit_mut(&mut |parameter| f(i, parameter));
        }
    }

    /// Calls `f` with each layer, in order.
    pub(crate) fn visit_layers_mut(&mut self, f: &mut dyn FnMut(&mut dyn Layer<T>)) {
        for layer in &mut self.layers {
            f(layer.as_mut());
        }
    }

    /// The layer at `index` as `1: BatchNorm1d(32)`.
    ///
    /// # Panics
    /// If there is no such layer.
    pub fn name_of(&self, index: usize) -> String {
        format!("{index}: {}", self.layers[index].describe())
    }
}

/// Puts a layer's place in front of its error.
fn named<R>(index: usize, result: Result<R>) -> Result<R> {
    result.map_err(|error| match error {
        Error::Shape { what, expected, found } => {
            Error::Shape { what: format!("layer {index}: {what}"), expected, found }
        }
        Error::Invalid { what, value, expected } => {
            Error::Invalid { what: format!("layer {index}: {what}"), value, expected }
        }
        other => other,
    })
}

fn checked_len(shape: Shape) -> Result<usize> {
    shape.checked_len().ok_or_else(|| Error::shape("model", "a size that fits an address", shape))
}

/// Parts of an arena, which were laid out side by side.
fn disjoint<T, const N: usize>(arena: &mut [T], ranges: [Range<usize>; N]) -> [&mut [T]; N] {
    arena.get_disjoint_mut(ranges).expect("the parts of an arena do not overlap")
}

/// An error unless `found` is `largest` with as many rows or fewer.
fn check_batch(found: Shape, largest: Shape) -> Result<()> {
    let fits = found.dims().len() == largest.dims().len()
        && found.dims().first() <= largest.dims().first()
        && found.dims().iter().skip(1).eq(largest.dims().iter().skip(1));
    if fits { Ok(()) } else { Err(Error::shape("model: batch", format!("at most {largest}"), found)) }
}

/// What has been laid out in an arena: every part begins on a cache line.
struct Extent {
    end: usize,
    line: usize,
    largest: Shape,
}

impl Extent {
    /// Nothing yet; `largest` is what an error names.
    fn new<T>(largest: Shape) -> Self {
        Extent { end: 0, line: ALIGNMENT / size_of::<T>(), largest }
    }

    /// The next `len` numbers.
    fn take(&mut self, len: usize) -> Result<Range<usize>> {
        let start = self.end;
        let next = len.checked_next_multiple_of(self.line).and_then(|len| start.checked_add(len));
        self.end = next.ok_or_else(|| Error::shape("model", "a size that fits an address", self.largest))?;
        Ok(start..start + len)
    }

    /// Numbers from the first part to where the next would begin.
    fn len(&self) -> usize {
        self.end
    }
}

/// What evaluation needs: two tensors that take turns, and scratch.
#[derive(Debug)]
pub struct InferSpace<T> {
    current: Tensor<T>,
    next: Tensor<T>,
    scratch: Tensor<T>,
    largest: Shape,
}

/// What training needs, in one allocation: every layer's output and saved values, two gradients that take turns, and scratch.
#[derive(Debug)]
pub struct Workspace<T> {
    arena: Tensor<T>,
    largest: Shape,
    input: Shape,
    /// Whether a forward pass over a batch of the shape `input` was completed last.
    holds_forward: bool,
    /// Shape of each layer's output for the batch at hand.
    outputs: Vec<Shape>,
    /// Room for each layer's output, at the largest batch: where it starts.
    output_at: Vec<usize>,
    /// Room for each layer's saved values: where it starts and how long it is.
    saved_at: Vec<(usize, usize)>,
    gradient_at: usize,
    gradient_len: usize,
    scratch_at: usize,
}

/// What the forward pass of a layer works on; no input if it is the batch itself.
struct ForwardParts<'w, T> {
    input: Option<TensorRef<'w, T>>,
    output: TensorMut<'w, T>,
    saved: &'w mut [T],
    scratch: &'w mut [T],
}

/// What the backward pass of a layer works on; no input if it is the batch itself, and then `dx` is empty.
struct BackwardParts<'w, T> {
    input: Option<TensorRef<'w, T>>,
    dy: TensorRef<'w, T>,
    dx: TensorMut<'w, T>,
    saved: &'w [T],
    scratch: &'w mut [T],
}

impl<T: Element> Workspace<T> {
    fn new(model: &Sequential<T>, largest: Shape) -> Result<Self> {
        let mut extent = Extent::new::<T>(largest);
        checked_len(largest)?;
        let (mut outputs, mut output_at, mut saved_at) = (Vec::new(), Vec::new(), Vec::new());
        let (mut shape, mut scratch, mut widest) = (largest, 0, 0);
        for (i, layer) in model.layers.iter().enumerate() {
            let output = named(i, layer.output_shape(shape))?;
            let len = checked_len(output)?;
            scratch = scratch.max(layer.scratch_len(shape));
            widest = widest.max(len);
            output_at.push(extent.take(len)?.start);
            let saved = layer.saved_len(shape);
            saved_at.push((extent.take(saved)?.start, saved));
            outputs.push(output);
            shape = output;
        }
        let gradient_at = extent.take(widest)?.start;
        let gradient_len = extent.len() - gradient_at;
        extent.take(gradient_len)?;
        let scratch_at = extent.take(scratch)?.start;
        let arena = Tensor::zeros([extent.len()])?;
        let (input, holds_forward) = (largest, false);
        Ok(Workspace {
            arena,
            largest,
            input,
            holds_forward,
            outputs,
            output_at,
            saved_at,
            gradient_at,
            gradient_len,
            scratch_at,
        })
    }

    /// Sets the shapes for a batch; allocates nothing.
    ///
    /// An error, and nothing changed, unless the workspace was made for this model (or one of the same sizes) and batches as large.
    fn fit(&mut self, model: &Sequential<T>, input: Shape) -> Result<()> {
        check_batch(input, self.largest)?;
        let (found, expected) = (model.layers.len(), self.outputs.len());
        if found != expected {
            return Err(Error::shape("workspace", format!("{expected} layers"), format!("{found} layers")));
        }
        let mut shape = input;
        for (i, layer) in model.layers.iter().enumerate() {
            let output = named(i, layer.output_shape(shape))?;
            let (saved_at, saved_len) = self.saved_at[i];
            let fits = checked_len(output)? <= saved_at - self.output_at[i]
                && output.len() <= self.gradient_len
                && layer.saved_len(shape) <= saved_len
                && layer.scratch_len(shape) <= self.arena.data().len() - self.scratch_at;
            if !fits {
                return Err(Error::shape("workspace", "one made for this model", format!("no room for layer {i}")));
            }
            shape = output;
        }
        let mut shape = input;
        for (output, layer) in self.outputs.iter_mut().zip(&model.layers) {
            shape = layer.output_shape(shape)?;
            *output = shape;
        }
        self.input = input;
        Ok(())
    }

    /// Output of a layer in the latest forward pass.
    ///
    /// # Panics
    /// If there is no such layer.
    pub fn output_of(&self, layer: usize) -> TensorRef<'_, T> {
        let shape = self.outputs[layer];
        TensorRef::first_of(shape, &self.arena.data()[self.output_at[layer]..])
    }

    /// The model's output, and room for the gradient of the loss by it.
    ///
    /// # Errors
    /// If the model has no layers.
    pub fn output_and_gradient(&mut self) -> Result<(TensorRef<'_, T>, TensorMut<'_, T>)> {
        let Some(last) = self.outputs.len().checked_sub(1) else {
            return Err(Error::shape("model", "at least one layer", 0));
        };
        let shape = self.outputs[last];
        let (front, back) = self.arena.data_mut().split_at_mut(self.gradient_at);
        let turn = last % 2 * self.gradient_len;
        let output = TensorRef::first_of(shape, &front[self.output_at[last]..]);
        Ok((output, TensorMut::first_of(shape, &mut back[turn..])))
    }

    fn forward_parts(&mut self, layer: usize) -> ForwardParts<'_, T> {
        let (front, scratch) = self.arena.data_mut().split_at_mut(self.scratch_at);
        let (before, own) = front.split_at_mut(self.output_at[layer]);
        let input = layer
            .checked_sub(1)
            .map(|previous| TensorRef::first_of(self.outputs[previous], &before[self.output_at[previous]..]));
        let (saved_at, saved_len) = self.saved_at[layer];
        let (output, saved) = own.split_at_mut(saved_at - self.output_at[layer]);
        let output = TensorMut::first_of(self.outputs[layer], output);
        ForwardParts { input, output, saved: &mut saved[..saved_len], scratch }
    }

    fn backward_parts(&mut self, layer: usize) -> BackwardParts<'_, T> {
        let (front, rest) = self.arena.data_mut().split_at_mut(self.gradient_at);
        let (gradients, scratch) = rest.split_at_mut(self.scratch_at - self.gradient_at);
        let (even, odd) = gradients.split_at_mut(self.gradient_len);
        // The gradient of layer i's output lies in the half of i's parity.
        let (own, other) = if layer.is_multiple_of(2) { (even, odd) } else { (odd, even) };
        let dy = TensorRef::first_of(self.outputs[layer], own);
        let input = layer
            .checked_sub(1)
            .map(|previous| TensorRef::first_of(self.outputs[previous], &front[self.output_at[previous]..]));
        // The first layer's input gradient goes to the caller, if anywhere.
        let dx_shape = input.map_or(Shape::new(&[0]), |input| input.shape());
        let dx = TensorMut::first_of(dx_shape, other);
        let (saved_at, saved_len) = self.saved_at[layer];
        BackwardParts { input, dy, dx, saved: &front[saved_at..][..saved_len], scratch }
    }
}
