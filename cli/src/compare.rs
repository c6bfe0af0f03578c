//! `evenkeel compare`: one network with BatchNorm and without, from the same weights, on the same batches.

use crate::args::Compare;
use crate::failure::Failure;
use crate::lab::Norm;
use crate::record::{Record, Row, Run};
use crate::report::Report;
use crate::term::{Progress, Term};
use crate::watch::Watch;
use evenkeel::data::{Batches, LastBatch, Loader, Order};
use evenkeel::model::plan::{Fusion, Plan};
use evenkeel::simd::Isa;
use evenkeel::train::{Evaluator, Metrics, Observer, Step, Trainer, both, enter};
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
    let fusion = if options.no_fusion { Fusion::Off } else { Fusion::On };
    let contestant = |(name, norm)| {
        let network = options.lab.network(norm, inputs, train.classes(), options.seed)?;
        let watch = Watch::new(&network, batches.batches());
        let plan = Plan::new(network.model, [batch_size, inputs].into(), Loss::CrossEntropy, fusion)?;
        let mut trainer = Trainer::of_plan(plan, options.optimizer.build(lr)?);
        let evaluator = Evaluator::new(trainer.model(), Loss::CrossEntropy, &train)?;
        Ok::<_, Error>((Contestant { trainer, evaluator }, Run { name, rows: Vec::new(), watch }))
    };
    let [(first, first_run), (second, second_run)] = [contestant(NETWORKS[0])?, contestant(NETWORKS[1])?];
    let (mut contestants, mut runs) = ([first, second], [first_run, second_run]);
    let evaluator = &contestants[0].evaluator;
    let (mut train_set, mut validation_set) = (evaluator.loader(&train, scale)?, evaluator.loader(&validation, scale)?);

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
        "fusion": !options.no_fusion,
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
            let train = evaluate(&mut contestants, &mut train_set)?;
            let validation = evaluate(&mut contestants, &mut validation_set)?;
            for (i, run) in runs.iter_mut().enumerate() {
                let (step_loss, seconds) = trained[i];
                run.rows.push(Row { step_loss, train: train[i], validation: validation[i], seconds });
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

/// One epoch of both on the same batches, each gathered once; at the same time, if there are threads for it. Mean batch loss and seconds
/// of each.
fn train_epoch(
    epoch: usize,
    contestants: &mut [Contestant; 2],
    runs: &mut [Run; 2],
    batches: &mut Loader<'_, f32>,
    progress: &Progress,
) -> Result<[(f64, f64); 2], Failure> {
    batches.start_epoch(epoch);
    for contestant in contestants.iter_mut() {
        contestant.trainer.start_epoch();
    }
    let mut totals = [(0.0, 0.0); 2];
    batches.for_each(|batches| {
        let count = batches.len() as u64;
        let ([first, second], [first_run, second_run]) = (&mut *contestants, &mut *runs);
        let [first_total, second_total] = &mut totals;
        let (batches, same) = (batches.clone(), batches);
        let (a, b) = both(
            || train_on(batches, first, first_run, first_total),
            || train_on(same, second, second_run, second_total),
        );
        progress.advance(count);
        first_failure(a, b)
    })?;
    for run in runs {
        run.watch.end_epoch();
    }
    let count = batches.batches() as f64;
    Ok(totals.map(|(loss, seconds)| (loss / count, seconds)))
}

/// What ended first, by its step: which network ran first must not show.
fn first_failure(a: Result<(), Failure>, b: Result<(), Failure>) -> Result<(), Failure> {
    let step = |failure: &Failure| match failure {
        Failure::Library { error: Error::NotFinite { step, .. }, .. } => *step,
        _ => 0,
    };
    match (a, b) {
        (Err(a), Err(b)) => Err(if step(&b) < step(&a) { b } else { a }),
        (a, b) => a.and(b),
    }
}

/// Adds the losses of some batches, and the seconds that it took to train on them.
fn train_on(
    batches: Batches<'_, f32>,
    contestant: &mut Contestant,
    run: &mut Run,
    (loss, seconds): &mut (f64, f64),
) -> Result<(), Failure> {
    let start = Instant::now();
    for batch in batches {
        let is_watched = run.watch.wants_next();
        let mut see = |step: &Step<'_, f32>| run.watch.see(step);
        let observer: Option<&mut Observer<'_, f32>> = if is_watched { Some(&mut see) } else { None };
        let result = contestant.trainer.step(batch.x, Targets::Classes(batch.labels), observer);
        *loss += result.map_err(Failure::while_doing(run.name))?;
    }
    *seconds += start.elapsed().as_secs_f64();
    Ok(())
}

/// Both on all of a set, each batch gathered once.
fn evaluate(contestants: &mut [Contestant; 2], set: &mut Loader<'_, f32>) -> Result<[Metrics; 2], Failure> {
    set.start_epoch(1);
    for Contestant { trainer, evaluator } in contestants.iter_mut() {
        evaluator.begin(trainer.model())?;
    }
    set.for_each(|batches| {
        let [first, second] = &mut *contestants;
        let (batches, same) = (batches.clone(), batches);
        let see = |Contestant { trainer, evaluator }: &mut Contestant, batches| evaluator.see(trainer.model(), batches);
        let (a, b) = both(|| see(first, batches), || see(second, same));
        a.and(b)
    })?;
    let [first, second] = contestants;
    let metrics = |contestant: &Contestant, (name, _): (&str, Norm)| {
        contestant.trainer.finite(contestant.evaluator.metrics()?).map_err(Failure::while_doing(name))
    };
    Ok([metrics(first, NETWORKS[0])?, metrics(second, NETWORKS[1])?])
}
