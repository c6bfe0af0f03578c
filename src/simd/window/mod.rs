//! Strided views whose bounds are checked once, when they are made, for loops that step through a matrix.
//!
//! Every access still asserts that its row and column lie in the view; those comparisons are between values that the loop
//! around them knows, so the compiler removes them, where the bounds of a slice would be checked at every step. No view is made empty:
//! its first element is always there.

mod columns;
mod rows;

pub(crate) use columns::{ByColumn, ByRow, Column, Columns, Pairs, Strided, Striped, Strips};
pub(crate) use rows::{Abreast, Panels, Row, Rows, RowsMut};

use super::{Element, Lanes};
use std::marker::PhantomData;

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

/// Rows that become others, or that are written over: read and written at the same places, by vectors.
pub(crate) struct Transfer<'a, T> {
    from: *const T,
    from_stride: usize,
    to: RowsMut<'a, T>,
    /// Whether the caches are passed by.
    is_past: bool,
    read: PhantomData<&'a [T]>,
}

impl<'a, T: Element> Transfer<'a, T> {
    /// From rows of the same number and length; or over what is there.
    ///
    /// `is_past`: [`Transfer::store_line`] writes past the caches, unless it is over what was read, whose lines are near anyway. Such
    /// stores wait in buffers of their own, in any order: dropping this, which nobody may forget to, makes them visible. Nobody else has
    /// a view of the elements until then, as it borrows them mutably.
    #[inline(always)]
    pub(crate) fn new(from: Option<Rows<'a, T>>, to: RowsMut<'a, T>, is_past: bool) -> Self {
        let is_past = is_past && from.is_some();
        let (from, from_stride) = match from {
            Some(from) => {
                assert!(from.rows == to.rows && from.cols == to.cols);
                (from.start, from.stride)
            }
            None => (to.start.cast_const(), to.stride),
        };
        Transfer { from, from_stride, to, is_past, read: PhantomData }
    }

    /// Number of rows and of columns.
    #[inline(always)]
    pub(crate) fn shape(&self) -> (usize, usize) {
        (self.to.rows, self.to.cols)
    }

    /// Row `i`, from its first element to its last.
    #[inline(always)]
    pub(crate) fn run(&mut self, i: usize) -> TransferRow<'_, T> {
        assert!(i < self.to.rows);
        TransferRow {
            from: self.from.wrapping_add(i * self.from_stride),
            from_stride: self.from_stride,
            to: self.to.start.wrapping_add(i * self.to.stride),
            to_stride: self.to.stride,
            left: self.to.cols,
            is_past: self.is_past,
            data: PhantomData,
        }
    }

    /// `len` elements of row `i` from column `j` on, at most a vector.
    #[inline(always)]
    pub(crate) fn load<V: Lanes<Elem = T>>(&self, i: usize, j: usize, len: usize) -> V {
        assert!(i < self.to.rows && j <= self.to.cols && len <= self.to.cols - j);
        // SAFETY: the elements lie between the first and the last of `from`, which has as many rows and columns as `to`; or they are
        // `to`'s, which `self` borrows mutably and which nobody writes while this slice is there.
        V::load_up_to(unsafe { std::slice::from_raw_parts(self.from.add(i * self.from_stride + j), len) })
    }

    /// Asks for the lines of an element to be brought near, to be read and written soon; it may lie anywhere, even outside.
    #[inline(always)]
    pub(crate) fn prefetch(&self, i: usize, j: usize) {
        prefetch(self.from.wrapping_add(i.wrapping_mul(self.from_stride).wrapping_add(j)));
        if !self.is_past {
            prefetch(self.to.start.wrapping_add(i.wrapping_mul(self.to.stride).wrapping_add(j)));
        }
    }

    /// Writes `len` elements of row `i` from column `j` on, at most a vector.
    #[inline(always)]
    pub(crate) fn store<V: Lanes<Elem = T>>(&mut self, i: usize, j: usize, len: usize, value: V) {
        value.store_up_to(self.to.slice(i, j, len));
    }

    /// Writes a vector of row `i` from column `j` on: a part of lines that are written whole, and once.
    #[inline(always)]
    pub(crate) fn store_line<V: Lanes<Elem = T>>(&mut self, i: usize, j: usize, value: V) {
        store_line(self.to.slice(i, j, V::WIDTH), value, self.is_past);
    }
}

