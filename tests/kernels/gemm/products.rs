//! `C <- alpha A B + beta C`, and nothing besides.

use super::case::*;
use crate::support::*;
use evenkeel::Rng;
use evenkeel::kernels::gemm::{Epilogue, gemm, scratch_len};
use evenkeel::matrix::{MatMut, MatRef};
use evenkeel::simd::Element;
use proptest::prelude::*;

/// Every number of rows from 0 to 70 with every number of columns, and every depth.
fn every_size_up_to_70<T: Element>() {
    let mut rng = Rng::new(1, "sizes");
    let mut sizes = Vec::new();
    for m in 0..=70 {
        for n in 0..=70 {
            sizes.push((m, rng.index(41) * rng.index(41) / 40, n));
        }
    }
    for k in 0..=70 {
        for _ in 0..5 {
            sizes.push((rng.index(71), k, rng.index(71)));
        }
    }
    // Every tile, deeper than what has a loop of its own.
    for m in 1..=14 {
        for n in 1..=36 {
            sizes.push((m, 64 + rng.index(8), n));
        }
    }
    for sizes in sizes.chunks(500) {
        let cases: Vec<_> = sizes.iter().map(|&size| Case::drawn(size, &mut rng)).collect();
        agree::<T>(&cases);
    }
}

/// The sizes for which there is a loop of its own, and those just above them, with every way in which A, B and C may lie.
fn a_few_numbers<T: Element>() {
    let mut sizes = vec![
        // Around 64 of anything.
        (63, 5, 3),
        (64, 5, 3),
        (65, 5, 3),
        (6, 64, 5),
        (6, 65, 5),
        (3, 5, 64),
        (3, 5, 65),
        // Around 2^15 products, and 2^11 with a vector (more are thin, which has a test of its own).
        (32, 32, 32),
        (33, 32, 32),
        (64, 64, 8),
        (64, 57, 9),
        (19, 12, 9),
        (31, 31, 2),
        (8, 8, 16),
        (5, 12, 17),
        (1, 32, 64),
        (64, 32, 1),
        // What is written row by row: small k, and many columns.
        (9, 7, 128),
        (9, 8, 127),
        (9, 8, 128),
        (10, 9, 128),
        (7, 1, 700),
        (6, 3, 515),
    ];
    for m in 1..=6 {
        for k in [1, 2, 7] {
            sizes.extend([1, 3, 4, 5, 8, 9, 16, 17].map(|n| (m, k, n)));
        }
    }
    let mut rng = Rng::new(4, "sizes");
    for size in sizes {
        let mut cases = Vec::new();
        for a in [Layout::Rows(0), Layout::Columns(1), Layout::SpreadRows(1)] {
            for b in LAYOUTS {
                for c in [Layout::Rows(1), Layout::Columns(0), Layout::SpreadColumns(1)] {
                    cases.push(Case { layouts: [a, b, c], is_packed: false, ..Case::drawn(size, &mut rng) });
                }
            }
        }
        // C as it is stored without a second thought.
        cases.push(Case::of(size));
        agree::<T>(&cases);
        // The same numbers, wherever they lie.
        let plain = cases[0].clone();
        sweep::<T>(|_| {
            let wanted = plain.bits(&plain.operands::<T>(Rng::normal));
            for case in &cases {
                let same = Case { layouts: case.layouts, offsets: case.offsets, ..plain.clone() };
                same.bits(&same.operands::<T>(Rng::normal)).assert_same(&format!("{same:?} and {plain:?}"), &wanted);
            }
        });
    }
}

