//! Batch normalisation over the rows of `[n, c]`: statistics, forward, backward, running statistics.
//!
//! With `m` values of one channel (the code says `count`), and everything per channel:
//!
//! ```text
//! mean  = 1/m * sum of x
//! var   = 1/m * sum of (x - mean)^2          biased: divided by m
//! rstd  = 1 / sqrt(var + eps)                0 when var + eps == 0
//! x_hat = (x - mean) * rstd
//! y     = gamma * x_hat + beta               without gamma: 1, without beta: 0
//! ```
//!
//! Training takes mean and variance from the batch and keeps a running estimate of both; evaluation takes the estimate:
//!
//! ```text
//! running_mean <- (1 - momentum) * running_mean + momentum * mean
//! running_var  <- (1 - momentum) * running_var  + momentum * var * m / (m - 1)      unbiased
//! ```
//!
//! | name | shape |
//! |---|---|
//! | `x`, `y`, `dx`, `dy` | `[n, c]`, row-major, so `m = n` |
//! | `mean`, `var`, `gamma`, `beta`, `dgamma`, `dbeta` | `[c]` |
//!
//! Images are the same with `m = n * h * w`: NHWC as it lies in memory, NCHW with its channels moved innermost.
//!
//! **Backward with frozen statistics.** `y` is affine in `x`, so with sums over the channel's values
//!
//! ```text
//! dbeta = sum of dy      dgamma = sum of dy * x_hat      dx = gamma * rstd * dy
//! ```
//!
//! **Backward in training.** The same `dbeta` and `dgamma`, but `x` also acts through `mean` and `var`. Write `g = gamma * dy`
//! for `dL/dx_hat`:
//!
//! ```text
//! dL/dvar  = sum of g * (x - mean) * (-1/2) rstd^3  = -1/2 * rstd^2 * gamma * dgamma
//! dL/dmean = -rstd * sum of g                       = -rstd * gamma * dbeta
//! dx       = g * rstd  +  dL/dvar * 2 (x - mean) / m  +  dL/dmean / m
//!          = gamma * rstd * (dy - dbeta / m - x_hat * dgamma / m)
//! ```
//!
//! (`var` depends on `mean` too, but that path carries the factor `sum of (x - mean) = 0`.) Two identities follow and make
//! good tests: `sum of dx = 0`, and `sum of dx * x_hat = gamma * rstd * dgamma * eps / (var + eps)`.
//!
//! **Special values.** A channel with a value that is not finite is NaN throughout (mean, variance, `y`, `dx`, `dgamma`), and
//! the other channels do not notice. A constant channel has exactly its value as mean, variance zero, and `y` exactly
//! `beta`. No row at all gives zero statistics, empty `y` and zero `dgamma` and `dbeta`.
//!
//! Sources: Ioffe and Szegedy, "Batch normalization", ICML 2015, algorithm 1 and the equations of section 3; Chan, Golub and
//! LeVeque, "Algorithms for computing the sample variance", The American Statistician 37, 1983, for the corrected two-pass
//! variance. Momentum and the two kinds of variance are PyTorch's.

use super::sum::Sum;

/// Mean and variance of each channel: a batch's own, or running estimates of them.
#[derive(Clone, Debug, PartialEq)]
pub struct Moments {
    /// Mean, `[c]`.
    pub mean: Vec<f64>,
    /// Variance, `[c]`: biased if it is a batch's own, unbiased if it is a running estimate.
    pub var: Vec<f64>,
}

/// What the backward passes return.
#[derive(Clone, Debug, PartialEq)]
pub struct Gradients {
    /// d loss / d x, `[n, c]`.
    pub dx: Vec<f64>,
    /// d loss / d gamma, `[c]`.
    pub dgamma: Vec<f64>,
    /// d loss / d beta, `[c]`.
    pub dbeta: Vec<f64>,
}

/// Mean and biased variance of each channel.
///
/// # Numerics
/// The mean has one rounding, so `x - mean` carries an error of `2^-53 |mean|`. The variance is accurate to a few roundings,
/// whatever the mean. Values up to the largest f64 are safe; a variance above that is infinite.
///
/// # Panics
/// If `x` is not rows of `channels`.
///
/// # Examples
/// ```
/// use evenkeel::reference::batchnorm::moments;
/// let m = moments(&[1.0, 10.0, 3.0, 10.0], 2);
/// assert_eq!(m.mean, [2.0, 10.0]);
/// assert_eq!(m.var, [1.0, 0.0]);
/// ```
pub fn moments(x: &[f64], channels: usize) -> Moments {
    check(x, channels);
    let (mean, var) = (0..channels)
        .map(|c| {
            let values: Vec<f64> = x.iter().skip(c).step_by(channels).copied().collect();
            mean_and_variance(&values)
        })
        .unzip();
    Moments { mean, var }
}

