//! Mean and variance per channel: sums of a leaf about a shift, merged.

use super::saved::{Moments, rstd};
use super::shape::{Grid, Leaf, Planes, Reach};
use super::sums::{self, Deviations, Same};
use super::{ABREAST, BatchNorm, Saved, TILE};
use crate::parallel::{self, BlocksMut, Cost};
use crate::simd::{Element, Isa, Kernel, Lanes, Rows};

/// Rows of scratch for each leaf of a grid: shift, sums, and work space.
pub(super) const ROWS_OF_LEAF: usize = 1 + sums::ROWS_OF_SUMS;

/// A shift is moved where the square of its distance from the leaf's mean is more than this many times the leaf's variance.
const FAR: f64 = 7.0;

/// Whether squares about a shift are mostly the distance from the mean, so that taking it out would lose digits.
#[inline(always)]
fn is_far(count: f64, sum: f64, squares: f64) -> bool {
    sum * sum > FAR / (FAR + 1.0) * count * squares
}

/// Saves the statistics of each channel of a grid. `scratch`: [`ROWS_OF_LEAF`] rows for each leaf.
pub(super) fn by_rows<T: Element>(norm: &BatchNorm<'_, T>, x: &[T], grid: Grid, saved: &mut [T], scratch: &mut [T]) {
    let isa = Isa::current();
    let (leaves, slot) = (grid.leaves(), ROWS_OF_LEAF * grid.cols);
    let partial = &mut scratch[..leaves * slot];
    let cost = Cost { flops: 3 * x.len(), bytes: size_of_val(x) };
    parallel::for_each_backwards(leaves, cost, BlocksMut { data: &mut *partial, block: slot }, |i, partial| {
        let leaf = grid.leaf(i);
        isa.run(LeafMoments { x: &x[leaf.start..], grid, leaf, channels: norm.channels, partial: partial.data });
    });
    if isa.run(Merge { norm, grid, partial, saved: &mut *saved }) {
        return;
    }
    for channel in 0..norm.channels {
        if Saved::new(saved, norm.channels).var(channel).is_nan() {
            let values = || grid.values_of(x, channel).map(T::to_f64);
            norm.save(channel, repair(values, norm.eps), saved);
        }
    }
}

/// Merges the leaves of each channel, and saves what follows. Returns whether no squares overflowed; the variance of a channel where they
/// did is NaN.
struct Merge<'a, 'b, T> {
    norm: &'a BatchNorm<'b, T>,
    grid: Grid,
    partial: &'a [T],
    saved: &'a mut [T],
}

impl<T: Element> Kernel<T> for Merge<'_, '_, T> {
    type Output = bool;

    #[inline(always)]
    fn run<V: Lanes<Elem = T>>(self) -> bool {
        let Merge { norm, grid, partial, saved } = self;
        let mut all_finite = true;
        for first in (0..norm.channels).step_by(ABREAST) {
            let channels = (first, ABREAST.min(norm.channels - first));
            all_finite &= if grid.is_abreast(channels.1) {
                merge_abreast::<T, true>(norm, grid, partial, saved, (first, ABREAST))
            } else {
                merge_abreast::<T, false>(norm, grid, partial, saved, channels)
            };
        }
        all_finite
    }
}

