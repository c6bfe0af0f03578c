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
//! summed over a group of 64 bytes and by halving. The losses of rows are added in f64, rows in order; the logarithm is that of products of
//! their sums, taken whenever one passes 2^900, which adds one rounding of f64 for each row. A NaN logit makes the loss
//! and its row of the gradient NaN, plus infinity the loss and its own element; minus infinity rules a class out: as the label it makes the
//! loss infinite. The same bits on every fused instruction set and for any number of threads (rows are few enough for one).
//!
//! **Lanes.** Where a group holds a row, its logits are turned, so that each lane has a row: maxima and sums need no step across lanes then.
//! Longer rows lie along the lanes.
//!
//! **Cost.** About 20 flops an element, one read and one write; without the gradient no write.

use crate::error::{Error, Result};
use crate::rng::ln;
use crate::simd::{Element, Group, Isa, Kernel, Lanes};
use std::cmp::Ordering;

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
    let len = logits.len();
    assert_eq!(dlogits.len(), len, "cross-entropy: {len} logits, {} gradients", dlogits.len());
    mean(logits, labels, Some(dlogits))
}

/// [`forward_backward`] without the gradient: the same bits.
///
/// # Errors
/// If a label is not below `c`.
///
/// # Panics
/// If the lengths disagree.
pub fn forward<T: Element>(logits: &[T], labels: &[u8]) -> Result<f64> {
    mean(logits, labels, None)
}

fn mean<T: Element>(logits: &[T], labels: &[u8], dlogits: Option<&mut [T]>) -> Result<f64> {
    let (len, n) = (logits.len(), labels.len());
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

/// The sum of the losses of rows.
struct Losses {
    total: f64,
    /// Of the sums whose logarithm is not yet in the total.
    product: f64,
}

impl Losses {
    /// Adds `ln(sum) + margin`.
    #[inline(always)]
    fn add(&mut self, sum: f64, margin: f64) {
        // A sum is at most the number of classes: far below the 2^123 that are left.
        const MOST: f64 = f64::from_bits((1023 + 900) << 52);
        self.total += margin;
        self.product *= sum;
        // NaN, too.
        if !matches!(self.product.partial_cmp(&MOST), Some(Ordering::Less)) {
            self.total += ln(self.product);
            self.product = 1.0;
        }
    }

    fn total(self) -> f64 {
        self.total + ln(self.product)
    }
}

struct Rows<'a, T> {
    logits: &'a [T],
    labels: &'a [u8],
    dlogits: Option<&'a mut [T]>,
    c: usize,
}

impl<T: Element> Kernel<T> for Rows<'_, T> {
    type Output = f64;

    /// The sum of the rows' losses.
    #[inline(always)]
    fn run<V: Lanes<Elem = T>>(mut self) -> f64 {
        let mut losses = Losses { total: 0.0, product: 1.0 };
        let share = 1.0 / self.labels.len() as f64;
        if self.c <= Group::<V>::LEN {
            for first in (0..self.labels.len()).step_by(V::WIDTH) {
                self.abreast::<V>(first, share, &mut losses);
            }
        } else {
            for row in 0..self.labels.len() {
                self.along::<V>(row, share, &mut losses);
            }
        }
        if let Some(dlogits) = &mut self.dlogits {
            for (row, &label) in self.labels.iter().enumerate() {
                let dz = &mut dlogits[row * self.c + usize::from(label)];
                *dz = *dz - T::from_f64(share);
            }
        }
        losses.total()
    }
}

