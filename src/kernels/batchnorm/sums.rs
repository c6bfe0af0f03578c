//! Two sums at once over all elements of a channel: of u and of u v.
//!
//! With `u = v = x - K` they give mean and variance, with `u = dz` and `v = x - mean` the gradients. A lane adds 16 terms in a
//! chain, 8 such chains in another, and 8 of those: 32 roundings for a leaf of 1024 rows. Then f64 takes over.

use super::TILE;
use super::map::ahead;
use super::shape::Reach;
use crate::simd::{Element, Lanes, Rows};

/// Rows whose tiles are added up before they join the leaf's.
const BLOCK: usize = 8 * TILE;
/// Vectors of a group twice, on the instruction set with the narrowest.
const VECTORS: usize = 32;

/// Where terms come from.
pub(super) trait Source<V: Lanes>: Copy {
    type Terms: Terms<V>;
    /// The terms of rows `i..i + rows` at columns `j..j + cols`.
    fn block(&self, rows: (usize, usize), cols: (usize, usize)) -> Self::Terms;
}

/// The terms of a block.
pub(super) trait Terms<V: Lanes> {
    /// u and v at row `i` and columns `j..j + len`, counted from the block's first; in lanes past `len` anything finite.
    fn at(&self, i: usize, j: usize, len: usize) -> (V, V);
    /// Asks for what is read at row `i` and column `j` to be brought near.
    fn prefetch(&self, i: usize, j: usize);
}

/// A number for each column, or one for all.
pub(super) trait PerColumn<V: Lanes>: Copy {
    fn at(self, j: usize, len: usize) -> V;
}

impl<V: Lanes> PerColumn<V> for &[V::Elem] {
    #[inline(always)]
    fn at(self, j: usize, len: usize) -> V {
        V::load_up_to(&self[j..][..len])
    }
}

/// The same number for every column.
#[derive(Clone, Copy)]
pub(super) struct Same<T>(pub(super) T);

impl<V: Lanes> PerColumn<V> for Same<V::Elem> {
    #[inline(always)]
    fn at(self, _: usize, _: usize) -> V {
        V::splat(self.0)
    }
}

/// Sums down the columns of a leaf: `sums` has 4 rows of `cols`, of which the first two are the sums of u and of u v, the others
/// work space.
#[inline(always)]
pub(super) fn down<V: Lanes, S: Source<V>>(source: S, (rows, cols): (usize, usize), sums: &mut [V::Elem]) {
    let (leaf, block) = sums.split_at_mut(2 * cols);
    for first in (0..rows).step_by(BLOCK) {
        let end = rows.min(first + BLOCK);
        for tile in (first..end).step_by(TILE) {
            let is_first = tile == first;
            if end - tile >= TILE {
                tiles::<V, S, TILE>(source, (tile, TILE), cols, is_first, block);
            } else {
                tiles::<V, S, 0>(source, (tile, end - tile), cols, is_first, block);
            }
        }
        if first == 0 {
            leaf.copy_from_slice(&block[..2 * cols]);
        } else {
            for (leaf, block) in leaf.iter_mut().zip(&*block) {
                *leaf = *leaf + *block;
            }
        }
    }
}

/// One tile of all columns: `count` rows, or `ROWS` where that is not 0.
#[inline(always)]
fn tiles<V: Lanes, S: Source<V>, const ROWS: usize>(
    source: S,
    (first, count): (usize, usize),
    cols: usize,
    is_first: bool,
    sums: &mut [V::Elem],
) {
    let rows = if ROWS > 0 { ROWS } else { count };
    let (sums_u, sums_uv) = sums.split_at_mut(cols);
    let mut j = 0;
    while j + 2 * V::WIDTH <= cols {
        let terms = [source.block((first, rows), (j, V::WIDTH)), source.block((first, rows), (j + V::WIDTH, V::WIDTH))];
        let (mut sum_u, mut sum_uv) = ([V::zero(); 2], [V::zero(); 2]);
        for i in 0..rows {
            for k in 0..2 {
                let (u, v) = terms[k].at(i, 0, V::WIDTH);
                sum_u[k] = sum_u[k] + u;
                sum_uv[k] = u.mul_add(v, sum_uv[k]);
            }
        }
        for k in 0..2 {
            put(sum_u[k], is_first, &mut sums_u[j + k * V::WIDTH..][..V::WIDTH]);
            put(sum_uv[k], is_first, &mut sums_uv[j + k * V::WIDTH..][..V::WIDTH]);
        }
        j += 2 * V::WIDTH;
    }
    while j < cols {
        let len = V::WIDTH.min(cols - j);
        let terms = source.block((first, rows), (j, len));
        let (mut sum_u, mut sum_uv) = (V::zero(), V::zero());
        for i in 0..rows {
            let (u, v) = terms.at(i, 0, len);
            sum_u = sum_u + u;
            sum_uv = u.mul_add(v, sum_uv);
        }
        put(sum_u, is_first, &mut sums_u[j..][..len]);
        put(sum_uv, is_first, &mut sums_uv[j..][..len]);
        j += len;
    }
}

