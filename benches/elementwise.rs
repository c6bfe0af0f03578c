//! The kernels that work element by element, per instruction set, on one thread: ReLU, softmax with cross-entropy, Adam.
//!
//! Criterion prints bytes per second for ReLU (2 tensors forward, 3 backward) and Adam (4 read, 3 written), and elements per
//! second for softmax, which is bound by its exponentials.

mod common;

use common::{criterion, isas, noise};
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, Throughput, measurement::WallTime};
use evenkeel::kernels::update::{Adam, adam};
use evenkeel::kernels::{relu, softmax_xent};
use evenkeel::simd::with_isa;
use evenkeel::tensor::Tensor;

/// A layer's output, and the weights of a wide layer.
const LENGTHS: [usize; 2] = [64 * 100, 1024 * 1024];

fn main() {
    let mut criterion = criterion();
    for len in LENGTHS {
        relu_and_adam(&mut criterion, len);
    }
    for shape in [[64, 10], [256, 1000]] {
        softmax(&mut criterion, shape);
    }
    criterion.final_summary();
}

fn per_isa(group: &mut BenchmarkGroup<'_, WallTime>, name: &str, elements: usize, mut kernel: impl FnMut()) {
    for isa in isas(10 * elements) {
        group.bench_function(BenchmarkId::new(name, isa), |bencher| with_isa(isa, || bencher.iter(&mut kernel)));
    }
}

fn relu_and_adam(criterion: &mut Criterion, len: usize) {
    let (x, dy) = (noise::<f32>([len]), noise::<f32>([len]));
    let zeros = || Tensor::<f32>::zeros([len]).expect("a bench's tensor fits");
    let mut y = zeros();
    let bytes = |tensors: usize| Throughput::Bytes((tensors * size_of_val(x.data())) as u64);

    let mut group = criterion.benchmark_group("relu");
    group.throughput(bytes(2));
    per_isa(&mut group, &format!("forward/{len}"), len, || relu::forward(x.data(), y.data_mut()));
    group.throughput(bytes(3));
    per_isa(&mut group, &format!("backward/{len}"), len, || relu::backward(x.data(), dy.data(), y.data_mut()));
    group.finish();

    // Without a learning rate the parameters stay where they are, and the moments near those of this gradient.
    let step = Adam { lr: 0.0, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0, step: 10 };
    let (mut p, mut m, mut v) = (noise::<f32>([len]), zeros(), zeros());
    let mut group = criterion.benchmark_group("adam");
    group.throughput(bytes(7));
    per_isa(&mut group, &len.to_string(), len, || {
        adam(&step, p.data_mut(), dy.data(), m.data_mut(), v.data_mut());
    });
    group.finish();
}

fn softmax(criterion: &mut Criterion, [n, classes]: [usize; 2]) {
    let logits = noise::<f32>([n, classes]);
    let mut dlogits = logits.clone();
    let labels: Vec<u8> = (0..10).cycle().take(n).collect();
    let mut group = criterion.benchmark_group("softmax_xent");
    group.throughput(Throughput::Elements((n * classes) as u64));
    per_isa(&mut group, &format!("{n}x{classes}"), n * classes, || {
        softmax_xent::forward_backward(logits.data(), &labels, dlogits.data_mut()).expect("labels are below 10");
    });
    group.finish();
}
