//! `C <- alpha A B + beta C`.

use crate::support::*;
use evenkeel::Rng;
use evenkeel::kernels::gemm::{Epilogue, gemm, scratch_len};
use evenkeel::matrix::{MatMut, MatRef};
use evenkeel::reference;
use evenkeel::simd::Element;
use proptest::prelude::*;

/// Where the elements of a matrix lie.
#[derive(Clone, Copy, Debug)]
enum Layout {
    /// Rows contiguous, with that many elements between two rows.
    Rows(usize),
    /// Columns contiguous, with that many elements between two columns.
    Columns(usize),
    /// Rows one after another, every third element used.
    SpreadRows(usize),
    /// Columns one after another, every second element used.
    SpreadColumns(usize),
}

const LAYOUTS: [Layout; 6] = [
    Layout::Rows(0),
    Layout::Rows(3),
    Layout::Columns(0),
    Layout::Columns(5),
    Layout::SpreadRows(1),
    Layout::SpreadColumns(2),
];

impl Layout {
    /// Row and column stride.
    fn strides(self, rows: usize, cols: usize) -> (usize, usize) {
        match self {
            Layout::Rows(gap) => (cols + gap, 1),
            Layout::Columns(gap) => (1, rows + gap),
            Layout::SpreadRows(gap) => (3 * cols + gap, 3),
            Layout::SpreadColumns(gap) => (2, 2 * rows + gap),
        }
    }
}

/// A matrix in a buffer of its own, an offset from the allocator's alignment.
#[derive(Clone)]
struct Matrix<T> {
    buffer: Vec<T>,
    offset: usize,
    rows: usize,
    cols: usize,
    strides: (usize, usize),
}

/// Between the elements of a matrix, and around them.
const CANARY: f64 = 77_777.25;

impl<T: Element> Matrix<T> {
    fn new(
        layout: Layout,
        offset: usize,
        (rows, cols): (usize, usize),
        mut f: impl FnMut(usize, usize) -> f64,
    ) -> Self {
        let strides = layout.strides(rows, cols);
        let span = if rows == 0 || cols == 0 { 0 } else { (rows - 1) * strides.0 + (cols - 1) * strides.1 + 1 };
        let buffer = vec![T::from_f64(CANARY); offset + span + 17];
        let mut matrix = Matrix { buffer, offset, rows, cols, strides };
        for i in 0..rows {
            for j in 0..cols {
                let place = matrix.place(i, j);
                matrix.buffer[place] = T::from_f64(f(i, j));
            }
        }
        matrix
    }

    fn place(&self, i: usize, j: usize) -> usize {
        self.offset + i * self.strides.0 + j * self.strides.1
    }

    fn at(&self, i: usize, j: usize) -> f64 {
        self.buffer[self.place(i, j)].to_f64()
    }

    fn view(&self) -> MatRef<'_, T> {
        MatRef::with_strides(&self.buffer[self.offset..], self.rows, self.cols, self.strides.0, self.strides.1).unwrap()
    }

    fn view_mut(&mut self) -> MatMut<'_, T> {
        let (rows, cols, (rs, cs)) = (self.rows, self.cols, self.strides);
        MatMut::with_strides(&mut self.buffer[self.offset..], rows, cols, rs, cs).unwrap()
    }

    /// Row-major.
    fn elements(&self) -> Vec<T> {
        (0..self.rows * self.cols).map(|e| self.buffer[self.place(e / self.cols, e % self.cols)]).collect()
    }

    #[track_caller]
    fn check_gaps(&self) {
        let mut rest = self.buffer.clone();
        for i in 0..self.rows {
            for j in 0..self.cols {
                rest[self.place(i, j)] = T::from_f64(CANARY);
            }
        }
        let stray = rest.iter().position(|x| x.bits() != T::from_f64(CANARY).bits());
        assert_eq!(stray, None, "gemm wrote outside the elements of C (offset {})", self.offset);
    }
}

/// One product, with everything that may differ.
#[derive(Clone, Debug)]
struct Case {
    size: (usize, usize, usize),
    alpha: f64,
    beta: f64,
    layouts: [Layout; 3],
    offsets: [usize; 3],
    seed: u64,
}

impl Case {
    fn of(size: (usize, usize, usize)) -> Self {
        Case { size, alpha: 1.0, beta: 0.0, layouts: [Layout::Rows(0); 3], offsets: [0; 3], seed: 1 }
    }

