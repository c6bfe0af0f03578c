//! Products of any small shape, strides and scalars, on every instruction set, agree with the f64 reference.
//!
//! Run with `cargo +nightly fuzz run gemm`. What lies between and around the elements of C must stay as it was, C is not read
//! where `beta = 0`, A and B are not where `alpha = 0`, the fused instruction sets and threads agree bit for bit, and products of
//! small integers are exact.

#![no_main]

use arbitrary::Arbitrary;
use evenkeel::kernels::gemm::{Epilogue, gemm, scratch_len};
use evenkeel::matrix::{MatMut, MatRef};
use evenkeel::reference;
use evenkeel::simd::{Element, Isa, with_isa};
use evenkeel::{Rng, Threads};
use libfuzzer_sys::fuzz_target;
use std::sync::LazyLock;

#[derive(Arbitrary, Debug)]
struct Case {
    sizes: [u8; 3],
    layouts: [Layout; 3],
    scalars: [i8; 2],
    values: Values,
    seed: u64,
    is_f64: bool,
}

/// How a matrix lies in its slice.
#[derive(Arbitrary, Debug)]
struct Layout {
    by_columns: bool,
    step: u8,
    gap: u8,
    offset: u8,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Values {
    /// From -8 to 8: no sum of 70 products comes near what f32 holds exactly.
    Integers,
    /// Normal numbers.
    Reals,
}

/// Two workers that split everything.
static PAIR: LazyLock<Threads> = LazyLock::new(|| Threads::new(2).expect("two threads").fork_from(0));

/// A matrix somewhere in a slice that is NaN wherever the matrix is not.
struct Matrix<T> {
    data: Vec<T>,
    offset: usize,
    size: [usize; 2],
    strides: [usize; 2],
}

impl<T: Element> Matrix<T> {
    fn new([rows, cols]: [usize; 2], layout: &Layout, mut value: impl FnMut() -> T) -> Self {
        let (step, gap) = (usize::from(layout.step % 3) + 1, usize::from(layout.gap % 4));
        let outer = |inner: usize| inner.saturating_sub(1) * step + 1 + gap;
        let strides = if layout.by_columns { [step, outer(rows)] } else { [outer(cols), step] };
        let offset = usize::from(layout.offset % 9);
        let span = rows * strides[0] + cols * strides[1];
        let mut matrix =
            Matrix { data: vec![T::from_f64(f64::NAN); offset + span + 9], offset, size: [rows, cols], strides };
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

fuzz_target!(|case: Case| if case.is_f64 { check::<f64>(&case) } else { check::<f32>(&case) });

fn check<T: Element>(case: &Case) {
    let [m, k, n] = case.sizes.map(|size| usize::from(size % 71));
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

    let (a_at, b_at) = (|i, p| a.get(i, p), |p, j| b.get(p, j));
    let before: Vec<f64> = (0..m * n).map(|at| if beta == 0.0 { 0.0 } else { c.get(at / n, at % n) }).collect();
    let mut expected = before.clone();
    reference::gemm::gemm((m, k, n), alpha, a_at, b_at, beta, &mut expected);
    let bound = reference::gemm::gemm_bound((m, k, n), alpha, a_at, b_at, beta, &before);
    // The kernel's own bound, and 4 for the reference, which rounds as often when the kernel is in f64.
    let roundings = match case.values {
        Values::Integers => 0.0,
        Values::Reals => (k + 3 + 4) as f64,
    };

    let mut fused: Option<Vec<u64>> = None;
    for isa in Isa::available() {
        let run = || {
            let mut data = c.data.clone();
            let mut scratch = vec![nan(); scratch_len::<T>(m, k, n)];
            let (alpha, beta) = (T::from_f64(alpha), T::from_f64(beta));
            with_isa(isa, || gemm(alpha, a.view(), b.view(), beta, c.view_of(&mut data), Epilogue::None, &mut scratch));
            data
        };
        let data = run();
        let bits: Vec<u64> = data.iter().map(|x| x.bits()).collect();
        let split: Vec<u64> = PAIR.run(run).iter().map(|x| x.bits()).collect();
        assert_eq!(bits, split, "{isa}: two threads");
        if isa.is_fused() {
            assert_eq!(fused.get_or_insert_with(|| bits.clone()), &bits, "{isa}: bits");
        }
        let mut outside = c.data.clone();
        for (at, (&expected, &bound)) in expected.iter().zip(&bound).enumerate() {
            let place = c.at(at / n, at % n);
            let found = data[place].to_f64();
            let error = (found - expected).abs();
            assert!(error <= roundings * T::ROUNDOFF * bound, "{isa}: {m}x{k}x{n} at {at}: {found}, not {expected}");
            outside[place] = data[place];
        }
        assert!(data.iter().zip(&outside).all(|(x, y)| x.bits() == y.bits()), "{isa}: written outside of C");
    }
}