/// [`Merge`] for some channels: their first, and how many.
#[inline(always)]
fn merge_abreast<T: Element, const IS_ABREAST: bool>(
    norm: &BatchNorm<'_, T>,
    grid: Grid,
    partial: &[T],
    saved: &mut [T],
    channels: (usize, usize),
) -> bool {
    let slot = |i: usize| (grid.leaf(i), &partial[i * ROWS_OF_LEAF * grid.cols..]);
    let shifts = |slot| grid.first_column::<T, IS_ABREAST>(slot, channels);
    let sums = |row| grid.all_columns::<T, IS_ABREAST>(row, channels);
    // About the first leaf's shift: a large mean rounds, and would swamp the differences.
    let base = shifts(slot(0).1);
    let (mut count, mut sum) = (0.0, [0.0; ABREAST]);
    for i in 0..grid.leaves() {
        let (leaf, slot) = slot(i);
        let n = grid.values(leaf) as f64;
        let shift = shifts(slot);
        let leaf_sum = sums(&slot[leaf.cols..][..leaf.cols]);
        count += n;
        for k in 0..ABREAST {
            sum[k] += n * (shift[k] - base[k]) + leaf_sum[k];
        }
    }
    let mut mean = [0.0; ABREAST];
    for k in 0..ABREAST {
        mean[k] = sum[k] / count;
    }
    // A leaf's squares about the mean: sum (d - delta)^2 = squares + delta (n delta - 2 sum), delta the mean less the shift.
    let mut squares = [0.0; ABREAST];
    for i in 0..grid.leaves() {
        let (leaf, slot) = slot(i);
        let n = grid.values(leaf) as f64;
        let shift = shifts(slot);
        let leaf_sum = sums(&slot[leaf.cols..][..leaf.cols]);
        let leaf_squares = sums(&slot[2 * leaf.cols..][..leaf.cols]);
        for k in 0..ABREAST {
            let delta = mean[k] - (shift[k] - base[k]);
            squares[k] += leaf_squares[k] + delta * (n * delta - 2.0 * leaf_sum[k]);
        }
    }
    let mut moments = [Moments { mean: 0.0, var: 0.0, rstd: 0.0 }; ABREAST];
    let mut all_finite = true;
    for k in 0..ABREAST {
        let is_finite = squares[k].is_finite();
        let var = if is_finite { squares[k].max(0.0) / count } else { f64::NAN };
        moments[k] = Moments { mean: base[k] + mean[k], var, rstd: rstd(var, norm.eps) };
        all_finite &= is_finite || k >= channels.1;
    }
    norm.save_abreast(channels, &moments, saved);
    all_finite
}

/// The moments of one channel of planes, of which `x` begins with the first. `parts`: [`PARTS_OF_LEAF`] for each leaf.
pub(super) fn of_channel<T: Element>(isa: Isa, x: &[T], planes: Planes, eps: f64, parts: &mut [T]) -> Moments {
    let (count, leaves) = (planes.shape.count(), planes.leaf_count());
    let cost = Cost { flops: 3 * count, bytes: count * size_of::<T>() };
    parallel::for_each(leaves, cost, BlocksMut { data: &mut *parts, block: PARTS_OF_LEAF }, |i, part| {
        let runs = planes.runs(i);
        let (x, shape, reach) = (runs.of(planes.channel(x)), (runs.count, runs.len), planes.reach);
        isa.run(RunMoments { x, shape, reach, part: part.data });
    });
    let parts = (0..leaves).zip(parts.chunks_exact(PARTS_OF_LEAF)).map(|(i, part)| {
        let runs = planes.runs(i);
        Part {
            count: (runs.count * runs.len) as f64,
            shift: part[0].to_f64(),
            sum: T::join((part[1], part[2])),
            squares: T::join((part[3], part[4])),
        }
    });
    let (n, l) = (planes.shape.n, planes.shape.l);
    let values = || (0..n).flat_map(|i| &x[i * planes.stride()..][..l]).map(|x| x.to_f64());
    merge(parts, eps).unwrap_or_else(|| repair(values, eps))
}

/// Shift, sum and sum of squares of a leaf of planes.
struct RunMoments<'a, T> {
    x: Rows<'a, T>,
    shape: (usize, usize),
    reach: Reach,
    part: &'a mut [T],
}

impl<T: Element> Kernel<T> for RunMoments<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<V: Lanes<Elem = T>>(self) {
        let (shift, sum, squares) = of_runs::<V>(self.x, self.shape, self.reach);
        let ((sum, sum_low), (squares, squares_low)) = (T::split(sum), T::split(squares));
        self.part.copy_from_slice(&[shift, sum, sum_low, squares, squares_low]);
    }
}

