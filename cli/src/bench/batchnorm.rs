//! `evenkeel bench batchnorm`: passes of batch normalisation beside the bandwidth of this machine, a textbook's loop and the f64
//! reference. `batch` has the rule for what a pass moves at least.

use super::batch::{Job, Traffic, Typed};
use super::course::{self, Course, budgets_of, noise_cell};
use super::memory::{Buffers, Pass as Over, l2};
use super::norm::{TEXTBOOK, Tensors};
use super::peers::{self, Peer};
use super::sample::{Effort, NOISY, Samples, repetitions, sample_seconds, take_turns};
use super::{at_once, budgets, count_of_threads, isas, line, multiply_adds, percent, rounded, settle, timed};
use crate::args::{BatchNorm, ElementType};
use crate::chart::{Figure, figures};
use crate::failure::Failure;
use crate::term::{Column, Progress};
use evenkeel::kernels::Activation;
use evenkeel::simd::{Element, Isa, with_isa};
use evenkeel::{Threads, machine};
use serde_json::{Value, json};
use std::marker::PhantomData;

/// Least memory that a thread's bandwidth is taken on: half of it still has many vectors for a pass to go over.
const LEAST: usize = 4096;

pub(crate) fn run(options: &BatchNorm) -> Result<(), Failure> {
    match options.timing.element {
        ElementType::F32 => measure::<f32>(options),
        ElementType::F64 => measure::<f64>(options),
    }
}

/// One job with one number of threads.
struct Case {
    job: Job,
    threads: usize,
    /// Bytes of a tensor.
    tensor: usize,
    traffic: Traffic,
    /// Of each instruction set, the best first.
    ours: Vec<Ours>,
    textbook: Samples,
    /// Seconds that the same sweeps over memory take.
    least: f64,
    /// The loop of multiply-adds, as long as the samples of the best instruction set.
    witness: Samples,
}

struct Ours {
    isa: Isa,
    samples: Samples,
    /// In units in the last place of the largest value.
    error: f64,
}

impl Case {
    /// What the pass moves at least.
    fn bytes(&self) -> usize {
        (self.traffic.reads() + 1) * self.tensor
    }

    /// All memory that the pass touches.
    fn working_set(&self) -> usize {
        self.traffic.touched * self.tensor
    }

    fn gbps(&self, seconds: f64) -> f64 {
        self.bytes() as f64 / seconds * 1e-9
    }
}

fn measure<T: Element>(options: &BatchNorm) -> Result<(), Failure> {
    let isas = isas(&options.timing.isa)?;
    let budgets = budgets(&options.timing.threads)?;
    let activation = if options.relu { Activation::Relu } else { Activation::Identity };
    let jobs = jobs(options, activation);
    for job in &jobs {
        job.check::<T>()?;
    }
    let peers = match &options.timing.peers {
        None => Vec::new(),
        Some(path) => {
            peers::read(path, &[TEXTBOOK], "a normalisation, with \"case\": \"bn_fwd\" or the like", Job::of_line)?
        }
    };
    let (l2, several_budgets) = (l2(&machine::caches()), budgets.len() > 1);
    let table =
        Table::<T> { jobs: &jobs, isas: &isas, l2, several_budgets, activation, peers: &peers, element: PhantomData };
    course::run(&table, &jobs, &budgets, &options.timing)
}

/// Each once, in the order in which shapes, layouts and passes are given.
fn jobs(options: &BatchNorm, activation: Activation) -> Vec<Job> {
    let shapes = if options.shape.is_empty() { Typed::defaults() } else { options.shape.clone() };
    let mut jobs = Vec::new();
    for batch in shapes.iter().flat_map(|shape| shape.batches(&options.layout)) {
        for &pass in &options.passes {
            let job = Job { batch, pass, activation };
            if !jobs.contains(&job) {
                jobs.push(job);
            }
        }
    }
    jobs
}

/// What takes turns.
#[derive(Clone, Copy)]
enum Turn {
    Ours(Isa),
    Over(Over),
    Witness,
    Textbook,
}

