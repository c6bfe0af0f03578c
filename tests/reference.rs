//! The f64 reference against PyTorch's numbers, and its backward passes against central differences of its forward ones.

mod golden;

use evenkeel::Rng;
use evenkeel::reference::update::{Adam, Momentum, Sgd, adam, sgd};
use evenkeel::reference::{batchnorm, linear, mse, relu, softmax_xent};
use golden::pytorch::*;

/// Both sides compute in f64 what takes at most some hundred operations on numbers of order one, each within 1.1e-16; the
/// widest quotient in the data (a deviation from a mean of 100 over a spread of 0.1) may multiply that by 1000. A wrong
/// formula is off in the first digits.
const TOLERANCE: f64 = 1e-12;

#[track_caller]
fn near(what: &str, found: &[f64], wanted: &[f64], tolerance: f64) {
    assert_eq!(found.len(), wanted.len(), "{what}: number of elements");
    for (i, (f, w)) in found.iter().zip(wanted).enumerate() {
        assert!((f - w).abs() <= tolerance * w.abs().max(1.0), "{what}[{i}] is {f:e}, not {w:e}");
    }
}

#[track_caller]
fn same(what: &str, found: &[f64], wanted: &[f64]) {
    near(what, found, wanted, TOLERANCE);
}

#[test]
fn linear_is_pytorchs() {
    same("y", &linear::forward(&LINEAR_X, &LINEAR_WEIGHT, Some(&LINEAR_BIAS), 3, 2), &LINEAR_Y);
    let g = linear::backward(&LINEAR_X, &LINEAR_WEIGHT, &LINEAR_DY, 3, 2);
    same("dx", &g.dx, &LINEAR_DX);
    same("dweight", &g.dweight, &LINEAR_DWEIGHT);
    same("dbias", &g.dbias, &LINEAR_DBIAS);
}

#[test]
fn batchnorm_in_training_is_pytorchs() {
    let (y, batch) = batchnorm::forward(&BN_X1, 3, Some(&BN_GAMMA), Some(&BN_BETA), 1e-5);
    same("y", &y, &BN_Y);
    let g = batchnorm::backward(&BN_X1, &BN_DY, Some(&BN_GAMMA), &batch, 1e-5);
    same("dx", &g.dx, &BN_DX);
    same("dgamma", &g.dgamma, &BN_DGAMMA);
    same("dbeta", &g.dbeta, &BN_DBETA);

    let (y, batch) = batchnorm::forward(&BN_X1, 3, None, None, 0.01);
    same("y without affine", &y, &BN_PLAIN_Y);
    same("dx without affine", &batchnorm::backward(&BN_X1, &BN_DY, None, &batch, 0.01).dx, &BN_PLAIN_DX);
}

#[test]
fn running_statistics_and_evaluation_are_pytorchs() {
    let batches = [(batchnorm::moments(&BN_X1, 3), 5), (batchnorm::moments(&BN_X2, 3), 4)];
    let start = batchnorm::Moments { mean: vec![0.0; 3], var: vec![1.0; 3] };

    let mut running = start.clone();
    batchnorm::update_running(&mut running, Some(0.1), 1, &batches[0].0, batches[0].1);
    same("running mean after one", &running.mean, &BN_RUNNING_MEAN_1);
    same("running var after one", &running.var, &BN_RUNNING_VAR_1);
    batchnorm::update_running(&mut running, Some(0.1), 2, &batches[1].0, batches[1].1);
    same("running mean after two", &running.mean, &BN_RUNNING_MEAN_2);
    same("running var after two", &running.var, &BN_RUNNING_VAR_2);

    same("y", &batchnorm::infer(&BN_X1, Some(&BN_GAMMA), Some(&BN_BETA), &running, 1e-5), &BN_EVAL_Y);
    let g = batchnorm::backward_frozen(&BN_X1, &BN_DY, Some(&BN_GAMMA), &running, 1e-5);
    same("dx", &g.dx, &BN_EVAL_DX);
    same("dgamma", &g.dgamma, &BN_EVAL_DGAMMA);
    same("dbeta", &g.dbeta, &BN_EVAL_DBETA);

    let mut cumulative = start;
    for (seen, (batch, count)) in (1..).zip(&batches) {
        batchnorm::update_running(&mut cumulative, None, seen, batch, *count);
    }
    same("cumulative mean", &cumulative.mean, &BN_CUMULATIVE_MEAN);
    same("cumulative var", &cumulative.var, &BN_CUMULATIVE_VAR);
}

