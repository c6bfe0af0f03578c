//! Rows of contiguous elements: to read or to write, several abreast, or panel by panel.

use super::{opaque, prefetch, span};
use std::marker::PhantomData;

/// `rows` rows of `cols` contiguous elements, `stride` apart, to read by vectors.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a, T> {
    pub(super) start: *const T,
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) stride: usize,
    /// All are made in this file and by `CellsMut::read`; elsewhere the fields are read, but for the start of those that `Pairs` keeps.
    pub(super) data: PhantomData<&'a [T]>,
}

impl<'a, T: Copy> Rows<'a, T> {
    /// # Panics
    /// If there is no element, or if the last lies outside `data`.
    #[inline(always)]
    pub(crate) fn new(data: &'a [T], rows: usize, cols: usize, stride: usize) -> Self {
        assert!(span(rows, cols, stride, 1).is_some_and(|span| span <= data.len()), "window: outside its data");
        Rows { start: data.as_ptr(), rows, cols, stride, data: PhantomData }
    }

    /// Number of columns.
    #[inline(always)]
    pub(crate) fn cols(&self) -> usize {
        self.cols
    }

    /// `cols` columns from column `j` on.
    #[inline(always)]
    pub(crate) fn columns(self, j: usize, cols: usize) -> Self {
        assert!(cols > 0 && j < self.cols && cols <= self.cols - j);
        Rows { start: self.start.wrapping_add(j), cols, ..self }
    }

    /// `rows` rows from row `i` on, of `cols` columns from column `j` on.
    #[inline(always)]
    pub(crate) fn block(self, (i, rows): (usize, usize), (j, cols): (usize, usize)) -> Self {
        assert!(rows > 0 && i < self.rows && rows <= self.rows - i);
        assert!(cols > 0 && j < self.cols && cols <= self.cols - j);
        Rows { start: self.start.wrapping_add(i * self.stride + j), rows, cols, ..self }
    }

    /// `len` elements of row `i` from column `j` on.
    #[inline(always)]
    pub(crate) fn slice(&self, i: usize, j: usize, len: usize) -> &'a [T] {
        assert!(i < self.rows && j <= self.cols && len <= self.cols - j);
        // SAFETY: the elements lie between the first and the last, which lie in `data` (checked by `new`, or by `RowsMut::new`,
        // `CellsMut::new` or `Panels::new`, of whose elements these are a part). Nobody moves `start` alone but `Pairs`, which does not
        // call this.
        unsafe { std::slice::from_raw_parts(self.start.add(i * self.stride + j), len) }
    }

    /// Leaves the first `len` columns behind; if these were all, nothing is left to read.
    #[inline(always)]
    pub(crate) fn pass(&mut self, len: usize) {
        assert!(len <= self.cols);
        self.start = self.start.wrapping_add(len);
        self.cols -= len;
    }

    /// Asks for the line of an element to be brought near, to be read soon; it may lie anywhere, even outside.
    #[inline(always)]
    pub(crate) fn prefetch(&self, i: usize, j: usize) {
        prefetch(self.start.wrapping_add(i.wrapping_mul(self.stride).wrapping_add(j)));
    }
}

/// `rows` rows of `cols` contiguous elements, `stride` apart, to write.
pub(crate) struct RowsMut<'a, T> {
    pub(super) start: *mut T,
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) stride: usize,
    pub(super) data: PhantomData<&'a mut [T]>,
}

impl<'a, T: Copy> RowsMut<'a, T> {
    /// # Panics
    /// If there is no element, or if the last lies outside `data`.
    #[inline(always)]
    pub(crate) fn new(data: &'a mut [T], rows: usize, cols: usize, stride: usize) -> Self {
        assert!(span(rows, cols, stride, 1).is_some_and(|span| span <= data.len()), "window: outside its data");
        RowsMut { start: data.as_mut_ptr(), rows, cols, stride, data: PhantomData }
    }

    /// `rows` rows from row `i` on, of `cols` columns from column `j` on.
    #[inline(always)]
    pub(crate) fn block(&mut self, (i, rows): (usize, usize), (j, cols): (usize, usize)) -> RowsMut<'_, T> {
        assert!(rows > 0 && i < self.rows && rows <= self.rows - i);
        assert!(cols > 0 && j < self.cols && cols <= self.cols - j);
        RowsMut { start: self.start.wrapping_add(i * self.stride + j), rows, cols, ..*self }
    }

    /// The same elements, to read for a while.
    #[inline(always)]
    pub(crate) fn read(&self) -> Rows<'_, T> {
        Rows { start: self.start, rows: self.rows, cols: self.cols, stride: self.stride, data: PhantomData }
    }

    /// Asks for the line of an element to be brought near, to be written soon; it may lie anywhere, even outside.
    #[inline(always)]
    pub(crate) fn prefetch(&self, i: usize, j: usize) {
        self.read().prefetch(i, j);
    }

    /// `len` elements of row `i` from column `j` on.
    #[inline(always)]
    pub(crate) fn slice(&mut self, i: usize, j: usize, len: usize) -> &mut [T] {
        assert!(i < self.rows && j <= self.cols && len <= self.cols - j);
        // SAFETY: the elements lie between the first and the last, which lie in `data` (checked by `new`, or by `CellsMut::new`, whose
        // parts share no element and become rows by `CellsMut::into_rows`; no others are made outside this file, and no field is written
        // there); these are borrowed mutably by `self`, as `self` is by the slice.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(i * self.stride + j), len) }
    }
}