    /// A, B and C, filled by `draw`.
    fn operands<T: Element>(&self, draw: impl Fn(&mut Rng) -> f64) -> [Matrix<T>; 3] {
        let (m, k, n) = self.size;
        let mut rng = Rng::new(self.seed, "gemm");
        let [a, b, c] = self.layouts;
        let [a_offset, b_offset, c_offset] = self.offsets;
        [
            Matrix::new(a, a_offset, (m, k), |_, _| draw(&mut rng)),
            Matrix::new(b, b_offset, (k, n), |_, _| draw(&mut rng)),
            Matrix::new(c, c_offset, (m, n), |_, _| draw(&mut rng)),
        ]
    }

    /// Runs the kernel on a copy of C.
    fn run<T: Element>(&self, [a, b, c]: &[Matrix<T>; 3]) -> Matrix<T> {
        let (m, k, n) = self.size;
        let (a_before, b_before, mut c) = (bits(&a.buffer), bits(&b.buffer), c.clone());
        // Scratch holds NaN, so that what is read before it is written shows.
        let mut scratch = Guarded::new(&vec![T::from_f64(f64::NAN); scratch_len::<T>(m, k, n)], 0);
        let (alpha, beta) = (T::from_f64(self.alpha), T::from_f64(self.beta));
        gemm(alpha, a.view(), b.view(), beta, c.view_mut(), Epilogue::None, scratch.get_mut());
        scratch.check("gemm scratch");
        assert_same_bits("A after and before", &bits(&a.buffer), &a_before);
        assert_same_bits("B after and before", &bits(&b.buffer), &b_before);
        c.check_gaps();
        c
    }

    /// What the kernel should give, and what one unit of roundoff is measured in.
    fn wanted<T: Element>(&self, [a, b, c]: &[Matrix<T>; 3]) -> (Vec<f64>, Vec<f64>) {
        // The scalars are rounded to the element type before the kernel sees them.
        let (alpha, beta) = (T::from_f64(self.alpha).to_f64(), T::from_f64(self.beta).to_f64());
        let mut wanted = wide(&c.elements());
        let (at, bt) = (|i, p| a.at(i, p), |p, j| b.at(p, j));
        let bound = reference::gemm::gemm_bound(self.size, alpha, at, bt, beta, &wanted);
        reference::gemm::gemm(self.size, alpha, at, bt, beta, &mut wanted);
        (wanted, bound)
    }

    /// Compares with the reference on the current instruction set.
    fn check<T: Element>(&self, operands: &[Matrix<T>; 3], wanted: &(Vec<f64>, Vec<f64>)) {
        let k = self.size.1 as f64;
        // The kernel's bound; the reference rounds a product, the sum, and both scalars' products or sums.
        let roundings = k.min(256.0) + (k / 256.0).floor() + 3.0;
        let unit = roundings * T::ROUNDOFF + 4.0 * U64;
        let what = format!("{self:?}: C");
        near(&what, &self.run(operands).elements(), &wanted.0, |e| unit * wanted.1[e]);
    }
}

/// Compares every case on every instruction set with the reference, on normal data.
fn agree<T: Element>(cases: &[Case]) {
    let prepared: Vec<_> = cases
        .iter()
        .map(|case| {
            let operands = case.operands::<T>(Rng::normal);
            let wanted = case.wanted(&operands);
            (case, operands, wanted)
        })
        .collect();
    sweep::<T>(|_| {
        for (case, operands, wanted) in &prepared {
            case.check(operands, wanted);
        }
    });
}

/// Around the rows and columns of every register tile: 6 and 12 rows, 2 vectors of 1 to 16 lanes.
const SMALL: [usize; 19] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 15, 16, 17, 31, 32, 33];
/// Around the block of k and of columns (256), two of them, and the rows of a task (24, and 96 from 384 rows on).
const LARGE: [usize; 20] = [23, 24, 25, 47, 48, 49, 64, 65, 95, 96, 97, 251, 255, 256, 257, 383, 384, 385, 512, 513];

