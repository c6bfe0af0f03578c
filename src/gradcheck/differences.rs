//! The numeric side: what differences say of a derivative, how sure they are, and how the error of a linear model falls with the step.
//!
//! # One derivative
//!
//! For a smooth function of one variable, `D(h) = (f(h) - f(-h)) / 2h = f'(0) + a h^2 + O(h^4) + O(u |f| / h)`. Steps go down a ladder
//! by a factor r, and each two neighbours are extrapolated to `R = D(h/r) + (D(h/r) - D(h)) / (r^2 - 1)`, which lacks the term in h^2
//! (Richardson). The doubt of an R is by how much it differs from the R before it, whose error is r^4 times as large where the ladder
//! converges, the square of the part by which D changed (two R may agree by accident before it does), and what rounding leaves in its
//! shorter step. The answer is the R with the least doubt, whatever the gradient is that it will be compared with. The ladder ends as
//! soon as the doubt is below what is asked for: after three steps mostly.
//!
//! The first step is drawn, and r is no round number: a function that repeats itself with the steps would otherwise look like another one.
//!
//! # Kinks
//!
//! The slopes of the two sides of a smooth function are `f'' h` apart. A kink at a distance d adds `J (1 - d/h)` for all steps h above d,
//! J being the jump of the slope. Extrapolating the gaps of two neighbours, `jump = (r gap(h/r) - gap(h)) / (r - 1)`, takes `f'' h` out,
//! however small J is beside it: what is left falls with h^3 for a smooth function, and stays J at a kink. Neighbours whose jump is above
//! rounding, and does not shrink, are not believed. Where d lies between two steps of the ladder, three of them do not agree. If none
//! is sure enough, and the jump has stayed as it was above rounding but has not shrunk three times since (passing d may shrink it twice),
//! the variable is at a kink, or so near one that the ladder hardly gets in front of it: there is no derivative to be compared with, unless
//! one is told well from the slopes of the two sides, which are extrapolated likewise.
//!
//! # Noise
//!
//! How much rounding scatters the function is measured: fourth differences of values at tiny equal steps, where everything smooth has
//! died out, have a standard deviation of `sqrt(70)` times that of the values. The largest of eight stands for it ([`noise`]).
//!
//! # Taylor's test
//!
//! Along one direction v, `|f(h) - f(0) - h g v|` falls as h^2 if g is the gradient (or faster, if the function does not bend there), and
//! as h if it is not: [`slope`] is that exponent at the smallest steps where rounding does not hide it.
//!
//! # References
//!
//! Richardson, Phil. Trans. A 210 (1911), on extrapolation. More and Wild, "Estimating computational noise", SIAM J. Sci. Comput. 33
//! (2011), equation 3.1.

use crate::rng::Rng;
use crate::simd::Element;

/// From one step to the next.
const RATIO: f64 = 3.7;

/// The steps of one variable, or of one direction.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ladder {
    first: f64,
    steps: usize,
    /// Where Taylor's test begins: so far out that the term in h^2 stands out.
    taylor: f64,
    /// The step at which noise is all that is left: some hundred units in the last place of a value of order one.
    tiny: f64,
    /// A step within the size of the values, whatever that is, and longer than the first for values of order one.
    near: f64,
    /// The size of the values, or what a function of small ones hardly bends within: a first step is not made longer.
    longest: f64,
}

