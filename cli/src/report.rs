//! What `compare` says on standard output: a row per network and epoch as it ends, and a verdict.

use crate::args::Format;
use crate::failure::Failure;
use crate::record::{Row, Run};
use crate::term::{self, Column, Out, Rows, Term};
use serde_json::{Value, json};
use std::io::Write;
use std::path::Path;

/// Validation accuracies whose first epoch the verdict names.
const MILESTONES: [f64; 5] = [0.80, 0.85, 0.90, 0.95, 0.97];

/// Writes as a run goes on.
pub(crate) enum Report {
    /// A running table.
    Human(Rows<'static, Out>),
    /// One object a line.
    Json,
}

impl Report {
    /// Says what is compared.
    pub(crate) fn begin(format: Format, term: Term, note: &str) -> Result<Report, Failure> {
        if format == Format::Json {
            return Ok(Report::Json);
        }
        line(note)?;
        line("")?;
        let columns = [
            Column::numbers("epoch", 5),
            Column::words("network", 14),
            Column::numbers("train loss", 10),
            Column::numbers("accuracy", 8),
            Column::numbers("validation loss", 15),
            Column::numbers("accuracy", 8),
            Column::numbers("seconds", 7),
        ];
        Ok(Report::Human(Rows::begin(term, Out, &columns).map_err(Failure::Output)?))
    }

    /// The newest epoch of each run.
    pub(crate) fn epoch(&mut self, epoch: usize, runs: &[Run]) -> Result<(), Failure> {
        for (i, run) in runs.iter().enumerate() {
            let Some(row) = run.rows.last() else { continue };
            match self {
                Report::Json => line(&json_row(epoch, run.name, row).to_string())?,
                Report::Human(rows) => {
                    let cells = [
                        if i == 0 { epoch.to_string() } else { String::new() },
                        run.name.to_string(),
                        format!("{:.4}", row.train.loss),
                        percent(row.train.accuracy),
                        format!("{:.4}", row.validation.loss),
                        percent(row.validation.accuracy),
                        format!("{:.2}", row.seconds),
                    ];
                    rows.row(&cells).map_err(Failure::Output)?;
                }
            }
        }
        Ok(())
    }

    /// Who won, by how much, and where the pictures are.
    pub(crate) fn verdict(self, runs: &[Run], folder: &Path) -> Result<(), Failure> {
        let verdicts: Vec<Verdict> = runs.iter().map(Verdict::of).collect();
        if let Report::Json = self {
            for (run, v) in runs.iter().zip(&verdicts) {
                line(&v.json(run.name).to_string())?;
            }
            return line(&json!({ "folder": folder.display().to_string() }).to_string());
        }
        line("")?;
        let columns: Vec<Column<'_>> = std::iter::once(Column::words("verdict", 0))
            .chain(runs.iter().map(|run| Column::numbers(run.name, 0)))
            .collect();
        let mut table = Vec::new();
        let mut add = |label: String, cell: &dyn Fn(&Verdict) -> String| {
            table.push(std::iter::once(label).chain(verdicts.iter().map(cell)).collect());
        };
        add("best validation loss (epoch)".to_string(), &|v| format!("{:.4} ({})", v.best_loss.0, v.best_loss.1));
        add("final validation loss".to_string(), &|v| format!("{:.4}", v.last.validation.loss));
        add("best validation accuracy (epoch)".to_string(), &|v| {
            format!("{} ({})", percent(v.best_accuracy.0), v.best_accuracy.1)
        });
        add("final validation accuracy".to_string(), &|v| percent(v.last.validation.accuracy));
        add("final training loss".to_string(), &|v| format!("{:.4}", v.last.train.loss));
        add("final training accuracy".to_string(), &|v| percent(v.last.train.accuracy));
        add("mean batch loss of the last epoch".to_string(), &|v| format!("{:.4}", v.last.step_loss));
        for (i, milestone) in MILESTONES.iter().enumerate() {
            // A milestone that neither reached says nothing.
            if verdicts.iter().any(|v| v.reached[i].is_some()) {
                add(format!("first epoch at {} accuracy", percent(*milestone)), &|v| {
                    v.reached[i].map_or("never".to_string(), |epoch| epoch.to_string())
                });
            }
        }
        add("seconds of training per epoch".to_string(), &|v| format!("{:.2}", v.seconds));
        line(&term::table(&columns, &table))?;
        if let [with, without] = runs {
            let lower =
                with.rows.iter().zip(&without.rows).filter(|(a, b)| a.validation.loss < b.validation.loss).count();
            let epochs =
                if with.rows.len() == 1 { "1 epoch".to_string() } else { format!("{} epochs", with.rows.len()) };
            line(&format!("\nThe validation loss {} was the lower one in {lower} of {epochs}.", with.name))?;
        }
        line(&format!(
            "Tables and pictures are in {}: metrics.csv, and curves, drift and gradients as png and svg.",
            folder.display()
        ))
    }
}

/// A run in a few numbers; losses and accuracies with their epochs.
struct Verdict {
    best_loss: (f64, usize),
    best_accuracy: (f64, usize),
    last: Row,
    reached: [Option<usize>; MILESTONES.len()],
    seconds: f64,
}

impl Verdict {
    fn of(run: &Run) -> Verdict {
        let last = *run.rows.last().expect("a run that reached its verdict had at least one epoch");
        let mut best_loss = (f64::INFINITY, 0);
        let mut best_accuracy = (f64::NEG_INFINITY, 0);
        for (i, row) in run.rows.iter().enumerate() {
            if row.validation.loss < best_loss.0 {
                best_loss = (row.validation.loss, i + 1);
            }
            if row.validation.accuracy > best_accuracy.0 {
                best_accuracy = (row.validation.accuracy, i + 1);
            }
        }
        let reached = MILESTONES.map(|milestone| {
            run.rows.iter().position(|row| row.validation.accuracy >= milestone).map(|index| index + 1)
        });
        let seconds = run.rows.iter().map(|row| row.seconds).sum::<f64>() / run.rows.len() as f64;
        Verdict { best_loss, best_accuracy, last, reached, seconds }
    }

