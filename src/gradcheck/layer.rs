//! Checks of layers, models and plans: their inputs and parameters, with decisions and running statistics held.

use super::comparison::{Comparison, SAME, Variables};
use super::differences::{is_f64, typical};
use super::report::{Basis, Failure, Report};
use super::{GradCheck, Settings, wide};
use crate::error::{Error, Result};
use crate::layers::{Layer, Parameter, ParameterMut};
use crate::loss::{Loss, Targets};
use crate::model::Sequential;
use crate::model::plan::{Fusion, Plan};
use crate::rng::Rng;
use crate::simd::Element;
use crate::tensor::{Shape, Tensor, TensorRef};

impl GradCheck {
    /// Checks a layer in training mode at `x`: the gradients of its input and of all its parameters.
    ///
    /// The layer is left as it was, whether it passes or not.
    ///
    /// # Errors
    /// [`Failure::Gradient`] with the report if a gradient is wrong; [`Failure::Refused`] if the layer refuses the input, if its
    /// `visit` and `visit_mut` show different parameters, or gradients of other sizes, if [`Layer::forward_held`] answers twice
    /// differently or is another function than [`Layer::forward`], at the base point or on both sides of it, or if a tolerance is not in
    /// `[0, 1)`.
    ///
    /// # Examples
    /// ```
    /// use evenkeel::gradcheck::{GradCheck, normal_batch};
    /// use evenkeel::layers::BatchNorm1d;
    /// let x = normal_batch([6, 4], 1)?;
    /// let report = GradCheck::new(7).layer(&mut BatchNorm1d::<f64>::new(4)?, x.view())?;
    /// assert_eq!(report.checked(), 24 + 4 + 4);
    /// println!("{report}");
    /// # Ok::<(), evenkeel::gradcheck::Failure>(())
    /// ```
    pub fn layer<T: Element>(
        &self,
        layer: &mut dyn Layer<T>,
        x: TensorRef<'_, T>,
    ) -> std::result::Result<Report, Failure> {
        let mut held = Held::new(layer);
        Settings::verdict(of_layer(&self.0, &mut held, x)?)
    }

    /// Checks a whole model with its loss in training mode at a batch, layer by layer: the gradients of the input and of all parameters.
    ///
    /// The model is left as it was, whether it passes or not.
    ///
    /// # Errors
    /// As [`GradCheck::layer`], and if the loss refuses the targets.
    ///
    /// # Examples
    /// ```
    /// use evenkeel::gradcheck::{GradCheck, normal_batch};
    /// use evenkeel::layers::{BatchNorm1d, Linear, Relu};
    /// use evenkeel::{Loss, Rng, Sequential, Targets};
    /// let mut rng = Rng::new(1, "init");
    /// let mut model = Sequential::<f64>::new()
    ///     .push(Linear::new(4, 5, &mut rng)?).push(BatchNorm1d::new(5)?).push(Relu::new())
    ///     .push(Linear::new(5, 3, &mut rng)?);
    /// let (x, labels) = (normal_batch([6, 4], 1)?, [0, 2, 1, 1, 0, 2]);
    /// let report = GradCheck::new(7).model(&mut model, Loss::CrossEntropy, x.view(), Targets::Classes(&labels))?;
    /// assert!(report.tensor("3.weight").is_some());
    /// # Ok::<(), evenkeel::gradcheck::Failure>(())
    /// ```
    pub fn model<T: Element>(
        &self,
        model: &mut Sequential<T>,
        loss: Loss,
        x: TensorRef<'_, T>,
        targets: Targets<'_, T>,
    ) -> std::result::Result<Report, Failure> {
        let mut held = Held::new(model);
        Settings::verdict(of_model(&self.0, &mut held, loss, x, targets)?)
    }

    /// Checks the gradients that a [`Plan`] of the model computes, which is what training runs: those of all parameters, against
    /// differences of the model layer by layer.
    ///
    /// # Errors
    /// As [`GradCheck::model`].
    pub fn plan<T: Element>(
        &self,
        model: Sequential<T>,
        fusion: Fusion,
        loss: Loss,
        x: TensorRef<'_, T>,
        targets: Targets<'_, T>,
    ) -> std::result::Result<Report, Failure> {
        Settings::verdict(of_plan(&self.0, model, fusion, loss, x, targets)?)
    }
}

