//! Matrix products per instruction set, with the `matrixmultiply` crate beside them, on one thread.
//!
//! Criterion prints elements per second, and an element is one operation of the `2 m n k`: Gelem/s is GFLOP/s. `gemm_f32/peak/avx2`
//! is what multiply-adds alone reach, from registers: what the others are a part of (`evenkeel bench gemm` prints the percentage).
//! Names are `gemm_f32/MxKxN/avx2`. `-dW` and `-dX` are the two products of a layer's backward pass, named after its forward
//! pass `Y = X W` with X `MxK` and W `KxN`: `dW = X^T dY` and `dX = dY W^T`, the transposes as strides. `-packed` is the forward
//! pass of a prepared layer, whose W is packed beforehand.

mod common;

use common::{criterion, isas, noise};
use criterion::{BenchmarkId, Criterion, Throughput};
use evenkeel::kernels::gemm::{Epilogue, PackedB, gemm, gemm_packed, scratch_len};
use evenkeel::machine::probe;
use evenkeel::matrix::{MatMut, MatRef};
use evenkeel::simd::{Element, with_isa};
use evenkeel::tensor::Tensor;

/// Products of networks: rows of a batch, inputs, outputs; each with the two of its backward pass.
const LAYERS: [[usize; 3]; 13] = [
    [32, 784, 32],
    [32, 32, 32],
    [32, 32, 10],
    [64, 784, 100],
    [64, 100, 50],
    [64, 50, 10],
    [128, 400, 120],
    [128, 120, 84],
    [128, 84, 10],
    [256, 784, 512],
    [256, 1024, 1024],
    [1024, 784, 256],
    [512, 4608, 512],
];
/// Layers of a model that answers a few rows at a time, or many.
const SERVED: [[usize; 3]; 6] =
    [[1, 784, 100], [16, 784, 100], [1000, 784, 100], [1, 1024, 1024], [16, 1024, 1024], [64, 1024, 1024]];
/// Squares, sizes that divide nothing, few rows, few columns, and a few numbers.
const OTHERS: [[usize; 3]; 10] = [
    [64, 64, 64],
    [128, 128, 128],
    [256, 256, 256],
    [512, 512, 512],
    [1024, 1024, 1024],
    [37, 61, 53],
    [3, 1000, 1000],
    [1000, 1000, 3],
    [512, 4, 512],
    [3, 2, 5],
];

fn main() {
    let mut criterion = criterion();
    peak::<f32>(&mut criterion);
    peak::<f64>(&mut criterion);
    for size in LAYERS {
        products::<f32>(&mut criterion, size, &[Product::Forward, Product::WeightGradient, Product::InputGradient]);
    }
    for size in SERVED {
        products::<f32>(&mut criterion, size, &[Product::Forward, Product::Packed]);
    }
    for size in OTHERS {
        products::<f32>(&mut criterion, size, &[Product::Forward]);
    }
    for size in [[32, 784, 32], [37, 61, 53], [256, 784, 512]] {
        products::<f64>(&mut criterion, size, &[Product::Forward]);
    }
    criterion.final_summary();
}

/// Multiply-adds from registers.
fn peak<T: Element>(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group(format!("gemm_{}", T::NAME));
    let rounds = 1000;
    for isa in isas(0) {
        let flops = with_isa(isa, || probe::fma::<T>(rounds));
        group.throughput(Throughput::Elements(flops as u64));
        group.bench_function(BenchmarkId::new("peak", isa), |bencher| {
            with_isa(isa, || bencher.iter(|| probe::fma::<T>(rounds)));
        });
    }
    group.finish();
}

/// One of the three products of a layer, or the forward one with a weight that is packed beforehand.
#[derive(Clone, Copy)]
enum Product {
    Forward,
    WeightGradient,
    InputGradient,
    Packed,
}

