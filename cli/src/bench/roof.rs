//! `evenkeel bench roof`: the peak of multiply-adds and the bandwidth of each level of memory.

use super::memory::{Buffers, Pass, l2};
use super::sample::{Effort, NOISY, Samples, repetitions, take_turns};
use super::{Results, budgets, count_of_threads, flops_of_unit, line, multiply_adds, percent, rounded};
use crate::args::Roof;
use crate::failure::Failure;
use crate::term::{self, Column, Progress, Term};
use evenkeel::Threads;
use evenkeel::machine::{self, Cache};
use evenkeel::simd::{Element, Isa};
use serde_json::{Value, json};

/// Seconds of a sample, or one pass where that takes longer.
const SAMPLE: f64 = 1e-3;

/// For each number of threads.
const EFFORT: Effort = Effort { seconds: 5.0, rounds: 11 };

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;
/// Caches where the system does not tell: as small as it comes for the first, as large as it comes for the last.
const L1: usize = 32 * KIB;
const LAST: usize = 64 * MIB;
/// More than this is not touched, however large the last cache is.
const MOST: usize = 2048 * MIB;

pub(crate) fn run(options: &Roof) -> Result<(), Failure> {
    let all = [1, machine::available_threads()];
    let budgets = budgets(if options.threads.is_empty() { &all } else { &options.threads })?;
    let mut results = Results::begin(&options.measure, None, None)?;
    let term = Term::detect(options.measure.quiet);
    let effort = if options.measure.once { Effort { seconds: 0.0, rounds: 1 } } else { EFFORT };
    let progress = term.progress(budgets.len() as u64);
    let mut roofs = Vec::new();
    for threads in &budgets {
        progress.name(count_of_threads(threads.count()));
        let roof = measure(threads, effort, &progress)?;
        progress.aside(|| roof.lines().iter().try_for_each(|line| results.json(line)))?;
        roofs.push(roof);
        progress.advance(1);
    }
    drop(progress);
    results.say(&machine::processor().unwrap_or("unknown processor".to_string()))?;
    results.say(&format!("\n{}\n\n{}\n", peaks(&roofs), bandwidths(&roofs)))?;
    results.say("Medians; spread: (p90 - p10) / median. A size is what each thread goes over.")?;
    for roof in &roofs {
        results.say(&format!(
            "Noise on {}: {}, the spread of the {} loop of multiply-adds in f32.",
            count_of_threads(roof.threads),
            percent(roof.noise()),
            Isa::current()
        ))?;
    }
    if roofs.iter().any(|roof| roof.noise() > NOISY) {
        results.warn(&format!(
            "noise above {}: something else was using the machine. Do not trust these figures.",
            percent(NOISY)
        ))?;
    }
    results.end()
}

/// A level of memory, and how much of it each thread goes over.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Level {
    name: &'static str,
    bytes: usize,
}

/// Half of L1 and half of L2, which each thread has for itself. For L3, which all have together, as many times L2 as the thread's
/// share of L3 is times that: far from both, whoever else uses it; nothing where that share is not twice L2. For memory, each
/// thread's share of four times L3, which no cache holds, within a quarter of the memory that is free.
fn levels(caches: &[Cache], threads: usize, free: Option<usize>) -> Vec<Level> {
    let of = |level: u8| caches.iter().find(|cache| cache.level == level).map(|cache| cache.bytes);
    let (l1, l2, l3) = (of(1).unwrap_or(L1), l2(caches), of(3));
    let mut levels = vec![Level { name: "L1", bytes: l1 / 2 }, Level { name: "L2", bytes: l2 / 2 }];
    let share = l3.map_or(0, |l3| l3 / threads);
    if share >= 2 * l2 {
        levels.push(Level { name: "L3", bytes: (l2.isqrt() * share.isqrt()).next_multiple_of(4 * KIB) });
    }
    let most = free.map_or(MOST, |free| MOST.min(free / 4));
    levels.push(Level { name: "memory", bytes: (4 * l3.unwrap_or(LAST)).min(most) / threads });
    levels
}