fn every_block_boundary<T: Element>() {
    let mut cases = Vec::new();
    for (i, large) in LARGE.into_iter().enumerate() {
        for (j, size) in [(large, 9, 19), (13, large, 18), (7, 11, large)].into_iter().enumerate() {
            for turn in 0..2 {
                // Each boundary with rows contiguous (B may be read in place, A transposed too), and otherwise.
                let layouts = if turn == 0 {
                    [Layout::Rows(0), Layout::Rows(i % 2), Layout::Rows(1)]
                } else {
                    [Layout::Columns(i % 3), LAYOUTS[(i + j) % 6], LAYOUTS[(i + 2 * j + 2) % 6]]
                };
                cases.push(Case { layouts, beta: 1.3, alpha: -1.0, offsets: [i % 16, j, i / 2], ..Case::of(size) });
            }
        }
    }
    // Two and three dimensions beyond a block at once.
    cases.push(Case { beta: 1.0, ..Case::of((97, 257, 259)) });
    cases.push(Case {
        layouts: [Layout::Columns(0), Layout::Columns(1), Layout::Columns(0)],
        ..Case::of((385, 70, 33))
    });
    agree::<T>(&cases);
}

/// Around blocks of k (256, of even sizes from there on), of columns (2048) and of rows (1536, in tasks of up to 48).
fn every_cache_block<T: Element>() {
    let mut rng = Rng::new(2, "sizes");
    let mut sizes = Vec::new();
    for k in [255, 256, 257, 263, 264, 265, 271, 272, 273, 511, 512, 513, 767, 768, 769, 1025] {
        sizes.extend([(1 + rng.index(15), k, 1 + rng.index(35)), (49 + rng.index(9), k, 1 + rng.index(5))]);
    }
    for n in [2047, 2048, 2049, 2080, 2081, 4095, 4096, 4097] {
        sizes.push((1 + rng.index(4), 1 + rng.index(9), n));
    }
    for m in [1535, 1536, 1537, 1559, 1560, 1561, 1536 + 383, 1536 + 384, 1536 + 385, 3072, 3073] {
        sizes.push((m, 1 + rng.index(9), 1 + rng.index(5)));
    }
    // Few rows or columns, k in several blocks of a tile's or of dot products; those in several parts, and rows in several groups.
    sizes.extend([(19, 4099, 4), (33, 5000, 2), (3, 4500, 35), (50, 1025, 4)]);
    sizes.extend([(2, 1290, 70), (70, 1290, 3), (1, 10241, 3), (4, 10241, 1), (1, 5000, 1), (385, 70, 4), (9, 600, 3)]);
    sizes.extend([(50, 3, 2049), (1561, 2, 66), (1537, 257, 2), (2, 257, 2049), (97, 265, 66), (385, 9, 66)]);
    // So many blocks of k that the last has a single step.
    agree::<T>(&[Case::of((2, 7937, 128)), Case { is_packed: true, ..Case::of((2, 7937, 128)) }]);
    // So many blocks of columns that the last is narrow, where they are of 1024 or 2048.
    for n in [28_769, 64 * 2048 + 1] {
        let layouts = [Layout::SpreadRows(1), Layout::Rows(0), Layout::Rows(0)];
        agree::<T>(&[Case { layouts, ..Case::of((3, 2, n)) }]);
    }
    for size in sizes {
        // Drawn, with rows and with columns of C contiguous, and with B packed.
        let drawn = Case::drawn(size, &mut rng);
        let [a, b, _] = drawn.layouts;
        let by = |c| Case { layouts: [a, b, c], is_packed: false, ..drawn.clone() };
        let packed = Case { is_packed: true, extra: Extra::BiasRelu, ..by(Layout::Rows(1)) };
        agree::<T>(&[by(Layout::Rows(2)), by(Layout::Columns(2)), packed, drawn]);
    }
}

