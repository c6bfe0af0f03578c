//! Matrices a few rows high that are stepped through column by column, beside the rows of another.

use super::rows::{Row, Rows};
use super::{opaque, span};
use std::marker::PhantomData;

/// A matrix a few rows high, whose columns are stepped through one at a time (by [`Pairs`]) and read element by element.
pub(crate) trait Columns<T>: Copy {
    /// Number of columns.
    fn len(&self) -> usize;
    /// Element `i` of the first column.
    fn get(&self, i: usize) -> T;
    /// The same without its first column.
    ///
    /// # Safety
    /// If no column is left, `get` is not called on the result. `len` still counts from where the whole began: the result is not handed
    /// to code that trusts it.
    unsafe fn rest(self) -> Self;
}

/// Several such matrices: the strips of a taller one.
pub(crate) trait Striped<T>: Columns<T> {
    /// The first `rows` rows of strip `s`, from its first column on.
    fn strip(self, s: usize, rows: usize) -> Self;
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
    /// Every third row: an address has room for 0, 1 and 2 times a stride and not for 3.
    starts: [*const T; 4],
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
        ByRow { starts: [data.as_ptr(); 4], strips, stride, data: PhantomData }
    }
}

impl<T: Copy> Striped<T> for ByColumn<'_, T> {
    #[inline(always)]
    fn strip(self, s: usize, rows: usize) -> Self {
        assert!(s < self.strips.count && 0 < rows && rows <= self.strips.rows);
        let start = self.start.wrapping_add(s * self.strips.step);
        ByColumn { start, strips: Strips { count: 1, rows, ..self.strips }, ..self }
    }
}

impl<T: Copy> Columns<T> for ByColumn<'_, T> {
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

impl<T: Copy> Striped<T> for ByRow<'_, T> {
    #[inline(always)]
    fn strip(self, s: usize, rows: usize) -> Self {
        assert!(s < self.strips.count && 0 < rows && rows <= self.strips.rows);
        let start = self.starts[0].wrapping_add(s * self.strips.step);
        let starts = [0, 3, 6, 9].map(|i: usize| opaque(start.wrapping_add(i.wrapping_mul(self.stride))));
        ByRow { starts, strips: Strips { count: 1, rows, ..self.strips }, ..self }
    }
}

impl<T: Copy> Columns<T> for ByRow<'_, T> {
    #[inline(always)]
    fn len(&self) -> usize {
        self.strips.cols
    }
    #[inline(always)]
    fn get(&self, i: usize) -> T {
        assert!(i < self.strips.rows);
        // SAFETY: the first column's elements lie in `data`: checked by `new`, and by the caller of `rest`; `strip` made the starts.
        unsafe { *self.starts[i / 3].add(i % 3 * self.stride) }
    }
    #[inline(always)]
    unsafe fn rest(self) -> Self {
        ByRow { starts: self.starts.map(|start| start.wrapping_add(1)), ..self }
    }
}

/// Rows with any strides: element (i, j) is `data[i * rs + j * cs]`.
#[derive(Clone, Copy)]
pub(crate) struct Strided<'a, T> {
    start: *const T,
    rows: usize,
    cols: usize,
    strides: (usize, usize),
    data: PhantomData<&'a [T]>,
}

impl<'a, T: Copy> Strided<'a, T> {
    /// # Panics
    /// If there is no element, or if the last lies outside `data`.
    #[inline(always)]
    pub(crate) fn new(data: &'a [T], rows: usize, cols: usize, strides: (usize, usize)) -> Self {
        let span = span(rows, cols, strides.0, strides.1);
        assert!(span.is_some_and(|span| span <= data.len()), "window: outside its data");
        Strided { start: data.as_ptr(), rows, cols, strides, data: PhantomData }
    }

    /// `count` rows from row `i` on.
    #[inline(always)]
    pub(crate) fn block(self, i: usize, count: usize) -> Self {
        assert!(0 < count && i < self.rows && count <= self.rows - i);
        Strided { start: self.start.wrapping_add(i * self.strides.0), rows: count, ..self }
    }
}

impl<T: Copy> Columns<T> for Strided<'_, T> {
    #[inline(always)]
    fn len(&self) -> usize {
        self.cols
    }
    #[inline(always)]
    fn get(&self, i: usize) -> T {
        assert!(i < self.rows);
        // SAFETY: the first column's elements lie in `data`: checked by `new`, and by the caller of `rest`.
        unsafe { *self.start.add(i * self.strides.0) }
    }
    #[inline(always)]
    unsafe fn rest(self) -> Self {
        Strided { start: self.start.wrapping_add(self.strides.1), ..self }
    }
}

/// One column of a matrix a few rows high.
#[derive(Clone, Copy)]
pub(crate) struct Column<A>(A);

impl<A> Column<A> {
    /// Element `i`.
    #[inline(always)]
    pub(crate) fn get<T>(&self, i: usize) -> T
    where
        A: Columns<T>,
    {
        self.0.get(i)
    }
}

/// The columns of one matrix and the rows of another, side by side, in groups of any sizes: whether so many are left is asked once
/// for each group.
pub(crate) struct Pairs<'a, T, A> {
    columns: A,
    /// From the next row on, though they still count from the first: nothing is read by them.
    rows: Rows<'a, T>,
    /// In the group, and behind it.
    left: (usize, usize),
}

impl<'a, T: Copy, A: Columns<T>> Pairs<'a, T, A> {
    /// # Panics
    /// If there are not as many columns as rows.
    #[inline(always)]
    pub(crate) fn new(columns: A, rows: Rows<'a, T>) -> Self {
        assert_eq!(columns.len(), rows.rows);
        Pairs { columns, rows, left: (0, rows.rows) }
    }

    /// Begins a group of `count` pairs, if so many are left.
    #[inline(always)]
    pub(crate) fn begin(&mut self, count: usize) -> bool {
        let all = self.left.0 + self.left.1;
        if all < count {
            return false;
        }
        self.left = (count, all - count);
        true
    }

    /// The next column of the group, and the next row.
    #[inline(always)]
    pub(crate) fn take(&mut self) -> (Column<A>, Row<'a, T>) {
        assert!(self.left.0 > 0);
        self.left.0 -= 1;
        // What `Row` relies on: one of the rows that `new` was given, as many of which were left as `left` counts.
        let row = Row { start: self.rows.start, cols: self.rows.cols, data: PhantomData };
        let pair = (Column(self.columns), row);
        // SAFETY: the result is read only where a column is left, as `left` counts.
        self.columns = unsafe { self.columns.rest() };
        self.rows.start = self.rows.start.wrapping_add(self.rows.stride);
        pair
    }
}
