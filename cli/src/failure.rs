//! Why a command ends early, and with which exit status.

use crate::chart::ChartError;
use evenkeel::Error;
use std::fmt;
use std::io;
use std::path::Path;

/// Why a command ended early.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The library refused or broke down; the text in front says doing what.
    Library { doing: String, error: Error },
    /// Standard output could not be written.
    Output(io::Error),
    /// A file or folder could not be written; the option is the one that names it.
    Write { path: String, error: io::Error, option: &'static str },
    /// A line of a text file is not what it should be.
    Line { path: String, number: usize, wrong: String },
    /// A text file lacks what it is read for.
    Lacks { path: String, wanted: &'static str },
    /// Gradients are wrong; the commands repeat one case of each kind.
    Check { failed: u64, commands: Vec<String> },
    /// A picture could not be drawn.
    Chart(ChartError),
}

impl Failure {
    /// A library error that happened while doing something that its own text does not name.
    pub(crate) fn while_doing(doing: impl Into<String>) -> impl FnOnce(Error) -> Failure {
        move |error| Failure::Library { doing: doing.into(), error }
    }

    /// A file or folder of a run that could not be written.
    pub(crate) fn write(path: &Path) -> impl FnOnce(io::Error) -> Failure {
        Failure::write_named_by("--out", path)
    }

    /// A file that an option names and that could not be written.
    pub(crate) fn write_named_by(option: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Failure {
        move |error| Failure::Write { path: path.display().to_string(), error, option }
    }

    /// 1 broke down, 2 wrong usage, 3 data, file or folder.
    pub(crate) fn exit_status(&self) -> u8 {
        match self {
            Failure::Library { error, .. } => match error {
                Error::NotFinite { .. } => 1,
                Error::Io { .. } | Error::Format { .. } => 3,
                _ => 2,
            },
            Failure::Output(_) | Failure::Write { .. } | Failure::Line { .. } | Failure::Lacks { .. } => 3,
            Failure::Chart(ChartError::Write { .. }) => 3,
            Failure::Chart(ChartError::Draw(_)) | Failure::Check { .. } => 1,
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure::Library { doing: String::new(), error }
    }
}

impl From<ChartError> for Failure {
    fn from(error: ChartError) -> Self {
        Failure::Chart(error)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Library { doing, error } if doing.is_empty() => write!(f, "{error}"),
            Failure::Library { doing, error } => write!(f, "{doing}: {error}"),
            Failure::Output(error) => write!(f, "cannot write to standard output: {error}"),
            Failure::Write { path, error, option } => {
                write!(f, "cannot write {path}: {error}; free the place, or name another with {option}")
            }
            Failure::Line { path, number, wrong } => write!(f, "{path}: line {number}: {wrong}"),
            Failure::Lacks { path, wanted } => write!(f, "{path}: not one line is {wanted}"),
            Failure::Check { failed, commands } => {
                let checks = if *failed == 1 { "check" } else { "checks" };
                write!(f, "{failed} gradient {checks} failed; to see one again:")?;
                commands.iter().try_for_each(|command| write!(f, "\n  {command}"))
            }
            Failure::Chart(error) => write!(f, "{error}"),
        }
    }
}
