//! Whole training steps: forward, loss, backward and Adam on one batch, with BatchNorm and without, on one and two threads.
//!
//! Criterion prints examples per second; the batch is the number after the network's name, as in `train_step/mlp32-b32/bn/1`.
//! The learning rate is zero, so that every step costs what the first one does, however many are measured.

mod common;

use common::{criterion, noise};
use criterion::{BenchmarkId, Criterion, Throughput};
use evenkeel::layers::{BatchNorm1d, Linear, Relu};
use evenkeel::optim::Adam;
use evenkeel::train::{Trainer, enter};
use evenkeel::{Loss, Result, Rng, Sequential, Targets, Threads};

fn main() -> Result<()> {
    let mut criterion = criterion();
    steps(&mut criterion, "mlp32", 32, &[784, 32, 32, 10])?;
    steps(&mut criterion, "mlp100", 64, &[784, 100, 50, 10])?;
    steps(&mut criterion, "mlp1024", 256, &[784, 1024, 1024, 10])?;
    criterion.final_summary();
    Ok(())
}

/// Linear layers of these widths, with ReLU between them, and BatchNorm before that if wanted.
fn network(widths: &[usize], with_batchnorm: bool) -> Result<Sequential<f32>> {
    let mut rng = Rng::new(1, "init");
    let mut model = Sequential::new();
    for (i, pair) in widths.windows(2).enumerate() {
        if i > 0 {
            if with_batchnorm {
                model = model.push(BatchNorm1d::new(pair[0])?);
            }
            model = model.push(Relu::new());
        }
        model = model.push(Linear::new(pair[0], pair[1], &mut rng)?);
    }
    Ok(model)
}

fn steps(criterion: &mut Criterion, name: &str, batch: usize, widths: &[usize]) -> Result<()> {
    let x = noise::<f32>([batch, widths[0]]);
    let labels: Vec<u8> = (0..10).cycle().take(batch).collect();
    let mut group = criterion.benchmark_group(format!("train_step/{name}-b{batch}"));
    group.throughput(Throughput::Elements(batch as u64));
    for (with_batchnorm, kind) in [(true, "bn"), (false, "plain")] {
        for count in [1, 2] {
            let threads = Threads::new(count)?;
            let model = network(widths, with_batchnorm)?;
            let mut trainer = Trainer::new(model, [batch, widths[0]], Loss::CrossEntropy, Adam::new(0.0)?)?;
            group.bench_function(BenchmarkId::new(kind, count), |bencher| {
                enter(&threads, || {
                    bencher.iter(|| trainer.step(x.view(), Targets::Classes(&labels), None));
                });
            });
        }
    }
    group.finish();
    Ok(())
}
