//! What the reference makes of a layer, and how far a kernel may be from it.

use super::layer::{ALL, BEFORE, Forward, Layer};
use crate::support::*;
use evenkeel::kernels::Activation;
use evenkeel::kernels::batchnorm::{Saved, Statistics};
use evenkeel::reference;
use evenkeel::reference::batchnorm::Moments;
use evenkeel::simd::Element;

/// How far a channel's statistics may be off.
#[derive(Clone, Copy)]
pub(super) struct Limits {
    pub(super) mean: f64,
    pub(super) var: f64,
    /// Relative, of `rstd`: half of that of var + eps.
    rstd: f64,
}

/// The bounds of the kernel's module doc, and the reference's own few roundings.
pub(super) fn limits<T: Element>(moments: &Moments, channel: usize, eps: f64) -> Limits {
    let (u, mean, var) = (T::ROUNDOFF, moments.mean[channel], moments.var[channel]);
    let limit = 32.0 * u * var + 4.0 * u * u * mean * mean + 8.0 * U64 * var;
    Limits {
        mean: 8.0 * u * var.sqrt() + 2f64.powi(-47) * mean.abs(),
        var: limit,
        rstd: limit / (2.0 * (var + eps)) + 4.0 * U64,
    }
}

const EXACT: Limits = Limits { mean: 0.0, var: 0.0, rstd: 4.0 * U64 };

/// The reference's answer for a layer, with the error that the kernel may make.
pub(super) struct Oracle<'a, T> {
    pub(super) layer: &'a Layer<T>,
    pub(super) moments: Moments,
    limits: Vec<Limits>,
    statistics: Statistics,
}

impl<'a, T: Element> Oracle<'a, T> {
    pub(super) fn batch(layer: &'a Layer<T>) -> Self {
        let moments = reference::batchnorm::moments(&wide(&layer.x), layer.c);
        let limits = (0..layer.c).map(|j| limits::<T>(&moments, j, layer.eps)).collect();
        Oracle { layer, moments, limits, statistics: Statistics::Batch }
    }

    /// A batch whose moments are known, and have to be found to the bit.
    pub(super) fn known(layer: &'a Layer<T>, moments: Moments) -> Self {
        Oracle { layer, moments, limits: vec![EXACT; layer.c], statistics: Statistics::Batch }
    }

    fn frozen(layer: &'a Layer<T>, running: (&[T], &[T])) -> Self {
        let moments = Moments { mean: wide(running.0), var: wide(running.1) };
        Oracle { layer, moments, limits: vec![EXACT; layer.c], statistics: Statistics::Frozen }
    }

    fn rstd(&self, channel: usize) -> f64 {
        1.0 / (self.moments.var[channel] + self.layer.eps).sqrt()
    }

    pub(super) fn check_statistics(&self, saved: &[T]) {
        let saved = Saved::new(saved, self.layer.c);
        for (j, limits) in self.limits.iter().enumerate() {
            let (mean, var, rstd) = (self.moments.mean[j], self.moments.var[j], self.rstd(j));
            near_one(&format_args!("mean of channel {j}"), saved.mean(j), mean, || limits.mean);
            // Two parts of f32 hold 48 bits.
            let parts = T::ROUNDOFF * T::ROUNDOFF + U64;
            near_one(&format_args!("var of channel {j}"), saved.var(j), var, || limits.var + parts * var);
            near_one(&format_args!("rstd of channel {j}"), saved.rstd(j), rstd, || (limits.rstd + parts) * rstd);
        }
    }

    pub(super) fn check_y(&self, y: &[T]) {
        let layer = self.layer;
        let (gamma, beta) = (layer.gamma.as_deref().map(wide), layer.beta.as_deref().map(wide));
        let x = wide(&layer.x);
        let z = reference::batchnorm::infer(&x, gamma.as_deref(), beta.as_deref(), &self.moments, layer.eps);
        let wanted = match layer.activation {
            Activation::Identity => z.clone(),
            Activation::Relu => reference::relu::forward(&z),
        };
        let u = T::ROUNDOFF;
        // z = fma(t, a, b): t rounds once; a by its limit and once; b once; the multiply-add once, or twice where it is not
        // fused. The mean's error, of which the rounding of b is a part (u^2 |mean|), counts a-fold. ReLU adds nothing.
        near("y", y, &wanted, |i| {
            let j = i % layer.c;
            let ((gamma, beta), limits, mean) = (layer.affine(j), self.limits[j], self.moments.mean[j]);
            let a = gamma.abs() * self.rstd(j);
            let t = (x[i] - mean).abs();
            a * t * (limits.rstd + 3.0 * u + 4.0 * U64)
                + a * (limits.mean + u * u * mean.abs() + U64 * (x[i].abs() + mean.abs()))
                + u * (beta.abs() + z[i].abs())
        });
    }