/// A random batch for a check: standard normal entries.
///
/// # Errors
/// If the shape cannot be addressed.
pub fn normal_batch(shape: impl Into<Shape>, seed: u64) -> Result<Tensor<f64>> {
    let mut rng = Rng::new(seed, "gradcheck input");
    let mut x = Tensor::zeros(shape)?;
    x.data_mut().iter_mut().for_each(|x| *x = rng.normal());
    Ok(x)
}

fn of_layer<T: Element>(
    settings: &Settings,
    Held { of: layer, state }: &mut Held<'_, T, dyn Layer<T> + '_>,
    x: TensorRef<'_, T>,
) -> Result<Report> {
    let output = layer.output_shape(x.shape())?;
    // What a forward pass leaves unwritten must not look like an answer.
    let nan = T::from_f64(f64::NAN);
    let mut y = Tensor::<T>::zeros(output)?;
    y.data_mut().fill(nan);
    let dy: Vec<T> = settings.upstream(output.len())?;
    let mut saved = Tensor::<T>::zeros([layer.saved_len(x.shape())])?;
    let mut scratch = Tensor::<T>::zeros([layer.scratch_len(x.shape())])?;
    let mut dx = Tensor::<T>::zeros(x.shape())?;
    dx.data_mut().fill(nan);

    layer.forward(x, y.view_mut(), saved.data_mut(), scratch.data_mut())?;
    let expected = wide(y.data());
    layer.visit_mut(&mut |parameter| parameter.grad.fill(T::ZERO));
    layer.backward(x, TensorRef::new(output, &dy)?, Some(dx.view_mut()), saved.data(), scratch.data_mut())?;
    let first = shown(|f| layer.visit(&mut |p| f(0, p)));
    // Once more, without asking for dx: gradients of parameters are the same, and are added.
    layer.backward(x, TensorRef::new(output, &dy)?, None, saved.data(), scratch.data_mut())?;
    let second = shown(|f| layer.visit(&mut |p| f(0, p)));
    let writable = writable(|f| layer.visit_mut(&mut |p| f(0, p)));
    let mut variables = vec![input(x, dx.data())];
    variables.extend(paired(first, &second, &writable)?.into_iter().map(|v| Variables {
        // A layer's own parameters go by their names alone.
        name: v.name.strip_prefix("0.").map_or_else(|| v.name.clone(), str::to_string),
        ..v
    }));
    let subject = layer.describe();
    holds_decisions_alone(settings, *layer, x)?;
    let outputs = &mut |values: &[Vec<T>], wide: &mut [f64]| {
        state.hold(*layer);
        let mut parameters = values[1..].iter();
        layer.visit_mut(&mut |p| write(&mut parameters, p));
        let moved = TensorRef::new(x.shape(), &values[0])?;
        y.data_mut().fill(nan);
        layer.forward_held(x, moved, y.view_mut(), saved.data_mut(), scratch.data_mut())?;
        wide.iter_mut().zip(y.data()).for_each(|(wide, y)| *wide = y.to_f64());
        Ok(())
    };
    let dy = wide(&dy);
    Comparison { subject, basis: Basis::of::<T>(), variables, dy, outputs, expected: Some(expected) }.run(settings)
}

/// Steps at which what is held is compared with what is not, for f64 and f32, in the size of the values.
const HELD_STEPS: [f64; 2] = [1e-6, 1e-2];
/// Part of an output's change by which the two may differ.
const HELD: f64 = 0.01;
/// Part of their difference by which it may miss being linear.
const LINEAR: f64 = 0.1;

