//! A compensated sum: the one numerical device of this room.
//!
//! For `s = fl(a + b)` the rounding error `a + b - s` is itself an f64, which six additions recover without comparing `a`
//! and `b` (Knuth, The Art of Computer Programming, volume 2, section 4.2.2, theorem B). Adding those errors up on the side
//! and once to the result gives `|error| <= u |S| + (n u)^2 sum |x_i|` with `u = 2^-53` (Ogita, Rump and Oishi, "Accurate
//! sum and dot product", SIAM J. Sci. Comput. 26, 2005, proposition 4.5): one rounding, however long the sum and in
//! whatever order, unless nearly everything cancels.

/// A sum of f64 values accurate to about one rounding.
///
/// # Numerics
/// NaN and infinities come out as a plain sum would give them. The empty sum is zero.
///
/// # Examples
/// ```
/// use evenkeel::reference::sum::Sum;
/// let mut sum = Sum::default();
/// for x in [1.0, 1e100, 1.0, -1e100] {
///     sum.add(x);
/// }
/// assert_eq!(sum.value(), 2.0);
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum {
    rounded: f64,
    errors: f64,
}

impl Sum {
    /// Adds one value.
    pub fn add(&mut self, x: f64) {
        let sum = self.rounded + x;
        let x_as_added = sum - self.rounded;
        let rounded_as_added = sum - x_as_added;
        self.errors += (self.rounded - rounded_as_added) + (x - x_as_added);
        self.rounded = sum;
    }

    /// The sum so far.
    pub fn value(&self) -> f64 {
        // Infinity minus infinity has made the errors NaN; the plain sum is then the answer.
        if self.rounded.is_finite() { self.rounded + self.errors } else { self.rounded }
    }
}

impl FromIterator<f64> for Sum {
    fn from_iter<I: IntoIterator<Item = f64>>(values: I) -> Self {
        let mut sum = Sum::default();
        for x in values {
            sum.add(x);
        }
        sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(values: &[f64]) -> f64 {
        values.iter().copied().collect::<Sum>().value()
    }

    #[test]
    fn what_a_plain_sum_drops_is_kept() {
        assert_eq!(sum(&[]), 0.0);
        assert_eq!(sum(&[0.1; 10]), 1.0);
        // Each of the small terms is half a unit in the last place of 1, so a plain sum stays at 1.
        let half_ulp = f64::EPSILON / 2.0;
        assert_eq!(sum(&[1.0, half_ulp, half_ulp]), 1.0 + f64::EPSILON);
    }

    #[test]
    fn special_values_come_out_as_in_a_plain_sum() {
        assert_eq!(sum(&[1.0, f64::INFINITY, 2.0]), f64::INFINITY);
        assert_eq!(sum(&[f64::NEG_INFINITY, 1.0]), f64::NEG_INFINITY);
        assert!(sum(&[f64::INFINITY, f64::NEG_INFINITY]).is_nan());
        assert!(sum(&[f64::NAN, 1.0]).is_nan());
    }
}
