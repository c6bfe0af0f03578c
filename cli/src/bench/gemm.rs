//! `evenkeel bench gemm`: products per instruction set, beside the machine's peak and the `matrixmultiply` crate.

use super::course::{self, Course, budgets_of, noise_cell};
use super::peers::{self, Peer};
use super::product::{Form, Operands, Product};
use super::rival::{RIVAL, Rival};
use super::sample::{Effort, NOISY, Ours, Samples, median, repetitions, sample_seconds, take_turns};
use super::{
    at_once, budgets, count_of_threads, flops_of_unit, isas, line, multiply_adds, percent, rounded, settle, timed,
};
use crate::args::{ElementType, Gemm};
use crate::chart::{Figure, figures};
use crate::failure::Failure;
use crate::term::{Column, Progress};
use evenkeel::Threads;
use evenkeel::simd::{Isa, with_isa};
use serde_json::{Value, json};
use std::marker::PhantomData;

pub(crate) fn run(options: &Gemm) -> Result<(), Failure> {
    match options.timing.element {
        ElementType::F32 => measure::<f32>(options),
        ElementType::F64 => measure::<f64>(options),
    }
}

/// What the lines are called.
const CASE: &str = "gemm";

/// One product with one number of threads.
struct Case {
    product: Product,
    threads: usize,
    /// Of each instruction set, the best first.
    ours: Vec<Ours>,
    /// On one thread only: that is all that matrixmultiply is asked for.
    rival: Option<Samples>,
}

impl Case {
    fn gflops(&self, samples: &Samples) -> f64 {
        self.product.flops() / samples.median() * 1e-9
    }

    /// The best instruction set, the one that others are compared with.
    fn best(&self) -> &Ours {
        &self.ours[0]
    }

    /// Of the loop beside the best instruction set.
    fn noise(&self) -> f64 {
        self.best().peak.spread()
    }
}

fn measure<T: Rival>(options: &Gemm) -> Result<(), Failure> {
    let isas = isas(&options.timing.isa)?;
    let budgets = budgets(&options.timing.threads)?;
    let products = if options.shape.is_empty() { Product::defaults() } else { options.shape.clone() };
    for product in &products {
        product.check::<T>()?;
    }
    let peers = match &options.timing.peers {
        None => Vec::new(),
        Some(path) => peers::read(path, &[RIVAL], "a product, with \"case\": \"gemm\"", key)?,
    };
    let table = Table::<T> {
        isas: &isas,
        several_budgets: budgets.len() > 1,
        with_rival: budgets.iter().any(|b| b.count() == 1),
        peers: &peers,
        element: PhantomData,
    };
    course::run(&table, &products, &budgets, &options.timing)
}

/// Which product a line is of.
fn key(case: &str, shape: &str) -> Result<Option<Product>, String> {
    if case == CASE { Product::parse(shape).map(Some) } else { Ok(None) }
}

/// What a share of the peak is a share of: it differs a little from row to row.
fn peaks(cases: &[Case], isas: &[Isa], threads: usize) -> String {
    let peak = |i: usize| {
        let same = cases.iter().filter(|case| case.threads == threads);
        let mut rates: Vec<f64> = same.map(|case| case.ours[i].peak_gflops()).collect();
        rates.sort_by(f64::total_cmp);
        median(&rates)
    };
    let peaks: Vec<String> = isas.iter().enumerate().map(|(i, isa)| format!("{isa} {:.1} GFLOP/s", peak(i))).collect();
    format!("Peak on {}, the median of all rows: {}.", count_of_threads(threads), peaks.join(", "))
}

/// What takes turns.
#[derive(Clone, Copy)]
enum Turn {
    Ours(Isa),
    Peak(Isa),
    Rival,
}

