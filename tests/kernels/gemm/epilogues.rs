//! What a product does besides: bias, ReLU and the sums of B's columns.

use super::case::*;
use crate::support::*;
use evenkeel::Rng;
use evenkeel::kernels::gemm::{Epilogue, PackedB, gemm, gemm_packed, scratch_len};
use evenkeel::matrix::{MatMut, MatRef};
use evenkeel::simd::Element;
use proptest::prelude::*;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Of one and more blocks of k, of tiles and of tasks; operands read in place and packed; empty.
const SIZES: [(usize, usize, usize); 16] = [
    (13, 20, 37),
    (29, 300, 35),
    (50, 20, 65),
    (4, 600, 9),
    (49, 5, 70),
    (385, 3, 66),
    (3, 9, 130),
    (70, 40, 5),
    (1, 300, 1),
    (60, 5, 1),
    (1, 5, 60),
    (7, 0, 9),
    (0, 5, 7),
    (5, 7, 0),
    (0, 0, 7),
    (5, 0, 0),
];

/// Every size with every layout of C and any other.
fn cases_of(extra: Extra) -> impl Iterator<Item = Case> {
    let mut rng = Rng::new(4, "sizes");
    SIZES.into_iter().flat_map(move |size| {
        LAYOUTS.map(|c| {
            let Case { layouts: [a, b, _], alpha, beta, offsets, seed, .. } = Case::drawn(size, &mut rng);
            Case { layouts: [a, b, c], alpha, beta, offsets, seed, extra, ..Case::of(size) }
        })
    })
}

fn every_epilogue_agrees_with_the_reference<T: Element>() {
    for extra in Extra::ALL {
        for case in cases_of(extra) {
            let scaled = |alpha, beta| Case { alpha, beta, ..case.clone() };
            agree::<T>(&[scaled(1.0, 0.0), scaled(0.0, 1.3), scaled(0.0, 0.0), case]);
        }
    }
}

/// With a bias and ReLU, C has the bits of the product alone, to which the bias is added, of which what is above zero or NaN is kept.
fn bias_and_relu_follow_the_product<T: Element>() {
    let (mut zeros, mut nans) = (0, 0);
    for case in cases_of(Extra::None) {
        for (alpha, beta) in [(1.0, 0.0), (-1.0, 0.0), (0.7, 1.3), (0.0, 1.3), (0.0, 0.0)] {
            let (m, k, n) = case.size;
            let case = Case { alpha, beta, ..case.clone() };
            let mut operands = case.operands::<T>(Rng::normal);
            // A row of sums that are zero, negative if alpha is, and one of NaN.
            (0..k).filter(|_| m > 0).for_each(|p| operands.matrices[0].set(0, p, 0.0));
            (0..k).filter(|_| m > 1).for_each(|p| operands.matrices[0].set(1, p, f64::NAN));
            sweep::<T>(|_| {
                let mut operands = operands.clone();
                let plain = case.run(&operands).c;
                for j in 0..n {
                    operands.numbers[j] = match j % 8 {
                        0 => -T::ZERO,
                        1 => T::ZERO,
                        3 => T::from_f64([f64::NAN, f64::INFINITY, f64::NEG_INFINITY][j / 8 % 3]),
                        // So that one sum of the column is zero.
                        4 | 5 if m > 0 => -plain[j % m * n + j],
                        _ => operands.numbers[j],
                    };
                }
                for extra in [Extra::Relu, Extra::Bias, Extra::BiasRelu] {
                    let wanted: Vec<T> = (0..m * n)
                        .map(|e| {
                            match if extra == Extra::Relu { plain[e] } else { plain[e] + operands.numbers[e % n] } {
                                z if extra != Extra::Bias && z <= T::ZERO => T::ZERO,
                                z => z,
                            }
                        })
                        .collect();
                    zeros += wanted.iter().filter(|&&x| x == T::ZERO).count();
                    nans += wanted.iter().filter(|x| x.to_f64().is_nan()).count();
                    let case = Case { extra, ..case.clone() };
                    let what = format!("{case:?}: C and what is added to the product");
                    assert_same_bits(&what, &comparable(&case.run(&operands).c), &comparable(&wanted));
                }
            });
        }
    }
    assert!(zeros > 1000 && nans > 1000, "{zeros} zeros, {nans} NaN");
}

