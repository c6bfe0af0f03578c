//! Strided views whose bounds are checked once, when they are made, for loops that step through a matrix.
//!
//! Every access still asserts that its row and column lie in the view; those comparisons are between values that the loop
//! around them knows, so the compiler removes them, where the bounds of a slice would be checked at every step. No view is empty:
//! its first element is always there.

use std::marker::PhantomData;

/// Number of elements from the first to the last of `rows x cols`, both included, if both are there and that is a number.
#[inline(always)]
fn span(rows: usize, cols: usize, rs: usize, cs: usize) -> Option<usize> {
    let (down, across) = (rows.checked_sub(1)?.checked_mul(rs)?, cols.checked_sub(1)?.checked_mul(cs)?);
    down.checked_add(across)?.checked_add(1)
}

/// Strips of a matrix, each a few rows high, whose columns are stepped through one at a time and read element by element.
pub(crate) trait Columns<T>: Copy {
    /// Strip `s`, from its first column on.
    fn strip(self, s: usize) -> Self;
    /// Number of columns.
    fn len(&self) -> usize;
    /// Element `i` of the first column.
    fn get(&self, i: usize) -> T;
    /// The same without its first column.
    ///
    /// # Safety
    /// If no column is left, `get` is not called on the result.
    unsafe fn rest(self) -> Self;
}

/// How many strips of how many rows and columns, and how many elements from one strip to the next.
#[derive(Clone, Copy)]
pub(crate) struct Strips {
    pub(crate) count: usize,
    pub(crate) step: usize,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
}

impl Strips {
    /// Whether strips of that many elements are there and lie in `len` of them.
    #[inline(always)]
    fn fit(self, strip: Option<usize>, len: usize) -> bool {
        let last = self.count.checked_sub(1).and_then(|last| last.checked_mul(self.step));
        last.zip(strip).and_then(|(last, strip)| last.checked_add(strip)).is_some_and(|all| all <= len)
    }
}

/// Strips whose columns are contiguous: element (i, j) of strip s is `data[s * step + i + j * stride]`.
#[derive(Clone, Copy)]
pub(crate) struct ByColumn<'a, T> {
    start: *const T,
    strips: Strips,
    stride: usize,
    data: PhantomData<&'a [T]>,
}

/// Strips whose rows are contiguous: element (i, j) of strip s is `data[s * step + i * stride + j]`.
#[derive(Clone, Copy)]
pub(crate) struct ByRow<'a, T> {
    start: *const T,
    strips: Strips,
    stride: usize,
    data: PhantomData<&'a [T]>,
}

impl<'a, T: Copy> ByColumn<'a, T> {
    /// # Panics
    /// If there is no element, or if the last lies outside `data`.
    #[inline(always)]
    pub(crate) fn new(data: &'a [T], strips: Strips, stride: usize) -> Self {
        assert!(strips.fit(span(strips.rows, strips.cols, 1, stride), data.len()), "window: outside its data");
        ByColumn { start: data.as_ptr(), strips, stride, data: PhantomData }
    }
}

impl<'a, T: Copy> ByRow<'a, T> {
    /// # Panics
    /// If there is no element, or if the last lies outside `data`.
    #[inline(always)]
    pub(crate) fn new(data: &'a [T], strips: Strips, stride: usize) -> Self {
        assert!(strips.fit(span(strips.rows, strips.cols, stride, 1), data.len()), "window: outside its data");
        ByRow { start: data.as_ptr(), strips, stride, data: PhantomData }
    }
}

impl<T: Copy> Columns<T> for ByColumn<'_, T> {
    #[inline(always)]
    fn strip(self, s: usize) -> Self {
        assert!(s < self.strips.count);
        ByColumn {
            start: self.start.wrapping_add(s * self.strips.step),
            strips: Strips { count: 1, ..self.strips },
            ..self
        }
    }
    #[inline(always)]
    fn len(&self) -> usize {
        self.strips.cols
    }
    #[inline(always)]
    fn get(&self, i: usize) -> T {
        assert!(i < self.strips.rows);
        // SAFETY: the first column's elements lie in `data`: checked by `new`, and by the caller of `rest`.
        unsafe { *self.start.add(i) }
    }
    #[inline(always)]
    unsafe fn rest(self) -> Self {
        ByColumn { start: self.start.wrapping_add(self.stride), ..self }
    }
}

impl<T: Copy> Columns<T> for ByRow<'_, T> {
    #[inline(always)]
    fn strip(self, s: usize) -> Self {
        assert!(s < self.strips.count);
        ByRow {
            start: self.start.wrapping_add(s * self.strips.step),
            strips: Strips { count: 1, ..self.strips },
            ..self
        }
    }
    #[inline(always)]
    fn len(&self) -> usize {
        self.strips.cols
    }
    #[inline(always)]
    fn get(&self, i: usize) -> T {
        assert!(i < self.strips.rows);
        // Two steps, because an address has room for 0, 1, 2 and 4 times a stride and not for 3 and 5.
        // SAFETY: the first column's elements lie in `data`: checked by `new`, and by the caller of `rest`.
        unsafe { *self.start.add(i / 3 * 3 * self.stride).add(i % 3 * self.stride) }
    }
    #[inline(always)]
    unsafe fn rest(self) -> Self {
        ByRow { start: self.start.wrapping_add(1), ..self }
    }
}

