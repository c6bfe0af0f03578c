//! Mean and variance per channel: leaves of tiles, merged.

use super::{LEAF, Moments, rstd};
use crate::parallel::{self, Blocks, BlocksMut, Cost};
use crate::simd::{Element, Isa, Kernel, Lanes};

/// Rows in a tile.
const TILE: usize = 16;
/// Levels of the binary counter: 2^7 tiles would be more than a leaf.
const LEVELS: usize = (LEAF / TILE).ilog2() as usize + 1;

/// Calls `take` with the moments of each channel of `x`, `[n, c]` with n at least 1. `scratch`: 4 elements per leaf and channel.
pub(super) fn moments<T: Element>(
    x: &[T],
    n: usize,
    c: usize,
    eps: f64,
    scratch: &mut [T],
    mut take: impl FnMut(usize, Moments),
) {
    if c == 0 {
        return;
    }
    let isa = Isa::current();
    let leaves = n.div_ceil(LEAF);
    let partial = &mut scratch[..4 * leaves * c];
    let cost = Cost { flops: 4 * x.len(), bytes: size_of_val(x) };
    let work = (Blocks { data: x, block: LEAF * c }, BlocksMut { data: &mut *partial, block: 4 * c });
    parallel::for_each(leaves, cost, work, |_, (x, partial)| {
        isa.run(Leaf { x: x.data, c, partial: partial.data });
    });
    for channel in 0..c {
        // Relative to about the first leaf's mean: a large mean rounds, and would swamp the differences between leaves.
        let base = partial[channel].to_f64();
        let leaf = |index: usize| {
            let part = &partial[4 * index * c..][..4 * c];
            let row = |row: usize| part[row * c + channel];
            let mean = (row(0).to_f64() - base) + row(1).to_f64();
            Part { count: LEAF.min(n - index * LEAF) as f64, mean, m2: T::join((row(2), row(3))) }
        };
        let total = merge_pairwise(leaves, &leaf);
        let moments = if total.m2.is_finite() {
            let var = total.m2 / n as f64;
            Moments { mean: base + total.mean, var, rstd: rstd(var, eps) }
        } else {
            repair(x, channel, c, eps)
        };
        take(channel, moments);
    }
}

/// Count, mean and sum of squared deviations of a part of a channel.
#[derive(Clone, Copy)]
struct Part {
    count: f64,
    mean: f64,
    m2: f64,
}

impl Part {
    /// Chan, Golub and LeVeque's merge of two parts.
    fn merge(self, other: Part) -> Part {
        let count = self.count + other.count;
        let delta = other.mean - self.mean;
        let share = other.count / count;
        let mean = self.mean + delta * share;
        Part { count, mean, m2: self.m2 + other.m2 + delta * delta * self.count * share }
    }
}

/// Merges the parts 0..count (at least one) in a binary tree that depends on the count alone, equal halves first.
fn merge_pairwise(count: usize, part: &impl Fn(usize) -> Part) -> Part {
    fn range(from: usize, to: usize, part: &impl Fn(usize) -> Part) -> Part {
        if to - from == 1 {
            return part(from);
        }
        // The largest power of two below the length: full subtrees on the left.
        let half = (to - from).next_power_of_two() / 2;
        range(from, from + half, part).merge(range(from + half, to, part))
    }
    range(0, count, part)
}

/// Moments of one leaf: 4 rows of c, the parts of the means and of the sums of squares.
struct Leaf<'a, T> {
    x: &'a [T],
    c: usize,
    partial: &'a mut [T],
}

impl<T: Element> Kernel<T> for Leaf<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<V: Lanes<Elem = T>>(self) {
        let c = self.c;
        for j in (0..c).step_by(V::WIDTH) {
            let width = V::WIDTH.min(c - j);
            let column = Column::<V> { x: &self.x[j..], stride: c, width, rows: self.x.len() / c };
            let mut lanes = [Part { count: 0.0, mean: 0.0, m2: 0.0 }; 16];
            let shift = column.moments(&mut lanes[..width]);
            for (lane, part) in lanes[..width].iter().enumerate() {
                let (mean, m2) = (sum_in_two_parts(shift[lane], part.mean), T::split(part.m2));
                for (row, value) in [mean.0, mean.1, m2.0, m2.1].into_iter().enumerate() {
                    self.partial[row * c + j + lane] = value;
                }
            }
        }
    }
}

/// `a + b` as a sum of two numbers of the type, in f64 too: the second has what rounding the sum loses (Knuth, volume 2, 4.2.2).
#[inline(always)]
fn sum_in_two_parts<T: Element>(a: T, b: f64) -> (T, T) {
    let a = a.to_f64();
    let sum = a + b;
    let b_as_added = sum - a;
    let lost = (a - (sum - b_as_added)) + (b - b_as_added);
    let (high, low) = T::split(sum);
    (high, T::from_f64(low.to_f64() + lost))
}

/// Up to a vector's width of channels of a leaf.
struct Column<'a, V: Lanes> {
    x: &'a [V::Elem],
    stride: usize,
    width: usize,
    rows: usize,
}

