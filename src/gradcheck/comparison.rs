//! The comparison: every entry of every gradient, or a few random directions, with what differences say.

use super::differences::{self, Difference, Ladder, Move, Sure, derivative, is_f64, slope, typical};
use super::report::{Basis, Entry, Report, SURELY, TensorReport, Verdict};
use super::{Settings, Tolerance};
use crate::error::{Error, Result};
use crate::rng::Rng;
use crate::simd::Element;
use crate::tensor::Shape;

/// Directions of a fast check.
const DIRECTIONS: usize = 4;

/// How many times the roundoff of what a function returns its differences may be off by.
const ROUNDINGS: f64 = 8.0;

/// How many roundings of all outputs those that a tensor moves are at least, or rounding of the others swallows them.
const SWALLOWED: f64 = 4.0;

/// What is less than so many times what noise leaves in a difference cannot be told from zero: five standard deviations, if the noise is
/// twice what it was measured to be.
const ABOVE_NOISE: f64 = 8.0;

/// Where that is more than this part of a gradient that is seen to be there, in f64 and in f32, the gradient cannot be said to be
/// right. Nor if the noise is more than the root of the roundoff of the function: what it does is not computed in the precision of its type.
const HIDDEN: [f64; 2] = [1e-3, 0.1];

/// By how much steps are made longer where noise hides a gradient: so much, and more where it would take more than four times.
const LONGER: f64 = 8.0;

/// Part of the gap at a kink by which a gradient may be beyond the slopes of its sides, which are differences themselves.
const BEYOND: f64 = 0.05;

/// Roundings by which two ways to the same outputs may differ, in those of the largest.
pub(super) const SAME: f64 = 1e4;

/// One tensor of variables: where they are, and what the backward pass says of them.
#[derive(Debug)]
pub(super) struct Variables<T> {
    pub(super) name: String,
    pub(super) shape: Shape,
    pub(super) values: Vec<T>,
    pub(super) analytic: Vec<f64>,
    /// What a second backward pass added to the gradient; it should be the same.
    pub(super) added: Option<Vec<f64>>,
}

/// Fills the outputs for these tensors.
pub(super) type Outputs<'a, T> = dyn FnMut(&[Vec<T>], &mut [f64]) -> Result<()> + 'a;

/// What is to be compared.
pub(super) struct Comparison<'a, T> {
    pub(super) subject: String,
    pub(super) basis: Basis,
    pub(super) variables: Vec<Variables<T>>,
    /// The upstream gradient.
    pub(super) dy: Vec<f64>,
    pub(super) outputs: &'a mut Outputs<'a, T>,
    /// What the outputs at the base point are by another way, if there is one.
    pub(super) expected: Option<Vec<f64>>,
}

