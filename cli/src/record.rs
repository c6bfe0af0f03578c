//! The folder of a run: what decides its numbers, the numbers, the times, the pictures.

use crate::chart::{self, figures};
use crate::failure::Failure;
use crate::files;
use crate::watch::Watch;
use evenkeel::train::Metrics;
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// One network after one epoch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row {
    pub(crate) step_loss: f64,
    pub(crate) train: Metrics,
    pub(crate) validation: Metrics,
    pub(crate) seconds: f64,
}

/// One network's run so far.
#[derive(Debug)]
pub(crate) struct Run {
    /// `with BatchNorm` or `without`.
    pub(crate) name: &'static str,
    /// Its epochs, the first at index 0.
    pub(crate) rows: Vec<Row>,
    pub(crate) watch: Watch,
}

/// Whether nothing of a user's own can be lost: the folder is empty, or an earlier run's by its `config.json`.
fn may_be_replaced(folder: &Path) -> io::Result<bool> {
    if fs::read_dir(folder)?.next().is_none() {
        return Ok(true);
    }
    let config = fs::read(folder.join("config.json")).unwrap_or_default();
    let config: serde_json::Value = serde_json::from_slice(&config).unwrap_or_default();
    Ok(config["command"] == "compare")
}

/// The pictures of a run.
const PICTURES: [&str; 3] = ["curves", "drift", "gradients"];

/// A run's folder.
#[derive(Debug)]
pub(crate) struct Record {
    folder: PathBuf,
}

impl Record {
    /// Makes the folder, writes what decides the numbers, and clears away the numbers and pictures of an earlier run in it.
    pub(crate) fn begin(folder: &Path, config: &serde_json::Value) -> Result<Record, Failure> {
        fs::create_dir_all(folder).map_err(Failure::write(folder))?;
        if !may_be_replaced(folder).map_err(Failure::write(folder))? {
            let text = "it holds files, and no earlier run of compare";
            return Err(Failure::write(folder)(io::Error::new(io::ErrorKind::AlreadyExists, text)));
        }
        let record = Record { folder: folder.to_path_buf() };
        record.write("config.json", &format!("{config:#}\n"))?;
        let pictures =
            PICTURES.iter().flat_map(|stem| [format!("{stem}.svg"), format!("{stem}.png"), format!("{stem}.csv")]);
        for name in pictures {
            let path = folder.join(name);
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(Failure::write(&path)(error)),
                _ => {}
            }
        }
        record.numbers(&[])?;
        Ok(record)
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    fn write(&self, name: &str, text: &str) -> Result<(), Failure> {
        let path = self.folder.join(name);
        files::replace(&path, text.as_bytes()).map_err(Failure::write(&path))
    }

    /// Writes the tables; called after every epoch, so that a run that ends early leaves what it had.
    pub(crate) fn numbers(&self, runs: &[Run]) -> Result<(), Failure> {
        let mut metrics =
            "network,epoch,step_loss,train_loss,train_accuracy,validation_loss,validation_accuracy\n".to_string();
        let mut times = "network,epoch,training_seconds\n".to_string();
        let epochs = runs.iter().map(|run| run.rows.len()).max().unwrap_or(0);
        for epoch in 0..epochs {
            for run in runs {
                let Some(row) = run.rows.get(epoch) else { continue };
                let (name, number, train, validation) = (run.name, epoch + 1, row.train, row.validation);
                // Writing to a string cannot fail. A float is written with as many digits as it takes to read it back.
                let _ = writeln!(
                    metrics,
                    "{name},{number},{},{},{},{},{}",
                    row.step_loss, train.loss, train.accuracy, validation.loss, validation.accuracy
                );
                let _ = writeln!(times, "{name},{number},{:.3}", row.seconds);
            }
        }
        self.write("metrics.csv", &metrics)?;
        self.write("times.csv", &times)
    }

    /// Draws the pictures, and writes the numbers behind those that are not in `metrics.csv`.
    pub(crate) fn pictures(&self, title: &str, note: &str, runs: &[Run]) -> Result<(), Failure> {
        self.curves(title, note, runs)?;
        self.drift(title, runs)?;
        self.gradients(title, runs)
    }

