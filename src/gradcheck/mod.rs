//! Compares hand-derived gradients with differences: of layers, models and plans of this crate, and of any function of yours.
//!
//! A function y(x, ..) of some tensors and an upstream gradient dy make a number, `L = sum dy y`, whose gradient is what a backward
//! pass should return. [`GradCheck`] compares the two:
//!
//! ```text
//! |analytic - numeric| <= atol * scale + rtol * |numeric|
//! ```
//!
//! for every entry of every tensor. `scale` is the largest entry of the tensor's gradient, rtol is 1e-5 and atol 1e-7 unless
//! [`GradCheck::tolerance`] says otherwise. The numeric value comes from central differences over a ladder of steps, of which three must
//! agree; the gradient to be checked has no say in which.
//!
//! **The upstream gradient is random, never ones.** For a normalisation the sum of the outputs does not depend on x, so with ones the
//! true gradient is zero and any small garbage passes.
//!
//! **What rounding hides.** A gradient whose entries are all nearly zero, such as that of a bias in front of a normalisation, cannot be
//! told from zero by differences. How much rounding scatters L is measured for each tensor, and `scale` is never so small that less is
//! allowed than eight times what that leaves in a difference; where nothing is seen of a gradient, or too little, longer steps are tried, up
//! to the size of the values. If what is hidden is more than a thousandth (f32: a tenth) of a gradient that is seen to be there (1e11 is
//! added to a function of order one, say), if L scatters by more than the root of its type's roundoff, or if differences are less sure than
//! they would have to be, the verdict is [`Verdict::Unknown`], which is no pass. Outputs that a tensor does not move hide nothing of its
//! gradient, however large they are, unless they swallow all others. A report says where nothing was seen ([`TensorReport::is_unseen`]): beside
//! a constant of 1e15 a wrong gradient looks like a right one, and passes.
//!
//! **Kinks.** A layer takes its decisions as at the base point ([`Layer::forward_held`](crate::layers::Layer::forward_held)), so that the
//! function is smooth. A function of yours, and a layer that holds nothing, is taken as it is: entries at a kink, or so near one that no
//! three steps fit in front of it (about 3e-9 in f64 and 3e-3 in f32, for values of order one), are skipped, and counted, if the gradient
//! lies between the slopes of the two sides. A tensor of which more entries were skipped than checked has not passed.
//!
//! **What moves is held.** Running statistics and counts are put back before every pass, and everything else after the check, also if the
//! layer panics: it is left as it was, except that what [`Layer::prepare`](crate::layers::Layer::prepare) made is dropped. A forward pass
//! that answers twice differently is refused, and so is a layer that holds more than its decisions.
//!
//! **Gradients of parameters are added.** A second backward pass, which is not asked for the input's gradient, must add the same
//! again; a layer that overwrites its gradients, or whose gradients change with what it is asked for, fails.
//!
//! **f32.** Gradients in f32 are compared with differences of an f64 function where there is one ([`GradCheck::function_against_f64`]),
//! with rtol 1e-4 and atol 1e-5. Else with differences of the f32 function itself: wider steps, rtol 1e-2 and atol 1e-3; the report says
//! which. That they are as exact as f32 can be is a question of its own: [`GradCheck::twin`] compares them with those of an f64 twin in
//! units in the last place.
//!
//! **Slope.** For each tensor the report has the exponent with which the error of the linear model falls along a random direction
//! (Taylor's test): 2 if the gradient is right, 1 if it is off, if only by what is allowed. The rule decides, the slope explains.
//!
//! # Fast
//!
//! [`GradCheck::fast`] takes four random directions for each tensor in place of all its entries. Entries of a direction v are of either
//! sign and of a size uniform in [1/2, 3/2], and the derivative along v must be within `atol scale / 2`. Where one is not, the tensor is
//! checked in full, so that what passes in full passes, and a failure names its entry. What a wrong gradient may slip through by: let
//! delta be its errors, r the largest of them over `atol scale`, and let the differences be as sure as they say.
//!
//! - A single wrong entry moves the derivative by at least r/2 of `atol scale`: from r = 3 on it never passes.
//! - Several may cancel. The sum of delta v has a density of at most `1 / (2 max |delta|)`, that of its largest term, so that it is
//!   within `atol scale` of zero (half is allowed, and differences are as sure as the other half) with a probability of at most `1 / r`, and
//!   in all four directions with at most `(1 / r)^4`: 1e-4 at ten times the tolerance, 1e-8 at a hundred.
//!
//! # In property tests
//!
//! With the feature `testing` there are strategies for `proptest` in `gradcheck::strategies`; `examples/verify_my_layer.rs` uses them on a
//! layer with a bug.
//!
//! # Examples
//!
//! A function of your own, with two inputs. Labels, and whatever else has no gradient, are what the closures capture.
//!
//! ```
//! use evenkeel::gradcheck::{GradCheck, Input};
//! let (x, scale) = ([0.5, -1.0, 2.0], [3.0]);
//! let forward = |[x, scale]: [&[f64]; 2], y: &mut [f64]| {
//!     for i in 0..3 {
//!         y[i] = scale[0] * x[i] * x[i];
//!     }
//! };
//! let inputs = [Input::new("x", [3], &x), Input::new("scale", [1], &scale)];
//! GradCheck::new(7).function(inputs, 3, forward, |[x, scale], dy, [dx, dscale]| {
//!     dscale[0] = 0.0;
//!     for i in 0..3 {
//!         dx[i] = 2.0 * scale[0] * x[i] * dy[i];
//!         dscale[0] += x[i] * x[i] * dy[i];
//!     }
//! })?;
//! // Without the 2:
//! let wrong = GradCheck::new(7).function(inputs, 3, forward, |[x, scale], dy, [dx, dscale]| {
//!     dscale[0] = (0..3).map(|i| x[i] * x[i] * dy[i]).sum();
//!     (0..3).for_each(|i| dx[i] = scale[0] * x[i] * dy[i]);
//! });
//! let failure = wrong.unwrap_err(); // its text is the whole report
//! let report = failure.report().unwrap();
//! assert!(!report.tensor("x").unwrap().passed() && report.tensor("scale").unwrap().passed());
//! # Ok::<(), evenkeel::gradcheck::Failure>(())
//! ```