/// What is left of a row of a [`Transfer`]. It cannot outlive that, which fences.
pub(crate) struct TransferRow<'a, T> {
    from: *const T,
    from_stride: usize,
    to: *mut T,
    to_stride: usize,
    left: usize,
    is_past: bool,
    data: PhantomData<&'a mut [T]>,
}

impl<T: Element> TransferRow<'_, T> {
    /// Number of elements.
    #[inline(always)]
    pub(crate) fn left(&self) -> usize {
        self.left
    }

    /// Elements before one that begins a line of 64 bytes, if that matters because the caches are passed by.
    #[inline(always)]
    pub(crate) fn unaligned(&self) -> usize {
        if !self.is_past {
            return 0;
        }
        let address = self.to.addr();
        (address.next_multiple_of(64) - address) / size_of::<T>()
    }

    /// Leaves the first `len` elements behind.
    #[inline(always)]
    pub(crate) fn pass(&mut self, len: usize) {
        assert!(len <= self.left);
        self.from = self.from.wrapping_add(len);
        self.to = self.to.wrapping_add(len);
        self.left -= len;
    }

    /// `len` elements from `j` on, at most a vector.
    #[inline(always)]
    pub(crate) fn load<V: Lanes<Elem = T>>(&self, j: usize, len: usize) -> V {
        assert!(j <= self.left && len <= self.left - j);
        // SAFETY: as in `Transfer::load`: `left` counts what has not been passed of the row.
        V::load_up_to(unsafe { std::slice::from_raw_parts(self.from.add(j), len) })
    }

    /// Writes `len` elements from `j` on, at most a vector.
    #[inline(always)]
    pub(crate) fn store<V: Lanes<Elem = T>>(&mut self, j: usize, len: usize, value: V) {
        value.store_up_to(self.slice(j, len));
    }

    /// Writes a vector from `j` on: a part of lines that are written whole, and once.
    #[inline(always)]
    pub(crate) fn store_line<V: Lanes<Elem = T>>(&mut self, j: usize, value: V) {
        let is_past = self.is_past;
        store_line(self.slice(j, V::WIDTH), value, is_past);
    }

    #[inline(always)]
    fn slice(&mut self, j: usize, len: usize) -> &mut [T] {
        assert!(j <= self.left && len <= self.left - j);
        // SAFETY: as in `RowsMut::slice`: `left` counts what has not been passed of the row, which the transfer borrows mutably.
        unsafe { std::slice::from_raw_parts_mut(self.to.add(j), len) }
    }

    /// Asks for the lines of an element `i` rows below to be brought near, to be read and written soon; it may lie anywhere, even outside.
    #[inline(always)]
    pub(crate) fn prefetch(&self, i: usize, j: usize) {
        prefetch(self.from.wrapping_add(i.wrapping_mul(self.from_stride).wrapping_add(j)));
        if !self.is_past {
            prefetch(self.to.wrapping_add(i.wrapping_mul(self.to_stride).wrapping_add(j)));
        }
    }
}

/// Writes a vector, past the caches or not.
#[inline(always)]
fn store_line<V: Lanes>(to: &mut [V::Elem], value: V, is_past: bool) {
    if is_past {
        // SAFETY: a `Transfer`, or a `TransferRow` of one, calls this; dropping that fences on the thread that stored, because it stays on it.
        // What was read lies elsewhere: `Transfer::new`.
        unsafe { value.stream(to) }
    } else {
        value.store(to);
    }
}

impl<T> Drop for Transfer<'_, T> {
    #[inline(always)]
    fn drop(&mut self) {
        if self.is_past {
            // SAFETY: SSE is part of x86-64.
            #[cfg(all(target_arch = "x86_64", not(miri)))]
            unsafe {
                std::arch::x86_64::_mm_sfence();
            }
        }
    }
}

/// A matrix with any strides that give every element a place of its own, to write: it can be cut between rows and between columns,
/// even where those interleave in memory, and the parts be given to several threads.
pub(crate) struct CellsMut<'a, T> {
    start: *mut T,
    rows: usize,
    cols: usize,
    rs: usize,
    cs: usize,
    data: PhantomData<&'a mut [T]>,
}