/// Around what decides whether A and B are read where they lie, for a product and for its transpose.
fn every_way_of_reading_in_place<T: Element>() {
    let mut cases = Vec::new();
    let mut add = |(m, k, n): (usize, usize, usize), b_stride: usize| {
        let gap = b_stride - n;
        let seed = cases.len();
        let case =
            |size, layouts| Case { layouts, alpha: 0.7, beta: 1.3, offsets: [seed % 16, 1, 2], ..Case::of(size) };
        for (a, a_transposed) in [
            (Layout::Rows(seed % 3), Layout::Columns(seed % 3)),
            (Layout::Columns(seed % 3), Layout::Rows(seed % 3)),
            (Layout::SpreadRows(0), Layout::SpreadColumns(0)),
        ] {
            cases.push(case((m, k, n), [a, Layout::Rows(gap), Layout::Rows(0)]));
            cases.push(case((n, k, m), [Layout::Columns(gap), a_transposed, Layout::Columns(0)]));
        }
    };
    // B's rows 1024 elements apart and at most 48 of C, or its block a quarter of the second cache; A's rows by 64 columns, or its
    // columns by 64.
    for m in [48, 49] {
        for b_stride in [1023, 1024, 1025] {
            for k in [3, 64, 65] {
                for n in [20, 64, 65] {
                    add((m, k, n), b_stride);
                }
            }
        }
    }
    for (k, b_stride) in
        [(4, 1024), (4, 1025), (16, 256), (16, 257), (64, 64), (64, 65), (63, 65), (256, 16), (257, 16)]
    {
        add((50, k, b_stride.min(66)), b_stride);
    }
    // Panels of B in the inner loop, or strips of A: around a first cache of 32 KiB.
    for (k, n) in [(64, 64), (63, 65), (65, 63), (256, 16), (240, 17), (31, 132), (32, 128), (128, 64), (129, 64)] {
        add((14, k, n), n);
        add((70, k, n), n + 7);
    }
    // A's columns and B's rows in the same few sets of the first cache.
    cases.push(Case { layouts: [Layout::Columns(0), Layout::Rows(0), Layout::Rows(0)], ..Case::of((256, 64, 256)) });
    for cases in cases.chunks(100) {
        agree::<T>(cases);
    }
}

/// Where scratch is tight: few columns beside many rows, and the other way round, by one thread (the test of threads has more).
fn the_scratch_asked_for_is_enough<T: Element>() {
    for (m, k, n) in [(383, 1, 384), (383, 2, 400), (360, 3, 385), (383, 9, 384)] {
        let (by_rows, by_columns) = ([Layout::Rows(2); 3], [Layout::Columns(2); 3]);
        agree::<T>(&[
            Case { layouts: by_rows, ..Case::of((m, k, n)) },
            Case { layouts: by_columns, ..Case::of((n, k, m)) },
            Case { layouts: by_rows, is_packed: true, ..Case::of((m, k, n)) },
        ]);
    }
}

/// Nothing to compute needs nothing, however long its sums would be.
fn nothing_by_anything_is_nothing<T: Element>() {
    let long = usize::MAX;
    let a = MatRef::<T>::with_strides(&[], 0, long, 0, 0).unwrap();
    let b = MatRef::<T>::with_strides(&[], long, 0, 0, 0).unwrap();
    assert_eq!(scratch_len::<T>(0, long, 0), 0);
    gemm(T::ONE, a, b, T::ONE, MatMut::new(&mut [], 0, 0), Epilogue::None, &mut []);
}

/// The distance between two rows means nothing where there is one, nor that between two columns.
fn strides_that_nothing_uses_may_be_anything<T: Element>() {
    for size @ (m, k, n) in
        [(1, 1, 1), (1, 5, 70), (5, 1, 70), (50, 1, 70), (5, 7, 1), (50, 70, 1), (1, 300, 1), (1, 1, 5)]
    {
        let stride = |count: usize, stride| if count == 1 { usize::MAX } else { stride };
        let any = |data, rows, cols| {
            MatRef::<T>::with_strides(data, rows, cols, stride(rows, cols), stride(cols, 1)).unwrap()
        };
        let operands = Case::of(size).operands::<T>(Rng::normal);
        let [a, b, _] = &operands.matrices;
        let (a, b) = (a.elements(), b.elements());
        sweep::<T>(|_| {
            for extra in Extra::ALL {
                let plain = Case { extra, ..Case::of(size) }.bits(&operands);
                let (mut c, mut numbers) = (vec![T::from_f64(f64::NAN); m * n], operands.numbers.clone());
                let mut scratch = vec![T::ZERO; scratch_len::<T>(m, k, n)];
                let epilogue = extra.epilogue(&mut numbers);
                let view = MatMut::with_strides(&mut c, m, n, stride(m, n), stride(n, 1)).unwrap();
                gemm(T::ONE, any(&a, m, k), any(&b, k, n), T::ZERO, view, epilogue, &mut scratch);
                Results { c, numbers }.bits().assert_same(&format!("{size:?} {extra:?}"), &plain);
            }
        });
    }
}

