//! Batch normalisation over `[n, c]`, with optional ReLU: `y = act(gamma (x - mean) / sqrt(var + eps) + beta)` per channel.
//!
//! # Forward
//!
//! Per channel, over its m = n values: mean and biased variance, then `rstd = 1 / sqrt(var + eps)` and `z = gamma x_hat + beta`
//! with `x_hat = (x - mean) rstd`. The mean is kept in two parts, `mean = mean_hi + mean_lo` with mean_hi in the element type;
//! with `a = gamma rstd` and `b = beta - a mean_lo` an element costs one subtraction and one multiply-add:
//!
//! ```text
//! z = fma(x - mean_hi, a, b)      y = z, or z where z > 0 (NaN kept) and +0 elsewhere
//! ```
//!
//! # Statistics
//!
//! Rows are cut into leaves of 1024, those into tiles of 16; the boundaries depend on the shape alone.
//!
//! 1. `K`, the mean of the leaf's first tile, is subtracted from all its values: `w = x - K`.
//! 2. A tile is two passes over registers: `mu = sum(w) / 16` (a tree of adjacent pairs; the division is exact), then
//!    `q = sum (w - mu)^2` in four chains.
//! 3. Tiles of equal count n are merged pairwise, by a binary counter, with Chan's formula, whose weights are then powers of
//!    two: `mu = mu_a + (mu_b - mu_a)/2`, `q = q_a + q_b + (mu_b - mu_a)^2 n/2`.
//! 4. What is left at the end of a leaf (the counter's levels, largest first, and the last `n mod 16` values as one short
//!    tile) is merged in f64 by the general formula, and so are the leaves, in order, pairwise, their means relative to the first.
//!
//! Each value is read once, nothing is divided per element, and the error does not grow with n. A constant channel has `w = 0`
//! throughout: variance 0 and mean exact, hence `y = beta` bit for bit. Where a channel's sum of squares is not finite although
//! its values are, the squares overflowed: that channel alone is done again in f64, scaled by a power of two.
//!
//! # Backward
//!
//! L depends on x through x_hat, mean and var. With `dz = dy [z > 0]` under ReLU and `dz = dy` without:
//!
//! ```text
//! dL/dxhat = gamma dz
//! dL/dvar  = sum(gamma dz (x - mean)) (-1/2) rstd^3
//! dL/dmean = -rstd sum(gamma dz)                              (the path through var adds sum(-2 (x - mean)) / m = 0)
//! dx = gamma dz rstd + dL/dvar 2 (x - mean) / m + dL/dmean / m
//!    = gamma rstd (dz - B/m - x_hat rstd D/m)                 with B = sum dz, D = sum dz (x - mean)
//! dbeta = B,  dgamma = rstd D
//! ```
//!
//! Pass 1 sums B and `D' = sum dz t`, `t = x - mean_hi`; `D = D' - mean_lo B` in f64. Pass 2 is, with `k = gamma rstd^3 D / m` and
//! `shift = k mean_lo - a B / m`,
//!
//! ```text
//! dx = fma(a, dz, fma(-k, t, shift))
//! ```
//!
//! Where k leaves the normal range of the type (very large or very small data) the lane computes `a ((dz - B') - (t rstd) G)`
//! with `G = rstd D / m` and `B' = B/m - mean_lo rstd G` instead. The mask is recomputed from x with the forward's own constants,
//! bit for bit: neither mask nor output is saved. With frozen statistics the paths through mean and var vanish: `dx = a dz`.
//!
//! # Arguments
//!
//! | argument | shape |
//! |---|---|
//! | `x`, `y`, `dy`, `dx` | `[n, c]`, row-major |
//! | `gamma`, `beta`, `dgamma`, `dbeta`, running statistics | `[c]` |
//! | `saved` | [`saved_len`]: per channel what [`Saved`] names |
//! | `scratch` | [`scratch_len`] elements, contents irrelevant |
//!
//! # Numerics
//!
//! f64 where it is done once per leaf or channel, the element type else. With u the unit roundoff and sigma the standard
//! deviation: `|var error| <= 32 u var + 4 u^2 mean^2`, `|mean error| <= 8 u sigma + 2^-47 |mean|` (a mean is kept in two parts of
//! the element type). NaN or infinity in a channel makes that channel NaN and leaves the others' bits alone. The same bits for any
//! number of threads and on every fused instruction set. A constant channel is exact. A channel that was done again in f64 has
//! the error of Welford's recurrence there, about `n 2^-53` relative. The backward pass has no such second try: its sums
//! overflow where `dy (x - mean)` over 1024 rows does.
//!
//! # Cost
//!
//! With V the bytes of one tensor: forward 2V read and 1V written, backward 4V read and 1V written; fewer where a block stays in
//! the cache. Statistics take 4 operations an element.
//!
//! # References
//!
//! Ioffe and Szegedy, arXiv 1502.03167; Chan, Golub and LeVeque, The American Statistician 37 (1983), equation 2.1; Schubert and
//! Gertz, SSDBM 2018, for the blocked and merged form.

