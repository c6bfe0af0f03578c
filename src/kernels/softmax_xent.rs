//! Softmax and cross-entropy in one pass: the loss of a classifier and its gradient.
//!
//! For one row of logits z and its class t, with p = softmax(z):
//!
//! ```text
//! loss = -ln p_t = ln(sum_j e^(z_j - max)) + max - z_t
//! d loss / d z_j = d ln(sum) / d z_j - [j = t] = e^(z_j - max) / sum - [j = t] = p_j - [j = t]
//! ```
//!
//! Over a batch of n rows the loss is the mean, so the gradient carries 1/n.
//!
//! | argument | shape |
//! |---|---|
//! | `logits`, `dlogits` | `[n, c]`, row-major |
//! | `labels` | `[n]`, each below c |
//!
//! **Numerics.** The largest logit is subtracted first, so nothing overflows and the sum is at least 1. Exponentials to 2u (f32) or 4u (f64),
//! summed over a group of 64 bytes and by halving; the row's loss and the mean in f64, rows in order. A NaN logit makes the loss
//! NaN. The same bits on every fused instruction set and for any number of threads (rows are few enough for one).
//!
//! **Cost.** About 20 flops an element, one read and one write.

use crate::error::{Error, Result};
use crate::rng::ln;
use crate::simd::{Element, Group, Isa, Kernel, Lanes};

/// Mean cross-entropy of a batch, and its gradient.
///
/// # Shapes
/// `logits`, `dlogits`: `[n, c]`, `labels`: `[n]`. The gradient is overwritten. For no rows the loss is 0.
///
/// # Errors
/// If a label is not below `c`; nothing is written then.
///
/// # Panics
/// If the lengths disagree.
///
/// # Examples
/// ```
/// let mut gradient = [0.0f64; 2];
/// let loss = evenkeel::kernels::softmax_xent::forward_backward(&[0.0, 0.0], &[1], &mut gradient)?;
/// assert!((loss - 2.0f64.ln()).abs() < 1e-15);
/// assert_eq!(gradient, [0.5, -0.5]);
/// # Ok::<(), evenkeel::Error>(())
/// ```
pub fn forward_backward<T: Element>(logits: &[T], labels: &[u8], dlogits: &mut [T]) -> Result<f64> {
    let (len, n) = (logits.len(), labels.len());
    assert_eq!(dlogits.len(), len, "cross-entropy: {len} logits, {} gradients", dlogits.len());
    if n == 0 {
        assert_eq!(len, 0, "cross-entropy: {len} logits for no rows");
        return Ok(0.0);
    }
    assert!(len.is_multiple_of(n), "cross-entropy: {len} logits for {n} rows");
    let c = len / n;
    if let Some(row) = labels.iter().position(|&label| usize::from(label) >= c) {
        return Err(Error::invalid(format!("label of row {row}"), labels[row], format!("below {c}")));
    }
    Ok(Isa::current().run(Rows { logits, labels, dlogits, c }) / n as f64)
}

struct Rows<'a, T> {
    logits: &'a [T],
    labels: &'a [u8],
    dlogits: &'a mut [T],
    c: usize,
}

impl<T: Element> Kernel<T> for Rows<'_, T> {
    type Output = f64;

    /// The sum of the rows' losses.
    #[inline(always)]
    fn run<V: Lanes<Elem = T>>(self) -> f64 {
        let share = 1.0 / self.labels.len() as f64;
        let mut total = 0.0;
        for (row, &label) in self.labels.iter().enumerate() {
            let label = usize::from(label);
            let z = &self.logits[row * self.c..][..self.c];
            let dz = &mut self.dlogits[row * self.c..][..self.c];
            let largest = Group::<V>::splat(z[0]).fold(z, z[0], |best, z, _| best.max(z)).max();
            let max = V::splat(largest);
            for j in (0..self.c).step_by(V::WIDTH) {
                (V::load_up_to(&z[j..]) - max).exp_nonpositive().store_up_to(&mut dz[j..]);
            }
            let sum = Group::<V>::splat(T::ZERO).fold(dz, T::ZERO, |sum, e, _| sum + e).sum().to_f64();
            total += ln(sum) + (largest.to_f64() - z[label].to_f64());
            let scale = V::splat(T::from_f64(share / sum));
            for j in (0..self.c).step_by(V::WIDTH) {
                (V::load_up_to(&dz[j..]) * scale).store_up_to(&mut dz[j..]);
            }
            dz[label] = dz[label] - T::from_f64(share);
        }
        total
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_rows_by_hand() {
        // Shares 1/4 and 3/4 of class 1: losses ln 4 and ln(4/3), each row's gradient halved.
        let logits = [3.0f64.ln(), 0.0, 0.0, 3.0f64.ln()];
        let mut gradient = [9.0; 4];
        let loss = forward_backward(&logits, &[1, 1], &mut gradient).unwrap();
        assert!((loss - (16.0f64 / 3.0).ln() / 2.0).abs() < 1e-15);
        for (found, wanted) in gradient.iter().zip([0.375, -0.375, 0.125, -0.125]) {
            assert!((found - wanted).abs() < 1e-15);
        }
    }

    #[test]
    fn a_class_that_is_not_there_is_refused_before_anything_is_written() {
        let mut gradient = [9.0f32; 2];
        assert!(forward_backward(&[0.0, 0.0], &[2], &mut gradient).is_err());
        assert_eq!(gradient, [9.0; 2]);
    }
}