/// An error if `forward_held` is another function than `forward`: a layer that holds its statistics too would be compared with what it
/// is not.
///
/// Where a step crosses decisions, such as those of a ReLU or a maximum, the two differ too, by what grows faster than the step or does not
/// grow, on one side of the base point or by other amounts on the other. A derivative that is held away makes an output differ by opposite
/// amounts on both sides, and by half as much at half the step.
fn holds_decisions_alone<T: Element>(settings: &Settings, layer: &mut dyn Layer<T>, x: TensorRef<'_, T>) -> Result<()> {
    let Held { of: layer, state } = &mut Held::new(layer);
    let mut rng = Rng::new(settings.seed, "gradcheck held");
    let output = layer.output_shape(x.shape())?;
    let (mut free, mut held) = (Tensor::<T>::zeros(output)?, Tensor::<T>::zeros(output)?);
    let mut saved = Tensor::<T>::zeros([layer.saved_len(x.shape())])?;
    let mut scratch = Tensor::<T>::zeros([layer.scratch_len(x.shape())])?;
    layer.forward(x, free.view_mut(), saved.data_mut(), scratch.data_mut())?;
    let base = wide(free.data());
    // A direction for each tensor, in the size of its values.
    let mut draw = |values: &[T]| -> Vec<f64> {
        let size = Some(typical(values)).filter(|&size| size > 0.0).unwrap_or(1.0);
        values.iter().map(|_| size * rng.normal()).collect()
    };
    let along = draw(x.data());
    let of_parameters: Vec<Vec<f64>> = state.parameters.iter().map(|(value, _)| draw(value)).collect();
    let mut difference = |h: f64| -> Result<Vec<f64>> {
        let step = |value: &[T], along: &[f64]| -> Vec<T> {
            value.iter().zip(along).map(|(v, d)| T::from_f64(v.to_f64() + h * d)).collect()
        };
        let moved = step(x.data(), &along);
        let moved = TensorRef::new(x.shape(), &moved)?;
        let parameters = state.parameters.iter().zip(&of_parameters);
        let parameters: Vec<Vec<T>> = parameters.map(|((value, _), along)| step(value, along)).collect();
        state.hold(*layer);
        let mut parameters = parameters.iter();
        layer.visit_mut(&mut |p| write(&mut parameters, p));
        layer.forward(moved, free.view_mut(), saved.data_mut(), scratch.data_mut())?;
        state.hold(*layer);
        layer.forward_held(x, moved, held.view_mut(), saved.data_mut(), scratch.data_mut())?;
        let outputs = free.data().iter().zip(held.data()).zip(&base);
        Ok(outputs
            .map(|((free, held), &base)| {
                let (free, held) = (free.to_f64(), held.to_f64());
                let change = (free - base).abs().max((held - base).abs());
                let rounding = SAME * T::ROUNDOFF * base.abs().max(free.abs());
                if (free - held).abs() > HELD * change + rounding { free - held } else { 0.0 }
            })
            .collect())
    };
    let h = HELD_STEPS[usize::from(!is_f64::<T>())];
    let (above, below, nearer) = (difference(h)?, difference(-h)?, difference(0.5 * h)?);
    let is_linear = |((above, below), nearer): ((&f64, &f64), &f64)| {
        let miss = (above + below).abs().max((above - 2.0 * nearer).abs());
        *above != 0.0 && miss <= LINEAR * above.abs()
    };
    if above.iter().zip(&below).zip(&nearer).any(is_linear) {
        let what = format!("gradient check of {}: forward_held", layer.describe());
        return Err(Error::invalid(what, "another function than forward", "the same but for decisions"));
    }
    Ok(())
}

fn of_model<T: Element>(
    settings: &Settings,
    held: &mut Held<'_, T, Sequential<T>>,
    loss: Loss,
    x: TensorRef<'_, T>,
    targets: Targets<'_, T>,
) -> Result<Report> {
    let model = &mut *held.of;
    let (mut base, mut dx) = (model.workspace(x.shape())?, Tensor::<T>::zeros(x.shape())?);
    dx.data_mut().fill(T::from_f64(f64::NAN));
    model.forward(x, &mut base)?;
    let (y, dy) = base.output_and_gradient()?;
    let expected = loss.forward_backward(y, targets, dy)?;
    model.zero_grad();
    model.backward(x, &mut base, Some(dx.view_mut()))?;
    let first = shown(|f| model.visit(f));
    // Once more, from the gradient of the loss again, without asking for dx.
    let (y, dy) = base.output_and_gradient()?;
    loss.forward_backward(y, targets, dy)?;
    model.backward(x, &mut base, None)?;
    let second = shown(|f| model.visit(f));
    let writable = writable(|f| model.visit_mut(f));
    let mut variables = vec![input(x, dx.data())];
    variables.extend(paired(first, &second, &writable)?);
    differences(settings, held, loss, (x, targets), (variables, 1), expected)
}

fn of_plan<T: Element>(
    settings: &Settings,
    model: Sequential<T>,
    fusion: Fusion,
    loss: Loss,
    x: TensorRef<'_, T>,
    targets: Targets<'_, T>,
) -> Result<Report> {
    let mut plan = Plan::new(model, x.shape(), loss, fusion)?;
    plan.forward(x)?;
    let expected = plan.loss_of(targets)?;
    plan.backward(x)?;
    let variables = shown(|f| plan.visit(f));
    let mut model = plan.into_model();
    agree(&variables, &writable(|f| model.visit_mut(f)))?;
    differences(settings, &mut Held::new(&mut model), loss, (x, targets), (variables, 0), expected)
}

