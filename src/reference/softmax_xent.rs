//! Cross-entropy of a softmax, mean over the rows of a batch.
//!
//! ```text
//! p[i, j] = exp(z[i, j]) / sum over l of exp(z[i, l])
//! loss    = 1/n * sum over i of -ln p[i, label_i]
//! ```
//!
//! `z` (logits) is `[n, classes]`, labels are `[n]`, each below `classes`.
//!
//! **Stable form.** A softmax does not change when a constant is taken from its row. With `top` the largest logit of the row,
//! every exponent is at most zero, so nothing overflows and the sum is at least one:
//!
//! ```text
//! -ln p[label] = ln(sum over l of exp(z[l] - top)) - (z[label] - top)
//! ```
//!
//! **Backward.** The first term has the derivative `exp(z[j] - top) / sum = p[j]` (`top` cancels: the loss does not depend
//! on it), the second `[j = label]`. So `dz[i, j] = (p[i, j] - [j = label_i]) / n`, which sums to zero over each row.
//!
//! **Special values.** A NaN in a row makes that row's gradient and the loss NaN; so does an infinity that is the largest of
//! its row. A logit of minus infinity is a class that is ruled out: probability zero, and an infinite loss if it is the label.
//! With no row the loss is zero.
//!
//! Source: Bishop, Pattern Recognition and Machine Learning, 2006, section 4.3.4.

use super::sum::Sum;

/// The loss.
///
/// # Panics
/// If `logits` is not `labels.len()` rows of `classes`, or a label is not below `classes`.
///
/// # Examples
/// ```
/// use evenkeel::reference::softmax_xent::loss;
/// assert_eq!(loss(&[0.0, 0.0], &[1_u8], 2), 2_f64.ln());
/// ```
pub fn loss<L: Copy + Into<usize>>(logits: &[f64], labels: &[L], classes: usize) -> f64 {
    check(logits, labels, classes);
    if labels.is_empty() {
        return 0.0;
    }
    let losses: Sum = (0..labels.len())
        .map(|i| {
            let row = &logits[i * classes..(i + 1) * classes];
            let (top, sum) = top_and_sum(row);
            sum.ln() - (row[labels[i].into()] - top)
        })
        .collect();
    losses.value() / labels.len() as f64
}

/// d loss / d logits, `[n, classes]`.
///
/// # Panics
/// If `logits` is not `labels.len()` rows of `classes`, or a label is not below `classes`.
pub fn gradient<L: Copy + Into<usize>>(logits: &[f64], labels: &[L], classes: usize) -> Vec<f64> {
    check(logits, labels, classes);
    let n = labels.len();
    let mut dlogits = vec![0.0; logits.len()];
    for i in 0..n {
        let row = &logits[i * classes..(i + 1) * classes];
        let (top, sum) = top_and_sum(row);
        for j in 0..classes {
            let probability = (row[j] - top).exp() / sum;
            let wanted = if j == labels[i].into() { 1.0 } else { 0.0 };
            dlogits[i * classes + j] = (probability - wanted) / n as f64;
        }
    }
    dlogits
}

/// The largest logit of a row, and the sum of `exp(z - top)`.
fn top_and_sum(row: &[f64]) -> (f64, f64) {
    // `max` passes over NaN; the sum then has it.
    let top = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: Sum = row.iter().map(|z| (z - top).exp()).collect();
    (top, sum.value())
}

fn check<L: Copy + Into<usize>>(logits: &[f64], labels: &[L], classes: usize) {
    let n = labels.len();
    assert_eq!(logits.len(), n * classes, "softmax_xent: {} logits for {n} labels of {classes} classes", logits.len());
    for (i, &label) in labels.iter().enumerate() {
        let label = label.into();
        assert!(label < classes, "softmax_xent: label {label} of row {i} is not below {classes}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(found: &[f64], wanted: &[f64]) {
        assert_eq!(found.len(), wanted.len());
        for (f, w) in found.iter().zip(wanted) {
            assert!((f - w).abs() <= 1e-15, "{found:?} is not {wanted:?}");
        }
    }

    #[test]
    fn loss_and_gradient_worked_by_hand() {
        // Probabilities 1/4, 1/2, 1/4 and 1/3 each.
        let logits = [0.0, 2_f64.ln(), 0.0, 5.0, 5.0, 5.0];
        let labels = [1_usize, 0];
        near(&[loss(&logits, &labels, 3)], &[(2_f64.ln() + 3_f64.ln()) / 2.0]);
        let third = 1.0 / 3.0;
        near(&gradient(&logits, &labels, 3), &[0.125, -0.25, 0.125, (third - 1.0) / 2.0, third / 2.0, third / 2.0]);
    }

    #[test]
    fn large_logits_do_not_overflow() {
        assert_eq!(loss(&[1e4, 0.0], &[0_u8], 2), 0.0);
        assert_eq!(loss(&[1e4, 0.0], &[1_u8], 2), 1e4);
        assert_eq!(gradient(&[1e4, 0.0], &[1_u8], 2), [1.0, -1.0]);
    }

    #[test]
    fn special_values() {
        let ruled_out = [f64::NEG_INFINITY, 0.0];
        assert_eq!(loss(&ruled_out, &[1_u8], 2), 0.0);
        assert_eq!(loss(&ruled_out, &[0_u8], 2), f64::INFINITY);
        assert_eq!(gradient(&ruled_out, &[1_u8], 2), [0.0, 0.0]);
        assert!(loss(&[f64::INFINITY, 0.0], &[0_u8], 2).is_nan());
        let gradient = gradient(&[f64::NAN, 0.0, 1.0, 1.0], &[0_u8, 0], 2);
        assert!(gradient[0].is_nan() && gradient[1].is_nan());
        assert_eq!(gradient[2..], [-0.25, 0.25]);
        assert_eq!(loss::<u8>(&[], &[], 3), 0.0);
    }
}
