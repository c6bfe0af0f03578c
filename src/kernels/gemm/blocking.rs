//! Sizes: how much of a product is in registers, in the caches, and in one task.
//!
//! The block of k decides in which order products are added, so it follows from k alone: results may not depend on the machine.
//! The other sizes decide only when a number is computed.

use crate::machine;
use crate::simd::Lanes;
use std::sync::OnceLock;

/// Most of k in one pass over the operands: `KC` rows of a panel of B, 64 bytes wide, are half of a 32 KiB L1 cache.
pub(super) const KC: usize = 256;
/// Most columns of B in one pass, whatever the caches.
pub(super) const NC: usize = 2048;
/// Most rows of A in one pass that is shared between threads.
pub(super) const MC: usize = 1536;

/// Whether a product is so small that any thought about tiles and tasks would cost more than it saves. A product with a vector has a
/// better loop from a smaller size on. The same for rows and columns exchanged.
#[inline(always)]
pub(super) fn is_tiny(m: usize, k: usize, n: usize) -> bool {
    // Nothing, less one, is more than any limit. No product of the three overflows.
    let most = m.wrapping_sub(1) | k.wrapping_sub(1) | n.wrapping_sub(1);
    most < 64 && m * k * n <= if m == 1 || n == 1 { 1 << 11 } else { 1 << 15 }
}

/// The block of k: as few as needed, of about the same size.
#[inline(always)]
pub(super) fn kc(k: usize) -> usize {
    even(k, KC, 8)
}

/// `total` in as few parts of at most `most` as needed, all but the last of one size, a multiple of `unit`, which divides `most`.
#[inline(always)]
fn even(total: usize, most: usize, unit: usize) -> usize {
    if total <= most { total } else { total.div_ceil(total.div_ceil(most)).next_multiple_of(unit) }
}

/// Panels of B that are packed together: in one task, or before all rows of A are multiplied by them.
pub(super) const TOGETHER: usize = 8;

/// Rows of C that are finished before the next are begun, where all of B is in the first cache but its panels differ in width.
pub(super) const ROWS_AT_ONCE: usize = 96;

/// Rows and panels of one task, where a pass is shared between threads: of about equal size, many enough that no thread waits long for
/// the last one, and so large that handing them out costs little: 2^22 multiply-adds, but 128 to 512 columns.
pub(super) fn task(mc: usize, kc: usize, cut: Cut) -> (usize, usize) {
    let rows = mc.div_ceil(mc.div_ceil(48));
    let cols = (1 << 22) / (rows * kc).max(1);
    (rows, (cols.clamp(128, 512) / cut.width).max(1))
}

/// Rows of dot products in one task: 2^18 multiply-adds, which takes some ten microseconds.
pub(super) fn rows_of_dots(k: usize, n: usize) -> usize {
    ((1 << 18) / (k * n)).next_multiple_of(16).max(16)
}

/// Bytes of the caches, in which operands are to stay.
#[derive(Clone, Copy, Debug)]
pub(super) struct Caches {
    first: usize,
    second: usize,
    last: usize,
}

impl Caches {
    /// Those of this machine, looked up once; usual ones where the system does not tell.
    #[inline(always)]
    pub(super) fn found() -> Caches {
        static FOUND: OnceLock<Caches> = OnceLock::new();
        *FOUND.get_or_init(|| Caches::of(&machine::caches()))
    }

    /// Within sane limits: a virtual machine may claim anything.
    fn of(found: &[machine::Cache]) -> Caches {
        let bytes = |level| found.iter().find(|cache| cache.level == level).map(|cache| cache.bytes);
        let second = bytes(2).unwrap_or(256 << 10).clamp(128 << 10, 4 << 20);
        Caches {
            first: bytes(1).unwrap_or(32 << 10).clamp(16 << 10, 128 << 10),
            second,
            last: bytes(3).unwrap_or(second).clamp(1 << 20, 64 << 20),
        }
    }

    /// The block of columns: B's part is a sixteenth of the last cache, which others use as well.
    #[inline(always)]
    pub(super) fn nc<T>(self, n: usize) -> usize {
        // A power of two, at least 256 for the widest element and the smallest cache.
        let most = 1 << (self.last / 16 / (KC * size_of::<T>())).clamp(256, NC).ilog2();
        even(n, most, 32)
    }

