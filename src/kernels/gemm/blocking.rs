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

/// The block of k: as few as needed, of about the same size.
pub(super) fn kc(k: usize) -> usize {
    even(k, KC, 8)
}

/// The block of columns.
pub(super) fn nc(n: usize) -> usize {
    even(n, NC, 32)
}

/// `total` in as few parts of at most `most` as needed, all but the last of one size, a multiple of `unit`, which divides `most`.
fn even(total: usize, most: usize, unit: usize) -> usize {
    if total <= most { total } else { total.div_ceil(total.div_ceil(most)).next_multiple_of(unit) }
}

/// Rows of C in one task: small for few rows, so that there is something to share.
pub(super) fn rows_per_task(m: usize) -> usize {
    if m >= 384 { 96 } else { 24 }
}

/// Whether B, its rows contiguous, is read where it lies: packing it costs 1/m of the product and pays by fewer cache and TLB
/// misses, so not for few rows.
pub(super) fn reads_b_in_place(m: usize, kc: usize, row_stride: usize) -> bool {
    (m <= 48 && row_stride <= 1024) || kc * row_stride <= 4096
}

/// Whether A is read where it lies.
pub(super) fn reads_a_in_place(contiguous: bool, kc: usize, n: usize) -> bool {
    n <= 64 || (contiguous && kc <= 64)
}

/// Most rows of a register tile of `nv` vectors.
///
/// With 16 registers, 6 rows of 2 vectors are 12 accumulators, and leave room for 2 vectors of B and a broadcast of A; one more
/// vector would spill. Lanes that are there for other reasons than speed get few sizes, for the sake of the library's.
pub(super) const fn mr<V: Lanes>(nv: usize) -> usize {
    match nv {
        _ if V::WIDTH * size_of::<V::Elem>() < 32 => 4,
        1 => 12,
        2 if V::REGISTERS >= 32 => 12,
        2 => 6,
        _ => FEW,
    }
}

/// So many rows are multiplied by panels of up to 4 vectors, because tiles of 2 would wait for their own sums.
pub(super) const FEW: usize = 3;

/// Vectors in a panel of B that is read in place, for products of `m` rows.
#[inline(always)]
pub(super) fn nv<V: Lanes>(m: usize) -> usize {
    if m <= FEW && mr::<V>(4) == FEW { 4 } else { NV }
}

/// Vectors in a panel of B, but for products of few rows.
pub(super) const NV: usize = 2;

/// Rows of the next tile of `nv` vectors where `rest` are left: so that none is low, as far as there are tiles of that height.
///
/// A multiply-add takes four cycles and two begin in each, so a tile of fewer than eight vectors waits for itself.
#[inline(always)]
pub(super) fn height<V: Lanes>(nv: usize, rest: usize) -> usize {
    let most = mr::<V>(nv);
    match (most, rest) {
        // One vector to a row: there are tiles of 12, 8 and 4 to 1 rows.
        (12, _) if nv == 1 => match rest {
            0..=3 => rest,
            4..8 => 4,
            8..12 => 8,
            _ => 12,
        },
        // There are tiles of 12, 8 and 6 to 1 rows.
        (12, 7) => 4,
        (12, 9) => 5,
        (12, 10 | 11) => 6,
        (12, 13 | 14) => 8,
        (6, 7 | 8) => 4,
        (6, 9 | 10 | 13) => 5,
        (4, 3) if nv == 1 => 2,
        (4, 5) => {
            if nv == 1 {
                4
            } else {
                3
            }
        }
        _ => rest.min(most),
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
    pub(super) fn new<V: Lanes>(nc: usize, nv: usize) -> Self {
        let vectors = nc.div_ceil(V::WIDTH);
        // The last three vectors in one panel: a tile of one would wait for its own sums.
        let odd = usize::from(nv == 2 && vectors > 1 && vectors % 2 == 1 && mr::<V>(3) == FEW);
        Panels { count: vectors.div_ceil(nv) - odd, width: nv * V::WIDTH, nc }
    }

    /// First column and number of columns of panel `j`.
    #[inline(always)]
    pub(super) fn part(self, j: usize) -> (usize, usize) {
        let start = j * self.width;
        (start, if j + 1 == self.count { self.nc - start } else { self.width })
    }
}