/// Thin products: the bits depend on whether k is contiguous in the long operand, and on no other stride.
fn thin_products_have_two_orders<T: Element>() {
    use Layout::{Columns, Rows, SpreadColumns, SpreadRows};
    let by_k = |of_a: bool| if of_a { [Rows(0), Rows(3)] } else { [Columns(0), Columns(5)] };
    let other = |of_a: bool| [if of_a { Columns(2) } else { Rows(2) }, SpreadRows(1), SpreadColumns(2)];
    for size @ (m, _, n) in
        [(37, 277, 2), (67, 70, 4), (300, 33, 1), (1, 139, 45), (3, 270, 17), (4, 9000, 5), (700, 32, 3)]
    {
        let of_a = n <= 4;
        sweep::<T>(|_| {
            let result = |long: Layout, short: Layout, c: Layout| {
                let layouts = if of_a { [long, short, c] } else { [short, long, c] };
                let case = Case { layouts, offsets: [3, 1, 2], alpha: 0.7, beta: 1.3, ..Case::of(size) };
                case.bits(&case.operands::<T>(Rng::normal))
            };
            for longs in [by_k(of_a).to_vec(), other(of_a).to_vec()] {
                let first = result(longs[0], Rows(0), Rows(0));
                for &long in &longs {
                    for short in LAYOUTS {
                        for c in LAYOUTS {
                            result(long, short, c).assert_same(&format!("{m} rows: {long:?} {short:?} {c:?}"), &first);
                        }
                    }
                }
            }
        });
    }
}

fn every_layout_and_scalar<T: Element>() {
    let mut cases = Vec::new();
    for a in LAYOUTS {
        for b in LAYOUTS {
            for c in LAYOUTS {
                for (alpha, beta) in [(1.0, 0.0), (0.7, 1.3)] {
                    cases.push(Case { layouts: [a, b, c], alpha, beta, offsets: [1, 2, 3], ..Case::of((29, 37, 35)) });
                }
            }
        }
    }
    for alpha in [0.0, 1.0, 0.7, -1.0] {
        for beta in [0.0, 1.0, 1.3] {
            cases.push(Case { alpha, beta, ..Case::of((25, 300, 17)) });
        }
    }
    for offset in 0..16 {
        cases.push(Case { offsets: [offset; 3], beta: 1.0, ..Case::of((14, 20, 47)) });
    }
    agree::<T>(&cases);
}

/// Strides and offsets say where numbers lie, and nothing of what they are.
fn layouts_do_not_change_bits<T: Element>() {
    for size in [(14, 300, 21), (50, 20, 40), (20, 5, 130), (3, 300, 2)] {
        sweep::<T>(|_| {
            let case = |layouts, offsets| Case { layouts, offsets, alpha: 0.7, beta: 1.3, ..Case::of(size) };
            let result = |case: Case| case.bits(&case.operands::<T>(Rng::normal));
            let plain = result(case([Layout::Rows(0); 3], [0; 3]));
            for a in LAYOUTS {
                for b in LAYOUTS {
                    for (offset, c) in LAYOUTS.into_iter().enumerate() {
                        let other = case([a, b, c], [offset, 2 * offset, 3 * offset]);
                        let what = format!("{other:?} and the plain layout");
                        result(other).assert_same(&what, &plain);
                    }
                }
            }
        });
    }
}

