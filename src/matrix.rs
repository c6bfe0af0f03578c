//! Views of matrices: rows, columns and two strides. Transposing swaps the strides and moves nothing.

use crate::error::{Error, Result};

/// A view of an `rows x cols` matrix: element (i, j) is `data[i * rs + j * cs]`.
#[derive(Clone, Copy, Debug)]
pub struct MatRef<'a, T> {
    data: &'a [T],
    rows: usize,
    cols: usize,
    rs: usize,
    cs: usize,
}

/// A view of an `rows x cols` matrix that can be written: element (i, j) is `data[i * rs + j * cs]`.
#[derive(Debug)]
pub struct MatMut<'a, T> {
    data: &'a mut [T],
    rows: usize,
    cols: usize,
    rs: usize,
    cs: usize,
}

/// Number of elements from the first to the last of a view, both included.
fn span(rows: usize, cols: usize, rs: usize, cs: usize) -> Option<usize> {
    if rows == 0 || cols == 0 {
        return Some(0);
    }
    let down = (rows - 1).checked_mul(rs)?;
    let across = (cols - 1).checked_mul(cs)?;
    down.checked_add(across)?.checked_add(1)
}

fn check(what: &str, len: usize, rows: usize, cols: usize, rs: usize, cs: usize) -> Result<()> {
    match span(rows, cols, rs, cs) {
        Some(needed) if needed <= len => Ok(()),
        Some(needed) => {
            let wanted = format!("at least {needed} elements for {rows}x{cols} with strides {rs}, {cs}");
            Err(Error::shape(what, wanted, format!("{len} elements")))
        }
        None => Err(Error::shape(what, "a size that fits an address", format!("{rows}x{cols}, strides {rs}, {cs}"))),
    }
}

impl<'a, T> MatRef<'a, T> {
    /// A row-major matrix that fills `data`.
    ///
    /// # Panics
    /// If `data` does not have `rows * cols` elements.
    #[inline]
    pub fn new(data: &'a [T], rows: usize, cols: usize) -> Self {
        assert!(rows.checked_mul(cols) == Some(data.len()), "matrix: {rows}x{cols} over {} elements", data.len());
        MatRef { data, rows, cols, rs: cols, cs: 1 }
    }

    /// A matrix with any strides, in elements; a stride of 0 repeats a row or a column.
    ///
    /// # Errors
    /// If the last element would lie outside `data`.
    pub fn with_strides(data: &'a [T], rows: usize, cols: usize, rs: usize, cs: usize) -> Result<Self> {
        check("matrix", data.len(), rows, cols, rs, cs)?;
        Ok(MatRef { data, rows, cols, rs, cs })
    }

    /// The same elements, rows and columns exchanged.
    #[inline]
    pub fn transpose(self) -> Self {
        MatRef { data: self.data, rows: self.cols, cols: self.rows, rs: self.cs, cs: self.rs }
    }

    /// Number of rows.
    #[inline]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    #[inline]
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Elements from one row to the next.
    #[inline]
    pub fn row_stride(&self) -> usize {
        self.rs
    }

    /// Elements from one column to the next.
    #[inline]
    pub fn col_stride(&self) -> usize {
        self.cs
    }

    /// What the view lies on, from element (0, 0).
    #[inline]
    pub fn data(&self) -> &'a [T] {
        self.data
    }

    /// Rows `from..to`.
    ///
    /// # Panics
    /// If the range does not lie in the matrix.
    #[inline]
    pub fn row_range(self, from: usize, to: usize) -> Self {
        assert!(from <= to && to <= self.rows, "matrix: rows {from}..{to} of {}", self.rows);
        let start = if from == to || self.cols == 0 { 0 } else { from * self.rs };
        MatRef { data: &self.data[start..], rows: to - from, ..self }
    }
}

impl<T: Copy> MatRef<'_, T> {
    /// Element (i, j).
    ///
    /// # Panics
    /// If it lies outside the matrix.
    #[inline]
    pub fn get(&self, i: usize, j: usize) -> T {
        assert!(i < self.rows && j < self.cols, "matrix: ({i}, {j}) of {}x{}", self.rows, self.cols);
        self.data[i * self.rs + j * self.cs]
    }
}

