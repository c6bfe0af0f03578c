//! `evenkeel bench step`: whole training steps, beside the machine's peak and PyTorch.

use super::course::{self, Course, budgets_of, noise_cell};
use super::network::Network;
use super::peers::{self, Peer};
use super::sample::{Effort, NOISY, Ours, Samples, repetitions, take_turns};
use super::torch::{MODES, Torch};
use super::{
    at_once, budgets, count_of_threads, flops_of_unit, isas, line, multiply_adds, percent, rounded, settle, timed,
};
use crate::allocations;
use crate::args::{ElementType, Step};
use crate::chart::{Figure, figures};
use crate::failure::Failure;
use crate::lab::Norm;
use crate::term::{Column, Progress};
use evenkeel::data::{LastBatch, Loader, Order, Scale};
use evenkeel::model::plan::{Explanation, Fusion};
use evenkeel::simd::{Element, Isa, with_isa};
use evenkeel::tensor::Tensor;
use evenkeel::train::{Evaluator, Trainer};
use evenkeel::{Error, Loss, Targets, Threads};
use serde_json::{Value, json};
use std::cell::RefCell;
use std::marker::PhantomData;

pub(crate) fn run(options: &Step) -> Result<(), Failure> {
    match options.timing.element {
        ElementType::F32 => measure::<f32>(options),
        ElementType::F64 => measure::<f64>(options),
    }
}

/// What the lines are called.
const CASE: &str = "train_step";

/// Steps over which allocations are counted, and for the share of each kernel.
const COUNTED: usize = 100;

/// One network with one number of threads.
struct Case {
    network: Network,
    threads: usize,
    /// Of all products in a step.
    flops: f64,
    /// Of each instruction set, the best first.
    ours: Vec<Ours>,
    /// With batches gathered from bytes in shuffled order.
    gathered: Samples,
    /// Of so many images, their bytes gathered in order.
    evaluation: Samples,
    evaluated: usize,
    /// By mode, if PyTorch is there.
    torch: Vec<(String, Samples)>,
    /// In [`COUNTED`] steps.
    allocations: usize,
    explanation: Option<Explanation>,
}

impl Case {
    fn gflops(&self, samples: &Samples) -> f64 {
        self.flops / samples.median() * 1e-9
    }

    /// Share of the peak that the products of an evaluation make.
    fn evaluation_of_peak(&self) -> f64 {
        let flops = self.network.forward_flops() * self.evaluated as f64;
        flops / self.evaluation.median() * 1e-9 / self.best().peak_gflops()
    }

    fn best(&self) -> &Ours {
        &self.ours[0]
    }

    fn noise(&self) -> f64 {
        self.best().peak.spread()
    }
}

fn measure<T: Element>(options: &Step) -> Result<(), Failure> {
    let isas = isas(&options.timing.isa)?;
    let budgets = budgets(&options.timing.threads)?;
    let of_labs =
        options.lab.iter().flat_map(|&lab| [Norm::Batch, Norm::Without].map(|norm| Network::of_lab(lab, norm)));
    let mut networks: Vec<Network> = of_labs.chain(options.shape.iter().cloned()).collect();
    if networks.is_empty() {
        networks = Network::defaults();
    }
    for network in &networks {
        network.check::<T>()?;
    }
    let peers = match &options.timing.peers {
        None => Vec::new(),
        Some(path) => peers::read(path, &[], "a step of a network of ours, with \"case\": \"train_step\"", key)?,
    };
    let (torch, missing) = match Torch::start() {
        Ok(torch) => (Some(torch), None),
        Err(why) => (None, Some(why)),
    };
    let table = Table::<T> {
        isas: &isas,
        several_budgets: budgets.len() > 1,
        peers: &peers,
        fusion: if options.no_fusion { Fusion::Off } else { Fusion::On },
        kernels: options.kernels,
        torch_names: torch.iter().flat_map(|torch| MODES.map(|mode| torch.name(mode))).collect(),
        torch: RefCell::new(torch),
        missing: RefCell::new(missing),
        element: PhantomData,
    };
    course::run(&table, &networks, &budgets, &options.timing)
}

/// Which network a line is of.
fn key(case: &str, shape: &str) -> Result<Option<Network>, String> {
    if case == CASE && shape.starts_with("mlp") { Network::parse(shape).map(Some) } else { Ok(None) }
}

