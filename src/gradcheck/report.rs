//! What a check found, tensor by tensor.

use std::fmt;

/// The verdict on one tensor.
#[derive(Clone, Debug)]
pub struct TensorReport {
    /// The tensor: `x`, `weight`, or `3.weight` in a model.
    pub name: String,
    /// Entries checked: all of them.
    pub checked: usize,
    /// Entry with the largest error.
    pub worst: usize,
    /// What the backward pass says of it.
    pub analytic: f64,
    /// What the differences say.
    pub numeric: f64,
    /// How far they are apart.
    pub error: f64,
    /// How far they may be.
    pub allowed: f64,
}

impl TensorReport {
    pub(super) fn new(name: &str, checked: usize, allowed: f64) -> Self {
        TensorReport { name: name.to_string(), checked, worst: 0, analytic: 0.0, numeric: 0.0, error: -1.0, allowed }
    }

    /// Takes note of one entry.
    pub(super) fn add(&mut self, index: usize, analytic: f64, numeric: f64) {
        let error = (analytic - numeric).abs();
        // NaN is worse than any number, and the first one is named.
        if error > self.error || (error.is_nan() && self.error < f64::INFINITY) {
            self.worst = index;
            self.analytic = analytic;
            self.numeric = numeric;
            self.error = if error.is_nan() { f64::INFINITY } else { error };
        }
    }

    /// Whether every entry is within what is allowed; a tensor without entries is.
    pub fn passed(&self) -> bool {
        // An infinite gradient would allow any error.
        self.checked == 0 || (self.error <= self.allowed && self.allowed.is_finite())
    }
}

/// The verdicts on all tensors.
#[derive(Clone, Debug)]
pub struct Report {
    /// One for each tensor, the input first.
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
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "gradient check: {}", if self.passed() { "passed" } else { "FAILED" })?;
        for t in &self.tensors {
            let verdict = if t.passed() { "ok    " } else { "FAILED" };
            if t.checked == 0 {
                writeln!(f, "  {verdict} {:<12} {:>6} checked", t.name, 0)?;
                continue;
            }
            writeln!(
                f,
                "  {verdict} {:<12} {:>6} checked, worst [{}]: analytic {:+.9e}, numeric {:+.9e}, error {:.1e}, allowed {:.1e}",
                t.name, t.checked, t.worst, t.analytic, t.numeric, t.error, t.allowed
            )?;
        }
        Ok(())
    }
}
