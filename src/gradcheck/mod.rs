//! Compares hand-derived gradients with central differences.
//!
//! For a function y(x) and a random upstream gradient dy, the scalar `L = sum dy y` has dL/dx = backward(x, dy). Its numeric
//! counterpart for one entry is
//!
//! ```text
//! (L(x + h e_i) - L(x - h e_i)) / 2h  =  dL/dx_i + h^2/6 L''' + O(u |L| / h)
//! ```
//!
//! in f64, for steps h from 1e-4 to 1e-7: the truncation falls and the rounding grows along the ladder, and the step that comes
//! closest to the analytic value is taken. A wrong gradient is wrong at every step; a right one is right at some.
//!
//! **The upstream gradient is random, never ones.** For normalisation layers the sum of the outputs does not depend on x, so with
//! ones the true gradient is zero and any small garbage passes.
//!
//! **Kinks are held.** A layer with decisions takes them as at the base point ([`Layer::forward_held`]), so that the function is
//! smooth and no entry has to be skipped.
//!
//! **Gradients of parameters are added.** A second backward pass, which is not asked for the input's gradient, must add the same
//! again; a layer that overwrites its gradients, or whose gradients change with what it is asked for, fails.
//!
//! **The rule.** `|analytic - numeric| <= of_tensor * max |g of the tensor| + of_all * max |g of all tensors|`; the second part is what
//! rounding of L leaves in a tensor whose gradient is (nearly) zero.

mod report;

pub use report::{Report, TensorReport};

use crate::error::{Error, Result};
use crate::layers::{Layer, Parameter, ParameterMut};
use crate::loss::{Loss, Targets};
use crate::model::Sequential;
use crate::rng::Rng;
use crate::tensor::{Shape, Tensor, TensorRef};

/// Steps of the central differences.
pub const STEPS: [f64; 4] = [1e-4, 1e-5, 1e-6, 1e-7];

/// How far a gradient may be from the differences.
#[derive(Clone, Copy, Debug)]
pub struct Tolerance {
    /// Relative to the largest entry of the tensor's gradient. Default 1e-6.
    pub of_tensor: f64,
    /// Relative to the largest entry of all gradients. Default 1e-9.
    pub of_all: f64,
}

impl Default for Tolerance {
    fn default() -> Self {
        Tolerance { of_tensor: 1e-6, of_all: 1e-9 }
    }
}

/// One tensor of variables: where they are, and what the backward pass says of them.
struct Variables {
    name: String,
    values: Vec<f64>,
    analytic: Vec<f64>,
    /// What a second backward pass added to the gradient; it should be the same.
    added: Option<Vec<f64>>,
}

impl Variables {
    fn input(x: &[f64], dx: &[f64]) -> Self {
        Variables { name: "x".to_string(), values: x.to_vec(), analytic: dx.to_vec(), added: None }
    }
}

