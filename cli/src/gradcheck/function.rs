//! What a subject is as a function of tensors, in either type, and what is checked of it.

use evenkeel::Rng;
use evenkeel::gradcheck::{Failure, GradCheck, Input, Report};
use evenkeel::layers::Layer;
use evenkeel::simd::Element;
use evenkeel::tensor::{Shape, TensorMut, TensorRef};
use std::fmt;

/// What a check says.
pub(super) type Checked = Result<Report, Failure>;

/// A tensor of a function: its name, its shape, and values that are the same in either type.
pub(super) struct Given {
    pub(super) name: &'static str,
    pub(super) shape: Shape,
    pub(super) values: Vec<f32>,
}

impl Given {
    /// A vector; an empty one for a parameter that is not there.
    pub(super) fn parameter(name: &'static str, values: Vec<f32>) -> Self {
        Given { name, shape: [values.len()].into(), values }
    }

    pub(super) fn wide(&self) -> Vec<f64> {
        self.values.iter().map(|&x| f64::from(x)).collect()
    }
}

/// A function of `N` tensors with its backward pass, both through the kernels of the type; it shows its shape and options.
pub(super) trait Function<const N: usize>: fmt::Display {
    /// Where it is checked.
    fn given(&self, rng: &mut Rng) -> [Given; N];

    fn outputs(&self) -> usize;

    fn forward<T: Element>(&self, inputs: [&[T]; N], y: &mut [T]);

    fn backward<T: Element>(&self, inputs: [&[T]; N], dy: &[T], gradients: [&mut [T]; N]);

    /// For every entry of every gradient the sizes of its terms, added up.
    fn magnitude(&self, inputs: [&[f64]; N], dy: &[f64], sums: [&mut [f64]; N]);

    /// Units in the last place of that by which an f32 gradient may be off: half the roundings on its way.
    fn ulps(&self) -> [f64; N];
}

/// In f64 against differences.
pub(super) fn differences<const N: usize>(
    function: &impl Function<N>,
    given: &[Given; N],
    check: GradCheck,
) -> Checked {
    let values = given.each_ref().map(Given::wide);
    let inputs = std::array::from_fn(|i| Input::new(given[i].name, given[i].shape, &values[i]));
    let (forward, outputs) = (|inputs: [&[f64]; N], y: &mut [f64]| function.forward(inputs, y), function.outputs());
    check.function(inputs, outputs, forward, |inputs, dy, gradients| function.backward(inputs, dy, gradients))
}

/// In f32 against the f64 twin.
pub(super) fn twin<const N: usize>(function: &impl Function<N>, given: &[Given; N], check: GradCheck) -> Checked {
    check.twin(
        given.each_ref().map(|g| Input::new(g.name, g.shape, &g.values)),
        function.outputs(),
        |inputs, dy, gradients| function.backward(inputs, dy, gradients),
        |inputs, dy, gradients| function.backward(inputs, dy, gradients),
        |inputs, dy, sums| function.magnitude(inputs, dy, sums),
        function.ulps(),
    )
}

/// What a layer is given: its input, and its parameters in order, as many as the function has whether the layer has them or not.
fn set<T: Element>(layer: &mut dyn Layer<T>, parameters: &[&[T]]) {
    layer.visit_mut(&mut |p| {
        let index = usize::from(p.name != "weight");
        p.value.copy_from_slice(parameters[index]);
        p.grad.fill(T::ZERO);
    });
}

const TAKES: &str = "a layer takes the batch that was drawn for it";

/// The forward pass of a layer with a weight and a bias.
pub(super) fn layer_forward<T: Element>(
    layer: &mut dyn Layer<T>,
    shape: Shape,
    [x, weight, bias]: [&[T]; 3],
    y: &mut [T],
) -> Vec<T> {
    set(layer, &[weight, bias]);
    let mut saved = vec![T::ZERO; layer.saved_len(shape)];
    let mut scratch = vec![T::ZERO; layer.scratch_len(shape)];
    let output = layer.output_shape(shape).expect(TAKES);
    let (x, y) = (TensorRef::new(shape, x).expect(TAKES), TensorMut::new(output, y).expect(TAKES));
    layer.forward(x, y, &mut saved, &mut scratch).expect(TAKES);
    saved
}

/// The backward pass of a layer with a weight and a bias.
pub(super) fn layer_backward<T: Element>(
    layer: &mut dyn Layer<T>,
    shape: Shape,
    inputs: [&[T]; 3],
    dy: &[T],
    [dx, dweight, dbias]: [&mut [T]; 3],
) {
    let saved = layer_forward(layer, shape, inputs, &mut vec![T::ZERO; dy.len()]);
    let mut scratch = vec![T::ZERO; layer.scratch_len(shape)];
    let output = layer.output_shape(shape).expect(TAKES);
    let (x, dy) = (TensorRef::new(shape, inputs[0]).expect(TAKES), TensorRef::new(output, dy).expect(TAKES));
    let dx = TensorMut::new(shape, dx).expect(TAKES);
    layer.backward(x, dy, Some(dx), &saved, &mut scratch).expect(TAKES);
    // What the layer has not depends on nothing.
    dweight.fill(T::ZERO);
    dbias.fill(T::ZERO);
    layer.visit(&mut |p| {
        let target = if p.name == "weight" { &mut *dweight } else { &mut *dbias };
        target.copy_from_slice(p.grad);
    });
}