fn time<T: Rival>(
    product: Product,
    threads: &Threads,
    isas: &[Isa],
    effort: Effort,
    progress: &Progress,
) -> Result<Case, Failure> {
    let mut operands = Operands::<T>::new(product)?;
    let at_once = &at_once(threads)?;
    // Seconds of one turn that repeats itself.
    let mut run = |turn: Turn, reps: usize| match turn {
        Turn::Ours(isa) => threads.run(|| {
            with_isa(isa, || {
                settle(threads, || operands.multiply());
                timed(|| (0..reps).for_each(|_| operands.multiply()))
            })
        }),
        Turn::Peak(isa) => multiply_adds::<T>(isa, at_once, reps),
        Turn::Rival => timed(|| (0..reps).for_each(|_| operands.multiply_with_rival())),
    };
    let mut turns = Vec::new();
    for &isa in isas {
        let reps = repetitions(sample_seconds(threads.count()), |reps| run(Turn::Ours(isa), reps));
        turns.push((Turn::Ours(isa), reps));
        let seconds = run(Turn::Ours(isa), reps);
        turns.push((Turn::Peak(isa), repetitions(seconds, |reps| run(Turn::Peak(isa), reps))));
    }
    if threads.count() == 1 {
        turns.push((Turn::Rival, repetitions(sample_seconds(1), |reps| run(Turn::Rival, reps))));
    }
    let sample = |i: usize| {
        let (turn, reps) = turns[i];
        run(turn, reps) / reps as f64
    };
    let samples = take_turns(turns.len(), effort, sample, |share| progress.within(share));
    let mut case = Case { product, threads: threads.count(), ours: Vec::new(), rival: None };
    let mut samples = samples.into_iter();
    for &isa in isas {
        let (Some(samples), Some(peak)) = (samples.next(), samples.next()) else { break };
        case.ours.push(Ours { isa, samples, peak, peak_flops: flops_of_unit::<T>(isa, at_once) });
    }
    case.rival = samples.next();
    Ok(case)
}

/// One line for each instruction set, the best first and without a peer's name, and one for matrixmultiply.
fn lines<T: Rival>(case: &Case) -> Vec<Value> {
    let line = |samples: &Samples, peak: f64| {
        let gflops = case.gflops(samples);
        let mut value = line(CASE, &case.product.to_string(), case.threads, samples);
        value["type"] = json!(T::NAME);
        value["gflops"] = json!(rounded(gflops));
        value["peak_gflops"] = json!(rounded(peak));
        value["percent_of_peak"] = json!(rounded(100.0 * gflops / peak));
        value["noise"] = json!(rounded(case.noise()));
        value
    };
    let mut lines = Vec::new();
    for (i, ours) in case.ours.iter().enumerate() {
        let mut value = line(&ours.samples, ours.peak_gflops());
        value["isa"] = json!(ours.isa.name());
        if i > 0 {
            value["peer"] = json!(format!("evenkeel-{}", ours.isa));
        }
        lines.push(value);
    }
    if let Some(rival) = &case.rival {
        let mut value = line(rival, case.best().peak_gflops());
        value["peer"] = json!(RIVAL);
        lines.push(value);
    }
    lines
}

/// The table: a row for each case.
struct Table<'a, T> {
    isas: &'a [Isa],
    several_budgets: bool,
    with_rival: bool,
    peers: &'a [Peer<Product>],
    element: PhantomData<T>,
}