/// An element type that `matrixmultiply` multiplies.
trait Rival: Element {
    /// `C <- A B` with matrixmultiply.
    fn matrixmultiply(a: MatRef<'_, Self>, b: MatRef<'_, Self>, c: MatMut<'_, Self>);
}

macro_rules! rival {
    ($element:ty, $gemm:path) => {
        impl Rival for $element {
            #[expect(unsafe_code, reason = "the crate's only functions take pointers")]
            fn matrixmultiply(a: MatRef<'_, Self>, b: MatRef<'_, Self>, mut c: MatMut<'_, Self>) {
                let (m, k, n) = (a.rows(), a.cols(), b.cols());
                assert!(b.rows() == k && c.rows() == m && c.cols() == n);
                let strides = |rs: usize, cs: usize| (rs as isize, cs as isize);
                let (rsa, csa) = strides(a.row_stride(), a.col_stride());
                let (rsb, csb) = strides(b.row_stride(), b.col_stride());
                let (rsc, csc) = strides(c.row_stride(), c.col_stride());
                let (a, b, c) = (a.data().as_ptr(), b.data().as_ptr(), c.data_mut().as_mut_ptr());
                // SAFETY: a view's last element lies in its data, C's elements are apart, and the shapes agree (above).
                unsafe { $gemm(m, k, n, 1.0, a, rsa, csa, b, rsb, csb, 0.0, c, rsc, csc) }
            }
        }
    };
}
rival!(f32, matrixmultiply::sgemm);
rival!(f64, matrixmultiply::dgemm);

fn products<T: Rival>(criterion: &mut Criterion, [batch, inputs, outputs]: [usize; 3], products: &[Product]) {
    let (x, w) = (noise::<T>([batch, inputs]), noise::<T>([inputs, outputs]));
    let dy = noise::<T>([batch, outputs]);
    let mut group = criterion.benchmark_group(format!("gemm_{}", T::NAME));
    for product in products {
        let x = MatRef::new(x.data(), batch, inputs);
        let w = MatRef::new(w.data(), inputs, outputs);
        let dy = MatRef::new(dy.data(), batch, outputs);
        let (a, b, suffix) = match product {
            Product::Forward => (x, w, ""),
            Product::Packed => (x, w, "-packed"),
            Product::WeightGradient => (x.transpose(), dy, "-dW"),
            Product::InputGradient => (dy, w.transpose(), "-dX"),
        };
        let (m, k, n) = (a.rows(), a.cols(), b.cols());
        let flops = 2 * m * k * n;
        let name = format!("{batch}x{inputs}x{outputs}{suffix}");
        let mut c = Tensor::<T>::zeros([m, n]).expect("a bench's tensor fits");
        let mut scratch = Tensor::<T>::zeros([scratch_len::<T>(m, k, n)]).expect("a bench's tensor fits");
        group.throughput(Throughput::Elements(flops as u64));
        for isa in isas(flops) {
            group.bench_function(BenchmarkId::new(&name, isa), |bencher| {
                with_isa(isa, || {
                    let is_packed = matches!(product, Product::Packed);
                    let packed = is_packed.then(|| PackedB::new(b).expect("a bench's weight fits"));
                    bencher.iter(|| {
                        let (c, scratch) = (MatMut::new(c.data_mut(), m, n), scratch.data_mut());
                        match &packed {
                            Some(b) => gemm_packed(T::ONE, a, b, T::ZERO, c, Epilogue::None, scratch)
                                .expect("packed for this instruction set"),
                            None => gemm(T::ONE, a, b, T::ZERO, c, Epilogue::None, scratch),
                        }
                    });
                });
            });
        }
        if let Product::Packed = product {
            continue;
        }
        group.bench_function(BenchmarkId::new(&name, "matrixmultiply"), |bencher| {
            bencher.iter(|| T::matrixmultiply(a, b, MatMut::new(c.data_mut(), m, n)));
        });
    }
    group.finish();
}
