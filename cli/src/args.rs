//! What can be typed.

use crate::bench::{Layout, Network, Pass, Product, Typed};
use crate::gradcheck::Subject;
use crate::lab::{Lab, OptimizerKind};
use crate::source::Source;
use clap::{Parser, Subcommand, ValueEnum};
use std::ops::{Bound, RangeBounds};
use std::path::PathBuf;
use std::str::FromStr;

const EXIT_STATUS: &str = "Exit status: 0 done, 1 training or a check failed, 2 wrong usage, 3 data missing or unreadable, or a file or \
                           folder that cannot be written.";

const CASES: &str = "a number of cases, 1 or more";
const EPOCHS: &str = "a number of epochs, 1 or more";
const EXAMPLES: &str = "a number of examples, 2 or more";
const RATE: &str = "a number above 0, as in 0.01";
const SEED: &str = "a whole number from 0 to 18446744073709551615";
const THREADS: &str = "a number of threads from 1 to 1024";
const POSITIVE: (Bound<f64>, Bound<f64>) = (Bound::Excluded(0.0), Bound::Excluded(f64::INFINITY));
const TOLERANCE: &str = "a number from 0 to below 1, as in 1e-5";

/// Reads a number; what `FromStr` says of a text that is none ("invalid digit found in string") helps nobody.
fn number<T: FromStr>(wanted: &'static str) -> impl Fn(&str) -> Result<T, String> + Clone {
    move |text| text.parse().map_err(|_| format!("expected {wanted}"))
}

/// Reads a number within bounds.
fn number_in<T>(
    wanted: &'static str,
    bounds: impl RangeBounds<T> + Clone + Send + Sync + 'static,
) -> impl Fn(&str) -> Result<T, String> + Clone
where
    T: FromStr + PartialOrd,
{
    move |text| {
        let found = number(wanted)(text)?;
        if bounds.contains(&found) { Ok(found) } else { Err(format!("expected {wanted}")) }
    }
}

/// Trains, compares and measures batch-normalised networks.
#[derive(Debug, Parser)]
#[command(name = "evenkeel", version, after_help = EXIT_STATUS)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Trains the same network with BatchNorm and without, on the same batches, and shows what BatchNorm does.
    #[command(after_help = EXIT_STATUS)]
    Compare(Compare),
    /// Measures what this machine can do, and how much of it the kernels do.
    #[command(subcommand, after_help = EXIT_STATUS)]
    Bench(Bench),
    /// Checks the gradient of every layer, loss and fused path against differences, over random shapes and options.
    ///
    /// Each case draws a shape, options, data and an upstream gradient from its seed, checks the f64 kernels against central differences,
    /// and the f32 kernels against the f64 ones in units in the last place. A row has the worst entry of all cases as a share of what it
    /// may be off by. A failure prints its report and the command that repeats it.
    ///
    /// Tolerances are the same for all. Where a function is too steep for differences, eps is larger than PyTorch's: at least 1e-2 for
    /// channels of two or three values, and at least 1e-3 in networks, which have four rows or more. Data of what has a ReLU fused into it
    /// keep its inputs 1e-4 off the kink, where f32 and f64 would differ about its side.
    #[command(after_help = EXIT_STATUS)]
    Gradcheck(Gradcheck),
    /// Shows the version, the instruction set, the caches and the threads.
    Info(Info),
}