mod comparison;
mod differences;
mod function;
mod layer;
mod report;
#[cfg(feature = "testing")]
pub mod strategies;

pub use function::Input;
pub use layer::normal_batch;
pub use report::{Basis, Failure, Report, TensorReport, Verdict};

use crate::error::{Error, Result};
use crate::rng::Rng;
use crate::simd::Element;

/// Sizes at which kernels have their edges, in order: none to spare, the lanes of every instruction set and the tiles of a product with
/// their neighbours, and primes.
pub const AWKWARD_SIZES: [usize; 41] = [
    1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 15, 16, 17, 19, 23, 24, 25, 29, 31, 32, 33, 37, 47, 48, 49, 63, 64, 65,
    97, 127, 128, 129, 255, 256, 257, 1023, 1024, 1025,
];

/// How far a gradient may be from what it is compared with.
#[derive(Clone, Copy, Debug)]
struct Tolerance {
    rtol: f64,
    atol: f64,
}

/// How a check is made, as the checks see it.
#[derive(Clone, Copy, Debug)]
struct Settings {
    seed: u64,
    is_fast: bool,
    tolerance: Option<Tolerance>,
}

impl Settings {
    fn tolerance_for(&self, basis: Basis) -> Result<Tolerance> {
        let Some(tolerance) = self.tolerance else {
            let (rtol, atol) = basis.tolerances();
            return Ok(Tolerance { rtol, atol });
        };
        for (name, value) in [("rtol", tolerance.rtol), ("atol", tolerance.atol)] {
            // From 1 on a gradient of zeros passes.
            if !(0.0..1.0).contains(&value) {
                return Err(Error::invalid(format!("gradient check: {name}"), value, "at least 0 and below 1"));
            }
        }
        Ok(tolerance)
    }

    fn upstream<T: Element>(&self, len: usize) -> Result<Vec<T>> {
        let mut rng = Rng::new(self.seed, "gradcheck upstream");
        let mut dy = Vec::new();
        let refused = |_| Error::shape("gradient check: outputs", "a number that the system has memory for", len);
        dy.try_reserve_exact(len).map_err(refused)?;
        dy.extend((0..len).map(|_| T::from_f64(rng.normal())));
        Ok(dy)
    }

    fn verdict(report: Report) -> std::result::Result<Report, Failure> {
        if report.passed() { Ok(report) } else { Err(Failure::Gradient(Box::new(report))) }
    }
}

fn wide<T: Element>(values: &[T]) -> Vec<f64> {
    values.iter().map(|x| x.to_f64()).collect()
}

/// A gradient check: the seed of what is random, tolerances, and whether it is fast. See the [module](self).
///
/// A check returns its [`Report`] if all is right, and as a [`Failure`] if not, so that `?` does in a test what it should.
#[derive(Clone, Copy, Debug)]
pub struct GradCheck(Settings);

impl GradCheck {
    /// A check of every entry with the default tolerances.
    pub fn new(seed: u64) -> Self {
        GradCheck(Settings { seed, is_fast: false, tolerance: None })
    }

    /// A check by random directions first, in full where they fail.
    pub fn fast(mut self) -> Self {
        self.0.is_fast = true;
        self
    }

    /// Other tolerances: parts of the numeric value and of the tensor's scale, from 0 to below 1. With an atol of 0 nothing is allowed for
    /// rounding of the function either.
    pub fn tolerance(mut self, rtol: f64, atol: f64) -> Self {
        self.0.tolerance = Some(Tolerance { rtol, atol });
        self
    }
}
