//! Products, plain and with a B that was packed beforehand, with every epilogue.

use crate::kernels::{call, drawn, largest, nan_only, same_at_every_offset, unwritten, with};
use crate::support::*;
use crate::table::Kind::*;
use crate::table::*;
use evenkeel::Result;
use evenkeel::kernels::gemm::{self as product, Epilogue, PackedB, gemm, gemm_packed};
use evenkeel::matrix::{MatMut, MatRef};
use evenkeel::simd::{Element, Isa, with_isa};

const NAN: f64 = f64::NAN;
const INFINITY: f64 = f64::INFINITY;

/// Operands of a product: A of `m x k`, B of `k x n`, rows contiguous, and what C begins as.
#[derive(Clone)]
struct Operands<T> {
    size: (usize, usize, usize),
    a: Vec<T>,
    b: Vec<T>,
    c: Vec<T>,
    bias: Vec<T>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Extra {
    None,
    Relu,
    Bias,
    BiasRelu,
    ColumnSums,
}

impl<T: Element> Operands<T> {
    fn drawn(size: (usize, usize, usize)) -> Self {
        let (m, k, n) = size;
        Operands { size, a: drawn(1, m * k), b: drawn(2, k * n), c: drawn(3, m * n), bias: drawn(4, n) }
    }

    /// C, and the numbers of the epilogue, after a product; once more with B packed, where that can be.
    fn product(&self, alpha: f64, beta: f64, extra: Extra, offset: usize) -> [Vec<T>; 2] {
        let plain = self.run(alpha, beta, extra, offset, false);
        if extra != Extra::ColumnSums {
            let packed = self.run(alpha, beta, extra, offset, true);
            assert_same_bits("packed and not", &comparable(&packed[0]), &comparable(&plain[0]));
        }
        plain
    }