mod apply;
mod gradient;
mod statistics;

use crate::error::{Error, Result};
use crate::kernels::Activation;
use crate::simd::Element;

pub(crate) use crate::kernels::reduce::LEAF;

/// Rows in one task of a pass that writes rows.
const ROWS: usize = 128;

/// What a batch normalisation is made of, without its statistics.
#[derive(Clone, Copy, Debug)]
pub struct BatchNorm<'a, T> {
    /// Number of channels.
    pub channels: usize,
    /// Scale of each channel; 1 if missing.
    pub gamma: Option<&'a [T]>,
    /// Shift of each channel; 0 if missing.
    pub beta: Option<&'a [T]>,
    /// Added to the variance, inside the root.
    pub eps: f64,
    /// What follows.
    pub activation: Activation,
}

/// Which statistics a forward pass used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Statistics {
    /// The batch's own: they depend on x, and the gradient flows through them.
    Batch,
    /// Given ones: constants.
    Frozen,
}

/// What a backward pass returns; parameter gradients are added to, the input gradient is overwritten.
#[derive(Debug, Default)]
pub struct Gradients<'a, T> {
    /// Gradient of x.
    pub dx: Option<&'a mut [T]>,
    /// Gradient of gamma.
    pub dgamma: Option<&'a mut [T]>,
    /// Gradient of beta.
    pub dbeta: Option<&'a mut [T]>,
}

/// Elements that a forward pass saves for the backward pass.
pub fn saved_len(channels: usize) -> usize {
    channels.saturating_mul(8)
}

/// Elements of scratch that any pass over `n` rows needs.
pub fn scratch_len(n: usize, channels: usize) -> usize {
    // Statistics keep 4 rows of c for each leaf; the backward pass 2 for each leaf, and 3 of constants.
    channels.saturating_mul((4 * n.div_ceil(LEAF)).max(5))
}

/// What a forward pass leaves for the backward pass, a row of `[c]` each: a reading glass over a slice of [`saved_len`].
#[derive(Clone, Copy, Debug)]
pub struct Saved<'a, T> {
    rows: [&'a [T]; 8],
}

impl<'a, T: Element> Saved<'a, T> {
    /// Over a slice that a forward pass filled.
    ///
    /// # Panics
    /// If the slice does not have [`saved_len`] elements.
    pub fn new(saved: &'a [T], channels: usize) -> Self {
        assert_eq!(saved.len(), saved_len(channels), "batchnorm: saved for {channels} channels");
        let mut rows: [&[T]; 8] = [&[]; 8];
        if channels > 0 {
            for (row, part) in rows.iter_mut().zip(saved.chunks_exact(channels)) {
                *row = part;
            }
        }
        Saved { rows }
    }

    fn mean_hi(&self) -> &'a [T] {
        self.rows[0]
    }

    fn mean_lo(&self) -> &'a [T] {
        self.rows[1]
    }

    fn a(&self) -> &'a [T] {
        self.rows[2]
    }

    fn b(&self) -> &'a [T] {
        self.rows[3]
    }

    /// Mean of a channel.
    pub fn mean(&self, channel: usize) -> f64 {
        T::join((self.rows[0][channel], self.rows[1][channel]))
    }

    /// `1 / sqrt(var + eps)` of a channel.
    pub fn rstd(&self, channel: usize) -> f64 {
        T::join((self.rows[4][channel], self.rows[5][channel]))
    }

    /// Biased variance of a channel; infinite where it does not fit the element type.
    pub fn var(&self, channel: usize) -> f64 {
        T::join((self.rows[6][channel], self.rows[7][channel]))
    }
}