#[test]
fn losses_are_pytorchs() {
    same("cross-entropy", &[softmax_xent::loss(&XENT_LOGITS, &XENT_LABELS, 5)], &[XENT_LOSS]);
    same("its gradient", &softmax_xent::gradient(&XENT_LOGITS, &XENT_LABELS, 5), &XENT_GRADIENT);
    same("mean squared error", &[mse::loss(&MSE_Y, &MSE_T)], &[MSE_LOSS]);
    same("its gradient", &mse::gradient(&MSE_Y, &MSE_T), &MSE_GRADIENT);
}

#[test]
fn optimisers_are_pytorchs() {
    let (heavy, ahead) = (Momentum::Classical(0.9), Momentum::Nesterov(0.9));
    for (momentum, weight_decay, wanted) in
        [(Momentum::None, 0.0, SGD_PLAIN), (heavy, 0.01, SGD_MOMENTUM), (ahead, 0.01, SGD_NESTEROV)]
    {
        let (mut w, mut velocity) = (STEP_START, [0.0; 4]);
        for (dw, wanted) in STEP_GRADIENTS.chunks(4).zip(wanted.chunks(4)) {
            sgd(&Sgd { lr: 0.1, momentum, weight_decay }, &mut w, dw, &mut velocity);
            same(&format!("SGD with {momentum:?}"), &w, wanted);
        }
    }
    for (weight_decay, wanted) in [(0.0, ADAM), (0.1, ADAM_DECAY)] {
        let settings = Adam { lr: 0.01, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay };
        let (mut w, mut m, mut v) = (STEP_START, [0.0; 4], [0.0; 4]);
        for (step, (dw, wanted)) in (1..).zip(STEP_GRADIENTS.chunks(4).zip(wanted.chunks(4))) {
            adam(&settings, step, &mut w, dw, &mut m, &mut v);
            same(&format!("Adam with weight decay {weight_decay}, step {step}"), &w, wanted);
        }
    }
}

#[test]
fn a_whole_network_is_pytorchs() {
    let (gamma, beta) = (Some(&STACK_1_WEIGHT[..]), Some(&STACK_1_BIAS[..]));
    let hidden = linear::forward(&STACK_X, &STACK_0_WEIGHT, Some(&STACK_0_BIAS), 3, 4);
    let (normal, batch) = batchnorm::forward(&hidden, 4, gamma, beta, 1e-5);
    let active = relu::forward(&normal);
    let logits = linear::forward(&active, &STACK_3_WEIGHT, Some(&STACK_3_BIAS), 4, 3);
    same("loss", &[softmax_xent::loss(&logits, &STACK_LABELS, 3)], &[STACK_LOSS]);

    let last = linear::backward(&active, &STACK_3_WEIGHT, &softmax_xent::gradient(&logits, &STACK_LABELS, 3), 4, 3);
    same("d 3.weight", &last.dweight, &STACK_D3_WEIGHT);
    same("d 3.bias", &last.dbias, &STACK_D3_BIAS);
    let middle = batchnorm::backward(&hidden, &relu::backward(&normal, &last.dx), gamma, &batch, 1e-5);
    same("d 1.weight", &middle.dgamma, &STACK_D1_WEIGHT);
    same("d 1.bias", &middle.dbeta, &STACK_D1_BIAS);
    let first = linear::backward(&STACK_X, &STACK_0_WEIGHT, &middle.dx, 3, 4);
    same("d 0.weight", &first.dweight, &STACK_D0_WEIGHT);
    same("d 0.bias", &first.dbias, &STACK_D0_BIAS); // zero up to rounding: the normalisation cancels this bias
    same("dx", &first.dx, &STACK_DX);
}

/// Central differences with step `h = 1e-5`: `(f(x + h) - f(x - h)) / 2h`, whose error is `h^2 f'''/6`, some 1e-10 here, and
/// `u |f| / h`, some 1e-11.
fn numeric_gradient(x: &[f64], f: impl Fn(&[f64]) -> f64) -> Vec<f64> {
    const STEP: f64 = 1e-5;
    let mut x = x.to_vec();
    (0..x.len())
        .map(|i| {
            let at = x[i];
            x[i] = at + STEP;
            let above = f(&x);
            x[i] = at - STEP;
            let below = f(&x);
            x[i] = at;
            (above - below) / (2.0 * STEP)
        })
        .collect()
}

/// What [`numeric_gradient`] promises, with a margin for third derivatives well above one.
const NUMERIC: f64 = 1e-7;

