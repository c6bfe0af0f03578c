//! Products of any shape, strides, scalars and epilogue, with B packed beforehand and not, on every instruction set, agree with the
//! f64 reference.
//!
//! Run with `cargo +nightly fuzz run gemm`. What lies between and around the elements of C must stay as it was, C is not read
//! where `beta = 0`, A and B are not where `alpha = 0`, the fused instruction sets, any number of threads and a packed B give the
//! same bits, and products of small integers are exact.

#![no_main]

use arbitrary::Arbitrary;
use evenkeel::kernels::gemm::{Epilogue, PackedB, gemm, gemm_packed, scratch_len};
use evenkeel::matrix::{MatMut, MatRef};
use evenkeel::reference;
use evenkeel::simd::{Element, Isa, with_isa};
use evenkeel::{Rng, Threads};
use libfuzzer_sys::fuzz_target;
use std::sync::LazyLock;

#[derive(Arbitrary, Debug)]
struct Case {
    sizes: [u8; 3],
    shape: Shape,
    /// Whether rows and columns are exchanged.
    is_transposed: bool,
    layouts: [Layout; 3],
    scalars: [i8; 2],
    values: Values,
    extra: Extra,
    threads: u8,
    seed: u64,
    is_f64: bool,
}

/// Which sizes come together: each of the loops has its own.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Shape {
    /// Up to 70 each.
    Even,
    /// One may be large where the others are small.
    Long(u8, u16),
    /// Few columns, for whose sums one chain of multiply-adds may not be enough: dot products where k is contiguous.
    Dots(u16),
    /// Blocks of columns that are packed together, and a last one that may be narrower than a vector.
    Blocks(u8),
}

/// How a matrix lies in its slice.
#[derive(Arbitrary, Debug)]
struct Layout {
    by_columns: bool,
    step: u8,
    gap: u8,
    /// What rows (or columns) are apart may decide whether they are read where they lie.
    is_wide: bool,
    offset: u8,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Values {
    /// From -8 to 8: no sum of 5100 products comes near what f32 holds exactly.
    Integers,
    /// Normal numbers.
    Reals,
}

/// An epilogue without its numbers.
#[derive(Arbitrary, Clone, Copy, Debug, PartialEq, Eq)]
enum Extra {
    None,
    Relu,
    Bias,
    BiasRelu,
    ColumnSums,
}

/// Workers that split everything.
static THREADS: LazyLock<[Threads; 2]> =
    LazyLock::new(|| [2, 3].map(|n| Threads::new(n).expect("threads").fork_from(0)));

/// A matrix somewhere in a slice that is NaN wherever the matrix is not, and ends with it.
struct Matrix<T> {
    data: Vec<T>,
    offset: usize,
    size: [usize; 2],
    strides: [usize; 2],
}

impl<T: Element> Matrix<T> {
    fn new([rows, cols]: [usize; 2], layout: &Layout, mut value: impl FnMut() -> T) -> Self {
        let step = usize::from(layout.step % 3) + 1;
        // Only where that makes no large slice.
        let is_wide = layout.is_wide && if layout.by_columns { cols } else { rows } <= 16;
        let wide = if is_wide { 1024 } else { 0 };
        let gap = usize::from(layout.gap % 4);
        let outer = |inner: usize| (inner.saturating_sub(1) * step + 1 + gap).max(wide + gap);
        let strides = if layout.by_columns { [step, outer(rows)] } else { [outer(cols), step] };
        let offset = usize::from(layout.offset % 9);
        let is_empty = rows == 0 || cols == 0;
        let span = if is_empty { 0 } else { (rows - 1) * strides[0] + (cols - 1) * strides[1] + 1 };
        let mut matrix =
            Matrix { data: vec![T::from_f64(f64::NAN); offset + span], offset, size: [rows, cols], strides };
        for i in 0..rows {
            for j in 0..cols {
                let at = matrix.at(i, j);
                matrix.data[at] = value();
            }
        }
        matrix
    }

    fn at(&self, i: usize, j: usize) -> usize {
        self.offset + i * self.strides[0] + j * self.strides[1]
    }

