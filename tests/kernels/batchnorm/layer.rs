//! One layer with its data: how it is drawn, how it lies, and how each pass is run.

use crate::support::*;
use evenkeel::Rng;
use evenkeel::kernels::Activation;
use evenkeel::kernels::batchnorm::{self, BatchNorm, Gradients, Statistics};
use evenkeel::simd::Element;

/// One layer with a batch and an upstream gradient.
#[derive(Clone, Debug)]
pub(super) struct Layer<T> {
    /// Values of a channel.
    pub(super) n: usize,
    pub(super) c: usize,
    /// Neighbouring values of a channel, of which `n` is a multiple: the kernel gets `[n / l, c, l]`, everyone else `[n, c]`.
    pub(super) l: usize,
    pub(super) x: Vec<T>,
    pub(super) dy: Vec<T>,
    pub(super) gamma: Option<Vec<T>>,
    pub(super) beta: Option<Vec<T>>,
    pub(super) eps: f64,
    pub(super) activation: Activation,
}

/// What a forward pass wrote.
pub(super) struct Forward<T> {
    pub(super) y: Vec<T>,
    pub(super) saved: Vec<T>,
}

/// What a parameter gradient holds before a backward pass adds to it.
pub(super) const BEFORE: f64 = 0.5;

impl<T: Element> Layer<T> {
    /// Channels in turn with a small, a large and a very large mean; gammas of both signs and one that is zero. The bits of
    /// `variant` choose gamma, beta and ReLU.
    pub(super) fn new(seed: u64, n: usize, c: usize, variant: usize) -> Self {
        let mut rng = Rng::new(seed, "batchnorm");
        let kinds = [(0.0, 1.0), (100.0, 0.01), (-3.0, 0.5), (1e4, 1.0), (1.0, 30.0)];
        let x = (0..n * c).map(|i| {
            let (mean, sigma) = kinds[i % c % 5];
            T::from_f64(mean + sigma * rng.normal())
        });
        let x = x.collect();
        let dy = normals(&mut rng, n * c);
        let mut gamma: Vec<T> = normals(&mut rng, c);
        if c > 2 {
            gamma[1] = T::ZERO;
        }
        let beta = normals(&mut rng, c);
        Layer {
            n,
            c,
            l: 1,
            x,
            dy,
            gamma: (variant & 1 != 0).then_some(gamma),
            beta: (variant & 2 != 0).then_some(beta),
            eps: if variant & 8 != 0 { 0.1 } else { 1e-5 },
            activation: if variant & 4 != 0 { Activation::Relu } else { Activation::Identity },
        }
    }

