//! One product with everything that may differ: how it is run, and what the reference makes of it.

use crate::support::*;
use evenkeel::Rng;
use evenkeel::kernels::gemm::{Epilogue, PackedB, gemm, gemm_packed, scratch_len};
use evenkeel::matrix::{MatMut, MatRef};
use evenkeel::reference;
use evenkeel::simd::Element;
use proptest::prelude::*;

/// Where the elements of a matrix lie.
#[derive(Clone, Copy, Debug)]
pub(super) enum Layout {
    /// Rows contiguous, with that many elements between two rows.
    Rows(usize),
    /// Columns contiguous, with that many elements between two columns.
    Columns(usize),
    /// Rows one after another, every third element used.
    SpreadRows(usize),
    /// Columns one after another, every second element used.
    SpreadColumns(usize),
}

pub(super) const LAYOUTS: [Layout; 6] = [
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

    fn drawn(rng: &mut Rng) -> Self {
        match rng.index(4) {
            0 => Layout::Rows(rng.index(9)),
            1 => Layout::Columns(rng.index(9)),
            2 => Layout::SpreadRows(rng.index(5)),
            _ => Layout::SpreadColumns(rng.index(5)),
        }
    }
}

/// A matrix in a buffer of its own, an offset from the allocator's alignment.
#[derive(Clone)]
pub(super) struct Matrix<T> {
    pub(super) buffer: Vec<T>,
    offset: usize,
    rows: usize,
    cols: usize,
    strides: (usize, usize),
    /// Between the elements, and around them.
    gap: f64,
}

/// In the gaps of a result: exact in both types, and no result of any test.
const CANARY: f64 = 77_777.25;

impl<T: Element> Matrix<T> {
    /// What is read: NaN between the elements, and nothing behind the last.
    pub(super) fn input(
        layout: Layout,
        offset: usize,
        size: (usize, usize),
        f: impl FnMut(usize, usize) -> f64,
    ) -> Self {
        Matrix::new(layout, offset, 0, f64::NAN, size, f)
    }

    /// What is written, with canaries wherever it is not.
    pub(super) fn output(
        layout: Layout,
        offset: usize,
        size: (usize, usize),
        f: impl FnMut(usize, usize) -> f64,
    ) -> Self {
        Matrix::new(layout, offset, 17, CANARY, size, f)
    }

    fn new(
        layout: Layout,
        offset: usize,
        margin: usize,
        gap: f64,
        (rows, cols): (usize, usize),
        mut f: impl FnMut(usize, usize) -> f64,
    ) -> Self {
        let strides = layout.strides(rows, cols);
        let span = if rows == 0 || cols == 0 { 0 } else { (rows - 1) * strides.0 + (cols - 1) * strides.1 + 1 };
        let buffer = vec![T::from_f64(gap); offset + span + margin];
        let mut matrix = Matrix { buffer, offset, rows, cols, strides, gap };
        for i in 0..rows {
            for j in 0..cols {
                let place = matrix.place(i, j);
                matrix.buffer[place] = T::from_f64(f(i, j));
            }
        }
        matrix
    }

    pub(super) fn place(&self, i: usize, j: usize) -> usize {
        self.offset + i * self.strides.0 + j * self.strides.1
    }

    pub(super) fn at(&self, i: usize, j: usize) -> f64 {
        self.buffer[self.place(i, j)].to_f64()
    }

    pub(super) fn set(&mut self, i: usize, j: usize, x: f64) {
        let place = self.place(i, j);
        self.buffer[place] = T::from_f64(x);
    }

    pub(super) fn view(&self) -> MatRef<'_, T> {
        MatRef::with_strides(&self.buffer[self.offset..], self.rows, self.cols, self.strides.0, self.strides.1).unwrap()
    }

    pub(super) fn view_mut(&mut self) -> MatMut<'_, T> {
        let (rows, cols, (rs, cs)) = (self.rows, self.cols, self.strides);
        MatMut::with_strides(&mut self.buffer[self.offset..], rows, cols, rs, cs).unwrap()
    }

    /// Row-major.
    pub(super) fn elements(&self) -> Vec<T> {
        (0..self.rows * self.cols).map(|e| self.buffer[self.place(e / self.cols, e % self.cols)]).collect()
    }

    #[track_caller]
    fn check_gaps(&self) {
        let gap = T::from_f64(self.gap);
        let mut rest = self.buffer.clone();
        for i in 0..self.rows {
            for j in 0..self.cols {
                rest[self.place(i, j)] = gap;
            }
        }
        let stray = rest.iter().position(|x| x.bits() != gap.bits());
        assert_eq!(stray, None, "gemm wrote outside the elements of C (offset {})", self.offset);
    }
}