/// Numbers kept of a leaf of planes: the shift, and both sums in two parts.
pub(super) const PARTS_OF_LEAF: usize = 5;

/// Shift, sum and sum of squares of a leaf.
#[inline(always)]
fn of_runs<V: Lanes>(x: Rows<'_, V::Elem>, shape: (usize, usize), reach: Reach) -> (V::Elem, f64, f64) {
    let n = (shape.0 * shape.1) as f64;
    // The mean of the first values: a power of two of equal ones add up and are divided exactly.
    let first = x.slice(0, 0, TILE);
    let mut sums = [V::Elem::ZERO; TILE];
    sums.copy_from_slice(first);
    let mut width = TILE;
    while width > 1 {
        width /= 2;
        for i in 0..width {
            sums[i] = sums[2 * i] + sums[2 * i + 1];
        }
    }
    let mut shift = sums[0] * V::Elem::from_f64(1.0 / TILE as f64);
    let mut found = sums::along::<V, _>(Deviations { x, shift: Same(shift) }, shape, reach);
    if is_far(n, found.0, found.1) {
        shift = V::Elem::from_f64(shift.to_f64() + found.0 / n);
        found = sums::along::<V, _>(Deviations { x, shift: Same(shift) }, shape, reach);
    }
    (shift, found.0, found.1)
}

/// Count, and sums of deviations from a shift and of their squares, of a part of a channel.
#[derive(Clone, Copy)]
struct Part {
    count: f64,
    shift: f64,
    sum: f64,
    squares: f64,
}

/// The moments of all parts together, as [`Merge`] has them; none if the squares overflowed.
#[inline(always)]
fn merge(parts: impl Iterator<Item = Part> + Clone, eps: f64) -> Option<Moments> {
    let base = parts.clone().next().map_or(0.0, |part| part.shift);
    let (mut count, mut sum) = (0.0, 0.0);
    for part in parts.clone() {
        count += part.count;
        sum += part.count * (part.shift - base) + part.sum;
    }
    let mean = sum / count;
    let mut squares = 0.0;
    for part in parts {
        let delta = mean - (part.shift - base);
        squares += part.squares + delta * (part.count * delta - 2.0 * part.sum);
    }
    if !squares.is_finite() {
        return None;
    }
    let var = if squares > 0.0 { squares / count } else { 0.0 };
    Some(Moments { mean: base + mean, var, rstd: rstd(var, eps) })
}

/// Moments of one leaf of a grid: [`ROWS_OF_LEAF`] rows of its columns, shift, sum and sum of squares, and work space.
struct LeafMoments<'a, T> {
    x: &'a [T],
    grid: Grid,
    leaf: Leaf,
    channels: usize,
    partial: &'a mut [T],
}

impl<T: Element> Kernel<T> for LeafMoments<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<V: Lanes<Elem = T>>(self) {
        let LeafMoments { grid, leaf: Leaf { rows, cols, .. }, channels, .. } = self;
        let x = Rows::new(self.x, rows, cols, cols);
        let (shift, sums) = self.partial[..ROWS_OF_LEAF * cols].split_at_mut(cols);
        first_mean::<V>(x, rows, shift);
        if !grid.is_plain() {
            // All columns of a channel take the same shift.
            for channel in 0..channels {
                let columns = grid.columns_of(channel, cols);
                let sum: f64 = columns.clone().map(|j| shift[j].to_f64()).sum();
                let mean = T::from_f64(sum / columns.clone().count() as f64);
                for j in columns {
                    shift[j] = mean;
                }
            }
        }
        sums::down::<V, _>(Deviations { x, shift: &*shift }, (rows, cols), sums, grid.reach);
        if moves(grid, self.leaf, channels, shift, sums) {
            sums::down::<V, _>(Deviations { x, shift: &*shift }, (rows, cols), sums, grid.reach);
        }
    }
}