/// `to <- sum`, or `to <- to + sum`.
#[inline(always)]
fn put<V: Lanes>(sum: V, is_first: bool, to: &mut [V::Elem]) {
    let sum = if is_first { sum } else { V::load_up_to(to) + sum };
    sum.store_up_to(to);
}

/// Sums along the runs of a leaf: of u and of u v, all lanes together.
#[inline(always)]
pub(super) fn along<V: Lanes, S: Source<V>>(source: S, (runs, len): (usize, usize), reach: Reach) -> (f64, f64) {
    let vectors = 2 * V::GROUP;
    let step = vectors * V::WIDTH;
    let mut numbers = [V::Elem::ZERO; 16];
    for (i, number) in numbers.iter_mut().enumerate() {
        *number = V::Elem::from_f64(i as f64);
    }
    let numbers = V::load(&numbers);
    let mut leaf = [[V::zero(); VECTORS]; 2];
    let mut tile = [[V::zero(); VECTORS]; 2];
    let mut steps = 0;
    for run in 0..runs {
        let terms = source.block((run, 1), (0, len));
        let mut j = 0;
        while j + step <= len {
            if reach >= Reach::Far {
                let line = 64 / size_of::<V::Elem>();
                for k in 0..step / line {
                    let (below, column) = ahead(j + k * line, len);
                    terms.prefetch(below, column);
                }
            }
            for k in 0..vectors {
                let (u, v) = terms.at(0, j + k * V::WIDTH, V::WIDTH);
                tile[0][k] = tile[0][k] + u;
                tile[1][k] = u.mul_add(v, tile[1][k]);
            }
            j += step;
            steps += 1;
            if steps >= TILE {
                add::<V>(&mut leaf, &mut tile);
                steps = 0;
            }
        }
        if j < len {
            for k in 0..vectors {
                let at = j + k * V::WIDTH;
                if at + V::WIDTH <= len {
                    let (u, v) = terms.at(0, at, V::WIDTH);
                    tile[0][k] = tile[0][k] + u;
                    tile[1][k] = u.mul_add(v, tile[1][k]);
                } else if at < len {
                    let (u, v) = terms.at(0, at, len - at);
                    let last = V::splat(V::Elem::from_f64((len - at - 1) as f64));
                    let u = V::select(numbers.le(last), u, V::zero());
                    tile[0][k] = tile[0][k] + u;
                    tile[1][k] = u.mul_add(v, tile[1][k]);
                }
            }
            steps += 1;
            if steps >= TILE {
                add::<V>(&mut leaf, &mut tile);
                steps = 0;
            }
        }
    }
    add::<V>(&mut leaf, &mut tile);
    (total::<V>(&leaf[0]), total::<V>(&leaf[1]))
}

#[inline(always)]
fn add<V: Lanes>(leaf: &mut [[V; VECTORS]; 2], tile: &mut [[V; VECTORS]; 2]) {
    for sum in 0..2 {
        for k in 0..2 * V::GROUP {
            leaf[sum][k] = leaf[sum][k] + tile[sum][k];
            tile[sum][k] = V::zero();
        }
    }
}

/// Sum of the lanes, from the first to the last.
#[inline(always)]
fn total<V: Lanes>(sums: &[V; VECTORS]) -> f64 {
    let mut total = 0.0;
    for sum in &sums[..2 * V::GROUP] {
        let mut lanes = [V::Elem::ZERO; 16];
        sum.store(&mut lanes);
        for lane in &lanes[..V::WIDTH] {
            total += lane.to_f64();
        }
    }
    total
}

/// Deviations from a shift, as both factors.
#[derive(Clone, Copy)]
pub(super) struct Deviations<'a, T, P> {
    pub(super) x: Rows<'a, T>,
    pub(super) shift: P,
}

/// Deviations of a block.
pub(super) struct DeviationTerms<'a, V: Lanes> {
    x: Rows<'a, V::Elem>,
    shift: V,
}

impl<'a, V: Lanes, P: PerColumn<V>> Source<V> for Deviations<'a, V::Elem, P> {
    type Terms = DeviationTerms<'a, V>;

    #[inline(always)]
    fn block(&self, (i, rows): (usize, usize), (j, cols): (usize, usize)) -> Self::Terms {
        DeviationTerms { x: self.x.block((i, rows), (j, cols)), shift: self.shift.at(j, cols.min(V::WIDTH)) }
    }
}

impl<V: Lanes> Terms<V> for DeviationTerms<'_, V> {
    #[inline(always)]
    fn prefetch(&self, i: usize, j: usize) {
        self.x.prefetch(i, j);
    }
    #[inline(always)]
    fn at(&self, i: usize, j: usize, len: usize) -> (V, V) {
        let d = V::load_up_to(self.x.slice(i, j, len)) - self.shift;
        (d, d)
    }
}