/// [`Epilogue`], without its numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Extra {
    None,
    Relu,
    Bias,
    BiasRelu,
    ColumnSums,
}

impl Extra {
    pub(super) const ALL: [Extra; 5] = [Extra::None, Extra::Relu, Extra::Bias, Extra::BiasRelu, Extra::ColumnSums];
    /// Those that a packed B can do.
    pub(super) const PACKED: [Extra; 4] = [Extra::None, Extra::Relu, Extra::Bias, Extra::BiasRelu];

    pub(super) fn epilogue<T>(self, numbers: &mut [T]) -> Epilogue<'_, T> {
        match self {
            Extra::None => Epilogue::None,
            Extra::Relu => Epilogue::Relu,
            Extra::Bias => Epilogue::Bias(numbers),
            Extra::BiasRelu => Epilogue::BiasRelu(numbers),
            Extra::ColumnSums => Epilogue::ColumnSums(numbers),
        }
    }
}

/// One product, with everything that may differ.
#[derive(Clone, Debug)]
pub(super) struct Case {
    pub(super) size: (usize, usize, usize),
    pub(super) alpha: f64,
    pub(super) beta: f64,
    pub(super) layouts: [Layout; 3],
    pub(super) offsets: [usize; 3],
    pub(super) extra: Extra,
    pub(super) is_packed: bool,
    pub(super) seed: u64,
}

/// A, B and C, and the numbers of an epilogue.
#[derive(Clone)]
pub(super) struct Operands<T> {
    pub(super) matrices: [Matrix<T>; 3],
    pub(super) numbers: Vec<T>,
}

/// What a product writes: the elements, their bits, or in f64 what they should be and what a unit of roundoff is measured in.
#[derive(Clone)]
pub(super) struct Results<T> {
    /// C, row-major.
    pub(super) c: T,
    /// The numbers of an epilogue: only sums of columns change.
    pub(super) numbers: T,
}

impl<T: Element> Results<Vec<T>> {
    /// NaN is NaN.
    pub(super) fn bits(&self) -> Results<Vec<u64>> {
        Results { c: comparable(&self.c), numbers: comparable(&self.numbers) }
    }
}

impl Results<Vec<u64>> {
    #[track_caller]
    pub(super) fn assert_same(&self, what: &str, other: &Self) {
        assert_same_bits(&format!("{what}: C"), &self.c, &other.c);
        assert_same_bits(&format!("{what}: numbers of the epilogue"), &self.numbers, &other.numbers);
    }
}

/// Units of roundoff that a sum of any number of normal products stays within: see [`Case::check`].
const RANDOM_SIGNS: f64 = 16.0;

impl Case {
    pub(super) fn of(size: (usize, usize, usize)) -> Self {
        Case {
            size,
            alpha: 1.0,
            beta: 0.0,
            layouts: [Layout::Rows(0); 3],
            offsets: [0; 3],
            extra: Extra::None,
            is_packed: false,
            seed: 1,
        }
    }

    /// Any layouts, offsets, scalars and epilogue, with B packed now and then.
    pub(super) fn drawn(size: (usize, usize, usize), rng: &mut Rng) -> Self {
        let layouts = [0; 3].map(|_| Layout::drawn(rng));
        let extra = Extra::ALL[rng.index(Extra::ALL.len())];
        let can_pack = extra != Extra::ColumnSums;
        Case {
            size,
            alpha: [1.0, 0.7, -1.0, 2.5][rng.index(4)],
            beta: [0.0, 0.0, 1.0, 1.3, -0.4][rng.index(5)],
            layouts,
            offsets: [0; 3].map(|_| rng.index(16)),
            extra,
            is_packed: can_pack && rng.index(3) == 0,
            seed: rng.next_u64(),
        }
    }