/// What takes turns.
#[derive(Clone, Copy)]
enum Turn {
    Ours(Isa),
    Peak(Isa),
    /// The best instruction set, gathering.
    Gathered(Isa),
    Evaluation(Isa),
    Torch(usize),
}

/// A network on its way.
struct Ready<'a, T: Element> {
    trainer: Trainer<T>,
    batches: Vec<(Tensor<T>, Vec<u8>)>,
    loader: Loader<'a, T>,
    evaluator: Evaluator<T>,
    set: Loader<'a, T>,
    next: usize,
}

/// Why to stop before an epoch has ended.
enum Stop {
    Done,
    Failed(Error),
}

impl<T: Element> Ready<'_, T> {
    fn step(&mut self) -> evenkeel::Result<()> {
        let (x, labels) = &self.batches[self.next % self.batches.len()];
        self.next += 1;
        self.trainer.step(x.view(), Targets::Classes(labels), None).map(drop)
    }

    fn steps(&mut self, count: usize) -> evenkeel::Result<()> {
        (0..count).try_for_each(|_| self.step())
    }

    /// Steps on batches that are gathered, from where the last ones ended.
    fn gathered(&mut self, count: usize) -> evenkeel::Result<()> {
        let (trainer, mut left) = (&mut self.trainer, count);
        while left > 0 {
            let trained = self.loader.for_each(|batches| {
                for batch in batches {
                    if left == 0 {
                        return Err(Stop::Done);
                    }
                    left -= 1;
                    trainer.step(batch.x, Targets::Classes(batch.labels), None).map_err(Stop::Failed)?;
                }
                Ok(())
            });
            match trained {
                Err(Stop::Failed(error)) => return Err(error),
                Err(Stop::Done) => {}
                Ok(()) => {
                    self.next += 1;
                    self.loader.start_epoch(self.next);
                }
            }
        }
        Ok(())
    }
}

impl<T: Element> Ready<'_, T> {
    /// Evaluates the first `count` images of the set, or some more, so often; returns how many at a time.
    fn evaluate(&mut self, count: usize, times: usize) -> evenkeel::Result<usize> {
        let mut each = 0;
        for _ in 0..times {
            let (model, evaluator, mut seen) = (self.trainer.model(), &mut self.evaluator, 0);
            evaluator.begin(model)?;
            self.set.start_epoch(1);
            let all = self.set.for_each(|batches| {
                seen += batches.clone().map(|batch| batch.labels.len()).sum::<usize>();
                evaluator.see(model, batches).map_err(Stop::Failed)?;
                if seen < count { Ok(()) } else { Err(Stop::Done) }
            });
            if let Err(Stop::Failed(error)) = all {
                return Err(error);
            }
            each = seen;
        }
        Ok(each)
    }
}

/// The table: a row for each case.
struct Table<'a, T> {
    isas: &'a [Isa],
    several_budgets: bool,
    peers: &'a [Peer<Network>],
    fusion: Fusion,
    kernels: bool,
    torch: RefCell<Option<Torch>>,
    torch_names: Vec<String>,
    /// Why there is no PyTorch, or no more.
    missing: RefCell<Option<String>>,
    element: PhantomData<T>,
}

impl<T: Element> Table<'_, T> {
    /// What PyTorch says, or why it says no more.
    fn ask<R>(&self, ask: impl FnOnce(&mut Torch) -> Result<R, String>) -> Option<R> {
        let mut torch = self.torch.borrow_mut();
        match ask(torch.as_mut()?) {
            Ok(answer) => Some(answer),
            Err(why) => {
                *torch = None;
                *self.missing.borrow_mut() = Some(why);
                None
            }
        }
    }
}

/// Seconds of a sample, as long on one thread as on several: what a step works on is near only after some steps.
const SAMPLE_SECONDS: f64 = 4e-3;