/// The comparison with differences of a model's loss; the variables are its parameters, after so many inputs.
fn differences<T: Element>(
    settings: &Settings,
    Held { of: model, state }: &mut Held<'_, T, Sequential<T>>,
    loss: Loss,
    (x, targets): (TensorRef<'_, T>, Targets<'_, T>),
    (variables, inputs): (Vec<Variables<T>>, usize),
    expected: f64,
) -> Result<Report> {
    let (mut base, mut trial) = (model.workspace(x.shape())?, model.workspace(x.shape())?);
    state.hold(*model);
    model.forward(x, &mut base)?;
    let (mut index, mut all_hold) = (0, Ok(()));
    model.visit_layers_mut(&mut |layer| {
        if all_hold.is_ok() {
            let input = if index == 0 { x } else { base.output_of(index - 1) };
            all_hold = holds_decisions_alone(settings, layer, input);
        }
        index += 1;
    });
    all_hold?;
    let names: Vec<String> = model.layers().map(Layer::describe).collect();
    let subject = format!("{} with {loss:?}", names.join(", "));
    let outputs = &mut |values: &[Vec<T>], y: &mut [f64]| {
        state.hold(*model);
        let (input, parameters) = values.split_at(inputs);
        let mut parameters = parameters.iter();
        model.visit_mut(&mut |_, p| write(&mut parameters, p));
        let moved = TensorRef::new(x.shape(), input.first().map_or(x.data(), |input| &input[..]))?;
        model.forward_held(moved, &mut trial, (x, &base))?;
        y[0] = loss.forward(trial.output_and_gradient()?.0, targets)?;
        Ok(())
    };
    let expected = Some(vec![expected]);
    Comparison { subject, basis: Basis::of::<T>(), variables, dy: vec![1.0], outputs, expected }.run(settings)
}

/// What consists of layers.
trait Layers<T: Element> {
    /// Calls `f` with each layer, in order.
    fn each(&mut self, f: &mut dyn FnMut(&mut dyn Layer<T>));
}

impl<T: Element> Layers<T> for dyn Layer<T> + '_ {
    fn each(&mut self, f: &mut dyn FnMut(&mut dyn Layer<T>)) {
        f(self);
    }
}

impl<T: Element> Layers<T> for Sequential<T> {
    fn each(&mut self, f: &mut dyn FnMut(&mut dyn Layer<T>)) {
        self.visit_layers_mut(f);
    }
}

/// A layer or a model, with what it held when the check began; it gets that back when the check ends, also by a panic.
struct Held<'a, T: Element, L: Layers<T> + ?Sized> {
    of: &'a mut L,
    state: State<T>,
}

impl<'a, T: Element, L: Layers<T> + ?Sized> Held<'a, T, L> {
    fn new(of: &'a mut L) -> Self {
        let state = State::of(of);
        Held { of, state }
    }
}

impl<T: Element, L: Layers<T> + ?Sized> Drop for Held<'_, T, L> {
    fn drop(&mut self) {
        self.state.restore(self.of);
    }
}

/// All that a layer, or each layer of a model, holds.
struct State<T> {
    /// Values and gradient of each parameter.
    parameters: Vec<(Vec<T>, Vec<T>)>,
    /// What training passes move besides: running statistics and counts.
    buffers: Vec<Vec<T>>,
    counts: Vec<u64>,
}

impl<T: Element> State<T> {
    fn of(layers: &mut (impl Layers<T> + ?Sized)) -> Self {
        let mut state = State { parameters: Vec::new(), buffers: Vec::new(), counts: Vec::new() };
        layers.each(&mut |layer| {
            layer.visit_mut(&mut |p| state.parameters.push((p.value.to_vec(), p.grad.to_vec())));
            layer.visit_buffers_mut(&mut |_, buffer| state.buffers.push(buffer.to_vec()));
            layer.visit_counts_mut(&mut |_, count| state.counts.push(*count));
        });
        state
    }