    /// `y` is what the kernel's forward pass gave: under ReLU it decides which gradients pass, so that a value that the kernel
    /// and the reference round to different sides of zero is not taken for an error.
    pub(super) fn check_gradients(&self, y: &[T], [dx, dgamma, dbeta]: &[Vec<T>; 3]) {
        let layer = self.layer;
        let (n, c, u) = (layer.n, layer.c, T::ROUNDOFF);
        let dz: Vec<f64> = match layer.activation {
            Activation::Identity => wide(&layer.dy),
            Activation::Relu => reference::relu::backward(&wide(y), &wide(&layer.dy)),
        };
        let (x, gamma) = (wide(&layer.x), layer.gamma.as_deref().map(wide));
        let batch = self.statistics == Statistics::Batch;
        let backward = if batch { reference::batchnorm::backward } else { reference::batchnorm::backward_frozen };
        let wanted = backward(&x, &dz, gamma.as_deref(), &self.moments, layer.eps);

        // Sums of |dz| and of |dz (x - mean)|, in which the errors of B and D are measured.
        let mut sums = vec![(0.0, 0.0); c];
        for i in 0..n * c {
            sums[i % c].0 += dz[i].abs();
            sums[i % c].1 += (dz[i] * (x[i] - self.moments.mean[i % c])).abs();
        }
        // A leaf of planes has at least 30 images of 32 values, or all there are.
        let leaves = n.div_ceil(960) as f64;
        let b_limit = |j: usize| (34.0 * u + (leaves + 2.0) * U64) * sums[j].0;
        // 34 roundings, one of t and one of a product that is not fused. t is measured from mean_hi, at most u |mean| away,
        // and the part of the mean below that is taken out with an error of B.
        let d_limit = |j: usize| {
            let (mean, limits) = (self.moments.mean[j].abs(), self.limits[j]);
            let roundings = 36.0 * u + (leaves + 4.0) * U64;
            roundings * sums[j].1 + (limits.mean + 2.0 * roundings * u * mean + U64 * mean) * sums[j].0
        };
        let after: Vec<f64> = wanted.dbeta.iter().map(|b| b + BEFORE).collect();
        near("dbeta", dbeta, &after, |j| b_limit(j) + (u + 2.0 * U64) * (after[j].abs() + BEFORE));
        let after: Vec<f64> = wanted.dgamma.iter().map(|g| g + BEFORE).collect();
        near("dgamma", dgamma, &after, |j| {
            let of_rstd = (self.limits[j].rstd + u * u + 4.0 * U64) * wanted.dgamma[j].abs();
            self.rstd(j) * d_limit(j) + of_rstd + (u + 2.0 * U64) * (after[j].abs() + BEFORE)
        });
        // dx = a dz - k t + shift: each factor by its limit and its rounding, then the roundings of both multiply-adds.
        let limit = |i: usize| {
            let (j, m) = (i % c, n as f64);
            let (limits, rstd) = (self.limits[j], self.rstd(j));
            let a = layer.affine(j).0.abs() * rstd;
            let of_a = limits.rstd + u;
            let own = (of_a + 3.0 * u) * dz[i].abs();
            if !batch {
                return a * own + u * wanted.dx[i].abs();
            }
            let x_hat = (x[i] - self.moments.mean[j]).abs() * rstd;
            let (b, g) = (wanted.dbeta[j].abs() / m, wanted.dgamma[j].abs() / m);
            let of_mean = rstd * (limits.mean + 2.0 * u * u * self.moments.mean[j].abs());
            a * (own + (of_a + 4.0 * u) * b + b_limit(j) / m)
                + a * (x_hat * ((3.0 * of_a + 4.0 * u) * g + rstd * d_limit(j) / m) + of_mean * g)
                + u * wanted.dx[i].abs()
        };
        near("dx", dx, &wanted.dx, limit);
        if !batch {
            return;
        }
        for j in 0..c {
            // What depends on the statistics alone cancels in the sum.
            let channel = || (j..n * c).step_by(c);
            let sum: reference::sum::Sum = channel().map(|i| dx[i].to_f64()).collect();
            near_one(&format_args!("sum of dx in channel {j}"), sum.value(), 0.0, || channel().map(limit).sum());
        }
    }
}

/// Statistics, y and all gradients of a layer, with its own statistics and with frozen ones.
pub(super) fn agree<T: Element>(layer: &Layer<T>, offset: usize) {
    let batch = Oracle::batch(layer);
    let mean: Vec<T> = batch.moments.mean.iter().map(|m| T::from_f64(m * 1.001 + 0.1)).collect();
    let var: Vec<T> = batch.moments.var.iter().map(|v| T::from_f64(v * 1.5 + 0.01)).collect();
    let frozen = Oracle::frozen(layer, (&mean, &var));
    sweep::<T>(|_| {
        let Forward { y, saved } = layer.forward(offset);
        batch.check_statistics(&saved);
        batch.check_y(&y);
        batch.check_gradients(&y, &layer.backward(Statistics::Batch, &saved, ALL, offset));
        let Forward { y, saved } = layer.forward_frozen((&mean, &var), offset);
        frozen.check_statistics(&saved);
        frozen.check_y(&y);
        frozen.check_gradients(&y, &layer.backward(Statistics::Frozen, &saved, ALL, offset));
    });
}
