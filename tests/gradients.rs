//! Every backward pass against central differences, in f64, through the kernels that training uses; and the checker itself
//! against layers with planted bugs.
//!
//! Seeds are fixed: a run draws the same cases as the one before it.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails, in its helpers too")]

use evenkeel::gradcheck::{
    Report, STEPS, TensorReport, Tolerance, check_closures, check_layer, check_model, normal_batch,
};
use evenkeel::kernels::batchnorm::{self, BatchNorm, Gradients, Statistics};
use evenkeel::kernels::{Activation, mse, relu, softmax_xent};
use evenkeel::layers::{BatchNorm1d, BatchNormOptions, Layer, Linear, Parameter, ParameterMut, Relu};
use evenkeel::simd::{Isa, with_isa};
use evenkeel::tensor::{Shape, Tensor, TensorMut, TensorRef};
use evenkeel::{Loss, Result, Rng, Sequential, Targets};
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::RngSeed;

/// Widths that fill no vector of any instruction set (1, 2, 4 or 8 f64), and a few that do by one.
const WIDTHS: &[usize] = &[1, 2, 3, 5, 6, 7, 9, 11, 13, 17, 19, 23];

fn fixed(cases: u32, seed: u64) -> ProptestConfig {
    // With a fixed seed there is nothing to remember between runs.
    ProptestConfig {
        cases,
        rng_seed: RngSeed::Fixed(seed),
        failure_persistence: None,
        max_shrink_iters: 200,
        ..ProptestConfig::default()
    }
}

fn normals(rng: &mut Rng, n: usize) -> Vec<f64> {
    (0..n).map(|_| rng.normal()).collect()
}

/// Scales and shifts as a network could have learnt them, and as it should not: of either sign, nearly zero, and zero.
fn disturb(rng: &mut Rng, values: &mut [f64]) {
    for value in values {
        *value = match rng.below(8) {
            0 => 0.0,
            1 => 1e-6 * rng.normal(),
            _ => rng.normal(),
        };
    }
}

/// 1e-5 is PyTorch's; the others make its part in the formulas visible. Two or three rows can lie so close together that a small
/// eps leaves a function too steep for differences, so there the larger ones are the rule.
fn any_eps(rows: usize) -> BoxedStrategy<f64> {
    if rows <= 3 {
        prop_oneof![9 => select(&[1.0, 1e-2][..]), 1 => Just(1e-5)].boxed()
    } else {
        select(&[1e-5, 1e-2, 1.0][..]).boxed()
    }
}

fn any_rows() -> impl Strategy<Value = usize> {
    prop_oneof![Just(2usize), Just(3), 4usize..12, Just(16), Just(17), 18usize..40]
}

// ---- Whole networks.

#[derive(Clone, Debug)]
struct Hidden {
    width: usize,
    eps: f64,
    affine: bool,
    bias: bool,
}

/// Linear, BatchNorm, ReLU, one to three times, then a Linear.
#[derive(Clone, Debug)]
struct Stack {
    rows: usize,
    inputs: usize,
    hidden: Vec<Hidden>,
    outputs: usize,
    last_bias: bool,
    seed: u64,
}

fn any_stack(least_outputs: usize) -> impl Strategy<Value = Stack> {
    any_rows().prop_flat_map(move |rows| {
        let hidden = (select(WIDTHS), any_eps(rows), any::<bool>(), any::<bool>())
            .prop_map(|(width, eps, affine, bias)| Hidden { width, eps, affine, bias });
        let outputs = select(WIDTHS).prop_map(move |width| width.max(least_outputs));
        let hidden = prop::collection::vec(hidden, 1..=3);
        (select(WIDTHS), hidden, outputs, any::<bool>(), 0..1u64 << 32).prop_map(
            move |(inputs, hidden, outputs, last_bias, seed)| Stack { rows, inputs, hidden, outputs, last_bias, seed },
        )
    })
}

impl Stack {
    fn model(&self) -> Sequential<f64> {
        let rng = &mut Rng::new(self.seed, "stack");
        let linear = |inputs, outputs, bias, rng: &mut Rng| {
            let layer = Linear::new(inputs, outputs, rng).unwrap();
            if bias { layer } else { layer.without_bias() }
        };
        let (mut model, mut width) = (Sequential::new(), self.inputs);
        for h in &self.hidden {
            let options = BatchNormOptions { eps: h.eps, affine: h.affine, ..BatchNormOptions::default() };
            let mut norm = BatchNorm1d::with_options(h.width, options).unwrap();
            norm.visit_mut(&mut |p| disturb(rng, p.value));
            model = model.push(linear(width, h.width, h.bias, rng)).push(norm).push(Relu::new());
            width = h.width;
        }
        model.push(linear(width, self.outputs, self.last_bias, rng))
    }

