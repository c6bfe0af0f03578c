//! `evenkeel bench`: what this machine can do, and how much of it the kernels do.
//!
//! Everything that is compared is measured in turns (`sample`), a loop of multiply-adds of fixed length among it: the loop is both the
//! peak that a kernel is held to and the witness of how quiet the machine was.

mod batch;
mod batchnorm;
mod course;
mod gemm;
mod memory;
mod network;
mod norm;
mod peers;
mod product;
mod rival;
mod roof;
mod sample;
mod step;
mod torch;

use crate::args::{Bench, Format, Measure};
use crate::failure::Failure;
use crate::files;
use crate::term::Out;
pub(crate) use batch::{Layout, Pass, Typed};
use evenkeel::machine::{self, probe};
use evenkeel::simd::{Element, ISA_VARIABLE, Isa, with_isa};
use evenkeel::tensor::Tensor;
use evenkeel::{Error, Rng, Threads};
pub(crate) use network::Network;
pub(crate) use product::Product;
use sample::Samples;
use serde_json::{Value, json};
use std::fmt::Display;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

pub(crate) fn run(bench: &Bench) -> Result<(), Failure> {
    match bench {
        Bench::Roof(options) => roof::run(options),
        Bench::Gemm(options) => gemm::run(options),
        Bench::Batchnorm(options) => batchnorm::run(options),
        Bench::Step(options) => step::run(options),
    }
}

/// Where results go: a table on standard output or JSON lines in its place, and files.
struct Results {
    /// Standard output is for people.
    human: bool,
    /// What programs get, so far.
    lines: Vec<Value>,
    json: Option<PathBuf>,
    csv: Option<PathBuf>,
}

impl Results {
    /// Refuses a file that cannot be written, a picture among them, or that is needed for something else, as `peers` to read from,
    /// before anything is measured.
    fn begin(options: &Measure, plot: Option<&Path>, peers: Option<&Path>) -> Result<Results, Failure> {
        let (json, csv) = (options.json.as_deref(), options.csv.as_deref());
        let file = json.filter(|path| *path != Path::new("-"));
        let refused = |option: &str, path: &Path, expected: String| {
            let (what, value) = (option.to_string(), path.display().to_string());
            Err(Error::Invalid { what, value, expected }.into())
        };
        let wanted = [("--peers", peers), ("--json", file), ("--csv", csv), ("--plot", plot)];
        for (i, &(option, path)) in wanted.iter().enumerate().skip(1) {
            let Some(path) = path else { continue };
            if path == Path::new("-") {
                return refused(option, path, "a file; standard output takes JSON lines, with --json -".to_string());
            }
            if let Some((other, _)) =
                wanted[..i].iter().find(|(_, taken)| taken.is_some_and(|t| files::are_one(t, path)))
            {
                return refused(option, path, format!("another file than {other}'s"));
            }
            files::check(path).map_err(Failure::write_named_by(option, path))?;
        }
        let human = options.format == Format::Human && (json.is_none() || file.is_some());
        Ok(Results { human, lines: Vec::new(), json: file.map(Path::to_path_buf), csv: csv.map(Path::to_path_buf) })
    }

    /// A result for programs.
    fn json(&mut self, value: &Value) -> Result<(), Failure> {
        self.lines.push(value.clone());
        if self.human { Ok(()) } else { writeln!(Out, "{value}").map_err(Failure::Output) }
    }

    /// A line for people.
    fn say(&self, text: &str) -> Result<(), Failure> {
        if self.human { writeln!(Out, "{text}").map_err(Failure::Output) } else { Ok(()) }
    }

    /// A warning: below what people read, or beside what programs read.
    fn warn(&self, text: &str) -> Result<(), Failure> {
        if !self.human {
            warn(text);
        }
        self.say(&format!("Warning: {text}"))
    }

    fn end(self) -> Result<(), Failure> {
        let lines: String = self.lines.iter().map(|line| format!("{line}\n")).collect();
        for (option, path, text) in [("--json", self.json, lines), ("--csv", self.csv, csv(&self.lines))] {
            let Some(path) = path else { continue };
            files::replace(&path, text.as_bytes()).map_err(Failure::write_named_by(option, &path))?;
        }
        Ok(())
    }
}