    /// Puts back what moves in a training pass.
    fn hold(&self, layers: &mut (impl Layers<T> + ?Sized)) {
        let (mut buffers, mut counts) = (self.buffers.iter(), self.counts.iter());
        layers.each(&mut |layer| {
            layer.visit_buffers_mut(&mut |_, buffer| put_back(buffer, buffers.next()));
            layer.visit_counts_mut(&mut |_, count| *count = counts.next().copied().unwrap_or(*count));
        });
    }

    /// Puts back everything.
    fn restore(&self, layers: &mut (impl Layers<T> + ?Sized)) {
        self.hold(layers);
        let mut parameters = self.parameters.iter();
        layers.each(&mut |layer| {
            layer.visit_mut(&mut |p| {
                let old = parameters.next();
                put_back(p.value, old.map(|(value, _)| value));
                put_back(p.grad, old.map(|(_, grad)| grad));
            });
        });
    }
}

/// A layer that shows something else than before gets nothing.
fn put_back<T: Copy>(now: &mut [T], old: Option<&Vec<T>>) {
    if let Some(old) = old.filter(|old| old.len() == now.len()) {
        now.copy_from_slice(old);
    }
}

fn write<T: Copy>(values: &mut std::slice::Iter<'_, Vec<T>>, parameter: ParameterMut<'_, T>) {
    put_back(parameter.value, values.next());
}

fn input<T: Element>(x: TensorRef<'_, T>, dx: &[T]) -> Variables<T> {
    Variables { name: "x".to_string(), shape: x.shape(), values: x.data().to_vec(), analytic: wide(dx), added: None }
}

/// Every parameter that `visit` shows.
fn shown<T: Element>(visit: impl FnOnce(&mut dyn FnMut(usize, Parameter<'_, T>))) -> Vec<Variables<T>> {
    let mut shown = Vec::new();
    visit(&mut |layer, p| {
        let (name, values, analytic) = (format!("{layer}.{}", p.name), p.value.to_vec(), wide(p.grad));
        shown.push(Variables { name, shape: p.shape, values, analytic, added: None });
    });
    shown
}

/// Name, values and number of gradients of every parameter that `visit_mut` shows.
type Writable<T> = Vec<(&'static str, Vec<T>, usize)>;

fn writable<T: Element>(visit: impl FnOnce(&mut dyn FnMut(usize, ParameterMut<'_, T>))) -> Writable<T> {
    let mut writable = Vec::new();
    visit(&mut |_, p| writable.push((p.name, p.value.to_vec(), p.grad.len())));
    writable
}

/// An error unless what can be written is what can be read, or a check would move something else than it looks at.
fn agree<T: Element>(read: &[Variables<T>], writable: &Writable<T>) -> Result<()> {
    let names = |all: &mut dyn Iterator<Item = &str>| match all.collect::<Vec<_>>().join(", ") {
        none if none.is_empty() => "nothing".to_string(),
        names => names,
    };
    // `3.weight` in a model is `weight` to its layer.
    fn own<T>(read: &Variables<T>) -> &str {
        read.name.split_once('.').map_or("", |(_, name)| name)
    }
    let same = |read: &[T], written: &[T]| read.iter().map(|x| x.bits()).eq(written.iter().map(|x| x.bits()));
    let agrees = read.len() == writable.len()
        && read.iter().zip(writable).all(|(read, (name, values, gradients))| {
            own(read) == *name && same(&read.values, values) && read.analytic.len() == *gradients
        });
    if !agrees {
        let expected = format!("what visit shows: {}", names(&mut read.iter().map(own)));
        return Err(Error::shape("gradient check: visit_mut", expected, names(&mut writable.iter().map(|p| p.0))));
    }
    for Variables { name, shape, values, analytic, .. } in read {
        let what = format!("gradient check: {name}");
        if values.len() != analytic.len() {
            let found = format!("{} gradients", analytic.len());
            return Err(Error::shape(what, format!("{} values", values.len()), found));
        }
        if shape.checked_len() != Some(values.len()) {
            return Err(Error::shape(what, shape, format!("{} values", values.len())));
        }
    }
    Ok(())
}

/// The parameters after one backward pass and after another, which should have added the same again.
fn paired<T: Element>(
    mut first: Vec<Variables<T>>,
    second: &[Variables<T>],
    writable: &Writable<T>,
) -> Result<Vec<Variables<T>>> {
    agree(&first, writable)?;
    agree(second, writable)?;
    for (once, both) in first.iter_mut().zip(second) {
        once.added = Some(both.analytic.iter().zip(&once.analytic).map(|(both, once)| both - once).collect());
    }
    Ok(first)
}