fn time<T: Element>(
    job: Job,
    threads: &Threads,
    (isas, l2): (&[Isa], usize),
    effort: Effort,
    progress: &Progress,
) -> Result<Case, Failure> {
    let (tensor, traffic) = (job.batch.bytes::<T>(), job.traffic::<T>(l2));
    let mut tensors = Tensors::<T>::new(job)?;
    let errors: Vec<f64> = isas.iter().map(|&isa| with_isa(isa, || tensors.error())).collect();
    let at_once = &at_once(threads)?;
    let buffers = Buffers::new(at_once, &[(traffic.touched * tensor / at_once.count()).max(LEAST)])?;
    let last = if traffic.then == 1 { Over::Copy } else { Over::Triad };
    // Seconds of one turn that repeats itself.
    let mut run = |turn: Turn, reps: usize| match turn {
        Turn::Ours(isa) => threads.run(|| {
            with_isa(isa, || {
                settle(threads, || tensors.pass());
                timed(|| (0..reps).for_each(|_| tensors.pass()))
            })
        }),
        Turn::Over(pass) => buffers.over(0, pass, reps),
        Turn::Witness => multiply_adds::<T>(isas[0], at_once, reps),
        Turn::Textbook => timed(|| (0..reps).for_each(|_| tensors.textbook())),
    };
    let others = [Turn::Over(Over::Read), Turn::Over(last), Turn::Textbook];
    let mut turns = Vec::new();
    for turn in isas.iter().map(|&isa| Turn::Ours(isa)).chain(others) {
        turns.push((turn, repetitions(sample_seconds(threads.count()), |reps| run(turn, reps))));
    }
    let seconds = run(turns[0].0, turns[0].1);
    turns.push((Turn::Witness, repetitions(seconds, |reps| run(Turn::Witness, reps))));
    let sample = |i: usize| {
        let (turn, reps) = turns[i];
        run(turn, reps) / reps as f64
    };
    let mut samples = take_turns(turns.len(), effort, sample, |share| progress.within(share));
    let mut rest = samples.split_off(isas.len()).into_iter();
    let mut next = || rest.next().expect("samples of every turn");
    let ours = isas.iter().zip(samples).zip(errors);
    let mut of_byte = |pass| next().median() / buffers.bytes(0, pass);
    let (of_reading, of_last) = (of_byte(Over::Read), of_byte(last));
    let least = (traffic.first * tensor) as f64 * of_reading + ((traffic.then + 1) * tensor) as f64 * of_last;
    Ok(Case {
        job,
        threads: threads.count(),
        tensor,
        traffic,
        ours: ours.map(|((&isa, samples), error)| Ours { isa, samples, error }).collect(),
        least,
        textbook: next(),
        witness: next(),
    })
}

/// The table: a row for each case and instruction set.
struct Table<'a, T> {
    jobs: &'a [Job],
    isas: &'a [Isa],
    l2: usize,
    several_budgets: bool,
    activation: Activation,
    peers: &'a [Peer<Job>],
    element: PhantomData<T>,
}

