//! `evenkeel gradcheck`: every layer, loss and fused path over random shapes and options.

mod function;
mod losses;
mod networks;
mod norms;
mod products;
mod subjects;

pub(crate) use subjects::Subject;

use crate::args::{Format, Gradcheck};
use crate::failure::Failure;
use crate::term::{Column, Out, Progress, Rows, Term};
use clap::ValueEnum;
use evenkeel::Rng;
use evenkeel::gradcheck::{self, Basis, GradCheck, Report};
use evenkeel::simd::{ISA_VARIABLE, Isa};
use serde_json::{Value, json};
use std::io::Write;
use subjects::Case;

pub(crate) fn run(options: &Gradcheck) -> Result<(), Failure> {
    let mut subjects: Vec<Subject> = Vec::new();
    for &subject in if options.layers.is_empty() { Subject::value_variants() } else { &options.layers } {
        if !subjects.contains(&subject) {
            subjects.push(subject);
        }
    }
    let term = Term::detect(options.quiet || options.format == Format::Json);
    let progress = term.progress((subjects.len() as u64).saturating_mul(options.cases));
    let is_human = options.format == Format::Human;
    let mut rows = match is_human {
        true => Some(progress.aside(|| Rows::begin(term, Out, &columns())).map_err(Failure::Output)?),
        false => None,
    };
    let mut tallies = Vec::new();
    for subject in subjects {
        let tally = tally(subject, options, &progress)?;
        progress
            .aside(|| match &mut rows {
                Some(rows) => rows.row(&tally.row()),
                None => writeln!(Out, "{}", tally.json(options)),
            })
            .map_err(Failure::Output)?;
        tallies.push(tally);
    }
    drop(progress);
    if is_human {
        summary(&tallies, options).map_err(Failure::Output)?;
    }
    let failed: u64 = tallies.iter().map(|tally| tally.failures).sum();
    if failed == 0 {
        return Ok(());
    }
    let commands =
        tallies.iter().filter_map(|tally| Some(tally.first_failure.as_ref()?.command(tally.subject, options)));
    Err(Failure::Check { failed, commands: commands.collect() })
}

/// The worst that was seen of one kind of check.
struct Worst {
    /// As a multiple of what is allowed.
    excess: f64,
    what: String,
    seed: u64,
    report: Report,
}

/// A case that did not pass.
struct Failed {
    what: String,
    seed: u64,
    text: String,
}

impl Failed {
    /// What to type to see it again.
    fn command(&self, subject: Subject, options: &Gradcheck) -> String {
        let mut command = match std::env::var(ISA_VARIABLE) {
            Ok(isa) if !isa.is_empty() => format!("{ISA_VARIABLE}={isa} "),
            _ => String::new(),
        };
        command += &format!("evenkeel gradcheck {} --cases 1 --seed {}", subject.name(), self.seed);
        for (option, value) in [("--rtol", options.rtol), ("--atol", options.atol)] {
            if let Some(value) = value {
                command += &format!(" {option} {}", short(value));
            }
        }
        command
    }
}

/// All cases of a subject.
struct Tally {
    subject: Subject,
    cases: u64,
    checked: usize,
    skipped: usize,
    failures: u64,
    differences: Option<Worst>,
    twin: Option<Worst>,
    first_failure: Option<Failed>,
}

fn tally(subject: Subject, options: &Gradcheck, progress: &Progress) -> Result<Tally, Failure> {
    let mut tally = Tally {
        subject,
        cases: options.cases,
        checked: 0,
        skipped: 0,
        failures: 0,
        differences: None,
        twin: None,
        first_failure: None,
    };
    progress.name(subject.name());
    // The first case has the seed itself, so that one alone can be repeated; the others have theirs drawn from it, of 53 bits: what reads
    // JSON's numbers as f64 gets them whole.
    let mut drawn = Rng::new(options.seed, "gradcheck cases");
    for case in 0..options.cases {
        let seed = if case == 0 { options.seed } else { drawn.next_u64() >> 11 };
        tally.add(seed, subject.check(seed, options.check(seed)), options)?;
        progress.advance(1);
    }
    Ok(tally)
}

impl Tally {
    fn add(&mut self, seed: u64, Case { what, differences, twin }: Case, options: &Gradcheck) -> Result<(), Failure> {
        let mut has_failed = false;
        for (checked, is_twin) in std::iter::once((differences, false)).chain(twin.map(|twin| (twin, true))) {
            let report = match checked {
                Ok(report) => report,
                Err(gradcheck::Failure::Refused(error)) => {
                    let failed = Failed { what, seed, text: String::new() };
                    let doing = format!("{}, repeated by {}", failed.what, failed.command(self.subject, options));
                    return Err(Failure::while_doing(doing)(error));
                }
                Err(gradcheck::Failure::Gradient(report)) => {
                    has_failed = true;
                    let text = report.to_string();
                    self.first_failure.get_or_insert(Failed { what: what.clone(), seed, text });
                    *report
                }
            };
            if !is_twin {
                self.checked += report.checked();
                self.skipped += report.skipped();
            }
            let excess = report.worst().map_or(0.0, |worst| worst.excess());
            let worst = if is_twin { &mut self.twin } else { &mut self.differences };
            if worst.as_ref().is_none_or(|worst| excess > worst.excess) {
                *worst = Some(Worst { excess, what: what.clone(), seed, report });
            }
        }
        self.failures += u64::from(has_failed);
        Ok(())
    }