/// Whole numbers whose sums stay below 2^24 (513 * 16 * 2 + 12): no order of summation and no fusion rounds anything.
fn whole_numbers_are_exact<T: Element>() {
    let mut rng = Rng::new(3, "sizes");
    let mut sizes = vec![(31, 513, 50), (25, 256, 257), (100, 65, 31), (385, 9, 70), (70, 9, 385)];
    for size in 0..=70 {
        let [a, b] = [0; 2].map(|_| rng.index(71));
        sizes.extend([(size, a, b), (a, size, b), (a, b, size)]);
    }
    for size in sizes {
        let case = Case { alpha: -2.0, beta: rng.index(3) as f64, ..Case::drawn(size, &mut rng) };
        let operands = case.operands::<T>(|rng| rng.index(9) as f64 - 4.0);
        let Results { c: (c, _), numbers: (numbers, _) } = case.wanted(&operands);
        sweep::<T>(|_| {
            let found = case.run(&operands);
            near(&format!("{case:?}: C"), &found.c, &c, |_| 0.0);
            near(&format!("{case:?}: numbers"), &found.numbers, &numbers, |_| 0.0);
        });
    }
}

fn zero_scalars_hide_what_they_multiply<T: Element>() {
    for layouts in [[Layout::Rows(0); 3], [Layout::Rows(1), Layout::Columns(0), Layout::SpreadColumns(1)]] {
        for size in [(13, 9, 35), (3, 300, 2)] {
            // beta = 0: C is full of NaN.
            agree::<T>(&[Case { layouts, ..Case::of(size) }]);
            // alpha = 0: A and B are; C is scaled, or zero.
            for beta in [0.0, 1.0, 1.3] {
                let case = Case { layouts, alpha: 0.0, beta, ..Case::of(size) };
                let mut operands = case.operands::<T>(Rng::normal);
                operands.matrices[0] = Matrix::input(layouts[0], 0, (size.0, size.1), |_, _| f64::NAN);
                operands.matrices[1] = Matrix::input(layouts[1], 0, (size.1, size.2), |_, _| f64::INFINITY);
                let wanted = case.wanted(&operands);
                assert!(wanted.c.0.iter().all(|c| c.is_finite()));
                sweep::<T>(|_| _ = case.check(&operands, &wanted));
            }
        }
    }
}

/// One value that is not finite reaches its row (of A), its column (of B) or its element (of C), also through zeros, and nothing
/// else.
fn what_is_not_finite_propagates<T: Element>() {
    for (turn, size) in [(14, 260, 37), (3, 9, 70), (50, 20, 65), (25, 300, 9)].into_iter().cycle().take(48).enumerate()
    {
        let (m, k, n) = size;
        let mut rng = Rng::new(turn as u64, "bad");
        let bad = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY][turn % 3];
        let (i, p, j) = (rng.index(m), rng.index(k), rng.index(n));
        let case = Case { alpha: 1.0, beta: 1.0, extra: Extra::None, ..Case::drawn(size, &mut rng) };
        let mut dirty = case.operands::<T>(Rng::normal);
        // Half of the factors that it meets are zero.
        let [a, b, _] = &mut dirty.matrices;
        match turn / 4 % 3 {
            0 => (0..n).step_by(2).for_each(|j| b.set(p, j, 0.0)),
            _ => (0..m).step_by(2).for_each(|i| a.set(i, p, 0.0)),
        }
        let clean = dirty.clone();
        let [a, b, c] = &mut dirty.matrices;
        match turn / 4 % 3 {
            0 => a.set(i, p, bad),
            1 => b.set(p, j, bad),
            _ => c.set(i, j, bad),
        }
        let wanted = case.wanted(&dirty).c.0;
        sweep::<T>(|_| {
            let (found, clean) = (case.run(&dirty).c, case.run(&clean).c);
            for (e, found) in found.iter().enumerate() {
                let hit = match turn / 4 % 3 {
                    0 => e / n == i,
                    1 => e % n == j,
                    _ => e == i * n + j,
                };
                assert_eq!(wanted[e].is_finite(), !hit);
                if hit {
                    near_one(
                        &format_args!("{case:?} with {bad} at {:?}: C[{e}]", (i, p, j)),
                        found.to_f64(),
                        wanted[e],
                        || 0.0,
                    );
                } else {
                    assert_eq!(found.bits(), clean[e].bits(), "{case:?}: {bad} at {:?}: C[{e}] noticed", (i, p, j));
                }
            }
        });
    }
}