const PASSES: [Pass; 3] = [Pass::Read, Pass::Copy, Pass::Triad];

/// What takes turns.
#[derive(Clone, Copy)]
enum Turn {
    Single(Isa),
    Double(Isa),
    /// The place of the level among all.
    Over(usize, Pass),
}

/// What one number of threads reached.
struct Reached {
    threads: usize,
    peaks: Vec<Peak>,
    bandwidths: Vec<Bandwidth>,
}

struct Peak {
    isa: Isa,
    element: &'static str,
    samples: Samples,
    /// Operations that the times are for.
    flops: f64,
}

struct Bandwidth {
    level: Level,
    pass: Pass,
    samples: Samples,
    /// Bytes that the times are for.
    bytes: f64,
}

fn measure(threads: &Threads, effort: Effort, progress: &Progress) -> Result<Reached, Failure> {
    let levels = levels(&machine::caches(), threads.count(), machine::available_memory());
    let buffers = Buffers::new(threads, &levels.iter().map(|level| level.bytes).collect::<Vec<_>>())?;
    let run = |turn: Turn, reps: usize| match turn {
        Turn::Single(isa) => multiply_adds::<f32>(isa, threads, reps),
        Turn::Double(isa) => multiply_adds::<f64>(isa, threads, reps),
        Turn::Over(level, pass) => buffers.over(level, pass, reps),
    };
    let isas = Isa::available().into_iter().filter(|&isa| isa <= Isa::current());
    let loops = isas.flat_map(|isa| [Turn::Single(isa), Turn::Double(isa)]);
    let passes = (0..levels.len()).flat_map(|level| PASSES.map(|pass| Turn::Over(level, pass)));
    let turns: Vec<(Turn, usize)> =
        loops.chain(passes).map(|turn| (turn, repetitions(SAMPLE, |reps| run(turn, reps)))).collect();
    let sample = |i: usize| {
        let (turn, reps) = turns[i];
        run(turn, reps) / reps as f64
    };
    let samples = take_turns(turns.len(), effort, sample, |share| progress.within(share));
    let mut reached = Reached { threads: threads.count(), peaks: Vec::new(), bandwidths: Vec::new() };
    for ((turn, _), samples) in turns.into_iter().zip(samples) {
        let mut peak = |isa, element, flops| reached.peaks.push(Peak { isa, element, samples: samples.clone(), flops });
        match turn {
            Turn::Single(isa) => peak(isa, f32::NAME, flops_of_unit::<f32>(isa, threads)),
            Turn::Double(isa) => peak(isa, f64::NAME, flops_of_unit::<f64>(isa, threads)),
            Turn::Over(level, pass) => {
                let bytes = buffers.bytes(level, pass);
                reached.bandwidths.push(Bandwidth { level: levels[level], pass, samples, bytes });
            }
        }
    }
    Ok(reached)
}

impl Peak {
    fn gflops(&self) -> f64 {
        self.flops / self.samples.median() * 1e-9
    }
}

impl Bandwidth {
    fn gbps(&self) -> f64 {
        self.bytes / self.samples.median() * 1e-9
    }
}

impl Reached {
    fn noise(&self) -> f64 {
        let own = |peak: &&Peak| peak.isa == Isa::current() && peak.element == f32::NAME;
        self.peaks.iter().find(own).map_or(f64::NAN, |peak| peak.samples.spread())
    }

    /// One line for each figure, and one that says whether to trust them.
    fn lines(&self) -> Vec<Value> {
        let peaks = self.peaks.iter().map(|peak| {
            let mut value = line("fma", &format!("{}_{}", peak.isa, peak.element), self.threads, &peak.samples);
            value["isa"] = json!(peak.isa.name());
            value["type"] = json!(peak.element);
            value["gflops"] = json!(rounded(peak.gflops()));
            value
        });
        let bandwidths = self.bandwidths.iter().map(|bandwidth| {
            let mut value = line(bandwidth.pass.name(), bandwidth.level.name, self.threads, &bandwidth.samples);
            value["isa"] = json!(Isa::current().name());
            value["bytes"] = json!(bandwidth.bytes);
            value["gbps"] = json!(rounded(bandwidth.gbps()));
            value
        });
        let noise = self.noise();
        let trust =
            json!({ "case": "noise", "threads": self.threads, "noise": rounded(noise), "trusted": noise <= NOISY });
        peaks.chain(bandwidths).chain([trust]).collect()
    }
}

