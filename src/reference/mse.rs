//! Mean squared error over all elements.
//!
//! ```text
//! loss = 1/count * sum over i of (y_i - t_i)^2
//! ```
//!
//! **Backward.** Each `y_i` occurs in one term, whose derivative is `dy_i = 2 (y_i - t_i) / count`.
//!
//! `y` (predictions) and `t` (targets) have the same shape, of which only the number of elements matters. With no element at
//! all the loss is zero. NaN and infinities propagate.

use super::sum::Sum;

/// The loss.
///
/// # Panics
/// If the lengths differ.
pub fn loss(y: &[f64], t: &[f64]) -> f64 {
    check(y, t);
    if y.is_empty() {
        return 0.0;
    }
    let squares: Sum = y.iter().zip(t).map(|(y, t)| (y - t) * (y - t)).collect();
    squares.value() / y.len() as f64
}

/// d loss / d y.
///
/// # Panics
/// If the lengths differ.
pub fn gradient(y: &[f64], t: &[f64]) -> Vec<f64> {
    check(y, t);
    let count = y.len() as f64;
    y.iter().zip(t).map(|(y, t)| 2.0 * (y - t) / count).collect()
}

fn check(y: &[f64], t: &[f64]) {
    assert_eq!(y.len(), t.len(), "mse: y has {} elements, t has {}", y.len(), t.len());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loss_and_gradient_worked_by_hand() {
        let (y, t) = ([1.0, 2.0, 3.0, 4.0], [1.0, 0.0, 4.0, 1.0]);
        assert_eq!(loss(&y, &t), 3.5); // (0 + 4 + 1 + 9) / 4
        assert_eq!(gradient(&y, &t), [0.0, 1.0, -0.5, 1.5]);
        assert_eq!(loss(&[], &[]), 0.0);
        assert!(loss(&[f64::NAN], &[0.0]).is_nan());
    }
}
