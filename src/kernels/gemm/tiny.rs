//! Products of a few numbers: the chains of a tile, without its choices.

use super::micro::{Bias, Finish};
use super::{Call, Epilogue, pack};
use crate::simd::{Columns, Element, Kernel, Lanes, Pairs, Rows, RowsMut, Strided};

/// A product of a few numbers, up to four rows at a time, vector by vector. The rows of C are contiguous, alpha is not zero, and
/// there are no sums of columns to be had.
pub(super) struct Tiny<'a, 'b, T>(pub(super) &'a mut Call<'b, T>);

impl<T: Element> Kernel<T> for Tiny<'_, '_, T> {
    type Output = ();

    #[inline(always)]
    fn run<V: Lanes<Elem = T>>(self) {
        let Call { alpha, a, b, beta, c, epilogue, scratch } = self.0;
        let (m, k, n) = (c.rows(), a.cols(), c.cols());
        let b = if n == 1 || b.col_stride() == 1 {
            Rows::new(b.data(), k, n, b.row_stride())
        } else {
            pack::pack_b::<V>(*b, (0, k), (0, n), scratch);
            Rows::new(scratch, k, n, n.max(V::WIDTH))
        };
        let a = Strided::new(a.data(), m, k, (a.row_stride(), a.col_stride()));
        let stride = c.row_stride();
        let mut c = RowsMut::new(c.data_mut(), m, n, stride);
        let is_plain = *alpha == T::ONE && *beta == T::ZERO && matches!(epilogue, Epilogue::None);
        let finish = (!is_plain).then(|| {
            let (bias, relu) = match epilogue {
                Epilogue::Bias(bias) => (Bias::OfColumns(bias), false),
                Epilogue::BiasRelu(bias) => (Bias::OfColumns(bias), true),
                _ => (Bias::None, false),
            };
            Finish { alpha: *alpha, beta: *beta, bias, relu }
        });
        // All columns of a few rows.
        macro_rules! rows {
            ($i:expr, $mr:literal) => {{
                let (a, mut c) = (a.block($i, $mr), c.block(($i, $mr), (0, n)));
                let mut j = 0;
                while j < n {
                    multiply::<V, $mr>(a, b, &mut c, (j, V::WIDTH.min(n - j)), finish);
                    j += V::WIDTH;
                }
            }};
        }
        macro_rules! alone {
            ($mr:literal) => {
                if n <= V::WIDTH {
                    multiply::<V, $mr>(a.block(0, $mr), b, &mut c, (0, n), finish);
                } else {
                    rows!(0, $mr);
                }
            };
        }
        match m {
            // By themselves: what loops prepare takes as long as they do.
            1 => alone!(1),
            2 => alone!(2),
            3 => alone!(3),
            4 => alone!(4),
            _ => {
                let mut i = 0;
                while m - i >= 4 {
                    rows!(i, 4);
                    i += 4;
                }
                while i < m {
                    rows!(i, 1);
                    i += 1;
                }
            }
        }
    }
}

/// A vector's width of a few rows of C.
#[inline(always)]
fn multiply<V: Lanes, const MR: usize>(
    a: Strided<'_, V::Elem>,
    b: Rows<'_, V::Elem>,
    c: &mut RowsMut<'_, V::Elem>,
    (j, cols): (usize, usize),
    finish: Option<Finish<'_, V::Elem>>,
) {
    let mut sums = [V::zero(); MR];
    let mut pairs = Pairs::new(a, b);
    while pairs.begin(1) {
        let (a, b) = pairs.take();
        let row = V::load_partial(b.slice(j, cols));
        for r in 0..MR {
            sums[r] = V::splat(a.get(r)).mul_add(row, sums[r]);
        }
    }
    for r in 0..MR {
        let c = c.slice(r, j, cols);
        if let Some(finish) = finish {
            let bias = match finish.bias {
                Bias::OfColumns(bias) => Some(V::load_partial(&bias[j..][..cols])),
                _ => None,
            };
            sums[r] = finish.apply(sums[r], || V::load_partial(c), bias);
        }
        sums[r].store_partial(c);
    }
}