/// How results are written to standard output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    Human,
    /// For programs: one JSON object a line.
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
    /// Where mnist is: in DIR/mnist or DIR [default: $EVENKEEL_DATA].
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
    /// How often the training set is seen.
    #[arg(long, default_value_t = 10, value_name = "N", allow_negative_numbers = true, value_parser = number::<usize>(EPOCHS))]
    pub(crate) epochs: usize,
    /// Examples in a batch [default: the lab's: 32 for mlp32, 64 for mlp100].
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = number::<usize>(EXAMPLES))]
    pub(crate) batch_size: Option<usize>,
    /// Learning rate [default: the lab's for adam: 0.01 for mlp32, 0.001 for mlp100; 0.1 for sgd].
    #[arg(long, value_name = "RATE", allow_negative_numbers = true, value_parser = number_in(RATE, POSITIVE))]
    pub(crate) lr: Option<f64>,
    /// The optimiser.
    #[arg(long, value_enum, default_value = "adam")]
    pub(crate) optimizer: OptimizerKind,
    /// Decides initial weights and the order of the batches.
    #[arg(long, default_value_t = 1, value_name = "S", allow_negative_numbers = true, value_parser = number::<u64>(SEED))]
    pub(crate) seed: u64,
    /// Runs every layer by itself: slower, and the same but for roundings, which training magnifies.
    #[arg(long)]
    pub(crate) no_fusion: bool,
    /// Threads to use; results do not depend on it [default: all of the machine's].
    #[arg(long, value_name = "T", allow_negative_numbers = true, value_parser = number::<usize>(THREADS))]
    pub(crate) threads: Option<usize>,
    /// The folder for tables and pictures; an earlier run in it is replaced [default: runs/LAB-DATA-seedS].
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// What standard output is written for.
    #[arg(long, value_enum, default_value = "human")]
    pub(crate) format: Format,
    /// No progress bar.
    #[arg(long)]
    pub(crate) quiet: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Gradcheck {
    /// What is checked [default: everything].
    #[arg(value_name = "LAYER", value_enum)]
    pub(crate) layers: Vec<Subject>,
    /// Random cases of each.
    #[arg(long, default_value_t = 100, value_name = "N", allow_negative_numbers = true, value_parser = number_in(CASES, 1u64..=u64::MAX))]
    pub(crate) cases: u64,
    /// Seed of the first case, from which those of the others are drawn.
    #[arg(long, default_value_t = 1, value_name = "S", allow_negative_numbers = true, value_parser = number::<u64>(SEED))]
    pub(crate) seed: u64,
    /// Part of the numeric value that an error may be [default: 1e-5].
    #[arg(long, value_name = "R", allow_negative_numbers = true, value_parser = number_in(TOLERANCE, 0.0..1.0))]
    pub(crate) rtol: Option<f64>,
    /// Part of the tensor's largest gradient that an error may be besides [default: 1e-7].
    #[arg(long, value_name = "A", allow_negative_numbers = true, value_parser = number_in(TOLERANCE, 0.0..1.0))]
    pub(crate) atol: Option<f64>,
    /// What standard output is written for.
    #[arg(long, value_enum, default_value = "human")]
    pub(crate) format: Format,
    /// No progress bar.
    #[arg(long)]
    pub(crate) quiet: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Bench {
    /// The peak of multiply-adds of each instruction set that EVENKEEL_ISA allows, and the bandwidth of each level of memory.
    ///
    /// All samples take turns. Bandwidths count the bytes that a pass names: read a sum's, copy those read and written, triad
    /// (a = b + s c) two reads and a write. Noise is (p90 - p10) / median of a multiply-add loop of fixed length: above 5 %
    /// something else is using the machine, and the figures are not to be trusted.
    #[command(after_help = EXIT_STATUS)]
    Roof(Roof),
    /// Matrix products C = A B: time, GFLOP/s, share of the machine's peak, and the `matrixmultiply` crate beside them.
    ///
    /// Samples of all instruction sets, of matrixmultiply (on one thread, which is all it is asked for) and of a multiply-add loop as
    /// long as they are take turns; the peak is that loop's. A ratio is another's time over ours on the best instruction set: above 1
    /// ours is faster. Noise is (p90 - p10) / median of the loop: above 5 % a row is not to be trusted.
    #[command(after_help = EXIT_STATUS)]
    Gemm(Gemm),
    /// Batch normalisation, forward and backward: time, GB/s, share of the machine's bandwidth, error, and a plain loop beside it.
    ///
    /// GB/s count what a pass must move at least, in tensors as large as x, which follows from the shape alone. Forward: 1 read and
    /// 1 write if one 64-byte-wide slab of channels (its values times 64 bytes; one channel's planes in NCHW and NxCxL) fits in 0.6 of a
    /// second-level cache, else 2 reads and 1 write. Backward: 2 and 1 if the slabs of x and dy fit, else 4 and 1. Where all tensors
    /// fit there, both readings count: 2 and 1 forward, 4 and 1 backward. Frozen: 1 and 1. Frozen-backward: 1 and 1, with ReLU 2 and
    /// 1. Frozen-backward-sums, which gives dgamma and dbeta too: 2 and 1 if slabs fit, else 3 and 1, with ReLU 4 and 1.
    ///
    /// The roof is the least time for that: of the same sweeps without arithmetic, a reading of what is read before anything is written,
    /// then a copy (1 and 1) or a triad a = b + s c (2 and 1), over as much memory as the pass touches and on as many threads. A slab
    /// that a last-level cache keeps may beat it. Samples of all instruction sets, of both sweeps, of a textbook's loop (on one
    /// thread) and of a multiply-add loop take turns. The error is the largest of y or dx against the f64 reference, in units in the last place of
    /// the largest value there. A ratio is another's time over ours: above 1 ours is faster. Noise is (p90 - p10) / median of the
    /// multiply-add loop: above 5 % a row is not to be trusted.
    #[command(after_help = EXIT_STATUS)]
    Batchnorm(BatchNorm),
    /// Training steps: forward, loss, backward and update on one batch; steps and samples a second, share of the machine's peak, and
    /// PyTorch beside them, where the python3 on the path can import it.
    ///
    /// Samples/s are examples a second; `gathered` is steps/s with batches that are gathered from bytes in shuffled order, where the others
    /// have theirs ready; `evaluation` is the share of the peak that the products of an evaluation make, gathering included; `allocations`
    /// are counted over 100 steps.
    ///
    /// Samples of all instruction sets, of gathered steps, of evaluation, of PyTorch (its optimiser by default, and the
    /// fused one) and of a multiply-add loop as long as they are take turns. The share of the peak is that of the flops of the step's
    /// products over that loop's: what arithmetic alone would allow. A ratio is another's time over ours on the best instruction set:
    /// above 1 ours is faster. Noise is (p90 - p10) / median of the loop: above 5 % a row is not to be trusted.
    #[command(after_help = EXIT_STATUS)]
    Step(Step),
}

/// What every bench takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Measure {
    /// Also write one JSON object a line to FILE; with `-` to standard output, in place of the table.
    #[arg(long, value_name = "FILE|-")]
    pub(crate) json: Option<PathBuf>,
    /// Also write the same as a table with commas.
    #[arg(long, value_name = "FILE")]
    pub(crate) csv: Option<PathBuf>,
    /// What standard output is written for.
    #[arg(long, value_enum, default_value = "human")]
    pub(crate) format: Format,
    /// No progress bar.
    #[arg(long)]
    pub(crate) quiet: bool,
    /// One sample of each thing: for tests of this command.
    #[arg(long, hide = true)]
    pub(crate) once: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Roof {
    /// Numbers of threads [default: 1 and all of the machine's].
    #[arg(long, value_name = "T,T", value_delimiter = ',', allow_negative_numbers = true, value_parser = number::<usize>(THREADS))]
    pub(crate) threads: Vec<usize>,
    #[command(flatten)]
    pub(crate) measure: Measure,
}

/// The type of the elements of a matrix or tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ElementType {
    F32,
    F64,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Gemm {
    /// A is M x K, B is K x N; `_tn`: A is stored transposed, `_nt`: B is. May be repeated [default: squares from 32 to 2048, and
    /// the products of layers, forward and backward].
    #[arg(long, value_name = "MxKxN[_tn|_nt]", value_parser = Product::parse)]
    pub(crate) shape: Vec<Product>,
    #[command(flatten)]
    pub(crate) timing: Timing,
}

#[derive(Debug, clap::Args)]
pub(crate) struct BatchNorm {
    /// Images, channels, then the rest, whatever the layout; `_nchw` or `_nhwc` behind NxCxHxW says how that one lies in memory. May
    /// be repeated [default: layers from 32x32 to 65536x64, and images from 128x16x10x10 to 64x64x56x56].
    #[arg(long, value_name = "NxC|NxCxL|NxCxHxW", value_parser = Typed::parse)]
    pub(crate) shape: Vec<Typed>,
    /// How images lie in memory: whole planes, or channels innermost. NxC and NxCxL lie as they are written.
    #[arg(long, value_name = "LAYOUT,LAYOUT", value_delimiter = ',', value_enum, default_value = "nchw,nhwc")]
    pub(crate) layout: Vec<Layout>,
    /// What is timed.
    #[arg(
        long = "pass",
        value_name = "PASS,PASS",
        value_delimiter = ',',
        value_enum,
        default_value = "forward,backward"
    )]
    pub(crate) passes: Vec<Pass>,
    /// ReLU after it, in the same pass.
    #[arg(long)]
    pub(crate) relu: bool,
    #[command(flatten)]
    pub(crate) timing: Timing,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Step {
    /// The network of a lab, with BatchNorm and without. May be repeated.
    #[arg(long, value_enum)]
    pub(crate) lab: Vec<Lab>,
    /// Widths from the inputs to the classes, then the batch, with BatchNorm or without, and the optimiser, if these are not 32, bn and
    /// adam. May be repeated [default: the labs' networks, and 784-1024-1024-10_b256].
    #[arg(long, value_name = "W-W-W[_bN][_nobn][_sgd]", value_parser = Network::parse)]
    pub(crate) shape: Vec<Network>,
    /// Runs every layer by itself.
    #[arg(long)]
    pub(crate) no_fusion: bool,
    /// Also shows what a step consists of, and the share of its time that each kernel takes.
    #[arg(long)]
    pub(crate) kernels: bool,
    #[command(flatten)]
    pub(crate) timing: Timing,
}

