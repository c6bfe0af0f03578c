//! Batch normalisation over `[n, c, l]`, with optional ReLU: `y = act(gamma (x - mean) / sqrt(var + eps) + beta)` per channel.
//!
//! One shape covers every layout: `[n, c]` and images with channels innermost (NHWC) have l = 1 and a row for each pixel, images with
//! whole planes (NCHW) have l = h w. A channel has m = n l values.
//!
//! Arguments are checked here. What follows is in `pass`: `statistics` and `apply` forward; `backward`, with `gradient` for an element.
//! They are made of `sums`, which read, and of `map`, which writes. `shape` is how a tensor is walked through, `saved` what stays of a
//! channel.
//!
//! # Forward
//!
//! Per channel, over its m values: mean and biased variance, then `rstd = 1 / sqrt(var + eps)` and `z = gamma x_hat + beta`
//! with `x_hat = (x - mean) rstd`. The mean is kept in two parts, `mean = mean_hi + mean_lo` with mean_hi in the element type;
//! with `a = gamma rstd` and `b = beta - a mean_lo` an element costs one subtraction and one multiply-add:
//!
//! ```text
//! z = fma(x - mean_hi, a, b)      y = z, or z where z > 0 (NaN kept) and +0 elsewhere
//! ```
//!
//! # Lanes
//!
//! With l below 32 the lanes keep to columns of a matrix whose rows are images, or several images where one does not fill the lanes
//! and there are many; a channel is then several columns. With a longer l they walk along the planes of one channel after the other,
//! for a few neighbouring channels at a time: those are dealt with from their statistics to their output before the next are.
//!
//! # Statistics
//!
//! A channel's values are cut into leaves, at boundaries that depend on the shape alone: of 1024 rows, or of at most 32 KiB of
//! planes. In each leaf:
//!
//! 1. A shift `K` near the leaf's mean: the mean of its first values (in the first 16 rows of all of the channel's columns, or the
//!    first 16 of a plane).
//! 2. In one pass, with `d = x - K`, both `s = sum d` and `q = sum d^2`: by rows in chains of 16 terms, at most 8 chains, and as many of
//!    those; by planes in chains of 16 steps along a run, as many of those as it has, and of so many images that these make some 34.
//! 3. If `s^2 / n` is more than 7/8 of q, the shift is more than sqrt(7) standard deviations away from the mean: the leaf is done
//!    again with `K + s / n`. As the mean of 16 of the values, K is that far off for steps and slopes only.
//!
//! The leaves are merged in f64, with their counts n, relative to the first one's K: first the mean, as `sum (n K + s) / m`; then,
//! with `delta = mean - K`, the squares about it, `sum (q + delta (n delta - 2 s))`. That is Chan's formula without its divisions.
//!
//! Each value is read once, nothing is divided per element, and the error does not grow with m, but for one rounding of f64 for each leaf. Why one pass is enough: with
//! `kappa^2 = q / (q - s^2 / n) <= 8` the subtraction loses three bits at most, a quarter of one as a rule (K is then within a quarter
//! of a standard deviation of the mean). Two passes over registers, as one might do without a good shift, cost 4 operations an
//! element in place of 3. A constant channel has `d = 0` throughout: variance 0 and mean exact, hence `y = beta` bit for bit. Where a
//! channel's sum of squares is not finite although its values are, the squares overflowed: that channel alone is done again in
//! f64, scaled by a power of two.
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
//! | `x`, `y`, `dy`, `dx` | `[n, c, l]`, row-major |
//! | `gamma`, `beta`, `dgamma`, `dbeta`, running statistics | `[c]` |
//! | `saved` | [`saved_len`]: per channel what [`Saved`] names |
//! | `scratch` | [`scratch_len`] elements, contents irrelevant |
//!
//! # Numerics
//!
//! f64 where it is done once per leaf or channel, the element type else. With u the unit roundoff and sigma the standard deviation:
//! `|var error| <= 32 u var + 4 u^2 mean^2`, `|mean error| <= 8 u sigma + 2^-47 |mean|` (a mean is kept in two parts of the element
//! type). The chains alone allow 34 u in q, and kappa^2 times that in the variance; errors found are below a tenth of it. NaN or
//! infinity in a channel makes that channel NaN and leaves the others' bits alone. The same bits for any number of threads and on
//! every fused instruction set. A constant channel is exact (where beta is -0, y is +0). A channel that was done again in f64 has the
//! error of Welford's recurrence there, about `n 2^-53 kappa` relative, kappa that of its data. A distance
//! from the mean that is larger than the type's largest number makes y infinite. The backward pass has no such second try: its sums overflow
//! where `dy (x - mean)` over 1024 rows does.
//!
//! # Cost
//!
//! With V the bytes of one tensor: forward 2V read and 1V written, backward 4V read and 1V written; fewer where a block stays in
//! the cache. Statistics take 3 operations an element, the backward sums 5 with ReLU. Scratch is below a twenty-fifth of V where a channel
//! of planes has a leaf's values and more, and below 2V for a single image of the shortest.
//!
//! Of planes some neighbouring channels are dealt with together: 16 KiB of each image in order, or where tensors are in memory, what
//! stays in a second cache. Planes of 7 x 7 took less than half of the time that they took channel by channel, and those of 14 x 14 four
//! fifths. By columns, as rows are, planes of 4 x 4 took less than half as long as along them, those of 5 x 5 a third to two thirds, and
//! those of 8 x 8 about twice as long: their images are then often a multiple of 4 KiB apart, and 16 of them at once share too few sets of
//! a cache.
//!
//! Rows that are wide or far are read four at a time, others in tiles of 16: fewer places at once; sums go over the leaves
//! backwards, so that what a pass reads last is near when the next one begins with it.
//!
//! An output is written past the caches where a tensor is more than a quarter of the last one: it would be gone before it is read again,
//! and its lines need not be read to be written; rows that are no whole lines are not. From an eighth on, what lies ahead is asked for,
//! because runs and rows end sooner than a processor foresees. Neither changes a bit. Tensors of 6 to 50 MB gained in every layout, and
//! smaller ones lost, where the last cache has 32 MiB.
//!
//! # References
//!
//! Ioffe and Szegedy, arXiv 1502.03167; Chan, Golub and LeVeque, The American Statistician 37 (1983), equation 2.1, and on the shifted
//! one-pass form; Schubert and Gertz, SSDBM 2018, for the blocked and merged form.

