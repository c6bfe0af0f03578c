//! What a forward pass saves of each channel, and how it is read again.

use super::shape::{narrow, widen};
use super::sums::{PerColumn, PerPlane};
use super::{ABREAST, BatchNorm, saved_len};
use crate::simd::{CellsMut, Element, Kernel, Lanes, Rows, RowsMut};

/// Numbers saved of a channel.
pub(super) const ROWS_OF_SAVED: usize = 8;
/// The row of the variances.
pub(super) const ROW_OF_VAR: usize = 6;

/// What a forward pass leaves for the backward pass, a row of `[c]` each: a reading glass over a slice of [`saved_len`].
#[derive(Clone, Copy, Debug)]
pub struct Saved<'a, T> {
    /// Mean in two parts, a, b, rstd in two parts, variance in two parts.
    rows: [&'a [T]; ROWS_OF_SAVED],
}

impl<'a, T: Element> Saved<'a, T> {
    /// Over a slice that a forward pass filled.
    ///
    /// # Panics
    /// If the slice does not have [`saved_len`] elements.
    pub fn new(saved: &'a [T], channels: usize) -> Self {
        assert_eq!(saved.len(), saved_len(channels), "batchnorm: saved for {channels} channels");
        let mut rows: [&[T]; ROWS_OF_SAVED] = [&[]; ROWS_OF_SAVED];
        if channels > 0 {
            for (row, part) in rows.iter_mut().zip(saved.chunks_exact(channels)) {
                *row = part;
            }
        }
        Saved { rows }
    }

    pub(super) fn constants(&self) -> Constants<&'a [T]> {
        Constants { mean: self.rows[0], a: self.rows[2], b: self.rows[3] }
    }

    /// Number of channels.
    pub(super) fn channels(&self) -> usize {
        self.rows[0].len()
    }

    /// What the mean in the element type leaves of it.
    pub(super) fn mean_lo(&self) -> &'a [T] {
        self.rows[1]
    }

    /// 1 / sqrt(var + eps) in two parts.
    pub(super) fn rstd_parts(&self) -> [&'a [T]; 2] {
        [self.rows[4], self.rows[5]]
    }

    /// Over some channels' part.
    pub(super) fn of(part: Rows<'a, T>) -> Self {
        Saved { rows: std::array::from_fn(|row| part.slice(row, 0, part.cols())) }
    }

    /// That of some channels.
    pub(super) fn part(&self, first: usize, len: usize) -> Self {
        Saved { rows: self.rows.map(|row| &row[first..][..len]) }
    }

    /// Mean of a channel.
    ///
    /// # Panics
    /// If there is no such channel.
    pub fn mean(&self, channel: usize) -> f64 {
        T::join((self.rows[0][channel], self.rows[1][channel]))
    }

    /// `1 / sqrt(var + eps)` of a channel.
    ///
    /// # Panics
    /// If there is no such channel.
    pub fn rstd(&self, channel: usize) -> f64 {
        let [high, low] = self.rstd_parts();
        T::join((high[channel], low[channel]))
    }

    /// Biased variance of a channel; infinite where it does not fit the element type.
    ///
    /// # Panics
    /// If there is no such channel.
    pub fn var(&self, channel: usize) -> f64 {
        T::join((self.rows[ROW_OF_VAR][channel], self.rows[ROW_OF_VAR + 1][channel]))
    }
}

/// mean_hi, a and b: rows of numbers for channels or columns, vectors of them, or one for all.
#[derive(Clone, Copy)]
pub(super) struct Constants<P> {
    pub(super) mean: P,
    pub(super) a: P,
    pub(super) b: P,
}

impl<P: Copy> Constants<P> {
    #[inline(always)]
    pub(super) fn at<V: Lanes>(self, j: usize, len: usize) -> Constants<V>
    where
        P: PerColumn<V>,
    {
        Constants { mean: self.mean.at(j, len), a: self.a.at(j, len), b: self.b.at(j, len) }
    }
}

impl<'a, T: Copy> Constants<&'a [T]> {
    /// Those of the last `count` columns.
    pub(super) fn last(self, count: usize) -> Self {
        let last = |row: &'a [T]| &row[row.len() - count..];
        Constants { mean: last(self.mean), a: last(self.a), b: last(self.b) }
    }

    /// Those of the first `count` columns. A kernel takes them so that the compiler knows how many there are.
    #[inline(always)]
    pub(super) fn upto(self, count: usize) -> Self {
        Constants { mean: &self.mean[..count], a: &self.a[..count], b: &self.b[..count] }
    }

    /// Those of some channels.
    pub(super) fn part(self, first: usize, len: usize) -> Self {
        let part = |row: &'a [T]| &row[first..][..len];
        Constants { mean: part(self.mean), a: part(self.a), b: part(self.b) }
    }

    /// Those of channels whose columns lie `pitch` apart.
    #[inline(always)]
    pub(super) fn per_plane(self, pitch: usize) -> Constants<PerPlane<'a, T>> {
        let of = |numbers| PerPlane { numbers, pitch };
        Constants { mean: of(self.mean), a: of(self.a), b: of(self.b) }
    }
}