    /// Everything that is read, filled by `draw`. C is NaN where it is not.
    pub(super) fn operands<T: Element>(&self, draw: impl Fn(&mut Rng) -> f64) -> Operands<T> {
        let (m, k, n) = self.size;
        let mut rng = Rng::new(self.seed, "gemm");
        let [a, b, c] = self.layouts;
        let [a_offset, b_offset, c_offset] = self.offsets;
        let matrices = [
            Matrix::input(a, a_offset, (m, k), |_, _| draw(&mut rng)),
            Matrix::input(b, b_offset, (k, n), |_, _| draw(&mut rng)),
            Matrix::output(c, c_offset, (m, n), |_, _| if self.beta == 0.0 { f64::NAN } else { draw(&mut rng) }),
        ];
        Operands { matrices, numbers: (0..n).map(|_| T::from_f64(draw(&mut rng))).collect() }
    }

    /// Runs the kernel on copies of what it writes.
    pub(super) fn run<T: Element>(&self, operands: &Operands<T>) -> Results<Vec<T>> {
        let packed = self.is_packed.then(|| PackedB::new(operands.matrices[1].view()).unwrap());
        self.run_on(operands, packed.as_ref())
    }

    /// [`Case::run`] with a B that is packed already, or with one that is not.
    pub(super) fn run_on<T: Element>(&self, operands: &Operands<T>, packed: Option<&PackedB<T>>) -> Results<Vec<T>> {
        let (m, k, n) = self.size;
        let [a, b, c] = &operands.matrices;
        let (a_before, b_before, mut c) = (bits(&a.buffer), bits(&b.buffer), c.clone());
        let mut numbers = Guarded::new(&operands.numbers, self.offsets[1]);
        // Scratch holds NaN, so that what is read before it is written shows.
        let mut scratch = Guarded::new(&vec![T::from_f64(f64::NAN); scratch_len::<T>(m, k, n)], self.offsets[0]);
        let (alpha, beta) = (T::from_f64(self.alpha), T::from_f64(self.beta));
        let epilogue = self.extra.epilogue(numbers.get_mut());
        match packed {
            Some(b) => gemm_packed(alpha, a.view(), b, beta, c.view_mut(), epilogue, scratch.get_mut()).unwrap(),
            None => gemm(alpha, a.view(), b.view(), beta, c.view_mut(), epilogue, scratch.get_mut()),
        }
        scratch.check("gemm scratch");
        numbers.check("numbers of the epilogue");
        assert_same_bits("A after and before", &bits(&a.buffer), &a_before);
        assert_same_bits("B after and before", &bits(&b.buffer), &b_before);
        if self.extra != Extra::ColumnSums {
            assert_same_bits("bias after and before", &bits(numbers.get()), &bits(&operands.numbers));
        }
        c.check_gaps();
        Results { c: c.elements(), numbers: numbers.get().to_vec() }
    }

    /// [`Case::run`] as bits.
    pub(super) fn bits<T: Element>(&self, operands: &Operands<T>) -> Results<Vec<u64>> {
        self.run(operands).bits()
    }

    /// What the kernel should give, and what one unit of roundoff is measured in.
    pub(super) fn wanted<T: Element>(&self, operands: &Operands<T>) -> Results<(Vec<f64>, Vec<f64>)> {
        let ([a, b, c], (m, k, n)) = (&operands.matrices, self.size);
        // The scalars are rounded to the element type before the kernel sees them.
        let (alpha, beta) = (T::from_f64(self.alpha).to_f64(), T::from_f64(self.beta).to_f64());
        let (at, bt) = (|i, p| a.at(i, p), |p, j| b.at(p, j));
        let mut wanted = wide(&c.elements());
        if self.beta == 0.0 {
            wanted.fill(0.0);
        }
        let mut unit = reference::gemm::gemm_bound(self.size, alpha, at, bt, beta, &wanted);
        reference::gemm::gemm(self.size, alpha, at, bt, beta, &mut wanted);
        let mut numbers = wide(&operands.numbers);
        let mut numbers_unit = vec![0.0; n];
        match self.extra {
            Extra::None => {}
            // Its slope is at most 1: it makes no error larger.
            Extra::Relu => wanted = reference::relu::forward(&wanted),
            Extra::Bias | Extra::BiasRelu => {
                for e in 0..m * n {
                    wanted[e] += numbers[e % n];
                    unit[e] += numbers[e % n].abs();
                }
                if self.extra == Extra::BiasRelu {
                    wanted = reference::relu::forward(&wanted);
                }
            }
            // A product without elements is none.
            Extra::ColumnSums if m > 0 => {
                numbers_unit = reference::gemm::gemm_bound((1, k, n), alpha, |_, _| 1.0, bt, 1.0, &numbers);
                reference::gemm::gemm((1, k, n), alpha, |_, _| 1.0, bt, 1.0, &mut numbers);
            }
            Extra::ColumnSums => {}
        }
        Results { c: (wanted, unit), numbers: (numbers, numbers_unit) }
    }