fn every_small_size<T: Element>() {
    let mut cases = Vec::new();
    for m in SMALL {
        for n in SMALL {
            for (i, k) in [0, 1, 2, 5, 17].into_iter().enumerate() {
                let pick = m + 2 * n + 3 * i;
                let layouts = [LAYOUTS[pick % 6], LAYOUTS[pick / 2 % 6], LAYOUTS[pick / 3 % 6]];
                let offsets = [m % 16, n % 16, pick % 16];
                let beta = [0.0, 1.0, 1.3][pick % 3];
                cases.push(Case { layouts, offsets, beta, alpha: 0.7, ..Case::of((m, k, n)) });
            }
        }
    }
    agree::<T>(&cases);
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
    for size in [(14, 300, 21), (50, 20, 40)] {
        sweep::<T>(|_| {
            let case = |layouts, offsets| Case { layouts, offsets, alpha: 0.7, beta: 1.3, ..Case::of(size) };
            let result = |case: Case| bits(&case.run(&case.operands::<T>(Rng::normal)).elements());
            let plain = result(case([Layout::Rows(0); 3], [0; 3]));
            for a in LAYOUTS {
                for b in LAYOUTS {
                    for (offset, c) in LAYOUTS.into_iter().enumerate() {
                        let other = case([a, b, c], [offset, 2 * offset, 3 * offset]);
                        let what = format!("{other:?} and the plain layout");
                        assert_same_bits(&what, &result(other), &plain);
                    }
                }
            }
        });
    }
}

/// Whole numbers whose sums stay below 2^24 (513 * 16 * 2 + 8): no order of summation and no fusion rounds anything.
fn whole_numbers_are_exact<T: Element>() {
    for (seed, size) in (1..).zip([(1, 1, 1), (13, 17, 33), (31, 513, 50), (25, 256, 257), (100, 65, 31)]) {
        for layouts in [[Layout::Rows(0); 3], [Layout::Columns(0), Layout::Columns(0), Layout::SpreadRows(1)]] {
            let case = Case { layouts, seed, alpha: -2.0, beta: 2.0, ..Case::of(size) };
            let operands = case.operands::<T>(|rng| rng.index(9) as f64 - 4.0);
            let (wanted, _) = case.wanted(&operands);
            sweep::<T>(|_| near(&format!("{case:?}: C"), &case.run(&operands).elements(), &wanted, |_| 0.0));
        }
    }
}

fn zero_scalars_hide_what_they_multiply<T: Element>() {
    for layouts in [[Layout::Rows(0); 3], [Layout::Rows(1), Layout::Columns(0), Layout::SpreadColumns(1)]] {
        for size in [(13, 9, 35), (3, 300, 2)] {
            // beta = 0: C is full of NaN.
            let case = Case { layouts, ..Case::of(size) };
            let mut operands = case.operands::<T>(Rng::normal);
            operands[2] = Matrix::new(layouts[2], 0, (size.0, size.2), |_, _| f64::NAN);
            let wanted = case.wanted(&operands);
            sweep::<T>(|_| case.check(&operands, &wanted));
            // alpha = 0: A and B are; C is scaled, or zero.
            for beta in [0.0, 1.0, 1.3] {
                let case = Case { layouts, alpha: 0.0, beta, ..Case::of(size) };
                let mut operands = case.operands::<T>(Rng::normal);
                operands[0] = Matrix::new(layouts[0], 0, (size.0, size.1), |_, _| f64::NAN);
                operands[1] = Matrix::new(layouts[1], 0, (size.1, size.2), |_, _| f64::INFINITY);
                let wanted = case.wanted(&operands);
                assert!(wanted.0.iter().all(|c| c.is_finite()));
                sweep::<T>(|_| case.check(&operands, &wanted));
            }
        }
    }
}

/// One value that is not finite reaches its row (of A) or column (of B), also through zeros, and nothing else.
fn what_is_not_finite_propagates<T: Element>() {
    let (m, k, n) = (14, 260, 37);
    for bad in [f64::NAN, f64::INFINITY] {
        for place in 0..12 {
            let case = Case { beta: 1.0, seed: place as u64, ..Case::of((m, k, n)) };
            let mut operands = case.operands::<T>(Rng::normal);
            let clean = operands.clone();
            let (in_a, at) = (place % 2 == 0, (place * 7 % 13, place * 53 % 260, place * 11 % 37));
            let (matrix, place) = if in_a { (0, (at.0, at.1)) } else { (1, (at.1, at.2)) };
            let place = operands[matrix].place(place.0, place.1);
            operands[matrix].buffer[place] = T::from_f64(bad);
            // Half of the factors that it meets are zero.
            for other in (0..if in_a { n } else { m }).step_by(2) {
                let zero = if in_a { operands[1].place(at.1, other) } else { operands[0].place(other, at.1) };
                operands[1 - matrix].buffer[zero] = T::ZERO;
            }
            let mut clean_others = clean.clone();
            clean_others[1 - matrix] = operands[1 - matrix].clone();
            let wanted = case.wanted(&operands);
            sweep::<T>(|_| {
                let found = case.run(&operands).elements();
                let clean = case.run(&clean_others).elements();
                for (e, found) in found.iter().enumerate() {
                    let hit = if in_a { e / n == at.0 } else { e % n == at.2 };
                    assert_eq!(wanted.0[e].is_finite(), !hit);
                    if hit {
                        let same = found.to_f64() == wanted.0[e] || (found.to_f64().is_nan() && wanted.0[e].is_nan());
                        assert!(same, "{bad} at {at:?}: C[{e}] is {found}, not {}", wanted.0[e]);
                    } else {
                        assert_eq!(found.bits(), clean[e].bits(), "{bad} at {at:?}: C[{e}] noticed");
                    }
                }
            });
        }
    }
}