    fn curves(&self, title: &str, note: &str, runs: &[Run]) -> Result<(), Failure> {
        let column = |run: &Run, pick: fn(&Row) -> f64| run.rows.iter().map(pick).collect::<Vec<f64>>();
        let columns: Vec<[Vec<f64>; 4]> = runs
            .iter()
            .map(|run| {
                [
                    column(run, |r| r.train.loss),
                    column(run, |r| r.validation.loss),
                    column(run, |r| r.train.accuracy),
                    column(run, |r| r.validation.accuracy),
                ]
            })
            .collect();
        let epochs: Vec<figures::Epochs<'_>> = runs
            .iter()
            .zip(&columns)
            .map(|(run, [train_loss, validation_loss, train_accuracy, validation_accuracy])| figures::Epochs {
                run: run.name,
                train_loss,
                validation_loss,
                train_accuracy,
                validation_accuracy,
            })
            .collect();
        chart::write(&figures::curves(&format!("Learning curves: {title}"), note, &epochs), &self.folder, "curves")?;
        Ok(())
    }

    fn drift(&self, title: &str, runs: &[Run]) -> Result<(), Failure> {
        let mut table = "network,layer,step,mean,std\n".to_string();
        let mut kept = Vec::new();
        for run in runs {
            for (hidden, moments) in run.watch.drift.iter().enumerate() {
                let layer = format!("hidden {}", hidden + 1);
                for m in moments {
                    let _ = writeln!(table, "{},{layer},{},{},{}", run.name, m.step, m.mean, m.std);
                }
                kept.push((run.name, layer, moments.iter().map(|m| (m.step, m.mean, m.std)).collect::<Vec<_>>()));
            }
        }
        // Rows of the figure are layers, in the order in which they come first.
        kept.sort_by(|a, b| a.1.cmp(&b.1));
        let traces: Vec<figures::LayerTrace<'_>> =
            kept.iter().map(|(run, layer, moments)| figures::LayerTrace { run, layer, moments }).collect();
        let note = "What each ReLU receives, over the batch and all units. Line: mean. Band: one standard deviation to either side.";
        let figure = figures::drift(&format!("Drift of pre-activations: {title}"), note, &traces);
        chart::write(&figure, &self.folder, "drift")?;
        self.write("drift.csv", &table)
    }

    fn gradients(&self, title: &str, runs: &[Run]) -> Result<(), Failure> {
        let mut table = "network,epoch,layer,tenth,median,ninetieth\n".to_string();
        let last = runs.iter().map(|run| run.watch.gradients.len()).min().unwrap_or(0);
        let mut kept: Vec<(usize, &str, String, crate::watch::Norms)> = Vec::new();
        for run in runs {
            for (epoch, layers) in run.watch.gradients.iter().enumerate() {
                for (layer, norms) in layers.iter().enumerate() {
                    let layer = format!("linear {}", layer + 1);
                    let (tenth, median, ninetieth) = (norms.tenth, norms.median, norms.ninetieth);
                    let _ = writeln!(table, "{},{},{layer},{tenth},{median},{ninetieth}", run.name, epoch + 1);
                    kept.push((epoch + 1, run.name, layer, *norms));
                }
            }
        }
        let of_epoch = |epoch: usize| -> Vec<figures::LayerNorms<'_>> {
            let picked = kept.iter().filter(|(e, ..)| *e == epoch);
            picked
                .map(|(_, run, layer, n)| figures::LayerNorms {
                    run,
                    layer,
                    tenth: n.tenth,
                    median: n.median,
                    ninetieth: n.ninetieth,
                })
                .collect()
        };
        let (first_norms, last_norms, last_title) = (of_epoch(1), of_epoch(last), format!("Epoch {last}"));
        let mut stretches: Vec<(&str, &[figures::LayerNorms<'_>])> = vec![("Epoch 1", &first_norms)];
        if last > 1 {
            stretches.push((&last_title, &last_norms));
        }
        let note =
            "Norm of the gradient of each weight matrix. Line: median over an epoch. Band: 10th to 90th percentile.";
        let figure = figures::gradients(&format!("Gradient norm by depth: {title}"), note, &stretches);
        chart::write(&figure, &self.folder, "gradients")?;
        self.write("gradients.csv", &table)
    }
}
