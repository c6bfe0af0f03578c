//! Products of a few numbers: the chains of a tile, without its choices.

use super::micro::Finish;
use super::{Call, Epilogue, pack};
use crate::simd::{Element, Kernel, Lanes, Pairs, Rows, RowsMut, Strided};

/// Calls `$rows!(i, mr)` for `$m` rows in strips: as many as there are of each height, the last of which is one.
macro_rules! strips {
    ($m:expr, $rows:ident: $($mr:literal)*) => {{
        let mut i = 0;
        $(while $m - i >= $mr {
            $rows!(i, $mr);
            i += $mr;
        })*
    }};
}

/// A product of a few numbers, one or two vectors of a few rows at a time. The rows of C are contiguous, alpha is not zero, and
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
            let (bias, relu) = epilogue.added();
            Finish { alpha: *alpha, beta: *beta, bias, relu }
        });
        if n <= V::WIDTH {
            macro_rules! rows {
                ($i:expr, $mr:literal) => {{
                    let (a, mut c) = (a.block($i, $mr), c.block(($i, $mr), (0, n)));
                    multiply::<V, $mr, 1>(a, b, &mut c, (0, n), finish);
                }};
            }
            match m {
                // By themselves: what loops prepare takes as long as they do.
                1 => rows!(0, 1),
                2 => rows!(0, 2),
                3 => rows!(0, 3),
                4 => rows!(0, 4),
                _ => strips!(m, rows: 8 4 2 1),
            }
        } else {
            // Each part has one vector's width at least, and two at most.
            let part = |rest: usize| match rest {
                _ if rest <= 2 * V::WIDTH => rest,
                _ if rest < 4 * V::WIDTH => rest.div_ceil(2),
                _ => 2 * V::WIDTH,
            };
            macro_rules! rows {
                ($i:expr, $mr:literal) => {{
                    let (a, mut c) = (a.block($i, $mr), c.block(($i, $mr), (0, n)));
                    let mut j = 0;
                    while j < n {
                        let cols = part(n - j);
                        multiply::<V, $mr, 2>(a, b, &mut c, (j, cols), finish);
                        j += cols;
                    }
                }};
            }
            strips!(m, rows: 4 2 1);
        }
    }
}

/// One or two vectors' width of a few rows of C. The second of two ends with the last column: it may overlap the first, whose
/// elements it then computes again.
#[inline(always)]
fn multiply<V: Lanes, const MR: usize, const NV: usize>(
    a: Strided<'_, V::Elem>,
    b: Rows<'_, V::Elem>,
    c: &mut RowsMut<'_, V::Elem>,
    (j, cols): (usize, usize),
    finish: Option<Finish<'_, V::Elem>>,
) {
    assert!(if NV == 1 { cols <= V::WIDTH } else { cols >= V::WIDTH });
    let len = if NV == 1 { cols } else { V::WIDTH };
    let first = |v: usize| if v == 0 { j } else { j + cols - V::WIDTH };
    let load = |part: &[V::Elem]| if NV == 1 { V::load_partial(part) } else { V::load(part) };
    let mut sums = [[V::zero(); NV]; MR];
    let mut pairs = Pairs::new(a, b);
    while pairs.begin(1) {
        let (a, b) = pairs.take();
        let mut row = [V::zero(); NV];
        for v in 0..NV {
            row[v] = load(b.slice(first(v), len));
        }
        for r in 0..MR {
            let x = V::splat(a.get(r));
            for v in 0..NV {
                sums[r][v] = x.mul_add(row[v], sums[r][v]);
            }
        }
    }
    for r in 0..MR {
        if let Some(finish) = finish {
            for v in 0..NV {
                let bias = finish.bias_at(r, first(v), len);
                sums[r][v] = finish.apply(sums[r][v], || load(c.slice(r, first(v), len)), bias);
            }
        }
        for v in 0..NV {
            let part = c.slice(r, first(v), len);
            if NV == 1 {
                sums[r][v].store_partial(part);
            } else {
                sums[r][v].store(part);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matrix::{MatMut, MatRef};
    use crate::simd::Isa;

    #[test]
    fn two_by_two_whichever_way_b_lies() {
        // [1 2; 3 4] [5 6; 7 8] = [19 22; 43 50]
        let a = [1.0f32, 2.0, 3.0, 4.0];
        let (by_rows, by_columns) = ([5.0, 6.0, 7.0, 8.0], [5.0, 7.0, 6.0, 8.0]);
        for isa in Isa::available() {
            for b in [MatRef::new(&by_rows, 2, 2), MatRef::new(&by_columns, 2, 2).transpose()] {
                let (mut c, mut scratch) = ([f32::NAN; 4], [f32::NAN; 64]);
                isa.run(Tiny(&mut Call {
                    alpha: 1.0,
                    a: MatRef::new(&a, 2, 2),
                    b,
                    beta: 0.0,
                    c: MatMut::new(&mut c, 2, 2),
                    epilogue: Epilogue::None,
                    scratch: &mut scratch,
                }));
                assert_eq!(c, [19.0, 22.0, 43.0, 50.0], "{isa}: {b:?}");
            }
        }
    }

    #[test]
    fn a_multiplication_table() {
        // 5 rows, a strip of four and one of one, of 17 columns: more than any vector has.
        let down = [1.0f32, 2.0, 3.0, 4.0, 5.0];
        let across: [f32; 17] = std::array::from_fn(|j| (j + 1) as f32);
        for isa in Isa::available() {
            let mut table = [f32::NAN; 5 * 17];
            // i j; then 2 i j - i j, less 40 and not below zero.
            let less_40 = Epilogue::BiasRelu(&[-40.0; 17]);
            for (alpha, beta, epilogue, less) in [(1.0, 0.0, Epilogue::None, 0.0), (2.0, -1.0, less_40, 40.0)] {
                let (a, b) = (MatRef::new(&down, 5, 1), MatRef::new(&across, 1, 17));
                let c = MatMut::new(&mut table, 5, 17);
                isa.run(Tiny(&mut Call { alpha, a, b, beta, c, epilogue, scratch: &mut [] }));
                for at in 0..table.len() {
                    let (i, j) = (down[at / 17], across[at % 17]);
                    assert_eq!(table[at], (i * j - less).max(0.0), "{isa}: {i} times {j}");
                }
            }
        }
    }
}