    fn json(&self, network: &str) -> Value {
        let milestones: Vec<Value> = MILESTONES
            .iter()
            .zip(self.reached)
            .map(|(accuracy, epoch)| json!({ "accuracy": accuracy, "epoch": epoch }))
            .collect();
        json!({
            "network": network,
            "best_validation_loss": self.best_loss.0,
            "best_validation_loss_epoch": self.best_loss.1,
            "final_validation_loss": self.last.validation.loss,
            "best_validation_accuracy": self.best_accuracy.0,
            "best_validation_accuracy_epoch": self.best_accuracy.1,
            "final_validation_accuracy": self.last.validation.accuracy,
            "first_epoch_at": milestones,
            "training_seconds_per_epoch": self.seconds,
        })
    }
}

fn json_row(epoch: usize, network: &str, row: &Row) -> Value {
    json!({
        "epoch": epoch,
        "network": network,
        "step_loss": row.step_loss,
        "train_loss": row.train.loss,
        "train_accuracy": row.train.accuracy,
        "validation_loss": row.validation.loss,
        "validation_accuracy": row.validation.accuracy,
        "training_seconds": row.seconds,
    })
}

fn percent(share: f64) -> String {
    format!("{:.2} %", 100.0 * share)
}

fn line(text: &str) -> Result<(), Failure> {
    writeln!(Out, "{text}").map_err(Failure::Output)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::watch::Watch;
    use evenkeel::train::Metrics;

    #[test]
    fn a_verdict_by_hand() {
        let rows = [(0.5, 0.84), (0.3, 0.91), (0.4, 0.90)].map(|(loss, accuracy)| {
            let metrics = Metrics { loss, accuracy };
            Row { step_loss: 1.0, train: metrics, validation: metrics, seconds: 2.0 }
        });
        let run = Run { name: "with BatchNorm", rows: rows.to_vec(), watch: Watch::default() };
        let v = Verdict::of(&run);
        assert_eq!((v.best_loss, v.best_accuracy), ((0.3, 2), (0.91, 2)));
        assert_eq!(v.reached, [Some(1), Some(2), Some(2), None, None]);
        assert_eq!(v.seconds, 2.0);
    }
}
