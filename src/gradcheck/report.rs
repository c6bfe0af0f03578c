//! What a check found, tensor by tensor, for people and for programs.

use super::differences::is_f64;
use crate::error::Error;
use crate::simd::Element;
use crate::tensor::Shape;
use std::fmt;
use std::fmt::Write as _;

/// What the gradients were compared with, and hence how close they must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Basis {
    /// f64 gradients with differences of the f64 function.
    F64,
    /// f32 gradients with differences of an f64 function.
    F32AgainstF64,
    /// f32 gradients with differences of the f32 function, which are coarse.
    F32,
    /// f32 gradients with those of their f64 twin, in units in the last place.
    Twin,
}

impl Basis {
    /// That of a function which is all of one type.
    pub(super) fn of<T: Element>() -> Self {
        if is_f64::<T>() { Basis::F64 } else { Basis::F32 }
    }

    /// rtol and atol unless others are asked for; [`Basis::Twin`] has units in the last place in their place.
    pub fn tolerances(self) -> (f64, f64) {
        match self {
            Basis::F64 => (1e-5, 1e-7),
            // u is 6e-8, and a sum of a thousand products loses some thirty of it.
            Basis::F32AgainstF64 => (1e-4, 1e-5),
            // Differences of what is off by u, over steps of 2^-4 and shorter.
            Basis::F32 => (1e-2, 1e-3),
            Basis::Twin => (0.0, 0.0),
        }
    }

    fn text(self) -> &'static str {
        match self {
            Basis::F64 => "differences in f64",
            Basis::F32AgainstF64 => "f32 gradients, differences of the f64 function",
            Basis::F32 => "differences in f32, with f32's tolerances",
            Basis::Twin => "f32 gradients, those of the f64 twin",
        }
    }

    fn key(self) -> &'static str {
        match self {
            Basis::F64 => "f64",
            Basis::F32AgainstF64 => "f32-against-f64",
            Basis::F32 => "f32",
            Basis::Twin => "f64-twin",
        }
    }
}

/// What is said of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// All that was checked is within what is allowed.
    Right,
    /// An entry is not.
    Wrong,
    /// More entries lie at a kink than could be checked, rounding of the function hides what the gradient is, or the differences are less
    /// sure than they would have to be.
    Unknown,
}

impl Verdict {
    fn text(self) -> &'static str {
        match self {
            Verdict::Right => "ok",
            Verdict::Wrong => "WRONG",
            Verdict::Unknown => "UNKNOWN",
        }
    }
}

/// One number of a gradient, as both sides have it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    /// Of a tensor or, in a fast check, of the directions.
    pub(super) index: usize,
    pub(super) analytic: f64,
    pub(super) numeric: f64,
    pub(super) doubt: f64,
    pub(super) allowed: f64,
    pub(super) is_second_pass: bool,
}

/// How many times their doubt differences may be off.
pub(super) const SURELY: f64 = 4.0;

/// Part of themselves by which differences are in doubt that have not found the derivative.
const LOST: f64 = 0.01;

impl Entry {
    fn error(&self) -> f64 {
        (self.analytic - self.numeric).abs()
    }

    /// Whether it is more than is allowed, but not for sure: within what differences may be off by, or beside differences that did not come
    /// to rest anywhere.
    fn is_unsure(&self) -> bool {
        let is_near = self.error() <= self.allowed + SURELY * self.doubt;
        let is_lost = self.doubt > self.allowed && self.doubt > LOST * self.numeric.abs();
        self.error() > self.allowed && (is_near || is_lost)
    }

    /// How many times what is allowed; a NaN, or a bound that is none, is worse than any number.
    fn excess(&self) -> f64 {
        let error = self.error();
        let is_bound = self.allowed.is_finite() && self.allowed >= 0.0;
        if error.is_nan() || !is_bound {
            f64::INFINITY
        } else if error == 0.0 {
            0.0
        } else {
            error / self.allowed
        }
    }
}

