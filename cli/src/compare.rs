//! `evenkeel compare`: one network with BatchNorm and without, from the same weights, on the same batches.

use crate::args::Compare;
use crate::failure::Failure;
use crate::lab::Norm;
use crate::record::{Record, Row, Run};
use crate::report::Report;
use crate::term::{Progress, Term};
use crate::watch::Watch;
use evenkeel::data::{LastBatch, Loader, Order};
use evenkeel::simd::Isa;
use evenkeel::train::{Evaluator, Trainer, enter};
use evenkeel::{Error, Loss, Targets, Threads, machine};
use serde_json::json;
use std::path::PathBuf;
use std::time::Instant;

const NETWORKS: [(&str, Norm); 2] = [("with BatchNorm", Norm::Batch), ("without", Norm::Without)];

pub(crate) fn run(options: &Compare) -> Result<(), Failure> {
    if options.epochs == 0 {
        let expected = "at least 1".to_string();
        return Err(Error::Invalid { what: "--epochs".to_string(), value: "0".to_string(), expected }.into());
    }
    let threads = Threads::new(options.threads.unwrap_or_else(machine::available_threads))?;
    let lr = options.lr.unwrap_or(options.lab.lr(options.optimizer));
    let batch_size = options.batch_size.unwrap_or(options.lab.batch_size());
    if batch_size == 1 {
        let expected = "at least 2: BatchNorm cannot take the variance of one value per channel".to_string();
        return Err(Error::Invalid { what: "--batch-size".to_string(), value: "1".to_string(), expected }.into());
    }
    // Refuses a learning rate before anything is read or written.
    options.optimizer.build(lr)?;

    let term = Term::detect(options.quiet);
    let (train, validation) = options.data.load(options.data_dir.as_deref())?;
    let scale = options.lab.scale();
    let mut batches = Loader::new(&train, batch_size, Order::Shuffled(options.seed), LastBatch::Drop, scale)?;
    let inputs = train.height() * train.width();
    let (mut contestants, mut runs) = (Vec::new(), Vec::new());
    for (name, norm) in NETWORKS {
        let network = options.lab.network(norm, inputs, train.classes(), options.seed)?;
        let watch = Watch::new(&network, batches.batches());
        let trainer =
            Trainer::new(network.model, [batch_size, inputs], Loss::CrossEntropy, options.optimizer.build(lr)?)?;
        let evaluator = Evaluator::new(trainer.model(), Loss::CrossEntropy, &train)?;
        contestants.push(Contestant { trainer, evaluator });
        runs.push(Run { name, rows: Vec::new(), watch });
    }

    let first = &contestants[0].evaluator;
    let (mut train_set, mut validation_set) = (first.loader(&train, scale)?, first.loader(&validation, scale)?);

    let config = json!({
        "command": "compare",
        "version": env!("CARGO_PKG_VERSION"),
        "instruction_set": Isa::current().name(),
        "lab": options.lab.name(),
        "hidden": options.lab.hidden(),
        "data": options.data.name(),
        "training_images": train.len(),
        "validation_images": validation.len(),
        "pixel_mean": scale.mean,
        "pixel_std": scale.std,
        "epochs": options.epochs,
        "batch_size": batch_size,
        "optimizer": options.optimizer.name(),
        "learning_rate": lr,
        "seed": options.seed,
    });
    let (lab, data) = (options.lab.name(), options.data.name());
    let default_folder = || PathBuf::from(format!("runs/{lab}-{data}-seed{}", options.seed));
    let record = Record::begin(&options.out.clone().unwrap_or_else(default_folder), &config)?;

    let widths: Vec<String> =
        [&[inputs], options.lab.hidden(), &[train.classes()]].concat().iter().map(usize::to_string).collect();
    let note = format!(
        "{} on {data} ({} training and {} validation images), batch {batch_size}, {} {lr}, seed {}",
        widths.join("-"),
        train.len(),
        validation.len(),
        options.optimizer.name(),
        options.seed
    );
    let progress = term.progress((options.epochs as u64).saturating_mul(batches.batches() as u64));
    let mut report = progress.aside(|| Report::begin(options.format, term, &note))?;
    enter(&threads, || {
        for epoch in 1..=options.epochs {
            progress.name(format!("epoch {epoch} of {}", options.epochs));
            let trained = train_epoch(epoch, &mut contestants, &mut runs, &mut batches, &progress)?;
            for ((contestant, run), (step_loss, seconds)) in contestants.iter_mut().zip(&mut runs).zip(trained) {
                let Contestant { trainer, evaluator } = contestant;
                let mut score = |set| trainer.evaluate(evaluator, set).map_err(Failure::while_doing(run.name));
                let (train, validation) = (score(&mut train_set)?, score(&mut validation_set)?);
                run.rows.push(Row { step_loss, train, validation, seconds });
            }
            record.numbers(&runs)?;
            progress.aside(|| report.epoch(epoch, &runs))?;
        }
        Ok::<(), Failure>(())
    })?;
    drop(progress);
    record.pictures(&format!("{lab} on {data}"), &note, &runs)?;
    report.verdict(&runs, record.folder())
}

/// One of the two networks, with what it needs.
struct Contestant {
    trainer: Trainer<f32>,
    evaluator: Evaluator<f32>,
}

/// One epoch of both, batch by batch, so that each batch is gathered once. Mean batch loss and seconds of each.
fn train_epoch(
    epoch: usize,
    contestants: &mut [Contestant],
    runs: &mut [Run],
    batches: &mut Loader<'_, f32>,
    progress: &Progress,
) -> Result<Vec<(f64, f64)>, Failure> {
    batches.start_epoch(epoch);
    let mut totals = vec![(0.0, 0.0); contestants.len()];
    for contestant in contestants.iter_mut() {
        contestant.trainer.start_epoch();
    }
    while let Some(batch) = batches.next_batch() {
        for ((contestant, run), (loss, seconds)) in contestants.iter_mut().zip(&mut *runs).zip(&mut totals) {
            let start = Instant::now();
            let mut observer = |step: &evenkeel::train::Step<'_, f32>| run.watch.see(step);
            let result = contestant.trainer.step(batch.x, Targets::Classes(batch.labels), Some(&mut observer));
            *loss += result.map_err(Failure::while_doing(run.name))?;
            *seconds += start.elapsed().as_secs_f64();
        }
        progress.advance(1);
    }
    for run in runs {
        run.watch.end_epoch();
    }
    let count = batches.batches() as f64;
    Ok(totals.into_iter().map(|(loss, seconds)| (loss / count, seconds)).collect())
}