/// Moments of one channel: its mean, biased variance and reciprocal standard deviation.
#[derive(Clone, Copy, Debug)]
struct Moments {
    mean: f64,
    var: f64,
    rstd: f64,
}

/// 1 / sqrt(var + eps), and 0 where that sum is 0 (a channel without spread and without eps).
fn rstd(var: f64, eps: f64) -> f64 {
    let sum = var + eps;
    if sum == 0.0 { 0.0 } else { 1.0 / sum.sqrt() }
}

impl<T: Element> BatchNorm<'_, T> {
    fn gamma(&self, channel: usize) -> f64 {
        self.gamma.map_or(1.0, |gamma| gamma[channel].to_f64())
    }

    fn beta(&self, channel: usize) -> f64 {
        self.beta.map_or(0.0, |beta| beta[channel].to_f64())
    }

    /// Writes one channel's constants.
    fn save(&self, channel: usize, moments: Moments, saved: &mut [T]) {
        let c = self.channels;
        let (mean_hi, mean_lo) = T::split(moments.mean);
        let a = T::from_f64(self.gamma(channel) * moments.rstd);
        let b = T::from_f64(self.beta(channel) - a.to_f64() * mean_lo.to_f64());
        let (rstd_hi, rstd_lo) = T::split(moments.rstd);
        let (var_hi, var_lo) = T::split(moments.var);
        for (row, value) in [mean_hi, mean_lo, a, b, rstd_hi, rstd_lo, var_hi, var_lo].into_iter().enumerate() {
            saved[row * c + channel] = value;
        }
    }

    /// Panics unless the slices have the lengths that a pass over `x` needs; returns the number of rows.
    fn check_lengths(&self, pass: &str, x: usize, y: usize, saved: usize) -> usize {
        let c = self.channels;
        assert_eq!(x, y, "{pass}: x has {x} elements, its counterpart {y}");
        assert!(if c == 0 { x == 0 } else { x.is_multiple_of(c) }, "{pass}: {x} elements in rows of {c}");
        assert_eq!(saved, saved_len(c), "{pass}: saved for {c} channels");
        for (name, part) in [("gamma", self.gamma), ("beta", self.beta)] {
            assert!(part.is_none_or(|p| p.len() == c), "{pass}: {name} has not {c} elements");
        }
        x.checked_div(c).unwrap_or(0)
    }

    fn check_eps(&self, least: &str, ok: bool) -> Result<()> {
        if self.eps.is_finite() && ok {
            return Ok(());
        }
        Err(Error::invalid("batchnorm: eps", self.eps, format!("finite and {least}")))
    }
}

/// Normalises a training batch by its own statistics, and saves what the backward pass needs.
///
/// # Shapes
/// See the [module](self). For no rows nothing is written but `saved`, which is zeroed.
///
/// # Errors
/// [`Error::OneValuePerChannel`] for one row; an eps that is not finite and above 0. Nothing is written then.
///
/// # Panics
/// If lengths disagree.
///
/// # Examples
/// ```
/// use evenkeel::kernels::{Activation, batchnorm};
/// let norm = batchnorm::BatchNorm { channels: 1, gamma: None, beta: None, eps: 1e-12, activation: Activation::Relu };
/// let mut saved = vec![0.0f64; batchnorm::saved_len(1)];
/// let mut scratch = vec![0.0; batchnorm::scratch_len(2, 1)];
/// let mut y = [0.0; 2];
/// batchnorm::forward(&norm, &[3.0, 5.0], &mut y, &mut saved, &mut scratch)?;
/// assert!(y[0] == 0.0 && (y[1] - 1.0).abs() < 1e-11);
/// assert_eq!(batchnorm::Saved::new(&saved, 1).var(0), 1.0);
/// # Ok::<(), evenkeel::Error>(())
/// ```
pub fn forward<T: Element>(
    norm: &BatchNorm<'_, T>,
    x: &[T],
    y: &mut [T],
    saved: &mut [T],
    scratch: &mut [T],
) -> Result<()> {
    let n = norm.check_lengths("batchnorm", x.len(), y.len(), saved.len());
    let needed = scratch_len(n, norm.channels);
    assert!(scratch.len() >= needed, "batchnorm: {} elements of scratch, {needed} needed", scratch.len());
    norm.check_eps("above 0", norm.eps > 0.0)?;
    if n == 1 {
        return Err(Error::OneValuePerChannel { channels: norm.channels });
    }
    if n == 0 {
        saved.fill(T::ZERO);
        return Ok(());
    }
    statistics::moments(x, n, norm.channels, norm.eps, scratch, |channel, moments| {
        norm.save(channel, moments, saved);
    });
    apply::apply(norm, x, y, &Saved::new(saved, norm.channels));
    Ok(())
}

