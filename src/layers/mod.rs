//! Layers: parameters, their gradients, and the three passes over a batch.
//!
//! **Who owns what.** A layer owns its parameters, their gradients and its running statistics. The caller owns input, output,
//! what backward needs (`saved`) and scratch: the layer says how much ([`Layer::saved_len`], [`Layer::scratch_len`]), and a
//! [`Workspace`](crate::model::Workspace) takes it all from one arena. So nothing is allocated per step, and
//! [`Layer::infer`], which takes `&self`, can run on many threads at once.
//!
//! **The mode is in the call.** `infer` uses running statistics and changes nothing; `forward` uses the batch and keeps what
//! `backward` needs. There is no hidden flag to forget.
//!
//! Your own layer implements the same trait and sits in a model like ours.

mod batchnorm;
mod linear;
mod relu;
mod weight;

pub use batchnorm::{BatchNorm1d, BatchNorm2d, BatchNormOptions};
pub(crate) use batchnorm::{as_norm, as_norm_mut};
pub use linear::Linear;
pub use relu::Relu;

use crate::error::{Error, Result};
use crate::simd::Element;
use crate::tensor::{ImageLayout, Shape, TensorMut, TensorRef};
use std::any::Any;

/// One parameter tensor and its gradient.
#[derive(Debug)]
pub struct Parameter<'a, T> {
    /// PyTorch's name within the layer: `weight`, `bias`.
    pub name: &'static str,
    /// The shape, as the layer has it.
    pub shape: Shape,
    /// The values, in the layer's own order.
    pub value: &'a [T],
    /// Their gradient, in the same order; backward passes add to it.
    pub grad: &'a [T],
}

/// One parameter tensor and its gradient, to be written.
#[derive(Debug)]
pub struct ParameterMut<'a, T> {
    /// PyTorch's name within the layer: `weight`, `bias`.
    pub name: &'static str,
    /// The values, in the layer's own order.
    pub value: &'a mut [T],
    /// Their gradient, in the same order; backward passes add to it.
    pub grad: &'a mut [T],
}

/// `y = scale (x - centre) + shift`, for one channel.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AffineMap {
    /// What a distance from the centre is multiplied by.
    pub scale: f64,
    /// What becomes the shift.
    pub centre: f64,
    /// What is added.
    pub shift: f64,
}

impl AffineMap {
    /// The map of one number.
    pub fn apply(self, x: f64) -> f64 {
        self.scale * (x - self.centre) + self.shift
    }
}

/// An affine map for each channel.
#[derive(Clone, Debug, PartialEq)]
pub struct PerChannel {
    /// How the images lie that have these channels; none for `[n, c]` and `[n, c, l]`.
    pub layout: Option<ImageLayout>,
    /// The map of each channel.
    pub maps: Vec<AffineMap>,
}

/// A differentiable function of a batch, with parameters.
///
/// All shapes are those of whole batches; the first dimension is the batch. It is [`Any`], so that the plan of a model knows the layers
/// of this crate, and fuses nothing with another.
pub trait Layer<T: Element>: Any + Send + Sync {
    /// What it is and how wide, as in `Linear(784, 32)`.
    fn describe(&self) -> String;

    /// Shape of the output for an input of this shape.
    ///
    /// # Errors
    /// If the layer does not take such an input.
    fn output_shape(&self, input: Shape) -> Result<Shape>;

    /// Elements that [`Layer::forward`] saves for [`Layer::backward`], for an input that [`Layer::output_shape`] takes; any number for
    /// another.
    fn saved_len(&self, _input: Shape) -> usize {
        0
    }

    /// Elements of scratch that any of the passes needs, for an input that [`Layer::output_shape`] takes; any number for another.
    fn scratch_len(&self, _input: Shape) -> usize {
        0
    }

    /// Makes what helps many calls of [`Layer::infer`] with parameters that no longer change; no result changes by a bit.
    ///
    /// What it makes is dropped as soon as a parameter may change ([`Layer::visit_mut`], a setter), so that it is never out of date,
    /// and is used while the instruction set is the one that it was made for. It takes memory: a [`Linear`] holds a wide weight twice.
    /// A layer that gains nothing leaves this alone; one that holds others passes it on.
    ///
    /// # Errors
    /// If the memory cannot be addressed; the layer works as before then.
    fn prepare(&mut self) -> Result<()> {
        Ok(())
    }

    /// What the layer is at evaluation, if that is an affine map for each channel: what another may [`Layer::absorb`].
    fn per_channel(&self) -> Option<PerChannel> {
        None
    }