    /// Rows of C in one pass of a thread that has all to itself: all, if their A takes half of the second cache at most; else as many as
    /// take a quarter, so that it stays there while all panels of B pass by.
    #[inline(always)]
    pub(super) fn rows<T>(self, m: usize, kc: usize) -> usize {
        let fit = |part: usize| (self.second / part / (kc * size_of::<T>())).min(MC);
        if m <= fit(2) { m } else { fit(4).max(48) }
    }

    /// Whether so many elements stay in the first cache.
    #[inline(always)]
    pub(super) fn keep_near<T>(self, elements: usize) -> bool {
        elements.saturating_mul(size_of::<T>()) <= self.first
    }

    /// Whether strips of so many rows of A stay in the first cache while so many columns of B pass by from the second, rather than panels
    /// of B while strips do: if those have room there, and if so many rows use a vector of B that the second cache keeps up. C is passed
    /// through row by row then, not by columns, whose lines drive each other out where rows are a multiple of 4 KiB apart.
    ///
    /// Six rows, AVX2's, do not suffice: products of 256 rows of C took a twentieth longer.
    #[inline(always)]
    pub(super) fn keep_strips_near<T>(self, rows: usize, kc: usize, cols: usize) -> bool {
        let fits = |elements: usize, cache: usize| elements * size_of::<T>() <= cache / 4;
        rows >= 12 && fits(rows * kc, self.first) && fits(kc * cols, self.second)
    }

    /// Whether B, its rows contiguous, is read where it lies: packing it costs 1/m of the product and pays by fewer cache and TLB
    /// misses, so not for few rows, nor where all of it is near.
    #[inline(always)]
    pub(super) fn reads_b_in_place<T>(self, m: usize, kc: usize, row_stride: usize) -> bool {
        m <= 16 || (row_stride <= 1024 && (m <= 48 || kc * row_stride * size_of::<T>() <= self.second / 4))
    }

    /// Whether one line of each of so many rows is more than the first cache has room for, because their distance is a multiple of so
    /// large a power of two that they share few of its sets.
    #[inline(always)]
    pub(super) fn rows_collide<T>(self, rows: usize, stride: usize) -> bool {
        let bytes = stride.saturating_mul(size_of::<T>());
        let shared = (bytes & bytes.wrapping_neg()).clamp(64, 4096);
        rows.saturating_mul(bytes) > self.first && rows * shared > self.first
    }
}

/// Whether A, its rows or columns contiguous, is read where it lies: packing it is paid back by the columns of C that read it,
/// so not where they are few, nor where a strip is near anyway.
#[inline(always)]
pub(super) fn reads_a_in_place(is_by_column: bool, kc: usize, n: usize) -> bool {
    n <= 192 || kc <= 32 || (is_by_column && kc <= 128)
}

/// The register tiles of an instruction set.
///
/// With 16 registers, 6 rows of 2 vectors are 12 accumulators, and leave room for 2 vectors of B and a broadcast of A; one more
/// vector would spill. So are 4 rows of 3 vectors, which with 3 vectors of B and a broadcast take all. With 32 registers, 12 rows of 2
/// vectors and 8 of 3 are 24. Lanes that are there for other reasons than speed get few tiles, for the sake of the library's size.
#[derive(Clone, Copy)]
pub(super) struct Tiles {
    /// Elements in a vector.
    pub(super) width: usize,
    /// Most rows of a tile of 1, 2 and 3 vectors.
    most: [usize; 3],
    /// Whether there are tiles of 3 and 4 vectors.
    pub(super) wide: bool,
}

/// Most rows of a tile of 4 vectors. So few rows are multiplied by panels of up to 4 vectors: tiles of 2 would wait for their own
/// sums.
pub(super) const FEW: usize = 3;

/// Vectors in a panel of B, but for products of few rows.
pub(super) const NV: usize = 2;

impl Tiles {
    /// Those of a vector type.
    #[inline(always)]
    pub(super) const fn of<V: Lanes>() -> Self {
        let narrow = V::WIDTH * size_of::<V::Elem>() < 32;
        let most = match V::REGISTERS {
            _ if narrow => [4, 4, 0],
            32.. => [12, 12, 8],
            _ => [12, 6, 4],
        };
        Tiles { width: V::WIDTH, most, wide: !narrow }
    }

