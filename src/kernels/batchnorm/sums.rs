//! Two sums at once over all elements of a channel: of u and of u v.
//!
//! With `u = v = x - K` they give mean and variance, with `u = dz` and `v = x - mean` the gradients. Down rows a lane adds 16 terms in a
//! chain, 8 such chains in another, and 8 of those: 32 roundings for a leaf of 1024 rows. Along runs it adds 16 terms in a chain, those
//! of a run in another, the two lines of a step, and the images: some 34. Then f64 takes over.

use super::TILE;
use super::map::ahead;
use super::shape::{Reach, Runs};
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

/// A number for each column, or for each channel.
pub(super) trait PerColumn<V: Lanes>: Copy {
    fn at(self, j: usize, len: usize) -> V;
}

impl<V: Lanes> PerColumn<V> for &[V::Elem] {
    #[inline(always)]
    fn at(self, j: usize, len: usize) -> V {
        V::load_up_to(&self[j..][..len])
    }
}

/// A number for each channel, whose columns lie `pitch` apart; asked for where a channel begins, and the same in all of its columns.
#[derive(Clone, Copy)]
pub(super) struct PerPlane<'a, T> {
    pub(super) numbers: &'a [T],
    pub(super) pitch: usize,
}

impl<V: Lanes> PerColumn<V> for PerPlane<'_, V::Elem> {
    #[inline(always)]
    fn at(self, j: usize, _: usize) -> V {
        V::splat(self.numbers[j / self.pitch])
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

/// Bytes of a step along a run: two lines.
pub(super) const STEP: usize = 128;

/// Most elements of each sum that [`along`] leaves of a channel, in any type.
pub(super) const MOST_LANES: usize = 16;

/// Elements of each sum that [`along`] leaves of a channel: a line.
#[inline(always)]
pub(super) fn lanes_of_sum<T>() -> usize {
    64 / size_of::<T>()
}

/// Sums along the runs of a leaf, channel by channel and so image by image: of u and of u v, for each channel [`lanes_of_sum`] of each in
/// `sums`, to be added up by [`total`].
#[inline(always)]
pub(super) fn along<V: Lanes, S: Source<V>>(source: S, runs: Runs, sums: &mut [V::Elem], reach: Reach) {
    let (line, vectors) = (lanes_of_sum::<V::Elem>(), 2 * V::GROUP);
    let (step, rest) = (2 * line, runs.len % (2 * line));
    // Elements of each vector of the last step of a run, and their lanes.
    let mut numbers = [V::Elem::ZERO; MOST_LANES];
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
    let width = (runs.channels - 1) * runs.pitch + runs.len;
    for image in 0..runs.images {
        for (channel, sums) in sums.chunks_exact_mut(2 * line).enumerate() {
            let start = channel * runs.pitch;
            let mut terms = source.block((image, 1), (start, runs.len));
            let mut run = [[V::zero(); VECTORS]; 2];
            let mut tile = [[V::zero(); VECTORS]; 2];
            let mut steps = 0;
            while terms.left() >= step {
                if reach >= Reach::Far {
                    let at = start + runs.len - terms.left();
                    for k in 0..2 {
                        let (below, column) = ahead(at + k * line, width);
                        terms.prefetch(below, column.wrapping_sub(at));
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
                    for k in 0..vectors {
                        for sum in 0..2 {
                            run[sum][k] = run[sum][k] + tile[sum][k];
                            tile[sum][k] = V::zero();
                        }
                    }
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
            }
            // Short runs have no whole tile.
            let is_short = runs.len < TILE * step;
            for sum in 0..2 {
                for k in 0..V::GROUP {
                    let to = &mut sums[sum * line + k * V::WIDTH..][..V::WIDTH];
                    let (mut low, mut high) = (tile[sum][k], tile[sum][k + V::GROUP]);
                    if !is_short {
                        (low, high) = (run[sum][k] + low, run[sum][k + V::GROUP] + high);
                    }
                    let both = low + high;
                    if image == 0 { both } else { V::load(to) + both }.store(to);
                }
            }
        }
    }
}

/// Both sums of a channel, of the lanes that [`along`] left: by halving, as additions in a chain wait for one another.
#[inline(always)]
pub(super) fn total<T: Element>(lanes: &[T]) -> (f64, f64) {
    let line = lanes_of_sum::<T>();
    let mut sums = [0.0; 2];
    for (sum, lanes) in sums.iter_mut().zip(lanes.chunks_exact(line)) {
        let mut all = [0.0; MOST_LANES];
        for k in 0..line {
            all[k] = lanes[k].to_f64();
        }
        let mut count = line;
        while count > 1 {
            count /= 2;
            for k in 0..count {
                all[k] += all[k + count];
            }
        }
        *sum = all[0];
    }
    (sums[0], sums[1])
}

/// Writes both sums of a channel in two parts each, into a row of numbers for all `channels` for each part.
#[inline(always)]
pub(super) fn keep<T: Element>((u, uv): (f64, f64), parts: &mut [T], (channel, channels): (usize, usize)) {
    let ((u, u_low), (uv, uv_low)) = (T::split(u), T::split(uv));
    for (row, number) in [u, u_low, uv, uv_low].into_iter().enumerate() {
        parts[row * channels + channel] = number;
    }
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