    /// Checks every gradient with the default tolerance. The biases that a normalisation cancels have gradient zero, and their
    /// share of the rounding is all that differences would measure: they are held to 1e-12 instead.
    fn check(&self, loss: Loss) -> std::result::Result<(), TestCaseError> {
        let mut model = self.model();
        let x = normal_batch([self.rows, self.inputs], self.seed).unwrap();
        let rng = &mut Rng::new(self.seed, "targets");
        let classes: Vec<u8> = (0..self.rows).map(|_| u8::try_from(rng.index(self.outputs)).unwrap()).collect();
        let values = normals(rng, self.rows * self.outputs);
        let targets = match loss {
            Loss::CrossEntropy => Targets::Classes(&classes),
            Loss::Mse => Targets::Values(&values),
        };
        let report = check_model(&mut model, loss, x.view(), targets, Tolerance::default()).unwrap();

        let last = 3 * self.hidden.len();
        let mut cancelled = Vec::new();
        model.visit(&mut |layer, p| {
            if layer % 3 == 0 && layer < last && p.name == "bias" {
                let worst = p.grad.iter().fold(0.0f64, |w, g| w.max(g.abs()));
                cancelled.push((format!("{layer}.bias"), worst));
            }
        });
        prop_assert_eq!(cancelled.len(), self.hidden.iter().filter(|h| h.bias).count());
        for (name, worst) in &cancelled {
            prop_assert!(*worst < 1e-12, "{} should be zero, is {:e}\n{}", name, worst, report);
        }
        let is_cancelled = |name: &str| cancelled.iter().any(|(cancelled, _)| cancelled == name);
        let passed = report.tensors.iter().filter(|t| !is_cancelled(&t.name)).all(TensorReport::passed);
        prop_assert!(passed, "{}", report);
        Ok(())
    }
}

proptest! {
    #![proptest_config(fixed(60, 1))]

    #[test]
    fn networks_with_cross_entropy(stack in any_stack(2)) {
        stack.check(Loss::CrossEntropy)?;
    }

    #[test]
    fn networks_with_mean_squared_error(stack in any_stack(1)) {
        stack.check(Loss::Mse)?;
    }
}

#[test]
fn a_network_on_every_instruction_set() {
    let hidden = |width, eps| Hidden { width, eps, affine: true, bias: true };
    for (rows, outputs, loss) in
        [(2, 7, Loss::CrossEntropy), (19, 3, Loss::CrossEntropy), (3, 1, Loss::Mse), (18, 9, Loss::Mse)]
    {
        let hidden = vec![hidden(13, 0.5), hidden(5, 0.01)];
        let stack = Stack { rows, inputs: 9, hidden, outputs, last_bias: true, seed: 11 };
        for isa in Isa::available() {
            with_isa(isa, || stack.check(loss)).unwrap_or_else(|e| panic!("{isa}, {rows} rows, {loss:?}: {e}"));
        }
    }
}

// ---- Layers by themselves.

#[track_caller]
fn passes(what: &str, report: &Report) {
    assert!(report.passed(), "{what}: {report}");
}

/// The numbers that a check must give back as it found them, gradients apart.
fn bits(layer: &mut dyn Layer<f64>) -> Vec<Vec<u64>> {
    let mut all = Vec::new();
    let mut note = |values: &[f64]| all.push(values.iter().map(|v| v.to_bits()).collect());
    layer.visit(&mut |p| note(p.value));
    layer.visit_buffers_mut(&mut |_, values| note(values));
    all
}

/// Checks a layer with a random upstream gradient, and that the check leaves it as it was.
fn check(layer: &mut dyn Layer<f64>, x: &Tensor<f64>, seed: u64) -> std::result::Result<(), TestCaseError> {
    let before = bits(layer);
    let report = check_layer(layer, x.view(), seed, Tolerance::default()).unwrap();
    prop_assert!(report.passed(), "{}", report);
    prop_assert_eq!(bits(layer), before, "the check changed the layer");
    Ok(())
}

proptest! {
    #![proptest_config(fixed(120, 2))]

    #[test]
    fn linear(n in 1usize..40, inputs in select(WIDTHS), outputs in select(WIDTHS), bias in any::<bool>(), seed in 0..1u64 << 32) {
        let layer = Linear::new(inputs, outputs, &mut Rng::new(seed, "linear")).unwrap();
        let mut layer = if bias { layer } else { layer.without_bias() };
        check(&mut layer, &normal_batch([n, inputs], seed).unwrap(), seed)?;
    }

    #[test]
    fn batchnorm(
        (n, eps) in any_rows().prop_flat_map(|n| (Just(n), any_eps(n))),
        c in select(WIDTHS),
        momentum in select(&[None, Some(0.1), Some(0.0), Some(1.0)][..]),
        (affine, track_running_stats) in any::<(bool, bool)>(),
        (centre, spread) in (select(&[0.0, -10.0][..]), select(&[1.0, 5.0][..])),
        seed in 0..1u64 << 32,
    ) {
        let options = BatchNormOptions { eps, momentum, affine, track_running_stats };
        let mut layer = BatchNorm1d::with_options(c, options).unwrap();
        layer.visit_mut(&mut |p| disturb(&mut Rng::new(seed, p.name), p.value));
        let mut x = normal_batch([n, c], seed).unwrap();
        x.data_mut().iter_mut().for_each(|x| *x = centre + spread * *x);
        check(&mut layer, &x, seed)?;
    }

    #[test]
    fn relu_with_inputs_on_the_kink(shape in prop::collection::vec(1usize..6, 1..=4), seed in 0..1u64 << 32) {
        let mut x = normal_batch(Shape::new(&shape), seed).unwrap();
        x.data_mut().iter_mut().step_by(3).for_each(|x| *x = 0.0);
        check(&mut Relu::new(), &x, seed)?;
    }
}

