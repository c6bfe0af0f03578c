//! What can be checked, by name, and its random cases.

use super::function::{Checked, Function, Given, differences, twin};
use super::losses::{Loss, Relu};
use super::networks::Network;
use super::norms::Norm;
use super::products::Product;
use clap::ValueEnum;
use evenkeel::Rng;
use evenkeel::gradcheck::{AWKWARD_SIZES, GradCheck};
use evenkeel::layers::{self, Layer};
use evenkeel::tensor::TensorRef;

/// A layer, a loss, or layers that run as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Subject {
    /// The Linear layer, with bias and without.
    Linear,
    /// The BatchNorm1d layer, over [n, c] and [n, c, l].
    Batchnorm1d,
    /// The BatchNorm2d layer, in both layouts.
    Batchnorm2d,
    /// The ReLU layer.
    Relu,
    /// Softmax and cross-entropy.
    CrossEntropy,
    /// The mean squared error.
    Mse,
    /// A product with bias, or bias and ReLU, in its epilogue, and with packed weights.
    LinearFused,
    /// BatchNorm and ReLU in one pass, and in place.
    BatchnormFused,
    /// BatchNorm with given statistics, with ReLU and without, and in place.
    BatchnormFrozen,
    /// Stacks of layers with a loss, layer by layer.
    Network,
    /// The same as a plan runs them, with what it fuses.
    Plan,
}

/// A case that was checked.
pub(super) struct Case {
    /// Shape and options.
    pub(super) what: String,
    /// In f64 against differences.
    pub(super) differences: Checked,
    /// In f32 against the f64 twin, where there is a bound for that.
    pub(super) twin: Option<Checked>,
}

/// No output of a ReLU is nearer to zero: f32 and f64 would differ about its side.
pub(super) const OFF_THE_KINK: f64 = 1e-4;

/// An awkward size, `most` at most.
pub(super) fn size(rng: &mut Rng, most: usize) -> usize {
    let count = AWKWARD_SIZES.iter().take_while(|&&size| size <= most).count();
    AWKWARD_SIZES[rng.index(count)]
}

/// Awkward sizes, of which one may be large: products and normalisations have edges far out, and checking an entry takes as long as there
/// are entries.
pub(super) fn sizes<const N: usize>(rng: &mut Rng, most: [usize; N], large: usize) -> [usize; N] {
    let mut sizes = most.map(|most| size(rng, most));
    if rng.below(8) == 0 {
        sizes = sizes.map(|size| size.min(3));
        sizes[rng.index(N)] = size(rng, large);
    }
    sizes
}

/// Standard normal numbers that f32 holds.
pub(super) fn normals(rng: &mut Rng, len: usize) -> Vec<f32> {
    #[expect(clippy::cast_possible_truncation, reason = "rounding is what is asked for")]
    (0..len).map(|_| rng.normal() as f32).collect()
}

impl Subject {
    pub(super) fn name(self) -> String {
        let value = self.to_possible_value().expect("no subject is hidden");
        value.get_name().to_string()
    }

    /// The case of a seed.
    pub(super) fn check(self, seed: u64, check: GradCheck) -> Case {
        let rng = &mut Rng::new(seed, &self.name());
        match self {
            Subject::Linear => {
                let case = Product::layer(rng);
                Case::of_layer(&case, &mut case.make(), rng, check)
            }
            Subject::Batchnorm1d | Subject::Batchnorm2d => {
                let case = if self == Subject::Batchnorm1d { Norm::features(rng) } else { Norm::images(rng) };
                Case::of_layer(&case, &mut *case.make(), rng, check)
            }
            Subject::Relu => Case::of_layer(&Relu::new(rng), &mut layers::Relu::new(), rng, check),
            Subject::CrossEntropy => Case::of_function(&Loss::cross_entropy(rng), rng, check),
            Subject::Mse => Case::of_function(&Loss::mse(rng), rng, check),
            Subject::LinearFused => Case::of_function(&Product::fused(rng), rng, check),
            Subject::BatchnormFused => Case::of_function(&Norm::fused(rng), rng, check),
            Subject::BatchnormFrozen => Case::of_function(&Norm::frozen(rng), rng, check),
            Subject::Network => Network::new(rng).check_layers(check),
            Subject::Plan => Network::new(rng).check_plan(check),
        }
    }
}

impl Case {
    /// Kernels, with closures around them.
    fn of_function<const N: usize>(function: &impl Function<N>, rng: &mut Rng, check: GradCheck) -> Self {
        let given = function.given(rng);
        Case {
            what: function.to_string(),
            differences: differences(function, &given, check),
            twin: Some(twin(function, &given, check)),
        }
    }

    /// A layer as such in f64, as a function in f32.
    fn of_layer<const N: usize>(
        function: &impl Function<N>,
        layer: &mut dyn Layer<f64>,
        rng: &mut Rng,
        check: GradCheck,
    ) -> Self {
        let given = function.given(rng);
        Case {
            what: function.to_string(),
            differences: checked(layer, &given, check),
            twin: Some(twin(function, &given, check)),
        }
    }
}

/// A layer at the first of what is given, with the others as its parameters.
fn checked(layer: &mut dyn Layer<f64>, given: &[Given], check: GradCheck) -> Checked {
    layer.visit_mut(&mut |p| {
        let values = given.iter().find(|g| g.name == p.name).map_or(&[][..], |g| &g.values);
        p.value.iter_mut().zip(values).for_each(|(p, &value)| *p = f64::from(value));
    });
    check.layer(layer, TensorRef::new(given[0].shape, &given[0].wide())?)
}
