//! Mean and variance per channel: sums of a leaf about a shift, merged.

use super::saved::{Moments, ROW_OF_VAR, ROWS_OF_SAVED, rstd};
use super::shape::{Grid, Group, Leaf, Leaves, Planes, Reach, Runs, groups, narrow, widen};
use super::sums::{self, Deviations, PerPlane};
use super::{ABREAST, BatchNorm, Saved, TILE};
use crate::parallel::{self, BlocksMut, Cost};
use crate::simd::{CellsMut, Element, Isa, Kernel, Lanes, Rows, RowsMut};

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
    let leaves = Leaves::OfGrid(grid, partial);
    let rows = (ROWS_OF_SAVED, norm.channels);
    if isa.run(Merge { norm, leaves, saved: RowsMut::new(saved, rows.0, rows.1, rows.1) }) {
        return;
    }
    for channel in 0..norm.channels {
        if Saved::new(saved, norm.channels).var(channel).is_nan() {
            let values = || grid.values_of(x, channel).map(T::to_f64);
            let mut saved = CellsMut::new(saved, rows, (rows.1, 1));
            norm.save(channel, repair(values, norm.eps), &mut saved);
        }
    }
}

/// Merges the leaves of each channel, and saves what follows. Returns whether no squares overflowed; the variance of a channel where they
/// did is NaN.
struct Merge<'a, 'b, T> {
    norm: &'a BatchNorm<'b, T>,
    /// Of a grid [`ROWS_OF_LEAF`] rows for each, of planes [`PARTS_OF_LEAF`] numbers.
    leaves: Leaves<'a, T>,
    saved: RowsMut<'a, T>,
}

/// Of some channels in a leaf: how many values each has, the shift, and the sums of the deviations from it and of their squares.
struct Part {
    count: f64,
    shift: [f64; ABREAST],
    sum: [f64; ABREAST],
    squares: [f64; ABREAST],
}

impl<T: Element> Leaves<'_, T> {
    /// Leaf `i` of some channels: their first, and how many. Squares are zero unless they are wanted: the compiler does not see that
    /// several columns are added up for nothing.
    #[inline(always)]
    fn part<const IS_ABREAST: bool, const SQUARES: bool>(self, i: usize, all: usize, channels: (usize, usize)) -> Part {
        match self {
            Leaves::OfGrid(grid, partial) => {
                let (leaf, slot) = (grid.leaf(i), &partial[i * ROWS_OF_LEAF * grid.cols..]);
                let row = |row: usize| &slot[row * leaf.cols..][..leaf.cols];
                Part {
                    count: grid.values(leaf) as f64,
                    shift: grid.first_column::<T, IS_ABREAST>(row(0), channels),
                    sum: grid.all_columns::<T, IS_ABREAST>(row(1), channels),
                    squares: if SQUARES { grid.all_columns::<T, IS_ABREAST>(row(2), channels) } else { [0.0; ABREAST] },
                }
            }
            Leaves::OfPlanes(planes, partial) => {
                let slot = &partial[i * all * PARTS_OF_LEAF..];
                let len = if IS_ABREAST { ABREAST } else { channels.1 };
                let row = |row: usize| widen(&slot[row * all..][..all], channels.0, len);
                let join = |high: [f64; ABREAST], low: [f64; ABREAST]| {
                    let mut both = high;
                    for k in 0..ABREAST {
                        both[k] += low[k];
                    }
                    both
                };
                Part {
                    count: planes.runs(i, all).values() as f64,
                    shift: row(0),
                    sum: join(row(1), row(2)),
                    squares: if SQUARES { join(row(3), row(4)) } else { [0.0; ABREAST] },
                }
            }
        }
    }
}

impl<T: Element> Kernel<T> for Merge<'_, '_, T> {
    type Output = bool;

    #[inline(always)]
    fn run<V: Lanes<Elem = T>>(self) -> bool {
        let Merge { norm, leaves, mut saved } = self;
        let mut all_finite = true;
        // What is done twice is saved twice, the same.
        for Group { first, len, .. } in groups(norm.channels, leaves.are_abreast(ABREAST)) {
            all_finite &= if leaves.are_abreast(len) {
                merge_abreast::<T, true>(norm, leaves, &mut saved, (first, ABREAST))
            } else {
                merge_abreast::<T, false>(norm, leaves, &mut saved, (first, len))
            };
        }
        all_finite
    }
}