    fn run(&self, alpha: f64, beta: f64, extra: Extra, offset: usize, is_packed: bool) -> [Vec<T>; 2] {
        let (m, k, n) = self.size;
        let [a, b, mut c, mut numbers] = [&self.a, &self.b, &self.c, &self.bias].map(|x| Guarded::new(x, offset));
        let mut scratch = Guarded::unwritten(product::scratch_len::<T>(m, k, n), offset);
        let (alpha, beta) = (T::from_f64(alpha), T::from_f64(beta));
        let epilogue = match extra {
            Extra::None => Epilogue::None,
            Extra::Relu => Epilogue::Relu,
            Extra::Bias => Epilogue::Bias(numbers.get()),
            Extra::BiasRelu => Epilogue::BiasRelu(numbers.get()),
            Extra::ColumnSums => Epilogue::ColumnSums(numbers.get_mut()),
        };
        let (a, b) = (MatRef::new(a.get(), m, k), MatRef::new(b.get(), k, n));
        let view = MatMut::new(c.get_mut(), m, n);
        if is_packed {
            let packed = PackedB::new(b).unwrap();
            gemm_packed(alpha, a, &packed, beta, view, epilogue, scratch.get_mut()).unwrap();
        } else {
            gemm(alpha, a, b, beta, view, epilogue, scratch.get_mut());
        }
        [&c, &numbers, &scratch].iter().for_each(|part| part.check("a product"));
        [c.get().to_vec(), numbers.get().to_vec()]
    }
}

/// Sizes that take each way through the library: a few numbers, few rows, small k, and tiles.
const SIZES: [(usize, usize, usize); 4] = [(2, 3, 2), (2, 70, 40), (40, 3, 40), (20, 70, 40)];
const EXTRAS: [Extra; 5] = [Extra::None, Extra::Relu, Extra::Bias, Extra::BiasRelu, Extra::ColumnSums];

pub(crate) fn products<T: Element>() -> Vec<Entry> {
    vec![
        entry(
            "kernels::gemm::gemm and gemm_packed",
            lengths_of_products::<T>().into_iter().chain(values_of_products::<T>()),
        ),
        entry("kernels::gemm::PackedB", packing::<T>()),
    ]
}

/// A product of 2 x 3 by 3 x 2 with one thing wrong.
fn lengths_of_products<T: Element>() -> Vec<Row> {
    let needed = product::scratch_len::<T>(2, 3, 2);
    let short = format!("gemm: {} elements of scratch, {needed} needed", needed - 1);
    let wrong = [
        (Mismatched, (4, 2), (2, 2), 2, needed, "gemm: A is 2x3, B is 4x2"),
        (Mismatched, (3, 2), (2, 3), 2, needed, "gemm: A B is 2x2, C is 2x3"),
        (Mismatched, (3, 2), (3, 2), 2, needed, "gemm: A B is 2x2, C is 3x2"),
        (Mismatched, (3, 2), (2, 2), 3, needed, "gemm: the epilogue has 3 numbers for 2 columns"),
        (Empty, (3, 2), (2, 2), 0, needed, "gemm: the epilogue has 0 numbers for 2 columns"),
        (Truncated, (3, 2), (2, 2), 2, needed - 1, &short),
    ];
    let mut rows = Vec::new();
    for (kind, b, c, numbers, scratch, said) in wrong {
        for extra in [Extra::Bias, Extra::BiasRelu, Extra::ColumnSums] {
            for is_packed in [false, true] {
                let input = format!("B {b:?}, C {c:?}, {numbers} of {extra:?}, scratch {scratch}, packed {is_packed}");
                rows.push(row(kind, input, panics(&[said]), move || {
                    let (values, mut sums) = ([T::ONE; 12], [T::ONE; 3]);
                    let (a, b) = (MatRef::new(&values[..6], 2, 3), MatRef::new(&values[..b.0 * b.1], b.0, b.1));
                    let packed = PackedB::new(b)?;
                    attempt(&mut unwritten([c.0 * c.1, scratch]), |outputs| {
                        let [values_of_c, scratch] = outputs.each_mut().map(Guarded::get_mut);
                        let epilogue = match extra {
                            Extra::ColumnSums => Epilogue::ColumnSums(&mut sums[..numbers]),
                            Extra::Bias => Epilogue::Bias(&values[..numbers]),
                            _ => Epilogue::BiasRelu(&values[..numbers]),
                        };
                        let c = MatMut::new(values_of_c, c.0, c.1);
                        if is_packed {
                            return gemm_packed(T::ONE, a, &packed, T::ZERO, c, epilogue, scratch);
                        }
                        gemm(T::ONE, a, b, T::ZERO, c, epilogue, scratch);
                        Ok(())
                    })
                }));
            }
        }
    }
    rows
}

fn values_of_products<T: Element>() -> Vec<Row> {
    let for_each = |check: fn(Operands<T>)| {
        move || {
            SIZES.into_iter().for_each(|size| check(Operands::drawn(size)));
            Ok(())
        }
    };
    vec![
        row(ZeroRows, "no rows, and no columns", gives("nothing, not even column sums"), || {
            for size in [(0, 5, 3), (4, 5, 0), (0, 0, 0)] {
                let operands = Operands::<T>::drawn(size);
                for extra in EXTRAS {
                    let [c, numbers] = operands.product(1.0, 1.0, extra, 0);
                    assert!(c.is_empty());
                    assert_same_bits("numbers", &bits(&numbers), &bits(&operands.bias));
                }
            }
            Ok(())
        }),
        row(Empty, "k = 0", gives("beta C and the epilogue"), || {
            for (m, n) in [(2, 2), (20, 40)] {
                let operands = Operands::<T>::drawn((m, 0, n));
                for (beta, extra) in [(2.0, Extra::None), (0.0, Extra::Bias), (2.0, Extra::ColumnSums)] {
                    let [c, numbers] = operands.product(1.0, beta, extra, 0);
                    let bias = |j: usize| if extra == Extra::Bias { operands.bias[j].to_f64() } else { 0.0 };
                    for (i, c) in c.iter().enumerate() {
                        assert_eq!(c.to_f64(), beta * operands.c[i].to_f64() + bias(i % n), "{extra:?}: C[{i}]");
                    }
                    assert_same_bits("numbers", &bits(&numbers), &bits(&operands.bias));
                }
            }
            Ok(())
        }),
        row(Oversized, "k that no sum ends, by strides of 0", panics(&["elements of scratch", "needed"]), || {
            let one = [T::ONE];
            let (a, b) =
                (MatRef::with_strides(&one, 1, usize::MAX, 0, 0)?, MatRef::with_strides(&one, usize::MAX, 1, 0, 0)?);
            call(&mut unwritten([1, 100]), |[c, scratch]| {
                gemm(T::ONE, a, b, T::ZERO, MatMut::new(c, 1, 1), Epilogue::None, scratch);
            })
        }),
        row(
            Nan,
            "NaN in C with beta = 0",
            gives("C not read"),
            for_each(|mut operands| {
                let clean = operands.product(1.0, 0.0, Extra::None, 0);
                operands.c.fill(T::from_f64(NAN));
                nan_only("C", &operands.product(1.0, 0.0, Extra::None, 0)[0], &clean[0], |_| false);
            }),
        ),
        row(
            Nan,
            "NaN in A and B with alpha = 0",
            gives("neither read"),
            for_each(|mut operands| {
                operands.a.fill(T::from_f64(NAN));
                operands.b.fill(T::from_f64(NAN));
                for extra in [Extra::None, Extra::ColumnSums] {
                    let [c, numbers] = operands.product(0.0, 1.0, extra, 0);
                    assert_same_bits("C", &bits(&c), &bits(&operands.c));
                    assert_same_bits("numbers", &bits(&numbers), &bits(&operands.bias));
                }
            }),
        ),
        row(
            Nan,
            "NaN in A, in B, in a bias",
            gives("that row, that column, through ReLU"),
            for_each(|clean| {
                let (_, k, n) = clean.size;
                for extra in EXTRAS {
                    let [expected, sums] = clean.product(1.0, 0.0, extra, 0);
                    let in_a = Operands { a: with(&clean.a, k + 1, NAN), ..clean.clone() };
                    nan_only("C", &in_a.product(1.0, 0.0, extra, 0)[0], &expected, |i| i / n == 1);
                    let in_b = Operands { b: with(&clean.b, n + 1, NAN), ..clean.clone() };
                    let [c, numbers] = in_b.product(1.0, 0.0, extra, 0);
                    nan_only("C", &c, &expected, |i| i % n == 1);
                    if extra == Extra::ColumnSums {
                        nan_only("sums", &numbers, &sums, |j| j == 1);
                    }
                    if matches!(extra, Extra::Bias | Extra::BiasRelu) {
                        let in_bias = Operands { bias: with(&clean.bias, 1, NAN), ..clean.clone() };
                        nan_only("C", &in_bias.product(1.0, 0.0, extra, 0)[0], &expected, |i| i % n == 1);
                    }
                }
            }),
        ),
        row(
            Infinite,
            "infinity times 0 in A B",
            gives("NaN: zeros are not skipped"),
            for_each(|mut operands| {
                let (_, k, n) = operands.size;
                operands.a[k + 1] = T::from_f64(INFINITY);
                operands.b[n..2 * n].fill(T::ZERO);
                let clean = Operands { a: with(&operands.a, k + 1, 1.0), ..operands.clone() };
                let expected = clean.product(1.0, 0.0, Extra::Relu, 0);
                nan_only("C", &operands.product(1.0, 0.0, Extra::Relu, 0)[0], &expected[0], |i| i / n == 1);
            }),
        ),
        row(
            Overflow,
            "finite numbers with a product too large",
            gives("infinity"),
            for_each(|mut operands| {
                operands.a.fill(largest());
                operands.b.fill(T::from_f64(2.0));
                assert!(operands.product(1.0, 0.0, Extra::Relu, 0)[0].iter().all(|c| c.to_f64() == INFINITY));
            }),
        ),
        row(
            Subnormal,
            "a subnormal product, and one half of it",
            gives("as exact as it can be"),
            for_each(|mut operands| {
                let (tiny, (_, k, n)) = (T::LARGEST_SUBNORMAL, operands.size);
                operands.a.fill(T::ZERO);
                operands.a[k + 1] = tiny;
                operands.b[n..2 * n].fill(T::ONE);
                let c = &operands.product(1.0, 0.0, Extra::None, 0)[0];
                for (i, c) in c.iter().enumerate() {
                    assert_eq!(c.bits(), if i / n == 1 { tiny.bits() } else { 0 }, "C[{i}]");
                }
            }),
        ),
        row(
            Misaligned,
            "every offset to 16",
            gives("the same bits"),
            for_each(|operands| {
                for extra in EXTRAS {
                    same_at_every_offset(|offset| bits(&operands.product(0.7, 1.3, extra, offset).concat()));
                }
            }),
        ),
        row(OneRow, "one row", gives("the bits of that row among others, where both take the same way"), || {
            // Two rows are few as well.
            let two = Operands::<T>::drawn((2, 70, 40));
            let one = Operands { size: (1, 70, 40), a: two.a[..70].to_vec(), c: two.c[..40].to_vec(), ..two.clone() };
            let [both, single] = [&two, &one].map(|operands| operands.product(1.0, 0.5, Extra::Bias, 0));
            assert_same_bits("C", &bits(&single[0]), &bits(&both[0][..40]));
            Ok(())
        }),
    ]
}

fn packing<T: Element>() -> Vec<Row> {
    /// A product of 1 x k with a packed B, which is refused before C is written.
    fn packed_product<T: Element>(packed: &PackedB<T>, a: &[T], epilogue: Epilogue<'_, T>) -> Result<()> {
        let (k, n) = (packed.rows(), packed.cols());
        attempt(&mut unwritten([n, product::scratch_len::<T>(1, k, n)]), |outputs| {
            let [c, scratch] = outputs.each_mut().map(Guarded::get_mut);
            gemm_packed(T::ONE, MatRef::new(a, 1, k), packed, T::ZERO, MatMut::new(c, 1, n), epilogue, scratch)
        })
    }
    let too_large = |kind, rows: usize, cols: usize| {
        row(kind, format!("{rows} x {cols} by strides of 0"), shape(&["tensor"]), move || {
            PackedB::new(MatRef::with_strides(&[T::ONE], rows, cols, 0, 0)?).map(drop)
        })
    };
    vec![
        row(Empty, "no rows, or no columns, however many of the other", gives("nothing to pack"), || {
            for (k, n) in [(0, 5), (5, 0), (0, 0), (0, usize::MAX), (usize::MAX, 0)] {
                let packed = PackedB::new(MatRef::<T>::with_strides(&[], k, n, 1, 1)?)?;
                assert_eq!((packed.rows(), packed.cols()), (k, n));
            }
            Ok(())
        }),
        too_large(Oversized, 1 << 40, 1 << 20),
        too_large(Overflow, usize::MAX, 1),
        too_large(Overflow, 1, usize::MAX),
        too_large(Overflow, usize::MAX, usize::MAX),
        row(Mismatched, "packed for another instruction set", gives("an error that names both"), || {
            let here = Isa::current();
            for other in isas().into_iter().filter(|&other| other != here) {
                let packed = with_isa(other, || PackedB::new(MatRef::new(&[T::ONE; 6], 3, 2)))?;
                let error = packed_product(&packed, &[T::ONE; 3], Epilogue::None).unwrap_err();
                let wanted = format!("packed B is {other}, but must be packed for {here}: pack it again");
                assert_eq!(error.to_string(), wanted);
            }
            Ok(())
        }),
        row(Senseless, "sums of the columns of packed panels", invalid(&["epilogue is column sums"]), || {
            let (packed, mut sums) = (PackedB::new(MatRef::new(&[T::ONE; 6], 3, 2))?, [T::ONE; 2]);
            let outcome = packed_product(&packed, &[T::ONE; 3], Epilogue::ColumnSums(&mut sums));
            assert_eq!(sums, [T::ONE; 2]);
            outcome
        }),
    ]
}