/// Normalises by given statistics, and saves what [`backward`] with [`Statistics::Frozen`] needs.
///
/// # Shapes
/// See the [module](self); `mean`, `var`: `[c]`, the variance biased or not, as the caller means it.
///
/// # Errors
/// An eps that is not finite or below 0; a channel with `var + eps <= 0`. Nothing is written then.
///
/// # Panics
/// If lengths disagree.
pub fn forward_frozen<T: Element>(
    norm: &BatchNorm<'_, T>,
    x: &[T],
    (mean, var): (&[T], &[T]),
    y: &mut [T],
    saved: &mut [T],
) -> Result<()> {
    norm.check_lengths("batchnorm", x.len(), y.len(), saved.len());
    let c = norm.channels;
    assert!(
        mean.len() == c && var.len() == c,
        "batchnorm: {} means, {} variances, {c} channels",
        mean.len(),
        var.len()
    );
    norm.check_eps("at least 0", norm.eps >= 0.0)?;
    for (channel, &var) in var.iter().enumerate() {
        let sum = var.to_f64() + norm.eps;
        if sum <= 0.0 {
            let what = format!("batchnorm: running variance + eps of channel {channel}");
            return Err(Error::invalid(what, sum, "above 0"));
        }
    }
    for channel in 0..c {
        let (mean, var) = (mean[channel].to_f64(), var[channel].to_f64());
        norm.save(channel, Moments { mean, var, rstd: rstd(var, norm.eps) }, saved);
    }
    apply::apply(norm, x, y, &Saved::new(saved, c));
    Ok(())
}

/// Gradients of [`forward`] (or, with [`Statistics::Frozen`], of [`forward_frozen`]) for an upstream gradient `dy`.
///
/// Only what `gradients` asks for is computed; without `dx` the second pass is left out.
///
/// # Shapes
/// See the [module](self). `x` and `saved` are those of the forward pass; gamma may have changed since.
///
/// # Panics
/// If lengths disagree.
pub fn backward<T: Element>(
    norm: &BatchNorm<'_, T>,
    statistics: Statistics,
    x: &[T],
    dy: &[T],
    saved: &[T],
    gradients: Gradients<'_, T>,
    scratch: &mut [T],
) {
    let (c, pass) = (norm.channels, "batchnorm backward");
    let n = norm.check_lengths(pass, x.len(), dy.len(), saved.len());
    let Gradients { dx, dgamma, dbeta } = gradients;
    assert!(dx.as_ref().is_none_or(|dx| dx.len() == x.len()), "{pass}: dx has not the {} elements of x", x.len());
    for part in [&dgamma, &dbeta] {
        assert!(part.as_ref().is_none_or(|p| p.len() == c), "{pass}: a parameter gradient has not {c} elements");
    }
    let needed = scratch_len(n, c);
    assert!(scratch.len() >= needed, "{pass}: {} elements of scratch, {needed} needed", scratch.len());
    if n == 0 {
        return;
    }
    let saved = Saved::new(saved, c);
    let sums_wanted = dgamma.is_some() || dbeta.is_some() || statistics == Statistics::Batch;
    if sums_wanted {
        gradient::sums(norm, x, dy, &saved, scratch);
    }
    let leaves = n.div_ceil(LEAF);
    let sums = |channel: usize, scratch: &[T]| {
        let (mut dz_sum, mut dzt_sum) = (0.0, 0.0);
        for leaf in 0..leaves {
            dz_sum += scratch[2 * leaf * c + channel].to_f64();
            dzt_sum += scratch[(2 * leaf + 1) * c + channel].to_f64();
        }
        (dz_sum, dzt_sum - saved.mean_lo()[channel].to_f64() * dz_sum)
    };
    if let Some(dbeta) = dbeta {
        for (channel, out) in dbeta.iter_mut().enumerate() {
            *out = T::from_f64(out.to_f64() + sums(channel, scratch).0);
        }
    }
    if let Some(dgamma) = dgamma {
        for (channel, out) in dgamma.iter_mut().enumerate() {
            *out = T::from_f64(out.to_f64() + saved.rstd(channel) * sums(channel, scratch).1);
        }
    }
    let Some(dx) = dx else { return };
    match statistics {
        Statistics::Frozen => gradient::input_frozen(norm, x, dy, &saved, dx),
        Statistics::Batch => {
            let (partial, constants) = scratch.split_at_mut(2 * leaves * c);
            for channel in 0..c {
                let (dz_sum, dzt_sum) = sums(channel, partial);
                gradient::save_constants(&saved, channel, n, dz_sum, dzt_sum, c, constants);
            }
            gradient::input(norm, x, dy, &saved, constants, dx);
        }
    }
}