/// A row for each line and a column for each key, those first that say what a line is of.
fn csv(lines: &[Value]) -> String {
    let mut keys = vec!["case", "shape", "layout", "type", "threads", "isa", "peer"];
    for key in lines.iter().filter_map(Value::as_object).flat_map(|keys| keys.keys()) {
        if !keys.contains(&key.as_str()) {
            keys.push(key);
        }
    }
    keys.retain(|&key| lines.iter().any(|line| !line[key].is_null()));
    let cell = |value: &Value| match value {
        Value::Null => String::new(),
        Value::String(text) if text.contains([',', '"']) => format!("\"{}\"", text.replace('"', "\"\"")),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let row = |line: &Value| keys.iter().map(|&key| cell(&line[key])).collect::<Vec<_>>().join(",");
    [keys.join(",")].into_iter().chain(lines.iter().map(row)).map(|row| row + "\n").collect()
}

/// One budget for each number of threads, each number once; a warning where they are more than can run at once.
fn budgets(counts: &[usize]) -> Result<Vec<Threads>, Failure> {
    let mut budgets: Vec<Threads> = Vec::new();
    for &count in counts {
        if !budgets.iter().any(|threads| threads.count() == count) {
            budgets.push(Threads::new(count)?);
        }
    }
    let (most, here) = (counts.iter().max().copied().unwrap_or(1), machine::available_threads());
    if most > here {
        warn(&format!(
            "{} on a machine that runs {here} at once: they take turns, and the figures are not to be trusted",
            count_of_threads(most)
        ));
    }
    Ok(budgets)
}

/// What is asked for, or all that have vectors of their own up to the current one; the best first.
fn isas(names: &[String]) -> Result<Vec<Isa>, Failure> {
    let mut isas = names.iter().map(|name| Isa::named(name)).collect::<Result<Vec<Isa>, Error>>()?;
    // The current one is the best that this machine has, unless the variable caps it.
    if let Some(isa) = isas.iter().find(|&&isa| isa > Isa::current()) {
        let expected = format!("at most {}, because {ISA_VARIABLE} allows no more", Isa::current());
        return Err(Error::Invalid { what: "--isa".to_string(), value: isa.to_string(), expected }.into());
    }
    if isas.is_empty() {
        let own = |isa: &Isa| *isa <= Isa::current() && !["scalar", "portable"].contains(&isa.name());
        isas = Isa::available().into_iter().filter(own).collect();
    }
    if isas.is_empty() {
        isas.push(Isa::current());
    }
    isas.sort_unstable_by(|a, b| b.cmp(a));
    isas.dedup();
    Ok(isas)
}

/// As many of the threads as run at once: those that take turns on a processor add nothing to what it can do, though each of them
/// does it by its own clock.
fn at_once(threads: &Threads) -> Result<Threads, Failure> {
    let here = machine::available_threads();
    Ok(if threads.count() > here { Threads::new(here)? } else { threads.clone() })
}

/// A warning on standard error.
fn warn(text: &str) {
    // Nothing can be done about a standard error that is gone.
    let _ = writeln!(std::io::stderr(), "evenkeel: warning: {text}");
}

/// A size as typed; `wanted` says what is expected, and `idle` what cannot be done with a size of 0.
fn size(text: &str, wanted: &str, idle: &str) -> Result<usize, String> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse::<usize>() {
        _ if !is_number => Err(format!("{text:?} is not a size; expected {wanted}")),
        Ok(0) => Err(format!("a size is 0: there is nothing to {idle}")),
        Ok(size) => Ok(size),
        Err(_) => Err(format!("{text} is more than can be addressed")),
    }
}