    /// Most rows of a tile of `nv` vectors.
    #[inline(always)]
    pub(super) const fn most(self, nv: usize) -> usize {
        match nv {
            1..=3 => self.most[nv - 1],
            _ if self.wide => FEW,
            _ => 0,
        }
    }

    /// The whole vectors in `cols` columns, if they are one or two and what is left of another fits in half a one.
    #[inline(always)]
    pub(super) fn halved(self, cols: usize) -> Option<usize> {
        let (whole, rest) = (cols >> self.width.trailing_zeros(), cols & (self.width - 1));
        (matches!(whole, 1 | 2) && 0 < rest && rest <= self.width / 2).then_some(whole)
    }

    /// Vectors in a panel of B that is read in place, for products of `m` rows.
    #[inline(always)]
    pub(super) fn nv(self, m: usize) -> usize {
        if m <= FEW && self.wide { 4 } else { NV }
    }

    /// Rows of the next tile of `nv` vectors where `rest` are left, and how many of them follow one another: so that none is low, as
    /// far as there are tiles of that height.
    ///
    /// A multiply-add takes four cycles and two begin in each, so a tile of fewer than eight vectors waits for itself.
    #[inline(always)]
    pub(super) fn strips(self, nv: usize, rest: usize) -> (usize, usize) {
        strips(self.most(nv), nv, rest)
    }

    /// The same for tiles of so many whole vectors, one or two, and half a one.
    #[inline(always)]
    pub(super) fn strips_halved(whole: usize, rest: usize) -> (usize, usize) {
        strips(most_halved(whole), 2, rest)
    }
}

/// [`Tiles::strips`] where a tile of `nv` vectors has at most `most` rows.
#[inline(always)]
fn strips(most: usize, nv: usize, rest: usize) -> (usize, usize) {
    match (most, rest) {
        // One vector in a row: there are tiles of 12, 8 and 4 to 1 rows.
        (12, 0..=3) if nv == 1 => (rest, 1),
        (12, 4..=7) if nv == 1 => (4, 1),
        (12, 8..=11) if nv == 1 => (8, 1),
        (12, _) if nv == 1 => (12, rest / 12),
        // There are tiles of 12, 8 and 6 to 1 rows.
        (12, 7) => (4, 1),
        (12, 9) => (5, 1),
        (12, 10) => (5, 2),
        (12, 11) => (6, 1),
        (12, 13 | 14) => (8, 1),
        (12, 24..) if rest.is_multiple_of(12) => (12, rest / 12),
        (12, 15..) => (12, (rest - 3) / 12),
        (6, 7) => (4, 1),
        (6, 8) => (4, 2),
        (6, 9 | 13) => (5, 1),
        (6, 10) => (5, 2),
        (6, 12..) if rest.is_multiple_of(6) => (6, rest / 6),
        (6, 14..) => (6, (rest - 8) / 6),
        // Three vectors: there are tiles of 8 and 6 to 1 rows.
        (8, 7) => (4, 1),
        (8, 9 | 13) => (5, 1),
        (8, 10) => (5, 2),
        (8, 11 | 12) => (6, 1),
        (8, 16..) if rest.is_multiple_of(8) => (8, rest / 8),
        (8, 17..) => (8, (rest - 6) / 8),
        (4, 5 | 6) => (3, 1),
        (4, 8..) if rest.is_multiple_of(4) => (4, rest / 4),
        (4, 8..) => (4, (rest - 3) / 4),
        _ => (rest.min(most), 1),
    }
}

/// Most rows of a tile of so many vectors, one or two, and half a one. There are registers for half as many again, but the compiler runs
/// out of them.
pub(super) const fn most_halved(vectors: usize) -> usize {
    if vectors == 1 { 8 } else { 6 }
}

/// Rows of the tiles that make a strip of `mr`, all but the last, where a tile has at most `most`: about equal.
#[inline(always)]
pub(super) const fn rows_of_tile(mr: usize, most: usize) -> usize {
    if mr > most { mr.div_ceil(mr.div_ceil(most)) } else { mr }
}

/// How columns are cut into panels: as many as a register tile is wide, the last one as wide as is left.
#[derive(Clone, Copy)]
pub(super) struct Cut {
    pub(super) count: usize,
    /// Columns of all panels but the last.
    pub(super) width: usize,
    nc: usize,
}

