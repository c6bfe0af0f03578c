//! Fully connected layer: `y = x W^T + b`.
//!
//! ```text
//! y[i, o] = sum over f of x[i, f] W[o, f]  +  b[o]
//! ```
//!
//! | name | shape |
//! |---|---|
//! | `x`, `dx` | `[n, in_features]` |
//! | `weight`, `dweight` | `[out_features, in_features]` |
//! | `bias`, `dbias` | `[out_features]`, or none |
//! | `y`, `dy` | `[n, out_features]` |
//!
//! **Backward.** `y[i, o]` depends on `x[i, f]` through `W[o, f]`, for every `o`; on `W[o, f]` through `x[i, f]`, for
//! every `i`; and on `b[o]` directly, for every `i`. Summing `dy` over those paths:
//!
//! ```text
//! dx[i, f] = sum over o of dy[i, o] W[o, f]      dx = dy W
//! dW[o, f] = sum over i of dy[i, o] x[i, f]      dW = dy^T x
//! db[o]    = sum over i of dy[i, o]              column sums of dy
//! ```
//!
//! Source: Rumelhart, Hinton and Williams, "Learning representations by back-propagating errors", Nature 323, 1986.
//! The layout of the weight is PyTorch's.

use super::gemm::gemm;
use super::reduce::column_sums;

/// What [`backward`] returns.
#[derive(Clone, Debug, PartialEq)]
pub struct Gradients {
    /// d loss / d x, `[n, in_features]`.
    pub dx: Vec<f64>,
    /// d loss / d weight, `[out_features, in_features]`.
    pub dweight: Vec<f64>,
    /// d loss / d bias, `[out_features]`.
    pub dbias: Vec<f64>,
}

/// `y = x W^T + b`, or `x W^T` without a bias.
///
/// # Panics
/// If a length does not fit `in_features` and `out_features`.
pub fn forward(x: &[f64], weight: &[f64], bias: Option<&[f64]>, in_features: usize, out_features: usize) -> Vec<f64> {
    let n = rows(x, weight, in_features, out_features);
    let mut y = vec![0.0; n * out_features];
    gemm(
        (n, in_features, out_features),
        1.0,
        |i, f| x[i * in_features + f],
        |f, o| weight[o * in_features + f],
        0.0,
        &mut y,
    );
    if let Some(bias) = bias {
        assert_eq!(bias.len(), out_features, "linear: bias has {} elements, not {out_features}", bias.len());
        for i in 0..n {
            for o in 0..out_features {
                y[i * out_features + o] += bias[o];
            }
        }
    }
    y
}

/// `dx = dy W`, `dweight = dy^T x`, `dbias` = column sums of `dy`.
///
/// # Panics
/// If a length does not fit `in_features` and `out_features`.
pub fn backward(x: &[f64], weight: &[f64], dy: &[f64], in_features: usize, out_features: usize) -> Gradients {
    let n = rows(x, weight, in_features, out_features);
    assert_eq!(dy.len(), n * out_features, "linear: dy has {} elements, but is {n} x {out_features}", dy.len());
    let dy_at = |i: usize, o: usize| dy[i * out_features + o];
    let mut dx = vec![0.0; x.len()];
    gemm((n, out_features, in_features), 1.0, dy_at, |o, f| weight[o * in_features + f], 0.0, &mut dx);
    let mut dweight = vec![0.0; weight.len()];
    gemm((out_features, n, in_features), 1.0, |o, i| dy_at(i, o), |i, f| x[i * in_features + f], 0.0, &mut dweight);
    Gradients { dx, dweight, dbias: column_sums(dy, n, out_features) }
}

/// Number of rows of `x`, after a check of `x` and `weight`.
fn rows(x: &[f64], weight: &[f64], in_features: usize, out_features: usize) -> usize {
    assert!(in_features > 0, "linear: a layer without inputs does not say how many rows it has");
    assert_eq!(x.len() % in_features, 0, "linear: x has {} elements, not rows of {in_features}", x.len());
    let wanted = out_features * in_features;
    assert_eq!(
        weight.len(),
        wanted,
        "linear: weight has {} elements, not {out_features} x {in_features}",
        weight.len()
    );
    x.len() / in_features
}

#[cfg(test)]
mod tests {
    use super::*;

    const X: [f64; 4] = [1.0, 2.0, 3.0, 4.0]; // [2, 2]
    const W: [f64; 6] = [1.0, 0.0, 0.0, 1.0, 1.0, -1.0]; // [3, 2]: first, second, difference

    #[test]
    fn forward_worked_by_hand() {
        assert_eq!(forward(&X, &W, None, 2, 3), [1.0, 2.0, -1.0, 3.0, 4.0, -1.0]);
        assert_eq!(forward(&X, &W, Some(&[10.0, 20.0, 30.0]), 2, 3), [11.0, 22.0, 29.0, 13.0, 24.0, 29.0]);
        assert!(forward(&[], &W, None, 2, 3).is_empty());
    }

    #[test]
    fn backward_worked_by_hand() {
        let g = backward(&X, &W, &[1.0, 0.0, 2.0, 0.0, 1.0, 0.0], 2, 3);
        assert_eq!(g.dx, [3.0, -2.0, 0.0, 1.0]);
        assert_eq!(g.dweight, [1.0, 2.0, 3.0, 4.0, 2.0, 4.0]);
        assert_eq!(g.dbias, [1.0, 1.0, 2.0]);
    }
}