fn threads_and_fused_sets_give_the_same_bits<T: Element>() {
    for size in [(400, 40, 33), (97, 300, 65), (50, 20, 260)] {
        let case = Case { alpha: 0.7, beta: 1.3, ..Case::of(size) };
        let columns = Case { layouts: [Layout::Columns(0); 3], ..case.clone() };
        for case in [case, columns] {
            let operands = case.operands::<T>(Rng::normal);
            same_bits_everywhere::<T>(|| bits(&case.run(&operands).elements()));
        }
    }
}

/// A row may be repeated by a stride of 0.
fn repeated_rows_are_legal_inputs<T: Element>() {
    let row: Vec<T> = normals(&mut Rng::new(3, "gemm"), 70);
    let (m, k, n) = (13, 40, 70);
    let a: Vec<T> = normals(&mut Rng::new(4, "gemm"), m * k);
    let repeated = MatRef::with_strides(&row, k, n, 0, 1).unwrap();
    let copies: Vec<T> = (0..k).flat_map(|_| row.iter().copied()).collect();
    sweep::<T>(|_| {
        let product = |b| {
            let mut c = vec![T::ZERO; m * n];
            let mut scratch = vec![T::ZERO; scratch_len::<T>(m, k, n)];
            gemm(T::ONE, MatRef::new(&a, m, k), b, T::ZERO, MatMut::new(&mut c, m, n), Epilogue::None, &mut scratch);
            bits(&c)
        };
        assert_same_bits("a repeated row and its copies", &product(repeated), &product(MatRef::new(&copies, k, n)));
    });
}

in_both_types!(
    every_small_size,
    every_block_boundary,
    every_layout_and_scalar,
    layouts_do_not_change_bits,
    whole_numbers_are_exact,
    zero_scalars_hide_what_they_multiply,
    what_is_not_finite_propagates,
    threads_and_fused_sets_give_the_same_bits,
    repeated_rows_are_legal_inputs,
);

fn dimension() -> impl Strategy<Value = usize> {
    let edges: Vec<usize> = SMALL.into_iter().chain(LARGE).collect();
    let primes = vec![2, 3, 5, 7, 11, 13, 19, 23, 29, 37, 41, 53, 61, 71, 83, 101, 127, 263];
    prop_oneof![0..40usize, prop::sample::select(edges), prop::sample::select(primes)]
}

fn layout() -> impl Strategy<Value = Layout> {
    prop_oneof![
        (0..9usize).prop_map(Layout::Rows),
        (0..9usize).prop_map(Layout::Columns),
        (0..5usize).prop_map(Layout::SpreadRows),
        (0..5usize).prop_map(Layout::SpreadColumns),
    ]
}

fn case() -> impl Strategy<Value = Case> {
    let size = (dimension(), dimension(), dimension())
        .prop_filter("a product that takes milliseconds", |&(m, k, n)| m * k * n <= 400_000);
    let scalars = (prop::sample::select(vec![0.0, 1.0, 0.7, -1.0]), prop::sample::select(vec![0.0, 1.0, 1.3]));
    let offsets = [0..16usize, 0..16usize, 0..16usize];
    (size, scalars, [layout(), layout(), layout()], offsets, any::<u64>())
        .prop_map(|(size, (alpha, beta), layouts, offsets, seed)| Case { size, alpha, beta, layouts, offsets, seed })
}

proptest! {
    #![proptest_config(cases(150, file!()))]

    #[test]
    fn any_product_agrees_with_the_reference(case in case()) {
        agree::<f32>(std::slice::from_ref(&case));
        agree::<f64>(std::slice::from_ref(&case));
    }
}