/// Moments of one channel: its mean, biased variance and reciprocal standard deviation.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moments {
    pub(super) mean: f64,
    pub(super) var: f64,
    pub(super) rstd: f64,
}

/// What is saved of some channels: a row for each number, so that channels are computed side by side.
#[inline(always)]
fn constants<T: Element, const N: usize>(
    moments: &[Moments; N],
    gamma: [f64; N],
    beta: [f64; N],
) -> [[T; N]; ROWS_OF_SAVED] {
    let split = |of: fn(&Moments) -> f64| {
        let (mut high, mut low) = ([T::ZERO; N], [T::ZERO; N]);
        for k in 0..N {
            (high[k], low[k]) = T::split(of(&moments[k]));
        }
        (high, low)
    };
    let (mean_hi, mean_lo) = split(|moments| moments.mean);
    let (mut a, mut b) = ([T::ZERO; N], [T::ZERO; N]);
    for k in 0..N {
        a[k] = T::from_f64(gamma[k] * moments[k].rstd);
    }
    for k in 0..N {
        b[k] = T::from_f64(beta[k] - a[k].to_f64() * mean_lo[k].to_f64());
    }
    let (rstd_hi, rstd_lo) = split(|moments| moments.rstd);
    let (var_hi, var_lo) = split(|moments| moments.var);
    [mean_hi, mean_lo, a, b, rstd_hi, rstd_lo, var_hi, var_lo]
}

/// 1 / sqrt(var + eps), and 0 where that sum is 0 (a channel without spread and without eps).
#[inline(always)]
pub(super) fn rstd(var: f64, eps: f64) -> f64 {
    let sum = var + eps;
    // Computed in any case, so that several are computed side by side.
    let rstd = 1.0 / sum.sqrt();
    if sum == 0.0 { 0.0 } else { rstd }
}

impl<'a, T: Element> BatchNorm<'a, T> {
    /// That of some channels.
    pub(super) fn part(&self, first: usize, len: usize) -> Self {
        let part = |row: &'a [T]| &row[first..][..len];
        BatchNorm { channels: len, gamma: self.gamma.map(part), beta: self.beta.map(part), ..*self }
    }

    pub(super) fn save(&self, channel: usize, moments: Moments, saved: &mut CellsMut<'_, T>) {
        let gamma = self.gamma.map_or(1.0, |gamma| gamma[channel].to_f64());
        let beta = self.beta.map_or(0.0, |beta| beta[channel].to_f64());
        for (row, [value]) in constants(&[moments], [gamma], [beta]).into_iter().enumerate() {
            *saved.at(row, channel) = value;
        }
    }

    /// The same for some channels: their first, and how many.
    #[inline(always)]
    pub(super) fn save_abreast(
        &self,
        (first, len): (usize, usize),
        moments: &[Moments; ABREAST],
        saved: &mut RowsMut<'_, T>,
    ) {
        let of = |numbers: Option<&[T]>, absent| numbers.map_or([absent; ABREAST], |row| widen(row, first, len));
        let (gamma, beta) = (of(self.gamma, 1.0), of(self.beta, 0.0));
        for (i, row) in constants(moments, gamma, beta).iter().enumerate() {
            narrow(row, saved.slice(i, first, len), 0, len);
        }
    }

    /// Saves given statistics of some channels: their first, and how many.
    #[inline(always)]
    fn save_given(&self, channels: (usize, usize), mean: &[T], var: &[T], saved: &mut RowsMut<'_, T>) {
        let (mean, var) = (widen(mean, channels.0, channels.1), widen(var, channels.0, channels.1));
        let mut moments = [Moments { mean: 0.0, var: 0.0, rstd: 0.0 }; ABREAST];
        for k in 0..ABREAST {
            moments[k] = Moments { mean: mean[k], var: var[k], rstd: rstd(var[k], self.eps) };
        }
        self.save_abreast(channels, &moments, saved);
    }
}

/// Saves given statistics.
pub(super) struct SaveGiven<'a, 'b, T> {
    pub(super) norm: &'a BatchNorm<'b, T>,
    pub(super) mean: &'a [T],
    pub(super) var: &'a [T],
    pub(super) saved: &'a mut [T],
}

impl<T: Element> Kernel<T> for SaveGiven<'_, '_, T> {
    type Output = ();

    #[inline(always)]
    fn run<V: Lanes<Elem = T>>(self) {
        let SaveGiven { norm, mean, var, saved } = self;
        if norm.channels == 0 {
            return;
        }
        let saved = &mut RowsMut::new(saved, ROWS_OF_SAVED, norm.channels, norm.channels);
        for first in (0..norm.channels).step_by(ABREAST) {
            // The usual number by its name, so that it is compiled for it.
            match norm.channels - first {
                ABREAST.. => norm.save_given((first, ABREAST), mean, var, saved),
                less => norm.save_given((first, less), mean, var, saved),
            }
        }
    }
}