    /// Compares with the reference on the current instruction set, operands being normal numbers; what the kernel gave.
    ///
    /// The kernel promises `(min(k, 256) + k / 256 + 3) u`, and one more for a bias, of `|alpha| |A||B| + |beta| |C| (+ |bias|)`.
    /// That is for roundings that all err in one direction, after partial sums as large as `|A||B|`. Where the signs of the terms
    /// are random, a partial sum of p terms is about `sqrt(p)` of them and errs by about `0.4 u` of itself, either way: k
    /// independent errors have a deviation of `0.4 u sqrt(1 + 2 + .. + k) = 0.3 u k` terms, where `|A||B|` is k times the mean of
    /// `|x y|`, 2 / pi for normal numbers. So the deviation is about `u / 2` whatever k is, and `16 u` more than thirty of them.
    /// (Higham and Mary, "A new approach to probabilistic rounding error analysis", SIAM J. Sci. Comput. 41, 2019.)
    pub(super) fn check<T: Element>(
        &self,
        operands: &Operands<T>,
        wanted: &Results<(Vec<f64>, Vec<f64>)>,
    ) -> Results<Vec<T>> {
        let k = self.size.1 as f64;
        // 4: the reference rounds a product, the sum, and both scalars' products or sums.
        let u = (k.min(256.0) + (k / 256.0).floor() + 4.0).min(RANDOM_SIGNS) * T::ROUNDOFF + 4.0 * U64;
        let found = self.run(operands);
        let (c, unit) = &wanted.c;
        near(&format!("{self:?}: C"), &found.c, c, |e| u * unit[e]);
        let (numbers, unit) = &wanted.numbers;
        near(&format!("{self:?}: numbers"), &found.numbers, numbers, |j| u * unit[j]);
        found
    }
}

/// Compares every case on every instruction set with the reference, on normal data, and the fused ones with each other.
pub(super) fn agree<T: Element>(cases: &[Case]) {
    let prepared: Vec<_> = cases
        .iter()
        .map(|case| {
            let operands = case.operands::<T>(Rng::normal);
            let wanted = case.wanted(&operands);
            (case, operands, wanted)
        })
        .collect();
    let mut fused: Vec<Option<Results<Vec<u64>>>> = cases.iter().map(|_| None).collect();
    sweep::<T>(|isa| {
        for ((case, operands, wanted), fused) in prepared.iter().zip(&mut fused) {
            let found = case.check(operands, wanted).bits();
            if isa.is_fused() {
                found.assert_same(&format!("{case:?}: {isa} and another"), fused.get_or_insert(found.clone()));
            }
        }
    });
}

/// Around the rows and columns of every register tile: 6 and 12 rows, 2 vectors of 1 to 16 lanes.
pub(super) const SMALL: [usize; 19] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 15, 16, 17, 31, 32, 33];
/// Around the block of k and of columns (256), two of them, and the rows of a task (48).
pub(super) const LARGE: [usize; 20] =
    [23, 24, 25, 47, 48, 49, 64, 65, 95, 96, 97, 251, 255, 256, 257, 383, 384, 385, 512, 513];

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

/// A plain product.
pub(super) fn any_case() -> impl Strategy<Value = Case> {
    let size = (dimension(), dimension(), dimension())
        .prop_filter("a product that takes milliseconds", |&(m, k, n)| m * k * n <= 400_000);
    let scalars = (prop::sample::select(vec![0.0, 1.0, 0.7, -1.0]), prop::sample::select(vec![0.0, 1.0, 1.3]));
    let offsets = [0..16usize, 0..16usize, 0..16usize];
    (size, scalars, [layout(), layout(), layout()], offsets, any::<u64>()).prop_map(
        |(size, (alpha, beta), layouts, offsets, seed)| Case { alpha, beta, layouts, offsets, seed, ..Case::of(size) },
    )
}
