//! Rectifier: zero what is `<= 0`, keep everything else.
//!
//! ```text
//! y  = 0 where x <= 0, else x
//! dx = 0 where x <= 0, else dy
//! ```
//!
//! **Why a comparison and not a maximum.** `x <= 0` is false for NaN, so NaN survives, in both directions; and it is true
//! for `-0.0`, which becomes `+0.0`. The hardware's maximum does neither reliably. The derivative at zero is zero, one of
//! the values that a subgradient may take there, and the one that most networks were trained with.
//!
//! **Backward.** `dy/dx` is 1 where the forward pass kept `x` and 0 where it did not: the same mask, from the same `x`. A NaN
//! in `x` is kept, so its gradient passes through.
//!
//! Source: Nair and Hinton, "Rectified linear units improve restricted Boltzmann machines", ICML 2010; the values at zero
//! and NaN are PyTorch's.

/// Zero where `x <= 0`, else `x`.
pub fn forward(x: &[f64]) -> Vec<f64> {
    x.iter().map(|&x| if x <= 0.0 { 0.0 } else { x }).collect()
}

/// Zero where `x <= 0`, else `dy`; `x` is the input of the forward pass.
///
/// # Panics
/// If the lengths differ.
pub fn backward(x: &[f64], dy: &[f64]) -> Vec<f64> {
    assert_eq!(x.len(), dy.len(), "relu: x has {} elements, dy has {}", x.len(), dy.len());
    x.iter().zip(dy).map(|(&x, &dy)| if x <= 0.0 { 0.0 } else { dy }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signs_zeros_and_specials() {
        let x = [-1.5, 2.5, 0.0, -0.0, f64::INFINITY, f64::NEG_INFINITY, f64::NAN];
        let y = forward(&x);
        assert_eq!(y[..6], [0.0, 2.5, 0.0, 0.0, f64::INFINITY, 0.0]);
        assert!(y[..6].iter().all(|y| y.is_sign_positive()), "no negative zero comes out");
        assert!(y[6].is_nan());
        assert_eq!(backward(&x, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]), [0.0, 2.0, 0.0, 0.0, 5.0, 0.0, 7.0]);
    }
}