    pub(super) fn norm(&self) -> BatchNorm<'_, T> {
        let (gamma, beta) = (self.gamma.as_deref(), self.beta.as_deref());
        BatchNorm { channels: self.c, inner: self.l, gamma, beta, eps: self.eps, activation: self.activation }
    }

    pub(super) fn scratch(&self) -> Guarded<T> {
        // NaN, so that what is read before it is written shows.
        Guarded::new(&vec![T::from_f64(f64::NAN); batchnorm::scratch_len::<T>(self.n / self.l, self.c, self.l)], 3)
    }

    /// The same with l values of a channel side by side.
    pub(super) fn inner(self, l: usize) -> Self {
        assert!(self.n.is_multiple_of(l));
        Layer { l, ..self }
    }

    /// The place of element `i` of `[n, c]` in what the kernel gets.
    fn place(&self, i: usize) -> usize {
        let (row, channel) = (i / self.c, i % self.c);
        (row / self.l * self.c + channel) * self.l + row % self.l
    }

    /// `[n, c]` as the kernel gets it.
    fn laid(&self, rows: &[T]) -> Vec<T> {
        let mut laid = rows.to_vec();
        for (i, &x) in rows.iter().enumerate() {
            laid[self.place(i)] = x;
        }
        laid
    }

    /// What the kernel gives, as `[n, c]`.
    fn rows(&self, laid: &[T]) -> Vec<T> {
        (0..laid.len()).map(|i| laid[self.place(i)]).collect()
    }

    pub(super) fn forward(&self, offset: usize) -> Forward<T> {
        let (x, mut scratch) = (Guarded::new(&self.laid(&self.x), offset), self.scratch());
        let mut y = Guarded::unwritten(self.x.len(), (offset + 5) % 16);
        let mut saved = Guarded::unwritten(batchnorm::saved_len(self.c), (offset + 9) % 16);
        batchnorm::forward(&self.norm(), x.get(), y.get_mut(), saved.get_mut(), scratch.get_mut()).unwrap();
        y.check("batchnorm y");
        saved.check("batchnorm saved");
        scratch.check("batchnorm scratch");
        Forward { y: self.rows(y.get()), saved: saved.get().to_vec() }
    }

    pub(super) fn forward_frozen(&self, running: (&[T], &[T]), offset: usize) -> Forward<T> {
        let (x, mut scratch) = (Guarded::new(&self.laid(&self.x), offset), self.scratch());
        let mut y = Guarded::unwritten(self.x.len(), (offset + 5) % 16);
        let mut saved = Guarded::unwritten(batchnorm::saved_len(self.c), (offset + 9) % 16);
        let (norm, scratch) = (self.norm(), scratch.get_mut());
        batchnorm::forward_frozen(&norm, x.get(), running, y.get_mut(), saved.get_mut(), scratch).unwrap();
        y.check("batchnorm frozen y");
        saved.check("batchnorm frozen saved");
        // The same over the input.
        let (mut data, mut again) = (Guarded::new(&self.laid(&self.x), offset), saved.get().to_vec());
        batchnorm::forward_frozen_in_place(&norm, data.get_mut(), running, &mut again, scratch).unwrap();
        data.check("batchnorm frozen in place");
        assert_same_bits("in place and apart", &bits(data.get()), &bits(y.get()));
        Forward { y: self.rows(y.get()), saved: saved.get().to_vec() }
    }

    /// dx, dgamma and dbeta, of which those not `wanted` stay unwritten; parameter gradients are added to [`BEFORE`].
    pub(super) fn backward(
        &self,
        statistics: Statistics,
        saved: &[T],
        wanted: [bool; 3],
        offset: usize,
    ) -> [Vec<T>; 3] {
        let (x, dy) = (self.laid(&self.x), self.laid(&self.dy));
        let (x, mut dy) = (Guarded::new(&x, offset), Guarded::new(&dy, (offset + 1) % 16));
        let mut dx = Guarded::unwritten(self.x.len(), (offset + 2) % 16);
        let mut dgamma = Guarded::new(&vec![T::from_f64(BEFORE); self.c], (offset + 3) % 16);
        let mut dbeta = Guarded::new(&vec![T::from_f64(BEFORE); self.c], (offset + 4) % 16);
        let mut scratch = self.scratch();
        let gradients = Gradients {
            dx: wanted[0].then(|| dx.get_mut()),
            dgamma: wanted[1].then(|| dgamma.get_mut()),
            dbeta: wanted[2].then(|| dbeta.get_mut()),
        };
        batchnorm::backward(&self.norm(), statistics, x.get(), dy.get(), saved, gradients, scratch.get_mut());
        for (guarded, name) in [(&dx, "dx"), (&dgamma, "dgamma"), (&dbeta, "dbeta"), (&scratch, "scratch")] {
            guarded.check(&format!("batchnorm backward {name}"));
        }
        if wanted[0] {
            // The same over the upstream gradient.
            let (x, scratch) = (x.get(), scratch.get_mut());
            batchnorm::backward_in_place(&self.norm(), statistics, x, dy.get_mut(), saved, (None, None), scratch);
            dy.check("batchnorm backward in place");
            assert_same_bits("in place and apart", &bits(dy.get()), &bits(dx.get()));
            return [self.rows(dx.get()), dgamma.get().to_vec(), dbeta.get().to_vec()];
        }
        [dx.get().to_vec(), dgamma.get().to_vec(), dbeta.get().to_vec()]
    }

    /// The same with dx over dy.
    pub(super) fn backward_in_place(&self, statistics: Statistics, saved: &[T], wanted: [bool; 3]) -> [Vec<T>; 3] {
        let (x, mut dx) = (self.laid(&self.x), Guarded::new(&self.laid(&self.dy), 7));
        let (mut dgamma, mut dbeta) = (vec![T::from_f64(BEFORE); self.c], vec![T::from_f64(BEFORE); self.c]);
        let parameters = (wanted[1].then_some(&mut dgamma[..]), wanted[2].then_some(&mut dbeta[..]));
        let (norm, mut scratch) = (self.norm(), self.scratch());
        batchnorm::backward_in_place(&norm, statistics, &x, dx.get_mut(), saved, parameters, scratch.get_mut());
        dx.check("batchnorm backward in place");
        scratch.check("batchnorm scratch");
        [self.rows(dx.get()), dgamma, dbeta]
    }

    /// gamma and beta of a channel.
    pub(super) fn affine(&self, channel: usize) -> (f64, f64) {
        let of = |p: &Option<Vec<T>>, absent| p.as_ref().map_or(absent, |p| p[channel].to_f64());
        (of(&self.gamma, 1.0), of(&self.beta, 0.0))
    }
}

/// All gradients.
pub(super) const ALL: [bool; 3] = [true; 3];

/// Every bit that any pass writes.
pub(super) fn everything<T: Element>(layer: &Layer<T>, offset: usize) -> Vec<u64> {
    let batch = layer.forward(offset);
    let (mean, var) = (vec![T::from_f64(0.7); layer.c], vec![T::from_f64(1.7); layer.c]);
    let frozen = layer.forward_frozen((&mean, &var), offset);
    let mut all = vec![bits(&batch.y), bits(&batch.saved), bits(&frozen.y), bits(&frozen.saved)];
    for (statistics, saved) in [(Statistics::Batch, &batch.saved), (Statistics::Frozen, &frozen.saved)] {
        all.extend(layer.backward(statistics, saved, ALL, offset).iter().map(|g| bits(g)));
    }
    all.concat()
}