mod apply;
mod backward;
mod gradient;
mod map;
mod pass;
mod saved;
mod shape;
mod statistics;
mod sums;

#[cfg(test)]
mod tests;

use crate::error::{Error, Result};
use crate::kernels::Activation;
use crate::simd::{Element, Isa};

pub use saved::Saved;

use backward::Flow;
use pass::{Pass, Run};
use saved::{ROWS_OF_SAVED, SaveGiven};
use shape::{Shape, Walk};

/// Rows in a tile of sums.
const TILE: usize = 16;
/// Rows in one task of a pass that writes rows.
const ROWS: usize = 128;
/// Channels whose constants are computed side by side: as many f64 as the widest vector holds.
const ABREAST: usize = 8;

/// What a batch normalisation is made of, without its statistics.
#[derive(Clone, Copy, Debug)]
pub struct BatchNorm<'a, T> {
    /// Number of channels.
    pub channels: usize,
    /// Neighbouring values of a channel: 1 for `[n, c]` and for images with channels innermost (NHWC), l for `[n, c, l]`, and h w for
    /// images with whole planes (NCHW).
    pub inner: usize,
    /// Scale of each channel; 1 if missing.
    pub gamma: Option<&'a [T]>,
    /// Shift of each channel; 0 if missing.
    pub beta: Option<&'a [T]>,
    /// Added to the variance, inside the root. So small that `gamma / sqrt(eps)` is infinite in the element type (below 1e-76 in f32), it
    /// leaves a channel without spread NaN.
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
    channels.saturating_mul(ROWS_OF_SAVED)
}

