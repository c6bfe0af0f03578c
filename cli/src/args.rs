//! What can be typed.

use crate::lab::{Lab, OptimizerKind};
use crate::source::Source;
use clap::{Parser, Subcommand, ValueEnum};
use std::path::PathBuf;

/// Trains, compares and measures batch-normalised networks.
#[derive(Debug, Parser)]
#[command(name = "evenkeel", version, disable_help_subcommand = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Trains the same network with BatchNorm and without, on the same batches, and shows what BatchNorm does.
    Compare(Compare),
    /// Shows the version, the instruction set, the caches and the threads.
    Info(Info),
}

/// How results are written to standard output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Tables.
    Human,
    /// One JSON object a line.
    Json,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Compare {
    /// The network and how it is trained.
    #[arg(long, value_enum, default_value = "mlp32")]
    pub(crate) lab: Lab,
    /// The data: `digits` (comes with the command), `mnist` (found through --data-dir), or `idx:DIR` (a folder with the four files of MNIST's form).
    #[arg(long, default_value = "digits", value_parser = Source::parse)]
    pub(crate) data: Source,
    /// The folder that data sets are found in, themselves or in a folder of their name [default: $EVENKEEL_DATA].
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
    /// How often the training set is seen.
    #[arg(long, default_value_t = 10, value_name = "N")]
    pub(crate) epochs: usize,
    /// Examples in a batch [default: the lab's: 32 for mlp32, 64 for mlp100].
    #[arg(long, value_name = "N")]
    pub(crate) batch_size: Option<usize>,
    /// Learning rate [default: the lab's for adam: 0.01 for mlp32, 0.001 for mlp100; 0.1 for sgd].
    #[arg(long, value_name = "RATE", allow_negative_numbers = true)]
    pub(crate) lr: Option<f64>,
    /// The optimiser.
    #[arg(long, value_enum, default_value = "adam")]
    pub(crate) optimizer: OptimizerKind,
    /// Decides initial weights and the order of the batches.
    #[arg(long, default_value_t = 1, value_name = "S")]
    pub(crate) seed: u64,
    /// Threads to use; results do not depend on it [default: all of the machine's].
    #[arg(long, value_name = "T")]
    pub(crate) threads: Option<usize>,
    /// The folder for tables and pictures [default: runs/LAB-DATA-seedS].
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// Tables, or JSON lines, on standard output.
    #[arg(long, value_enum, default_value = "human")]
    pub(crate) format: Format,
    /// No progress bar.
    #[arg(long)]
    pub(crate) quiet: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Info {
    /// Text, or a JSON object, on standard output.
    #[arg(long, value_enum, default_value = "human")]
    pub(crate) format: Format,
}