/// The verdict on one tensor, and its worst entry: the one whose error is the largest multiple of what it may be.
#[derive(Clone, Debug)]
pub struct TensorReport {
    /// The tensor: `x`, `weight`, or `3.weight` in a model.
    pub name: String,
    /// Its shape.
    pub shape: Shape,
    /// Entries checked.
    pub checked: usize,
    /// Entries that lie at a kink, where there is no derivative to check against.
    pub skipped: usize,
    /// Random directions along which all entries were checked at once, if that sufficed; `worst` is then the number of one of them,
    /// and the figures are its derivatives.
    pub directions: Option<usize>,
    /// The worst entry, in the tensor's order.
    pub worst: usize,
    /// What the backward pass says of it.
    pub analytic: f64,
    /// What it is compared with: what the differences say.
    pub numeric: f64,
    /// How far apart these two are.
    pub error: f64,
    /// How far apart they may be.
    pub allowed: f64,
    /// What `atol` multiplies: the largest entry of the tensor's gradient, or so much that no less is allowed than rounding hides.
    pub scale: f64,
    /// How far apart the last two extrapolations of the differences are, with what noise leaves in them.
    pub doubt: f64,
    /// How the error of the linear model falls with the step: 2 for the right gradient (3 where the function does not bend), 1 for one that
    /// is off, if only by what is allowed, and `None` for a function that is linear to within rounding.
    pub slope: Option<f64>,
    /// Whether rounding of the function hides how large the gradient is.
    pub is_hidden: bool,
    /// Whether nothing of a gradient is seen: all differences are within what rounding hides, as where the true gradient is zero.
    pub is_unseen: bool,
    /// Whether the worst entry is of what a second backward pass added: it should be the same again.
    pub is_second_pass: bool,
    excess: f64,
    /// Whether an entry is wrong for sure, and whether one may be.
    is_wrong: bool,
    is_unsure: bool,
    /// Whether rounding hides more than the tolerances allow of the largest entry.
    pub(super) is_raised: bool,
}

impl TensorReport {
    pub(super) fn new(name: &str, shape: Shape, scale: f64) -> Self {
        TensorReport {
            name: name.to_string(),
            shape,
            checked: 0,
            skipped: 0,
            directions: None,
            worst: 0,
            analytic: 0.0,
            numeric: 0.0,
            error: 0.0,
            allowed: 0.0,
            scale,
            doubt: 0.0,
            slope: None,
            is_hidden: false,
            is_unseen: false,
            is_second_pass: false,
            excess: -1.0,
            is_wrong: false,
            is_unsure: false,
            is_raised: false,
        }
    }

    /// Takes note of a number; the first of the worst is named.
    pub(super) fn add(&mut self, entry: Entry) {
        let (excess, is_unsure) = (entry.excess(), entry.is_unsure());
        let is_wrong = excess > 1.0 && !is_unsure;
        let is_worse = (is_wrong, excess) > (self.is_wrong, self.excess);
        self.is_wrong |= is_wrong;
        self.is_unsure |= is_unsure;
        if is_worse {
            self.excess = excess;
            self.worst = entry.index;
            (self.analytic, self.numeric) = (entry.analytic, entry.numeric);
            (self.error, self.allowed, self.doubt) = (entry.error(), entry.allowed, entry.doubt);
            self.is_second_pass = entry.is_second_pass;
        }
    }

    /// What is said of the tensor; one without entries is right.
    pub fn verdict(&self) -> Verdict {
        if self.is_wrong {
            Verdict::Wrong
        } else if self.is_hidden || self.is_unsure || self.skipped > self.checked {
            Verdict::Unknown
        } else {
            Verdict::Right
        }
    }

    /// Whether [`TensorReport::verdict`] is [`Verdict::Right`].
    pub fn passed(&self) -> bool {
        self.verdict() == Verdict::Right
    }

    /// The worst error as a multiple of what is allowed; 0 if nothing was checked.
    pub fn excess(&self) -> f64 {
        self.excess.max(0.0)
    }

    /// The worst error relative to the larger of the two values.
    pub fn relative_error(&self) -> f64 {
        if self.error == 0.0 { 0.0 } else { self.error / self.analytic.abs().max(self.numeric.abs()) }
    }

    /// The index of the worst entry in each dimension; in a fast check the number of a direction.
    pub fn worst_index(&self) -> Vec<usize> {
        if self.directions.is_some() {
            return vec![self.worst];
        }
        let mut rest = self.worst;
        let mut index: Vec<usize> =
            self.shape.dims().iter().rev().map(|&d| (rest % d.max(1), rest /= d.max(1)).0).collect();
        index.reverse();
        index
    }