/// Mean and biased variance of one channel's values.
fn mean_and_variance(values: &[f64]) -> (f64, f64) {
    if values.is_empty() {
        return (0.0, 0.0);
    }
    if values.iter().any(|x| !x.is_finite()) {
        return (f64::NAN, f64::NAN);
    }
    // Squares overflow from 2^512, and sums and differences at the top of the range, so values up there are brought down
    // first. A power of two changes no digit, and what it may lose at the small end is 10^200 times below the largest value.
    let largest = values.iter().fold(0.0_f64, |largest, x| largest.max(x.abs()));
    let scale = if largest > 2_f64.powi(400) { 2_f64.powi(-600) } else { 1.0 };
    let count = values.len() as f64;

    // Distances from the first value rather than the values: a constant channel then has exactly its value as mean.
    let first = values[0] * scale;
    let distances: Sum = values.iter().map(|x| x * scale - first).collect();
    let mean = first + distances.value() / count;

    // The deviations would sum to zero if `mean` were the exact mean. Their sum tells how far off it is, which corrects the
    // mean (when the first value was an outlier) and takes out of the squares what the offset put in.
    let deviations: Sum = values.iter().map(|x| x * scale - mean).collect();
    let squares: Sum = values.iter().map(|x| (x * scale - mean) * (x * scale - mean)).collect();
    let offset = deviations.value() / count;
    let var = squares.value() / count - offset * offset;
    ((mean + offset) / scale, var / scale / scale)
}

/// Forward pass in training: normalises with the batch's own [`moments`], and returns them.
///
/// ReLU, where it follows, is [`relu::forward`](super::relu::forward) on the result.
///
/// # Shapes
/// `x`: `[n, channels]`, `gamma`, `beta`: `[channels]`, result `[n, channels]`.
///
/// # Panics
/// If a length does not fit `channels`.
pub fn forward(
    x: &[f64],
    channels: usize,
    gamma: Option<&[f64]>,
    beta: Option<&[f64]>,
    eps: f64,
) -> (Vec<f64>, Moments) {
    let batch = moments(x, channels);
    (infer(x, gamma, beta, &batch, eps), batch)
}

/// Forward pass in evaluation: normalises with statistics that are given, one channel per mean.
///
/// # Shapes
/// `x`: `[n, c]`, `gamma`, `beta`: `[c]`, result `[n, c]`.
///
/// # Panics
/// If a length does not fit the number of channels.
pub fn infer(x: &[f64], gamma: Option<&[f64]>, beta: Option<&[f64]>, running: &Moments, eps: f64) -> Vec<f64> {
    let channels = running.mean.len();
    check(x, channels);
    let mut y = vec![0.0; x.len()];
    for c in 0..channels {
        let (mean, rstd) = (running.mean[c], rstd(running.var[c], eps));
        let (gamma, beta) = (parameter(gamma, c, channels, 1.0), parameter(beta, c, channels, 0.0));
        for i in (c..x.len()).step_by(channels) {
            let x_hat = (x[i] - mean) * rstd;
            y[i] = gamma * x_hat + beta;
        }
    }
    y
}

/// Backward pass in training; `batch` is what the forward pass returned.
///
/// # Shapes
/// `x`, `dy`: `[n, c]`, `gamma`: `[c]`.
///
/// # Panics
/// If a length does not fit the number of channels.
pub fn backward(x: &[f64], dy: &[f64], gamma: Option<&[f64]>, batch: &Moments, eps: f64) -> Gradients {
    let channels = batch.mean.len();
    let mut g = backward_frozen(x, dy, gamma, batch, eps);
    for c in 0..channels {
        let (mean, rstd) = (batch.mean[c], rstd(batch.var[c], eps));
        let gamma = parameter(gamma, c, channels, 1.0);
        let count = (x.len() / channels) as f64;
        for i in (c..x.len()).step_by(channels) {
            let x_hat = (x[i] - mean) * rstd;
            g.dx[i] = gamma * rstd * (dy[i] - g.dbeta[c] / count - x_hat * g.dgamma[c] / count);
        }
    }
    g
}

