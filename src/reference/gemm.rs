//! Matrix product: `C <- alpha A B + beta C`, with A `m x k`, B `k x n` and C `m x n`.
//!
//! ```text
//! c[i, j] <- alpha * sum over p of a(i, p) b(p, j)  +  beta * c[i, j]
//! ```
//!
//! A and B are functions of row and column, so that one statement covers every stride and transpose; C is a row-major slice.
//!
//! **What is read.** `beta == 0` means "C is not read": garbage or NaN in it is overwritten. `alpha == 0` or `k == 0` means
//! "A and B are not read": NaN in them does not reach C, which becomes `beta C`. Otherwise nothing is skipped, so NaN and
//! infinities propagate even where the other factor is zero. `m == 0` or `n == 0` does nothing.
//!
//! **Rounding.** The sum is compensated ([`Sum`]), each product is rounded once: the error is about `u |A| |B|` at any `k`.
//! A kernel is judged by the scaled residual `|C - C_ref| / (|alpha| |A| |B| + |beta| |C|)`, elementwise, in units of its
//! own `u`; [`gemm_bound`] is the denominator.
//!
//! **Backward.** From `dL/dc[i, j]`, linear in A and in B: `dA = alpha dC B^T`, `dB = alpha A^T dC`, two more products.
//!
//! Sources: the Level 3 BLAS (Dongarra, Du Croz, Hammarling and Duff, ACM TOMS 16, 1990), `DGEMM`, which fixes what is read;
//! its test program `DBLAT3`, which uses the scaled residual with a threshold of 16.

use super::sum::Sum;

/// `C <- alpha A B + beta C`; the module says what is read.
///
/// # Shapes
/// Sizes `(m, k, n)`; `a(i, p)`: `[m, k]`, `b(p, j)`: `[k, n]`, `c`: `[m, n]`, row-major.
///
/// # Panics
/// If `c` does not have `m * n` elements.
///
/// # Examples
/// ```
/// use evenkeel::reference::gemm::gemm;
/// let (a, b) = ([1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]);
/// let mut c = [f64::NAN; 4]; // not read, because beta is zero
/// gemm((2, 2, 2), 1.0, |i, p| a[2 * i + p], |p, j| b[2 * p + j], 0.0, &mut c);
/// assert_eq!(c, [19.0, 22.0, 43.0, 50.0]);
/// ```
pub fn gemm(
    (m, k, n): (usize, usize, usize),
    alpha: f64,
    a: impl Fn(usize, usize) -> f64,
    b: impl Fn(usize, usize) -> f64,
    beta: f64,
    c: &mut [f64],
) {
    assert_eq!(c.len(), m * n, "gemm: c has {} elements, but is {m} x {n}", c.len());
    for i in 0..m {
        for j in 0..n {
            let old = if beta == 0.0 { 0.0 } else { beta * c[i * n + j] };
            c[i * n + j] = if alpha == 0.0 || k == 0 {
                old
            } else {
                let dot: Sum = (0..k).map(|p| a(i, p) * b(p, j)).collect();
                alpha * dot.value() + old
            };
        }
    }
}

/// `|alpha| |A| |B| + |beta| |C|`, elementwise: what one unit of rounding error is measured in.
///
/// `c` is C as it was *before* the product. A kernel in a type of unit roundoff `u` passes when its result differs from
/// [`gemm`]'s by at most a small multiple of `u` times this (16 in the BLAS test program).
///
/// # Shapes
/// As for [`gemm`]; the result is `[m, n]`, row-major.
///
/// # Panics
/// If `c` does not have `m * n` elements.
pub fn gemm_bound(
    size: (usize, usize, usize),
    alpha: f64,
    a: impl Fn(usize, usize) -> f64,
    b: impl Fn(usize, usize) -> f64,
    beta: f64,
    c: &[f64],
) -> Vec<f64> {
    let mut bound: Vec<f64> = c.iter().map(|c| c.abs()).collect();
    gemm(size, alpha.abs(), |i, p| a(i, p).abs(), |p, j| b(p, j).abs(), beta.abs(), &mut bound);
    bound
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: [f64; 6] = [1.0, -2.0, 3.0, 0.0, 5.0, -6.0]; // 2 x 3
    const B: [f64; 6] = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]; // 3 x 2

    fn product(alpha: f64, a: &[f64], beta: f64, c: &[f64]) -> Vec<f64> {
        let mut c = c.to_vec();
        gemm((2, 3, 2), alpha, |i, p| a[3 * i + p], |p, j| B[2 * p + j], beta, &mut c);
        c
    }

    #[test]
    fn a_product_worked_by_hand() {
        // A B = [1 - 6 + 15, 2 - 8 + 18; 15 - 30, 20 - 36] = [10, 12; -15, -16]
        assert_eq!(product(1.0, &A, 0.0, &[f64::NAN; 4]), [10.0, 12.0, -15.0, -16.0]);
        assert_eq!(product(2.0, &A, -1.0, &[1.0, 2.0, 3.0, 4.0]), [19.0, 22.0, -33.0, -36.0]);
        let bound =
            gemm_bound((2, 3, 2), -2.0, |i, p| A[3 * i + p], |p, j| B[2 * p + j], -1.0, &[1.0, -2.0, 3.0, -4.0]);
        assert_eq!(bound, [45.0, 58.0, 93.0, 116.0]);
    }

    #[test]
    fn zero_scalars_hide_what_they_multiply_and_nothing_else_is_hidden() {
        let mut nan = A;
        nan[3] = f64::NAN;
        assert_eq!(product(0.0, &nan, 2.0, &[1.0, 2.0, 3.0, 4.0]), [2.0, 4.0, 6.0, 8.0]);
        assert_eq!(product(0.0, &nan, 0.0, &[f64::NAN; 4]), [0.0; 4]);
        let spread = product(1.0, &nan, 0.0, &[0.0; 4]);
        assert_eq!(spread[..2], [10.0, 12.0]);
        assert!(spread[2].is_nan() && spread[3].is_nan());
        // 0 * Inf is NaN: a zero in the other factor is no reason to skip.
        let mut c = [0.0];
        gemm((1, 1, 1), 1.0, |_, _| 0.0, |_, _| f64::INFINITY, 0.0, &mut c);
        assert!(c[0].is_nan());
    }

    #[test]
    fn empty_sizes() {
        let never = |_, _| -> f64 { unreachable!("an empty matrix has no element to read") };
        let mut c = [3.0, 4.0];
        gemm((1, 0, 2), f64::NAN, never, never, 2.0, &mut c);
        assert_eq!(c, [6.0, 8.0]);
        gemm((0, 5, 2), 1.0, never, never, 1.0, &mut []);
        gemm((2, 5, 0), 1.0, never, never, 1.0, &mut []);
    }
}
