//! Strided views whose bounds are checked once, when they are made, for loops that step through a matrix.
//!
//! Every access still asserts that its row and column lie in the view; those comparisons are between values that the loop
//! around them knows, so the compiler removes them, where the bounds of a slice would be checked at every step. No view is made empty:
//! its first element is always there (`Rows::pass` may leave none, and then only a slice of nothing can be had).
//!
//! `rows`: contiguous rows, what most kernels read and write. `columns`: matrices that are read down their columns, what products
//! step through. `transfer`: rows that become others. `cells`: a matrix that several threads write parts of.
//!
//! **Fields.** A view is a pointer with the numbers that its bounds were checked for. Where several files of this room need them, they
//! are visible in all of it: a comment at the struct or where it is read by says who makes one, and from what.

mod cells;
mod columns;
mod rows;
mod transfer;

pub(crate) use cells::CellsMut;
pub(crate) use columns::{ByColumn, ByRow, Column, Columns, Pairs, Strided, Striped, Strips};
pub(crate) use rows::{Abreast, Panels, Row, Rows, RowsMut};
pub(crate) use transfer::{Transfer, TransferRow};

/// Number of elements from the first to the last of `rows x cols`, both included, if both are there and that is a number.
#[inline(always)]
fn span(rows: usize, cols: usize, rs: usize, cs: usize) -> Option<usize> {
    let (down, across) = (rows.checked_sub(1)?.checked_mul(rs)?, cols.checked_sub(1)?.checked_mul(cs)?);
    down.checked_add(across)?.checked_add(1)
}

/// The same pointer, of unknown origin to the compiler: it stays in a register through a loop, where it would be computed anew from
/// others at every step, at the cost of registers for vectors.
#[inline(always)]
#[cfg_attr(
    target_arch = "x86_64",
    expect(clippy::pointers_in_nomem_asm_block, reason = "only an address passes through")
)]
fn opaque<T>(pointer: *const T) -> *const T {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    {
        let mut pointer = pointer;
        // SAFETY: no instruction.
        unsafe { std::arch::asm!("/* {0} */", inout(reg) pointer, options(pure, nomem, nostack, preserves_flags)) };
        pointer
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    pointer
}

/// Elements from `at` to the first that begins a line of 64 bytes.
#[inline(always)]
pub(crate) fn unaligned<T>(at: *const T) -> usize {
    let address = at.addr();
    (address.next_multiple_of(64) - address) / size_of::<T>()
}

/// Asks for a line to be brought near; any address will do.
#[inline(always)]
fn prefetch<T>(at: *const T) {
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
    // SAFETY: a prefetch reads and writes nothing, whatever the address, and SSE is part of x86-64.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(at.cast());
    }
}