// SAFETY: it borrows its elements mutably, and no other view has them.
unsafe impl<T: Send> Send for CellsMut<'_, T> {}
// SAFETY: a shared borrow only reads.
unsafe impl<T: Sync> Sync for CellsMut<'_, T> {}

impl<'a, T: Copy> CellsMut<'a, T> {
    /// Element (i, j) is `data[i * rs + j * cs]`.
    ///
    /// # Panics
    /// If there is no element, if the last lies outside `data`, or if two could share a place.
    #[inline(always)]
    pub(crate) fn new(data: &'a mut [T], (rows, cols): (usize, usize), (rs, cs): (usize, usize)) -> Self {
        assert!(span(rows, cols, rs, cs).is_some_and(|span| span <= data.len()), "window: outside its data");
        // The products are less than the span.
        let by_row = (cols == 1 || cs > 0) && (rows == 1 || rs > (cols - 1) * cs);
        let by_column = (rows == 1 || rs > 0) && (cols == 1 || cs > (rows - 1) * rs);
        assert!(by_row || by_column, "window: elements that share a place");
        CellsMut { start: data.as_mut_ptr(), rows, cols, rs, cs, data: PhantomData }
    }

    #[inline(always)]
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    #[inline(always)]
    pub(crate) fn cols(&self) -> usize {
        self.cols
    }

    /// The same elements, rows and columns exchanged.
    #[inline(always)]
    pub(crate) fn transpose(self) -> Self {
        CellsMut { rows: self.cols, cols: self.rows, rs: self.cs, cs: self.rs, ..self }
    }

    /// Whether the elements of a row follow one another.
    #[inline(always)]
    pub(crate) fn has_contiguous_rows(&self) -> bool {
        self.cs == 1
    }

    /// The first `at` rows, and the rest.
    ///
    /// # Panics
    /// If one of them would be empty.
    #[inline(always)]
    pub(crate) fn split_rows(self, at: usize) -> (Self, Self) {
        assert!(0 < at && at < self.rows);
        let below = self.start.wrapping_add(at * self.rs);
        (CellsMut { rows: at, ..self }, CellsMut { start: below, rows: self.rows - at, ..self })
    }

    /// The first `at` columns, and the rest.
    ///
    /// # Panics
    /// If one of them would be empty.
    #[inline(always)]
    pub(crate) fn split_cols(self, at: usize) -> (Self, Self) {
        assert!(0 < at && at < self.cols);
        let right = self.start.wrapping_add(at * self.cs);
        (CellsMut { cols: at, ..self }, CellsMut { start: right, cols: self.cols - at, ..self })
    }

    /// `rows` rows from row `i` on, of `cols` columns from column `j` on, for a shorter time.
    ///
    /// # Panics
    /// If they are not there, or none.
    #[inline(always)]
    pub(crate) fn block(&mut self, (i, rows): (usize, usize), (j, cols): (usize, usize)) -> CellsMut<'_, T> {
        assert!(rows > 0 && i < self.rows && rows <= self.rows - i);
        assert!(cols > 0 && j < self.cols && cols <= self.cols - j);
        CellsMut { start: self.start.wrapping_add(i * self.rs + j * self.cs), rows, cols, ..*self }
    }

    /// The same elements by rows.
    ///
    /// # Panics
    /// If a row's elements do not follow one another.
    #[inline(always)]
    pub(crate) fn into_rows(self) -> RowsMut<'a, T> {
        assert!(self.has_contiguous_rows());
        RowsMut { start: self.start, rows: self.rows, cols: self.cols, stride: self.rs, data: PhantomData }
    }

    /// The same elements by rows, to read for a while.
    ///
    /// # Panics
    /// If a row's elements do not follow one another.
    #[inline(always)]
    pub(crate) fn read(&self) -> Rows<'_, T> {
        assert!(self.has_contiguous_rows());
        Rows { start: self.start, rows: self.rows, cols: self.cols, stride: self.rs, data: PhantomData }
    }

    /// Element (i, j).
    #[inline(always)]
    pub(crate) fn at(&mut self, i: usize, j: usize) -> &mut T {
        assert!(i < self.rows && j < self.cols);
        // SAFETY: the element lies in `data` (checked by `new`), which is borrowed mutably by `self`; parts that were cut off have
        // other elements, and no two elements share a place (checked by `new`).
        unsafe { &mut *self.start.add(i * self.rs + j * self.cs) }
    }
}