    /// What to make of it, if that is not obvious.
    fn advice(&self) -> Option<String> {
        let text = match self.verdict() {
            Verdict::Right if self.is_unseen => {
                format!("nothing of a gradient is seen: it is below {:.1e}, which rounding of the function hides", self.allowed)
            }
            Verdict::Right if self.is_raised => {
                format!("up to {:.1e} is allowed, which rounding of the function hides", self.allowed)
            }
            Verdict::Right => return None,
            Verdict::Unknown if self.is_hidden => {
                "rounding hides how large this gradient is: take a large constant out of the function, or scale large inputs down, and \
                 compute all of it in its type"
                    .to_string()
            }
            Verdict::Unknown if self.is_unsure => format!(
                "differences are only sure to {:.1e} here, and {:.1e} is allowed: the function is steep or noisy for this data",
                self.doubt, self.allowed
            ),
            Verdict::Unknown => {
                format!("{} of {} entries lie at a kink: move the data off it", self.skipped, self.shape.len())
            }
            Verdict::Wrong if self.is_second_pass => {
                "a second backward pass should add the same to the gradient again, whether dx is asked for or not"
                    .to_string()
            }
            Verdict::Wrong if self.analytic.is_nan() => {
                "the backward pass gives NaN, or leaves this unwritten".to_string()
            }
            Verdict::Wrong if !self.numeric.is_finite() => {
                "the function is not finite near this point: at a pole, for an input that is not finite, or because the forward pass leaves \
                 an output unwritten"
                    .to_string()
            }
            Verdict::Wrong if !(self.allowed.is_finite() && self.allowed >= 0.0) => {
                "what is allowed is no bound: a magnitude must be finite and not negative".to_string()
            }
            Verdict::Wrong => return None,
        };
        Some(format!("{}: {text}", self.name.escape_debug()))
    }
}

/// The verdicts on all tensors.
#[derive(Clone, Debug)]
pub struct Report {
    /// What was checked.
    pub subject: String,
    /// What the gradients were compared with.
    pub basis: Basis,
    /// Part of the numeric value that an error may be.
    pub rtol: f64,
    /// Part of the tensor's scale that an error may be.
    pub atol: f64,
    /// What the upstream gradient and the directions were drawn with.
    pub seed: u64,
    /// One for each tensor, inputs first.
    pub tensors: Vec<TensorReport>,
}

impl Report {
    /// Whether all tensors passed.
    pub fn passed(&self) -> bool {
        self.tensors.iter().all(TensorReport::passed)
    }

    /// The report on one tensor.
    pub fn tensor(&self, name: &str) -> Option<&TensorReport> {
        self.tensors.iter().find(|t| t.name == name)
    }

    /// Entries checked, of all tensors.
    pub fn checked(&self) -> usize {
        self.tensors.iter().map(|t| t.checked).sum()
    }

    /// Entries skipped, of all tensors.
    pub fn skipped(&self) -> usize {
        self.tensors.iter().map(|t| t.skipped).sum()
    }

    /// The tensor with the worst error for what it may be.
    pub fn worst(&self) -> Option<&TensorReport> {
        self.tensors.iter().max_by(|a, b| a.excess.total_cmp(&b.excess))
    }

    /// The rule in words.
    pub fn rule(&self) -> String {
        match self.basis {
            Basis::Twin => "|f32 - f64| <= ulps 2^-23 magnitude".to_string(),
            _ => {
                let short = |x: f64| if x == 0.0 { "0".to_string() } else { format!("{x:e}") };
                format!("|analytic - numeric| <= {} scale + {} |numeric|", short(self.atol), short(self.rtol))
            }
        }
    }

    /// The report as one JSON object on one line; a number that is not finite is `null`.
    pub fn to_json(&self) -> String {
        let mut json = String::from("{");
        string(&mut json, "subject", &self.subject);
        write_into(&mut json, format_args!(",\"passed\":{},", self.passed()));
        string(&mut json, "basis", self.basis.key());
        for (key, value) in [("rtol", self.rtol), ("atol", self.atol)] {
            number(&mut json, key, value);
        }
        write_into(&mut json, format_args!(",\"seed\":{},\"tensors\":[", self.seed));
        for (i, t) in self.tensors.iter().enumerate() {
            json.push_str(if i == 0 { "{" } else { ",{" });
            string(&mut json, "name", &t.name);
            let (shape, worst) = (t.shape.dims(), t.worst_index());
            write_into(
                &mut json,
                format_args!(",\"shape\":{shape:?},\"checked\":{},\"skipped\":{},", t.checked, t.skipped),
            );
            string(&mut json, "verdict", t.verdict().text());
            write_into(&mut json, format_args!(",\"unseen\":{}", t.is_unseen));
            if let Some(directions) = t.directions {
                write_into(&mut json, format_args!(",\"directions\":{directions}"));
            }
            match t.excess >= 0.0 {
                true => {
                    write_into(&mut json, format_args!(",\"worst\":{worst:?},\"second_pass\":{}", t.is_second_pass))
                }
                false => json.push_str(",\"worst\":null,\"second_pass\":false"),
            }
            let slope = t.slope.unwrap_or(f64::NAN);
            let shown = |value: f64| if t.excess >= 0.0 { value } else { f64::NAN };
            let figures = [
                ("excess", shown(t.excess)),
                ("analytic", shown(t.analytic)),
                ("numeric", shown(t.numeric)),
                ("error", t.error),
                ("relative", t.relative_error()),
                ("allowed", t.allowed),
                ("scale", t.scale),
                ("doubt", t.doubt),
                ("slope", slope),
            ];
            for (key, value) in figures {
                number(&mut json, key, value);
            }
            json.push('}');
        }
        json.push_str("]}");
        json
    }
}