#[test]
fn layers_on_every_instruction_set_and_beyond_one_block_of_rows() {
    // Passes work in blocks of 128 and of 1024 rows.
    for isa in Isa::available() {
        with_isa(isa, || {
            for (n, c) in [(2, 3), (31, 9), (129, 3), (1025, 1)] {
                let x = normal_batch([n, c], 5).unwrap();
                let options = BatchNormOptions { eps: 0.01, ..BatchNormOptions::default() };
                let mut norm = BatchNorm1d::with_options(c, options).unwrap();
                norm.visit_mut(&mut |p| disturb(&mut Rng::new(7, p.name), p.value));
                check(&mut norm, &x, 6).unwrap_or_else(|e| panic!("{isa}, BatchNorm of {n} x {c}: {e}"));
                let mut linear = Linear::new(c, 7, &mut Rng::new(1, "linear")).unwrap();
                check(&mut linear, &x, 6).unwrap_or_else(|e| panic!("{isa}, Linear of {n} x {c}: {e}"));
                check(&mut Relu::new(), &x, 6).unwrap_or_else(|e| panic!("{isa}, ReLU of {n} x {c}: {e}"));
            }
        });
    }
}

#[test]
fn a_check_leaves_the_layer_as_it_was() {
    // The cumulative average depends on the number of batches, so that a count left behind would show later.
    for momentum in [Some(0.1), None] {
        let options = BatchNormOptions { momentum, ..BatchNormOptions::default() };
        let mut checked = BatchNorm1d::<f64>::with_options(3, options).unwrap();
        let mut other = BatchNorm1d::with_options(3, options).unwrap();
        let train = |layer: &mut BatchNorm1d<f64>, seed| {
            let x = normal_batch([6, 3], seed).unwrap();
            let (mut y, mut saved) = (x.clone(), vec![0.0; layer.saved_len(x.shape())]);
            let mut scratch = vec![0.0; layer.scratch_len(x.shape())];
            layer.forward(x.view(), y.view_mut(), &mut saved, &mut scratch).unwrap();
        };
        train(&mut checked, 1);
        train(&mut other, 1);
        let x = normal_batch([5, 3], 9).unwrap();
        passes("batchnorm", &check_layer(&mut checked, x.view(), 3, Tolerance::default()).unwrap());
        assert_eq!(bits(&mut checked), bits(&mut other));
        assert_eq!(checked.num_batches_tracked(), 1, "momentum {momentum:?}");
        train(&mut checked, 2);
        train(&mut other, 2);
        assert_eq!(bits(&mut checked), bits(&mut other), "the next batch, momentum {momentum:?}");
    }
}

#[test]
fn a_check_of_a_model_leaves_it_as_it_was_even_if_refused() {
    // With the cumulative average a count left behind shows too.
    let build = || {
        let rng = &mut Rng::new(4, "model");
        let options = BatchNormOptions { momentum: None, ..BatchNormOptions::default() };
        Sequential::new()
            .push(Linear::new(3, 5, rng).unwrap())
            .push(BatchNorm1d::with_options(5, options).unwrap())
            .push(Relu::new())
            .push(Linear::new(5, 2, rng).unwrap())
    };
    let (x, later) = (normal_batch([6, 3], 1).unwrap(), normal_batch([4, 3], 2).unwrap());
    // What a model has learnt and counted shows in what it answers and in what one more batch makes of that.
    let answers = |model: &mut Sequential<f64>| {
        let mut infer = model.infer_space(later.shape()).unwrap();
        let mut bits: Vec<u64> = Vec::new();
        for _ in 0..2 {
            bits.extend(model.infer(later.view(), &mut infer).unwrap().data().iter().map(|y| y.to_bits()));
            let mut space = model.workspace(later.shape()).unwrap();
            model.forward(later.view(), &mut space).unwrap();
        }
        bits
    };
    let untouched = answers(&mut build());
    for (classes, is_refused) in [([0, 1, 1, 0, 1, 0], false), ([0, 1, 2, 0, 1, 0], true)] {
        let mut model = build();
        let targets = Targets::Classes(&classes);
        let result = check_model(&mut model, Loss::CrossEntropy, x.view(), targets, Tolerance::default());
        assert_eq!(result.is_err(), is_refused);
        assert_eq!(answers(&mut model), untouched, "refused: {is_refused}");
    }
}