fn normals(rng: &mut Rng, n: usize) -> Vec<f64> {
    (0..n).map(|_| rng.normal()).collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

#[test]
fn batchnorm_gradients_are_those_of_its_forward_pass() {
    let rng = &mut Rng::new(1, "reference batchnorm");
    // Loss: <y, dy> with a fixed dy. The wide eps makes sure that its part in the formulas is seen.
    for (rows, channels, eps) in [(2, 1, 0.5), (5, 3, 1e-5), (7, 4, 0.1)] {
        let (x, dy) = (normals(rng, rows * channels), normals(rng, rows * channels));
        let (gamma, beta) = (normals(rng, channels), normals(rng, channels));
        let training = |x: &[f64], gamma: &[f64], beta: &[f64]| {
            dot(&batchnorm::forward(x, channels, Some(gamma), Some(beta), eps).0, &dy)
        };
        let batch = batchnorm::moments(&x, channels);
        let g = batchnorm::backward(&x, &dy, Some(&gamma), &batch, eps);
        near("dx", &g.dx, &numeric_gradient(&x, |x| training(x, &gamma, &beta)), NUMERIC);
        near("dgamma", &g.dgamma, &numeric_gradient(&gamma, |gamma| training(&x, gamma, &beta)), NUMERIC);
        near("dbeta", &g.dbeta, &numeric_gradient(&beta, |beta| training(&x, &gamma, beta)), NUMERIC);

        let running = batchnorm::Moments { mean: normals(rng, channels), var: vec![1.7; channels] };
        let frozen = |x: &[f64], gamma: &[f64]| dot(&batchnorm::infer(x, Some(gamma), Some(&beta), &running, eps), &dy);
        let g = batchnorm::backward_frozen(&x, &dy, Some(&gamma), &running, eps);
        near("frozen dx", &g.dx, &numeric_gradient(&x, |x| frozen(x, &gamma)), NUMERIC);
        near("frozen dgamma", &g.dgamma, &numeric_gradient(&gamma, |gamma| frozen(&x, gamma)), NUMERIC);
    }
}

#[test]
fn batchnorm_gradients_obey_their_two_identities() {
    let rng = &mut Rng::new(2, "reference batchnorm");
    let (rows, channels, eps) = (9, 3, 0.1);
    let (x, dy, gamma) = (normals(rng, rows * channels), normals(rng, rows * channels), normals(rng, channels));
    let batch = batchnorm::moments(&x, channels);
    let g = batchnorm::backward(&x, &dy, Some(&gamma), &batch, eps);
    for c in 0..channels {
        let rstd = 1.0 / (batch.var[c] + eps).sqrt();
        let dx: Vec<f64> = g.dx.iter().skip(c).step_by(channels).copied().collect();
        let x_hat: Vec<f64> = x.iter().skip(c).step_by(channels).map(|x| (x - batch.mean[c]) * rstd).collect();
        same("sum of dx", &[dx.iter().sum()], &[0.0]);
        let along = gamma[c] * rstd * g.dgamma[c] * eps / (batch.var[c] + eps);
        same("sum of dx x_hat", &[dot(&dx, &x_hat)], &[along]);
    }
}

#[test]
fn the_other_gradients_are_those_of_their_forward_passes() {
    let rng = &mut Rng::new(3, "reference gradients");
    let (n, inputs, outputs) = (4, 3, 5);
    let (x, w, b) = (normals(rng, n * inputs), normals(rng, outputs * inputs), normals(rng, outputs));
    let dy = normals(rng, n * outputs);
    let through = |x: &[f64], w: &[f64], b: &[f64]| dot(&linear::forward(x, w, Some(b), inputs, outputs), &dy);
    let g = linear::backward(&x, &w, &dy, inputs, outputs);
    near("linear dx", &g.dx, &numeric_gradient(&x, |x| through(x, &w, &b)), NUMERIC);
    near("linear dweight", &g.dweight, &numeric_gradient(&w, |w| through(&x, w, &b)), NUMERIC);
    near("linear dbias", &g.dbias, &numeric_gradient(&b, |b| through(&x, &w, b)), NUMERIC);

    let labels: Vec<usize> = (0..n).map(|_| rng.index(outputs)).collect();
    let gradient = softmax_xent::gradient(&dy, &labels, outputs);
    near("xent", &gradient, &numeric_gradient(&dy, |z| softmax_xent::loss(z, &labels, outputs)), NUMERIC);

    let t = normals(rng, x.len());
    near("mse", &mse::gradient(&x, &t), &numeric_gradient(&x, |y| mse::loss(y, &t)), NUMERIC);

    // Away from the kink, which a difference would straddle.
    let x: Vec<f64> = x.iter().map(|x| x + 0.01 * x.signum()).collect();
    near("relu", &relu::backward(&x, &t), &numeric_gradient(&x, |x| dot(&relu::forward(x), &t)), NUMERIC);
}