fn threads_and_fused_sets_give_the_same_bits<T: Element>() {
    // Around the rows of a task, and with several blocks of everything.
    let tiles = [(47, 9, 70), (49, 300, 65), (97, 9, 500), (383, 9, 66), (385, 40, 33), (1537, 3, 66), (33, 265, 600)];
    let thin = [(700, 90, 3), (2, 270, 700), (4, 40, 300), (40, 8, 2048)];
    let sizes = tiles.into_iter().chain(thin);
    for extra in Extra::ALL {
        let of = |size| Case { alpha: 0.7, beta: 1.3, extra, ..Case::of(size) };
        let mut cases: Vec<Case> = sizes.clone().map(of).collect();
        cases.extend(sizes.clone().map(|size| Case { layouts: [Layout::Columns(0); 3], ..of(size) }));
        let b_by_columns = [Layout::Rows(0), Layout::Columns(0), Layout::Rows(0)];
        cases.extend(sizes.clone().map(|size| Case { layouts: b_by_columns, ..of(size) }));
        if extra != Extra::ColumnSums {
            cases.extend(sizes.clone().map(|size| Case { is_packed: true, ..of(size) }));
        }
        let operands: Vec<_> = cases.iter().map(|case| case.operands::<T>(Rng::normal)).collect();
        same_bits_everywhere::<T>(|| {
            let all = cases.iter().zip(&operands).map(|(case, operands)| case.bits(operands));
            all.flat_map(|Results { c, numbers }| [c, numbers].concat()).collect()
        });
    }
}

/// Rows and columns may be repeated by a stride of 0.
fn repeated_rows_and_columns_are_legal_inputs<T: Element>() {
    let data: Vec<T> = normals(&mut Rng::new(3, "gemm"), 140);
    for (m, k, n) in [(13, 40, 70), (50, 70, 9), (2, 7, 66), (70, 5, 67), (40, 70, 3), (9, 4, 140)] {
        let operands = Case::of((m, k, n)).operands::<T>(Rng::normal);
        let [a, b, _] = &operands.matrices;
        for (rs, cs) in [(0, 1), (1, 0), (0, 0)] {
            for in_a in [true, false] {
                // Few columns are dot products, which copies of other strides are not.
                if n <= 4 && !(in_a && cs == 1) {
                    continue;
                }
                let (rows, cols) = if in_a { (m, k) } else { (k, n) };
                let repeated = MatRef::with_strides(&data, rows, cols, rs, cs).unwrap();
                let copies: Vec<T> = (0..rows * cols).map(|e| repeated.get(e / cols, e % cols)).collect();
                sweep::<T>(|_| {
                    let product = |view| {
                        let (a, b) = if in_a { (view, b.view()) } else { (a.view(), view) };
                        let (mut c, mut scratch) = (vec![T::ZERO; m * n], vec![T::ZERO; scratch_len::<T>(m, k, n)]);
                        gemm(T::ONE, a, b, T::ZERO, MatMut::new(&mut c, m, n), Epilogue::None, &mut scratch);
                        bits(&c)
                    };
                    let what = format!("{:?}, strides {rs} and {cs}, and copies", (m, k, n));
                    assert_same_bits(&what, &product(repeated), &product(MatRef::new(&copies, rows, cols)));
                });
            }
        }
    }
}

in_both_types!(
    every_size_up_to_70,
    a_few_numbers,
    every_block_boundary,
    every_cache_block,
    every_way_of_reading_in_place,
    the_scratch_asked_for_is_enough,
    nothing_by_anything_is_nothing,
    strides_that_nothing_uses_may_be_anything,
    every_layout_and_scalar,
    thin_products_have_two_orders,
    layouts_do_not_change_bits,
    whole_numbers_are_exact,
    zero_scalars_hide_what_they_multiply,
    what_is_not_finite_propagates,
    threads_and_fused_sets_give_the_same_bits,
    repeated_rows_and_columns_are_legal_inputs,
);

proptest! {
    #![proptest_config(cases(150, file!()))]

    #[test]
    fn any_product_agrees_with_the_reference(case in any_case()) {
        agree::<f32>(std::slice::from_ref(&case));
        agree::<f64>(std::slice::from_ref(&case));
    }
}
