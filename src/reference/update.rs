//! One step of an optimiser on flat slices: SGD with momentum, and Adam.
//!
//! All arithmetic follows PyTorch's order, so that a run can be moved between the two. In both, the gradient first gains the
//! L2 term of weight decay: `g = dw + weight_decay * w`.
//!
//! **SGD** (no dampening):
//!
//! ```text
//! none       w <- w - lr g
//! classical  v <- momentum v + g      w <- w - lr v
//! Nesterov   v <- momentum v + g      w <- w - lr (g + momentum v)
//! ```
//!
//! `v` starts at zero, which makes the first step's `v` the gradient itself.
//!
//! **Adam**, step `t` counted from 1:
//!
//! ```text
//! m <- m + (1 - beta1) (g - m)              first moment
//! v <- beta2 v + (1 - beta2) g^2            second moment
//! w <- w - lr / (1 - beta1^t) * m / (sqrt(v) / sqrt(1 - beta2^t) + eps)
//! ```
//!
//! Both moments start at zero; the divisions by `1 - beta^t` take out the bias that this brings in. A gradient that stays
//! zero moves nothing: `0 / (0 + eps) = 0`.
//!
//! NaN and infinities reach the elements they belong to and no other. Kernels store a moment below the smallest normal number
//! of their type as zero; here moments underflow gradually.
//!
//! Sources: Sutskever, Martens, Dahl and Hinton, "On the importance of initialization and momentum in deep learning", ICML
//! 2013, in the form of PyTorch's `SGD`, whose `v` is not scaled by the learning rate; Kingma and Ba, "Adam: a method for
//! stochastic optimization", ICLR 2015, algorithm 1, with `eps` added after the correction.

/// What SGD makes of earlier gradients.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Momentum {
    /// Nothing; the velocity is neither read nor written.
    None,
    /// A velocity with this factor, which is the step.
    Classical(f64),
    /// A velocity with this factor, and a step that looks ahead along it.
    Nesterov(f64),
}

/// Settings of [`sgd`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sgd {
    /// Learning rate.
    pub lr: f64,
    /// What is made of earlier gradients.
    pub momentum: Momentum,
    /// Factor of the L2 term that is added to the gradient.
    pub weight_decay: f64,
}

/// Settings of [`adam`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Adam {
    /// Learning rate.
    pub lr: f64,
    /// Decay of the first moment; 0.9 by custom.
    pub beta1: f64,
    /// Decay of the second moment; 0.999 by custom.
    pub beta2: f64,
    /// Added to the root of the second moment; 1e-8 by custom.
    pub eps: f64,
    /// Factor of the L2 term that is added to the gradient.
    pub weight_decay: f64,
}

/// One step of stochastic gradient descent.
///
/// # Panics
/// If the lengths differ; without momentum, `velocity` may have any length.
pub fn sgd(settings: &Sgd, w: &mut [f64], dw: &[f64], velocity: &mut [f64]) {
    let Sgd { lr, momentum, weight_decay } = *settings;
    assert_eq!(w.len(), dw.len(), "sgd: w has {} elements, dw has {}", w.len(), dw.len());
    if momentum != Momentum::None {
        assert_eq!(w.len(), velocity.len(), "sgd: w has {} elements, velocity has {}", w.len(), velocity.len());
    }
    for i in 0..w.len() {
        let g = dw[i] + weight_decay * w[i];
        let step = match momentum {
            Momentum::None => g,
            Momentum::Classical(factor) => {
                velocity[i] = factor * velocity[i] + g;
                velocity[i]
            }
            Momentum::Nesterov(factor) => {
                velocity[i] = factor * velocity[i] + g;
                g + factor * velocity[i]
            }
        };
        w[i] -= lr * step;
    }
}

/// One step of Adam; `step` counts from 1.
///
/// # Panics
/// If the lengths differ, or `step` is zero.
pub fn adam(settings: &Adam, step: u64, w: &mut [f64], dw: &[f64], m: &mut [f64], v: &mut [f64]) {
    let Adam { lr, beta1, beta2, eps, weight_decay } = *settings;
    assert!(step > 0, "adam: steps count from 1");
    assert_eq!(w.len(), dw.len(), "adam: w has {} elements, dw has {}", w.len(), dw.len());
    assert_eq!(w.len(), m.len(), "adam: w has {} elements, m has {}", w.len(), m.len());
    assert_eq!(w.len(), v.len(), "adam: w has {} elements, v has {}", w.len(), v.len());
    let correction1 = 1.0 - beta1.powf(step as f64);
    let correction2 = 1.0 - beta2.powf(step as f64);
    for i in 0..w.len() {
        let g = dw[i] + weight_decay * w[i];
        m[i] += (1.0 - beta1) * (g - m[i]);
        v[i] = beta2 * v[i] + (1.0 - beta2) * g * g;
        let root = v[i].sqrt() / correction2.sqrt() + eps;
        w[i] -= lr / correction1 * (m[i] / root);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sgd_worked_by_hand() {
        let run = |momentum, weight_decay| {
            let (mut w, mut velocity) = ([1.0], [0.0]);
            let settings = Sgd { lr: 0.5, momentum, weight_decay };
            sgd(&settings, &mut w, &[2.0], &mut velocity);
            let first = w[0];
            sgd(&settings, &mut w, &[4.0], &mut velocity);
            [first, w[0], velocity[0]]
        };
        assert_eq!(run(Momentum::None, 0.0), [0.0, -2.0, 0.0]);
        assert_eq!(run(Momentum::Classical(0.5), 0.0), [0.0, -2.5, 5.0]); // v: 2, then 1 + 4
        assert_eq!(run(Momentum::Nesterov(0.5), 0.0), [-0.5, -3.75, 5.0]); // steps: 2 + 1, then 4 + 2.5
        assert_eq!(run(Momentum::None, 1.0), [-0.5, -2.25, 0.0]); // g: 2 + 1, then 4 - 0.5
    }

    #[test]
    fn adam_worked_by_hand() {
        let settings = Adam { lr: 0.25, beta1: 0.5, beta2: 0.75, eps: 1.0, weight_decay: 0.0 };
        let (mut w, mut m, mut v) = ([1.0, 1.0], [0.0; 2], [0.0; 2]);
        // The first step sees the gradient itself: m / (1 - beta1) = g and sqrt(v / (1 - beta2)) = |g|.
        adam(&settings, 1, &mut w, &[3.0, 0.0], &mut m, &mut v);
        assert_eq!((m[0], v[0]), (1.5, 2.25));
        assert_eq!(w, [1.0 - 0.25 * 3.0 / (3.0 + 1.0), 1.0]);
        adam(&settings, 2, &mut w, &[0.0, 0.0], &mut m, &mut v);
        assert_eq!((m[0], v[0]), (0.75, 1.6875));
        assert_eq!((w[1], m[1], v[1]), (1.0, 0.0, 0.0));
    }

    #[test]
    fn weight_decay_joins_the_gradient_of_adam() {
        let settings = |weight_decay| Adam { lr: 0.1, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay };
        let step = |weight_decay, dw| {
            let (mut w, mut m, mut v) = ([2.0], [0.0], [0.0]);
            adam(&settings(weight_decay), 1, &mut w, &[dw], &mut m, &mut v);
            (w, m, v)
        };
        assert_eq!(step(0.5, 1.0), step(0.0, 2.0));
    }
}
