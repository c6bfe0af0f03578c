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
/// Rows of a tile that are read at once, if not all.
const PART: usize = 4;
/// Bytes of a row up to which columns are summed one by one.
const NARROW: usize = 128;
/// Bytes of a row from which on 16 rows are too far apart to be read at once.
const WIDE: usize = 1024;
/// Tiles of them at once.
const TILES: usize = 4;
/// Vectors of a group twice, on the instruction set with the narrowest.
const VECTORS: usize = 32;

/// Where terms come from.
pub(super) trait Source<V: Lanes>: Copy {
    type Terms: Terms<V>;
    /// Tensors that are read.
    const TENSORS: usize;
    /// The terms of rows `i..i + rows` at columns `j..j + cols`.
    fn block(&self, rows: (usize, usize), cols: (usize, usize)) -> Self::Terms;
}

/// The terms of a block.
pub(super) trait Terms<V: Lanes> {
    /// u and v at row `i` and columns `j..j + len`, counted from the block's first; in lanes past `len` anything finite.
    fn at(&self, i: usize, j: usize, len: usize) -> (V, V);
    /// Asks for what is read at row `i` and column `j` to be brought near.
    fn prefetch(&self, i: usize, j: usize);
    /// Columns that are left.
    fn left(&self) -> usize;
    /// Leaves the first `len` columns behind.
    fn pass(&mut self, len: usize);
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

/// Rows of `cols` that [`down`] writes: both sums, and work space.
pub(super) const ROWS_OF_SUMS: usize = 6;

/// Sums down the columns of a leaf: `sums` has [`ROWS_OF_SUMS`] rows of `cols`, of which the first two are the sums of u and of u v, the
/// others work space.
///
/// Narrow rows keep the sums of a block in registers. Of wide ones a few are read at a time, and the sums of a tile wait in memory: 16 rows
/// of two tensors at once, in as many places, took a third longer where they came from beyond the second cache, and those of one tensor
/// where they came from beyond the third. Otherwise a whole tile at once takes a tenth less.
#[inline(always)]
pub(super) fn down<V: Lanes, S: Source<V>>(
    source: S,
    (rows, cols): (usize, usize),
    sums: &mut [V::Elem],
    reach: Reach,
) {
    let (leaf, rest) = sums[..ROWS_OF_SUMS * cols].split_at_mut(2 * cols);
    let (block, tile) = rest.split_at_mut(2 * cols);
    let is_narrow = cols * size_of::<V::Elem>() <= NARROW;
    for first in (0..rows).step_by(BLOCK) {
        let count = BLOCK.min(rows - first);
        if is_narrow {
            columns::<V, S>(source, (first, count), cols, block);
        } else {
            match reach {
                Reach::Near if S::TENSORS == 1 || cols * size_of::<V::Elem>() < WIDE => {
                    by_parts::<V, S, TILE, false>(source, (first, count), (block, tile));
                }
                Reach::Near => by_parts::<V, S, PART, false>(source, (first, count), (block, tile)),
                _ => by_parts::<V, S, PART, true>(source, (first, count), (block, tile)),
            }
        }
        if first == 0 {
            leaf.copy_from_slice(block);
        } else {
            add_rows(leaf, block);
        }
    }
}

/// `to <- to + more`.
#[inline(always)]
fn add_rows<T: Element>(to: &mut [T], more: &[T]) {
    for (to, more) in to.iter_mut().zip(more) {
        *to = *to + *more;
    }
}

/// A block of rows, column by column; some tiles at once, so that no addition waits for the one before.
#[inline(always)]
fn columns<V: Lanes, S: Source<V>>(source: S, (first, count): (usize, usize), cols: usize, block: &mut [V::Elem]) {
    let (block_u, block_uv) = block.split_at_mut(cols);
    for j in (0..cols).step_by(V::WIDTH) {
        let len = V::WIDTH.min(cols - j);
        let terms = source.block((first, count), (j, len));
        let mut block = [V::zero(); 2];
        let mut at = 0;
        while at + TILES * TILE <= count {
            let mut tiles = [[V::zero(); 2]; TILES];
            for i in 0..TILE {
                for (tile, sums) in tiles.iter_mut().enumerate() {
                    add_term(&terms, (at + tile * TILE + i, 0, len), sums);
                }
            }
            for tile in tiles {
                block = [block[0] + tile[0], block[1] + tile[1]];
            }
            at += TILES * TILE;
        }
        while at < count {
            let mut tile = [V::zero(); 2];
            for i in at..count.min(at + TILE) {
                add_term(&terms, (i, 0, len), &mut tile);
            }
            block = [block[0] + tile[0], block[1] + tile[1]];
            at += TILE;
        }
        block[0].store_up_to(&mut block_u[j..][..len]);
        block[1].store_up_to(&mut block_uv[j..][..len]);
    }
}

/// A block of rows, `ROWS` at a time.
#[inline(always)]
fn by_parts<V: Lanes, S: Source<V>, const ROWS: usize, const FAR: bool>(
    source: S,
    (first, count): (usize, usize),
    (block, tile): (&mut [V::Elem], &mut [V::Elem]),
) {
    for at in (0..count).step_by(ROWS) {
        let rows = (first + at, ROWS.min(count - at));
        let (begins, is_first) = (at % TILE == 0, at < TILE);
        if ROWS == TILE && rows.1 == TILE {
            part::<V, S, ROWS, FAR>(source, rows, is_first, block);
            continue;
        }
        if rows.1 < ROWS {
            part::<V, S, 0, false>(source, rows, begins, tile);
        } else {
            part::<V, S, ROWS, FAR>(source, rows, begins, tile);
        }
        if at + rows.1 == count || (at + ROWS).is_multiple_of(TILE) {
            if is_first {
                block.copy_from_slice(tile);
            } else {
                add_rows(block, tile);
            }
        }
    }
}

/// A few rows of all columns: `count`, or `ROWS` where that is not 0. Unless they are the first there, a whole tile is added to what is in
/// `sums`, and the terms of less go on from it.
#[inline(always)]
fn part<V: Lanes, S: Source<V>, const ROWS: usize, const FAR: bool>(
    source: S,
    (first, count): (usize, usize),
    is_first: bool,
    sums: &mut [V::Elem],
) {
    let cols = sums.len() / 2;
    let rows = if ROWS > 0 { ROWS } else { count };
    let (sums_u, sums_uv) = sums.split_at_mut(cols);
    let mut j = 0;
    while j + 2 * V::WIDTH <= cols {
        let terms = [source.block((first, rows), (j, V::WIDTH)), source.block((first, rows), (j + V::WIDTH, V::WIDTH))];
        let mut sums = [[V::zero(); 2]; 2];
        for k in 0..2 {
            sums[k] = begin::<V, ROWS>(is_first, sums_u, sums_uv, (j + k * V::WIDTH, V::WIDTH));
        }
        for i in 0..rows {
            if FAR {
                terms[0].prefetch(i + ROWS, 0);
            }
            for k in 0..2 {
                add_term(&terms[k], (i, 0, V::WIDTH), &mut sums[k]);
            }
        }
        for k in 0..2 {
            end::<V, ROWS>(sums[k], is_first, sums_u, sums_uv, (j + k * V::WIDTH, V::WIDTH));
        }
        j += 2 * V::WIDTH;
    }
    while j < cols {
        let len = V::WIDTH.min(cols - j);
        let terms = source.block((first, rows), (j, len));
        let mut sums = begin::<V, ROWS>(is_first, sums_u, sums_uv, (j, len));
        for i in 0..rows {
            add_term(&terms, (i, 0, len), &mut sums);
        }
        end::<V, ROWS>(sums, is_first, sums_u, sums_uv, (j, len));
        j += len;
    }
}

/// What the terms of a part are added to.
#[inline(always)]
fn begin<V: Lanes, const ROWS: usize>(
    is_first: bool,
    sums_u: &[V::Elem],
    sums_uv: &[V::Elem],
    (j, len): (usize, usize),
) -> [V; 2] {
    if is_first || ROWS == TILE {
        return [V::zero(); 2];
    }
    [V::load_up_to(&sums_u[j..][..len]), V::load_up_to(&sums_uv[j..][..len])]
}

/// Writes the sums of a part.
#[inline(always)]
fn end<V: Lanes, const ROWS: usize>(
    sums: [V; 2],
    is_first: bool,
    sums_u: &mut [V::Elem],
    sums_uv: &mut [V::Elem],
    (j, len): (usize, usize),
) {
    for (sum, to) in sums.into_iter().zip([&mut sums_u[j..][..len], &mut sums_uv[j..][..len]]) {
        let sum = if is_first || ROWS != TILE { sum } else { V::load_up_to(to) + sum };
        sum.store_up_to(to);
    }
}

/// Adds the term at row `i` and columns `j..j + len`.
#[inline(always)]
fn add_term<V: Lanes>(terms: &impl Terms<V>, (i, j, len): (usize, usize, usize), sums: &mut [V; 2]) {
    let (u, v) = terms.at(i, j, len);
    sums[0] = sums[0] + u;
    sums[1] = u.mul_add(v, sums[1]);
}

/// Sums along the runs of a leaf: of u and of u v, all lanes together.
#[inline(always)]
pub(super) fn along<V: Lanes, S: Source<V>>(source: S, (runs, len): (usize, usize), reach: Reach) -> (f64, f64) {
    let vectors = 2 * V::GROUP;
    let step = vectors * V::WIDTH;
    // Elements of each vector of the last step of a run, and their lanes.
    let rest = len % step;
    let mut numbers = [V::Elem::ZERO; 16];
    for (i, number) in numbers.iter_mut().enumerate() {
        *number = V::Elem::from_f64(i as f64);
    }
    let numbers = V::load(&numbers);
    let mut counts = [0; VECTORS];
    let mut are_there = [numbers.le(V::zero()); VECTORS];
    for k in 0..vectors {
        counts[k] = rest.saturating_sub(k * V::WIDTH).min(V::WIDTH);
        are_there[k] = numbers.le(V::splat(V::Elem::from_f64(counts[k] as f64 - 1.0)));
    }
    let mut leaf = [[V::zero(); VECTORS]; 2];
    let mut tile = [[V::zero(); VECTORS]; 2];
    let mut steps = 0;
    for run in 0..runs {
        let mut terms = source.block((run, 1), (0, len));
        while terms.left() >= step {
            if reach >= Reach::Far {
                let line = 64 / size_of::<V::Elem>();
                let j = len - terms.left();
                for k in 0..step / line {
                    let (below, column) = ahead(j + k * line, len);
                    terms.prefetch(below, column.wrapping_sub(j));
                }
            }
            for k in 0..vectors {
                let (u, v) = terms.at(0, k * V::WIDTH, V::WIDTH);
                tile[0][k] = tile[0][k] + u;
                tile[1][k] = u.mul_add(v, tile[1][k]);
            }
            terms.pass(step);
            steps += 1;
            if steps >= TILE {
                add::<V>(&mut leaf, &mut tile);
                steps = 0;
            }
        }
        if rest > 0 {
            for k in 0..vectors {
                // One after the other and not until one is missing: sums whose number is known stay in registers.
                if counts[k] > 0 {
                    let (u, v) = terms.at(0, k * V::WIDTH, counts[k]);
                    let u = V::select(are_there[k], u, V::zero());
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

/// Sum of the lanes: by halving, as 32 additions in a chain take as long as a short plane.
#[inline(always)]
fn total<V: Lanes>(sums: &[V; VECTORS]) -> f64 {
    let mut lanes = [0.0; VECTORS];
    let mut count = 0;
    for sum in &sums[..2 * V::GROUP] {
        let mut vector = [V::Elem::ZERO; 16];
        sum.store(&mut vector);
        for lane in &vector[..V::WIDTH] {
            lanes[count] = lane.to_f64();
            count += 1;
        }
    }
    while count > 1 {
        count /= 2;
        for i in 0..count {
            lanes[i] += lanes[i + count];
        }
    }
    lanes[0]
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
    const TENSORS: usize = 1;

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
    fn left(&self) -> usize {
        self.x.cols()
    }
    #[inline(always)]
    fn pass(&mut self, len: usize) {
        self.x.pass(len);
    }
    #[inline(always)]
    fn at(&self, i: usize, j: usize, len: usize) -> (V, V) {
        let d = V::load_up_to(self.x.slice(i, j, len)) - self.shift;
        (d, d)
    }
}