impl<T: Rival> Course for Table<'_, T> {
    type Job = Product;
    type Case = Case;

    fn time(&self, product: &Product, threads: &Threads, effort: Effort, progress: &Progress) -> Result<Case, Failure> {
        time::<T>(*product, threads, self.isas, effort, progress)
    }

    fn noise(&self, case: &Case) -> f64 {
        case.noise()
    }

    fn common(&self) -> String {
        T::NAME.to_string()
    }

    fn headings(&self) -> Vec<String> {
        let mut headings = vec!["shape".to_string()];
        if self.several_budgets {
            headings.push("threads".to_string());
        }
        for isa in self.isas {
            // Only one instruction set: then there is nothing to tell apart.
            let of = if self.isas.len() > 1 { format!("{isa} ") } else { String::new() };
            headings.extend([format!("{isa} us"), format!("{of}GFLOP/s"), format!("{of}of peak")]);
        }
        if self.with_rival {
            headings.push(RIVAL.to_string());
        }
        headings.extend(self.peers.iter().map(|peer| peer.name.clone()));
        headings.push("noise".to_string());
        headings
    }

    fn columns<'b>(&self, headings: &'b [String]) -> Vec<Column<'b>> {
        let column = |(i, heading): (usize, &'b String)| match i {
            0 => Column::words(heading, "1024x1024x1024_tn".len()),
            _ if heading.ends_with(" us") => Column::numbers(heading, "1000000.0".len()),
            _ if heading == "noise" => Column::numbers(heading, "100.0 % !".len()),
            _ => Column::numbers(heading, "100.0 %".len()),
        };
        headings.iter().enumerate().map(column).collect()
    }

    fn rows(&self, case: &Case) -> Vec<Vec<String>> {
        let mut cells = vec![case.product.to_string()];
        if self.several_budgets {
            cells.push(case.threads.to_string());
        }
        for ours in &case.ours {
            let gflops = case.gflops(&ours.samples);
            cells.push(format!("{:.2}", 1e6 * ours.samples.median()));
            cells.push(format!("{gflops:.1}"));
            cells.push(percent(gflops / ours.peak_gflops()));
        }
        let ratio = |seconds: Option<f64>| {
            seconds.map_or("-".to_string(), |seconds| format!("{:.2}", seconds / case.best().samples.median()))
        };
        if self.with_rival {
            cells.push(ratio(case.rival.as_ref().map(Samples::median)));
        }
        cells.extend(self.peers.iter().map(|peer| ratio(peer.seconds(&case.product, T::NAME, case.threads))));
        cells.push(noise_cell(case.noise()));
        vec![cells]
    }

    fn lines(&self, case: &Case) -> Vec<Value> {
        lines::<T>(case)
    }

    fn legend(&self, cases: &[Case]) -> Vec<String> {
        let names: Vec<&str> =
            self.with_rival.then_some(RIVAL).into_iter().chain(self.peers.iter().map(|p| p.name.as_str())).collect();
        let mut lines = vec![format!(
            "us: medians. Of peak: of a loop of multiply-adds as long as the samples and in turns with them. Noise: its spread; \
             !: above {}.",
            percent(NOISY)
        )];
        if !names.is_empty() {
            lines.push(format!(
                "{}: their time over ours on {}; above 1 ours is faster.",
                names.join(", "),
                self.isas[0]
            ));
        }
        lines.extend(peers::unpaired(self.peers, cases.iter().map(|case| (&case.product, case.threads)), T::NAME));
        let budgets = budgets_of(cases.iter().map(|case| case.threads));
        lines.extend(budgets.into_iter().map(|threads| peaks(cases, self.isas, threads)));
        lines
    }

    fn figure(&self, cases: &[Case], note: &str) -> Figure {
        figure::<T>(cases, self.isas, self.peers, note)
    }
}

/// GFLOP/s by shape: a row of panels for each form of product, a column for each number of threads.
fn figure<T: Rival>(cases: &[Case], isas: &[Isa], peers: &[Peer<Product>], note: &str) -> Figure {
    let budgets = budgets_of(cases.iter().map(|case| case.threads));
    let mut panels = Vec::new();
    for (form, title) in
        [(Form::Plain, "A B"), (Form::TransposedA, "A stored transposed"), (Form::TransposedB, "B stored transposed")]
    {
        for &threads in &budgets {
            let shown: Vec<&Case> =
                cases.iter().filter(|case| case.product.form == form && case.threads == threads).collect();
            if shown.is_empty() {
                continue;
            }
            let mut rates: Vec<(String, Vec<f64>)> = Vec::new();
            for (i, isa) in isas.iter().enumerate() {
                rates.push((isa.to_string(), shown.iter().map(|case| case.gflops(&case.ours[i].samples)).collect()));
            }
            let rate = |case: &&Case| case.rival.as_ref().map_or(f64::NAN, |rival| case.gflops(rival));
            rates.push((RIVAL.to_string(), shown.iter().map(rate).collect()));
            for peer in peers {
                let rate = |case: &&Case| {
                    let seconds = peer.seconds(&case.product, T::NAME, threads);
                    seconds.map_or(f64::NAN, |seconds| case.product.flops() / seconds * 1e-9)
                };
                rates.push((peer.name.clone(), shown.iter().map(rate).collect()));
            }
            rates.retain(|(_, rates)| rates.iter().any(|rate| rate.is_finite()));
            panels.push(figures::Rates {
                title: format!("{title}, {}", count_of_threads(threads)),
                label: "m x k x n",
                shapes: shown.iter().map(|c| format!("{}x{}x{}", c.product.m, c.product.k, c.product.n)).collect(),
                rates,
                peak: (format!("{} peak", isas[0]), shown.iter().map(|case| case.best().peak_gflops()).collect()),
            });
        }
    }
    figures::rates(&format!("Matrix products, {}", T::NAME), note, budgets.len().min(3), panels)
}