/// Elements of scratch that any pass over `n` images of `channels` channels of `inner` values needs; rows of `[n, c]` are images of
/// one value a channel. What suffices for some images suffices for fewer.
pub fn scratch_len<T: Element>(n: usize, channels: usize, inner: usize) -> usize {
    if n == 0 || channels == 0 || inner == 0 {
        return 0;
    }
    if channels.checked_mul(inner).and_then(|image| image.checked_mul(n)).is_none() {
        return usize::MAX;
    }
    match (Shape { n, c: channels, l: inner }).walk::<T>() {
        Walk::Planes(planes) => {
            let of_statistics = statistics::PARTS_OF_LEAF.saturating_mul(planes.leaf_count());
            channels.saturating_mul(of_statistics.max(backward::scratch_of_planes(planes)))
        }
        Walk::Rows(grid) => {
            let of_leaves = grid.cols.saturating_mul(statistics::ROWS_OF_LEAF * grid.most_leaves());
            of_leaves.saturating_add(backward::scratch_of_columns(grid.cols, channels))
        }
    }
}

impl<T: Element> BatchNorm<'_, T> {
    /// Panics unless the slices have the lengths that a pass over `x` needs; returns its shape, and whether it has elements.
    fn check(&self, pass: &str, x: usize, y: usize, saved: usize, scratch: usize) -> (Shape, bool) {
        let (c, l) = (self.channels, self.inner);
        let image = c.checked_mul(l).unwrap_or_else(|| panic!("{pass}: {c} channels of {l} values"));
        assert_eq!(x, y, "{pass}: x has {x} elements, its counterpart {y}");
        assert!(
            if image == 0 { x == 0 } else { x.is_multiple_of(image) },
            "{pass}: {x} elements in images of {c} x {l}"
        );
        assert_eq!(saved, saved_len(c), "{pass}: saved for {c} channels");
        for (name, part) in [("gamma", self.gamma), ("beta", self.beta)] {
            let len = part.map_or(c, <[T]>::len);
            assert!(len == c, "{pass}: {name} has {len} elements for {c} channels");
        }
        let n = x.checked_div(image).unwrap_or(0);
        let needed = scratch_len::<T>(n, c, l);
        assert!(scratch >= needed, "{pass}: {scratch} elements of scratch, {needed} needed");
        (Shape { n, c, l }, x > 0)
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
/// See the [module](self). For no values nothing is written but `saved`, which is zeroed.
///
/// # Errors
/// [`Error::OneValuePerChannel`] for one value a channel; an eps that is not finite and above 0. Nothing is written then.
///
/// # Panics
/// If lengths disagree.
///
/// # Examples
/// ```
/// use evenkeel::kernels::{Activation, batchnorm};
/// let norm =
///     batchnorm::BatchNorm { channels: 1, inner: 1, gamma: None, beta: None, eps: 1e-12, activation: Activation::Relu };
/// let mut saved = vec![0.0f64; batchnorm::saved_len(1)];
/// let mut scratch = vec![0.0; batchnorm::scratch_len::<f64>(2, 1, 1)];
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
    let (shape, has_values) = norm.check("batchnorm", x.len(), y.len(), saved.len(), scratch.len());
    norm.check_eps("above 0", norm.eps > 0.0)?;
    if !has_values {
        saved.fill(T::ZERO);
        return Ok(());
    }
    if shape.count() == 1 {
        return Err(Error::OneValuePerChannel { channels: norm.channels });
    }
    T::call::<Run>(Pass::Forward { norm: *norm, shape, x, y, saved, scratch });
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
    statistics: (&[T], &[T]),
    y: &mut [T],
    saved: &mut [T],
    scratch: &mut [T],
) -> Result<()> {
    frozen(norm, Some(x), statistics, y, saved, scratch)
}

/// [`forward_frozen`] with the result over the input: the same bits.
///
/// # Errors
/// As there.
///
/// # Panics
/// If lengths disagree.
pub fn forward_frozen_in_place<T: Element>(
    norm: &BatchNorm<'_, T>,
    data: &mut [T],
    statistics: (&[T], &[T]),
    saved: &mut [T],
    scratch: &mut [T],
) -> Result<()> {
    frozen(norm, None, statistics, data, saved, scratch)
}

