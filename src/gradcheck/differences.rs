//! The numeric side: what differences say of a derivative, how sure they are, and how the error of a linear model falls with the step.
//!
//! # One derivative
//!
//! For a smooth function of one variable, `D(h) = (f(h) - f(-h)) / 2h = f'(0) + a h^2 + O(h^4) + O(u |f| / h)`. Steps go down a ladder
//! by a factor r, and each two neighbours are extrapolated to `R = D(h/r) + (D(h/r) - D(h)) / (r^2 - 1)`, which lacks the term in h^2
//! (Richardson). `doubt = |D(h/r) - D(h)| / (r^2 - 1)` is by how much the two disagree, and bounds the error of R where the ladder
//! converges; what rounding leaves in the shorter step is added to it. The answer is the R with the least doubt. The gradient that is to be checked has no say in that, so that no choice of a
//! step can help a wrong one. The ladder ends as soon as its doubt is below what is asked for: after two steps mostly.
//!
//! # Kinks
//!
//! A kink at a distance d leaves the slopes of the two sides apart by `J (1 - d/h)` for all steps h above d, J being the jump of the
//! slope; below d, and for a smooth function at any step, they come together as fast as the step shrinks. Two neighbours whose gap does
//! not shrink to the half are not believed. Where d lies between two steps of the ladder, the two disagree by a large part of J and
//! others have less doubt. If a gap did not shrink and none is sure enough, the variable is at a kink, or so near one that the ladder
//! does not get in front of it: there is no derivative to be checked against.
//!
//! # Noise
//!
//! How much rounding scatters the function is measured: fourth differences of values at tiny equal steps, where everything smooth has
//! died out, have a standard deviation of `sqrt(70)` times that of the values. The largest of eight stands for it ([`noise`]).
//!
//! # Taylor's test
//!
//! Along one direction v, `|f(h) - f(0) - h g v|` falls as h^2 if g is the gradient, and as h if it is not: [`slope`] is that exponent
//! at the smallest steps where rounding does not hide it.
//!
//! # Reference
//!
//! Richardson, Phil. Trans. A 210 (1911), on extrapolation. More and Wild, "Estimating computational noise", SIAM J. Sci. Comput. 33
//! (2011), equation 3.1.

use crate::simd::Element;

/// The steps of one tensor.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ladder {
    first: f64,
    ratio: f64,
    steps: usize,
    /// Where Taylor's test begins: so far out that the term in h^2 stands out.
    taylor: f64,
    /// The step at which noise is all that is left: some hundred units in the last place of a value of order one.
    tiny: f64,
}

impl Ladder {
    /// For a tensor with these values of type `T`.
    ///
    /// f64: 2^-10 down to 2^-22 by 8, where truncation (h^4) and rounding (u / h) of the extrapolated pairs are 1e-12 and 1e-10 of the
    /// function. f32: 2^-4 down to 2^-10 by 4, for 1e-5 and 1e-4. Values that are all small get smaller steps, as what depends on them
    /// bends within their size; huge ones get steps that they do not swallow.
    pub(super) fn new<T: Element>(values: &[T]) -> Self {
        let size = typical(values);
        let is_wide = T::ROUNDOFF < f64::from(f32::EPSILON) / 2.0;
        let (ratio, steps, [first, taylor, tiny, swallowed]) =
            if is_wide { (8.0, 5, [-10, -5, -30, -20]) } else { (4.0, 4, [-4, -1, -16, -8]) };
        let scale = if size > 0.0 && size.is_finite() {
            // A power of two adds no rounding of its own.
            let size = size.log2().round().exp2();
            size.min(1.0).max(size * 2f64.powi(swallowed))
        } else {
            1.0
        };
        let step = |exponent| scale * 2f64.powi(exponent);
        Ladder { first: step(first), ratio, steps, taylor: step(taylor), tiny: step(tiny) }
    }

    /// The shorter step of the first two, which mostly decide.
    pub(super) fn second(self) -> f64 {
        self.first / self.ratio
    }
}

