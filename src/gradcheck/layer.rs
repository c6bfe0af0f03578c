//! Checks of layers, models and plans: their inputs and parameters, with decisions and running statistics held.

use super::comparison::{Comparison, Variables};
use super::report::{Basis, Failure, Report};
use super::{GradCheck, Settings};
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
    /// `visit` and `visit_mut` show different parameters, or gradients of other sizes, if [`Layer::forward_held`] at the base point is
    /// not [`Layer::forward`] or answers twice differently, or if a tolerance is not in `[0, 1)`.
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
        let state = State::of(|f| f(layer));
        let report = of_layer(&self.0, layer, x, &state);
        state.restore(|f| f(layer));
        Settings::verdict(report?)
    }

    /// Checks a whole model with its loss in training mode at a batch, layer by layer: the gradients of the input and of all parameters.
    ///
    /// The model is left as it was, whether it passes or not.
    ///
    /// # Errors
    /// As [`GradCheck::layer`], and if the loss refuses the targets.
    pub fn model<T: Element>(
        &self,
        model: &mut Sequential<T>,
        loss: Loss,
        x: TensorRef<'_, T>,
        targets: Targets<'_, T>,
    ) -> std::result::Result<Report, Failure> {
        let state = State::of(|f| model.visit_layers_mut(f));
        let report = of_model(&self.0, model, loss, x, targets, &state);
        state.restore(|f| model.visit_layers_mut(f));
        Settings::verdict(report?)
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

fn basis<T: Element>() -> Basis {
    if T::ROUNDOFF == f64::ROUNDOFF { Basis::F64 } else { Basis::F32 }
}

fn of_layer<T: Element>(
    settings: &Settings,
    layer: &mut dyn Layer<T>,
    x: TensorRef<'_, T>,
    state: &State<T>,
) -> Result<Report> {
    let output = layer.output_shape(x.shape())?;
    let dy: Vec<T> = settings.upstream(output.len());
    let mut y = Tensor::<T>::zeros(output)?;
    let mut saved = vec![T::ZERO; layer.saved_len(x.shape())];
    let mut scratch = vec![T::ZERO; layer.scratch_len(x.shape())];
    let mut dx = Tensor::<T>::zeros(x.shape())?;
    dx.data_mut().fill(T::from_f64(f64::NAN));

    layer.forward(x, y.view_mut(), &mut saved, &mut scratch)?;
    let expected = wide(y.data());
    layer.visit_mut(&mut |parameter| parameter.grad.fill(T::ZERO));
    layer.backward(x, TensorRef::new(output, &dy)?, Some(dx.view_mut()), &saved, &mut scratch)?;
    let first = shown(|f| layer.visit(&mut |p| f(0, p)));
    // Once more, without asking for dx: gradients of parameters are the same, and are added.
    layer.backward(x, TensorRef::new(output, &dy)?, None, &saved, &mut scratch)?;
    let second = shown(|f| layer.visit(&mut |p| f(0, p)));
    let writable = writable(|f| layer.visit_mut(&mut |p| f(0, p)));
    let mut variables = vec![input(x, dx.data())];
    variables.extend(paired(first, second, &writable)?.into_iter().map(|v| Variables {
        // A layer's own parameters go by their names alone.
        name: v.name.trim_start_matches("0.").to_string(),
        ..v
    }));
    let subject = layer.describe();
    let outputs = &mut |values: &[Vec<T>], wide: &mut [f64]| {
        state.hold(|f| f(layer));
        let mut parameters = values[1..].iter();
        layer.visit_mut(&mut |p| write(&mut parameters, p));
        layer.forward_held(x, TensorRef::new(x.shape(), &values[0])?, y.view_mut(), &mut saved, &mut scratch)?;
        wide.iter_mut().zip(y.data()).for_each(|(wide, y)| *wide = y.to_f64());
        Ok(())
    };
    let dy = wide(&dy);
    Comparison { subject, basis: basis::<T>(), variables, dy, outputs, expected: Some(expected) }.run(settings)
}

fn of_model<T: Element>(
    settings: &Settings,
    model: &mut Sequential<T>,
    loss: Loss,
    x: TensorRef<'_, T>,
    targets: Targets<'_, T>,
    state: &State<T>,
) -> Result<Report> {
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
    variables.extend(paired(first, second, &writable)?);
    differences(settings, (model, state), loss, (x, targets), variables, expected)
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
    let shown = shown(|f| plan.visit(f));
    let mut model = plan.into_model();
    let state = State::of(|f| model.visit_layers_mut(f));
    let of_parameter = |(name, values, analytic): (String, Vec<T>, Vec<f64>)| {
        let shape = [values.len()].into();
        Variables { name, shape, values, analytic, added: None }
    };
    let variables = shown.into_iter().map(of_parameter).collect();
    differences(settings, (&mut model, &state), loss, (x, targets), variables, expected)
}

/// The comparison with differences of a model's loss; the variables are its parameters, after its input if that has a gradient.
fn differences<T: Element>(
    settings: &Settings,
    (model, state): (&mut Sequential<T>, &State<T>),
    loss: Loss,
    (x, targets): (TensorRef<'_, T>, Targets<'_, T>),
    variables: Vec<Variables<T>>,
    expected: f64,
) -> Result<Report> {
    let (mut base, mut trial) = (model.workspace(x.shape())?, model.workspace(x.shape())?);
    state.hold(|f| model.visit_layers_mut(f));
    model.forward(x, &mut base)?;
    let names: Vec<String> = model.layers().map(Layer::describe).collect();
    let subject = format!("{} with {loss:?}", names.join(", "));
    let inputs = variables.len() - state.parameters.len();
    let outputs = &mut |values: &[Vec<T>], y: &mut [f64]| {
        state.hold(|f| model.visit_layers_mut(f));
        let (input, parameters) = values.split_at(inputs);
        let mut parameters = parameters.iter();
        model.visit_mut(&mut |_, p| write(&mut parameters, p));
        let moved = TensorRef::new(x.shape(), input.first().map_or(x.data(), |input| &input[..]))?;
        model.forward_held(moved, &mut trial, (x, &base))?;
        y[0] = loss.forward(trial.output_and_gradient()?.0, targets)?;
        Ok(())
    };
    let expected = Some(vec![expected]);
    Comparison { subject, basis: basis::<T>(), variables, dy: vec![1.0], outputs, expected }.run(settings)
}

/// All that a layer, or each layer of a model, holds.
struct State<T> {
    /// Values and gradient of each parameter.
    parameters: Vec<(Vec<T>, Vec<T>)>,
    /// What training passes move besides: running statistics and counts.
    buffers: Vec<Vec<T>>,
    counts: Vec<u64>,
}

/// Calls what it is given with each layer, in order.
type EachLayer<'a, T> = dyn FnMut(&mut dyn Layer<T>) + 'a;

impl<T: Element> State<T> {
    fn of(each: impl FnOnce(&mut EachLayer<'_, T>)) -> Self {
        let mut state = State { parameters: Vec::new(), buffers: Vec::new(), counts: Vec::new() };
        each(&mut |layer| {
            layer.visit_mut(&mut |p| state.parameters.push((p.value.to_vec(), p.grad.to_vec())));
            layer.visit_buffers_mut(&mut |_, buffer| state.buffers.push(buffer.to_vec()));
            layer.visit_counts_mut(&mut |_, count| state.counts.push(*count));
        });
        state
    }

    /// Puts back what moves in a training pass.
    fn hold(&self, each: impl FnOnce(&mut EachLayer<'_, T>)) {
        each(&mut self.holder());
    }

    fn holder(&self) -> impl FnMut(&mut dyn Layer<T>) {
        let (mut buffers, mut counts) = (self.buffers.iter(), self.counts.iter());
        move |layer| {
            layer.visit_buffers_mut(&mut |_, buffer| put_back(buffer, buffers.next()));
            layer.visit_counts_mut(&mut |_, count| *count = counts.next().copied().unwrap_or(*count));
        }
    }

    /// Puts back everything.
    fn restore(&self, each: impl FnOnce(&mut EachLayer<'_, T>)) {
        let (mut hold, mut parameters) = (self.holder(), self.parameters.iter());
        each(&mut |layer| {
            hold(layer);
            layer.visit_mut(&mut |p| {
                if let Some((value, grad)) = parameters.next() {
                    put_back(p.value, Some(value));
                    put_back(p.grad, Some(grad));
                }
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

fn wide<T: Element>(values: &[T]) -> Vec<f64> {
    values.iter().map(|x| x.to_f64()).collect()
}

fn input<T: Element>(x: TensorRef<'_, T>, dx: &[T]) -> Variables<T> {
    Variables { name: "x".to_string(), shape: x.shape(), values: x.data().to_vec(), analytic: wide(dx), added: None }
}

/// Name, values and gradient of every parameter that `visit` shows.
type Shown<T> = Vec<(String, Vec<T>, Vec<f64>)>;

fn shown<T: Element>(visit: impl FnOnce(&mut dyn FnMut(usize, Parameter<'_, T>))) -> Shown<T> {
    let mut shown = Vec::new();
    visit(&mut |layer, p| shown.push((format!("{layer}.{}", p.name), p.value.to_vec(), wide(p.grad))));
    shown
}

/// Name, values and number of gradients of every parameter that `visit_mut` shows.
type Writable<T> = Vec<(&'static str, Vec<T>, usize)>;

fn writable<T: Element>(visit: impl FnOnce(&mut dyn FnMut(usize, ParameterMut<'_, T>))) -> Writable<T> {
    let mut writable = Vec::new();
    visit(&mut |_, p| writable.push((p.name, p.value.to_vec(), p.grad.len())));
    writable
}

/// The parameters after one backward pass and after another, which should have added the same again; and what can be written must
/// be what can be read, or a check would move something else than it looks at.
fn paired<T: Element>(first: Shown<T>, second: Shown<T>, writable: &Writable<T>) -> Result<Vec<Variables<T>>> {
    let names = |all: &mut dyn Iterator<Item = &str>| all.collect::<Vec<_>>().join(", ");
    let same = |read: &[T], written: &[T]| read.iter().map(|x| x.bits()).eq(written.iter().map(|x| x.bits()));
    let agrees = first.len() == writable.len()
        && first.iter().zip(writable).all(|(read, written)| {
            // `3.weight` in a model is `weight` to its layer.
            read.0.rsplit('.').next() == Some(written.0) && same(&read.1, &written.1) && read.2.len() == written.2
        });
    if !agrees {
        let expected = format!("what visit shows: {}", names(&mut first.iter().map(|p| p.0.as_str())));
        return Err(Error::shape("gradient check: visit_mut", expected, names(&mut writable.iter().map(|p| p.0))));
    }
    if let Some((name, values, grad)) = first.iter().find(|(_, values, grad)| values.len() != grad.len()) {
        let found = format!("{} gradients", grad.len());
        return Err(Error::shape(format!("gradient check: {name}"), format!("{} values", values.len()), found));
    }
    let pairs = first.into_iter().zip(second);
    Ok(pairs
        .map(|((name, values, analytic), (_, _, both))| {
            let added = both.iter().zip(&analytic).map(|(both, once)| both - once).collect();
            Variables { name, shape: [values.len()].into(), values, analytic, added: Some(added) }
        })
        .collect())
}
