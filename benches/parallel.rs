//! What sharing work costs: the same kernel on one thread, and split over two whatever its size. Where the second overtakes the
//! first is the least that `FORK_NANOSECONDS` can be.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use evenkeel::Threads;
use evenkeel::kernels::relu;
use std::hint::black_box;

fn fork(c: &mut Criterion) {
    let mut group = c.benchmark_group("fork");
    for blocks in [2usize, 4, 8, 16, 32, 64, 128] {
        let n = blocks * 8192;
        let x: Vec<f32> = (0u16..251).cycle().take(n).map(|i| f32::from(i) - 125.0).collect();
        let mut y = vec![0.0; n];
        group.throughput(Throughput::Bytes(8 * n as u64));
        for count in [1, 2] {
            let threads = Threads::new(count).expect("two threads").fork_from(0);
            group.bench_function(BenchmarkId::new(format!("{count} threads"), n), |b| {
                // The pool is entered once, as for an epoch; each call then splits.
                threads.run(|| b.iter(|| relu::forward(black_box(&x), &mut y)));
            });
        }
    }
    group.finish();
}

criterion_group!(benches, fork);
criterion_main!(benches);