impl Cut {
    /// `nc` columns in panels of `nv` vectors.
    #[inline(always)]
    pub(super) fn new(tiles: Tiles, nc: usize, nv: usize) -> Self {
        let width = nv * tiles.width;
        // Both are powers of two: a shift costs less than a division.
        let (whole, rest) = (nc >> width.trailing_zeros(), nc & (width - 1));
        // A rest of one vector joins the panel before it: a tile of one would wait for its own sums.
        let joins = nv == 2 && tiles.wide && whole > 0 && rest <= tiles.width;
        Cut { count: if rest == 0 || joins { whole } else { whole + 1 }, width, nc }
    }

    /// All columns in one panel.
    pub(super) fn whole(nc: usize) -> Self {
        Cut { count: 1, width: nc, nc }
    }

    /// First column and number of columns of panel `j`.
    #[inline(always)]
    pub(super) fn part(self, j: usize) -> (usize, usize) {
        let start = j * self.width;
        (start, if j + 1 == self.count { self.nc - start } else { self.width })
    }

    /// How many panels from `j` on, before panel `end`, are as wide as panel `j`.
    #[inline(always)]
    pub(super) fn alike(self, j: usize, end: usize) -> usize {
        let last_differs = self.count * self.width != self.nc;
        if end == self.count && last_differs && end - j > 1 { end - j - 1 } else { end - j }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Those of `Sweep`, for one, two and three vectors.
    const HEIGHTS: [&[usize]; 3] = [&[1, 2, 3, 4, 8, 12], &[1, 2, 3, 4, 5, 6, 8, 12], &[1, 2, 3, 4, 5, 6, 8]];
    /// Those of `Halved`, for one and two vectors.
    const HALVED: [&[usize]; 2] = [&[1, 2, 3, 4, 5, 6, 8], &[1, 2, 3, 4, 5, 6]];

    #[test]
    fn strips_of_half_a_vector_have_heights_that_tiles_have() {
        for (whole, rows) in (1..=2).flat_map(|whole| (1..=100).map(move |rows| (whole, rows))) {
            let mut rest = rows;
            while rest > 0 {
                let (mr, count) = Tiles::strips_halved(whole, rest);
                let fits = HALVED[whole - 1].contains(&mr) && 0 < mr * count && mr * count <= rest;
                assert!(fits, "{whole} vectors and a half, {rest} rows: {count} of {mr}");
                rest -= mr * count;
            }
        }
    }

    #[test]
    fn strips_of_two_vectors_are_cut_into_heights_that_lower_tiles_have() {
        for &mr in HEIGHTS[1] {
            // Three vectors with AVX-512 and with AVX2; one and two, and half a one.
            let lower = [(8, HEIGHTS[2]), (4, HEIGHTS[2]), (most_halved(1), HALVED[0]), (most_halved(2), HALVED[1])];
            for (most, heights) in lower {
                let rows = rows_of_tile(mr, most);
                let last = mr - (mr - 1) / rows * rows;
                assert!(
                    rows <= most && heights.contains(&rows) && heights.contains(&last),
                    "{mr} rows: {rows}, {last}"
                );
            }
        }
        let tiles = Tiles { width: 16, most: [12, 12, 8], wide: true };
        assert_eq!(
            [16, 17, 24, 25, 33, 40, 41, 49].map(|cols| tiles.halved(cols)),
            [None, Some(1), Some(1), None, Some(2), Some(2), None, None]
        );
    }

    #[test]
    fn strips_have_heights_that_tiles_have() {
        for most in [[12, 12, 8], [12, 6, 4]] {
            let tiles = Tiles { width: 16, most, wide: true };
            for (nv, rows) in (1..=3).flat_map(|nv| (1..=100).map(move |rows| (nv, rows))) {
                let mut rest = rows;
                while rest > 0 {
                    let (mr, count) = tiles.strips(nv, rest);
                    let fits = mr <= most[nv - 1] && HEIGHTS[nv - 1].contains(&mr);
                    assert!(fits && 0 < mr * count && mr * count <= rest, "{nv} vectors, {rest} rows: {count} of {mr}");
                    rest -= mr * count;
                }
            }
        }
    }
}
