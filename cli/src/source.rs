//! Where the data comes from.

use crate::failure::Failure;
use evenkeel::data::{Images, digits, idx};
use evenkeel::{Error, Result};
use std::io;
use std::path::{Path, PathBuf};

/// The variable that names the folder of the data sets.
pub(crate) const DATA_VARIABLE: &str = "EVENKEEL_DATA";

/// A data set, as it can be asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// The generated set that comes with the library.
    Digits,
    /// MNIST, in the data folder.
    Mnist,
    /// A folder with four files in MNIST's form.
    Idx(PathBuf),
}

impl Source {
    pub(crate) fn parse(text: &str) -> std::result::Result<Source, String> {
        match text.split_once(':') {
            None if text == "digits" => Ok(Source::Digits),
            None if text == "mnist" => Ok(Source::Mnist),
            Some(("idx", folder)) if !folder.is_empty() => Ok(Source::Idx(PathBuf::from(folder))),
            _ => Err("expected digits, mnist or idx:DIR".to_string()),
        }
    }

    /// What the set is called in tables and files; no path.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Source::Digits => "digits",
            Source::Mnist => "mnist",
            Source::Idx(_) => "idx",
        }
    }

    /// Training and validation set.
    pub(crate) fn load(&self, data_dir: Option<&Path>) -> std::result::Result<(Images, Images), Failure> {
        let sets = match self {
            Source::Digits => Ok(digits::digits(digits::SEED)),
            Source::Mnist => data_folder("mnist", data_dir).and_then(|folder| idx::read_split(&folder)),
            Source::Idx(folder) => idx::read_split(folder),
        };
        sets.map_err(Failure::while_doing(format!("data set {}", self.name())))
    }
}

/// The folder of one set: `DIR/name` if it is there, else `DIR`.
fn data_folder(name: &str, data_dir: Option<&Path>) -> Result<PathBuf> {
    let variable = std::env::var_os(DATA_VARIABLE).filter(|value| !value.is_empty()).map(PathBuf::from);
    let Some(dir) = data_dir.map(Path::to_path_buf).or(variable) else {
        let advice = format!("no folder is named; name one with --data-dir DIR or {DATA_VARIABLE}");
        return Err(Error::io("find", Path::new(name), io::Error::new(io::ErrorKind::NotFound, advice)));
    };
    let own = dir.join(name);
    Ok(if own.is_dir() { own } else { dir })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_as_typed() {
        assert_eq!(Source::parse("digits"), Ok(Source::Digits));
        assert_eq!(Source::parse("idx:a/b"), Ok(Source::Idx(PathBuf::from("a/b"))));
        for wrong in ["", "cifar", "idx:", "idx", "mnist:x"] {
            assert!(Source::parse(wrong).is_err(), "{wrong}");
        }
    }
}