impl Ladder {
    /// For a variable of type `T` that is as large as `value`, in a tensor whose values are `typical`.
    ///
    /// f64: from 2^-10 to 2^-9 for the first step, down to 3e-12 in sixteen; the first three have truncations below 1e-13 and a rounding of
    /// 1e-12 of a function that bends within 1. f32: from 2^-4 to 2^-3, down to 2e-6 in nine. The last are for steep functions.
    /// Where values are small, the function may bend within their size, or not: steps begin at the root of it, and there are more of them. So
    /// there are for a small value among larger ones, which may be near a pole. A large value gets steps that it does not swallow.
    pub(super) fn new<T: Element>(value: f64, typical: f64, rng: &mut Rng) -> Self {
        let (steps, [first, taylor, tiny, near, swallowed]) =
            if is_f64::<T>() { (16, [-10, -5, -30, -8, -20]) } else { (9, [-4, -1, -16, -2, -8]) };
        // No step leaves the normal numbers.
        let lowest = (0.85 * T::LOWEST_EXPONENT).exp2();
        let longest = if typical > 0.0 { typical.max(lowest) } else { 1.0 };
        let typical = longest.min(1.0);
        let least = (value.abs() * 2f64.powi(swallowed)).min(f64::MAX);
        let size = typical.sqrt().max(least);
        let step = |exponent| size * 2f64.powi(exponent);
        // As many more as it takes from the root to the size itself, or to that of the value.
        let smallest = if value == 0.0 || value.is_nan() { typical } else { value.abs().clamp(lowest, typical) };
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "below a thousand, and not negative"
        )]
        let more = ((typical.sqrt() / smallest).ln() / RATIO.ln()).ceil() as usize;
        Ladder {
            first: rng.range(1.0, 2.0) * step(first),
            steps: steps + more,
            taylor: step(taylor),
            tiny: typical.max(least) * 2f64.powi(tiny),
            near: typical.max(least) * 2f64.powi(near),
            longest: longest.max(2f64.powi(-5)),
        }
    }

    /// The same with a longer first step, for functions that are too noisy for short ones.
    pub(super) fn longer(self, times: f64) -> Self {
        Ladder { first: self.first * times, ..self }
    }

    /// How many times as long the first step may be.
    pub(super) fn room(self) -> f64 {
        self.longest / self.first
    }

    /// The first step.
    pub(super) fn first(self) -> f64 {
        self.first
    }

    /// A step of those that noise is measured with.
    pub(super) fn tiny(self) -> f64 {
        self.tiny
    }

    /// A step that stays in the neighbourhood.
    pub(super) fn near(self) -> f64 {
        self.near
    }

    /// The third step, which mostly is the last.
    pub(super) fn third(self) -> f64 {
        self.first / (RATIO * RATIO)
    }
}

/// Whether the type is f64.
pub(super) fn is_f64<T: Element>() -> bool {
    T::ROUNDOFF == f64::ROUNDOFF
}

/// The size of a tensor's values: the median of those that are not zero, which few large ones do not move; 0 if there are none.
pub(super) fn typical<T: Element>(values: &[T]) -> f64 {
    let sizes = values.iter().map(|x| x.to_f64().abs());
    let mut sizes: Vec<f64> = sizes.filter(|&x| x > 0.0 && x.is_finite()).collect();
    if sizes.is_empty() {
        return 0.0;
    }
    let middle = sizes.len() / 2;
    *sizes.select_nth_unstable_by(middle, f64::total_cmp).1
}

/// What one step did.
#[derive(Clone, Copy, Debug)]
pub(super) struct Move {
    /// By how much the function changed.
    pub(super) change: f64,
    /// How far the variable went: what was asked for, rounded.
    pub(super) step: f64,
    /// What the gradient to be checked says of the change.
    pub(super) predicted: f64,
    /// What rounding may have made of the change.
    pub(super) rounding: f64,
}

/// What differences say of one derivative.
#[derive(Clone, Copy, Debug)]
pub(super) struct Difference {
    /// The derivative.
    pub(super) value: f64,
    /// How far it is from the extrapolation before it, and what noise leaves in its shorter step.
    pub(super) doubt: f64,
    /// If there is a kink, and no sure derivative in front of it, the slopes of its two sides, the lower one first.
    pub(super) kink: Option<[f64; 2]>,
}

impl Difference {
    /// Whether the derivative is known: there is no kink, or it is told well from the slopes of the sides.
    pub(super) fn is_known(&self) -> bool {
        self.kink.is_none_or(|[lower, upper]| self.doubt < KNOWN * (upper - lower))
    }
}

/// How exactly a derivative has to be known: a number, and a part of itself.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sure {
    pub(super) fixed: f64,
    pub(super) part: f64,
}

impl Sure {
    fn of(self, value: f64) -> f64 {
        // What is not finite is not sure in any way.
        let part = self.part * value.abs();
        self.fixed + if part.is_finite() { part } else { 0.0 }
    }
}