    /// Takes a map of its outputs into its own parameters, for [`Sequential::fold`](crate::model::Sequential::fold): [`Layer::infer`]
    /// answers `after(f(x))` from then on, to within rounding. Returns whether it did.
    ///
    /// A layer with one row of weights per channel does so if the channels are its own and what it would hold is finite; any other
    /// leaves this alone.
    ///
    /// # Errors
    /// If the memory cannot be addressed; nothing is changed then.
    fn absorb(&mut self, _after: &PerChannel) -> Result<bool> {
        Ok(false)
    }

    /// Evaluation: `y = f(x)` with running statistics; changes nothing.
    ///
    /// # Errors
    /// If a shape or a value does not fit; `y` is unchanged then.
    fn infer(&self, x: TensorRef<'_, T>, y: TensorMut<'_, T>, scratch: &mut [T]) -> Result<()>;

    /// Training: `y = f(x)` with the batch's statistics; fills `saved`, and moves running statistics.
    ///
    /// # Errors
    /// If a shape or a value does not fit; nothing is changed then.
    fn forward(&mut self, x: TensorRef<'_, T>, y: TensorMut<'_, T>, saved: &mut [T], scratch: &mut [T]) -> Result<()>;

    /// Adds the gradients of the parameters to theirs, and writes that of `x` to `dx` if asked for.
    ///
    /// `x` and `saved` are those of the latest [`Layer::forward`], `dy` is the gradient of its output.
    ///
    /// # Errors
    /// If a shape does not fit; nothing is changed then.
    fn backward(
        &mut self,
        x: TensorRef<'_, T>,
        dy: TensorRef<'_, T>,
        dx: Option<TensorMut<'_, T>>,
        saved: &[T],
        scratch: &mut [T],
    ) -> Result<()>;

    /// [`Layer::forward`] with every decision (which side of a kink, which maximum) taken as at `base`, so that finite differences
    /// see a smooth function. A layer without decisions leaves this alone.
    ///
    /// # Errors
    /// As [`Layer::forward`].
    fn forward_held(
        &mut self,
        _base: TensorRef<'_, T>,
        x: TensorRef<'_, T>,
        y: TensorMut<'_, T>,
        saved: &mut [T],
        scratch: &mut [T],
    ) -> Result<()> {
        self.forward(x, y, saved, scratch)
    }

    /// Calls `f` with each parameter, always in the same order.
    fn visit(&self, _f: &mut dyn FnMut(Parameter<'_, T>)) {}

    /// Calls `f` with each parameter, in the order of [`Layer::visit`].
    fn visit_mut(&mut self, _f: &mut dyn FnMut(ParameterMut<'_, T>)) {}

    /// Calls `f` with the name and the values of each buffer that is not a parameter (running statistics).
    fn visit_buffers_mut(&mut self, _f: &mut dyn FnMut(&'static str, &mut [T])) {}

    /// Calls `f` with the name and the value of each count that training passes move (batches seen).
    fn visit_counts_mut(&mut self, _f: &mut dyn FnMut(&'static str, &mut u64)) {}
}

/// An error unless the shapes of a pass agree and its scratch suffices. Names are made only when there is something to say.
fn check_output<T: Element>(layer: &dyn Layer<T>, x: Shape, y: Shape, scratch: &[T]) -> Result<()> {
    let output = layer.output_shape(x)?;
    if output != y {
        return Err(Error::shape(format!("{}: y or dy", layer.describe()), output, y));
    }
    expect_room(layer, "scratch", layer.scratch_len(x), scratch.len())
}

/// [`check_output`] for a backward pass, with what it needs besides.
fn check_backward<T: Element>(
    layer: &dyn Layer<T>,
    x: Shape,
    dy: Shape,
    dx: Option<&TensorMut<'_, T>>,
    saved: &[T],
    scratch: &[T],
) -> Result<()> {
    check_output(layer, x, dy, scratch)?;
    expect_room(layer, "saved", layer.saved_len(x), saved.len())?;
    match dx.map(|dx| dx.shape()).filter(|&dx| dx != x) {
        Some(dx) => Err(Error::shape(format!("{}: dx", layer.describe()), x, dx)),
        None => Ok(()),
    }
}

/// An error unless a caller's slice has at least `needed` elements.
fn expect_room<T: Element>(layer: &dyn Layer<T>, what: &str, needed: usize, found: usize) -> Result<()> {
    if found >= needed {
        return Ok(());
    }
    let what = format!("{}: {what}", layer.describe());
    Err(Error::shape(what, format!("at least {needed} elements"), format!("{found} elements")))
}
