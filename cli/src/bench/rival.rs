//! The `matrixmultiply` crate, called with our views.

use evenkeel::matrix::{MatMut, MatRef};
use evenkeel::simd::Element;

/// What it is called in tables, lines and pictures.
pub(crate) const RIVAL: &str = "matrixmultiply";

/// An element type that `matrixmultiply` multiplies.
pub(crate) trait Rival: Element {
    /// `C <- A B` with matrixmultiply, on one thread.
    fn matrixmultiply(a: MatRef<'_, Self>, b: MatRef<'_, Self>, c: MatMut<'_, Self>);
}

macro_rules! rival {
    ($element:ty, $gemm:path) => {
        impl Rival for $element {
            #[expect(unsafe_code, reason = "the crate's only functions take pointers")]
            fn matrixmultiply(a: MatRef<'_, Self>, b: MatRef<'_, Self>, mut c: MatMut<'_, Self>) {
                let (m, k, n) = (a.rows(), a.cols(), b.cols());
                assert!(b.rows() == k && c.rows() == m && c.cols() == n);
                let strides = |rs: usize, cs: usize| (rs as isize, cs as isize);
                let (rsa, csa) = strides(a.row_stride(), a.col_stride());
                let (rsb, csb) = strides(b.row_stride(), b.col_stride());
                let (rsc, csc) = strides(c.row_stride(), c.col_stride());
                let (a, b, c) = (a.data().as_ptr(), b.data().as_ptr(), c.data_mut().as_mut_ptr());
                // SAFETY: a view's last element lies in its data, C's elements are apart, and the shapes agree (above).
                unsafe { $gemm(m, k, n, 1.0, a, rsa, csa, b, rsb, csb, 0.0, c, rsc, csc) }
            }
        }
    };
}
rival!(f32, matrixmultiply::sgemm);
rival!(f64, matrixmultiply::dgemm);