    fn row(&self) -> Vec<String> {
        let share = |worst: &Option<Worst>| match worst {
            Some(worst) => percent(worst.excess),
            None => "-".to_string(),
        };
        let place = |worst: &Worst| {
            let tensor = worst.report.worst().map_or(String::new(), |t| format!("{}{:?}", t.name, t.worst_index()));
            format!("{tensor} of {}, seed {}", worst.what, worst.seed)
        };
        vec![
            self.subject.name(),
            self.cases.to_string(),
            self.checked.to_string(),
            self.skipped.to_string(),
            share(&self.differences),
            share(&self.twin),
            if self.failures == 0 { "ok".to_string() } else { format!("{} FAILED", self.failures) },
            self.differences.as_ref().map_or(String::new(), place),
        ]
    }

    fn json(&self, options: &Gradcheck) -> Value {
        let worst = |worst: &Option<Worst>| {
            worst.as_ref().map(|worst| {
                let report: Value = serde_json::from_str(&worst.report.to_json()).unwrap_or_default();
                json!({ "share_of_allowed": worst.excess, "case": worst.what, "seed": worst.seed, "report": report })
            })
        };
        let failure = self.first_failure.as_ref();
        json!({
            "layer": self.subject.name(),
            "isa": Isa::current().name(),
            "passed": self.failures == 0,
            "cases": self.cases,
            "failed": self.failures,
            "checked": self.checked,
            "skipped": self.skipped,
            "worst": worst(&self.differences),
            "worst_f32": worst(&self.twin),
            "first_failure": failure.map(|failed| json!({ "case": failed.what, "command": failed.command(self.subject, options) })),
        })
    }
}

/// 0 as such, and else with an exponent.
fn short(value: f64) -> String {
    if value == 0.0 { "0".to_string() } else { format!("{value:e}") }
}

fn percent(share: f64) -> String {
    match share {
        share if !share.is_finite() => "infinite".to_string(),
        share if share >= 100.0 => format!("{share:.1e} x"),
        share => format!("{:.1} %", 100.0 * share),
    }
}

fn columns() -> [Column<'static>; 8] {
    [
        Column::words("layer", 16),
        Column::numbers("cases", 5),
        Column::numbers("checked", 8),
        Column::numbers("skipped", 7),
        Column::numbers("worst f64", 9),
        Column::numbers("worst f32", 9),
        Column::words("verdict", 9),
        Column::words("worst f64 is", 0),
    ]
}

/// What the columns mean, what was found in all, and the first failure of each subject.
fn summary(tallies: &[Tally], options: &Gradcheck) -> std::io::Result<()> {
    let rule = tallies.iter().filter_map(|tally| tally.differences.as_ref()).map(|worst| worst.report.rule()).next();
    let (checked, skipped): (usize, usize) =
        tallies.iter().fold((0, 0), |(checked, skipped), tally| (checked + tally.checked, skipped + tally.skipped));
    let share = if skipped == 0 { 0.0 } else { 100.0 * skipped as f64 / (checked + skipped) as f64 };
    let cases: u64 = tallies.iter().map(|tally| tally.cases).sum();
    writeln!(Out)?;
    writeln!(
        Out,
        "{cases} cases on {}, {checked} entries checked, {skipped} at a kink skipped ({share:.2} %).",
        Isa::current()
    )?;
    if let Some(rule) = rule {
        writeln!(Out, "worst f64: the largest error against differences, of what is allowed: {rule}.")?;
    }
    writeln!(
        Out,
        "worst f32: the largest error of f32 kernels against their f64 twins, of the bound that roundings have."
    )?;
    for tally in tallies {
        if let Some(failed) = &tally.first_failure {
            let name = tally.subject.name();
            writeln!(
                Out,
                "\n{name}: {} of {} cases failed, the first of them {}:",
                tally.failures, tally.cases, failed.what
            )?;
            writeln!(Out, "{}", failed.text)?;
            writeln!(Out, "again: {}", failed.command(tally.subject, options))?;
        }
    }
    Ok(())
}

impl Gradcheck {
    fn check(&self, seed: u64) -> GradCheck {
        let check = GradCheck::new(seed);
        if self.rtol.is_none() && self.atol.is_none() {
            return check;
        }
        let (rtol, atol) = Basis::F64.tolerances();
        check.tolerance(self.rtol.unwrap_or(rtol), self.atol.unwrap_or(atol))
    }
}
