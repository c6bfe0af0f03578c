//! What the benches share: how long to measure, and tensors of noise.

use criterion::Criterion;
use evenkeel::Rng;
use evenkeel::simd::{Element, Isa};
use evenkeel::tensor::{Shape, Tensor};
use std::time::Duration;

/// Short runs: there are many cases, and a kernel repeats within a few hundredths of a second.
///
/// Command line arguments come last and win: `cargo bench --bench gemm -- --measurement-time 5`.
pub(crate) fn criterion() -> Criterion {
    Criterion::default()
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(600))
        .sample_size(20)
        .nresamples(2000)
        .configure_from_args()
}

/// Normal numbers, aligned.
#[allow(dead_code, reason = "batches of bytes are drawn otherwise")]
pub(crate) fn noise<T: Element>(shape: impl Into<Shape>) -> Tensor<T> {
    let mut rng = Rng::new(1, "bench");
    let mut tensor = Tensor::zeros(shape).expect("a bench's tensor fits");
    tensor.data_mut().fill_with(|| T::from_f64(rng.normal()));
    tensor
}

/// The instruction sets worth timing on `flops` operations: one lane at a time, only what is small.
#[allow(dead_code, reason = "whole steps are timed on the best instruction set alone")]
pub(crate) fn isas(flops: usize) -> impl Iterator<Item = Isa> {
    Isa::available().into_iter().filter(move |isa| isa.name() != "scalar" || flops <= 100_000)
}
