//! The `evenkeel` command: trains, compares and measures batch-normalised networks.
//!
//! Results go to standard output, progress to standard error. Exit status: 0 done, 1 a check failed or training broke down,
//! 2 wrong usage, 3 data missing or unreadable, or a file or folder that cannot be written.

mod args;
mod bench;
mod chart;
mod compare;
mod failure;
mod files;
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

fn main() -> ExitCode {
    let args = Args::parse();
    let result = evenkeel::simd::Isa::check_variable().map_err(Failure::from).and_then(|()| match args.command {
        Command::Compare(options) => compare::run(&options),
        Command::Bench(bench) => bench::run(&bench),
        Command::Info(options) => info::run(&options),
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            // Nothing can be done about a standard error that is gone.
            let _ = writeln!(std::io::stderr(), "evenkeel: {failure}");
            ExitCode::from(failure.exit_status())
        }
    }
}