impl<V: Lanes> Column<'_, V> {
    #[inline(always)]
    fn row(&self, i: usize) -> V {
        let from = i * self.stride;
        if self.width == V::WIDTH {
            V::load(&self.x[from..])
        } else {
            V::load_partial(&self.x[from..from + self.width])
        }
    }

    /// Sum of 4 rows less `shift`, as a tree.
    #[inline(always)]
    fn quad(&self, i: usize, shift: V) -> V {
        ((self.row(i) - shift) + (self.row(i + 1) - shift)) + ((self.row(i + 2) - shift) + (self.row(i + 3) - shift))
    }

    /// Sum of 16 rows less `shift`, as a tree.
    #[inline(always)]
    fn sum(&self, i: usize, shift: V) -> V {
        let left = self.quad(i, shift) + self.quad(i + 4, shift);
        left + (self.quad(i + 8, shift) + self.quad(i + 12, shift))
    }

    /// Moments of each lane, `parts` having one for each, with means relative to the lane of the shift that is returned.
    #[inline(always)]
    fn moments(&self, parts: &mut [Part]) -> [V::Elem; 16] {
        let sixteenth = V::splat(V::Elem::from_f64(1.0 / TILE as f64));
        let tiles = self.rows / TILE;
        // Means are kept relative to a value from the middle of the data, so that what is squared is small.
        let shift = if tiles > 0 { self.sum(0, V::zero()) * sixteenth } else { self.row(0) };

        // The binary counter: level l holds the moments of 16 * 2^l rows while bit l of the count of tiles is set.
        let mut means = [V::zero(); LEVELS];
        let mut squares = [V::zero(); LEVELS];
        for tile in 0..tiles {
            let first = tile * TILE;
            let mut mean = self.sum(first, shift) * sixteenth;
            let mut chains = [V::zero(); 4];
            for i in (0..TILE).step_by(4) {
                for chain in 0..4 {
                    let d = (self.row(first + i + chain) - shift) - mean;
                    chains[chain] = d.mul_add(d, chains[chain]);
                }
            }
            let mut square = (chains[0] + chains[1]) + (chains[2] + chains[3]);
            let mut half_count = V::Elem::from_f64(TILE as f64 / 2.0);
            let mut level = 0;
            while tile >> level & 1 == 1 {
                let delta = mean - means[level];
                mean = delta.mul_add(V::splat(V::Elem::from_f64(0.5)), means[level]);
                square = (delta * delta).mul_add(V::splat(half_count), squares[level] + square);
                half_count = half_count + half_count;
                level += 1;
            }
            means[level] = mean;
            squares[level] = square;
        }

        let mut started = false;
        for level in (0..LEVELS).rev() {
            if tiles >> level & 1 == 1 {
                let count = (TILE << level) as f64;
                join::<V>(parts, &mut started, count, means[level], squares[level]);
            }
        }
        let rest = self.rows - tiles * TILE;
        if rest > 0 {
            let (mean, square) = self.short_tile(tiles * TILE, rest, shift);
            join::<V>(parts, &mut started, rest as f64, mean, square);
        }
        let mut lanes = [V::Elem::ZERO; 16];
        shift.store(&mut lanes);
        lanes
    }

    /// Mean and sum of squares of fewer than 16 rows, relative to `shift`.
    ///
    /// The division by their number rounds, so the second pass carries Neumaier's correction: with d = w - mean,
    /// sum (w - true mean)^2 = sum d^2 - (sum d)^2 / rows.
    #[inline(always)]
    fn short_tile(&self, first: usize, rows: usize, shift: V) -> (V, V) {
        let share = V::splat(V::Elem::from_f64(1.0 / rows as f64));
        let mut sum = V::zero();
        for i in 0..rows {
            sum = sum + (self.row(first + i) - shift);
        }
        let mean = sum * share;
        let (mut square, mut rest) = (V::zero(), V::zero());
        for i in 0..rows {
            let d = (self.row(first + i) - shift) - mean;
            square = d.mul_add(d, square);
            rest = rest + d;
        }
        let correction = rest * share;
        (mean + correction, square - rest * correction)
    }
}

/// Merges a vector's moments of `count` rows into each lane's part.
#[inline(always)]
fn join<V: Lanes>(parts: &mut [Part], started: &mut bool, count: f64, mean: V, square: V) {
    let (mut means, mut squares) = ([V::Elem::ZERO; 16], [V::Elem::ZERO; 16]);
    mean.store(&mut means);
    square.store(&mut squares);
    for (lane, part) in parts.iter_mut().enumerate() {
        let new = Part { count, mean: means[lane].to_f64(), m2: squares[lane].to_f64() };
        *part = if *started { part.merge(new) } else { new };
    }
    *started = true;
}

/// Moments of a channel whose squares overflowed: again in f64, scaled by a power of two so that they do not.
#[cold]
fn repair<T: Element>(x: &[T], channel: usize, c: usize, eps: f64) -> Moments {
    let values = || x.iter().skip(channel).step_by(c).map(|v| v.to_f64());
    let largest = values().fold(0.0, |best: f64, v| if v.is_nan() { v } else { best.max(v.abs()) });
    if !largest.is_finite() || values().any(|v| !v.is_finite()) {
        return Moments { mean: f64::NAN, var: f64::NAN, rstd: f64::NAN };
    }
    // 2^-520 brings the largest f64 below 2^504; its square times any count stays finite, and spread below 2^-520 of it is lost
    // to rounding anyway. f32 data need no scale.
    let scale = if largest > 1e150 { f64::from_bits((1023 - 520) << 52) } else { 1.0 };
    let mut part = Part { count: 0.0, mean: 0.0, m2: 0.0 };
    for v in values() {
        part = part.merge(Part { count: 1.0, mean: v * scale, m2: 0.0 });
    }
    let scaled_var = part.m2 / part.count;
    // sqrt(var + eps) with var = scaled_var / scale^2.
    let rstd = rstd(scaled_var, eps * scale * scale) * scale;
    Moments { mean: part.mean / scale, var: scaled_var / scale / scale, rstd }
}
