//! Gathering: batches of bytes picked by index, as numbers, from a set of the size of MNIST, on one thread.
//!
//! Criterion prints the time of a batch; bytes a second are those of the pixels. In shuffled order each row lies somewhere else in memory.

mod common;

use common::criterion;
use criterion::{BenchmarkId, Throughput};
use evenkeel::data::{Images, LastBatch, Loader, Order, Scale};
use evenkeel::{Result, Rng};

const SIDE: usize = 28;

fn main() -> Result<()> {
    let mut criterion = criterion();
    let mut rng = Rng::new(1, "bench");
    let mut pixels = vec![0; 60_000 * SIDE * SIDE];
    for eight in pixels.chunks_exact_mut(8) {
        eight.copy_from_slice(&rng.next_u64().to_le_bytes());
    }
    let images = Images::new(pixels, vec![0; 60_000], SIDE, SIDE, 10)?;
    let mut group = criterion.benchmark_group("loader");
    for batch in [32, 256] {
        group.throughput(Throughput::Bytes((batch * SIDE * SIDE) as u64));
        for (name, order) in [("stored", Order::AsStored), ("shuffled", Order::Shuffled(1))] {
            let mut loader = Loader::<f32>::new(&images, batch, order, LastBatch::Drop, Scale { mean: 0.5, std: 0.5 })?;
            group.bench_function(BenchmarkId::new(name, batch), |bencher| {
                bencher.iter(|| {
                    if loader.next_batch().is_none() {
                        loader.start_epoch(1);
                    }
                });
            });
        }
    }
    group.finish();
    criterion.final_summary();
    Ok(())
}
