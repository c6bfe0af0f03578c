//! One axis: the range it covers, where its ticks stand and what they say.
//!
//! Everything is worked out in *drawn coordinates*: the value itself on a linear axis, its decimal logarithm on a
//! logarithmic one. What has no place on an axis (not finite, or not positive on a logarithmic one) is a gap.

use super::Scale;

/// A range of more than this factor is easier to read on a logarithmic axis.
const WIDE: f64 = 20.0;

/// What lies farther out than this is a gap too: differences of it could overflow, and no network means it.
const FAR: f64 = 1e100;
/// More ticks than this are never needed; rounding alone could ask for more.
const MOST: usize = 100;

/// A labelled place on an axis.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Tick {
    pub(super) at: f64,
    pub(super) label: String,
}

/// An axis fitted to its data; `low`, `high`, ticks and minor grid lines are drawn coordinates.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Ruler {
    pub(super) low: f64,
    pub(super) high: f64,
    pub(super) log: bool,
    pub(super) ticks: Vec<Tick>,
    pub(super) minor: Vec<f64>,
}

impl Ruler {
    /// Fits an axis to `values`, aiming at `wanted` ticks; `None` if no value can be placed.
    ///
    /// `decisive` are the values that choose between linear and logarithmic for [`Scale::Auto`]: the lines, not the
    /// bands around them.
    pub(super) fn fit(scale: &Scale, decisive: &[f64], values: &[f64], wanted: usize) -> Option<Ruler> {
        let log = match scale {
            Scale::Log => true,
            Scale::Auto => extent(decisive.iter().copied()).is_some_and(|(low, high)| low > 0.0 && high / low > WIDE),
            Scale::Linear | Scale::FromZero | Scale::Whole | Scale::Names(_) => false,
        };
        let (low, high) = extent(values.iter().filter_map(|&v| place(log, v)))?;
        Some(match scale {
            _ if log => logarithmic(low, high, wanted),
            Scale::FromZero => linear(low.min(0.0), high, wanted),
            Scale::Whole => whole(low, high, wanted),
            Scale::Names(names) => named(low, high, names),
            _ => linear(low, high, wanted),
        })
    }

    /// The drawn coordinate of a value, or `None` for a gap.
    pub(super) fn place(&self, value: f64) -> Option<f64> {
        place(self.log, value)
    }
}

fn place(log: bool, value: f64) -> Option<f64> {
    let drawn = if log { if value > 0.0 { value.log10() } else { f64::NAN } } else { value };
    (drawn.abs() <= FAR).then_some(drawn)
}

fn extent(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    values.filter(|v| v.is_finite()).fold(None, |seen, v| match seen {
        None => Some((v, v)),
        Some((low, high)) => Some((low.min(v), high.max(v))),
    })
}

fn linear(low: f64, high: f64, wanted: usize) -> Ruler {
    let (mut low, mut high) = (low, high);
    if high - low <= 1e-9 * low.abs().max(high.abs()) {
        let room = if low == 0.0 { 1.0 } else { 0.1 * low.abs() };
        (low, high) = (low - room, high + room);
    }
    let pad = 0.05 * (high - low);
    // Values that nearly reach zero are shown from zero, so that heights compare as ratios.
    let from_zero = low >= 0.0 && low < 0.25 * high;
    let (low, high) = (if from_zero { 0.0 } else { low - pad }, high + pad);
    Ruler { low, high, log: false, ticks: multiples(low, high, step(low, high, wanted)), minor: Vec::new() }
}

fn whole(low: f64, high: f64, wanted: usize) -> Ruler {
    let span = high - low;
    let pad = if span == 0.0 { 0.5 } else { 0.02 * span };
    let (low, high) = (low - pad, high + pad);
    let step = if span < 12.0 { 1.0 } else { step(low, high, wanted).ceil() };
    Ruler { low, high, log: false, ticks: multiples(low, high, step), minor: Vec::new() }
}

/// The first name stands at 1, the second at 2, and so on.
fn named(low: f64, high: f64, names: &[String]) -> Ruler {
    let (low, high) = (low.min(1.0) - 0.5, high.max(names.len() as f64) + 0.5);
    let ticks = names.iter().enumerate().map(|(i, name)| Tick { at: (i + 1) as f64, label: name.clone() }).collect();
    Ruler { low, high, log: false, ticks, minor: Vec::new() }
}