/// Moves running statistics towards the batch's: `running = (1 - momentum) running + momentum batch`, with the unbiased variance.
///
/// `momentum` is the weight of this batch: a constant, or `1 / batches seen` for the cumulative average. A batch of fewer than two
/// rows changes nothing.
///
/// # Shapes
/// `saved` as [`forward`] over `n` rows left it; `running_mean`, `running_var`: `[c]`.
///
/// # Panics
/// If lengths disagree.
pub fn update_running<T: Element>(saved: &[T], n: usize, momentum: f64, running_mean: &mut [T], running_var: &mut [T]) {
    let c = running_mean.len();
    assert_eq!(running_var.len(), c, "batchnorm: {c} running means, {} running variances", running_var.len());
    let saved = Saved::new(saved, c);
    if n < 2 {
        return;
    }
    let unbias = n as f64 / (n - 1) as f64;
    for channel in 0..c {
        let blend = |old: T, new: f64| T::from_f64((1.0 - momentum) * old.to_f64() + momentum * new);
        running_mean[channel] = blend(running_mean[channel], saved.mean(channel));
        running_var[channel] = blend(running_var[channel], saved.var(channel) * unbias);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_rows_by_hand() {
        // Channel 0: 1, 3: mean 2, var 1. Channel 1: constant, so y = beta.
        let norm = BatchNorm {
            channels: 2,
            gamma: Some(&[2.0, 7.0]),
            beta: Some(&[1.0, 0.3]),
            eps: 3.0,
            activation: Activation::Identity,
        };
        let mut y = [0.0f64; 4];
        let mut saved = vec![0.0; saved_len(2)];
        let mut scratch = vec![0.0; scratch_len(2, 2)];
        forward(&norm, &[1.0, 5.5, 3.0, 5.5], &mut y, &mut saved, &mut scratch).unwrap();
        assert_eq!(y, [0.0, 0.3, 2.0, 0.3]);
        let (mut mean, mut var) = ([0.0; 2], [1.0; 2]);
        update_running(&saved, 2, 0.5, &mut mean, &mut var);
        assert_eq!((mean, var), ([1.0, 2.75], [1.5, 0.5]));
    }

    #[test]
    fn one_row_and_bad_eps_are_refused_before_anything_is_written() {
        let mut norm = BatchNorm { channels: 1, gamma: None, beta: None, eps: 1e-5, activation: Activation::Identity };
        let (mut y, mut saved, mut scratch) = ([7.0f32; 1], [7.0; 8], [0.0; 8]);
        assert!(matches!(
            forward(&norm, &[1.0], &mut y, &mut saved, &mut scratch),
            Err(Error::OneValuePerChannel { channels: 1 })
        ));
        norm.eps = f64::NAN;
        assert!(forward(&norm, &[1.0], &mut y, &mut saved, &mut scratch).is_err());
        norm.eps = 0.0;
        assert!(forward_frozen(&norm, &[1.0], (&[0.0], &[0.0]), &mut y, &mut saved).is_err());
        assert!(y[0] == 7.0 && saved == [7.0; 8]);
    }
}
