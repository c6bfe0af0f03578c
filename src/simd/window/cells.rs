//! Cells of a matrix to write, which is cut into parts that interleave in memory.

use super::rows::{Rows, RowsMut};
use super::span;
use std::marker::PhantomData;

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
        // What `RowsMut` relies on: `new` saw the elements in `data`, and no other part has them.
        RowsMut { start: self.start, rows: self.rows, cols: self.cols, stride: self.rs, data: PhantomData }
    }

    /// The same elements by rows, to read for a while.
    ///
    /// # Panics
    /// If a row's elements do not follow one another.
    #[inline(always)]
    pub(crate) fn read(&self) -> Rows<'_, T> {
        assert!(self.has_contiguous_rows());
        // What `Rows` relies on: `new` saw the elements in `data`, and nobody writes them while `self` is borrowed.
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