fn logarithmic(low: f64, high: f64, wanted: usize) -> Ruler {
    let pad = if high - low < 0.05 { 0.15 } else { 0.05 * (high - low) };
    let (low, high) = (low - pad, high + pad);
    let decades = high.floor() - low.ceil();
    if decades >= 2.0 {
        let step = ((decades + 1.0) / (wanted + 2) as f64).ceil();
        let at: Vec<f64> = counting(low, high, step).map(|k| k * step).collect();
        let plain = at.iter().all(|e| (-3.0..=4.0).contains(e));
        let label = |e: f64| if plain { grouped(10f64.powf(e), places(10f64.powf(e))) } else { power_of_ten(e) };
        let ticks = at.iter().map(|&at| Tick { at, label: label(at) }).collect();
        return Ruler {
            low,
            high,
            log: true,
            ticks,
            minor: if step == 1.0 { digits(low, high, 2..=9) } else { Vec::new() },
        };
    }
    let ticks = if high - low < 0.4 {
        // Less than a factor of two or so: evenly spaced values, at their logarithmic places.
        let (a, b) = (10f64.powf(low), 10f64.powf(high));
        let even = multiples(a, b, step(a, b, 4)).into_iter();
        even.filter_map(|t| Some(Tick { at: place(true, t.at)?, ..t })).collect()
    } else {
        let few = digits(low, high, [1, 2, 5]);
        let at = if few.len() < 3 { digits(low, high, 1..=9) } else { few };
        at.into_iter().map(|at| Tick { at, label: one_digit(at) }).collect()
    };
    Ruler { low, high, log: true, ticks, minor: Vec::new() }
}

/// The whole multiples of `step` that lie between `low` and `high`, counted in steps.
fn counting(low: f64, high: f64, step: f64) -> impl Iterator<Item = f64> {
    let first = (low / step - 1e-9).ceil();
    let last = (high / step + 1e-9).floor();
    (0..MOST).map(move |i| first + i as f64).take_while(move |k| *k <= last)
}

/// Logarithms of `digit * 10^k` between `low` and `high`, in order.
fn digits(low: f64, high: f64, which: impl IntoIterator<Item = u32> + Clone) -> Vec<f64> {
    counting(low.floor(), high.ceil(), 1.0)
        .flat_map(|k| which.clone().into_iter().map(move |d| k + f64::from(d).log10()))
        .filter(|at| (low..=high).contains(at))
        .collect()
}

/// The round step whose multiples between `low` and `high` come closest to `wanted` in number; the wider of two equals.
fn step(low: f64, high: f64, wanted: usize) -> f64 {
    let power = 10f64.powf(((high - low) / wanted as f64).log10().floor());
    let candidates = [10.0, 5.0, 2.0, 1.0, 0.5].map(|mantissa| mantissa * power);
    let missed = |step: f64| counting(low, high, step).count().abs_diff(wanted);
    candidates.into_iter().fold(candidates[0], |best, step| if missed(step) < missed(best) { step } else { best })
}

fn multiples(low: f64, high: f64, step: f64) -> Vec<Tick> {
    let largest = low.abs().max(high.abs());
    // Outside this window plain decimals are longer than they are clear.
    if !(1e-4..1e6).contains(&largest) {
        let exponent = largest.log10().floor();
        let power = 10f64.powf(exponent);
        let places = places(step / power);
        let label = |v: f64| match v {
            0.0 => "0".to_owned(),
            v => format!("{}×{}", grouped(v / power, places), power_of_ten(exponent)),
        };
        return counting(low, high, step).map(|k| Tick { at: k * step, label: label(k * step) }).collect();
    }
    let places = places(step);
    counting(low, high, step).map(|k| Tick { at: k * step, label: grouped(k * step, places) }).collect()
}

/// Decimal places that tell multiples of `step` apart exactly, nine at most.
fn places(step: f64) -> usize {
    (0..9)
        .find(|&p| {
            let scaled = step * 10f64.powi(p);
            (scaled - scaled.round()).abs() < 1e-6 * scaled
        })
        .map_or(9, |p| p as usize)
}

/// `digit * 10^k` from its logarithm, as a decimal while that is short.
fn one_digit(at: f64) -> String {
    let exponent = (at + 1e-9).floor();
    if (-4.0..6.0).contains(&exponent) {
        return grouped(10f64.powf(at), places(10f64.powf(exponent)));
    }
    match (10f64.powf(at - exponent)).round() {
        1.0 => power_of_ten(exponent),
        digit => format!("{digit}×{}", power_of_ten(exponent)),
    }
}

fn power_of_ten(exponent: f64) -> String {
    let plain = format!("{exponent:.0}");
    let raised = plain.chars().map(|c| match c {
        '-' => '⁻',
        '1' => '¹',
        '2' => '²',
        '3' => '³',
        digit => char::from_u32(digit as u32 - '0' as u32 + '⁰' as u32).unwrap_or(digit),
    });
    "10".chars().chain(raised).collect()
}