/// A row of [`Rows`].
#[derive(Clone, Copy)]
pub(crate) struct Row<'a, T> {
    pub(super) start: *const T,
    pub(super) cols: usize,
    pub(super) data: PhantomData<&'a [T]>,
}

impl<'a, T: Copy> Row<'a, T> {
    /// `len` elements from column `j` on.
    #[inline(always)]
    pub(crate) fn slice(&self, j: usize, len: usize) -> &'a [T] {
        assert!(j <= self.cols && len <= self.cols - j);
        // SAFETY: the elements lie in the row, and the row in `data`: it is one of some `Rows`, as `Pairs::take` counts, which alone makes
        // this.
        unsafe { std::slice::from_raw_parts(self.start.add(j), len) }
    }
}

/// Neighbouring rows of one matrix, and of another that has as many columns, side by side: read by pieces at the same columns.
#[derive(Clone, Copy)]
pub(crate) struct Abreast<'a, T, const N: usize, const M: usize> {
    starts: ([*const T; N], [*const T; M]),
    passed: usize,
    left: usize,
    data: PhantomData<&'a [T]>,
}

impl<'a, T: Copy, const N: usize, const M: usize> Abreast<'a, T, N, M> {
    /// `N` rows of the one matrix and `M` of the other, from the given row on.
    ///
    /// # Panics
    /// If one of the rows is not there, or if the columns differ in number.
    #[inline(always)]
    pub(crate) fn new((one, i): (Rows<'a, T>, usize), (other, j): (Rows<'a, T>, usize)) -> Self {
        assert!(i <= one.rows && N <= one.rows - i && j <= other.rows && M <= other.rows - j && one.cols == other.cols);
        let (mut a, mut b) = ([one.start; N], [other.start; M]);
        for n in 0..N {
            a[n] = opaque(one.start.wrapping_add((i + n).wrapping_mul(one.stride)));
        }
        for m in 0..M {
            b[m] = opaque(other.start.wrapping_add((j + m).wrapping_mul(other.stride)));
        }
        Abreast { starts: (a, b), passed: 0, left: one.cols, data: PhantomData }
    }

    /// Number of columns that are left.
    #[inline(always)]
    pub(crate) fn left(&self) -> usize {
        self.left
    }

    /// Row `n` of the one matrix, `len` elements from column `at` of what is left.
    #[inline(always)]
    pub(crate) fn one(&self, n: usize, at: usize, len: usize) -> &'a [T] {
        assert!(at <= self.left && len <= self.left - at);
        // SAFETY: the rows are some of `Rows` (checked by `new`), whose elements may be read, and `left` counts what has not been passed
        // of them.
        unsafe { std::slice::from_raw_parts(self.starts.0[n].add(self.passed + at), len) }
    }

    /// The same of the other matrix.
    #[inline(always)]
    pub(crate) fn other(&self, m: usize, at: usize, len: usize) -> &'a [T] {
        assert!(at <= self.left && len <= self.left - at);
        // SAFETY: as for the one.
        unsafe { std::slice::from_raw_parts(self.starts.1[m].add(self.passed + at), len) }
    }

    /// Passes `len` columns.
    #[inline(always)]
    pub(crate) fn pass(&mut self, len: usize) {
        assert!(len <= self.left);
        self.left -= len;
        self.passed += len;
    }
}

/// Several [`Rows`] of one size, `step` elements apart: the panels of a matrix.
#[derive(Clone, Copy)]
pub(crate) struct Panels<'a, T> {
    first: Rows<'a, T>,
    count: usize,
    step: usize,
}

impl<'a, T: Copy> Panels<'a, T> {
    /// # Panics
    /// If there is no element, or if the last lies outside `data`.
    #[inline(always)]
    pub(crate) fn new(
        data: &'a [T],
        (count, step): (usize, usize),
        (rows, cols): (usize, usize),
        stride: usize,
    ) -> Self {
        let last = count.checked_sub(1).and_then(|last| last.checked_mul(step));
        let all = last.zip(span(rows, cols, stride, 1)).and_then(|(last, panel)| last.checked_add(panel));
        assert!(all.is_some_and(|all| all <= data.len()), "window: outside its data");
        let first = Rows { start: data.as_ptr(), rows, cols, stride, data: PhantomData };
        Panels { first, count, step }
    }

    /// How many there are.
    #[inline(always)]
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// Asks for the first line of each row of panel `p` to be brought near, to be read soon, where the rows lie apart.
    #[inline(always)]
    pub(crate) fn prefetch(&self, p: usize) {
        if self.first.stride == self.first.cols {
            return;
        }
        for i in 0..self.first.rows {
            self.first.prefetch(i, p.wrapping_mul(self.step));
        }
    }

    /// The first `cols` columns of panel `p`.
    #[inline(always)]
    pub(crate) fn get(&self, p: usize, cols: usize) -> Rows<'a, T> {
        assert!(p < self.count && 0 < cols && cols <= self.first.cols);
        Rows { start: self.first.start.wrapping_add(p * self.step), cols, ..self.first }
    }
}