impl<T: Element> Course for Table<'_, T> {
    type Job = Network;
    type Case = Case;

    fn time(&self, network: &Network, threads: &Threads, effort: Effort, progress: &Progress) -> Result<Case, Failure> {
        // Without fusion a step multiplies as much, but its layers do not say so.
        let flops = network.trainer::<T>(Fusion::On)?.plan().explain().product_flops() as f64;
        let mut trainer = network.trainer::<T>(self.fusion)?;
        let images = network.images()?;
        let loader = Loader::new(&images, network.batch, Order::Shuffled(1), LastBatch::Drop, Scale::default())?;
        let evaluator = Evaluator::new(trainer.model(), Loss::CrossEntropy, &images)?;
        let set = evaluator.loader(&images, Scale::default())?;
        let evaluated = network.evaluated().min(images.len()).next_multiple_of(set.batch_size()).min(images.len());
        let mut ready = Ready { trainer, batches: network.batches()?, loader, evaluator, set, next: 0 };
        let has_torch = self.ask(|torch| torch.build(network, T::NAME, threads.count())).is_some();
        let at_once = &at_once(threads)?;
        let mut failed = None;
        // Seconds of one turn that repeats itself.
        let mut run = |turn: Turn, reps: usize| match turn {
            Turn::Ours(isa) | Turn::Gathered(isa) | Turn::Evaluation(isa) => {
                let timed = threads.run(|| {
                    with_isa(isa, || {
                        let (mut settled, mut result) = (Ok(()), Ok(()));
                        let mut run = |count: usize| match turn {
                            Turn::Gathered(_) => ready.gathered(count),
                            Turn::Evaluation(_) => ready.evaluate(evaluated, count).map(drop),
                            _ => ready.steps(count),
                        };
                        settle(threads, || settled = run(1));
                        let seconds = timed(|| result = run(reps));
                        settled.and(result).map(|()| seconds)
                    })
                });
                timed.unwrap_or_else(|error| {
                    failed.get_or_insert(error);
                    1.0
                })
            }
            Turn::Peak(isa) => multiply_adds::<T>(isa, at_once, reps),
            Turn::Torch(mode) => self.ask(|torch| torch.steps(MODES[mode], reps)).unwrap_or(1.0),
        };
        let mut turns = Vec::new();
        for &isa in self.isas {
            let reps = repetitions(SAMPLE_SECONDS, |reps| run(Turn::Ours(isa), reps));
            turns.push((Turn::Ours(isa), reps));
            let seconds = run(Turn::Ours(isa), reps);
            turns.push((Turn::Peak(isa), repetitions(seconds, |reps| run(Turn::Peak(isa), reps))));
        }
        for turn in [Turn::Gathered(self.isas[0]), Turn::Evaluation(self.isas[0])] {
            turns.push((turn, repetitions(SAMPLE_SECONDS, |reps| run(turn, reps))));
        }
        for mode in (0..MODES.len()).filter(|_| has_torch) {
            turns.push((Turn::Torch(mode), repetitions(SAMPLE_SECONDS, |reps| run(Turn::Torch(mode), reps))));
        }
        let sample = |i: usize| {
            let (turn, reps) = turns[i];
            run(turn, reps) / reps as f64
        };
        let mut samples = take_turns(turns.len(), effort, sample, |share| progress.within(share)).into_iter();
        if let Some(error) = failed {
            return Err(Failure::while_doing(network.to_string())(error));
        }
        let mut next = || samples.next().expect("samples of every turn");
        let ours = self.isas.iter().map(|&isa| {
            let (samples, peak) = (next(), next());
            Ours { isa, samples, peak, peak_flops: flops_of_unit::<T>(isa, at_once) }
        });
        let ours: Vec<Ours> = ours.collect();
        let (gathered, evaluation) = (next(), next());
        let torch = if has_torch && self.torch.borrow().is_some() {
            self.torch_names.iter().map(|name| (name.clone(), next())).collect()
        } else {
            Vec::new()
        };
        let (isa, shows_kernels) = (self.isas[0], self.kernels);
        // Its own thread, which draws, allocates.
        let _still = progress.still();
        let (allocations, explanation, evaluated) = threads.run(|| {
            with_isa(isa, || {
                // As many as a sample evaluated: whole groups of batches.
                let evaluated = ready.evaluate(evaluated, 1)?;
                let before = allocations::count();
                ready.steps(COUNTED)?;
                let allocations = allocations::count() - before;
                let explanation = shows_kernels.then(|| {
                    ready.trainer.plan_mut().measure();
                    ready.steps(COUNTED).map(|()| ready.trainer.plan().explain())
                });
                Ok::<_, Error>((allocations, explanation.transpose()?, evaluated))
            })
        })?;
        let (network, threads) = (network.clone(), threads.count());
        Ok(Case { network, threads, flops, ours, gathered, evaluation, evaluated, torch, allocations, explanation })
    }

    fn noise(&self, case: &Case) -> f64 {
        case.noise()
    }

    fn common(&self) -> String {
        let fusion = if self.fusion == Fusion::On { "" } else { ", without fusion" };
        format!("{}{fusion}", T::NAME)
    }

    fn headings(&self) -> Vec<String> {
        let mut headings = vec!["network".to_string()];
        if self.several_budgets {
            headings.push("threads".to_string());
        }
        for isa in self.isas {
            let of = if self.isas.len() > 1 { format!("{isa} ") } else { String::new() };
            headings.extend([format!("{isa} us"), format!("{of}steps/s"), format!("{of}of peak")]);
        }
        headings.extend(["samples/s", "gathered", "evaluation", "allocations"].map(String::from));
        headings.extend(self.torch_names.iter().cloned());
        headings.extend(self.peers.iter().map(|peer| peer.name.clone()));
        headings.push("noise".to_string());
        headings
    }

    fn columns<'b>(&self, headings: &'b [String]) -> Vec<Column<'b>> {
        let column = |(i, heading): (usize, &'b String)| match i {
            0 => Column::words(heading, "mlp784-1024-1024-10_bn_b256_adam".len()),
            _ if heading.ends_with(" us") => Column::numbers(heading, "100000.0".len()),
            _ if heading == "noise" => Column::numbers(heading, "100.0 % !".len()),
            _ => Column::numbers(heading, "100.0 %".len()),
        };
        headings.iter().enumerate().map(column).collect()
    }

    fn rows(&self, case: &Case) -> Vec<Vec<String>> {
        let mut cells = vec![case.network.to_string()];
        if self.several_budgets {
            cells.push(case.threads.to_string());
        }
        for ours in &case.ours {
            cells.push(format!("{:.1}", 1e6 * ours.samples.median()));
            cells.push(format!("{:.0}", 1.0 / ours.samples.median()));
            cells.push(percent(case.gflops(&ours.samples) / ours.peak_gflops()));
        }
        let best = case.best().samples.median();
        cells.push(format!("{:.0}", case.network.batch as f64 / best));
        cells.push(format!("{:.0}", 1.0 / case.gathered.median()));
        cells.push(percent(case.evaluation_of_peak()));
        cells.push(case.allocations.to_string());
        let ratio = |seconds: Option<f64>| seconds.map_or("-".to_string(), |seconds| format!("{:.2}", seconds / best));
        for i in 0..self.torch_names.len() {
            cells.push(ratio(case.torch.get(i).map(|(_, samples)| samples.median())));
        }
        cells.extend(self.peers.iter().map(|peer| ratio(peer.seconds(&case.network, T::NAME, case.threads))));
        cells.push(noise_cell(case.noise()));
        vec![cells]
    }

    fn lines(&self, case: &Case) -> Vec<Value> {
        let line = |samples: &Samples, peak: f64| {
            let mut value = line(CASE, &case.network.to_string(), case.threads, samples);
            value["type"] = json!(T::NAME);
            value["steps_per_s"] = json!(rounded(1.0 / samples.median()));
            value["samples_per_s"] = json!(rounded(case.network.batch as f64 / samples.median()));
            value["gflops"] = json!(rounded(case.gflops(samples)));
            value["peak_gflops"] = json!(rounded(peak));
            value["percent_of_peak"] = json!(rounded(100.0 * case.gflops(samples) / peak));
            value["noise"] = json!(rounded(case.noise()));
            value
        };
        let mut lines = Vec::new();
        for (i, ours) in case.ours.iter().enumerate() {
            let mut value = line(&ours.samples, ours.peak_gflops());
            value["isa"] = json!(ours.isa.name());
            value["fusion"] = json!(self.fusion == Fusion::On);
            if i > 0 {
                value["peer"] = json!(format!("evenkeel-{}", ours.isa));
            } else {
                value["allocations"] = json!(case.allocations);
                value["allocations_in_steps"] = json!(COUNTED);
                value["evaluated"] = json!(case.evaluated);
                value["evaluation_us"] = json!(rounded(1e6 * case.evaluation.median()));
                value["evaluation_percent_of_peak"] = json!(rounded(100.0 * case.evaluation_of_peak()));
                if let Some(explanation) = &case.explanation {
                    value["kernels"] = kernels(explanation);
                }
            }
            lines.push(value);
        }
        let peak = case.best().peak_gflops();
        let mut gathered = line(&case.gathered, peak);
        gathered["peer"] = json!("evenkeel-gathered");
        gathered["isa"] = json!(case.best().isa.name());
        gathered["fusion"] = json!(self.fusion == Fusion::On);
        lines.push(gathered);
        for (name, samples) in &case.torch {
            let mut value = line(samples, peak);
            value["peer"] = json!(name);
            lines.push(value);
        }
        lines
    }

    fn legend(&self, cases: &[Case]) -> Vec<String> {
        let mut lines = Vec::new();
        for case in cases {
            if let Some(explanation) = &case.explanation {
                lines.push(format!("{}, {}:", case.network, count_of_threads(case.threads)));
                lines.extend(explanation.to_string().lines().map(String::from));
                lines.push(String::new());
            }
        }
        lines.push(format!(
            "us: medians. Of peak: the flops of a step's products over those of a loop of multiply-adds as long as the samples and in \
             turns with them. Gathered: steps/s with batches gathered from bytes in shuffled order; the others have theirs ready. \
             Evaluation: of images, gathered from bytes, its products' share of the same peak. Allocations: in {COUNTED} steps. Noise: the loop's spread; !: above {}.",
            percent(NOISY)
        ));
        let names: Vec<&str> =
            self.torch_names.iter().map(String::as_str).chain(self.peers.iter().map(|p| p.name.as_str())).collect();
        if !names.is_empty() {
            lines.push(format!(
                "{}: their time over ours on {}; above 1 ours is faster.",
                names.join(", "),
                self.isas[0]
            ));
        }
        if let Some(why) = self.missing.borrow().as_ref() {
            lines.push(format!("PyTorch is not beside it, or not to the end: {why}."));
        }
        let measured = cases.iter().map(|case| (&case.network, case.threads));
        lines.extend(peers::unpaired(self.peers, measured, T::NAME));
        lines
    }

    fn figure(&self, cases: &[Case], note: &str) -> Figure {
        let budgets = budgets_of(cases.iter().map(|case| case.threads));
        let panels = budgets.iter().map(|&threads| {
            let shown: Vec<&Case> = cases.iter().filter(|case| case.threads == threads).collect();
            let rate = |case: &Case, seconds: Option<f64>| seconds.map_or(f64::NAN, |s| case.flops / s * 1e-9);
            let mut rates: Vec<(String, Vec<f64>)> = Vec::new();
            for (i, isa) in self.isas.iter().enumerate() {
                rates.push((isa.to_string(), shown.iter().map(|case| case.gflops(&case.ours[i].samples)).collect()));
            }
            for (i, name) in self.torch_names.iter().enumerate() {
                let of = |case: &&Case| rate(case, case.torch.get(i).map(|(_, samples)| samples.median()));
                rates.push((name.clone(), shown.iter().map(of).collect()));
            }
            for peer in self.peers {
                let of = |case: &&Case| rate(case, peer.seconds(&case.network, T::NAME, threads));
                rates.push((peer.name.clone(), shown.iter().map(of).collect()));
            }
            rates.retain(|(_, rates)| rates.iter().any(|rate| rate.is_finite()));
            figures::Rates {
                title: count_of_threads(threads),
                label: "network",
                shapes: shown.iter().map(|case| case.network.to_string()).collect(),
                rates,
                peak: (format!("{} peak", self.isas[0]), shown.iter().map(|case| case.best().peak_gflops()).collect()),
            }
        });
        let panels: Vec<figures::Rates> = panels.collect();
        figures::rates(&format!("Training steps, {}", self.common()), note, panels.len().min(3), panels)
    }
}

/// The kernels of a step with their shares of its time.
fn kernels(explanation: &Explanation) -> Value {
    let total: f64 = explanation.rows().iter().filter_map(|row| row.seconds).sum();
    let row = |row: &evenkeel::model::plan::Row| {
        let seconds = row.seconds.unwrap_or(f64::NAN);
        json!({
            "layers": row.layers,
            "pass": row.pass,
            "kernel": row.kernel,
            "shape": row.shape,
            "flops": row.flops,
            "bytes": row.bytes,
            "fused_with": row.fused_with,
            "us": rounded(1e6 * seconds),
            "share": rounded(seconds / total),
        })
    };
    explanation.rows().iter().map(row).collect()
}