#[test]
fn parameter_gradients_accumulate_and_the_input_gradient_need_not_be_asked_for() {
    let rng = &mut Rng::new(1, "layers");
    let layers: [Box<dyn Layer<f64>>; 2] =
        [Box::new(Linear::new(5, 5, rng).unwrap()), Box::new(BatchNorm1d::new(5).unwrap())];
    for mut layer in layers {
        let (x, dy) = (normal_batch([7, 5], 1).unwrap(), normal_batch([7, 5], 2).unwrap());
        let (mut y, mut dx) = (x.clone(), x.clone());
        let mut saved = vec![0.0; layer.saved_len(x.shape())];
        let mut scratch = vec![0.0; layer.scratch_len(x.shape())];
        layer.forward(x.view(), y.view_mut(), &mut saved, &mut scratch).unwrap();
        let mut gradients = Vec::new();
        for with_dx in [true, false, true] {
            let dx = with_dx.then(|| dx.view_mut());
            layer.backward(x.view(), dy.view(), dx, &saved, &mut scratch).unwrap();
            let mut flat = Vec::new();
            layer.visit(&mut |p| flat.extend_from_slice(p.grad));
            gradients.push(flat);
        }
        for (i, &once) in gradients[0].iter().enumerate() {
            for (times, sum) in [(2.0, gradients[1][i]), (3.0, gradients[2][i])] {
                // Three roundings at most, of sums of seven products of order one.
                let what = layer.describe();
                assert!(
                    (sum - times * once).abs() <= 1e-14 * once.abs().max(1.0),
                    "{what}: {sum} is not {times} {once}"
                );
            }
        }
    }
}

#[test]
fn a_batch_of_two_with_a_small_eps_has_its_closed_form() {
    // With d half the distance of two values, y = +-d / sqrt(d^2 + eps) and dy/dd = eps / (d^2 + eps)^(3/2): what is left of terms
    // of order one is of order eps, 1e-5, so a relative error of 1e-9 leaves a factor of 100 above their rounding.
    let (eps, gamma) = (1e-5, [1.5, -0.75, 2.0]);
    let (x, dy) = ([0.4, -1.1, 2.0, 1.9, 0.3, -0.7], [0.9, -0.2, 1.1, -0.6, 0.8, 0.5]);
    for isa in Isa::available() {
        with_isa(isa, || {
            let mut norm = BatchNorm1d::<f64>::new(3).unwrap();
            norm.visit_mut(&mut |p| {
                if p.name == "weight" {
                    p.value.copy_from_slice(&gamma);
                }
            });
            let x = Tensor::from_slice([2, 3], &x).unwrap();
            passes("batch of two", &check_layer(&mut norm, x.view(), 3, Tolerance::default()).unwrap());
            let (mut y, mut dx) = (x.clone(), x.clone());
            let mut saved = vec![0.0; norm.saved_len(x.shape())];
            let mut scratch = vec![0.0; norm.scratch_len(x.shape())];
            norm.forward(x.view(), y.view_mut(), &mut saved, &mut scratch).unwrap();
            let dy = TensorRef::new([2, 3], &dy).unwrap();
            norm.backward(x.view(), dy, Some(dx.view_mut()), &saved, &mut scratch).unwrap();
            for c in 0..3 {
                let d = (x.data()[c] - x.data()[3 + c]) / 2.0;
                let slope = eps / (d * d + eps).powf(1.5);
                let expected = 0.5 * (dy.data()[c] - dy.data()[3 + c]) * gamma[c] * slope;
                for (found, expected) in [(dx.data()[c], expected), (dx.data()[3 + c], -expected)] {
                    assert!((found - expected).abs() <= 1e-9 * expected.abs(), "{isa}: {found:e}, not {expected:e}");
                }
            }
        });
    }
}

// ---- Kernels by themselves.

