//! The `evenkeel` command: trains, compares and measures batch-normalised networks.
//!
//! Results go to standard output, progress to standard error. Exit status: 0 done, 1 a check failed or training broke down,
//! 2 wrong usage, 3 data missing or unreadable, or a file or folder that cannot be written.

mod allocations;
mod args;
mod bench;
mod chart;
mod compare;
mod failure;
mod files;
mod gradcheck;
mod info;
mod lab;
mod record;
mod report;
mod source;
mod term;
mod watch;

use args::{Args, Command};
use clap::Parser;
use failure::Failure;
use std::io::Write;
use std::process::ExitCode;
use term::Out;

fn main() -> ExitCode {
    let result = match Args::try_parse() {
        Ok(args) => run(args),
        Err(error) if error.use_stderr() => error.exit(),
        // Help and version are results: clap would not notice that they could not be written.
        Err(help) => write!(Out, "{help}").and_then(|()| Out.flush()).map_err(Failure::Output),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            // Nothing can be done about a standard error that is gone.
            let _ = writeln!(std::io::stderr(), "evenkeel: {failure}");
            ExitCode::from(failure.exit_status())
        }
    }
}

fn run(args: Args) -> Result<(), Failure> {
    evenkeel::simd::Isa::check_variable()?;
    match args.command {
        Command::Compare(options) => compare::run(&options),
        Command::Bench(bench) => bench::run(&bench),
        Command::Gradcheck(options) => gradcheck::run(&options),
        Command::Info(options) => info::run(&options),
    }
}
