//! Checks of functions over slices, for which no layer is needed.

use super::comparison::{Comparison, Variables};
use super::report::{Basis, Entry, Failure, Report, TensorReport};
use super::{GradCheck, Settings, wide};
use crate::error::{Error, Result};
use crate::simd::Element;
use crate::tensor::Shape;
use std::array::from_fn;

/// One tensor that a function has a gradient for: its name in the report, its shape, and where to check.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a, T> {
    name: &'a str,
    shape: Shape,
    values: &'a [T],
}

impl<'a, T: Element> Input<'a, T> {
    /// A tensor; `values` are as many as the shape has, which the check looks at.
    pub fn new(name: &'a str, shape: impl Into<Shape>, values: &'a [T]) -> Self {
        Input { name, shape: shape.into(), values }
    }

    /// An error unless there is an input, and each has as many values as its shape.
    fn check(inputs: &[Self]) -> Result<()> {
        if inputs.is_empty() {
            return Err(Error::shape("gradient check", "at least one input", 0));
        }
        for Input { name, shape, values } in inputs {
            if shape.checked_len() != Some(values.len()) {
                let found = format!("{} elements", values.len());
                return Err(Error::shape(format!("gradient check: {name}"), shape, found));
            }
        }
        Ok(())
    }
}

/// A gradient for each input, from a backward pass that must write them all.
fn gradients<T: Element, const N: usize>(
    inputs: &[Input<'_, T>; N],
    backward: impl FnOnce([&mut [T]; N]),
) -> [Vec<f64>; N] {
    let mut gradients = inputs.map(|input| vec![T::from_f64(f64::NAN); input.values.len()]);
    backward(gradients.each_mut().map(|g| &mut g[..]));
    gradients.map(|g| g.iter().map(|g| g.to_f64()).collect())
}

/// What a report calls a pair of closures.
const SUBJECT: &str = "a function";

impl GradCheck {
    /// Checks a pair of closures: `forward(inputs, y)` fills y, of `outputs` numbers; `backward(inputs, dy, gradients)` fills the
    /// gradient of every input.
    ///
    /// No layer of ours is needed. In f64 differences are as exact as they get; in f32 they are coarse, and
    /// [`GradCheck::function_against_f64`] is better where there is an f64 version of the forward pass. See the [module](super).
    ///
    /// # Errors
    /// [`Failure::Gradient`] with the report if a gradient is wrong; [`Failure::Refused`] if there is no input, if an input has not as
    /// many values as its shape, if there is no memory for the outputs, if a tolerance is not in `[0, 1)`, or if the forward pass gives
    /// two answers for one question.
    pub fn function<T: Element, const N: usize>(
        &self,
        inputs: [Input<'_, T>; N],
        outputs: usize,
        forward: impl FnMut([&[T]; N], &mut [T]),
        mut backward: impl FnMut([&[T]; N], &[T], [&mut [T]; N]),
    ) -> std::result::Result<Report, Failure> {
        Input::check(&inputs)?;
        let dy: Vec<T> = self.0.upstream(outputs)?;
        let analytic = gradients(&inputs, |g| backward(inputs.map(|input| input.values), &dy, g));
        let variables = variables(&inputs, |input| input.values.to_vec(), analytic);
        compare(&self.0, Basis::of::<T>(), variables, wide(&dy), outputs, forward)
    }

    /// Checks an f32 backward pass against differences of an f64 forward pass.
    ///
    /// # Errors
    /// As [`GradCheck::function`].
    pub fn function_against_f64<const N: usize>(
        &self,
        inputs: [Input<'_, f32>; N],
        outputs: usize,
        forward: impl FnMut([&[f64]; N], &mut [f64]),
        mut backward: impl FnMut([&[f32]; N], &[f32], [&mut [f32]; N]),
    ) -> std::result::Result<Report, Failure> {
        Input::check(&inputs)?;
        let dy: Vec<f32> = self.0.upstream(outputs)?;
        let analytic = gradients(&inputs, |g| backward(inputs.map(|input| input.values), &dy, g));
        let variables = variables(&inputs, |input| wide(input.values), analytic);
        compare(&self.0, Basis::F32AgainstF64, variables, wide(&dy), outputs, forward)
    }

    /// Compares the gradients of an f32 backward pass with those of its f64 twin, in units in the last place.
    ///
    /// `magnitude(inputs, dy, sums)` fills, for every entry of every gradient, the sum of the sizes of the terms that it is computed from:
    /// for a product `sum |a| |b|`. An f32 result is a few `2^-23` of that away from the true one, however small it came out itself, so
    /// `|f32 - f64| <= ulps 2^-23 magnitude` is the rule: `ulps` of each tensor is half the number of roundings on the way to an entry.
    /// 0 means exact. [`TensorReport::excess`] is the worst error as a part of that. Tolerances play no part.
    ///
    /// # Errors
    /// As [`GradCheck::function`], and if an `ulps` is not finite and 0 or more. A magnitude that is negative or not finite is a
    /// failure.
    ///
    /// # Examples
    /// `y = g x` for one g, whose gradient is a sum of 1000 products: 1000 roundings, 500 units.
    ///
    /// ```
    /// use evenkeel::gradcheck::{GradCheck, Input};
    /// use evenkeel::simd::Element;
    /// fn backward<T: Element>([x, g]: [&[T]; 2], dy: &[T], [dx, dg]: [&mut [T]; 2]) {
    ///     dg[0] = T::ZERO;
    ///     for i in 0..x.len() {
    ///         dx[i] = g[0] * dy[i];
    ///         dg[0] = dg[0] + x[i] * dy[i];
    ///     }
    /// }
    /// let x: Vec<f32> = (0..1000).map(|i| (i as f32).sin()).collect();
    /// let inputs = [Input::new("x", [1000], &x), Input::new("g", [1], &[0.3])];
    /// let magnitude = |[x, g]: [&[f64]; 2], dy: &[f64], [dx, dg]: [&mut [f64]; 2]| {
    ///     (0..1000).for_each(|i| dx[i] = (g[0] * dy[i]).abs());
    ///     dg[0] = (0..1000).map(|i| (x[i] * dy[i]).abs()).sum();
    /// };
    /// GradCheck::new(7).twin(inputs, 1000, backward::<f32>, backward::<f64>, magnitude, [0.5, 500.0])?;
    /// # Ok::<(), evenkeel::gradcheck::Failure>(())
    /// ```
    pub fn twin<const N: usize>(
        &self,
        inputs: [Input<'_, f32>; N],
        outputs: usize,
        mut backward: impl FnMut([&[f32]; N], &[f32], [&mut [f32]; N]),
        mut twin: impl FnMut([&[f64]; N], &[f64], [&mut [f64]; N]),
        mut magnitude: impl FnMut([&[f64]; N], &[f64], [&mut [f64]; N]),
        ulps: [f64; N],
    ) -> std::result::Result<Report, Failure> {
        Input::check(&inputs)?;
        self.0.tolerance_for(Basis::Twin)?;
        if let Some(ulps) = ulps.iter().find(|ulps| !(**ulps >= 0.0 && ulps.is_finite())) {
            return Err(Error::invalid("gradient check: ulps", ulps, "finite and 0 or more").into());
        }
        let dy: Vec<f32> = self.0.upstream(outputs)?;
        let single = gradients(&inputs, |g| backward(inputs.map(|input| input.values), &dy, g));
        let (values, dy) = (inputs.map(|input| wide(input.values)), wide(&dy));
        let doubles: [Input<'_, f64>; N] = from_fn(|i| Input { name: "", shape: inputs[i].shape, values: &values[i] });
        let double = gradients(&doubles, |g| twin(from_fn(|i| &values[i][..]), &dy, g));
        let size = gradients(&doubles, |g| magnitude(from_fn(|i| &values[i][..]), &dy, g));
        let tensors = (0..N).map(|t| {
            let unit = ulps[t] * f64::from(f32::EPSILON);
            let largest = size[t].iter().fold(0.0f64, |largest, size| largest.max(*size));
            let mut report = TensorReport::new(inputs[t].name, inputs[t].shape, largest);
            report.checked = single[t].len();
            for index in 0..single[t].len() {
                // Below the smallest normal number units no longer shrink.
                let allowed = unit * size[t][index] + ulps[t] * f64::from(f32::MIN_POSITIVE * f32::EPSILON);
                let (analytic, numeric) = (single[t][index], double[t][index]);
                report.add(Entry { index, analytic, numeric, doubt: 0.0, allowed, is_second_pass: false });
            }
            report
        });
        Settings::verdict(Report {
            subject: SUBJECT.to_string(),
            basis: Basis::Twin,
            rtol: 0.0,
            atol: 0.0,
            seed: self.0.seed,
            tensors: tensors.collect(),
        })
    }
}

fn variables<T: Element, F, const N: usize>(
    inputs: &[Input<'_, T>; N],
    values: impl Fn(&Input<'_, T>) -> Vec<F>,
    analytic: [Vec<f64>; N],
) -> Vec<Variables<F>> {
    let named = inputs.iter().zip(analytic);
    let of_input = |(input, analytic): (&Input<'_, T>, _)| Variables {
        name: input.name.to_string(),
        shape: input.shape,
        values: values(input),
        analytic,
        added: None,
    };
    named.map(of_input).collect()
}

/// With differences of `forward`.
fn compare<T: Element, const N: usize>(
    settings: &Settings,
    basis: Basis,
    variables: Vec<Variables<T>>,
    dy: Vec<f64>,
    outputs: usize,
    mut forward: impl FnMut([&[T]; N], &mut [T]),
) -> std::result::Result<Report, Failure> {
    let mut y = vec![T::ZERO; outputs];
    let outputs = &mut |values: &[Vec<T>], wide: &mut [f64]| {
        // What a forward pass leaves unwritten must not look like an answer.
        y.fill(T::from_f64(f64::NAN));
        forward(from_fn(|i| &values[i][..]), &mut y);
        wide.iter_mut().zip(&y).for_each(|(wide, y)| *wide = y.to_f64());
        Ok(())
    };
    let subject = SUBJECT.to_string();
    Settings::verdict(Comparison { subject, basis, variables, dy, outputs, expected: None }.run(settings)?)
}