/// `rows` rows of `cols` contiguous elements, `stride` apart, to read by vectors.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a, T> {
    start: *const T,
    rows: usize,
    cols: usize,
    stride: usize,
    data: PhantomData<&'a [T]>,
}

impl<'a, T: Copy> Rows<'a, T> {
    /// # Panics
    /// If there is no element, or if the last lies outside `data`.
    #[inline(always)]
    pub(crate) fn new(data: &'a [T], rows: usize, cols: usize, stride: usize) -> Self {
        assert!(span(rows, cols, stride, 1).is_some_and(|span| span <= data.len()), "window: outside its data");
        Rows { start: data.as_ptr(), rows, cols, stride, data: PhantomData }
    }

    /// `len` elements of row `i` from column `j` on.
    #[inline(always)]
    pub(crate) fn slice(&self, i: usize, j: usize, len: usize) -> &'a [T] {
        assert!(i < self.rows && j <= self.cols && len <= self.cols - j);
        // SAFETY: the elements lie between the first and the last, which lie in `data` (checked by `new`).
        unsafe { std::slice::from_raw_parts(self.start.add(i * self.stride + j), len) }
    }
}

/// A row of [`Rows`].
#[derive(Clone, Copy)]
pub(crate) struct Row<'a, T> {
    start: *const T,
    cols: usize,
    data: PhantomData<&'a [T]>,
}

impl<'a, T: Copy> Row<'a, T> {
    /// `len` elements from column `j` on.
    #[inline(always)]
    pub(crate) fn slice(&self, j: usize, len: usize) -> &'a [T] {
        assert!(j <= self.cols && len <= self.cols - j);
        // SAFETY: the elements lie in the row, and the row in `data` (checked by `Rows::new`).
        unsafe { std::slice::from_raw_parts(self.start.add(j), len) }
    }
}

/// The columns of one matrix and the rows of another, side by side.
pub(crate) struct Pairs<'a, T, A> {
    columns: A,
    rows: Rows<'a, T>,
    left: usize,
}

impl<'a, T: Copy, A: Columns<T>> Pairs<'a, T, A> {
    /// # Panics
    /// If there are not as many columns as rows.
    #[inline(always)]
    pub(crate) fn new(columns: A, rows: Rows<'a, T>) -> Self {
        assert_eq!(columns.len(), rows.rows);
        Pairs { columns, rows, left: rows.rows }
    }

    /// Number of pairs that are left.
    #[inline(always)]
    pub(crate) fn left(&self) -> usize {
        self.left
    }

    /// The next column, as the first of what follows, and the next row.
    #[inline(always)]
    pub(crate) fn take(&mut self) -> (A, Row<'a, T>) {
        assert!(self.left > 0);
        self.left -= 1;
        let row = Row { start: self.rows.start, cols: self.rows.cols, data: PhantomData };
        let pair = (self.columns, row);
        // SAFETY: the result is read only where a column is left, as `left` counts.
        self.columns = unsafe { self.columns.rest() };
        self.rows.start = self.rows.start.wrapping_add(self.rows.stride);
        pair
    }
}

/// `rows` rows of `cols` contiguous elements, `stride` apart, to write.
pub(crate) struct RowsMut<'a, T> {
    start: *mut T,
    rows: usize,
    cols: usize,
    stride: usize,
    data: PhantomData<&'a mut [T]>,
}

impl<'a, T: Copy> RowsMut<'a, T> {
    /// # Panics
    /// If there is no element, or if the last lies outside `data`.
    #[inline(always)]
    pub(crate) fn new(data: &'a mut [T], rows: usize, cols: usize, stride: usize) -> Self {
        assert!(span(rows, cols, stride, 1).is_some_and(|span| span <= data.len()), "window: outside its data");
        RowsMut { start: data.as_mut_ptr(), rows, cols, stride, data: PhantomData }
    }

    /// `count` rows from row `i` on.
    #[inline(always)]
    pub(crate) fn part(&mut self, i: usize, count: usize) -> RowsMut<'_, T> {
        assert!(i < self.rows && count <= self.rows - i);
        RowsMut { start: self.start.wrapping_add(i * self.stride), rows: count, ..*self }
    }

    /// Asks for row `i` to be brought near, to be written soon.
    #[inline(always)]
    pub(crate) fn prefetch(&self, i: usize) {
        assert!(i < self.rows && self.cols > 0);
        // SAFETY: the element lies between the first and the last, which lie in `data` (checked by `new`); a prefetch reads and
        // writes nothing, and SSE is part of x86-64.
        #[cfg(target_arch = "x86_64")]
        unsafe {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            _mm_prefetch::<_MM_HINT_T0>(self.start.add(i * self.stride).cast());
        }
    }

    /// `len` elements of row `i` from column `j` on.
    #[inline(always)]
    pub(crate) fn slice(&mut self, i: usize, j: usize, len: usize) -> &mut [T] {
        assert!(i < self.rows && j <= self.cols && len <= self.cols - j);
        // SAFETY: the elements lie between the first and the last, which lie in `data` (checked by `new`), which is borrowed
        // mutably by `self`, as `self` is by the slice.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(i * self.stride + j), len) }
    }
}