#[test]
fn losses_on_every_instruction_set() {
    for isa in Isa::available() {
        with_isa(isa, || {
            for (n, c) in [(1, 2), (2, 1), (3, 10), (7, 13), (20, 3)] {
                let rng = &mut Rng::new(n as u64, "loss");
                let labels: Vec<u8> = (0..n).map(|_| u8::try_from(rng.index(c)).unwrap()).collect();
                let (target, mut spare) = (normals(rng, n * c), vec![0.0; n * c]);
                let y: Vec<f64> = normals(rng, n * c).iter().map(|y| 3.0 * y).collect();
                let scale = |dx: &mut [f64], by: f64| dx.iter_mut().for_each(|dx| *dx *= by);
                let report = check_closures(
                    |y, loss| loss[0] = softmax_xent::forward_backward(y, &labels, &mut spare).unwrap(),
                    |y, dloss, dy| {
                        softmax_xent::forward_backward(y, &labels, dy).unwrap();
                        scale(dy, dloss[0]);
                    },
                    &y,
                    1,
                    3,
                    Tolerance::default(),
                );
                passes(&format!("{isa}: cross-entropy of {n} x {c}"), &report);
                let report = check_closures(
                    |y, loss| loss[0] = mse::forward_backward(y, &target, &mut spare),
                    |y, dloss, dy| {
                        mse::forward_backward(y, &target, dy);
                        scale(dy, dloss[0]);
                    },
                    &y,
                    1,
                    3,
                    Tolerance::default(),
                );
                passes(&format!("{isa}: mean squared error of {n} x {c}"), &report);
            }
        });
    }
}

/// A normalisation as a function of everything that it has a gradient for, one after another: x, gamma, beta.
#[derive(Clone, Copy)]
struct Fused<'a> {
    n: usize,
    c: usize,
    eps: f64,
    activation: Activation,
    /// Mean and variance, if they are given.
    frozen: Option<(&'a [f64], &'a [f64])>,
}

impl Fused<'_> {
    fn forward(&self, variables: &[f64], y: &mut [f64]) -> Vec<f64> {
        let (norm, x) = self.norm(variables);
        let mut saved = vec![0.0; batchnorm::saved_len(self.c)];
        let mut scratch = vec![0.0; batchnorm::scratch_len(self.n, self.c)];
        match self.frozen {
            Some(statistics) => batchnorm::forward_frozen(&norm, x, statistics, y, &mut saved).unwrap(),
            None => batchnorm::forward(&norm, x, y, &mut saved, &mut scratch).unwrap(),
        }
        saved
    }

    fn backward(&self, variables: &[f64], dy: &[f64], gradient: &mut [f64]) {
        let (norm, x) = self.norm(variables);
        let saved = self.forward(variables, &mut vec![0.0; x.len()]);
        let mut scratch = vec![0.0; batchnorm::scratch_len(self.n, self.c)];
        let statistics = if self.frozen.is_some() { Statistics::Frozen } else { Statistics::Batch };
        let (dx, rest) = gradient.split_at_mut(x.len());
        rest.fill(0.0);
        let (dgamma, dbeta) = rest.split_at_mut(self.c);
        let gradients = Gradients { dx: Some(dx), dgamma: Some(dgamma), dbeta: Some(dbeta) };
        batchnorm::backward(&norm, statistics, x, dy, &saved, gradients, &mut scratch);
    }

    fn norm<'v>(&self, variables: &'v [f64]) -> (BatchNorm<'v, f64>, &'v [f64]) {
        let (x, rest) = variables.split_at(self.n * self.c);
        let (gamma, beta) = rest.split_at(self.c);
        let (gamma, beta) = (Some(gamma), Some(beta));
        (BatchNorm { channels: self.c, gamma, beta, eps: self.eps, activation: self.activation }, x)
    }

    /// Variables at which nothing comes near the kink: a step of differences moves z by less than 1e-2.
    fn variables(&self, seed: u64) -> Vec<f64> {
        let plain = Fused { activation: Activation::Identity, ..*self };
        (0..)
            .map(|attempt| normals(&mut Rng::new(seed + attempt, "fused"), self.n * self.c + 2 * self.c))
            .find(|variables| {
                let mut z = vec![0.0; self.n * self.c];
                plain.forward(variables, &mut z);
                z.iter().all(|z| z.abs() > 1e-2)
            })
            .unwrap()
    }

    fn check(&self, what: &str) {
        let variables = self.variables(100);
        let report = check_closures(
            |v, y| {
                self.forward(v, y);
            },
            |v, dy, gradient| self.backward(v, dy, gradient),
            &variables,
            self.n * self.c,
            8,
            Tolerance::default(),
        );
        passes(what, &report);
    }
}

#[test]
fn normalisation_kernels_fused_or_not_frozen_or_not() {
    for isa in Isa::available() {
        with_isa(isa, || {
            for (n, c) in [(1, 3), (2, 1), (2, 5), (9, 2), (5, 9), (17, 3)] {
                let rng = &mut Rng::new(3, "frozen");
                let (mean, var) = (normals(rng, c), (0..c).map(|_| rng.range(0.1, 3.0)).collect::<Vec<_>>());
                for activation in [Activation::Identity, Activation::Relu] {
                    for frozen in [None, Some((&mean[..], &var[..]))] {
                        if n == 1 && frozen.is_none() {
                            continue; // one value has no variance
                        }
                        // Two rows are one number in disguise; with the wider eps they still have a slope.
                        let fused = Fused { n, c, eps: 0.1, activation, frozen };
                        fused.check(&format!("{isa}: {n} x {c}, {activation:?}, frozen {}", frozen.is_some()));
                    }
                }
            }
        });
    }
}