/// C has the bits of the product alone; the sums of B's columns those of a product with a row of ones, and of one more row of A, where
/// these are no dot products.
fn column_sums_are_a_product_with_ones<T: Element>() {
    for case in cases_of(Extra::ColumnSums).filter(|case| case.size.0 > 0) {
        let (m, k, n) = case.size;
        let case = Case { beta: 1.0, ..case };
        let operands = case.operands::<T>(Rng::normal);
        let [a, b, c] = &operands.matrices;
        let alpha = T::from_f64(case.alpha);
        let one_more: Vec<T> = a.elements().into_iter().chain((0..k).map(|_| T::ONE)).collect();
        let is_thin = n <= 4 || matches!(case.layouts[1], Layout::Columns(_));
        sweep::<T>(|_| {
            let what = format!("{case:?}: sums");
            let found = case.run(&operands);
            let alone = Case { extra: Extra::None, ..case.clone() }.run(&operands);
            assert_same_bits(&format!("{what} and C alone"), &bits(&found.c), &bits(&alone.c));
            if is_thin {
                return;
            }
            let mut numbers = operands.numbers.clone();
            let mut scratch = vec![T::ZERO; scratch_len::<T>(m + 1, k, n)];
            let mut ones_times_b = |numbers: &mut [T]| {
                let (ones, sums) = (MatRef::new(&one_more[m * k..], 1, k), MatMut::new(numbers, 1, n));
                gemm(alpha, ones, b.view(), T::ONE, sums, Epilogue::None, &mut scratch);
            };
            ones_times_b(&mut numbers);
            assert_same_bits(&format!("{what} and a row of ones"), &bits(&found.numbers), &bits(&numbers));
            let again = case.run(&Operands { numbers: found.numbers.clone(), ..operands.clone() });
            ones_times_b(&mut numbers);
            assert_same_bits(&format!("{what} on top of the first"), &bits(&again.numbers), &bits(&numbers));
            // Both at once.
            let mut all: Vec<T> = c.elements().into_iter().chain(operands.numbers.iter().copied()).collect();
            let (one_more, view) = (MatRef::new(&one_more, m + 1, k), MatMut::new(&mut all, m + 1, n));
            gemm(alpha, one_more, b.view(), T::ONE, view, Epilogue::None, &mut scratch);
            let both = [found.c, found.numbers].concat();
            assert_same_bits(&format!("{what} and C, and one more row"), &bits(&both), &bits(&all));
        });
    }
}

/// Where there is no product A and B are not read: they are NaN here. The sums stay, to the sign of a zero.
fn column_sums_of_no_product_stay<T: Element>() {
    for case in cases_of(Extra::ColumnSums) {
        let (m, k, n) = case.size;
        let alpha = if m == 0 || k == 0 { 1.0 } else { 0.0 };
        let case = Case { alpha, ..case };
        let mut operands = case.operands::<T>(|_| f64::NAN);
        operands.matrices[2] = Matrix::output(case.layouts[2], 0, (m, n), |i, j| (i + j) as f64);
        operands.numbers = (0..n).map(|j| T::from_f64([-0.0, 0.7, f64::NAN][j % 3])).collect();
        let wanted = case.wanted(&operands).c.0;
        sweep::<T>(|_| {
            let found = case.run(&operands);
            assert_same_bits(&format!("{case:?}: sums"), &bits(&found.numbers), &bits(&operands.numbers));
            near(&format!("{case:?}: C"), &found.c, &wanted, |e| 4.0 * T::ROUNDOFF * wanted[e].abs());
        });
    }
}