/// [`Merge`] for some channels: their first, and how many.
#[inline(always)]
fn merge_abreast<T: Element, const IS_ABREAST: bool>(
    norm: &BatchNorm<'_, T>,
    leaves: Leaves<'_, T>,
    saved: &mut RowsMut<'_, T>,
    channels: (usize, usize),
) -> bool {
    // About the first leaf's shift: a large mean rounds, and would swamp the differences.
    let base = leaves.part::<IS_ABREAST, false>(0, norm.channels, channels).shift;
    let (mut count, mut sum) = (0.0, [0.0; ABREAST]);
    for i in 0..leaves.count() {
        let part = leaves.part::<IS_ABREAST, false>(i, norm.channels, channels);
        count += part.count;
        for k in 0..ABREAST {
            sum[k] += part.count * (part.shift[k] - base[k]) + part.sum[k];
        }
    }
    let mut mean = [0.0; ABREAST];
    for k in 0..ABREAST {
        mean[k] = sum[k] / count;
    }
    // A leaf's squares about the mean: sum (d - delta)^2 = squares + delta (n delta - 2 sum), delta the mean less the shift.
    let mut squares = [0.0; ABREAST];
    for i in 0..leaves.count() {
        let part = leaves.part::<IS_ABREAST, true>(i, norm.channels, channels);
        for k in 0..ABREAST {
            let delta = mean[k] - (part.shift[k] - base[k]);
            squares[k] += part.squares[k] + delta * (part.count * delta - 2.0 * part.sum[k]);
        }
    }
    let (mut var, mut rstds) = ([0.0; ABREAST], [0.0; ABREAST]);
    let mut all_finite = true;
    for k in 0..ABREAST {
        let is_finite = squares[k].is_finite();
        let quotient = squares[k].max(0.0) / count;
        var[k] = if is_finite { quotient } else { f64::NAN };
        all_finite &= is_finite || k >= channels.1;
    }
    for k in 0..ABREAST {
        rstds[k] = rstd(var[k], norm.eps);
    }
    let moments = std::array::from_fn(|k| Moments { mean: base[k] + mean[k], var: var[k], rstd: rstds[k] });
    norm.save_abreast(channels, &moments, saved);
    all_finite
}

/// Saves the statistics of some channels of planes, of which `x` begins with the first value. `scratch`: [`PARTS_OF_LEAF`] for each channel
/// of each leaf.
pub(super) fn of_planes<T: Element>(
    isa: Isa,
    norm: &BatchNorm<'_, T>,
    x: &[T],
    planes: Planes,
    saved: &mut CellsMut<'_, T>,
    scratch: &mut [T],
) {
    let (c, l) = (norm.channels, planes.shape.l);
    let values = planes.shape.count() * c;
    let cost = Cost { flops: 3 * values, bytes: values * size_of::<T>() };
    let (leaves, slot) = (planes.leaf_count(), c * PARTS_OF_LEAF);
    let partial = &mut scratch[..leaves * slot];
    parallel::for_each(leaves, cost, BlocksMut { data: &mut *partial, block: slot }, |i, partial| {
        let x = planes.rows(x, c);
        isa.run(RunMoments { x, runs: planes.runs(i, c), reach: planes.reach, partial: partial.data });
    });
    let leaves = Leaves::OfPlanes(planes, partial);
    let rows = saved.block((0, ROWS_OF_SAVED), (0, c)).into_rows();
    if isa.run(Merge { norm, leaves, saved: rows }) {
        return;
    }
    for channel in 0..c {
        if saved.at(ROW_OF_VAR, channel).to_f64().is_nan() {
            let values = || planes.values_of(&x[channel * l..]).map(T::to_f64);
            norm.save(channel, repair(values, norm.eps), saved);
        }
    }
}

/// Numbers kept of a channel in a leaf of planes: the shift, both sums in two parts, and their lanes.
pub(super) const PARTS_OF_LEAF: usize = 5 + 2 * sums::MOST_LANES;

/// [`PARTS_OF_LEAF`] numbers of each channel in a leaf of planes, the shifts of all channels first.
struct RunMoments<'a, T> {
    /// All images of the channels.
    x: Rows<'a, T>,
    runs: Runs,
    reach: Reach,
    partial: &'a mut [T],
}

