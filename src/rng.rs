//! One seeded, named source of randomness.
//!
//! Everything random in the crate (initial weights, shuffles, generated data, probes of a gradient check) is drawn from an
//! [`Rng`] made of a seed and a name, so that two users of one seed do not share a stream: drawing one more weight does not
//! change the order of the batches.
//!
//! The generator is xoshiro256++ (Blackman and Vigna, "Scrambled linear pseudorandom number generators", ACM TOMS 47, 2021),
//! whose stream is fixed by its definition. The few lines that make floats, ranges and shuffles of it are written here and
//! use only additions, multiplications, divisions and square roots, which IEEE 754 rounds the same everywhere: the same
//! seed gives the same bits on every machine, whatever its mathematical library does.

use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng as _, SeedableRng};

/// A seeded generator: the same seed and name give the same draws, on every machine, for ever.
#[derive(Clone, Debug)]
pub struct Rng {
    source: Xoshiro256PlusPlus,
}

impl Rng {
    /// A generator for one purpose: `seed` from the user, `name` from the code that draws.
    ///
    /// # Examples
    /// ```
    /// use evenkeel::Rng;
    /// let (mut a, mut b) = (Rng::new(7, "init"), Rng::new(7, "shuffle"));
    /// assert_ne!(a.next_u64(), b.next_u64());
    /// ```
    pub fn new(seed: u64, name: &str) -> Self {
        // FNV-1a over the name; `seed_from_u64` then runs SplitMix64, so that near seeds give unrelated states.
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        for byte in name.bytes() {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        let mixed = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ hash;
        Rng { source: Xoshiro256PlusPlus::seed_from_u64(mixed) }
    }

    /// The next 64 bits of the stream.
    pub fn next_u64(&mut self) -> u64 {
        self.source.next_u64()
    }

    /// Uniform in `[0, 1)`, a multiple of 2^-53.
    pub fn uniform(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// Uniform in `[low, high)` up to rounding.
    pub fn range(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.uniform()
    }

    /// Uniform in `0..bound`, without bias (Lemire, "Fast random integer generation in an interval", ACM TOMACS 29, 2019).
    ///
    /// # Panics
    /// If `bound` is zero.
    pub fn below(&mut self, bound: u64) -> u64 {
        assert!(bound > 0, "rng: an empty range has no element to draw");
        // The product's high half is the draw; the low halves below 2^64 mod bound would be drawn once too often.
        let reject_below = bound.wrapping_neg() % bound;
        loop {
            let product = u128::from(self.next_u64()) * u128::from(bound);
            #[expect(clippy::cast_possible_truncation, reason = "the low half is what is asked for")]
            if product as u64 >= reject_below {
                return (product >> 64) as u64;
            }
        }
    }

    /// Uniform in `0..bound`, for an index.
    ///
    /// # Panics
    /// If `bound` is zero.
    pub fn index(&mut self, bound: usize) -> usize {
        #[expect(clippy::cast_possible_truncation, reason = "the draw is below a usize")]
        let drawn = self.below(bound as u64) as usize;
        drawn
    }

    /// Standard normal, by Marsaglia's polar method.
    pub fn normal(&mut self) -> f64 {
        loop {
            let (x, y) = (self.range(-1.0, 1.0), self.range(-1.0, 1.0));
            let square = x * x + y * y;
            if square < 1.0 && square > 0.0 {
                return x * (-2.0 * ln(square) / square).sqrt();
            }
        }
    }

    /// Puts the elements in a random order (Fisher and Yates).
    pub fn shuffle<E>(&mut self, items: &mut [E]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.index(i + 1));
        }
    }
}

/// Natural logarithm of a positive normal number from arithmetic alone, relative error below 1e-15; NaN and infinity stay.
///
/// For draws, and for losses that must have the same bits everywhere: the system's logarithm differs between versions.
///
/// x = m 2^e with m in [sqrt(1/2), sqrt(2)); ln m = 2 artanh s with s = (m - 1) / (m + 1), |s| < 0.172, whose series
/// 2 (s + s^3/3 + s^5/5 + ...) is cut where s^23/23 is below 2^-60.
pub(crate) fn ln(x: f64) -> f64 {
    if !x.is_finite() {
        return x;
    }
    const FRACTION: u64 = (1 << 52) - 1;
    let bits = x.to_bits();
    let mut exponent = (bits >> 52) as i32 - 1023;
    let mut m = f64::from_bits((bits & FRACTION) | (1023 << 52));
    if m > std::f64::consts::SQRT_2 {
        m *= 0.5;
        exponent += 1;
    }
    let s = (m - 1.0) / (m + 1.0);
    let square = s * s;
    let mut series = 0.0;
    for odd in (1..=21).rev().step_by(2) {
        series = series * square + 1.0 / f64::from(odd);
    }
    f64::from(exponent) * std::f64::consts::LN_2 + 2.0 * s * series
}