/// A number of B that is not finite reaches the sum of its column and no other.
fn what_is_not_finite_reaches_its_sum<T: Element>() {
    for case in cases_of(Extra::ColumnSums).filter(|case| case.size.0 * case.size.1 * case.size.2 > 0) {
        let (_, k, n) = case.size;
        let clean = case.operands::<T>(Rng::normal);
        let (mut dirty, mut rng) = (clean.clone(), Rng::new(case.seed, "bad"));
        let at = rng.index(n);
        dirty.matrices[1].set(rng.index(k), at, f64::INFINITY);
        sweep::<T>(|_| {
            let (mut found, wanted) = (case.run(&dirty).numbers, case.run(&clean).numbers);
            let infinite = case.alpha * f64::INFINITY;
            assert_eq!(found[at].to_f64(), infinite, "{case:?}: sum {at}");
            found[at] = wanted[at];
            assert_same_bits(&format!("{case:?}: other sums"), &bits(&found), &bits(&wanted));
        });
    }
}

/// What one call says when it panics. Nothing may have been written then.
fn message<T: Element>(call: impl FnOnce(&mut [T], &mut [T])) -> String {
    let (mut c, mut numbers) = (Guarded::unwritten(9, 0), Guarded::unwritten(4, 0));
    let outcome = catch_unwind(AssertUnwindSafe(|| call(c.get_mut(), numbers.get_mut())));
    c.check_unwritten("C");
    numbers.check_unwritten("numbers");
    *outcome.expect_err("a panic").downcast::<String>().expect("text")
}

fn shapes_and_lengths_that_disagree_are_named<T: Element>() {
    let x = [T::ONE; 20];
    let (needed, mut enough) = (scratch_len::<T>(2, 3, 3), [T::ZERO; 4096]);
    let a = |cols| MatRef::new(&x[..2 * cols], 2, cols);
    let b = MatRef::new(&x[..9], 3, 3);
    let packed = PackedB::new(b).unwrap();
    for is_packed in [false, true] {
        let mut call = |a: MatRef<'_, T>, c: MatMut<'_, T>, epilogue: Epilogue<'_, T>, scratch: usize| {
            let scratch = &mut enough[..scratch];
            if is_packed {
                gemm_packed(T::ONE, a, &packed, T::ZERO, c, epilogue, scratch).unwrap();
            } else {
                gemm(T::ONE, a, b, T::ZERO, c, epilogue, scratch);
            }
        };
        let found = message(|c, _| call(a(4), MatMut::new(&mut c[..6], 2, 3), Epilogue::None, 4096));
        assert_eq!(found, "gemm: A is 2x4, B is 3x3");
        let found = message(|c, _| call(a(3), MatMut::new(c, 3, 3), Epilogue::None, 4096));
        assert_eq!(found, "gemm: A B is 2x3, C is 3x3");
        for extra in [Extra::Bias, Extra::BiasRelu, Extra::ColumnSums] {
            for len in [2, 4] {
                let found = message(|c, numbers| {
                    call(a(3), MatMut::new(&mut c[..6], 2, 3), extra.epilogue(&mut numbers[..len]), 4096);
                });
                let wanted = format!("gemm: the epilogue has {len} numbers for 3 columns");
                assert_eq!(found, wanted, "{extra:?}");
                // Where there is nothing to multiply, too.
                let none = MatRef::new(&[], 0, 3);
                let found = message(|_, numbers| {
                    call(none, MatMut::new(&mut [], 0, 3), extra.epilogue(&mut numbers[..len]), 4096);
                });
                assert_eq!(found, wanted, "{extra:?}");
            }
        }
        let found = message(|c, _| call(a(3), MatMut::new(&mut c[..6], 2, 3), Epilogue::None, needed - 1));
        assert_eq!(found, format!("gemm: {} elements of scratch, {needed} needed", needed - 1));
    }
}

in_both_types!(
    every_epilogue_agrees_with_the_reference,
    bias_and_relu_follow_the_product,
    column_sums_are_a_product_with_ones,
    column_sums_of_no_product_stay,
    what_is_not_finite_reaches_its_sum,
    shapes_and_lengths_that_disagree_are_named,
);

proptest! {
    #![proptest_config(cases(150, file!()))]

    #[test]
    fn any_epilogue_agrees_with_the_reference(case in any_case(), extra in prop::sample::select(&Extra::ALL[1..])) {
        let case = Case { extra, ..case };
        agree::<f32>(std::slice::from_ref(&case));
        agree::<f64>(std::slice::from_ref(&case));
    }
}
