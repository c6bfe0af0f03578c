//! Kernels by themselves: losses, and what layers fuse.

use super::*;

#[test]
fn losses_on_every_instruction_set() {
    for isa in Isa::available() {
        with_isa(isa, || {
            for (n, c) in [(1, 2), (2, 1), (3, 10), (7, 13), (20, 3)] {
                let rng = &mut Rng::new(n as u64, "loss");
                let labels: Vec<u8> = (0..n).map(|_| u8::try_from(rng.index(c)).unwrap()).collect();
                let target = normals(rng, n * c);
                let y: Vec<f64> = normals(rng, n * c).iter().map(|y| 3.0 * y).collect();
                let scale = |dx: &mut [f64], by: f64| dx.iter_mut().for_each(|dx| *dx *= by);
                let cross_entropy = GradCheck::new(3).function(
                    [Input::new("logits", [n, c], &y)],
                    1,
                    |[y], loss| loss[0] = softmax_xent::forward(y, &labels).unwrap(),
                    |[y], dloss, [dy]| {
                        softmax_xent::forward_backward(y, &labels, dy).unwrap();
                        scale(dy, dloss[0]);
                    },
                );
                passes(&format!("{isa}: cross-entropy of {n} x {c}"), cross_entropy);
                let squares = GradCheck::new(3).function(
                    [Input::new("y", [n, c], &y)],
                    1,
                    |[y], loss| loss[0] = mse::forward(y, &target),
                    |[y], dloss, [dy]| {
                        mse::forward_backward(y, &target, dy);
                        scale(dy, dloss[0]);
                    },
                );
                passes(&format!("{isa}: mean squared error of {n} x {c}"), squares);
            }
        });
    }
}

/// A normalisation as a function of x, gamma and beta.
#[derive(Clone, Copy)]
struct Fused<'a> {
    /// Values of a channel, `l` of them side by side.
    n: usize,
    c: usize,
    l: usize,
    eps: f64,
    activation: Activation,
    /// Whether gamma and beta are there.
    affine: (bool, bool),
    /// Mean and variance, if they are given.
    frozen: Option<(&'a [f64], &'a [f64])>,
    /// Whether outputs are written over inputs, where that can be.
    is_in_place: bool,
}

impl Fused<'_> {
    fn norm<'v>(&self, gamma: &'v [f64], beta: &'v [f64]) -> BatchNorm<'v, f64> {
        let (gamma, beta) = (self.affine.0.then_some(gamma), self.affine.1.then_some(beta));
        BatchNorm { channels: self.c, inner: self.l, gamma, beta, eps: self.eps, activation: self.activation }
    }

    fn scratch(&self) -> Vec<f64> {
        vec![0.0; batchnorm::scratch_len::<f64>(self.n / self.l, self.c, self.l)]
    }

    fn forward(&self, [x, gamma, beta]: [&[f64]; 3], y: &mut [f64]) -> Vec<f64> {
        let (norm, mut scratch) = (self.norm(gamma, beta), self.scratch());
        let mut saved = vec![0.0; batchnorm::saved_len(self.c)];
        match self.frozen {
            Some(statistics) if self.is_in_place => {
                y.copy_from_slice(x);
                batchnorm::forward_frozen_in_place(&norm, y, statistics, &mut saved, &mut scratch).unwrap();
            }
            Some(statistics) => batchnorm::forward_frozen(&norm, x, statistics, y, &mut saved, &mut scratch).unwrap(),
            None => batchnorm::forward(&norm, x, y, &mut saved, &mut scratch).unwrap(),
        }
        saved
    }

    fn backward(&self, [x, gamma, beta]: [&[f64]; 3], dy: &[f64], [dx, dgamma, dbeta]: [&mut [f64]; 3]) {
        let saved = self.forward([x, gamma, beta], &mut vec![0.0; x.len()]);
        let (norm, mut scratch) = (self.norm(gamma, beta), self.scratch());
        let statistics = if self.frozen.is_some() { Statistics::Frozen } else { Statistics::Batch };
        dgamma.fill(0.0);
        dbeta.fill(0.0);
        // The result does not depend on what is not there.
        let parameters = (self.affine.0.then_some(dgamma), self.affine.1.then_some(dbeta));
        if self.is_in_place {
            dx.copy_from_slice(dy);
            batchnorm::backward_in_place(&norm, statistics, x, dx, &saved, parameters, &mut scratch);
            return;
        }
        let gradients = Gradients { dx: Some(dx), dgamma: parameters.0, dbeta: parameters.1 };
        batchnorm::backward(&norm, statistics, x, dy, &saved, gradients, &mut scratch);
    }

    fn check(&self, seed: u64) -> std::result::Result<Report, Failure> {
        let (n, c, rng) = (self.n, self.c, &mut Rng::new(seed, "fused"));
        let [x, gamma, beta] = [n * c, c, c].map(|len| normals(rng, len));
        let inputs = [Input::new("x", [n, c], &x), Input::new("gamma", [c], &gamma), Input::new("beta", [c], &beta)];
        let forward = |inputs: [&[f64]; 3], y: &mut [f64]| {
            self.forward(inputs, y);
        };
        GradCheck::new(seed)
            .function(inputs, n * c, forward, |inputs, dy, gradients| self.backward(inputs, dy, gradients))
    }
}