/// Root of the mean square.
pub(super) fn typical<T: Element>(values: &[T]) -> f64 {
    if values.is_empty() {
        return 0.0;
    }
    let largest = values.iter().fold(0.0f64, |largest, x| largest.max(x.to_f64().abs()));
    if largest == 0.0 || !largest.is_finite() {
        return largest;
    }
    // Divided first: squares of what is large or small leave the range.
    let squares: f64 = values.iter().map(|x| (x.to_f64() / largest).powi(2)).sum();
    largest * (squares / values.len() as f64).sqrt()
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
    /// How far the two differences that it comes from are from it.
    pub(super) doubt: f64,
    /// Whether there is none, because of a kink.
    pub(super) is_kink: bool,
}

/// The derivative at zero, of a function that `probe` takes a step along; `sure` is how exactly it has to be known, `noise` what
/// [`noise`] says of the function.
pub(super) fn derivative<E>(
    probe: &mut impl FnMut(f64) -> Result<Move, E>,
    ladder: Ladder,
    sure: f64,
    noise: f64,
) -> Result<Difference, E> {
    let mut best = Difference { value: f64::NAN, doubt: f64::INFINITY, is_kink: false };
    let mut has_kink = false;
    let mut last: Option<(f64, f64)> = None;
    let mut h = ladder.first;
    for _ in 0..ladder.steps {
        let (above, below) = (probe(h)?, probe(-h)?);
        let central = (above.change - below.change) / (above.step - below.step);
        let gap = (above.change / above.step - below.change / below.step).abs();
        let rounding = (above.rounding + below.rounding).max(OF_A_GAP * noise) / h;
        if let Some((wider, wider_gap)) = last {
            let correction = (central - wider) / (ladder.ratio * ladder.ratio - 1.0);
            let doubt = correction.abs() + noise / h;
            let is_kink = gap > 0.5 * wider_gap && gap > rounding && gap > sure;
            has_kink |= is_kink;
            if !is_kink && doubt < best.doubt {
                best = Difference { value: central + correction, doubt, is_kink: false };
            }
        }
        if best.doubt <= sure {
            break;
        }
        last = Some((central, gap));
        h /= ladder.ratio;
    }
    best.is_kink = has_kink && (best.doubt > sure || best.value.is_nan());
    Ok(best)
}

/// How many times its noise over h a gap of slopes may be: its two differences have four values in them.
const OF_A_GAP: f64 = 16.0;

/// Points at which noise is measured, along a direction.
const NOISE_POINTS: usize = 12;