impl<T: Element> Rows<'_, T> {
    /// As many rows as a vector has lanes, or what is left of them, each in a lane; all but the label's share of the gradient.
    #[inline(always)]
    fn abreast<V: Lanes<Elem = T>>(&mut self, first: usize, share: f64, losses: &mut Losses) {
        let (c, rows) = (self.c, V::WIDTH.min(self.labels.len() - first));
        let mut z = [V::zero(); 16];
        for start in (0..c).step_by(V::WIDTH) {
            let len = V::WIDTH.min(c - start);
            let mut square = [V::zero(); 16];
            for r in 0..rows {
                square[r] = V::load_up_to(&self.logits[(first + r) * c + start..][..len]);
            }
            V::transpose(&mut square);
            z[start..start + len].copy_from_slice(&square[..len]);
        }
        let mut largest = z[0];
        for j in 1..c {
            largest = largest.max(z[j]);
        }
        let mut sums = [V::zero(); 16];
        for j in 0..c {
            z[j] = (z[j] - largest).exp_nonpositive();
            sums[j] = z[j];
        }
        let mut half = Group::<V>::LEN;
        while half > 1 {
            half /= 2;
            for j in 0..half {
                sums[j] = sums[j] + sums[j + half];
            }
        }
        let (mut sum, mut max, mut scale) = ([T::ZERO; 16], [T::ZERO; 16], [T::ZERO; 16]);
        sums[0].store(&mut sum);
        largest.store(&mut max);
        for r in 0..rows {
            let label = usize::from(self.labels[first + r]);
            let of_label = self.logits[(first + r) * c + label];
            losses.add(sum[r].to_f64(), max[r].to_f64() - of_label.to_f64());
            scale[r] = T::from_f64(share / sum[r].to_f64());
        }
        let Some(dlogits) = &mut self.dlogits else { return };
        let scale = V::load(&scale);
        for start in (0..c).step_by(V::WIDTH) {
            let len = V::WIDTH.min(c - start);
            let mut square = [V::zero(); 16];
            for j in 0..len {
                square[j] = z[start + j] * scale;
            }
            V::transpose(&mut square);
            for r in 0..rows {
                square[r].store_up_to(&mut dlogits[(first + r) * c + start..][..len]);
            }
        }
    }

    /// One row, along the lanes; all but the label's share of the gradient.
    #[inline(always)]
    fn along<V: Lanes<Elem = T>>(&mut self, row: usize, share: f64, losses: &mut Losses) {
        let z = &self.logits[row * self.c..][..self.c];
        let largest = Group::<V>::splat(z[0]).fold(z, z[0], |best, z, _| best.max(z)).max();
        let max = V::splat(largest);
        let exp = |z: V| (z - max).exp_nonpositive();
        let sum = match &mut self.dlogits {
            Some(dlogits) => {
                let dz = &mut dlogits[row * self.c..][..self.c];
                for j in (0..self.c).step_by(V::WIDTH) {
                    exp(V::load_up_to(&z[j..])).store_up_to(&mut dz[j..]);
                }
                let sum = Group::<V>::splat(T::ZERO).fold(dz, T::ZERO, |sum, e, _| sum + e).sum().to_f64();
                let scale = V::splat(T::from_f64(share / sum));
                for j in (0..self.c).step_by(V::WIDTH) {
                    (V::load_up_to(&dz[j..]) * scale).store_up_to(&mut dz[j..]);
                }
                sum
            }
            // What is ruled out adds zero.
            None => Group::<V>::splat(T::ZERO).fold(z, -T::ONE / T::ZERO, |sum, z, _| sum + exp(z)).sum().to_f64(),
        };
        let label = usize::from(self.labels[row]);
        losses.add(sum, largest.to_f64() - z[label].to_f64());
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
        assert_eq!(forward(&logits, &[1, 1]).unwrap(), loss);
    }

    #[test]
    fn the_loss_of_many_rows_is_that_of_one_of_them() {
        // 2000 times ln 8: products of 300 sums of 8 are passed on, and what is left at the end.
        let logits = [0.0f32; 8 * 2000];
        let loss = forward(&logits, &[3; 2000]).unwrap();
        assert!((loss - 8.0f64.ln()).abs() < 1e-14, "{loss}");
    }

    #[test]
    fn a_class_that_is_not_there_is_refused_before_anything_is_written() {
        let mut gradient = [9.0f32; 2];
        assert!(forward_backward(&[0.0, 0.0], &[2], &mut gradient).is_err());
        assert_eq!(gradient, [9.0; 2]);
    }
}