/// Backward pass when the statistics are constants, as in evaluation.
///
/// # Shapes
/// `x`, `dy`: `[n, c]`, `gamma`: `[c]`.
///
/// # Panics
/// If a length does not fit the number of channels.
pub fn backward_frozen(x: &[f64], dy: &[f64], gamma: Option<&[f64]>, running: &Moments, eps: f64) -> Gradients {
    let channels = running.mean.len();
    check(x, channels);
    assert_eq!(x.len(), dy.len(), "batchnorm: x has {} elements, dy has {}", x.len(), dy.len());
    let mut g = Gradients { dx: vec![0.0; x.len()], dgamma: vec![0.0; channels], dbeta: vec![0.0; channels] };
    for c in 0..channels {
        let (mean, rstd) = (running.mean[c], rstd(running.var[c], eps));
        let gamma = parameter(gamma, c, channels, 1.0);
        let (mut dgamma, mut dbeta) = (Sum::default(), Sum::default());
        for i in (c..x.len()).step_by(channels) {
            let x_hat = (x[i] - mean) * rstd;
            dgamma.add(dy[i] * x_hat);
            dbeta.add(dy[i]);
            g.dx[i] = gamma * rstd * dy[i];
        }
        (g.dgamma[c], g.dbeta[c]) = (dgamma.value(), dbeta.value());
    }
    g
}

/// Moves running statistics towards those of a batch with `count` values per channel.
///
/// `momentum` is the weight of the new batch, taken as it is; `None` weighs all batches alike, by `1 / batches_seen`, where
/// `batches_seen` counts this one too and so starts at 1 (PyTorch's `num_batches_tracked`). An empty batch changes nothing.
///
/// # Panics
/// If `count` is one, which has no unbiased variance; if `batches_seen` is zero; or if the numbers of channels differ.
pub fn update_running(running: &mut Moments, momentum: Option<f64>, batches_seen: u64, batch: &Moments, count: usize) {
    if count == 0 {
        return;
    }
    assert!(count > 1, "batchnorm: one value per channel has no unbiased variance");
    assert!(batches_seen > 0, "batchnorm: batches_seen counts this batch too");
    let channels = running.mean.len();
    assert_eq!(batch.mean.len(), channels, "batchnorm: running statistics have {channels} channels");
    let weight = momentum.unwrap_or(1.0 / batches_seen as f64);
    let unbiased = count as f64 / (count as f64 - 1.0);
    for c in 0..channels {
        running.mean[c] = (1.0 - weight) * running.mean[c] + weight * batch.mean[c];
        running.var[c] = (1.0 - weight) * running.var[c] + weight * (batch.var[c] * unbiased);
    }
}

/// `1 / sqrt(var + eps)`, or zero for a constant channel without an `eps`.
fn rstd(var: f64, eps: f64) -> f64 {
    if var + eps == 0.0 { 0.0 } else { 1.0 / (var + eps).sqrt() }
}

/// Element `c` of `gamma` or `beta`, or what it is where there is none.
fn parameter(values: Option<&[f64]>, c: usize, channels: usize, absent: f64) -> f64 {
    values.map_or(absent, |values| {
        assert_eq!(values.len(), channels, "batchnorm: {} parameters for {channels} channels", values.len());
        values[c]
    })
}