impl<'a, T> MatMut<'a, T> {
    /// A row-major matrix that fills `data`.
    ///
    /// # Panics
    /// If `data` does not have `rows * cols` elements.
    #[inline]
    pub fn new(data: &'a mut [T], rows: usize, cols: usize) -> Self {
        assert!(rows.checked_mul(cols) == Some(data.len()), "matrix: {rows}x{cols} over {} elements", data.len());
        MatMut { data, rows, cols, rs: cols, cs: 1 }
    }

    /// A matrix with strides that give every element a place of its own: one of them is longer than all that the other passes over, as in
    /// every part of a larger matrix and its transpose.
    ///
    /// # Errors
    /// If the last element would lie outside `data`, or if the strides are others: two elements could share a place.
    pub fn with_strides(data: &'a mut [T], rows: usize, cols: usize, rs: usize, cs: usize) -> Result<Self> {
        check("matrix", data.len(), rows, cols, rs, cs)?;
        if rows == 0 || cols == 0 {
            return Ok(MatMut { data, rows, cols, rs, cs });
        }
        let apart = rows <= 1 || cols <= 1 || (cs > 0 && rs > (cols - 1) * cs) || (rs > 0 && cs > (rows - 1) * rs);
        let repeats = (rows > 1 && rs == 0) || (cols > 1 && cs == 0);
        if !apart || repeats {
            let wanted = "strides that keep the elements of a result apart";
            return Err(Error::shape("matrix", wanted, format!("{rows}x{cols} with strides {rs}, {cs}")));
        }
        Ok(MatMut { data, rows, cols, rs, cs })
    }

    /// A view that can be read.
    #[inline]
    pub fn as_ref(&self) -> MatRef<'_, T> {
        MatRef { data: self.data, rows: self.rows, cols: self.cols, rs: self.rs, cs: self.cs }
    }

    /// The same view for a shorter time.
    #[inline]
    pub fn reborrow(&mut self) -> MatMut<'_, T> {
        MatMut { data: self.data, rows: self.rows, cols: self.cols, rs: self.rs, cs: self.cs }
    }

    /// The same elements, rows and columns exchanged.
    #[inline]
    pub fn transpose(self) -> Self {
        MatMut { data: self.data, rows: self.cols, cols: self.rows, rs: self.cs, cs: self.rs }
    }

    /// Number of rows.
    #[inline]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    #[inline]
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Elements from one row to the next.
    #[inline]
    pub fn row_stride(&self) -> usize {
        self.rs
    }

    /// Elements from one column to the next.
    #[inline]
    pub fn col_stride(&self) -> usize {
        self.cs
    }

    /// What the view lies on, from element (0, 0).
    #[inline]
    pub fn data_mut(&mut self) -> &mut [T] {
        self.data
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transpose_reads_the_same_elements() {
        let x: Vec<i32> = (0..6).collect();
        let a = MatRef::new(&x, 2, 3);
        assert_eq!(a.get(1, 2), 5);
        assert_eq!(a.transpose().get(2, 1), 5);
        assert_eq!(a.row_range(1, 2).get(0, 0), 3);
        let every_second = MatRef::with_strides(&x, 3, 1, 2, 1).unwrap();
        assert_eq!(every_second.get(2, 0), 4);
    }

    #[test]
    fn strides_outside_the_data_or_onto_one_another_are_refused() {
        let mut x = vec![0; 6];
        assert!(MatRef::with_strides(&x, 2, 3, 4, 1).is_err());
        assert!(MatRef::with_strides(&x, usize::MAX, 2, usize::MAX, 1).is_err());
        assert!(MatRef::with_strides(&x, 5, 6, 0, 1).is_ok());
        assert!(MatMut::with_strides(&mut x, 2, 3, 2, 1).is_err());
        assert!(MatMut::with_strides(&mut x, 2, 3, 0, 1).is_err());
        assert!(MatMut::with_strides(&mut x, 2, 3, 1, 2).is_ok());
        assert!(MatRef::<i32>::with_strides(&[], 0, 5, 5, 1).is_ok());
        // No rows by columns: the next column begins where this one does, and neither has an element.
        assert!(MatMut::<i32>::with_strides(&mut [], 0, 5, 1, 0).is_ok());
    }
}