    fn get(&self, i: usize, j: usize) -> f64 {
        self.data[self.at(i, j)].to_f64()
    }

    fn view(&self) -> MatRef<'_, T> {
        let ([rows, cols], [rs, cs]) = (self.size, self.strides);
        MatRef::with_strides(&self.data[self.offset..], rows, cols, rs, cs).expect("the slice was made for it")
    }

    fn view_of<'a>(&self, data: &'a mut [T]) -> MatMut<'a, T> {
        let ([rows, cols], [rs, cs]) = (self.size, self.strides);
        MatMut::with_strides(&mut data[self.offset..], rows, cols, rs, cs).expect("the slice was made for it")
    }
}

impl Extra {
    fn epilogue<T>(self, numbers: &mut [T]) -> Epilogue<'_, T> {
        match self {
            Extra::None => Epilogue::None,
            Extra::Relu => Epilogue::Relu,
            Extra::Bias => Epilogue::Bias(numbers),
            Extra::BiasRelu => Epilogue::BiasRelu(numbers),
            Extra::ColumnSums => Epilogue::ColumnSums(numbers),
        }
    }
}

impl Case {
    /// `m`, `k` and `n`.
    fn sizes(&self) -> [usize; 3] {
        let [m, k, n] = self.sizes.map(usize::from);
        let [m, k, n] = match self.shape {
            Shape::Even => [m % 71, k % 71, n % 71],
            Shape::Long(which, size) => {
                let mut sizes = [m % 9, k % 9, n % 9];
                sizes[usize::from(which % 3)] = usize::from(size % 2200);
                sizes
            }
            // A chain has up to 256 multiply-adds, and 64 bytes of them lie side by side: 4096 in f32.
            Shape::Dots(k) => [m % 24, 32 + usize::from(k % 5000), 1 + n % 4],
            // A block is 16 vectors: 128 columns in f32 on AVX2.
            Shape::Blocks(count) => [5 + m % 24, 9 + k % 24, 128 * usize::from(1 + count % 4) + n % 17],
        };
        if self.is_transposed { [n, k, m] } else { [m, k, n] }
    }
}

fuzz_target!(|case: Case| if case.is_f64 { check::<f64>(&case) } else { check::<f32>(&case) });