impl<T: Element> Comparison<'_, T> {
    pub(super) fn run(mut self, settings: &Settings) -> Result<Report> {
        let tolerance = settings.tolerance_for(self.basis)?;
        let mut values: Vec<Vec<T>> = self.variables.iter_mut().map(|v| std::mem::take(&mut v.values)).collect();
        let base = self.base(&values)?;
        // A function that is not finite has no size, and shows so in its differences.
        let largest =
            self.dy.iter().zip(&base).map(|(dy, y)| (dy * y).abs()).filter(|y| y.is_finite()).fold(0.0, f64::max);
        let unit = if largest > 0.0 { largest.max(1e-290) } else { 1.0 };
        let size = Some(size_of(&self.dy, &base, unit)).filter(|size| size.is_finite()).unwrap_or(0.0);
        let mut tensors = Vec::with_capacity(self.variables.len());
        for (index, v) in self.variables.iter().enumerate() {
            let mut rng = Rng::new(settings.seed, &format!("gradcheck directions {index}"));
            let directions: Vec<Vec<f64>> = (0..DIRECTIONS).map(|_| direction(&mut rng, v.analytic.len())).collect();
            let typical = typical(&values[index]);
            let largest = values[index].iter().fold(0.0, |largest: f64, x| largest.max(x.to_f64().abs()));
            let ladder = Ladder::new::<T>(largest, typical, &mut rng);
            let mut probe = Probe {
                tensor: index,
                origin: values[index].clone(),
                values: &mut values,
                y: vec![0.0; base.len()],
                base: &base,
                unit,
                dy: &self.dy,
                outputs: self.outputs,
            };
            let even = probe.even(&directions[0], ladder.tiny());
            let measured = differences::noise(&mut |h| probe.along(&even, h, &v.analytic), ladder, 0.0)?;
            // That of the outputs which the tensor moves, in its neighbourhood; where it moves none to speak of, they have been rounded all
            // the same.
            let near = probe.along(&directions[0], ladder.near(), &v.analytic)?.rounding / (ROUNDINGS * T::ROUNDOFF);
            let is_moved = near.is_finite() && near > SWALLOWED * T::ROUNDOFF * size;
            let (size, still) = if is_moved { (near, size) } else { (size, 0.0) };
            let noise = measured.max(T::ROUNDOFF * size);
            let slope = slope(&mut |h| probe.along(&directions[0], h, &v.analytic), ladder, noise)?;
            let numeric_for = |noise: f64, longer: f64| {
                let third = ladder.longer(longer).third();
                let (hidden, still) = (ABOVE_NOISE * noise / third, T::ROUNDOFF * still / third);
                Numeric { noise, longer, hidden, still, typical }
            };
            let mut numeric = numeric_for(noise, 1.0);
            let is_noisy = noise > T::ROUNDOFF.sqrt() * size;
            let quick = match settings.is_fast {
                true => fast(v, &mut probe, (ladder, numeric), tolerance, &directions)?,
                false => None,
            };
            let mut report = match quick {
                Some(report) => report,
                None => full(v, &mut probe, numeric, tolerance, &mut rng)?,
            };
            // Longer steps see more of what noise hides.
            let stride = LONGER.max(ladder.room().powf(0.25));
            let mut is_lost = report.is_raised || report.verdict() == Verdict::Unknown;
            while is_lost && numeric.longer < ladder.room() {
                let longer = (stride * numeric.longer).min(ladder.room());
                let first = ladder.longer(longer).first();
                let mut along = |h| probe.along(&even, h, &v.analytic);
                let far = along(first)?.rounding / ROUNDINGS;
                let far = if far.is_finite() { far } else { 0.0 };
                // A shift that is large beside the values has roundings of its own.
                numeric = numeric_for(noise.max(far).max(differences::noise(&mut along, ladder, first)?), longer);
                let seen = full(v, &mut probe, numeric, tolerance, &mut rng)?;
                // But they may reach a kink, or more noise than there is here,
                if seen.skipped > report.skipped || (seen.is_unseen && !report.is_unseen) {
                    break;
                }
                let is_unknown = seen.verdict() == Verdict::Unknown;
                is_lost = seen.is_raised || is_unknown;
                // or too far for how the function bends.
                let is_found = report.is_unseen && seen.is_hidden;
                if !is_unknown || is_found || seen.excess() < report.excess() {
                    report = seen;
                }
            }
            report.slope = slope;
            report.is_hidden |= is_noisy;
            tensors.push(report);
        }
        let Tolerance { rtol, atol } = tolerance;
        Ok(Report { subject: self.subject, basis: self.basis, rtol, atol, seed: settings.seed, tensors })
    }

    /// The outputs at the base point, which must be the same twice.
    fn base(&mut self, values: &[Vec<T>]) -> Result<Vec<f64>> {
        let (mut base, mut again) = (vec![0.0; self.dy.len()], vec![0.0; self.dy.len()]);
        (self.outputs)(values, &mut base)?;
        (self.outputs)(values, &mut again)?;
        if base.iter().zip(&again).any(|(a, b)| a.to_bits() != b.to_bits()) {
            let what = format!("gradient check of {}: the forward pass", self.subject);
            let expected = "the same for the same input: hold its masks, and whatever else it draws or counts";
            return Err(Error::invalid(what, "another one each time", expected));
        }
        if let Some(expected) = &self.expected {
            let largest = largest_finite(expected).max(largest_finite(&base));
            let limit = SAME * T::ROUNDOFF * largest;
            let is_far = |(a, b): (&f64, &f64)| (a.is_nan() != b.is_nan()) || (a - b).abs() > limit;
            if let Some(i) = base.iter().zip(expected).position(is_far) {
                let what = format!("gradient check of {}: what forward_held gives at the base point", self.subject);
                let found = format!("{:e} in output {i}", base[i]);
                return Err(Error::invalid(what, found, format!("what forward gives: {:e}", expected[i])));
            }
        }
        Ok(base)
    }
}