fn write_into(text: &mut String, what: fmt::Arguments<'_>) {
    text.write_fmt(what).expect("a string takes all that is written");
}

/// A key and a text, with what JSON asks to be escaped. The library has no other use for a JSON writer.
fn string(json: &mut String, key: &str, text: &str) {
    write_into(json, format_args!("\"{key}\":\""));
    for c in text.chars() {
        match c {
            '"' | '\\' => json.extend(['\\', c]),
            c if c < ' ' => write_into(json, format_args!("\\u{:04x}", u32::from(c))),
            c => json.push(c),
        }
    }
    json.push('"');
}

fn number(json: &mut String, key: &str, value: f64) {
    match value.is_finite() {
        true => write_into(json, format_args!(",\"{key}\":{value:e}")),
        false => write_into(json, format_args!(",\"{key}\":null")),
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = if self.passed() { "passed" } else { "FAILED" };
        writeln!(f, "gradient check of {}: {verdict}", self.subject)?;
        write!(f, "  {}; {}; seed {}", self.basis.text(), self.rule(), self.seed)?;
        let [ours, theirs] = if self.basis == Basis::Twin { ["f32", "f64"] } else { ["analytic", "numeric"] };
        let header = [
            ["tensor", "shape", "checked", "skipped", "slope", "worst"],
            [ours, theirs, "error", "relative", "allowed", "verdict"],
        ];
        let mut rows = vec![header.as_flattened().iter().map(ToString::to_string).collect::<Vec<String>>()];
        rows.extend(self.tensors.iter().map(|t| {
            let has_worst = t.excess >= 0.0;
            let shown = |text: String| if has_worst { text } else { "-".to_string() };
            let index = match t.directions {
                Some(_) => format!("direction {}", t.worst),
                None => format!("{:?}", t.worst_index()),
            };
            vec![
                t.name.escape_debug().to_string(),
                t.shape.to_string(),
                t.checked.to_string(),
                t.skipped.to_string(),
                t.slope.map_or("-".to_string(), |slope| format!("{slope:.2}")),
                shown(index),
                shown(format!("{:+.9e}", t.analytic)),
                shown(format!("{:+.9e}", t.numeric)),
                shown(format!("{:.1e}", t.error)),
                shown(format!("{:.1e}", t.relative_error())),
                shown(format!("{:.1e}", t.allowed)),
                t.verdict().text().to_string(),
            ]
        }));
        let widths: [usize; 12] =
            std::array::from_fn(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0));
        for row in &rows {
            write!(f, "\n ")?;
            for (column, (cell, width)) in row.iter().zip(widths).enumerate() {
                match column {
                    // Words on the left; the last needs no padding.
                    0 | 1 => write!(f, " {cell:<width$} ")?,
                    11 => write!(f, " {cell}")?,
                    _ => write!(f, " {cell:>width$} ")?,
                }
            }
        }
        for advice in self.tensors.iter().filter_map(TensorReport::advice) {
            write!(f, "\n  {advice}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Report {}

/// Why a check did not pass: its text is the whole report, also where a program ends with it.
pub enum Failure {
    /// A gradient is wrong, or could not be checked.
    Gradient(Box<Report>),
    /// There was nothing to check: what was given does not fit together, or the layer refused it.
    Refused(Error),
}

impl Failure {
    /// The report, if there is one.
    pub fn report(&self) -> Option<&Report> {
        match self {
            Failure::Gradient(report) => Some(report),
            Failure::Refused(_) => None,
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure::Refused(error)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Gradient(report) => report.fmt(f),
            Failure::Refused(error) => error.fmt(f),
        }
    }
}

impl fmt::Debug for Failure {
    /// As [`Display`](fmt::Display): what `main` and `unwrap` print is read by people.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\n{self}")
    }
}

impl std::error::Error for Failure {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Failure::Gradient(_) => None,
            Failure::Refused(error) => error.source(),
        }
    }
}