fn check(x: &[f64], channels: usize) {
    let whole_rows = if channels == 0 { x.is_empty() } else { x.len().is_multiple_of(channels) };
    assert!(whole_rows, "batchnorm: x has {} elements, not rows of {channels}", x.len());
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Channel 0 is 1, 3; channel 1 is 10, 10. With eps = 3 channel 0 has rstd 1/2.
    const X: [f64; 4] = [1.0, 10.0, 3.0, 10.0];

    #[test]
    fn training_worked_by_hand() {
        let (y, batch) = forward(&X, 2, Some(&[2.0, 5.0]), Some(&[1.0, -1.0]), 3.0);
        assert_eq!(batch, Moments { mean: vec![2.0, 10.0], var: vec![1.0, 0.0] });
        assert_eq!(y, [0.0, -1.0, 2.0, -1.0]);
        // Channel 0: x_hat = -1/2, 1/2 and dy = 1, 3, so dbeta = 4 and dgamma = 1;
        // dx = 2 * 1/2 * (dy - 2 - x_hat / 2) = 1 - 2 + 1/4, 3 - 2 - 1/4.
        let g = backward(&X, &[1.0, 0.0, 3.0, 0.0], Some(&[2.0, 5.0]), &batch, 3.0);
        assert_eq!(g.dx, [-0.75, 0.0, 0.75, 0.0]);
        assert_eq!((g.dgamma, g.dbeta), (vec![1.0, 0.0], vec![4.0, 0.0]));
    }

    #[test]
    fn evaluation_worked_by_hand() {
        let running = Moments { mean: vec![0.0, 9.0], var: vec![1.0, 13.0] };
        assert_eq!(infer(&X, None, None, &running, 3.0), [0.5, 0.25, 1.5, 0.25]);
        let g = backward_frozen(&X, &[1.0, 0.0, 3.0, 4.0], Some(&[2.0, 1.0]), &running, 3.0);
        assert_eq!(g.dx, [1.0, 0.0, 3.0, 1.0]);
        assert_eq!((g.dgamma, g.dbeta), (vec![5.0, 1.0], vec![4.0, 4.0]));
    }

    #[test]
    fn running_statistics_worked_by_hand() {
        let start = Moments { mean: vec![0.0], var: vec![1.0] };
        let batch = Moments { mean: vec![2.0], var: vec![3.0] }; // of 4 values: unbiased variance 4
        let mut running = start.clone();
        update_running(&mut running, Some(0.25), 1, &batch, 4);
        assert_eq!(running, Moments { mean: vec![0.5], var: vec![1.75] });

        // The first cumulative update forgets the starting values, the second takes the mean of two.
        update_running(&mut running, None, 1, &batch, 4);
        assert_eq!(running, Moments { mean: vec![2.0], var: vec![4.0] });
        update_running(&mut running, None, 2, &Moments { mean: vec![4.0], var: vec![6.0] }, 4);
        assert_eq!(running, Moments { mean: vec![3.0], var: vec![6.0] });

        running = start.clone();
        update_running(&mut running, None, 0, &batch, 0);
        assert_eq!(running, start);
    }

    #[test]
    fn constant_channels_are_exact() {
        for value in [0.1, 1e7 + 3.0, -1e300, 5e-324, f64::MAX] {
            let x = [value; 7];
            let (y, batch) = forward(&x, 1, Some(&[3.0]), Some(&[0.7]), 1e-5);
            assert_eq!(batch, Moments { mean: vec![value], var: vec![0.0] });
            assert_eq!(y, [0.7; 7]);
            assert_eq!(infer(&x, None, None, &batch, 0.0), [0.0; 7], "no eps: rstd is zero, not infinite");
        }
    }

    #[test]
    fn a_large_mean_and_an_outlier_in_front_cost_no_digits() {
        let m = moments(&[1e9 + 1.0, 1e9 + 2.0, 1e9 + 3.0, 1e9 + 4.0], 1);
        assert_eq!((m.mean[0], m.var[0]), (1e9 + 2.5, 1.25));
        // Of x = 2^53, 1, 1, 1 the mean is 2^51 + 3/4, where f64 steps by 1/2, and the variance 3/16 (2^53 - 1)^2.
        let big = 2_f64.powi(53);
        let m = moments(&[big, 1.0, 1.0, 1.0], 1);
        assert!((m.mean[0] - 2_f64.powi(51) - 0.75).abs() <= 0.25);
        let var = 3.0 / 16.0 * (big - 1.0) * (big - 1.0);
        assert!((m.var[0] - var).abs() <= 4.0 * f64::EPSILON * var);
    }

    #[test]
    fn values_whose_squares_overflow() {
        let m = moments(&[1e153, -1e153], 1);
        assert_eq!(m.mean[0], 0.0);
        assert!((m.var[0] - 1e306).abs() <= 4.0 * f64::EPSILON * 1e306);
        let m = moments(&[f64::MAX, f64::MAX, -f64::MAX, -f64::MAX], 1);
        assert_eq!((m.mean[0], m.var[0]), (0.0, f64::INFINITY));
    }

    #[test]
    fn what_is_not_finite_stays_in_its_channel() {
        for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let x = [1.0, bad, 3.0, 10.0];
            let (y, batch) = forward(&x, 2, None, None, 3.0);
            let g = backward(&x, &[1.0; 4], None, &batch, 3.0);
            for channel_1 in [y[1], y[3], batch.mean[1], batch.var[1], g.dx[1], g.dx[3], g.dgamma[1]] {
                assert!(channel_1.is_nan());
            }
            assert_eq!((y[0], y[2], batch.mean[0], batch.var[0]), (-0.5, 0.5, 2.0, 1.0));
            assert_eq!((g.dx[0], g.dx[2], g.dgamma[0]), (0.0, 0.0, 0.0));
        }
    }

    #[test]
    fn no_rows_and_no_channels() {
        let (y, batch) = forward(&[], 2, None, None, 1e-5);
        let g = backward(&[], &[], None, &batch, 1e-5);
        assert!(y.is_empty() && g.dx.is_empty());
        assert_eq!((g.dgamma, g.dbeta), (vec![0.0; 2], vec![0.0; 2]));
        let (y, batch) = forward(&[], 0, Some(&[]), None, 1e-5);
        assert!(y.is_empty() && batch.mean.is_empty());
        assert!(backward(&[], &[], None, &batch, 1e-5).dx.is_empty());
    }
}