/// Refuses a shape whose memory, told by `whose`, this machine is not made for.
fn check_memory(shape: impl Display, whose: &str, needed: f64) -> Result<(), Failure> {
    let gib = |bytes: f64| bytes / (1u64 << 30) as f64;
    // Where the system does not tell, what few machines lack.
    let free = machine::available_memory().unwrap_or(4 << 30) as f64;
    if needed <= free / 2.0 {
        return Ok(());
    }
    let expected = format!(
        "{whose} take at most {:.1} GiB, half of the memory that is free; these take {:.1} GiB",
        gib(free / 2.0),
        gib(needed)
    );
    Err(Error::Invalid { what: "--shape".to_string(), value: shape.to_string(), expected }.into())
}

/// Normal numbers, repeated after a while: which they are changes no time.
fn noise<T: Element>(len: usize) -> evenkeel::Result<Tensor<T>> {
    let mut rng = Rng::new(1, "bench");
    let drawn: Vec<T> = (0..4093).map(|_| T::from_f64(rng.normal())).collect();
    let mut tensor = Tensor::zeros([len])?;
    for (x, &drawn) in tensor.data_mut().iter_mut().zip(drawn.iter().cycle()) {
        *x = drawn;
    }
    Ok(tensor)
}

/// Rounds of multiply-adds in a unit of the loop: a few microseconds on the widest vectors.
const ROUNDS: usize = 1000;

/// `units` of the loop of multiply-adds on every thread at once: the seconds of the slowest.
fn multiply_adds<T: Element>(isa: Isa, threads: &Threads, units: usize) -> f64 {
    slowest(threads, |_| with_isa(isa, || timed(|| probe::fma::<T>(units * ROUNDS))))
}

/// Operations in a unit of the loop, over all threads.
fn flops_of_unit<T: Element>(isa: Isa, threads: &Threads) -> f64 {
    (with_isa(isa, || probe::fma::<T>(ROUNDS)) * threads.count()) as f64
}

/// Runs `f` on every thread at once, when they have settled, and returns the most that it returned.
fn slowest(threads: &Threads, f: impl Fn(usize) -> f64 + Sync) -> f64 {
    let seconds = threads.together(|thread| {
        settle(threads, std::hint::spin_loop);
        f(thread)
    });
    seconds.into_iter().fold(0.0, f64::max)
}

/// How long several threads need until each has a processor of its own. A system may wake a thread on the processor of the one that
/// calls it, though others are idle, and move it when it next compares their loads: that took up to 20 ms.
const SETTLING: Duration = Duration::from_millis(20);

/// Calls `f` before it is timed: until several threads have settled, and once in any case, so that what fits in a cache is in it.
fn settle(threads: &Threads, mut f: impl FnMut()) {
    let start = Instant::now();
    f();
    while threads.count() > 1 && start.elapsed() < SETTLING {
        f();
    }
}

/// Seconds that `f` takes.
fn timed<R>(f: impl FnOnce() -> R) -> f64 {
    let start = Instant::now();
    f();
    start.elapsed().as_secs_f64()
}

fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

/// `1 thread` or `4 threads`.
fn count_of_threads(count: usize) -> String {
    if count == 1 { "1 thread".to_string() } else { format!("{count} threads") }
}

/// What every line of samples has.
fn line(case: &str, shape: &str, threads: usize, samples: &Samples) -> Value {
    json!({
        "case": case,
        "shape": shape,
        "threads": threads,
        "median_us": rounded(1e6 * samples.median()),
        "min_us": rounded(1e6 * samples.min()),
        "max_us": rounded(1e6 * samples.max()),
        "reps": samples.len(),
        "spread": rounded(samples.spread()),
    })
}

/// Rounded to four digits after the point: what lies beyond is noise, and lines stay short.
fn rounded(x: f64) -> f64 {
    (x * 1e4).round() / 1e4
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_any_keys_make_one_table() {
        let lines =
            [json!({ "case": "a", "peer": "x, \"y\"", "us": 1.5 }), json!({ "case": "b", "gbps": 2, "peer": null })];
        assert_eq!(csv(&lines), "case,peer,us,gbps\na,\"x, \"\"y\"\"\",1.5,\nb,,,2\n");
        assert_eq!(csv(&[]), "\n");
    }
}