#[test]
fn relu_kernels_away_from_the_kink() {
    for isa in Isa::available() {
        with_isa(isa, || {
            for n in [1, 7, 8, 33] {
                let x = normals(&mut Rng::new(n, "relu"), usize::try_from(n).unwrap());
                let x: Vec<f64> = x.iter().map(|x| x + 0.01 * x.signum()).collect();
                let report = check_closures(relu::forward, relu::backward, &x, x.len(), 3, Tolerance::default());
                passes(&format!("{isa}: ReLU of {n}"), &report);
            }
        });
    }
}

// ---- The checker, on layers of a user's own with bugs planted in them.

#[derive(Clone, Copy, Debug, PartialEq)]
enum Bug {
    None,
    /// BatchNorm's dx without its mean term.
    NoMean,
    /// BatchNorm's dx without its projection on x_hat.
    NoProjection,
    /// Linear's dx through W in place of its transpose.
    NotTransposed,
    /// ReLU's mask from dy.
    MaskOfGradient,
    /// One entry of dx off by a thousandth of itself.
    OneEntry,
    /// One entry of a parameter's gradient off by a thousandth of itself.
    OneParameter,
    /// A gradient that is infinite.
    Infinite,
}

/// Loops of a user's own: what the layer is, its (square) weight or scale, and what is wrong with it.
struct Own {
    kind: Kind,
    width: usize,
    weight: Vec<f64>,
    dweight: Vec<f64>,
    bug: Bug,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Norm,
    Linear,
    Relu,
}

const OWN_EPS: f64 = 0.1;

impl Own {
    fn new(kind: Kind, width: usize, bug: Bug) -> Self {
        let len = match kind {
            Kind::Norm => width,
            Kind::Linear => width * width,
            Kind::Relu => 0,
        };
        let weight = normals(&mut Rng::new(5, "own"), len);
        Own { kind, width, dweight: vec![0.0; weight.len()], weight, bug }
    }

    /// x_hat and 1 / sqrt(var + eps) of one channel.
    fn normalised(&self, x: &[f64], channel: usize) -> (Vec<f64>, f64) {
        let column: Vec<f64> = x.iter().skip(channel).step_by(self.width).copied().collect();
        let n = column.len() as f64;
        let mean = column.iter().sum::<f64>() / n;
        let var = column.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / n;
        let rstd = 1.0 / (var + OWN_EPS).sqrt();
        (column.iter().map(|x| (x - mean) * rstd).collect(), rstd)
    }

    fn map(&self, base: &[f64], x: &[f64], y: &mut [f64]) {
        let c = self.width;
        match self.kind {
            Kind::Norm => {
                for j in 0..c {
                    for (i, x_hat) in self.normalised(x, j).0.iter().enumerate() {
                        y[i * c + j] = self.weight[j] * x_hat;
                    }
                }
            }
            Kind::Linear => {
                for (x, y) in x.chunks(c).zip(y.chunks_mut(c)) {
                    for j in 0..c {
                        y[j] = (0..c).map(|i| x[i] * self.weight[i * c + j]).sum();
                    }
                }
            }
            Kind::Relu => {
                for ((y, x), base) in y.iter_mut().zip(x).zip(base) {
                    *y = if *base > 0.0 { *x } else { 0.0 };
                }
            }
        }
    }

    fn gradient(&mut self, x: &[f64], dy: &[f64], dx: &mut [f64]) {
        let (c, n) = (self.width, x.len() / self.width);
        match self.kind {
            Kind::Norm => {
                for j in 0..c {
                    let (x_hat, rstd) = self.normalised(x, j);
                    let dy: Vec<f64> = dy.iter().skip(j).step_by(c).copied().collect();
                    let mean = |terms: &mut dyn Iterator<Item = f64>| terms.sum::<f64>() / n as f64;
                    let mut of_dy = mean(&mut dy.iter().copied());
                    let mut along = mean(&mut dy.iter().zip(&x_hat).map(|(dy, x_hat)| dy * x_hat));
                    self.dweight[j] += along * n as f64;
                    if self.bug == Bug::NoMean {
                        of_dy = 0.0;
                    }
                    if self.bug == Bug::NoProjection {
                        along = 0.0;
                    }
                    for i in 0..n {
                        dx[i * c + j] = self.weight[j] * rstd * (dy[i] - of_dy - x_hat[i] * along);
                    }
                }
            }
            Kind::Linear => {
                for ((x, dy), dx) in x.chunks(c).zip(dy.chunks(c)).zip(dx.chunks_mut(c)) {
                    for i in 0..c {
                        let at = |j: usize| if self.bug == Bug::NotTransposed { j * c + i } else { i * c + j };
                        dx[i] = (0..c).map(|j| dy[j] * self.weight[at(j)]).sum();
                        for j in 0..c {
                            self.dweight[i * c + j] += x[i] * dy[j];
                        }
                    }
                }
            }
            Kind::Relu => {
                for i in 0..x.len() {
                    let mask = if self.bug == Bug::MaskOfGradient { dy[i] } else { x[i] };
                    dx[i] = if mask > 0.0 { dy[i] } else { 0.0 };
                }
            }
        }
        let largest = |values: &[f64]| (0..values.len()).max_by(|&a, &b| values[a].abs().total_cmp(&values[b].abs()));
        match self.bug {
            Bug::OneEntry => dx[largest(dx).unwrap()] *= 1.001,
            Bug::OneParameter => {
                let at = largest(&self.dweight).unwrap();
                self.dweight[at] *= 1.001;
            }
            Bug::Infinite => dx[0] = f64::INFINITY,
            _ => {}
        }
    }
}

