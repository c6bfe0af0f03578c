//! What a row is, how it is judged, and what a table covers.

use crate::support::{assert_same_bits, isas, message};
use evenkeel::simd::{Element, with_isa};
use evenkeel::{Error, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

/// What is hostile about an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// Nothing where something is expected.
    Empty,
    /// Less than was promised.
    Truncated,
    /// A count that nothing stands behind, or that nobody has memory for.
    Oversized,
    /// A product of sizes, or of numbers, that does not fit.
    Overflow,
    Nan,
    Infinite,
    Subnormal,
    /// Slices that start off a vector boundary.
    Misaligned,
    /// Shapes, lengths or types that do not go together.
    Mismatched,
    ZeroRows,
    OneRow,
    /// An option without a meaning, or a call out of order.
    Senseless,
}

/// What the documentation says becomes of it.
pub(crate) enum Outcome {
    /// An error of this variant; its text has all of the words.
    Refused(Variant, Vec<String>),
    /// A panic whose message has all of the words.
    Panics(Vec<String>),
    /// No error. The words are for the reader, the row itself compares values.
    Gives(&'static str),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Variant {
    Shape,
    Invalid,
    OneValuePerChannel,
    NotFinite,
    #[cfg(feature = "data")]
    Io,
    /// At this offset.
    #[cfg(feature = "data")]
    Format(u64),
}

impl Variant {
    fn is_of(self, error: &Error) -> bool {
        match (self, error) {
            (Variant::Shape, Error::Shape { .. })
            | (Variant::Invalid, Error::Invalid { .. })
            | (Variant::OneValuePerChannel, Error::OneValuePerChannel { .. })
            | (Variant::NotFinite, Error::NotFinite { .. }) => true,
            #[cfg(feature = "data")]
            (Variant::Io, Error::Io { .. }) => true,
            #[cfg(feature = "data")]
            (Variant::Format(at), Error::Format { offset, .. }) => at == *offset,
            _ => false,
        }
    }
}

fn owned(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| word.to_string()).collect()
}

pub(crate) fn refused(variant: Variant, words: &[&str]) -> Outcome {
    Outcome::Refused(variant, owned(words))
}

pub(crate) fn shape(words: &[&str]) -> Outcome {
    refused(Variant::Shape, words)
}

pub(crate) fn invalid(words: &[&str]) -> Outcome {
    refused(Variant::Invalid, words)
}

pub(crate) fn panics(words: &[&str]) -> Outcome {
    Outcome::Panics(owned(words))
}

pub(crate) fn gives(what: &'static str) -> Outcome {
    Outcome::Gives(what)
}

/// One hostile input.
pub(crate) struct Row {
    kind: Kind,
    input: String,
    outcome: Outcome,
    run: Box<dyn Fn() -> Result<()>>,
}

pub(crate) fn row(
    kind: Kind,
    input: impl Into<String>,
    outcome: Outcome,
    run: impl Fn() -> Result<()> + 'static,
) -> Row {
    Row { kind, input: input.into(), outcome, run: Box::new(run) }
}

/// The hostile inputs of one entry point.
pub(crate) struct Entry {
    name: String,
    rows: Vec<Row>,
}

pub(crate) fn entry(name: impl Into<String>, rows: impl IntoIterator<Item = Row>) -> Entry {
    Entry { name: name.into(), rows: rows.into_iter().collect() }
}

impl Row {
    /// What is wrong with what happened, if anything.
    fn fault(&self) -> Option<String> {
        let outcome = catch_unwind(AssertUnwindSafe(|| (self.run)()));
        let lacks = |text: &str, words: &[String]| {
            words.iter().find(|word| !text.contains(*word)).map(|word| format!("{text:?} does not say {word:?}"))
        };
        match (&self.outcome, outcome) {
            (Outcome::Gives(_), Ok(Ok(()))) => None,
            (Outcome::Gives(what), Ok(Err(error))) => Some(format!("should give {what}, but: {error}")),
            (Outcome::Refused(variant, words), Ok(Err(error))) => {
                let text = error.to_string();
                if variant.is_of(&error) { lacks(&text, words) } else { Some(format!("not {variant:?}: {error:?}")) }
            }
            (Outcome::Panics(words), Err(cause)) => lacks(message(&*cause), words),
            (Outcome::Refused(..) | Outcome::Panics(_), Ok(Ok(()))) => Some("was not refused".to_string()),
            (Outcome::Panics(_), Ok(Err(error))) => Some(format!("should panic, but: {error}")),
            (_, Err(cause)) => Some(format!("panicked: {}", message(&*cause))),
        }
    }
}

/// The kinds that a table has.
#[derive(Default)]
pub(crate) struct Coverage(BTreeSet<Kind>);

impl Coverage {
    /// Asserts that every kind occurs.
    pub(crate) fn assert_complete(&self, of: &str) {
        use Kind::*;
        let all = [
            Empty, Truncated, Oversized, Overflow, Nan, Infinite, Subnormal, Misaligned, Mismatched, ZeroRows, OneRow,
            Senseless,
        ];
        let missing: Vec<Kind> = all.into_iter().filter(|kind| !self.0.contains(kind)).collect();
        assert!(missing.is_empty(), "{of}: no row is {missing:?}");
    }
}

/// Runs every row; all that fail are named.
pub(crate) fn check(entries: &[Entry]) -> Coverage {
    let mut failed = Vec::new();
    for Entry { name, rows } in entries {
        for row in rows {
            if let Some(fault) = row.fault() {
                failed.push(format!("{name}, {:?}, {}: {fault}", row.kind, row.input));
            }
        }
    }
    assert!(failed.is_empty(), "{} rows failed:\n{}", failed.len(), failed.join("\n"));
    Coverage(entries.iter().flat_map(|entry| entry.rows.iter().map(|row| row.kind)).collect())
}

/// [`check`] on every instruction set; says once what there is.
pub(crate) fn sweep<T: Element>(entries: &[Entry]) -> Coverage {
    show(T::NAME, entries);
    let mut coverage = Coverage::default();
    for isa in isas() {
        match catch_unwind(AssertUnwindSafe(|| with_isa(isa, || check(entries)))) {
            Ok(found) => coverage = found,
            Err(cause) => panic!("{} on {isa}: {}", T::NAME, message(&*cause)),
        }
    }
    coverage
}

/// Prints the entry points and how many rows of which kinds they have.
pub(crate) fn show(title: &str, entries: &[Entry]) {
    for Entry { name, rows } in entries {
        let mut kinds = BTreeMap::<Kind, usize>::new();
        rows.iter().for_each(|row| *kinds.entry(row.kind).or_default() += 1);
        println!("{title}: {name}: {} rows: {kinds:?}", rows.len());
    }
}

/// What a call may write: every number of it.
pub(crate) trait Written {
    fn numbers(&mut self) -> Vec<u64>;
}

/// Makes a call; if it fails, by an error or by a panic, all that it may write must be as it was.
pub(crate) fn attempt<W: Written + ?Sized, R>(written: &mut W, call: impl FnOnce(&mut W) -> Result<R>) -> Result<R> {
    let before = written.numbers();
    let outcome = catch_unwind(AssertUnwindSafe(|| call(&mut *written)));
    if !matches!(outcome, Ok(Ok(_))) {
        assert_same_bits("written although refused", &written.numbers(), &before);
    }
    outcome.unwrap_or_else(|cause| resume_unwind(cause))
}
