//! Products with a B that was packed beforehand.

use super::case::*;
use crate::support::*;
use evenkeel::Rng;
use evenkeel::kernels::gemm::PackedB;
use evenkeel::simd::Element;

/// One B packed once, for products of every number of rows in `ms` and every epilogue: the bits of a B whose rows are contiguous.
fn same_bits_as_the_product<T: Element>(ms: &[usize], k: usize, n: usize, rng: &mut Rng) {
    let drawn = Case::drawn((1, k, n), rng);
    let cases: Vec<Case> = ms
        .iter()
        .flat_map(|&m| {
            let Case { layouts: [a, _, _], offsets, alpha, beta, .. } = Case::drawn((m, k, n), rng);
            let c = LAYOUTS[rng.index(LAYOUTS.len())];
            let layouts = [a, drawn.layouts[1], c];
            Extra::PACKED.map(|extra| Case { layouts, offsets, alpha, beta, extra, ..Case::of((m, k, n)) })
        })
        .collect();
    let b = drawn.operands::<T>(Rng::normal).matrices[1].clone();
    let by_rows = Matrix::<T>::input(Layout::Rows(0), 0, (k, n), |i, j| b.at(i, j));
    let operands: Vec<_> = cases
        .iter()
        .map(|case| {
            let mut operands = case.operands::<T>(Rng::normal);
            operands.matrices[1] = by_rows.clone();
            operands
        })
        .collect();
    sweep::<T>(|_| {
        let packed = PackedB::new(b.view()).unwrap();
        assert_eq!((packed.rows(), packed.cols()), (k, n));
        for (case, operands) in cases.iter().zip(&operands) {
            let plain = case.run_on(operands, None).bits();
            case.run_on(operands, Some(&packed)).bits().assert_same(&format!("{case:?}, packed and not"), &plain);
        }
    });
}

fn every_tile<T: Element>() {
    let mut rng = Rng::new(5, "sizes");
    let ms: Vec<usize> = (0..=26).chain([48, 49]).collect();
    for n in (0..=36).chain(47..=49).chain(62..=66) {
        same_bits_as_the_product::<T>(&ms, [1, 2, 7, 20, 64, 65][n % 6], n, &mut rng);
    }
    for k in 0..=70 {
        same_bits_as_the_product::<T>(&[1, 5, 14], k, 1 + rng.index(70), &mut rng);
    }
}

fn every_block<T: Element>() {
    let mut rng = Rng::new(6, "sizes");
    for k in [255, 256, 257, 264, 265, 512, 513, 769] {
        for n in [1, 33, 70] {
            same_bits_as_the_product::<T>(&[1, 3, 14], k, n, &mut rng);
        }
    }
    for n in [2047, 2048, 2049, 2080, 2081, 4096, 4097, 6145] {
        same_bits_as_the_product::<T>(&[1, 4], 1 + rng.index(9), n, &mut rng);
    }
    same_bits_as_the_product::<T>(&[3], 513, 2049, &mut rng);
    // Few columns.
    for (k, n) in [(40, 1), (257, 2), (300, 3), (513, 4)] {
        same_bits_as_the_product::<T>(&[1, 4, 16, 70], k, n, &mut rng);
    }
    same_bits_as_the_product::<T>(&[96, 97, 384, 385], 9, 66, &mut rng);
    same_bits_as_the_product::<T>(&[1536, 1537], 2, 33, &mut rng);
}

/// So many blocks of columns that the last has a single one: in a panel of its own, as wide as a vector.
fn a_last_block_narrower_than_a_vector<T: Element>() {
    same_bits_as_the_product::<T>(&[1], 1, 64 * 2048 + 1, &mut Rng::new(7, "sizes"));
}

fn a_single_row_or_column_may_have_any_stride<T: Element>() {
    for size in [(1, 7, 40), (30, 7, 1), (1, 300, 1)] {
        for c in LAYOUTS {
            for extra in Extra::PACKED {
                let case = Case { layouts: [Layout::Rows(0), Layout::Columns(0), c], extra, ..Case::of(size) };
                agree::<T>(&[Case { is_packed: true, ..case }]);
            }
        }
    }
}

in_both_types!(
    every_tile,
    every_block,
    a_last_block_narrower_than_a_vector,
    a_single_row_or_column_may_have_any_stride,
);
