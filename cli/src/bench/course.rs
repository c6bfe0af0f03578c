//! The course of a bench of kernels: from its options to its last line, whichever kernel it times.

use super::sample::{Effort, NOISY};
use super::{Results, count_of_threads, percent};
use crate::args::Timing;
use crate::chart::{self, Figure, Picture};
use crate::failure::Failure;
use crate::files;
use crate::term::{Column, Out, Progress, Rows, Term};
use evenkeel::{Error, Threads, machine};
use serde_json::Value;
use std::fmt::Display;
use std::path::Path;

/// For each job and number of threads: a minute or two for all that is timed if nothing is asked for, on one thread.
const EFFORT: Effort = Effort { seconds: 1.0, rounds: 5 };

/// What a bench times, and how it is shown.
pub(super) trait Course {
    type Job: Display;
    /// A job, timed with one number of threads.
    type Case;

    fn time(
        &self,
        job: &Self::Job,
        threads: &Threads,
        effort: Effort,
        progress: &Progress,
    ) -> Result<Self::Case, Failure>;

    /// How much the loop of multiply-adds spread meanwhile.
    fn noise(&self, case: &Self::Case) -> f64;

    /// What all cases have in common.
    fn common(&self) -> String;

    fn headings(&self) -> Vec<String>;

    fn columns<'a>(&self, headings: &'a [String]) -> Vec<Column<'a>>;

    fn rows(&self, case: &Self::Case) -> Vec<Vec<String>>;

    /// For programs; the best instruction set first and without a peer's name.
    fn lines(&self, case: &Self::Case) -> Vec<Value>;

    /// What the columns mean.
    fn legend(&self, cases: &[Self::Case]) -> Vec<String>;

    fn figure(&self, cases: &[Self::Case], note: &str) -> Figure;
}

/// Times every job with every number of threads, and shows each case as soon as it is there.
pub(super) fn run<C: Course>(
    course: &C,
    jobs: &[C::Job],
    budgets: &[Threads],
    options: &Timing,
) -> Result<(), Failure> {
    let plot = options.plot.as_deref().map(|path| Ok::<_, Failure>((path, picture(path)?))).transpose()?;
    let mut results = Results::begin(&options.measure, options.plot.as_deref(), options.peers.as_deref())?;
    let term = Term::detect(options.measure.quiet);
    let effort = if options.measure.once { Effort { seconds: 0.0, rounds: 1 } } else { EFFORT };
    let progress = term.progress((jobs.len() * budgets.len()) as u64);
    let processor = machine::processor().unwrap_or("unknown processor".to_string());
    let headings = course.headings();
    let mut rows = None;
    if results.human {
        rows = Some(progress.aside(|| {
            let threads: Vec<String> = budgets.iter().map(|threads| count_of_threads(threads.count())).collect();
            results.say(&format!("{processor}, {}, {}", course.common(), threads.join(", ")))?;
            results.say("")?;
            Rows::begin(term, Out, &course.columns(&headings)).map_err(Failure::Output)
        })?);
    }
    let (mut cases, mut noisy, mut shown) = (Vec::new(), 0, 0);
    for threads in budgets {
        for job in jobs {
            progress.name(format!("{job}, {}", count_of_threads(threads.count())));
            let case = course.time(job, threads, effort, &progress)?;
            let cells = course.rows(&case);
            shown += cells.len();
            noisy += if course.noise(&case) > NOISY { cells.len() } else { 0 };
            progress.aside(|| {
                course.lines(&case).iter().try_for_each(|line| results.json(line))?;
                let Some(rows) = &mut rows else { return Ok(()) };
                cells.iter().try_for_each(|row| rows.row(row)).map_err(Failure::Output)
            })?;
            cases.push(case);
            progress.advance(1);
        }
    }
    drop(progress);
    results.say("")?;
    course.legend(&cases).iter().try_for_each(|line| results.say(line))?;
    if noisy > 0 {
        let of = if shown == 1 { "1 row".to_string() } else { format!("{shown} rows") };
        results.warn(&format!(
            "noise above {}: something else was using the machine. Not to be trusted: {noisy} of {of}.",
            percent(NOISY)
        ))?;
    }
    if let Some((path, picture)) = plot {
        let bytes = chart::draw(&course.figure(&cases, &processor), picture)?;
        files::replace(path, &bytes).map_err(Failure::write_named_by("--plot", path))?;
    }
    results.end()
}

/// Each number of threads once; cases come one number after the other.
pub(super) fn budgets_of(threads: impl Iterator<Item = usize>) -> Vec<usize> {
    let mut budgets: Vec<usize> = threads.collect();
    budgets.dedup();
    budgets
}

/// The cell of a row's noise.
pub(super) fn noise_cell(noise: f64) -> String {
    format!("{} {}", percent(noise), if noise > NOISY { '!' } else { ' ' })
}

/// The kind of picture that a file's name asks for.
fn picture(path: &Path) -> Result<Picture, Failure> {
    let extension = path.extension().unwrap_or_default().to_ascii_lowercase();
    match extension.to_str() {
        Some("svg") => Ok(Picture::Svg),
        Some("png") => Ok(Picture::Png),
        _ => {
            let (what, value) = ("--plot".to_string(), path.display().to_string());
            Err(Error::Invalid { what, value, expected: "a file that ends in .svg or .png".to_string() }.into())
        }
    }
}