impl Layer<f64> for Own {
    fn describe(&self) -> String {
        format!("{:?} with {:?}", self.kind, self.bug)
    }

    fn output_shape(&self, input: Shape) -> Result<Shape> {
        Ok(input)
    }

    fn infer(&self, x: TensorRef<'_, f64>, mut y: TensorMut<'_, f64>, _: &mut [f64]) -> Result<()> {
        self.map(x.data(), x.data(), y.data());
        Ok(())
    }

    fn forward(&mut self, x: TensorRef<'_, f64>, y: TensorMut<'_, f64>, _: &mut [f64], s: &mut [f64]) -> Result<()> {
        self.infer(x, y, s)
    }

    fn forward_held(
        &mut self,
        base: TensorRef<'_, f64>,
        x: TensorRef<'_, f64>,
        mut y: TensorMut<'_, f64>,
        _: &mut [f64],
        _: &mut [f64],
    ) -> Result<()> {
        self.map(base.data(), x.data(), y.data());
        Ok(())
    }

    fn backward(
        &mut self,
        x: TensorRef<'_, f64>,
        dy: TensorRef<'_, f64>,
        dx: Option<TensorMut<'_, f64>>,
        _: &[f64],
        _: &mut [f64],
    ) -> Result<()> {
        let mut unasked = vec![0.0; x.data().len()];
        self.gradient(x.data(), dy.data(), dx.map_or(&mut unasked, TensorMut::into_data));
        Ok(())
    }