#[test]
fn normalisation_kernels_fused_or_not_frozen_or_not() {
    for isa in Isa::available() {
        with_isa(isa, || {
            for (n, c, l) in
                [(1, 3, 1), (2, 1, 1), (2, 5, 1), (9, 2, 1), (5, 9, 1), (17, 3, 1), (6, 3, 2), (15, 2, 5), (34, 2, 17)]
            {
                let rng = &mut Rng::new(3, "frozen");
                let (mean, var) = (normals(rng, c), (0..c).map(|_| rng.range(0.1, 3.0)).collect::<Vec<_>>());
                for activation in [Activation::Identity, Activation::Relu] {
                    for frozen in [None, Some((&mean[..], &var[..]))] {
                        if n == 1 && frozen.is_none() {
                            continue; // one value has no variance
                        }
                        // Two rows are one number in disguise; with the wider eps they still have a slope.
                        let affine = (true, true);
                        let fused = Fused { n, c, l, eps: 0.1, activation, affine, frozen, is_in_place: false };
                        let frozen = frozen.is_some();
                        passes(
                            &format!("{isa}: {n} x {c}, {l} side by side, {activation:?}, frozen {frozen}"),
                            fused.check(100),
                        );
                    }
                }
            }
        });
    }
}

proptest! {
    #![proptest_config(fixed(160, 5))]

    #[test]
    fn normalisation_kernels_with_any_options(
        (images, l) in prop_oneof![
            (2usize..36, Just(1usize)),
            (1usize..24, 2usize..6),
            (1usize..3, 14usize..20),
            (1usize..2, 31usize..40),
        ].prop_filter("one value per channel", |(images, l)| images * l > 1),
        c in select(&[1, 2, 3, 5, 8, 9][..]),
        (is_fused, is_frozen, is_in_place, affine) in any::<(bool, bool, bool, (bool, bool))>(),
        seed in 0..1u64 << 32,
    ) {
        let rng = &mut Rng::new(seed, "frozen");
        let (mean, var) = (normals(rng, c), (0..c).map(|_| rng.range(0.1, 3.0)).collect::<Vec<_>>());
        let activation = if is_fused { Activation::Relu } else { Activation::Identity };
        let frozen = is_frozen.then_some((&mean[..], &var[..]));
        let fused = Fused { n: images * l, c, l, eps: 0.1, activation, affine, frozen, is_in_place };
        let report = fused.check(seed)?;
        prop_assert_eq!(report.skipped(), 0);
    }
}

#[test]
fn relu_kernels() {
    for isa in Isa::available() {
        with_isa(isa, || {
            for n in [1, 7, 8, 33] {
                let x = normals(&mut Rng::new(n, "relu"), usize::try_from(n).unwrap());
                let inputs = [Input::new("x", [x.len()], &x)];
                let forward = |[x]: [&[f64]; 1], y: &mut [f64]| relu::forward(x, y);
                let checked =
                    GradCheck::new(3).function(inputs, x.len(), forward, |[x], dy, [dx]| relu::backward(x, dy, dx));
                passes(&format!("{isa}: ReLU of {n}"), checked);
            }
        });
    }
}
