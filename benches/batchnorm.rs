//! Batch normalisation per instruction set, beside the f64 reference and a textbook loop, on one thread.
//!
//! Criterion prints bytes per second, counting what has to move at least if nothing stays in a cache: x twice and y once forward,
//! x and dy twice and dx once backward, x and y once with frozen statistics. Names are `batchnorm/forward_relu/64x100_nc/avx2`; `bench
//! batchnorm` of the command times the same shapes beside the machine's bandwidth.

mod common;

use common::{criterion, isas, noise};
use criterion::{BenchmarkId, Criterion, Throughput};
use evenkeel::kernels::Activation;
use evenkeel::kernels::batchnorm::{BatchNorm, Gradients, Statistics};
use evenkeel::kernels::batchnorm::{backward, forward, forward_frozen, saved_len, scratch_len};
use evenkeel::reference;
use evenkeel::simd::with_isa;
use evenkeel::tensor::Tensor;
use std::hint::black_box;

/// Layers of the networks that the command knows or will know, wide layers within and beyond the caches, and an awkward one.
const DENSE: [[usize; 2]; 7] = [[32, 32], [64, 100], [128, 120], [1024, 256], [8192, 512], [65536, 64], [100, 37]];
const IMAGES: [[usize; 4]; 6] =
    [[128, 6, 28, 28], [128, 16, 10, 10], [64, 64, 56, 56], [32, 256, 14, 14], [32, 128, 28, 28], [16, 512, 7, 7]];

fn main() {
    let mut criterion = criterion();
    for [n, c] in DENSE {
        let activations = [(Activation::Identity, ""), (Activation::Relu, "_relu")];
        passes(&mut criterion, &format!("{n}x{c}_nc"), [n, c, 1], &activations);
    }
    for [n, c, h, w] in IMAGES {
        for (layout, planes) in [("nchw", [n, c, h * w]), ("nhwc", [n * h * w, c, 1])] {
            let shape = format!("{n}x{c}x{h}x{w}_{layout}");
            passes(&mut criterion, &shape, planes, &[(Activation::Relu, "_relu")]);
        }
    }
    criterion.final_summary();
}