/// Compares all entries of all tensors; `objective(tensor, index, value)` is L with that one entry replaced.
fn compare<E>(
    tensors: Vec<Variables>,
    tolerance: Tolerance,
    objective: &mut dyn FnMut(usize, usize, f64) -> std::result::Result<f64, E>,
) -> std::result::Result<Report, E> {
    let largest = |g: &[f64]| g.iter().fold(0.0, |best: f64, g| best.max(g.abs()));
    // What is not finite fails in its own tensor, and must not excuse or condemn the others.
    let finite = |g: f64| if g.is_finite() { g } else { 0.0 };
    let largest_of_all = tensors.iter().fold(0.0, |best: f64, t| best.max(finite(largest(&t.analytic))));
    let mut reports = Vec::with_capacity(tensors.len());
    for (t, tensor) in tensors.iter().enumerate() {
        let allowed = tolerance.of_tensor * largest(&tensor.analytic) + tolerance.of_all * largest_of_all;
        let mut report = TensorReport::new(&tensor.name, tensor.values.len(), allowed);
        for (i, &value) in tensor.values.iter().enumerate() {
            // A gradient that is too short has no entry here, and NaN passes no check.
            let analytic = tensor.analytic.get(i).copied().unwrap_or(f64::NAN);
            let mut best = (f64::INFINITY, f64::NAN);
            for h in STEPS {
                let (above, below) = (value + h, value - h);
                // The step that was really taken: value + h rounds.
                let slope = (objective(t, i, above)? - objective(t, i, below)?) / (above - below);
                let error = (slope - analytic).abs();
                // Against a NaN every slope is as good: the first is kept.
                if error < best.0 || best.1.is_nan() {
                    best = (error, slope);
                }
            }
            report.add(i, analytic, best.1);
            if let Some(added) = &tensor.added {
                report.add(i, added.get(i).copied().unwrap_or(f64::NAN), best.1);
            }
        }
        reports.push(report);
    }
    Ok(Report { tensors: reports })
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn upstream(len: usize, seed: u64) -> Vec<f64> {
    let mut rng = Rng::new(seed, "gradcheck upstream");
    (0..len).map(|_| rng.normal()).collect()
}

/// Checks a pair of closures at `x`: `forward(x, y)` fills y (`outputs` values), `backward(x, dy, dx)` fills dx.
///
/// The function should be smooth around `x`. No layer of ours is needed.
///
/// # Examples
/// ```
/// use evenkeel::gradcheck::{Tolerance, check_closures};
/// let square = |x: &[f64], y: &mut [f64]| y[0] = x[0] * x[0];
/// let report = check_closures(square, |x, dy, dx| dx[0] = 2.0 * x[0] * dy[0], &[3.0], 1, 7, Tolerance::default());
/// assert!(report.passed(), "{report}");
/// let report = check_closures(square, |x, dy, dx| dx[0] = 2.001 * x[0] * dy[0], &[3.0], 1, 7, Tolerance::default());
/// assert!(!report.passed());
/// ```
pub fn check_closures(
    mut forward: impl FnMut(&[f64], &mut [f64]),
    mut backward: impl FnMut(&[f64], &[f64], &mut [f64]),
    x: &[f64],
    outputs: usize,
    seed: u64,
    tolerance: Tolerance,
) -> Report {
    let dy = upstream(outputs, seed);
    let mut dx = vec![f64::NAN; x.len()];
    backward(x, &dy, &mut dx);
    let (mut moved, mut y) = (x.to_vec(), vec![f64::NAN; outputs]);
    let variables = Variables::input(x, &dx);
    let Ok(report) = compare::<std::convert::Infallible>(vec![variables], tolerance, &mut |_, i, value| {
        moved[i] = value;
        forward(&moved, &mut y);
        moved[i] = x[i];
        Ok(dot(&dy, &y))
    });
    report
}

/// What training passes move besides gradients: running statistics and counts, to be put back after a check.
#[derive(Default)]
struct State {
    buffers: Vec<Vec<f64>>,
    counts: Vec<u64>,
}

impl State {
    fn note(&mut self, layer: &mut dyn Layer<f64>) {
        layer.visit_buffers_mut(&mut |_, buffer| self.buffers.push(buffer.to_vec()));
        layer.visit_counts_mut(&mut |_, count| self.counts.push(*count));
    }

    /// Puts back what was noted, layer by layer in the same order.
    fn restorer(&self) -> impl FnMut(&mut dyn Layer<f64>) {
        let (mut buffers, mut counts) = (self.buffers.iter(), self.counts.iter());
        move |layer| {
            layer.visit_buffers_mut(&mut |_, buffer| {
                if let Some(old) = buffers.next() {
                    buffer.copy_from_slice(old);
                }
            });
            layer.visit_counts_mut(&mut |_, count| {
                if let Some(old) = counts.next() {
                    *count = *old;
                }
            });
        }
    }
}

/// Checks a layer in training mode at `x`: the gradients of its input and of all its parameters.
///
/// The layer is left as it was, gradients apart, whether the check succeeds or not.
///
/// # Errors
/// If the layer refuses the input, or if its `visit` and `visit_mut` show different parameters, or gradients of other sizes.
pub fn check_layer(
    layer: &mut dyn Layer<f64>,
    x: TensorRef<'_, f64>,
    seed: u64,
    tolerance: Tolerance,
) -> Result<Report> {
    let mut state = State::default();
    state.note(layer);
    let report = run_layer(layer, x, seed, tolerance);
    state.restorer()(layer);
    report
}

fn run_layer(layer: &mut dyn Layer<f64>, x: TensorRef<'_, f64>, seed: u64, tolerance: Tolerance) -> Result<Report> {
    let output = layer.output_shape(x.shape())?;
    let dy = upstream(output.len(), seed);
    let mut y = Tensor::<f64>::zeros(output)?;
    let mut saved = vec![0.0; layer.saved_len(x.shape())];
    let mut scratch = vec![0.0; layer.scratch_len(x.shape())];
    let mut dx = Tensor::<f64>::zeros(x.shape())?;
    dx.data_mut().fill(f64::NAN);

    layer.forward(x, y.view_mut(), &mut saved, &mut scratch)?;
    layer.visit_mut(&mut |parameter| parameter.grad.fill(0.0));
    layer.backward(x, TensorRef::new(output, &dy)?, Some(dx.view_mut()), &saved, &mut scratch)?;
    let first = parameters(|f| layer.visit(&mut |p| f(0, p)));
    // Once more, without asking for dx: gradients of parameters are the same, and are added.
    layer.backward(x, TensorRef::new(output, &dy)?, None, &saved, &mut scratch)?;
    let second = parameters(|f| layer.visit(&mut |p| f(0, p)));
    let mut writable = Vec::new();
    layer.visit_mut(&mut |p| writable.push((p.name, p.value.to_vec(), p.grad.len())));
    let mut variables = vec![Variables::input(x.data(), dx.data())];
    variables.extend(paired(first, second, &writable)?.into_iter().map(|v| Variables {
        // A layer's own parameters go by their names alone.
        name: v.name.trim_start_matches("0.").to_string(),
        ..v
    }));
    let mut moved = x.data().to_vec();
    compare(variables, tolerance, &mut |tensor, i, value| {
        let old = replace(|f| layer.visit_mut(f), &mut moved, tensor, i, value);
        let input = TensorRef::new(x.shape(), &moved)?;
        let result = layer.forward_held(x, input, y.view_mut(), &mut saved, &mut scratch);
        replace(|f| layer.visit_mut(f), &mut moved, tensor, i, old);
        result.map(|()| dot(&dy, y.data()))
    })
}

/// Name, values and gradient of every parameter that `visit` shows.
type Shown = Vec<(String, Vec<f64>, Vec<f64>)>;

fn parameters(visit: impl FnOnce(&mut dyn FnMut(usize, Parameter<'_, f64>))) -> Shown {
    let mut shown = Vec::new();
    visit(&mut |layer, p| shown.push((format!("{layer}.{}", p.name), p.value.to_vec(), p.grad.to_vec())));
    shown
}

/// The parameters after one backward pass and after another, which should have added the same again; and what can be written must
/// be what can be read, or a check would move something else than it looks at.
fn paired(first: Shown, second: Shown, writable: &[(&str, Vec<f64>, usize)]) -> Result<Vec<Variables>> {
    let names = |all: &mut dyn Iterator<Item = &str>| all.collect::<Vec<_>>().join(", ");
    let same = first.len() == writable.len()
        && first.iter().zip(writable).all(|(read, written)| {
            // `3.weight` in a model is `weight` to its layer.
            read.0.rsplit('.').next() == Some(written.0) && read.1 == written.1 && read.2.len() == written.2
        });
    if !same {
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
            Variables { name, values, analytic, added: Some(added) }
        })
        .collect())
}

/// Replaces one entry: tensor 0 is the input, the others are the parameters in the order in which `visit` shows them. Returns
/// the old value.
fn replace(
    visit: impl FnOnce(&mut dyn FnMut(ParameterMut<'_, f64>)),
    x: &mut [f64],
    tensor: usize,
    i: usize,
    value: f64,
) -> f64 {
    if tensor == 0 {
        return std::mem::replace(&mut x[i], value);
    }
    let (mut index, mut old) = (0, value);
    visit(&mut |parameter| {
        index += 1;
        if index == tensor {
            old = std::mem::replace(&mut parameter.value[i], value);
        }
    });
    old
}

/// Checks a whole model with its loss in training mode at a batch: the gradients of the input and of all parameters.
///
/// The model is left as it was, gradients apart, whether the check succeeds or not.
///
/// # Errors
/// If the model refuses the batch, or the loss the targets.
pub fn check_model(
    model: &mut Sequential<f64>,
    loss: Loss,
    x: TensorRef<'_, f64>,
    targets: Targets<'_, f64>,
    tolerance: Tolerance,
) -> Result<Report> {
    let mut state = State::default();
    model.visit_layers_mut(&mut |layer| state.note(layer));
    let report = run_model(model, loss, x, targets, tolerance);
    model.visit_layers_mut(&mut state.restorer());
    report
}

fn run_model(
    model: &mut Sequential<f64>,
    loss: Loss,
    x: TensorRef<'_, f64>,
    targets: Targets<'_, f64>,
    tolerance: Tolerance,
) -> Result<Report> {
    let (mut base, mut trial) = (model.workspace(x.shape())?, model.workspace(x.shape())?);
    let mut dx = Tensor::<f64>::zeros(x.shape())?;
    model.forward(x, &mut base)?;
    let (y, dy) = base.output_and_gradient()?;
    loss.forward_backward(y, targets, dy)?;
    model.zero_grad();
    model.backward(x, &mut base, Some(dx.view_mut()))?;
    let first = parameters(|f| model.visit(f));
    // Once more, from the gradient of the loss again, without asking for dx.
    let (y, dy) = base.output_and_gradient()?;
    loss.forward_backward(y, targets, dy)?;
    model.backward(x, &mut base, None)?;
    let second = parameters(|f| model.visit(f));
    let mut writable = Vec::new();
    model.visit_mut(&mut |_, p| writable.push((p.name, p.value.to_vec(), p.grad.len())));
    let mut variables = vec![Variables::input(x.data(), dx.data())];
    variables.extend(paired(first, second, &writable)?);
    let mut moved = x.data().to_vec();
    compare(variables, tolerance, &mut |tensor, i, value| {
        let old = replace(|f| model.visit_mut(&mut |_, p| f(p)), &mut moved, tensor, i, value);
        let result = model.forward_held(TensorRef::new(x.shape(), &moved)?, &mut trial, (x, &base));
        replace(|f| model.visit_mut(&mut |_, p| f(p)), &mut moved, tensor, i, old);
        result?;
        let (y, dy) = trial.output_and_gradient()?;
        loss.forward_backward(y, targets, dy)
    })
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
