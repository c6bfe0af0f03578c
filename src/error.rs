//! The one error type of the crate.
//!
//! Every variant says what was wrong, where, and what was expected; its text ends with what to do about it wherever that is
//! not obvious. Slice kernels panic on mismatched lengths instead (a bug of the caller), and say so under `# Panics`.

use std::path::{Path, PathBuf};
use std::{fmt, io};

/// What the crate's fallible functions return.
pub type Result<T> = std::result::Result<T, Error>;

/// Everything that can go wrong, by whose mistake it is.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// A tensor, matrix or slice does not have the shape that the operation needs.
    Shape {
        /// What has the wrong shape: an operation and an argument, as in `linear: x`.
        what: String,
        /// The shape that was needed.
        expected: String,
        /// The shape that came.
        found: String,
    },
    /// An option or a hyper-parameter has a value that makes no sense.
    Invalid {
        /// The option's name, as the caller wrote it.
        what: String,
        /// The value that came.
        value: String,
        /// Which values are accepted.
        expected: String,
    },
    /// BatchNorm was asked to train on one value per channel, whose variance is not defined.
    OneValuePerChannel {
        /// Number of channels of the layer.
        channels: usize,
    },
    /// A file is not what its format says; nothing of it was used.
    Format {
        /// The file.
        path: PathBuf,
        /// Byte offset in the (decompressed) file at which the fault was found.
        offset: u64,
        /// What the format asks for there.
        expected: String,
        /// What was there.
        found: String,
    },
    /// The operating system refused.
    Io {
        /// What was tried, as in `open` or `write`.
        action: &'static str,
        /// On which file or folder.
        path: PathBuf,
        /// Its answer.
        source: io::Error,
    },
    /// Training produced a loss that is NaN or infinite; it stopped before the parameters were updated with it.
    NotFinite {
        /// Epoch, from 1.
        epoch: usize,
        /// Step within the epoch, from 1.
        step: usize,
        /// The first layer whose output was not finite, or `the loss` if every output was finite.
        first: String,
    },
}

impl Error {
    /// An [`Error::Shape`].
    pub(crate) fn shape(what: impl Into<String>, expected: impl fmt::Display, found: impl fmt::Display) -> Self {
        Error::Shape { what: what.into(), expected: expected.to_string(), found: found.to_string() }
    }

    /// An [`Error::Invalid`].
    pub(crate) fn invalid(what: impl Into<String>, value: impl fmt::Display, expected: impl Into<String>) -> Self {
        Error::Invalid { what: what.into(), value: value.to_string(), expected: expected.into() }
    }

    /// An [`Error::Io`].
    pub fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        Error::Io { action, path: path.to_path_buf(), source }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Shape { what, expected, found } => write!(f, "{what}: expected {expected}, found {found}"),
            Error::Invalid { what, value, expected } => write!(f, "{what} is {value}, but must be {expected}"),
            Error::OneValuePerChannel { channels } => write!(
                f,
                "batch normalisation over {channels} channels cannot take statistics from one value per channel: the variance \
                 of a single value is not defined; use a batch of at least 2, drop the last short batch, or evaluate with \
                 running statistics"
            ),
            Error::Format { path, offset, expected, found } => {
                write!(f, "{}: at byte {offset}: expected {expected}, found {found}", path.display())
            }
            Error::Io { action, path, source } => write!(f, "cannot {action} {}: {source}", path.display()),
            Error::NotFinite { epoch, step, first } => write!(
                f,
                "the loss is not finite in epoch {epoch}, step {step}; first not finite: {first}; \
                 try a lower learning rate, or look for NaN in the data"
            ),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_what_where_and_expectation() {
        let e = Error::Format {
            path: "a/b.idx".into(),
            offset: 4,
            expected: "at most 10".to_string(),
            found: "11".to_string(),
        };
        assert_eq!(e.to_string(), "a/b.idx: at byte 4: expected at most 10, found 11");
        let e = Error::io("open", Path::new("x"), io::Error::from(io::ErrorKind::NotFound));
        assert!(e.to_string().starts_with("cannot open x: "));
        assert!(std::error::Error::source(&e).is_some());
    }
}