impl<T: Element> Course for Table<'_, T> {
    type Job = Job;
    type Case = Case;

    fn time(&self, job: &Job, threads: &Threads, effort: Effort, progress: &Progress) -> Result<Case, Failure> {
        time::<T>(*job, threads, (self.isas, self.l2), effort, progress)
    }

    fn noise(&self, case: &Case) -> f64 {
        case.witness.spread()
    }

    fn common(&self) -> String {
        let relu = if self.activation == Activation::Relu { "with ReLU" } else { "without ReLU" };
        format!("{}, {relu}", T::NAME)
    }

    fn headings(&self) -> Vec<String> {
        let mut headings = vec!["shape", "pass"];
        if self.several_budgets {
            headings.push("threads");
        }
        // Only one instruction set: then there is nothing to tell apart.
        if self.isas.len() > 1 {
            headings.push("isa");
        }
        headings.extend(["us", "spread", "samples", "GB/s", "roof", "of roof", "error", TEXTBOOK]);
        headings.extend(self.peers.iter().map(|peer| peer.name.as_str()));
        headings.push("noise");
        headings.into_iter().map(str::to_string).collect()
    }

    fn columns<'a>(&self, headings: &'a [String]) -> Vec<Column<'a>> {
        let longest = |text: fn(&Job) -> String| self.jobs.iter().map(|job| text(job).len()).max().unwrap_or(0);
        let column = |heading: &'a String| match heading.as_str() {
            "shape" => Column::words(heading, longest(|job| job.batch.to_string())),
            "pass" => Column::words(heading, longest(|job| job.pass.name().to_string())),
            "isa" => Column::words(heading, "portable".len()),
            "us" => Column::numbers(heading, "100000.0".len()),
            "spread" | "of roof" => Column::numbers(heading, "100.0 %".len()),
            "noise" => Column::numbers(heading, "100.0 % !".len()),
            _ => Column::numbers(heading, "100.0".len()),
        };
        headings.iter().map(column).collect()
    }

    fn rows(&self, case: &Case) -> Vec<Vec<String>> {
        let row = |ours: &Ours| {
            let median = ours.samples.median();
            let mut cells = vec![case.job.batch.to_string(), case.job.pass.name().to_string()];
            if self.several_budgets {
                cells.push(case.threads.to_string());
            }
            if self.isas.len() > 1 {
                cells.push(ours.isa.to_string());
            }
            cells.extend([
                format!("{:.2}", 1e6 * median),
                percent(ours.samples.spread()),
                ours.samples.len().to_string(),
                format!("{:.1}", case.gbps(median)),
                format!("{:.1}", case.gbps(case.least)),
                percent(case.least / median),
                format!("{:.1}", ours.error),
                format!("{:.1}", case.textbook.median() / median),
            ]);
            cells.extend(self.peers.iter().map(|peer| {
                let seconds = peer.seconds(&case.job, T::NAME, case.threads);
                seconds.map_or("-".to_string(), |seconds| format!("{:.2}", seconds / median))
            }));
            cells.push(noise_cell(self.noise(case)));
            cells
        };
        case.ours.iter().map(row).collect()
    }

    fn lines(&self, case: &Case) -> Vec<Value> {
        let line = |samples: &Samples| {
            let (gbps, roof) = (case.gbps(samples.median()), case.gbps(case.least));
            let mut value = line(&case.job.case(), &case.job.batch.to_string(), case.threads, samples);
            value["layout"] = json!(case.job.batch.layout());
            value["type"] = json!(T::NAME);
            value["reads"] = json!(case.traffic.reads());
            value["writes"] = json!(1);
            value["bytes"] = json!(case.bytes());
            value["working_set"] = json!(case.working_set());
            value["gbps"] = json!(rounded(gbps));
            value["roof_gbps"] = json!(rounded(roof));
            value["percent_of_roof"] = json!(rounded(100.0 * gbps / roof));
            value["noise"] = json!(rounded(self.noise(case)));
            value
        };
        let mut lines = Vec::new();
        for (i, ours) in case.ours.iter().enumerate() {
            let mut value = line(&ours.samples);
            value["isa"] = json!(ours.isa.name());
            value["error_ulp"] = json!(rounded(ours.error));
            if i > 0 {
                value["peer"] = json!(format!("evenkeel-{}", ours.isa));
            }
            lines.push(value);
        }
        let mut value = line(&case.textbook);
        value["peer"] = json!(TEXTBOOK);
        lines.push(value);
        lines
    }

    fn legend(&self, cases: &[Case]) -> Vec<String> {
        let mut lines = vec![
            "us: medians of the samples; spread: (p90 - p10) / median. GB/s: of what the pass must move at least.".to_string(),
            "Roof: the same in the time of the same sweeps without arithmetic over as much memory, in turns with the samples.".to_string(),
            "Error: the largest of y or dx against the f64 reference, in units in the last place of the largest value there."
                .to_string(),
        ];
        let mut names = vec![format!("{TEXTBOOK} (a plain loop on one thread)")];
        names.extend(self.peers.iter().map(|peer| peer.name.clone()));
        lines.push(format!("{}: their time over that of the row; above 1 ours is faster.", names.join(", ")));
        lines.extend(peers::unpaired(self.peers, cases.iter().map(|case| (&case.job, case.threads)), T::NAME));
        lines.push(format!(
            "Noise: the spread of a loop of multiply-adds as long as the samples and in turns with them; !: above {}.",
            percent(NOISY)
        ));
        lines
    }

    fn figure(&self, cases: &[Case], note: &str) -> Figure {
        let mut panels = Vec::new();
        for threads in budgets_of(cases.iter().map(|case| case.threads)) {
            let mut passes: Vec<_> = Vec::new();
            for case in cases {
                if !passes.contains(&case.job.pass) {
                    passes.push(case.job.pass);
                }
            }
            for &pass in &passes {
                let mut shown: Vec<&Case> =
                    cases.iter().filter(|case| case.threads == threads && case.job.pass == pass).collect();
                shown.sort_by_key(|case| case.working_set());
                panels.push(self.roofline(&shown, format!("{}, {}", pass.name(), count_of_threads(threads))));
            }
        }
        figures::rooflines(&format!("Batch normalisation, {}", self.common()), note, panels)
    }
}

impl<T: Element> Table<'_, T> {
    /// The rates of one pass on one number of threads.
    fn roofline(&self, cases: &[&Case], title: String) -> figures::Roofline {
        let points = |rate: &dyn Fn(&Case) -> f64| -> Vec<(f64, f64)> {
            cases.iter().map(|case| (case.working_set() as f64, rate(case))).collect()
        };
        let mut rates = Vec::new();
        for (i, isa) in self.isas.iter().enumerate() {
            for layout in ["nc", "ncl", "nchw", "nhwc"] {
                let rate = |case: &Case| {
                    let is_shown = case.job.batch.layout() == layout;
                    if is_shown { case.gbps(case.ours[i].samples.median()) } else { f64::NAN }
                };
                let isa = if self.isas.len() > 1 { format!(" {isa}") } else { String::new() };
                rates.push((format!("{layout}{isa}"), points(&rate)));
            }
        }
        rates.push((TEXTBOOK.to_string(), points(&|case| case.gbps(case.textbook.median()))));
        for peer in self.peers {
            let seconds = |case: &Case| peer.seconds(&case.job, T::NAME, case.threads).unwrap_or(f64::NAN);
            rates.push((peer.name.clone(), points(&|case| case.gbps(seconds(case)))));
        }
        // One roof for cases that touch the same memory: the highest.
        let mut roof = points(&|case| case.gbps(case.least));
        roof.dedup_by(|next, kept| {
            kept.1 = if next.0 == kept.0 { kept.1.max(next.1) } else { kept.1 };
            next.0 == kept.0
        });
        figures::Roofline { title, rates, roof }
    }
}