/// Both passes with each of the activations, and the frozen one, over images of c channels of l neighbouring values.
fn passes(
    criterion: &mut Criterion,
    shape: &str,
    [images, c, l]: [usize; 3],
    activations: &[(Activation, &'static str)],
) {
    let n = images * l;
    let (x, dy) = (noise::<f32>([n, c]), noise::<f32>([n, c]));
    let (gamma, beta) = (noise::<f32>([c]), noise::<f32>([c]));
    let zeros = |len: usize| Tensor::<f32>::zeros([len]).expect("a bench's tensor fits");
    let (mut y, mut dx, mut dgamma, mut dbeta) = (zeros(n * c), zeros(n * c), zeros(c), zeros(c));
    let (running_mean, mut running_var) = (zeros(c), zeros(c));
    running_var.data_mut().fill(1.5);
    let (mut saved, mut scratch) = (zeros(saved_len(c)), zeros(scratch_len::<f32>(images, c, l)));

    let bytes = |tensors: u64| Throughput::Bytes(tensors * size_of_val(x.data()) as u64);
    for &(activation, suffix) in activations {
        let norm = BatchNorm {
            channels: c,
            inner: l,
            gamma: Some(gamma.data()),
            beta: Some(beta.data()),
            eps: 1e-5,
            activation,
        };
        let mut group = criterion.benchmark_group(format!("batchnorm/forward{suffix}"));
        group.throughput(bytes(3));
        for isa in isas(8 * n * c) {
            group.bench_function(BenchmarkId::new(shape, isa), |bencher| {
                with_isa(isa, || {
                    let (y, saved, scratch) = (y.data_mut(), saved.data_mut(), scratch.data_mut());
                    bencher.iter(|| forward(&norm, x.data(), y, saved, scratch));
                });
            });
        }
        group.bench_function(BenchmarkId::new(shape, "textbook"), |bencher| {
            bencher.iter(|| textbook(black_box(&norm), x.data(), y.data_mut()));
        });
        group.finish();

        forward(&norm, x.data(), y.data_mut(), saved.data_mut(), scratch.data_mut()).expect("a batch of many rows");
        let mut group = criterion.benchmark_group(format!("batchnorm/backward{suffix}"));
        group.throughput(bytes(5));
        for isa in isas(12 * n * c) {
            group.bench_function(BenchmarkId::new(shape, isa), |bencher| {
                with_isa(isa, || {
                    bencher.iter(|| {
                        let gradients = Gradients {
                            dx: Some(dx.data_mut()),
                            dgamma: Some(dgamma.data_mut()),
                            dbeta: Some(dbeta.data_mut()),
                        };
                        let (saved, scratch) = (saved.data(), scratch.data_mut());
                        backward(&norm, Statistics::Batch, x.data(), dy.data(), saved, gradients, scratch);
                    });
                });
            });
        }
        group.finish();
    }

    let (gamma, beta) = (Some(gamma.data()), Some(beta.data()));
    let norm = BatchNorm { channels: c, inner: l, gamma, beta, eps: 1e-5, activation: Activation::Relu };
    let mut group = criterion.benchmark_group("batchnorm/frozen_relu");
    group.throughput(bytes(2));
    for isa in isas(4 * n * c) {
        group.bench_function(BenchmarkId::new(shape, isa), |bencher| {
            with_isa(isa, || {
                let statistics = (running_mean.data(), running_var.data());
                let (y, saved, scratch) = (y.data_mut(), saved.data_mut(), scratch.data_mut());
                bencher.iter(|| forward_frozen(&norm, x.data(), statistics, y, saved, scratch));
            });
        });
    }
    group.finish();

    if n * c == 32 * 32 {
        let x: Vec<f64> = x.data().iter().copied().map(f64::from).collect();
        let dy: Vec<f64> = dy.data().iter().copied().map(f64::from).collect();
        let (_, moments) = reference::batchnorm::forward(&x, c, None, None, 1e-5);
        let bytes = size_of_val(&x[..]) as u64;
        let mut group = criterion.benchmark_group("batchnorm/forward");
        group.throughput(Throughput::Bytes(3 * bytes));
        group.bench_function(BenchmarkId::new(shape, "reference_f64"), |bencher| {
            bencher.iter(|| reference::batchnorm::forward(&x, c, None, None, 1e-5));
        });
        group.finish();
        let mut group = criterion.benchmark_group("batchnorm/backward");
        group.throughput(Throughput::Bytes(5 * bytes));
        group.bench_function(BenchmarkId::new(shape, "reference_f64"), |bencher| {
            bencher.iter(|| reference::batchnorm::backward(&x, &dy, None, &moments, 1e-5));
        });
        group.finish();
    }
}

/// The formulas as a textbook has them, channel by channel in f32: mean, variance, then each element.
fn textbook(norm: &BatchNorm<'_, f32>, x: &[f32], y: &mut [f32]) {
    let (c, l) = (norm.channels, norm.inner);
    let (images, count) = (x.len() / (c * l), (x.len() / c) as f32);
    for j in 0..c {
        let values = || (0..images).flat_map(|image| (image * c + j) * l..(image * c + j + 1) * l);
        let mut mean = 0.0;
        for i in values() {
            mean += x[i];
        }
        mean /= count;
        let mut var = 0.0;
        for i in values() {
            var += (x[i] - mean) * (x[i] - mean);
        }
        var /= count;
        let std = (var + 1e-5).sqrt();
        let (gamma, beta) = (norm.gamma.map_or(1.0, |g| g[j]), norm.beta.map_or(0.0, |b| b[j]));
        for i in values() {
            let z = gamma * (x[i] - mean) / std + beta;
            y[i] = match norm.activation {
                Activation::Identity => z,
                Activation::Relu => z.max(0.0),
            };
        }
    }
}
