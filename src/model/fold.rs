//! Folding, for inference: BatchNorm with running statistics goes into the layer before it.
//!
//! At evaluation BatchNorm is one affine map per channel, `z = s (y - mean) + beta` with `s = gamma / sqrt(var + eps)`. Behind a linear
//! map with one row of weights per channel, `y_o = sum_i w_oi x_i + b_o`, it is a linear map again:
//!
//! ```text
//! z_o = s_o (sum_i w_oi x_i + b_o - mean_o) + beta_o = sum_i w'_oi x_i + b'_o
//! w'_oi = s_o w_oi        b'_o = s_o (b_o - mean_o) + beta_o
//! ```
//!
//! # Numerics
//!
//! w' and b' are computed in f64 and rounded once. With u the unit roundoff of the element type (that of f64 is no larger), k products in
//! a sum, `g u` with `g = min(k, 256) + k / 256 + 3` the bound of [`kernels::gemm`](crate::kernels::gemm) for it, and
//!
//! ```text
//! P = |s| sum |w x|        Q = |s| |b - mean| + |beta|
//! ```
//!
//! the errors of z are, to first order:
//!
//! | where | folded | not folded |
//! |---|---|---|
//! | s: sum, root, quotient, product | 4 u P + 4 u Q | 4 u (P + Q) |
//! | w', or s rounded to the element type | 2 u P | u (P + Q) |
//! | b': difference, product, sum, rounded | 4 u Q | |
//! | the sum of products | g u P | g u P |
//! | `+ b'`, or `+ b` | u P + u Q | u P + u \|s b\| |
//! | `y - mean`, the product by s, `+ beta` | | 3 u (P + Q) |
//!
//! Together they differ by at most `(2 g + 16) u P + 17 u Q + u |s b|`, for which [`Sequential::fold`] says, terms of second order
//! included, `(2 g + 20) u (P + |s| (|b| + |mean|) + |beta|)`. What a product loses below the smallest normal number comes on top.

use super::{Sequential, named};
use crate::error::Result;
use crate::simd::Element;

impl<T: Element> Sequential<T> {
    /// Folds each layer that is an affine map per channel at evaluation into the layer before it: a
    /// [`BatchNorm1d`](crate::layers::BatchNorm1d) with running statistics into a [`Linear`](crate::layers::Linear), which gains a bias
    /// if it had none.
    ///
    /// For serving, after training or loading and before [`Sequential::prepare`]: [`Sequential::infer`] has fewer layers to pass
    /// through. A layer stays where the one before it cannot take it, and a BatchNorm also where it has no running statistics, where
    /// evaluation refuses it (running variance + eps not above 0), and where a number would not be finite. Other layers take part by
    /// [`Layer::per_channel`](crate::layers::Layer::per_channel) and [`Layer::absorb`](crate::layers::Layer::absorb).
    ///
    /// What is left is another model. It can be trained, without the normalisations that are gone and from gradients of zero where
    /// they went. But layers behind them have moved up: indices and names of their parameters are others, and a
    /// [`Workspace`](super::Workspace) or an optimiser of the model from before belongs to that one. What is to be trained further should
    /// be trained before.
    ///
    /// # Numerics
    /// For the same inputs, an output of k products is off the one from before by at most
    /// `(2 g + 20) u (|s| (sum |w x| + |b| + |mean|) + |beta|)`, with `g = min(k, 256) + k / 256 + 3`, the unit roundoff u and
    /// `s = gamma / sqrt(var + eps)`; the new weights and biases are computed in f64 and rounded once. What products
    /// lose below the smallest normal number comes on top.
    ///
    /// # Errors
    /// If the memory for a bias cannot be addressed; what was folded until then stays so, and the model works.
    ///
    /// # Examples
    /// ```
    /// use evenkeel::layers::{BatchNorm1d, Linear, Relu};
    /// use evenkeel::tensor::Tensor;
    /// use evenkeel::{Rng, Sequential};
    /// let mut linear = Linear::<f64>::new(2, 1, &mut Rng::new(1, "init"))?.without_bias();
    /// linear.set_weight(&[3.0, 4.0])?;
    /// // As a new one, it divides by sqrt(1 + 1e-5).
    /// let mut model = Sequential::new().push(linear).push(BatchNorm1d::new(1)?).push(Relu::new());
    /// model.fold()?;
    /// assert_eq!(model.len(), 2);
    /// let (x, mut space) = (Tensor::from_slice([1, 2], &[1.0, 0.5])?, model.infer_space([1, 2].into())?);
    /// let y = model.infer(x.view(), &mut space)?.data()[0];
    /// assert!((y - 5.0 / 1.00001f64.sqrt()).abs() < 1e-14);
    /// # Ok::<(), evenkeel::Error>(())
    /// ```
    pub fn fold(&mut self) -> Result<()> {
        let mut i = 1;
        while i < self.layers.len() {
            let is_folded = match self.layers[i].per_channel() {
                Some(map) => named(i - 1, self.layers[i - 1].absorb(&map))?,
                None => false,
            };
            if is_folded {
                self.layers.remove(i);
            } else {
                i += 1;
            }
        }
        Ok(())
    }
}