/// The derivative at zero, of a function that `probe` takes a step along; `noise` is what [`noise`] says of it.
pub(super) fn derivative<E>(
    probe: &mut impl FnMut(f64) -> Result<Move, E>,
    ladder: Ladder,
    sure: Sure,
    noise: f64,
) -> Result<Difference, E> {
    let mut best = Difference { value: f64::NAN, doubt: f64::INFINITY, kink: None };
    // The sides of a kink, as they were seen last, and how often the jump has shrunk since; the sides whether it stays as it is or grows.
    let (mut sides, mut shrunk, mut apart) = (None, 0, None);
    let (mut last, mut last_jump, mut extrapolated): (Option<Slopes>, Option<f64>, Option<f64>) = (None, None, None);
    let mut h = ladder.first;
    for _ in 0..ladder.steps {
        let (above, below) = (probe(h)?, probe(-h)?);
        let central = (above.change - below.change) / (above.step - below.step);
        let slopes = Slopes {
            central,
            right: above.change / above.step,
            left: below.change / below.step,
            rounding: (above.rounding + below.rounding).max(OF_A_GAP * noise) / h,
        };
        if let Some(wider) = last {
            let [left, right] = [(slopes.left, wider.left), (slopes.right, wider.right)]
                .map(|(slope, wider)| slope + (slope - wider) / (RATIO - 1.0));
            let jump = right - left;
            let rounding = (RATIO * slopes.rounding + wider.rounding) / (RATIO - 1.0);
            let is_seen = jump.abs() > rounding.max(sure.of(central));
            // At a kink it stays; it grows where the function is flat but for what lies within the steps.
            let (shrinks, grows) = match last_jump.map(|last| jump / last) {
                Some(ratio) => (ratio <= SHRUNK, SHRUNK * ratio > 1.0),
                None => (false, true),
            };
            if is_seen && shrinks {
                shrunk += 1;
            } else if is_seen {
                apart = Some([left.min(right), left.max(right)]);
                if !grows {
                    (sides, shrunk) = (apart, 0);
                }
            }
            let is_kinked = is_seen && last_jump.is_some() && !shrinks;
            last_jump = jump.is_finite().then_some(jump);
            let value = central + (central - wider.central) / (RATIO * RATIO - 1.0);
            // A slope that grows as fast as steps shrink is that of a function which bends within far less than them.
            let is_growing = central.abs() > GROWN * wider.central.abs() + slopes.rounding;
            let is_believed = !is_growing && !is_kinked;
            if let Some(before) = extrapolated.filter(|_| is_believed) {
                // Where D still changes by a part of itself, what is left of R's error goes with the square of that part.
                let change = (central - wider.central).abs();
                let bend =
                    if change > slopes.rounding { change * (BENT * change / central.abs()).min(1.0) } else { 0.0 };
                let rounded = noise.max((above.rounding + below.rounding) / OF_ROUNDINGS) / h;
                let doubt = (value - before).abs() + bend + rounded;
                if doubt < best.doubt {
                    best = Difference { value, doubt, kink: None };
                }
            }
            extrapolated = is_believed.then_some(value);
        }
        if best.doubt <= sure.of(best.value) {
            return Ok(best);
        }
        last = Some(slopes);
        h /= RATIO;
    }
    // With a kink on the way, three steps in front of it may not be left.
    if best.value.is_nan() {
        best.kink = sides.or(apart);
    } else if shrunk < 3 {
        best.kink = sides;
    }
    Ok(best)
}

/// What one step says of the slope: in the middle, and on both sides.
#[derive(Clone, Copy)]
struct Slopes {
    central: f64,
    right: f64,
    left: f64,
    /// Of the gap between the sides.
    rounding: f64,
}

/// Part of the jump before it that a smooth function leaves at most. It falls by r^3, and by the root of r where `|x|^(3/2)` bends.
const SHRUNK: f64 = 0.6;

/// How many times the square of the part by which D changed an R may be off by.
const BENT: f64 = 4.0;

/// How many times as large a slope may be as at the step before; it is r times where the function is flat but for what lies within the step.
const GROWN: f64 = 2.0;

/// Part of the gap between the sides by which a derivative may be in doubt that is told from them.
const KNOWN: f64 = 0.01;

/// `Move::rounding` is a limit, for two steps together: this part of it is what to expect.
const OF_ROUNDINGS: f64 = 16.0;

/// How many times its noise over h a gap of slopes may be: its two differences have four values in them.
const OF_A_GAP: f64 = 16.0;

/// Points at which noise is measured on one side.
const NOISE_POINTS: usize = 12;

/// The scatter that rounding gives the function from `distance` on.
///
/// Of the two sides the smoother one says: a jump may be near, and at the base point itself it lies between them.
pub(super) fn noise<E>(
    probe: &mut impl FnMut(f64) -> Result<Move, E>,
    ladder: Ladder,
    distance: f64,
) -> Result<f64, E> {
    let mut least = f64::INFINITY;
    for side in [1.0, -1.0] {
        let mut values = [0.0; NOISE_POINTS];
        for (i, value) in values.iter_mut().enumerate() {
            *value = probe(side * (distance + (i + 1) as f64 * ladder.tiny))?.change;
        }
        for _ in 0..4 {
            for i in 0..NOISE_POINTS - 1 {
                values[i] = values[i + 1] - values[i];
            }
        }
        // The last four are what is left of shorter rows.
        let largest = values[..NOISE_POINTS - 4].iter().fold(0.0, |largest: f64, d| largest.max(d.abs()));
        // A function that is not finite here shows so elsewhere.
        let noise = largest / 70f64.sqrt();
        least = least.min(if noise.is_finite() { noise } else { 0.0 });
    }
    Ok(least)
}