/// A row for each number of threads and instruction set.
fn peaks(roofs: &[Reached]) -> String {
    let columns = [
        Column::words("multiply-adds", 0),
        Column::numbers("threads", 0),
        Column::numbers("f32 GFLOP/s", 0),
        Column::numbers("spread", 0),
        Column::numbers("f64 GFLOP/s", 0),
        Column::numbers("spread", 0),
    ];
    let mut rows = Vec::new();
    for roof in roofs {
        for pair in roof.peaks.chunks(2) {
            let mut row = vec![pair[0].isa.to_string(), roof.threads.to_string()];
            row.extend(pair.iter().flat_map(|peak| [format!("{:.1}", peak.gflops()), percent(peak.samples.spread())]));
            rows.push(row);
        }
    }
    term::table(&columns, &rows)
}

/// A row for each number of threads and level.
fn bandwidths(roofs: &[Reached]) -> String {
    let columns = [
        Column::words("bandwidth", 0),
        Column::numbers("threads", 0),
        Column::numbers("size", 0),
        Column::numbers("read GB/s", 0),
        Column::numbers("spread", 0),
        Column::numbers("copy GB/s", 0),
        Column::numbers("spread", 0),
        Column::numbers("triad GB/s", 0),
        Column::numbers("spread", 0),
    ];
    let mut rows = Vec::new();
    for roof in roofs {
        for passes in roof.bandwidths.chunks(PASSES.len()) {
            let level = passes[0].level;
            let mut row = vec![level.name.to_string(), roof.threads.to_string(), size(level.bytes)];
            row.extend(passes.iter().flat_map(|b| [format!("{:.1}", b.gbps()), percent(b.samples.spread())]));
            rows.push(row);
        }
    }
    term::table(&columns, &rows)
}

fn size(bytes: usize) -> String {
    if bytes >= 10 * MIB { format!("{} MiB", bytes / MIB) } else { format!("{} KiB", bytes / KIB) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache(level: u8, bytes: usize) -> Cache {
        Cache { level, bytes }
    }

    fn sizes(levels: &[Level]) -> Vec<(&str, usize)> {
        levels.iter().map(|level| (level.name, level.bytes)).collect()
    }

    #[test]
    fn each_level_holds_what_is_meant_for_it() {
        let caches = [cache(1, 32 * KIB), cache(2, MIB), cache(3, 64 * MIB)];
        let one = levels(&caches, 1, None);
        assert_eq!(sizes(&one), [("L1", 16 * KIB), ("L2", 512 * KIB), ("L3", 8 * MIB), ("memory", 256 * MIB)]);
        let four = levels(&caches, 4, None);
        assert_eq!(sizes(&four[2..]), [("L3", 4 * MIB), ("memory", 64 * MIB)]);
        // A share of L3 that is hardly more than L2 cannot be told from it.
        assert_eq!(levels(&caches, 64, None).len(), 3);
    }

    #[test]
    fn a_system_that_tells_nothing_has_fallbacks_and_memory_has_bounds() {
        let unknown = levels(&[], 2, None);
        assert_eq!(sizes(&unknown), [("L1", 16 * KIB), ("L2", 128 * KIB), ("memory", 128 * MIB)]);
        assert_eq!(levels(&[cache(3, 4096 * MIB)], 1, None).last().unwrap().bytes, MOST);
        assert_eq!(levels(&[], 1, Some(100 * MIB)).last().unwrap().bytes, 25 * MIB);
    }
}