/// A decimal with a comma between thousands and a true minus sign.
fn grouped(value: f64, places: usize) -> String {
    let plain = format!("{:.places$}", value.abs());
    let whole = plain.split('.').next().map_or(0, str::len);
    let mut text = String::new();
    if value < 0.0 && plain.contains(|c: char| c.is_ascii_digit() && c != '0') {
        text.push('−');
    }
    for (i, c) in plain.chars().enumerate() {
        if i > 0 && i < whole && (whole - i) % 3 == 0 {
            text.push(',');
        }
        text.push(c);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(scale: &Scale, values: &[f64]) -> Vec<String> {
        Ruler::fit(scale, values, values, 5).unwrap().ticks.into_iter().map(|t| t.label).collect()
    }

    #[test]
    fn labels_are_short_and_round() {
        assert_eq!(labels(&Scale::Linear, &[0.05, 2.3]), ["0.0", "0.5", "1.0", "1.5", "2.0"]);
        assert_eq!(labels(&Scale::Linear, &[0.91, 0.978]), ["0.92", "0.94", "0.96", "0.98"]);
        assert_eq!(labels(&Scale::Linear, &[-3.0, 2.0]), ["−3", "−2", "−1", "0", "1", "2"]);
        assert_eq!(labels(&Scale::Linear, &[0.0, 4.1e-6]), ["0", "1×10⁻⁶", "2×10⁻⁶", "3×10⁻⁶", "4×10⁻⁶"]);
        assert_eq!(labels(&Scale::Whole, &[0.0, 18_750.0]), ["0", "5,000", "10,000", "15,000"]);
    }

    #[test]
    fn rates_start_at_zero() {
        assert_eq!(labels(&Scale::FromZero, &[91.0, 97.8]), ["0", "20", "40", "60", "80", "100"]);
        assert_eq!(Ruler::fit(&Scale::FromZero, &[], &[91.0, 97.8], 5).unwrap().low, 0.0);
    }

    #[test]
    fn epochs_are_whole_numbers() {
        assert_eq!(labels(&Scale::Whole, &[1.0]), ["1"]);
        assert_eq!(labels(&Scale::Whole, &[1.0, 2.0]), ["1", "2"]);
        assert_eq!(labels(&Scale::Whole, &[1.0, 10.0]).len(), 10);
        assert_eq!(labels(&Scale::Whole, &[1.0, 50.0]), ["10", "20", "30", "40", "50"]);
    }

    #[test]
    fn logarithmic_axes_choose_their_detail() {
        assert_eq!(labels(&Scale::Log, &[0.002, 3.0]), ["0.01", "0.1", "1"]);
        assert_eq!(labels(&Scale::Log, &[0.1, 0.9]), ["0.1", "0.2", "0.5", "1"]);
        assert_eq!(labels(&Scale::Log, &[1.0, 1.0]), ["0.8", "1.0", "1.2", "1.4"]);
        assert_eq!(labels(&Scale::Log, &[1e-9, 1e3]), ["10⁻⁸", "10⁻⁶", "10⁻⁴", "10⁻²", "10⁰", "10²"]);
    }

    #[test]
    fn auto_turns_logarithmic_only_for_a_wide_positive_range() {
        let is_log = |values: &[f64]| Ruler::fit(&Scale::Auto, values, values, 5).unwrap().log;
        assert!(!is_log(&[0.2, 2.0]));
        assert!(is_log(&[0.1, 2.1]));
        assert!(!is_log(&[0.0, 2.1]));
        assert!(is_log(&[f64::NAN, 0.1, f64::INFINITY, 2.1]));
    }

    #[test]
    fn what_cannot_be_placed_is_a_gap() {
        assert_eq!(Ruler::fit(&Scale::Linear, &[], &[f64::NAN, f64::INFINITY], 5), None);
        assert_eq!(Ruler::fit(&Scale::Log, &[], &[0.0, -1.0], 5), None);
        let ruler = Ruler::fit(&Scale::Log, &[], &[1.0, 100.0], 5).unwrap();
        assert_eq!(ruler.place(0.0), None);
        assert_eq!(ruler.place(10.0), Some(1.0));
    }

    #[test]
    fn extreme_ranges_stay_finite_and_few() {
        for values in [[f64::MIN_POSITIVE, f64::MAX], [-f64::MAX / 4.0, f64::MAX / 4.0], [1e16, 1e16 + 2.0], [0.0, 0.0]]
        {
            for scale in [Scale::Linear, Scale::Whole, Scale::Log, Scale::Auto] {
                if let Some(ruler) = Ruler::fit(&scale, &values, &values, 5) {
                    assert!(ruler.low < ruler.high && ruler.ticks.len() <= 16, "{scale:?} {values:?}: {ruler:?}");
                }
            }
        }
    }
}
