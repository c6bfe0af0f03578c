//! Sizes: how much of a product is in registers, in the caches, and in one task.
//!
//! The block of k decides in which order products are added, so it is a constant: results may not depend on the machine.
//! The other sizes decide only when a number is computed.

/// Rows of a register tile on an instruction set with 16 vector registers: 6 rows of 2 vectors are 12 accumulators, and leave
/// room for 2 vectors of B and a broadcast of A. One vector more in a row would not fit and spill.
pub(super) const MR_16: usize = 6;
/// Rows of a register tile with 32 vector registers: 24 accumulators.
pub(super) const MR_32: usize = 12;
/// Vectors in a row of a register tile.
pub(super) const NV: usize = 2;

/// k of one pass over the operands: a panel of A of `MR_32 x KC` f64 is 24 KiB, three quarters of a small L1 cache.
pub(super) const KC: usize = 256;

/// Columns of B in one pass: `KC x NC` f32 are 256 KiB, half of a small L2 cache.
pub(super) const NC: usize = 256;

/// Rows of C in one task, a multiple of every tile's rows: small for few rows, so that there is something to share.
pub(super) fn rows_per_task(m: usize) -> usize {
    if m >= 384 { 96 } else { 24 }
}

/// Whether B, its rows contiguous, is read where it lies: packing it costs 1/m of the product and pays by fewer cache and TLB
/// misses, so not for few rows.
pub(super) fn reads_b_in_place(m: usize, row_stride: usize) -> bool {
    m <= 48 && row_stride <= 1024
}

/// Whether A, its columns contiguous, is read where it lies: fine while the rows of one panel do not fight for cache sets.
pub(super) fn reads_a_in_place(kc: usize) -> bool {
    kc <= 64
}