impl<T: Element> Kernel<T> for RunMoments<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<V: Lanes<Elem = T>>(self) {
        let RunMoments { x, runs, reach, partial } = self;
        let (c, n, pitch) = (runs.channels, runs.values() as f64, runs.pitch);
        let (parts, lanes) = partial.split_at_mut(5 * c);
        let (shift, parts) = parts.split_at_mut(c);
        let lanes = &mut lanes[..2 * c * sums::lanes_of_sum::<T>()];
        let block = runs.of(x);
        for (channel, shift) in shift.iter_mut().enumerate() {
            *shift = mean_of_first(block.slice(0, channel * pitch, TILE.min(runs.len)));
        }
        sums::along::<V, _>(Deviations { x: block, shift: PerPlane { numbers: &*shift, pitch } }, runs, lanes, reach);
        for channel in 0..c {
            let lanes = &mut lanes[2 * channel * sums::lanes_of_sum::<T>()..][..2 * sums::lanes_of_sum::<T>()];
            let mut found = sums::total(lanes);
            if is_far(n, found.0, found.1) {
                let shift = &mut shift[channel..][..1];
                shift[0] = T::from_f64(shift[0].to_f64() + found.0 / n);
                let one = runs.channel(channel);
                let moved = Deviations { x: one.of(x), shift: PerPlane { numbers: &*shift, pitch } };
                sums::along::<V, _>(moved, one, lanes, reach);
                found = sums::total(lanes);
            }
            sums::keep(found, parts, (channel, c));
        }
    }
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
            // All columns of a channel take the same shift; where sums will be, there is room for one of each.
            let shifts = &mut sums[..channels];
            let columns = (cols / channels) as f64;
            for group in groups(channels, grid.is_abreast(ABREAST)) {
                if grid.is_abreast(group.len) {
                    mean_of_columns::<T, true>(grid, shift, columns, (group.first, ABREAST), shifts);
                } else {
                    mean_of_columns::<T, false>(grid, shift, columns, (group.first, group.len), shifts);
                }
            }
            grid.fill(shifts, shift);
        }
        sums::down::<V, _>(Deviations { x, shift: &*shift }, (rows, cols), sums, grid.reach);
        if moves(grid, self.leaf, channels, shift, sums) {
            sums::down::<V, _>(Deviations { x, shift: &*shift }, (rows, cols), sums, grid.reach);
        }
    }
}

/// The mean of a row over the `columns` columns of some channels: their first, and how many.
#[inline(always)]
fn mean_of_columns<T: Element, const IS_ABREAST: bool>(
    grid: Grid,
    row: &[T],
    columns: f64,
    (first, len): (usize, usize),
    means: &mut [T],
) {
    let sums = grid.all_columns::<T, IS_ABREAST>(row, (first, len));
    let mut found = [T::ZERO; ABREAST];
    for k in 0..ABREAST {
        found[k] = T::from_f64(sums[k] / columns);
    }
    narrow(&found, means, first, len);
}

/// Moves the shifts that are far from their leaf's mean; returns whether there were any. `sums`: of the deviations, and of their squares.
#[inline(always)]
fn moves<T: Element>(grid: Grid, leaf: Leaf, channels: usize, shift: &mut [T], sums: &[T]) -> bool {
    let mut any = false;
    for group in groups(channels, grid.is_abreast(ABREAST)) {
        any |= if grid.is_abreast(group.len) {
            moves_abreast::<T, true>(grid, leaf, shift, sums, Group { len: ABREAST, ..group })
        } else {
            moves_abreast::<T, false>(grid, leaf, shift, sums, group)
        };
    }
    any
}

/// [`moves`] for some channels.
#[inline(always)]
fn moves_abreast<T: Element, const IS_ABREAST: bool>(
    grid: Grid,
    leaf: Leaf,
    shift: &mut [T],
    sums: &[T],
    Group { first, len, done }: Group,
) -> bool {
    let (count, cols, channels) = (grid.values(leaf) as f64, leaf.cols, (first, len));
    let sum = grid.all_columns::<T, IS_ABREAST>(&sums[..cols], channels);
    let squares = grid.all_columns::<T, IS_ABREAST>(&sums[cols..][..cols], channels);
    let mut any = false;
    for k in 0..ABREAST {
        any |= is_far(count, sum[k], squares[k]);
    }
    if any {
        // Once each.
        for k in done..len {
            if is_far(count, sum[k], squares[k]) {
                for j in grid.columns_of(first + k, cols) {
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

/// The mean of the first of some values, at most a tile: a power of two of equal ones add up and are divided exactly.
#[inline(always)]
fn mean_of_first<T: Element>(values: &[T]) -> T {
    let count = 1 << values.len().min(TILE).ilog2();
    let mut sums = [T::ZERO; TILE];
    sums[..count].copy_from_slice(&values[..count]);
    let mut width = count;
    while width > 1 {
        width /= 2;
        for i in 0..width {
            sums[i] = sums[2 * i] + sums[2 * i + 1];
        }
    }
    sums[0] * T::from_f64(1.0 / count as f64)
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