fn frozen<T: Element>(
    norm: &BatchNorm<'_, T>,
    x: Option<&[T]>,
    (mean, var): (&[T], &[T]),
    y: &mut [T],
    saved: &mut [T],
    scratch: &mut [T],
) -> Result<()> {
    let inputs = x.map_or(y.len(), <[T]>::len);
    let (shape, has_values) = norm.check("batchnorm", inputs, y.len(), saved.len(), scratch.len());
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
    Isa::current().run(SaveGiven { norm, mean, var, saved: &mut *saved });
    if has_values {
        T::call::<Run>(Pass::Frozen { norm: *norm, shape, x, y, saved, scratch });
    }
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
    let Gradients { dx, dgamma, dbeta } = gradients;
    let written = dx.as_ref().map_or(x.len(), |dx| dx.len());
    assert_eq!(written, x.len(), "batchnorm backward: dx has not the elements of x");
    gradients_of(norm, statistics, x, Flow::Apart { dy, dx }, saved, (dgamma, dbeta), scratch);
}

/// [`backward`] with the gradient of x over the upstream gradient: `dy` becomes dx, the same bits.
///
/// # Panics
/// If lengths disagree.
pub fn backward_in_place<T: Element>(
    norm: &BatchNorm<'_, T>,
    statistics: Statistics,
    x: &[T],
    dy: &mut [T],
    saved: &[T],
    parameters: (Option<&mut [T]>, Option<&mut [T]>),
    scratch: &mut [T],
) {
    gradients_of(norm, statistics, x, Flow::InPlace(dy), saved, parameters, scratch);
}

fn gradients_of<T: Element>(
    norm: &BatchNorm<'_, T>,
    statistics: Statistics,
    x: &[T],
    flow: Flow<'_, T>,
    saved: &[T],
    (dgamma, dbeta): (Option<&mut [T]>, Option<&mut [T]>),
    scratch: &mut [T],
) {
    let (c, pass) = (norm.channels, "batchnorm backward");
    let (shape, has_values) = norm.check(pass, x.len(), flow.dy().len(), saved.len(), scratch.len());
    for part in [&dgamma, &dbeta] {
        let len = part.as_ref().map_or(c, |p| p.len());
        assert!(len == c, "{pass}: a parameter gradient has {len} elements for {c} channels");
    }
    if has_values {
        let parameters = (dgamma, dbeta);
        T::call::<Run>(Pass::Backward { norm: *norm, shape, statistics, x, flow, saved, parameters, scratch });
    }
}

/// Moves running statistics towards the batch's: `running = (1 - momentum) running + momentum batch`, with the unbiased variance.
///
/// `momentum` is the weight of this batch: a constant, or `1 / batches seen` for the cumulative average. A batch of fewer than two
/// values changes nothing. `offset` is what the values had been without: a bias, say, that the normalisation cancels.
///
/// # Shapes
/// `saved` as [`forward`] over `n` values of each channel left it; `offset`, `running_mean`, `running_var`: `[c]`.
///
/// # Panics
/// If lengths disagree.
pub fn update_running<T: Element>(
    saved: &[T],
    offset: Option<&[T]>,
    n: usize,
    momentum: f64,
    (running_mean, running_var): (&mut [T], &mut [T]),
) {
    let c = running_mean.len();
    assert_eq!(running_var.len(), c, "batchnorm: {c} running means, {} running variances", running_var.len());
    let offsets = offset.map_or(c, <[T]>::len);
    assert!(offsets == c, "batchnorm: {c} running means, {offsets} offsets");
    let saved = Saved::new(saved, c);
    if n < 2 {
        return;
    }
    let unbias = n as f64 / (n - 1) as f64;
    for channel in 0..c {
        let blend = |old: T, new: f64| T::from_f64((1.0 - momentum) * old.to_f64() + momentum * new);
        let offset = offset.map_or(0.0, |offset| offset[channel].to_f64());
        running_mean[channel] = blend(running_mean[channel], saved.mean(channel) + offset);
        running_var[channel] = blend(running_var[channel], saved.var(channel) * unbias);
    }
}