/// How the weights of a layer with `fan_in` inputs and `fan_out` outputs are drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// Uniform in +-1/sqrt(fan_in): PyTorch's default for `Linear`, there written `kaiming_uniform_(a = sqrt(5))`.
    PyTorch,
    /// Uniform in +-sqrt(6 / (fan_in + fan_out)) (Glorot and Bengio, AISTATS 2010, equation 16).
    Xavier,
    /// Normal with variance 2 / fan_in (He et al., ICCV 2015, equation 10): for layers that a ReLU follows.
    He,
}

impl Init {
    /// One weight.
    pub fn draw(self, fan_in: usize, fan_out: usize, rng: &mut Rng) -> f64 {
        match self {
            Init::PyTorch => {
                let bound = 1.0 / (fan_in as f64).sqrt();
                rng.range(-bound, bound)
            }
            Init::Xavier => {
                let bound = (6.0 / (fan_in + fan_out) as f64).sqrt();
                rng.range(-bound, bound)
            }
            Init::He => rng.normal() * (2.0 / fan_in as f64).sqrt(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stream_is_fixed() {
        // Any change of these numbers changes every seeded result that anyone has written down.
        let mut rng = Rng::new(1, "test");
        let draws: Vec<u64> = (0..3).map(|_| rng.next_u64()).collect();
        assert_eq!(draws, [0xe9e9_5f4b_8ad2_0436, 0x6f9a_ae2e_29c4_68fb, 0x2ac6_19f1_de6e_e7c5]);
        assert_eq!(rng.uniform().to_bits(), 0x3fec_ce48_9947_58f6);
        assert_eq!(rng.normal().to_bits(), 0x3fdb_1861_7cbe_673b);
        assert_eq!(rng.below(1000), 244);
        let mut items = [0, 1, 2, 3, 4, 5, 6, 7];
        rng.shuffle(&mut items);
        assert_eq!(items, [7, 0, 6, 1, 3, 4, 5, 2]);
        assert_ne!(draws[0], Rng::new(2, "test").next_u64());
        assert_ne!(draws[0], Rng::new(1, "tess").next_u64());
    }

    #[test]
    fn our_logarithm_agrees_with_the_libraries() {
        let mut rng = Rng::new(3, "ln");
        for _ in 0..10_000 {
            let x = rng.uniform().max(1e-300);
            assert!((ln(x) - x.ln()).abs() <= 1e-15 * x.ln().abs().max(1e-3), "ln({x})");
        }
    }

    #[test]
    fn normal_draws_have_mean_zero_and_variance_one() {
        let mut rng = Rng::new(5, "normal");
        let n = 200_000;
        let (mut sum, mut squares) = (0.0, 0.0);
        for _ in 0..n {
            let x = rng.normal();
            sum += x;
            squares += x * x;
        }
        // Standard errors are 1/sqrt(n) = 0.0022 and sqrt(2/n) = 0.0032: five of each.
        assert!((sum / f64::from(n)).abs() < 0.012);
        assert!((squares / f64::from(n) - 1.0).abs() < 0.016);
    }

    #[test]
    fn a_shuffle_is_a_permutation_and_below_covers_its_range() {
        let mut rng = Rng::new(9, "shuffle");
        let mut items: Vec<usize> = (0..100).collect();
        rng.shuffle(&mut items);
        assert_ne!(items, (0..100).collect::<Vec<_>>());
        items.sort_unstable();
        assert_eq!(items, (0..100).collect::<Vec<_>>());
        let mut seen = [0u32; 7];
        for _ in 0..7000 {
            seen[rng.index(7)] += 1;
        }
        assert!(seen.iter().all(|&n| n > 850 && n < 1150), "{seen:?}");
    }
}