fn check<T: Element>(case: &Case) {
    let [m, k, n] = case.sizes();
    let mut rng = Rng::new(case.seed, "fuzz");
    let mut value = || match case.values {
        Values::Integers => T::from_f64(rng.below(17) as f64 - 8.0),
        Values::Reals => T::from_f64(rng.normal()),
    };
    // Zero and one, which kernels treat apart, come often.
    let [alpha, beta] = case.scalars.map(|s| match (s, case.values) {
        (-32..=31, _) => 0.0,
        (32..=63, _) => 1.0,
        (_, Values::Integers) => f64::from(s % 4),
        (_, Values::Reals) => f64::from(s) / 16.0,
    });
    let nan = || T::from_f64(f64::NAN);
    let [a_layout, b_layout, c_layout] = &case.layouts;
    let mut operand = |size, layout| Matrix::new(size, layout, || if alpha == 0.0 { nan() } else { value() });
    let (a, b) = (operand([m, k], a_layout), operand([k, n], b_layout));
    let c = Matrix::new([m, n], c_layout, || if beta == 0.0 { nan() } else { value() });
    let numbers: Vec<T> = (0..n).map(|_| value()).collect();

    let (a_at, b_at) = (|i, p| a.get(i, p), |p, j| b.get(p, j));
    let before: Vec<f64> = (0..m * n).map(|at| if beta == 0.0 { 0.0 } else { c.get(at / n, at % n) }).collect();
    let mut expected = before.clone();
    reference::gemm::gemm((m, k, n), alpha, a_at, b_at, beta, &mut expected);
    let mut bound = reference::gemm::gemm_bound((m, k, n), alpha, a_at, b_at, beta, &before);
    let mut sums: Vec<f64> = numbers.iter().map(|x| x.to_f64()).collect();
    let mut sums_bound = vec![0.0; n];
    match case.extra {
        Extra::None => {}
        Extra::Relu => expected = reference::relu::forward(&expected),
        Extra::Bias | Extra::BiasRelu => {
            for at in 0..m * n {
                expected[at] += sums[at % n];
                bound[at] += sums[at % n].abs();
            }
            if case.extra == Extra::BiasRelu {
                expected = reference::relu::forward(&expected);
            }
        }
        Extra::ColumnSums if m > 0 => {
            sums_bound = reference::gemm::gemm_bound((1, k, n), alpha, |_, _| 1.0, b_at, 1.0, &sums);
            reference::gemm::gemm((1, k, n), alpha, |_, _| 1.0, b_at, 1.0, &mut sums);
        }
        Extra::ColumnSums => {}
    }
    // The kernel's own bound, of 256 products to a block, with a bias; and 4 for the reference, which rounds as often when the
    // kernel is in f64.
    let roundings = match case.values {
        Values::Integers => 0.0,
        Values::Reals => (k.min(256) + k / 256 + 3 + 1 + 4) as f64,
    };
    let is_near = |found: f64, expected: f64, bound: f64| (found - expected).abs() <= roundings * T::ROUNDOFF * bound;

    let threads = &THREADS[usize::from(case.threads % 2)];
    let mut fused: Option<Vec<u64>> = None;
    for isa in Isa::available() {
        // C with what lies around it, then the numbers of the epilogue; nothing if a packed B cannot do it.
        let run = |is_packed: bool| {
            let (mut data, mut numbers) = (c.data.clone(), numbers.clone());
            let mut scratch = vec![nan(); scratch_len::<T>(m, k, n)];
            let (alpha, beta, c) = (T::from_f64(alpha), T::from_f64(beta), c.view_of(&mut data));
            let epilogue = case.extra.epilogue(&mut numbers);
            let cannot = case.extra == Extra::ColumnSums;
            let is_done = with_isa(isa, || {
                if !is_packed {
                    gemm(alpha, a.view(), b.view(), beta, c, epilogue, &mut scratch);
                    return true;
                }
                let packed = PackedB::new(b.view()).expect("a B of this size");
                gemm_packed(alpha, a.view(), &packed, beta, c, epilogue, &mut scratch).is_ok()
            });
            assert!(is_done != (is_packed && cannot), "{isa}: packed B");
            data.extend(numbers);
            is_done.then_some(data)
        };
        let data = run(false).expect("a product");
        let bits = |data: &[T]| -> Vec<u64> { data.iter().map(|x| x.bits()).collect() };
        let alone = bits(&data);
        assert_eq!(alone, bits(&threads.run(|| run(false)).expect("a product")), "{isa}: {threads:?}");
        if let Some(packed) = run(true) {
            // A thin product sums in another order where B's columns are contiguous.
            assert!((m <= 4 && b.view().row_stride() == 1) || alone == bits(&packed), "{isa}: packed B");
            let split = threads.run(|| run(true)).expect("the same product");
            assert_eq!(bits(&packed), bits(&split), "{isa}: packed B, {threads:?}");
        }
        if isa.is_fused() {
            assert_eq!(fused.get_or_insert_with(|| alone.clone()), &alone, "{isa}: bits");
        }
        let (data, found_numbers) = data.split_at(c.data.len());
        let mut outside = c.data.clone();
        for (at, (&expected, &bound)) in expected.iter().zip(&bound).enumerate() {
            let place = c.at(at / n, at % n);
            let found = data[place].to_f64();
            assert!(is_near(found, expected, bound), "{isa}: {m}x{k}x{n} at {at}: {found}, not {expected}");
            outside[place] = data[place];
        }
        assert!(data.iter().zip(&outside).all(|(x, y)| x.bits() == y.bits()), "{isa}: written outside of C");
        for (at, found) in found_numbers.iter().enumerate() {
            let found = found.to_f64();
            assert!(is_near(found, sums[at], sums_bound[at]), "{isa}: number {at}: {found}, not {}", sums[at]);
        }
    }
}
