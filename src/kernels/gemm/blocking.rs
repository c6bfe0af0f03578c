//! Sizes: how much of a product is in registers, in the caches, and in one task.
//!
//! The block of k decides in which order products are added, so it follows from k alone: results may not depend on the machine.
//! The other sizes decide only when a number is computed.

use crate::simd::Lanes;

/// Most of k in one pass over the operands: `KC` rows of a panel of B, 64 bytes wide, are half of a 32 KiB L1 cache.
pub(super) const KC: usize = 256;
/// Most columns of B in one pass: `KC x NC` f32 are 2 MiB, a fair part of the last cache.
pub(super) const NC: usize = 2048;
/// Most rows of A in one pass.
pub(super) const MC: usize = 1536;

/// Most elements of A, and most columns, of a product for which any thought about tiles would cost more than it saves.
pub(super) const TINY: usize = 16;

/// Elements of B that the first cache keeps: 32 KiB of f32.
pub(super) const NEAR: usize = 8192;

/// The block of k: as few as needed, of about the same size.
#[inline(always)]
pub(super) fn kc(k: usize) -> usize {
    even(k, KC, 8)
}

/// The block of columns.
#[inline(always)]
pub(super) fn nc(n: usize) -> usize {
    even(n, NC, 32)
}

/// `total` in as few parts of at most `most` as needed, all but the last of one size, a multiple of `unit`, which divides `most`.
#[inline(always)]
fn even(total: usize, most: usize, unit: usize) -> usize {
    if total <= most { total } else { total.div_ceil(total.div_ceil(most)).next_multiple_of(unit) }
}

/// Rows of C in one task, where they are shared between threads: few where there are few, so that there is something to share.
pub(super) fn rows_per_task(m: usize) -> usize {
    if m >= 384 { 96 } else { 24 }
}

/// Rows of C in one task of a thread that has all to itself: their A, f32, is 128 KiB, which the second cache keeps while all panels
/// of B pass by.
pub(super) fn rows_alone(kc: usize) -> usize {
    (32_768 / kc).max(96)
}

/// Rows of C that are finished before the next are begun: few where all of B is in the first cache anyway, so that C and A are
/// passed through once and in order.
#[inline(always)]
pub(super) fn rows_at_once(kc: usize, nc: usize) -> usize {
    if kc * nc <= NEAR { 48 } else { usize::MAX }
}

/// Whether B, its rows contiguous, is read where it lies: packing it costs 1/m of the product and pays by fewer cache and TLB
/// misses, so not for few rows, nor where all of it is near.
#[inline(always)]
pub(super) fn reads_b_in_place(m: usize, kc: usize, row_stride: usize) -> bool {
    m <= 16 || (row_stride <= 1024 && (m <= 48 || kc * row_stride <= 32_768))
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
/// vector would spill. Lanes that are there for other reasons than speed get few tiles, for the sake of the library's size.
#[derive(Clone, Copy)]
pub(super) struct Tiles {
    /// Elements in a vector.
    pub(super) width: usize,
    /// Most rows of a tile of 1 and of 2 vectors.
    most: [usize; 2],
    /// Whether there are tiles of 3 and 4 vectors, of [`FEW`] rows at most.
    pub(super) wide: bool,
}

/// Most rows of a tile of 3 or 4 vectors. So few rows are multiplied by panels of up to 4 vectors: tiles of 2 would wait for their own
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
            _ if narrow => [4, 4],
            32.. => [12, 12],
            _ => [12, 6],
        };
        Tiles { width: V::WIDTH, most, wide: !narrow }
    }

    /// Most rows of a tile of `nv` vectors.
    #[inline(always)]
    pub(super) const fn most(self, nv: usize) -> usize {
        match nv {
            1 | 2 => self.most[nv - 1],
            _ if self.wide => FEW,
            _ => 0,
        }
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
        match (self.most(nv), rest) {
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
            (4, 5) => (3, 1),
            (4, 8..) => (4, (rest - 2) / 4),
            (most, _) => (rest.min(most), 1),
        }
    }
}

/// The panels of B: as many columns as a register tile is wide, the last one as wide as is left.
#[derive(Clone, Copy)]
pub(super) struct Panels {
    pub(super) count: usize,
    width: usize,
    nc: usize,
}

impl Panels {
    /// The panels of `nc` columns, `nv` vectors wide.
    #[inline(always)]
    pub(super) fn new(tiles: Tiles, nc: usize, nv: usize) -> Self {
        let width = nv * tiles.width;
        // Both are powers of two: a shift costs less than a division.
        let (whole, rest) = (nc >> width.trailing_zeros(), nc & (width - 1));
        // A rest of one vector joins the panel before it: a tile of one would wait for its own sums.
        let joins = nv == 2 && tiles.wide && whole > 0 && rest <= tiles.width;
        Panels { count: if rest == 0 || joins { whole } else { whole + 1 }, width, nc }
    }

    /// First column and number of columns of panel `j`.
    #[inline(always)]
    pub(super) fn part(self, j: usize) -> (usize, usize) {
        let start = j * self.width;
        (start, if j + 1 == self.count { self.nc - start } else { self.width })
    }
}
