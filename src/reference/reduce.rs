//! Sums over the rows or the columns of a row-major matrix.
//!
//! ```text
//! column_sums[j] = sum over i of x[i, j]      row_sums[i] = sum over j of x[i, j]
//! ```
//!
//! The gradient of a bias that was added to every row is the column sums of `dy`. An empty sum is zero. NaN and infinities
//! reach the sum that they are part of and no other. Accurate to about one rounding at any length ([`Sum`]).

use super::sum::Sum;

/// One sum per column: `x` is `[rows, columns]`, the result `[columns]`.
///
/// # Panics
/// If `x` does not have `rows * columns` elements.
pub fn column_sums(x: &[f64], rows: usize, columns: usize) -> Vec<f64> {
    check(x, rows, columns);
    (0..columns).map(|j| (0..rows).map(|i| x[i * columns + j]).collect::<Sum>().value()).collect()
}

/// One sum per row: `x` is `[rows, columns]`, the result `[rows]`.
///
/// # Panics
/// If `x` does not have `rows * columns` elements.
pub fn row_sums(x: &[f64], rows: usize, columns: usize) -> Vec<f64> {
    check(x, rows, columns);
    (0..rows).map(|i| (0..columns).map(|j| x[i * columns + j]).collect::<Sum>().value()).collect()
}

fn check(x: &[f64], rows: usize, columns: usize) {
    assert_eq!(x.len(), rows * columns, "reduce: x has {} elements, but is {rows} x {columns}", x.len());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_worked_by_hand() {
        let x = [1.0, 2.0, 3.0, 10.0, 20.0, 30.0];
        assert_eq!(column_sums(&x, 2, 3), [11.0, 22.0, 33.0]);
        assert_eq!(row_sums(&x, 2, 3), [6.0, 60.0]);
        assert_eq!(column_sums(&[], 0, 2), [0.0, 0.0]);
        assert_eq!(row_sums(&[], 2, 0), [0.0, 0.0]);
    }

    #[test]
    fn a_nan_stays_in_its_own_sum() {
        let x = [1.0, f64::NAN, 3.0, 4.0];
        let (columns, rows) = (column_sums(&x, 2, 2), row_sums(&x, 2, 2));
        assert!(columns[0] == 4.0 && columns[1].is_nan());
        assert!(rows[0].is_nan() && rows[1] == 7.0);
    }
}