/// How large L's terms are, as a root of squares: their roundings add up like that. In this unit squares stay within range.
fn size_of(dy: &[f64], y: &[f64], unit: f64) -> f64 {
    unit * dy.iter().zip(y).map(|(dy, y)| (dy * y / unit).powi(2)).sum::<f64>().sqrt()
}

/// Entries of either sign, their sizes uniform from 1/2 to 3/2.
fn direction(rng: &mut Rng, len: usize) -> Vec<f64> {
    let mut entry = || {
        let size = rng.range(0.5, 1.5);
        if rng.below(2) == 0 { size } else { -size }
    };
    (0..len).map(|_| entry()).collect()
}

/// Steps from the base point within one tensor.
struct Probe<'a, 'f, T> {
    tensor: usize,
    origin: Vec<T>,
    values: &'a mut [Vec<T>],
    y: Vec<f64>,
    base: &'a [f64],
    /// The largest term of L.
    unit: f64,
    dy: &'a [f64],
    outputs: &'a mut Outputs<'f, T>,
}

impl<T: Element> Probe<'_, '_, T> {
    /// A step `h` of one entry.
    fn entry(&mut self, i: usize, h: f64) -> Result<Move> {
        let old = self.origin[i];
        let new = T::from_f64(old.to_f64() + h);
        self.values[self.tensor][i] = new;
        let moved = self.change();
        self.values[self.tensor][i] = old;
        // The step that was really taken: the sum rounds.
        moved.map(|(change, rounding)| Move {
            change,
            step: new.to_f64() - old.to_f64(),
            predicted: f64::NAN,
            rounding,
        })
    }

    /// A step `h` of all entries along a direction, and what `gradient` says of it.
    fn along(&mut self, direction: &[f64], h: f64, gradient: &[f64]) -> Result<Move> {
        let mut predicted = 0.0;
        for (i, (new, old)) in self.values[self.tensor].iter_mut().zip(&self.origin).enumerate() {
            *new = T::from_f64(old.to_f64() + h * direction[i]);
            predicted += gradient[i] * (new.to_f64() - old.to_f64());
        }
        let moved = self.change();
        self.values[self.tensor].copy_from_slice(&self.origin);
        moved.map(|(change, rounding)| Move { change, step: h, predicted, rounding })
    }

    /// The same direction, of which so small a step takes each entry a whole number of its units: equal steps stay equal.
    fn even(&self, direction: &[f64], tiny: f64) -> Vec<f64> {
        let along = self.origin.iter().zip(direction);
        along.map(|(old, d)| (T::from_f64(old.to_f64() + tiny * d).to_f64() - old.to_f64()) / tiny).collect()
    }

    /// By how much L differs from its base, and what rounding may have to do with that. Outputs are subtracted before they are added
    /// up: those that the step does not reach leave no rounding.
    fn change(&mut self) -> Result<(f64, f64)> {
        (self.outputs)(self.values, &mut self.y)?;
        let (mut change, mut squares) = (0.0, 0.0);
        for ((y, base), dy) in self.y.iter().zip(self.base).zip(self.dy) {
            // What is not finite has not stayed where it was, even if its bits have.
            if y.to_bits() != base.to_bits() || !y.is_finite() {
                change += dy * (y - base);
                squares += (dy * y.abs().max(base.abs()) / self.unit).powi(2);
            }
        }
        Ok((change, ROUNDINGS * T::ROUNDOFF * self.unit * squares.sqrt()))
    }
}

fn largest_finite(values: &[f64]) -> f64 {
    values.iter().filter(|g| g.is_finite()).fold(0.0, |largest: f64, g| largest.max(g.abs()))
}

/// What differences of a tensor are made with.
#[derive(Clone, Copy)]
struct Numeric {
    noise: f64,
    /// By how much the first step is longer than usual.
    longer: f64,
    /// Gradients below this cannot be told from zero.
    hidden: f64,
    /// What outputs that do not move may hide: a gradient that is off by no more is not known to be wrong.
    still: f64,
    /// The size of the tensor's values.
    typical: f64,
}