/// The scatter that rounding gives the function.
pub(super) fn noise<E>(probe: &mut impl FnMut(f64) -> Result<Move, E>, ladder: Ladder) -> Result<f64, E> {
    let mut values = [0.0; NOISE_POINTS];
    for (i, value) in values.iter_mut().enumerate() {
        *value = probe(i as f64 * ladder.tiny)?.change;
    }
    for _ in 0..4 {
        for i in 0..NOISE_POINTS - 1 {
            values[i] = values[i + 1] - values[i];
        }
    }
    // The last four are what is left of shorter rows.
    let largest = values[..NOISE_POINTS - 4].iter().fold(0.0, |largest: f64, d| largest.max(d.abs()));
    let noise = largest / 70f64.sqrt();
    // A function that is not finite here shows so elsewhere.
    Ok(if noise.is_finite() { noise } else { 0.0 })
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
    for _ in 0..ladder.steps + 2 {
        let moved = probe(h)?;
        let remainder = (moved.change - moved.predicted).abs();
        if !remainder.is_finite() || remainder <= ABOVE_ROUNDING * moved.rounding.max(noise) {
            break;
        }
        if let Some(last) = last {
            let ratio: f64 = last / remainder;
            found = Some(ratio.ln() / ladder.ratio.ln());
        }
        last = Some(remainder);
        h /= ladder.ratio;
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;

    fn of(f: impl Fn(f64) -> f64, gradient: f64) -> impl FnMut(f64) -> Result<Move, Infallible> {
        move |h| {
            let rounding = 8.0 * f64::EPSILON * f(h).abs().max(f(0.0).abs());
            Ok(Move { change: f(h) - f(0.0), step: h, predicted: gradient * h, rounding })
        }
    }

    fn ladder() -> Ladder {
        Ladder::new(&[1.0f64])
    }

    #[test]
    fn smooth_functions_have_their_derivative() {
        type Case = (&'static str, fn(f64) -> f64, f64);
        let cases: [Case; 4] = [
            ("linear", |x| 3.0 * x - 7.0, 3.0),
            ("exponential", |x| (x + 0.3).exp(), 0.3f64.exp()),
            // It bends within 3e-3.
            ("steep", |x| x / (x * x + 1e-5).sqrt(), 1e5f64.sqrt()),
            ("parabola at its foot", |x| x * x, 0.0),
        ];
        for (name, f, slope) in cases {
            let found = derivative(&mut of(f, 0.0), ladder(), 1e-9 * slope.abs(), 1e-16).unwrap();
            assert!((found.value - slope).abs() <= 1e-7 * slope.abs() + 1e-12 && !found.is_kink, "{name}: {found:?}");
        }
    }

    #[test]
    fn a_kink_is_one_unless_a_step_fits_in_front_of_it() {
        for distance in [0.0, 1e-9, 1.5e-6, 3e-6, 1e-5, 1.05e-4, 1e-3, 1.0] {
            let relu = |x: f64| (x - distance).max(0.0) + 0.5 * x;
            let found = derivative(&mut of(relu, 0.0), ladder(), 1e-8, 1e-16).unwrap();
            assert_eq!(found.is_kink, distance < 2f64.powi(-19), "{distance}: {found:?}");
            assert!(found.is_kink || (found.value - 0.5).abs() < 1e-7, "{distance}: {found:?}");
        }
    }

    #[test]
    fn noise_is_what_scatters_the_values() {
        for amount in [0.0, 1e-12, 1e-6] {
            let mut rng = crate::rng::Rng::new(1, "noise");
            let scattered = |x: f64| (3.0 * x).exp() + amount * rng.normal();
            let mut f = scattered;
            let mut probe = |h: f64| -> Result<Move, Infallible> {
                Ok(Move { change: f(h), step: h, predicted: 0.0, rounding: 0.0 })
            };
            let found = noise(&mut probe, ladder()).unwrap();
            // The largest of eight normal numbers is within a factor of four of their standard deviation, rarely less.
            assert!(found >= 0.5 * amount && found <= 4.0 * amount + 1e-15, "{amount:e}: {found:e}");
        }
    }

    #[test]
    fn what_is_not_finite_has_no_derivative() {
        let found = derivative(&mut of(|x| if x > 0.0 { f64::NAN } else { x }, 0.0), ladder(), 1e-8, 0.0).unwrap();
        assert!(found.value.is_nan() && found.doubt == f64::INFINITY && !found.is_kink, "{found:?}");
    }

    #[test]
    fn the_remainder_falls_by_the_square_for_the_right_gradient_alone() {
        let f = |x: f64| (x + 0.3).exp();
        let right = slope(&mut of(f, 0.3f64.exp()), ladder(), 0.0).unwrap().unwrap();
        let wrong = slope(&mut of(f, 1.001 * 0.3f64.exp()), ladder(), 0.0).unwrap().unwrap();
        assert!((right - 2.0).abs() < 0.05 && (wrong - 1.0).abs() < 0.05, "{right} {wrong}");
        assert_eq!(slope(&mut of(|x| 3.0 * x, 3.0), ladder(), 0.0).unwrap(), None);
    }

    #[test]
    fn steps_go_with_the_size_of_the_values() {
        assert_eq!(Ladder::new(&[1.0f64, -1.0]).first, 2f64.powi(-10));
        assert_eq!(Ladder::new(&[0.0f64; 3]).first, 2f64.powi(-10));
        assert_eq!(Ladder::new(&[1e-3f64]).first, 2f64.powi(-20));
        assert_eq!(Ladder::new(&[2f64.powi(30)]).first, 1.0);
        for odd in [[1e200, f64::NAN], [f64::INFINITY, 1.0]] {
            assert_eq!(Ladder::new(&odd).first, 2f64.powi(-10), "{odd:?}");
        }
    }
}