    fn visit(&self, f: &mut dyn FnMut(Parameter<'_, f64>)) {
        f(Parameter { name: "weight", value: &self.weight, grad: &self.dweight });
    }

    fn visit_mut(&mut self, f: &mut dyn FnMut(ParameterMut<'_, f64>)) {
        f(ParameterMut { name: "weight", value: &mut self.weight, grad: &mut self.dweight });
    }
}

#[test]
fn planted_bugs_are_found_in_a_users_own_layers() {
    let bugs = [
        (Kind::Norm, Bug::NoMean),
        (Kind::Norm, Bug::NoProjection),
        (Kind::Norm, Bug::OneEntry),
        (Kind::Norm, Bug::OneParameter),
        (Kind::Norm, Bug::Infinite),
        (Kind::Linear, Bug::NotTransposed),
        (Kind::Linear, Bug::OneEntry),
        (Kind::Linear, Bug::OneParameter),
        (Kind::Relu, Bug::MaskOfGradient),
        (Kind::Relu, Bug::OneEntry),
        (Kind::Relu, Bug::Infinite),
    ];
    let x = normal_batch([6, 4], 2).unwrap();
    for (kind, bug) in bugs {
        for seed in 0..10 {
            let check = |bug| check_layer(&mut Own::new(kind, 4, bug), x.view(), seed, Tolerance::default()).unwrap();
            passes(&format!("{kind:?} without a bug"), &check(Bug::None));
            let report = check(bug);
            assert!(!report.passed(), "{kind:?} with {bug:?}, seed {seed}, was not found: {report}");
            let at_fault = if bug == Bug::OneParameter { "weight" } else { "x" };
            assert!(!report.tensor(at_fault).unwrap().passed(), "{kind:?} with {bug:?}, seed {seed}: {report}");
        }
    }
}

#[test]
fn a_planted_bug_is_found_inside_a_network() {
    let x = normal_batch([6, 4], 2).unwrap();
    for (kind, bug) in
        [(Kind::Norm, Bug::NoMean), (Kind::Linear, Bug::NotTransposed), (Kind::Relu, Bug::MaskOfGradient)]
    {
        let check = |bug| {
            let rng = &mut Rng::new(1, "network");
            let mut model = Sequential::new()
                .push(Linear::new(4, 4, rng).unwrap().without_bias())
                .push(Own::new(kind, 4, bug))
                .push(Linear::new(4, 3, rng).unwrap());
            let targets = Targets::Classes(&[0, 1, 2, 2, 1, 0]);
            check_model(&mut model, Loss::CrossEntropy, x.view(), targets, Tolerance::default()).unwrap()
        };
        passes(&format!("{kind:?}"), &check(Bug::None));
        let report = check(bug);
        assert!(!report.tensor("0.weight").unwrap().passed(), "{kind:?} with {bug:?}: {report}");
        assert!(report.tensor("2.weight").unwrap().passed(), "above the bug all is well: {report}");
    }
}

/// Why the upstream gradient is random: the outputs of a normalised channel add up to the same whatever x is, so with ones the
/// gradient is zero, and a backward pass without its projection gives zero just as well.
#[test]
fn an_upstream_gradient_of_ones_sees_nothing_of_a_normalisation() {
    let x = normal_batch([6, 4], 2).unwrap();
    for bug in [Bug::None, Bug::NoProjection] {
        let mut dx = vec![f64::NAN; 24];
        Own::new(Kind::Norm, 4, bug).gradient(x.data(), &[1.0; 24], &mut dx);
        assert!(dx.iter().all(|dx| dx.abs() < 1e-12), "{bug:?}: {dx:?}");
    }
}

#[test]
fn nothing_but_a_finite_gradient_passes() {
    let square = |x: &[f64], y: &mut [f64]| y[0] = x[0] * x[0];
    for wrong in [f64::INFINITY, f64::NEG_INFINITY, f64::NAN, 1e300, 0.0] {
        let report = check_closures(square, |_, _, dx| dx[0] = wrong, &[3.0], 1, 7, Tolerance::default());
        assert!(!report.passed(), "{wrong}: {report}");
    }
    assert_eq!(STEPS.len(), 4);
}

/// `y = w x` for one weight and any number of inputs, honest but for the fault that it was made with.
struct Scaling {
    w: [f64; 1],
    dw: Vec<f64>,
    fault: Fault,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    None,
    OverwritesItsGradient,
    NeedsDxForItsGradient,
    HasTooFewGradients,
    HidesItsParameter,
}

impl Layer<f64> for Scaling {
    fn describe(&self) -> String {
        format!("{:?}", self.fault)
    }

    fn output_shape(&self, input: Shape) -> Result<Shape> {
        Ok(input)
    }

    fn infer(&self, x: TensorRef<'_, f64>, mut y: TensorMut<'_, f64>, _: &mut [f64]) -> Result<()> {
        y.data().iter_mut().zip(x.data()).for_each(|(y, x)| *y = self.w[0] * x);
        Ok(())
    }

    fn forward(&mut self, x: TensorRef<'_, f64>, y: TensorMut<'_, f64>, _: &mut [f64], s: &mut [f64]) -> Result<()> {
        self.infer(x, y, s)
    }

    fn backward(
        &mut self,
        x: TensorRef<'_, f64>,
        dy: TensorRef<'_, f64>,
        dx: Option<TensorMut<'_, f64>>,
        _: &[f64],
        _: &mut [f64],
    ) -> Result<()> {
        let dw: f64 = x.data().iter().zip(dy.data()).map(|(x, dy)| x * dy).sum();
        match (self.fault, self.dw.first_mut()) {
            (Fault::OverwritesItsGradient, Some(sum)) => *sum = dw,
            (Fault::NeedsDxForItsGradient, Some(_)) if dx.is_none() => {}
            (_, Some(sum)) => *sum += dw,
            (_, None) => {}
        }
        if let Some(mut dx) = dx {
            dx.data().iter_mut().zip(dy.data()).for_each(|(dx, dy)| *dx = self.w[0] * dy);
        }
        Ok(())
    }

    fn visit(&self, f: &mut dyn FnMut(Parameter<'_, f64>)) {
        if self.fault != Fault::HidesItsParameter {
            f(Parameter { name: "weight", value: &self.w, grad: &self.dw });
        }
    }

    fn visit_mut(&mut self, f: &mut dyn FnMut(ParameterMut<'_, f64>)) {
        f(ParameterMut { name: "weight", value: &mut self.w, grad: &mut self.dw });
    }
}

#[test]
fn the_contract_of_parameter_gradients_is_checked() {
    let x = normal_batch([3, 2], 8).unwrap();
    let check = |fault| {
        let dw = if fault == Fault::HasTooFewGradients { vec![] } else { vec![0.0] };
        let mut layer = Scaling { w: [1.5], dw, fault };
        check_layer(&mut layer, x.view(), 9, Tolerance::default())
    };
    passes("an honest layer", &check(Fault::None).unwrap());
    for fault in [Fault::OverwritesItsGradient, Fault::NeedsDxForItsGradient] {
        let report = check(fault).unwrap();
        assert!(!report.passed() && !report.tensor("weight").unwrap().passed(), "{fault:?}: {report}");
    }
    for fault in [Fault::HasTooFewGradients, Fault::HidesItsParameter] {
        let answer = check(fault);
        assert!(answer.is_err(), "{fault:?}: {answer:?}");
    }
}