/// What the benches of kernels take.
#[derive(Debug, clap::Args)]
pub(crate) struct Timing {
    /// The type of the elements.
    #[arg(long = "dtype", visible_alias = "type", value_name = "TYPE", value_enum, default_value = "f32")]
    pub(crate) element: ElementType,
    /// Numbers of threads.
    #[arg(long, value_name = "T,T", value_delimiter = ',', default_value = "1")]
    #[arg(allow_negative_numbers = true, value_parser = number::<usize>(THREADS))]
    pub(crate) threads: Vec<usize>,
    /// Instruction sets [default: all that have vectors of their own, that this machine has and that EVENKEEL_ISA allows].
    #[arg(long, value_name = "NAME,NAME", value_delimiter = ',')]
    pub(crate) isa: Vec<String>,
    /// Times of others, as JSON lines with `peer`, `case` and `shape` as --json writes them, `type` (f32 unless it is there),
    /// `threads` and `median_us`: a column of ratios for each.
    #[arg(long, value_name = "FILE")]
    pub(crate) peers: Option<PathBuf>,
    /// Draw the rates, as .svg or .png.
    #[arg(long, value_name = "FILE")]
    pub(crate) plot: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) measure: Measure,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Info {
    /// What standard output is written for.
    #[arg(long, value_enum, default_value = "human")]
    pub(crate) format: Format,
}