/// Every entry.
fn full<T: Element>(
    v: &Variables<T>,
    probe: &mut Probe<'_, '_, T>,
    Numeric { noise, longer, hidden, still, typical }: Numeric,
    Tolerance { rtol, atol }: Tolerance,
    rng: &mut Rng,
) -> Result<TensorReport> {
    // No tolerance means none.
    let hidden = if atol == 0.0 { 0.0 } else { hidden };
    let (mut found, mut largest) = (Vec::with_capacity(v.analytic.len()), 0.0f64);
    for i in 0..v.analytic.len() {
        // How sure a difference has to be follows from differences alone.
        let sure = Sure { fixed: (atol * largest / 8.0).max(hidden / 2.0), part: rtol / 8.0 };
        let ladder = Ladder::new::<T>(probe.origin[i].to_f64(), typical, rng).longer(longer);
        let difference = derivative(&mut |h| probe.entry(i, h), ladder, sure, noise)?;
        if difference.is_known() && difference.value.is_finite() {
            largest = largest.max(difference.value.abs());
        }
        found.push(difference);
    }
    let of_scale = hidden.max(atol * largest);
    let scale = if hidden > atol * largest { hidden / atol } else { largest };
    let mut report = TensorReport::new(&v.name, v.shape, scale);
    let part = HIDDEN[usize::from(!is_f64::<T>())];
    report.is_raised = hidden > (atol + rtol) * largest && !found.is_empty();
    report.is_unseen = report.is_raised && largest <= hidden;
    report.is_hidden = largest > hidden && hidden > part * largest;
    for (index, difference) in found.iter().enumerate() {
        let (analytic, added) = (v.analytic[index], v.added.as_ref().map(|added| added[index]));
        let Difference { value: mut numeric, mut doubt, kink } = *difference;
        let mut allowed = of_scale + rtol * numeric.abs();
        let within = |limit: f64| [Some(analytic), added].into_iter().flatten().all(|g| (g - numeric).abs() <= limit);
        if let Some([lower, upper]) = kink.filter(|_| !(difference.is_known() && within(allowed))) {
            // There is no derivative, or none that is sure, but a gradient lies between the slopes of the sides.
            let beyond = BEYOND * (upper - lower) + of_scale;
            let lies_between = |g: f64| g.is_finite() && (lower - beyond..=upper + beyond).contains(&g);
            let is_possible = match difference.is_known() {
                true => within(allowed + SURELY * doubt),
                false => lies_between(analytic) && added.is_none_or(lies_between),
            };
            if is_possible {
                report.skipped += 1;
                continue;
            }
            if !difference.is_known() {
                (numeric, doubt) = (analytic.clamp(lower, upper), upper - lower);
                allowed = of_scale + rtol * numeric.abs();
            }
        }
        report.checked += 1;
        let entry = Entry { index, analytic, numeric, doubt: doubt + still, allowed, is_second_pass: false };
        report.add(entry);
        if let Some(added) = added {
            report.add(Entry { analytic: added, is_second_pass: true, ..entry });
        }
    }
    Ok(report)
}

/// A few directions; `None` if they do not suffice.
fn fast<T: Element>(
    v: &Variables<T>,
    probe: &mut Probe<'_, '_, T>,
    (ladder, Numeric { noise, hidden, .. }): (Ladder, Numeric),
    tolerance: Tolerance,
    directions: &[Vec<f64>],
) -> Result<Option<TensorReport>> {
    let scale = largest_finite(&v.analytic);
    // Half, because a wrong gradient is part of its own scale.
    let allowed = 0.5 * tolerance.atol * scale;
    // What noise hides, and values that no step moves, are a matter of single entries.
    if hidden > allowed || probe.origin.iter().any(|x| !x.is_finite()) {
        return Ok(None);
    }
    let mut report = TensorReport::new(&v.name, v.shape, scale);
    report.checked = v.analytic.len();
    report.directions = Some(directions.len());
    for (index, direction) in directions.iter().enumerate() {
        let dot = |g: &[f64]| g.iter().zip(direction).map(|(g, v)| g * v).sum::<f64>();
        let sure = Sure { fixed: allowed / 4.0, part: 0.0 };
        let found = derivative(&mut |h| probe.along(direction, h, &v.analytic), ladder, sure, noise)?;
        let entry = Entry {
            index,
            analytic: dot(&v.analytic),
            numeric: found.value,
            doubt: found.doubt,
            allowed,
            is_second_pass: false,
        };
        report.add(entry);
        if let Some(added) = &v.added {
            report.add(Entry { analytic: dot(added), is_second_pass: true, ..entry });
        }
        if !report.passed() || found.doubt > allowed {
            return Ok(None);
        }
    }
    Ok(Some(report))
}
