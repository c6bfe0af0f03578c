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
/// vector would spill.
pub(super) const fn mr<V: Lanes>(nv: usize) -> usize {
    match (V::REGISTERS >= 32, nv) {
        (_, 1) => 12,
        (true, 2) => 12,
        (true, 3) => 6,
        (true, _) => 3,
        (false, 2) => 6,
        (false, _) => 3,
    }
}

/// `len` in `count` parts whose sizes differ by one at most, the larger first.
#[derive(Clone, Copy)]
pub(super) struct Even {
    pub(super) count: usize,
    size: usize,
    larger: usize,
}

impl Even {
    /// As few parts as needed, of at most `most`.
    #[inline(always)]
    pub(super) fn new(len: usize, most: usize) -> Self {
        let count = len.div_ceil(most);
        let size = if count <= 1 { len } else { len / count };
        Even { count, size, larger: len - size * count }
    }

    /// Start and length of part `i`.
    #[inline(always)]
    pub(super) fn part(self, i: usize) -> (usize, usize) {
        (i * self.size + i.min(self.larger), self.size + usize::from(i < self.larger))
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
    /// The panels of `nc` columns for products of `m` rows.
    #[inline(always)]
    pub(super) fn new<V: Lanes>(m: usize, nc: usize) -> Self {
        let nv = if m <= 3 { 4 } else { 2 };
        let vectors = nc.div_ceil(V::WIDTH);
        let count = vectors.div_ceil(nv);
        Panels { count, width: nv * V::WIDTH, nc }
    }

    /// First column and number of columns of panel `j`.
    #[inline(always)]
    pub(super) fn part(self, j: usize) -> (usize, usize) {
        let start = j * self.width;
        (start, if j + 1 == self.count { self.nc - start } else { self.width })
    }
}