/// How far above its rounding a remainder must be to be looked at.
const ABOVE_ROUNDING: f64 = 100.0;

/// The exponent with which the error of the linear model falls; `None` if it is not above rounding twice, as for a linear function.
pub(super) fn slope<E>(
    probe: &mut impl FnMut(f64) -> Result<Move, E>,
    ladder: Ladder,
    noise: f64,
) -> Result<Option<f64>, E> {
    let (mut found, mut last) = (None, None);
    let mut h = ladder.taylor;
    for _ in 0..ladder.steps {
        let moved = probe(h)?;
        let remainder = (moved.change - moved.predicted).abs();
        if !remainder.is_finite() || remainder <= ABOVE_ROUNDING * moved.rounding.max(noise) {
            break;
        }
        if let Some(last) = last {
            let ratio: f64 = last / remainder;
            found = Some(ratio.ln() / RATIO.ln());
        }
        last = Some(remainder);
        h /= RATIO;
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;
    use std::f64::consts::TAU;

    fn of(f: impl Fn(f64) -> f64, gradient: f64) -> impl FnMut(f64) -> Result<Move, Infallible> {
        move |h| {
            let rounding = 8.0 * f64::ROUNDOFF * f(h).abs().max(f(0.0).abs());
            Ok(Move { change: f(h) - f(0.0), step: h, predicted: gradient * h, rounding })
        }
    }

    fn ladder(seed: u64) -> Ladder {
        Ladder::new::<f64>(1.0, 1.0, &mut Rng::new(seed, "ladder"))
    }

    fn known_to(fixed: f64) -> Sure {
        Sure { fixed, part: 0.0 }
    }

    #[test]
    fn smooth_functions_have_their_derivative() {
        type Case = (&'static str, fn(f64) -> f64, f64);
        let cases: [Case; 8] = [
            ("linear", |x| 3.0 * x - 7.0, 3.0),
            ("exponential", |x| (x + 0.3).exp(), 0.3f64.exp()),
            // It bends within 3e-3, and within 1e-5.
            ("steep", |x| x / (x * x + 1e-5).sqrt(), 1e5f64.sqrt()),
            ("steeper", |x| (x + 3e-6) / ((x + 3e-6).powi(2) + 1e-10).sqrt(), 1e-10 / (9e-12f64 + 1e-10).powf(1.5)),
            ("parabola at its foot", |x| x * x, 0.0),
            ("near its pole", |x| (x + 1e-7).ln(), 1e7),
            ("bent at its foot", |x| x.abs().powf(1.5), 0.0),
            // It repeats itself within 2^-13.
            ("ripple", |x| x + 2e-4 * (TAU * 8192.0 * x).sin(), 1.0 + 2e-4 * TAU * 8192.0),
        ];
        for (name, f, slope) in cases {
            for seed in 0..20 {
                let sure = Sure { fixed: 1e-8, part: 1e-7 };
                let found = derivative(&mut of(f, 0.0), ladder(seed), sure, 1e-16).unwrap();
                assert!((found.value - slope).abs() <= 1e-5 * slope.abs() + 1e-7, "{name}: {found:?}, not {slope}");
                assert!(found.kink.is_none(), "{name}: {found:?}");
            }
        }
    }

    #[test]
    fn a_kink_is_one_unless_steps_fit_in_front_of_it() {
        for jump in [1.0, 0.01, 3e-4] {
            for distance in [0.0, 1e-10, 1e-9, 1e-7, 1.5e-6, 3e-6, 1e-5, 7e-5, 1.05e-4, 1e-3, 1.0] {
                for seed in 0..20 {
                    let kinked = |x: f64| jump * (x - distance).max(0.0) + 0.5 * x;
                    let found = derivative(&mut of(kinked, 0.0), ladder(seed), known_to(1e-7), 1e-16).unwrap();
                    let what = format!("jump {jump} at {distance}: {found:?}");
                    assert!(found.kink.is_some() || distance > 0.0, "{what}");
                    assert!(found.kink.is_none() || distance < 3e-9, "{what}");
                    if let Some([lower, upper]) = found.kink {
                        assert!((lower - 0.5).abs() < 0.1 * jump && upper - lower > 0.1 * jump, "{what}");
                        assert!(distance > 0.0 || !found.is_known(), "{what}");
                    }
                    if found.is_known() {
                        assert!((found.value - 0.5).abs() < 3e-7 + 4.0 * found.doubt, "{what}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_kink_is_one_however_small_beside_the_curvature() {
        for jump in [1e-2, 3e-4, 1e-4, 1e-5] {
            for curvature in [0.0, 1.0, -30.0] {
                for seed in 0..20 {
                    let kinked = |x: f64| jump * x.max(0.0) + curvature * x * x + 0.5 * (x + 0.2).exp();
                    let found = derivative(&mut of(kinked, 0.0), ladder(seed), known_to(1e-7), 1e-16).unwrap();
                    let (what, slope) = (format!("{jump} and {curvature}, seed {seed}: {found:?}"), 0.5 * 0.2f64.exp());
                    let [lower, upper] = found.kink.expect(&what);
                    assert!((lower - slope).abs() < 0.1 * jump && (upper - slope - jump).abs() < 0.1 * jump, "{what}");
                }
            }
        }
    }

    #[test]
    fn noise_is_what_scatters_the_values() {
        for amount in [0.0, 1e-12, 1e-6] {
            let mut rng = Rng::new(1, "noise");
            let mut probe = |h: f64| -> Result<Move, Infallible> {
                Ok(Move { change: (3.0 * h).exp() + amount * rng.normal(), step: h, predicted: 0.0, rounding: 0.0 })
            };
            let found = noise(&mut probe, ladder(1), 0.0).unwrap();
            // The largest of eight normal numbers is within a factor of four of their standard deviation, rarely less.
            assert!(found >= 0.5 * amount && found <= 4.0 * amount + 1e-15, "{amount:e}: {found:e}");
        }
    }

    #[test]
    fn what_is_not_finite_has_no_derivative() {
        let f = |x: f64| if x > 0.0 { f64::NAN } else { x };
        let found = derivative(&mut of(f, 0.0), ladder(1), known_to(1e-8), 0.0).unwrap();
        assert!(found.value.is_nan() && found.doubt == f64::INFINITY && found.kink.is_none(), "{found:?}");
    }

    #[test]
    fn the_remainder_falls_by_the_square_for_the_right_gradient_alone() {
        let f = |x: f64| (x + 0.3).exp();
        let right = slope(&mut of(f, 0.3f64.exp()), ladder(1), 0.0).unwrap().unwrap();
        let wrong = slope(&mut of(f, 1.001 * 0.3f64.exp()), ladder(1), 0.0).unwrap().unwrap();
        assert!((right - 2.0).abs() < 0.05 && (wrong - 1.0).abs() < 0.05, "{right} {wrong}");
        assert_eq!(slope(&mut of(|x| 3.0 * x, 3.0), ladder(1), 0.0).unwrap(), None);
    }

    #[test]
    fn steps_go_with_the_size_of_the_values() {
        let first = |value, typical| Ladder::new::<f64>(value, typical, &mut Rng::new(1, "ladder")).first;
        let usual = first(1.0, 1.0);
        assert!((2f64.powi(-10)..2f64.powi(-9)).contains(&usual));
        assert_eq!([first(1e-3, 1.0), first(0.0, 0.0), first(-100.0, 7.0)], [usual; 3]);
        assert_eq!(first(1e-3, 2f64.powi(-10)), usual * 2f64.powi(-5));
        assert_eq!(first(2f64.powi(30), 1.0), usual * 2f64.powi(10));
        for (value, typical) in [(f64::MAX, f64::MAX), (5e-324, 5e-324), (f64::NAN, 1.0), (f64::INFINITY, 1.0)] {
            let ladder = Ladder::new::<f64>(value, typical, &mut Rng::new(1, "ladder"));
            let last = ladder.first / RATIO.powf((ladder.steps - 1) as f64);
            assert!(last.is_normal() && ladder.tiny.is_normal() && ladder.first.is_finite(), "{value:e}: {ladder:?}");
        }
        assert_eq!(typical(&[0.0, 3.0, -1e300, 2.0, f64::NAN, 0.0]), 3.0);
        assert_eq!(typical(&[0.0f32; 3]), 0.0);
    }
}
