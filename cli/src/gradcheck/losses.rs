//! ReLU and the losses.

use super::function::{Function, Given};
use super::subjects::{OFF_THE_KINK, normals, size};
use evenkeel::Rng;
use evenkeel::kernels::{mse, relu, softmax_xent};
use evenkeel::simd::Element;
use std::fmt;

/// ReLU of any number of values.
pub(super) struct Relu {
    n: usize,
    c: usize,
}

impl Relu {
    pub(super) fn new(rng: &mut Rng) -> Self {
        Relu { n: size(rng, 16), c: size(rng, 33) }
    }
}

impl fmt::Display for Relu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.n, self.c)
    }
}

impl Function<1> for Relu {
    fn given(&self, rng: &mut Rng) -> [Given; 1] {
        let mut values = normals(rng, self.n * self.c);
        // Differences of layers are held at the base point, so that nothing is at a kink but a zero itself.
        values.iter_mut().filter(|x| f64::from(x.abs()) < OFF_THE_KINK).for_each(|x| *x = 0.0);
        [Given { name: "x", shape: [self.n, self.c].into(), values }]
    }

    fn outputs(&self) -> usize {
        self.n * self.c
    }

    fn forward<T: Element>(&self, [x]: [&[T]; 1], y: &mut [T]) {
        relu::forward(x, y);
    }

    fn backward<T: Element>(&self, [x]: [&[T]; 1], dy: &[T], [dx]: [&mut [T]; 1]) {
        relu::backward(x, dy, dx);
    }

    fn magnitude(&self, _: [&[f64]; 1], dy: &[f64], [dx]: [&mut [f64]; 1]) {
        dx.iter_mut().zip(dy).for_each(|(dx, dy)| *dx = dy.abs());
    }

    /// Nothing is computed.
    fn ulps(&self) -> [f64; 1] {
        [0.0]
    }
}

/// A loss of `[n, c]` outputs, one number.
pub(super) struct Loss {
    n: usize,
    c: usize,
    kind: Kind,
}

enum Kind {
    CrossEntropy(Vec<u8>),
    Mse(Vec<f32>),
}

impl Loss {
    pub(super) fn cross_entropy(rng: &mut Rng) -> Self {
        let (n, c) = (size(rng, 24), size(rng, 17));
        let labels = (0..n).map(|_| u8::try_from(rng.index(c)).expect("few classes")).collect();
        Loss { n, c, kind: Kind::CrossEntropy(labels) }
    }

    pub(super) fn mse(rng: &mut Rng) -> Self {
        let (n, c) = (size(rng, 24), size(rng, 17));
        Loss { n, c, kind: Kind::Mse(normals(rng, n * c)) }
    }

    fn target<T: Element>(target: &[f32]) -> Vec<T> {
        target.iter().map(|&t| T::from_f64(f64::from(t))).collect()
    }
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.n, self.c)
    }
}

const IN_RANGE: &str = "labels below the number of classes";

impl Function<1> for Loss {
    fn given(&self, rng: &mut Rng) -> [Given; 1] {
        let values = normals(rng, self.n * self.c).iter().map(|x| 3.0 * x).collect();
        let name = if let Kind::Mse(_) = self.kind { "y" } else { "logits" };
        [Given { name, shape: [self.n, self.c].into(), values }]
    }

    fn outputs(&self) -> usize {
        1
    }

    fn forward<T: Element>(&self, [y]: [&[T]; 1], loss: &mut [T]) {
        loss[0] = T::from_f64(match &self.kind {
            Kind::CrossEntropy(labels) => softmax_xent::forward(y, labels).expect(IN_RANGE),
            Kind::Mse(target) => mse::forward(y, &Self::target(target)),
        });
    }

    fn backward<T: Element>(&self, [y]: [&[T]; 1], dloss: &[T], [dy]: [&mut [T]; 1]) {
        match &self.kind {
            Kind::CrossEntropy(labels) => softmax_xent::forward_backward(y, labels, dy).expect(IN_RANGE),
            Kind::Mse(target) => mse::forward_backward(y, &Self::target(target), dy),
        };
        dy.iter_mut().for_each(|dy| *dy = *dy * dloss[0]);
    }

    /// `(p - onehot) / n`, where p = e^(y - max) / sum has the roundings of its exponent in it, and those of all others through the sum;
    /// `2 (y - target) / (n c)`.
    fn magnitude(&self, [y]: [&[f64]; 1], dloss: &[f64], [dy]: [&mut [f64]; 1]) {
        match &self.kind {
            Kind::CrossEntropy(labels) => {
                for ((y, dy), &label) in y.chunks(self.c).zip(dy.chunks_mut(self.c)).zip(labels) {
                    let largest = y.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                    let sum: f64 = y.iter().map(|y| (y - largest).exp()).sum();
                    let of_sum: f64 = y.iter().map(|y| (y - largest).exp() / sum * (y - largest).abs()).sum();
                    for (j, (y, dy)) in y.iter().zip(dy).enumerate() {
                        let p = (y - largest).exp() / sum;
                        let is_label = if j == usize::from(label) { 1.0 } else { 0.0 };
                        *dy = (p * (1.0 + (y - largest).abs() + of_sum) + is_label) * dloss[0].abs() / self.n as f64;
                    }
                }
            }
            Kind::Mse(target) => {
                let scale = 2.0 / target.len() as f64 * dloss[0].abs();
                for ((dy, y), target) in dy.iter_mut().zip(y).zip(target) {
                    *dy = scale * (y - f64::from(*target)).abs();
                }
            }
        }
    }

    /// A difference, a factor and dloss; before those two exponentials of 2 roundings each, a sum of c terms and a quotient.
    fn ulps(&self) -> [f64; 1] {
        match self.kind {
            Kind::CrossEntropy(_) => [4.0 + self.c as f64 / 2.0],
            Kind::Mse(_) => [2.0],
        }
    }
}