/// Moves the shifts that are far from their leaf's mean; returns whether there were any. `sums`: of the deviations, and of their squares.
#[inline(always)]
fn moves<T: Element>(grid: Grid, leaf: Leaf, channels: usize, shift: &mut [T], sums: &[T]) -> bool {
    let mut any = false;
    for first in (0..channels).step_by(ABREAST) {
        let channels = (first, ABREAST.min(channels - first));
        any |= if grid.is_abreast(channels.1) {
            moves_abreast::<T, true>(grid, leaf, shift, sums, (first, ABREAST))
        } else {
            moves_abreast::<T, false>(grid, leaf, shift, sums, channels)
        };
    }
    any
}

/// [`moves`] for some channels: their first, and how many.
#[inline(always)]
fn moves_abreast<T: Element, const IS_ABREAST: bool>(
    grid: Grid,
    leaf: Leaf,
    shift: &mut [T],
    sums: &[T],
    channels: (usize, usize),
) -> bool {
    let (count, cols) = (grid.values(leaf) as f64, leaf.cols);
    let sum = grid.all_columns::<T, IS_ABREAST>(&sums[..cols], channels);
    let squares = grid.all_columns::<T, IS_ABREAST>(&sums[cols..][..cols], channels);
    let mut any = false;
    for k in 0..ABREAST {
        any |= is_far(count, sum[k], squares[k]);
    }
    if any {
        for k in 0..channels.1 {
            if is_far(count, sum[k], squares[k]) {
                for j in grid.columns_of(channels.0 + k, cols) {
                    shift[j] = T::from_f64(shift[j].to_f64() + sum[k] / count);
                }
            }
        }
    }
    any
}

/// The mean of each column's first tile, or its first value where there is no tile: of equal values it is exact.
#[inline(always)]
fn first_mean<V: Lanes>(x: Rows<'_, V::Elem>, rows: usize, mean: &mut [V::Elem]) {
    let cols = mean.len();
    for j in (0..cols).step_by(V::WIDTH) {
        let len = V::WIDTH.min(cols - j);
        let mut first = V::load_up_to(x.slice(0, j, len));
        if rows >= TILE {
            // No closure: it would not be compiled for these lanes.
            let mut sums = [V::zero(); TILE];
            for i in 0..TILE {
                sums[i] = V::load_up_to(x.slice(i, j, len));
            }
            let mut width = TILE;
            while width > 1 {
                width /= 2;
                for i in 0..width {
                    sums[i] = sums[2 * i] + sums[2 * i + 1];
                }
            }
            first = sums[0] * V::splat(V::Elem::from_f64(1.0 / TILE as f64));
        }
        first.store_up_to(&mut mean[j..][..len]);
    }
}

/// Moments of a channel whose squares overflowed: again in f64, scaled by a power of two so that they do not.
#[cold]
fn repair<I: Iterator<Item = f64>>(values: impl Fn() -> I, eps: f64) -> Moments {
    let mut largest = 0.0f64;
    for v in values() {
        if !v.is_finite() {
            return Moments { mean: f64::NAN, var: f64::NAN, rstd: f64::NAN };
        }
        largest = largest.max(v.abs());
    }
    // 2^-520 brings the largest f64 below 2^504; its square times any count stays finite, and spread below 2^-520 of it is lost
    // to rounding anyway. f32 data need no scale.
    let scale = if largest > 1e150 { f64::from_bits((1023 - 520) << 52) } else { 1.0 };
    // Welford's recurrence.
    let (mut count, mut mean, mut squares) = (0.0, 0.0, 0.0);
    for v in values() {
        count += 1.0;
        let delta = v * scale - mean;
        mean += delta / count;
        squares += delta * (v * scale - mean);
    }
    let scaled_var = squares / count;
    // sqrt(var + eps) with var = scaled_var / scale^2.
    let rstd = rstd(scaled_var, eps * scale * scale) * scale;
    Moments { mean: mean / scale, var: scaled_var / scale / scale, rstd }
}
