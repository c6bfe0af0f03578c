//! Batch normalisation: statistics, both forward passes, both backward passes, fused with ReLU and not.

use crate::support::*;
use evenkeel::kernels::batchnorm::{self, BatchNorm, Gradients, Saved, Statistics};
use evenkeel::kernels::{Activation, relu};
use evenkeel::reference;
use evenkeel::reference::batchnorm::Moments;
use evenkeel::simd::Element;
use evenkeel::{Error, Rng};
use proptest::prelude::*;

/// One layer with a batch and an upstream gradient.
#[derive(Clone, Debug)]
struct Layer<T> {
    /// Values of a channel.
    n: usize,
    c: usize,
    /// Neighbouring values of a channel, of which `n` is a multiple: the kernel gets `[n / l, c, l]`, everyone else `[n, c]`.
    l: usize,
    x: Vec<T>,
    dy: Vec<T>,
    gamma: Option<Vec<T>>,
    beta: Option<Vec<T>>,
    eps: f64,
    activation: Activation,
}

/// What a forward pass wrote.
struct Forward<T> {
    y: Vec<T>,
    saved: Vec<T>,
}

/// What a parameter gradient holds before a backward pass adds to it.
const BEFORE: f64 = 0.5;

impl<T: Element> Layer<T> {
    /// Channels in turn with a small, a large and a very large mean; gammas of both signs and one that is zero. The bits of
    /// `variant` choose gamma, beta and ReLU.
    fn new(seed: u64, n: usize, c: usize, variant: usize) -> Self {
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

    fn norm(&self) -> BatchNorm<'_, T> {
        let (gamma, beta) = (self.gamma.as_deref(), self.beta.as_deref());
        BatchNorm { channels: self.c, inner: self.l, gamma, beta, eps: self.eps, activation: self.activation }
    }

    fn scratch(&self) -> Guarded<T> {
        // NaN, so that what is read before it is written shows.
        Guarded::new(&vec![T::from_f64(f64::NAN); batchnorm::scratch_len::<T>(self.n / self.l, self.c, self.l)], 3)
    }

    /// The same with l values of a channel side by side.
    fn inner(self, l: usize) -> Self {
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

    fn forward(&self, offset: usize) -> Forward<T> {
        let (x, mut scratch) = (Guarded::new(&self.laid(&self.x), offset), self.scratch());
        let mut y = Guarded::unwritten(self.x.len(), (offset + 5) % 16);
        let mut saved = Guarded::unwritten(batchnorm::saved_len(self.c), (offset + 9) % 16);
        batchnorm::forward(&self.norm(), x.get(), y.get_mut(), saved.get_mut(), scratch.get_mut()).unwrap();
        y.check("batchnorm y");
        saved.check("batchnorm saved");
        scratch.check("batchnorm scratch");
        Forward { y: self.rows(y.get()), saved: saved.get().to_vec() }
    }

    fn forward_frozen(&self, running: (&[T], &[T]), offset: usize) -> Forward<T> {
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
    fn backward(&self, statistics: Statistics, saved: &[T], wanted: [bool; 3], offset: usize) -> [Vec<T>; 3] {
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

    /// gamma and beta of a channel.
    fn affine(&self, channel: usize) -> (f64, f64) {
        let of = |p: &Option<Vec<T>>, absent| p.as_ref().map_or(absent, |p| p[channel].to_f64());
        (of(&self.gamma, 1.0), of(&self.beta, 0.0))
    }
}

/// How far a channel's statistics may be off.
#[derive(Clone, Copy)]
struct Limits {
    mean: f64,
    var: f64,
    /// Relative, of `rstd`: half of that of var + eps.
    rstd: f64,
}

/// The bounds of the kernel's module doc, and the reference's own few roundings.
fn limits<T: Element>(moments: &Moments, channel: usize, eps: f64) -> Limits {
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
struct Oracle<'a, T> {
    layer: &'a Layer<T>,
    moments: Moments,
    limits: Vec<Limits>,
    statistics: Statistics,
}

impl<'a, T: Element> Oracle<'a, T> {
    fn batch(layer: &'a Layer<T>) -> Self {
        let moments = reference::batchnorm::moments(&wide(&layer.x), layer.c);
        let limits = (0..layer.c).map(|j| limits::<T>(&moments, j, layer.eps)).collect();
        Oracle { layer, moments, limits, statistics: Statistics::Batch }
    }

    fn frozen(layer: &'a Layer<T>, running: (&[T], &[T])) -> Self {
        let moments = Moments { mean: wide(running.0), var: wide(running.1) };
        Oracle { layer, moments, limits: vec![EXACT; layer.c], statistics: Statistics::Frozen }
    }

    fn rstd(&self, channel: usize) -> f64 {
        1.0 / (self.moments.var[channel] + self.layer.eps).sqrt()
    }

    fn check_statistics(&self, saved: &[T]) {
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

    fn check_y(&self, y: &[T]) {
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
    fn check_gradients(&self, y: &[T], [dx, dgamma, dbeta]: &[Vec<T>; 3]) {
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
        let leaves = n.div_ceil(1024) as f64;
        let b_limit = |j: usize| ((16.0 + 64.0) * u + (leaves + 2.0) * U64) * sums[j].0;
        // 16 + 64 roundings, one of t and one of a product that is not fused. t is measured from mean_hi, at most u |mean| away,
        // and the part of the mean below that is taken out with an error of B.
        let d_limit = |j: usize| {
            let (mean, limits) = (self.moments.mean[j].abs(), self.limits[j]);
            let roundings = 82.0 * u + (leaves + 4.0) * U64;
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

const ALL: [bool; 3] = [true; 3];

/// Statistics, y and all gradients of a layer, with its own statistics and with frozen ones.
fn agree<T: Element>(layer: &Layer<T>, offset: usize) {
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

/// Around lanes.
const CHANNELS: [usize; 15] = [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 19, 31, 32, 33];
/// Around tiles of 16, tasks of 128 and leaves of 1024 rows.
const ROWS: [usize; 22] =
    [2, 3, 4, 5, 7, 9, 15, 16, 17, 18, 31, 32, 33, 39, 127, 129, 1023, 1024, 1025, 1040, 2048, 2100];

fn every_pass_agrees_with_the_reference<T: Element>() {
    for (i, n) in ROWS.into_iter().enumerate() {
        for (j, c) in CHANNELS.into_iter().enumerate() {
            // Many rows with few channels and with a few sizes more.
            if n > 200 && j % 4 != i % 4 {
                continue;
            }
            agree(&Layer::<T>::new((n * 64 + c) as u64, n, c, i + 3 * j), (i + j) % 16);
        }
    }
    for variant in 0..16 {
        agree(&Layer::<T>::new(variant as u64, 50, 9, variant), variant);
        agree(&Layer::<T>::new(variant as u64, 1100, 3, variant), variant);
        agree(&Layer::<T>::new(variant as u64, 50, 9, variant).inner(25), variant);
    }
}

/// Images, channels and values of a plane: planes shorter than a group of lanes, one off its multiples, longer than a leaf; one image
/// and many.
const PLANES: [(usize, usize, usize); 24] = [
    (20, 16, 2),
    (9, 7, 3),
    (40, 3, 5),
    (300, 2, 4),
    (3, 90, 4),
    (16, 2, 15),
    (2, 3, 15),
    (2, 3, 16),
    (3, 5, 17),
    (1, 4, 31),
    (2, 2, 32),
    (1, 4, 33),
    (5, 6, 49),
    (2, 1, 100),
    (70, 3, 16),
    (2, 2, 511),
    (2, 2, 784),
    (37, 2, 784),
    (1, 3, 1024),
    (1, 2, 8191),
    (1, 1, 8192),
    (2, 2, 8193),
    (3, 1, 9000),
    (1, 1, 20_000),
];

fn every_pass_agrees_with_the_reference_over_planes<T: Element>() {
    for (i, (images, c, l)) in PLANES.into_iter().enumerate() {
        agree(&Layer::<T>::new((i * 64 + c) as u64, images * l, c, 7 * i + 3).inner(l), i % 16);
    }
}

/// A gradient is the same bits whatever else is asked for, and what is not asked for is not written.
fn any_subset_of_gradients_is_the_whole<T: Element>() {
    for (variant, n, c, l) in [(7, 37, 19, 1), (3, 1030, 5, 1), (0, 6, 1, 1), (7, 60, 7, 20), (3, 60, 7, 3)] {
        let layer = Layer::<T>::new(1, n, c, variant).inner(l);
        sweep::<T>(|_| {
            let saved = layer.forward(0).saved;
            for statistics in [Statistics::Batch, Statistics::Frozen] {
                let all = layer.backward(statistics, &saved, ALL, 0);
                let none = layer.backward(statistics, &saved, [false; 3], 0);
                for subset in 0..8 {
                    let wanted = [subset & 1 != 0, subset & 2 != 0, subset & 4 != 0];
                    let found = layer.backward(statistics, &saved, wanted, 0);
                    for part in 0..3 {
                        let right = if wanted[part] { &all[part] } else { &none[part] };
                        let what = format!("{statistics:?}, {wanted:?}, part {part}");
                        assert_same_bits(&what, &bits(&found[part]), &bits(right));
                    }
                }
                assert!(none[1].iter().chain(&none[2]).all(|g| g.to_f64() == BEFORE));
            }
        });
    }
}

/// Fused with ReLU is the same bits as the two kernels one after the other, in both directions.
fn fused_relu_is_two_kernels<T: Element>() {
    for (n, c, variant, l) in
        [(33, 17, 7, 1), (40, 3, 4, 1), (1100, 6, 5, 1), (129, 32, 6, 1), (102, 5, 7, 17), (80, 6, 5, 8)]
    {
        let fused = Layer::<T>::new(2, n, c, variant).inner(l);
        let plain = Layer { activation: Activation::Identity, ..fused.clone() };
        let (mean, var) = (vec![T::from_f64(0.3); c], vec![T::from_f64(2.5); c]);
        sweep::<T>(|_| {
            for statistics in [Statistics::Batch, Statistics::Frozen] {
                let forward = |layer: &Layer<T>| match statistics {
                    Statistics::Batch => layer.forward(1),
                    Statistics::Frozen => layer.forward_frozen((&mean, &var), 1),
                };
                let (one, two) = (forward(&fused), forward(&plain));
                let mut y = two.y.clone();
                relu::forward(&two.y, &mut y);
                assert_same_bits("saved, fused and not", &bits(&one.saved), &bits(&two.saved));
                assert_same_bits("y, fused and not", &bits(&one.y), &bits(&y));
                let mut dz = plain.dy.clone();
                relu::backward(&two.y, &plain.dy, &mut dz);
                let behind = Layer { dy: dz, ..plain.clone() };
                let one = fused.backward(statistics, &one.saved, ALL, 1);
                let two = behind.backward(statistics, &two.saved, ALL, 1);
                for part in 0..3 {
                    let what = format!("{statistics:?}: gradient {part}, fused and not");
                    assert_same_bits(&what, &bits(&one[part]), &bits(&two[part]));
                }
            }
        });
    }
}

/// `beta` is the rounded `-gamma x`, so that a fused z is what that rounding lost, of either sign, and an unfused one is zero:
/// the backward pass has to find the very z of the forward pass.
fn the_mask_has_the_bits_of_the_forward_pass<T: Element>() {
    let (n, c) = (4, 200);
    let mut layer = Layer::<T>::new(6, n, c, 7);
    layer.eps = 0.0;
    let row: Vec<T> = normals(&mut Rng::new(6, "mask"), c);
    layer.x = row.repeat(n);
    let gamma = layer.gamma.clone().unwrap();
    layer.beta = Some((0..c).map(|j| -(gamma[j] * row[j])).collect());
    let (mean, var) = (vec![T::ZERO; c], vec![T::ONE; c]);
    sweep::<T>(|isa| {
        let Forward { y, saved } = layer.forward_frozen((&mean, &var), 0);
        let positive = y.iter().filter(|y| y.to_f64() > 0.0).count();
        assert!(!isa.is_fused() || positive > c / 4, "only {positive} of {} are above zero", n * c);
        let [dx, ..] = layer.backward(Statistics::Frozen, &saved, ALL, 0);
        for i in 0..n * c {
            let passes = y[i].to_f64() > 0.0;
            assert_eq!(dx[i].to_f64() != 0.0, passes, "y[{i}] is {}, dx {}", y[i], dx[i]);
        }
    });
}

/// The kinds of data on which variances are lost: name, mean and spread (for the message), and the value of row i.
type Kind = (&'static str, fn(usize, usize, &mut Rng) -> f64);
const KINDS: [Kind; 7] = [
    ("N(0, 1)", |_, _, rng| rng.normal()),
    ("N(100, 0.01^2)", |_, _, rng| 100.0 + 0.01 * rng.normal()),
    ("N(1e4, 1)", |_, _, rng| 1e4 + rng.normal()),
    ("N(1e6, 1)", |_, _, rng| 1e6 + rng.normal()),
    ("first value 0, rest N(100, 0.01^2)", |i, _, rng| if i == 0 { 0.0 } else { 100.0 + 0.01 * rng.normal() }),
    ("slow ramp 1..1.01", |i, n, _| 1.0 + 0.01 * i as f64 / n as f64),
    ("constant 1e7 + 3", |_, _, _| 1e7 + 3.0),
];

/// One channel of each kind.
fn hard_statistics<T: Element>(n: usize, l: usize) -> Layer<T> {
    let mut rng = Rng::new(7, "statistics");
    let mut layer = Layer::<T>::new(1, 2, KINDS.len(), 2);
    layer.x = (0..n * KINDS.len()).map(|i| T::from_f64(KINDS[i % 7].1(i / 7, n, &mut rng))).collect();
    layer.n = n;
    layer.inner(l)
}

fn statistics_survive_a_large_mean_in<T: Element>(n: usize, l: usize, var_limit: impl Fn(Limits, f64) -> f64) {
    let layer = hard_statistics::<T>(n, l);
    let wanted = reference::batchnorm::moments(&wide(&layer.x), layer.c);
    sweep::<T>(|isa| {
        let Forward { y, saved } = layer.forward(0);
        let saved = Saved::new(&saved, layer.c);
        println!("{} on {isa}, n = {n}, {l} side by side: relative error of var, error of mean in sigma", T::NAME);
        for (j, (name, _)) in KINDS.iter().enumerate() {
            let (mean, var) = (wanted.mean[j], wanted.var[j]);
            if var == 0.0 {
                assert_eq!((saved.mean(j), saved.var(j)), (mean, 0.0), "{name}");
                let beta = layer.beta.as_ref().unwrap()[j].bits();
                assert!(y.iter().skip(j).step_by(layer.c).all(|y| y.bits() == beta), "{name}: y is beta");
                println!("  {name:36} exact");
                continue;
            }
            let (var_error, mean_error) = ((saved.var(j) - var).abs() / var, (saved.mean(j) - mean).abs() / var.sqrt());
            println!("  {name:36} {var_error:8.1e} {mean_error:8.1e}");
            let limits = limits::<T>(&wanted, j, layer.eps);
            let limit = var_limit(limits, var);
            assert!(var_error <= limit, "{name}: var off by {var_error:.1e} of it, allowed {limit:.1e}");
            assert!(mean_error <= limits.mean / var.sqrt(), "{name}: mean off by {mean_error:.1e} sigma");
        }
    });
}

/// In f32 over a million rows: better than the bound, which a single chain of additions would miss by orders of magnitude.
#[test]
fn statistics_of_a_million_rows_in_f32() {
    for l in [1, 8, 256, 1 << 14] {
        statistics_survive_a_large_mean_in::<f32>(1 << 20, l, |_, _| 1e-6);
    }
}

fn statistics_survive_a_large_mean<T: Element>() {
    for (n, l) in [(100, 1), (1000, 1), (5000, 1), (100_000, 1), (100, 10), (100, 50), (1000, 1000), (90_000, 30_000)] {
        statistics_survive_a_large_mean_in::<T>(n, l, |limits, var| limits.var / var);
    }
}

/// An outlier in front of fewer rows than a tile, and so a shift far from all others: the mean of what is left rounds, and has to be
/// corrected.
fn an_outlier_in_front_of_a_short_batch<T: Element>() {
    for n in [3, 7, 11, 13, 15] {
        let mut layer = Layer::<T>::new(n as u64, n, 400, 0);
        let mut rng = Rng::new(n as u64, "outlier");
        for (i, x) in layer.x.iter_mut().enumerate() {
            *x = T::from_f64(if i < 400 { 0.0 } else { rng.range(100.0, 110.0) });
        }
        let oracle = Oracle::batch(&layer);
        sweep::<T>(|_| oracle.check_statistics(&layer.forward(0).saved));
    }
}

/// A constant channel: variance 0, its value as mean, y = beta, and no gradient for gamma.
fn constant_channels_are_exact<T: Element>() {
    let largest = if T::NAME == "f32" { f64::from(f32::MAX) } else { f64::MAX };
    for value in [0.1, 1e7 + 3.0, -1e30, 1e-40, largest, 0.0] {
        let value = T::from_f64(value);
        for (n, l) in [
            (2, 1),
            (3, 1),
            (15, 1),
            (16, 1),
            (17, 1),
            (100, 1),
            (1024, 1),
            (1040, 1),
            (3001, 1),
            (15, 3),
            (100, 10),
            (34, 17),
            (98, 49),
            (3001, 3001),
            (9000, 9000),
            (1600, 16),
        ] {
            let mut layer = Layer::<T>::new(n as u64, n, 5, 3).inner(l);
            layer.x.fill(value);
            sweep::<T>(|_| {
                let Forward { y, saved } = layer.forward(0);
                let [_, dgamma, _] = layer.backward(Statistics::Batch, &saved, ALL, 0);
                let saved = Saved::new(&saved, 5);
                for j in 0..5 {
                    assert_eq!((saved.mean(j), saved.var(j)), (value.to_f64(), 0.0), "{value} x {n}");
                    let beta = layer.beta.as_ref().unwrap()[j];
                    assert!(y.iter().skip(j).step_by(5).all(|y| y.bits() == beta.bits()), "{value} x {n}: y is beta");
                    assert_eq!(dgamma[j].to_f64(), BEFORE, "{value} x {n}");
                }
            });
        }
    }
}

/// Pairs `mean + d, mean - d` with a mean that is a power of two and a `d` of few bits (0 at the start of every leaf, whose first
/// value may be the shift): every sum in any order is exact, so mean and variance are the reference's, bit for bit.
fn pairs_around_a_power_of_two_are_exact<T: Element>() {
    for (n, l) in [2, 4, 8, 14, 16, 18, 30, 32, 34, 48, 62, 1008, 1022, 1024, 1026, 1040, 2048, 2078, 4096, 5002]
        .map(|n| (n, 1))
        .into_iter()
        .chain([(16, 2), (60, 4), (36, 18), (98, 98), (980, 98), (5002, 5002), (20_000, 10_000)])
    {
        for c in [1, 3, 17] {
            let mut layer = Layer::<T>::new(1, n, c, 0).inner(l);
            for i in 0..n {
                for j in 0..c {
                    let mean = [1.0, -4.0, 64.0][j % 3];
                    let d = mean * ((i / 2 * (5 + j)) % 16) as f64 / 16.0;
                    layer.x[i * c + j] = T::from_f64(if i % 2 == 0 { mean + d } else { mean - d });
                }
            }
            let wanted = reference::batchnorm::moments(&wide(&layer.x), c);
            sweep::<T>(|_| {
                let saved = layer.forward(0).saved;
                let saved = Saved::new(&saved, c);
                for j in 0..c {
                    assert_eq!(saved.mean(j), wanted.mean[j], "mean of channel {j}, {n} rows");
                    // The quotient by n is kept in two parts.
                    assert_eq!(saved.var(j), T::join(T::split(wanted.var[j])), "var of channel {j}, {n} rows");
                }
            });
        }
    }
}

/// Data whose squares overflow: judged through data scaled down by a power of two, which changes no digit of y.
fn squares_that_overflow_are_repaired<T: Element>() {
    let exponent = if T::NAME == "f32" { 100 } else { 997 };
    let up = 2f64.powi(exponent);
    for (n, c, variant, l) in
        [(40, 5, 3, 1), (33, 17, 7, 1), (1500, 3, 0, 1), (100, 5, 3, 25), (1500, 3, 0, 300), (40, 3, 0, 5)]
    {
        let mut layer = Layer::<T>::new(3, n, c, variant).inner(l);
        layer.eps = 1e-5;
        // Only every second channel is huge; its neighbours must not notice.
        let ordinary = layer.clone();
        for i in 0..n * c {
            if i % c % 2 == 0 {
                layer.x[i] = T::from_f64(layer.x[i].to_f64() * up);
            }
        }
        // As if eps had been scaled with the data: next to such a variance it is nothing.
        let small = Layer { eps: f64::MIN_POSITIVE, ..ordinary.clone() };
        let (scaled, plain) = (Oracle::batch(&small), Oracle::batch(&ordinary));
        sweep::<T>(|_| {
            let Forward { y, saved } = layer.forward(0);
            let all = layer.backward(Statistics::Batch, &saved, ALL, 0);
            let read = Saved::new(&saved, c);
            let neighbours = ordinary.forward(0);
            for j in 0..c {
                if j % 2 == 0 {
                    assert_eq!(read.var(j), f64::INFINITY, "channel {j}: the variance does not fit");
                } else {
                    assert_eq!(read.var(j), Saved::new(&neighbours.saved, c).var(j));
                }
            }
            // Put together what the oracle of each kind of channel expects.
            for (oracle, parity) in [(&scaled, 0), (&plain, 1)] {
                let other = oracle.layer.forward(0);
                let mut mixed = y.clone();
                let mut gradients = all.clone();
                let replaced = oracle.layer.backward(Statistics::Batch, &other.saved, ALL, 0);
                for i in 0..n * c {
                    if i % c % 2 != parity {
                        mixed[i] = other.y[i];
                        gradients[0][i] = replaced[0][i];
                    } else if parity == 0 {
                        gradients[0][i] = T::from_f64(gradients[0][i].to_f64() * up);
                    }
                }
                for j in 0..c {
                    if j % 2 != parity {
                        gradients[1][j] = replaced[1][j];
                        gradients[2][j] = replaced[2][j];
                    }
                }
                oracle.check_y(&mixed);
                oracle.check_gradients(&mixed, &gradients);
            }
            if variant == 0 {
                // Twice what rstd and x_hat may be off, and the mean of y.
                for j in (0..c).step_by(2) {
                    let squares: f64 = y.iter().skip(j).step_by(c).map(|y| y.to_f64() * y.to_f64()).sum();
                    near_one(&"variance of y", squares / n as f64, 1.0, || 64.0 * T::ROUNDOFF);
                }
            }
        });
    }
}

/// Each lane position poisoned in turn: the other channels do not change by a bit.
fn what_is_not_finite_stays_in_its_channel<T: Element>() {
    for (n, c, l) in [
        (40, 1, 1),
        (21, 3, 1),
        (33, 8, 1),
        (18, 16, 1),
        (35, 17, 1),
        (1030, 5, 1),
        (40, 3, 4),
        (34, 5, 17),
        (64, 4, 32),
        (20, 3, 2),
    ] {
        for (turn, bad) in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY].into_iter().enumerate() {
            let clean = Layer::<T>::new(5, n, c, [3, 7, 4][turn]).inner(l);
            sweep::<T>(|_| {
                let expected = clean.forward(0);
                let gradients = clean.backward(Statistics::Batch, &expected.saved, ALL, 0);
                for poisoned in 0..c {
                    for row in [0, n / 2, n - 1] {
                        let mut layer = clean.clone();
                        layer.x[row * c + poisoned] = T::from_f64(bad);
                        let found = layer.forward(0);
                        let [dx, dgamma, dbeta] = layer.backward(Statistics::Batch, &found.saved, ALL, 0);
                        let check = |what: &str, found: &[T], clean: &[T], own_is_nan: bool| {
                            for i in 0..found.len() {
                                let right = if i % c != poisoned {
                                    found[i].bits() == clean[i].bits()
                                } else {
                                    !own_is_nan || found[i].to_f64().is_nan()
                                };
                                assert!(
                                    right,
                                    "{bad} in channel {poisoned} of {c}, row {row}: {what}[{i}] is {}",
                                    found[i]
                                );
                            }
                        };
                        check("y", &found.y, &expected.y, true);
                        // mean, a, b, rstd and var; the low parts of what is not finite are zero.
                        check("saved", &found.saved, &expected.saved, false);
                        let read = Saved::new(&found.saved, c);
                        assert!(read.mean(poisoned).is_nan() && read.var(poisoned).is_nan());
                        check("dx", &dx, &gradients[0], true);
                        check("dgamma", &dgamma, &gradients[1], true);
                        check("dbeta", &dbeta, &gradients[2], false);
                    }
                }
            });
        }
    }
}

fn refusals_come_before_any_write<T: Element>() {
    sweep::<T>(|_| {
        let refused = |layer: &Layer<T>, wanted: &str| {
            let mut y = Guarded::unwritten(layer.x.len(), 0);
            let mut saved = Guarded::unwritten(batchnorm::saved_len(layer.c), 0);
            let mut scratch = Guarded::unwritten(batchnorm::scratch_len::<T>(layer.n / layer.l, layer.c, layer.l), 0);
            let result = batchnorm::forward(&layer.norm(), &layer.x, y.get_mut(), saved.get_mut(), scratch.get_mut());
            let text = result.unwrap_err().to_string();
            assert!(text.contains(wanted), "{text}");
            y.check_unwritten("y");
            saved.check_unwritten("saved");
            scratch.check_unwritten("scratch");
        };
        refused(&Layer::new(1, 1, 4, 7), "over 4 channels cannot take statistics from one value per channel");
        for eps in [0.0, -0.0, -1e-5, f64::NAN, f64::INFINITY] {
            refused(&Layer { eps, ..Layer::new(1, 6, 4, 7) }, "eps is");
        }

        let refused = |eps: f64, mean: &[T], var: &[T], wanted: &str| {
            let layer = Layer::<T> { eps, ..Layer::new(1, 6, 4, 7) };
            let mut y = Guarded::unwritten(layer.x.len(), 0);
            let mut saved = Guarded::unwritten(batchnorm::saved_len(4), 0);
            let (norm, mut scratch) = (layer.norm(), layer.scratch());
            let (y_data, scratch) = (y.get_mut(), scratch.get_mut());
            let result = batchnorm::forward_frozen(&norm, &layer.x, (mean, var), y_data, saved.get_mut(), scratch);
            match result {
                Ok(()) => assert!(wanted.is_empty(), "eps {eps}, var {var:?}: not refused"),
                Err(e) => {
                    assert!(!wanted.is_empty() && e.to_string().contains(wanted), "{e}");
                    y.check_unwritten("y");
                    saved.check_unwritten("saved");
                }
            }
        };
        let ones = [T::ONE; 4];
        let with_last = |last: f64| [T::ONE, T::ONE, T::ONE, T::from_f64(last)];
        for eps in [-1e-5, f64::NAN, f64::INFINITY] {
            refused(eps, &ones, &ones, "eps is");
        }
        refused(0.0, &ones, &ones, "");
        refused(0.0, &ones, &with_last(0.0), "running variance + eps of channel 3");
        refused(1e-5, &ones, &with_last(-1.0), "running variance + eps of channel 3");
        refused(1e-5, &ones, &with_last(0.0), "");
    });
    let one = Layer::<T>::new(1, 1, 4, 0);
    let (mut y, mut saved) = ([T::ZERO; 4], vec![T::ZERO; 32]);
    let mut scratch = vec![T::ZERO; batchnorm::scratch_len::<T>(1, 4, 1)];
    let result = batchnorm::forward(&one.norm(), &one.x, &mut y, &mut saved, &mut scratch);
    assert!(matches!(result, Err(Error::OneValuePerChannel { channels: 4 })));
}

/// No rows: nothing but zeroed statistics. No channels: nothing at all.
fn empty_batches_do_nothing<T: Element>() {
    for (n, c, l) in [(0, 4, 1), (0, 0, 1), (5, 0, 1), (0, 4, 20), (60, 0, 20)] {
        let layer = Layer::<T>::new(1, n, c, 3).inner(l);
        sweep::<T>(|_| {
            let Forward { y, saved } = layer.forward(1);
            assert!(y.is_empty() && saved.iter().all(|s| s.to_f64() == 0.0));
            for statistics in [Statistics::Batch, Statistics::Frozen] {
                let [_, dgamma, dbeta] = layer.backward(statistics, &saved, ALL, 1);
                assert!(dgamma.iter().chain(&dbeta).all(|g| g.to_f64() == BEFORE));
            }
            let (mut mean, mut var) = (vec![T::ONE; c], vec![T::ONE; c]);
            batchnorm::update_running(&saved, 0, 0.1, &mut mean, &mut var);
            assert!(mean.iter().chain(&var).all(|s| s.to_f64() == 1.0));
            assert!(layer.forward_frozen((&mean, &var), 2).y.is_empty());
        });
    }
}

/// Three batches, with PyTorch's default momentum, the cumulative average, and momenta beyond what makes sense.
fn running_statistics_agree_with_the_reference<T: Element>() {
    let c = 19;
    for momentum in [Some(0.1), None, Some(0.0), Some(1.0), Some(-1.2)] {
        sweep::<T>(|_| {
            let (mut mean, mut var) = (vec![T::ZERO; c], vec![T::ONE; c]);
            for (seen, n) in (1..).zip([40, 2, 1025]) {
                let saved = Layer::<T>::new(seen, n, c, 0).forward(0).saved;
                // The reference starts each step from what the kernel has, and from the batch's moments as saved.
                let read = Saved::new(&saved, c);
                let moments = |f: &dyn Fn(usize) -> f64| (0..c).map(f).collect::<Vec<f64>>();
                let batch = Moments { mean: moments(&|j| read.mean(j)), var: moments(&|j| read.var(j)) };
                let before = Moments { mean: wide(&mean), var: wide(&var) };
                let mut wanted = before.clone();
                reference::batchnorm::update_running(&mut wanted, momentum, seen, &batch, n);
                let weight = momentum.unwrap_or(1.0 / seen as f64);
                batchnorm::update_running(&saved, n, weight, &mut mean, &mut var);
                // One rounding to the type; in f64 a few on each of the two terms.
                let limit = |wanted: f64, old: f64, new: f64| {
                    T::ROUNDOFF * wanted.abs()
                        + 4.0 * U64 * ((1.0 - weight) * old).abs()
                        + 8.0 * U64 * (weight * new).abs()
                };
                near("running mean", &mean, &wanted.mean, |j| limit(wanted.mean[j], before.mean[j], batch.mean[j]));
                near("running var", &var, &wanted.var, |j| limit(wanted.var[j], before.var[j], 2.0 * batch.var[j]));
            }
        });
    }
}

fn everything<T: Element>(layer: &Layer<T>, offset: usize) -> Vec<u64> {
    let batch = layer.forward(offset);
    let (mean, var) = (vec![T::from_f64(0.7); layer.c], vec![T::from_f64(1.7); layer.c]);
    let frozen = layer.forward_frozen((&mean, &var), offset);
    let mut all = vec![bits(&batch.y), bits(&batch.saved), bits(&frozen.y), bits(&frozen.saved)];
    for (statistics, saved) in [(Statistics::Batch, &batch.saved), (Statistics::Frozen, &frozen.saved)] {
        all.extend(layer.backward(statistics, saved, ALL, offset).iter().map(|g| bits(g)));
    }
    all.concat()
}

fn threads_and_fused_sets_give_the_same_bits<T: Element>() {
    for (n, c, variant, l) in
        [(3000, 19, 7, 1), (260, 33, 3, 1), (2049, 1, 6, 1), (3000, 5, 7, 60), (2000, 6, 3, 8), (20_000, 2, 7, 10_000)]
    {
        let layer = Layer::<T>::new(11, n, c, variant).inner(l);
        same_bits_everywhere::<T>(|| everything(&layer, 0));
    }
}

fn offsets_do_not_change_bits<T: Element>() {
    for (n, c, l) in [(35, 21, 1), (70, 3, 35), (70, 6, 7)] {
        let layer = Layer::<T>::new(12, n, c, 7).inner(l);
        sweep::<T>(|_| {
            let aligned = everything(&layer, 0);
            for offset in 1..16 {
                assert_same_bits(&format!("offset {offset} and none"), &everything(&layer, offset), &aligned);
            }
        });
    }
}

/// PyTorch's numbers, computed in f64 from the same decimal inputs.
fn golden_values_are_met<T: Element>() {
    use crate::golden::pytorch::*;
    let gamma: [T; 3] = BN_GAMMA.map(T::from_f64);
    let beta: [T; 3] = BN_BETA.map(T::from_f64);
    let layer = Layer::<T> {
        n: 5,
        c: 3,
        l: 1,
        x: narrow(&BN_X1),
        dy: narrow(&BN_DY),
        gamma: Some(gamma.to_vec()),
        beta: Some(beta.to_vec()),
        eps: 1e-5,
        activation: Activation::Identity,
    };
    sweep::<T>(|_| {
        let Forward { y, saved } = layer.forward(0);
        let [dx, dgamma, dbeta] = layer.backward(Statistics::Batch, &saved, ALL, 0);
        // x is rounded to the type, which moves x_hat by up to u |x| / sigma = 70 u (channel 2), and through the mean and the
        // standard deviation as much again. |gamma| is at most 2, a sum of |dy| at most 5, |gamma| rstd at most 45.
        let x_hat = 3.0 * 70.0 * T::ROUNDOFF;
        near("y", &y, &BN_Y, |_| 2.0 * x_hat);
        near("dx", &dx, &BN_DX, |_| 45.0 * 2.0 * x_hat);
        near("dgamma", &dgamma, &BN_DGAMMA.map(|g| g + BEFORE), |_| 5.0 * x_hat);
        near("dbeta", &dbeta, &BN_DBETA.map(|g| g + BEFORE), |_| 5.0 * 10.0 * T::ROUNDOFF);
    });
}

in_both_types!(
    every_pass_agrees_with_the_reference,
    every_pass_agrees_with_the_reference_over_planes,
    any_subset_of_gradients_is_the_whole,
    fused_relu_is_two_kernels,
    the_mask_has_the_bits_of_the_forward_pass,
    statistics_survive_a_large_mean,
    an_outlier_in_front_of_a_short_batch,
    constant_channels_are_exact,
    pairs_around_a_power_of_two_are_exact,
    squares_that_overflow_are_repaired,
    what_is_not_finite_stays_in_its_channel,
    refusals_come_before_any_write,
    empty_batches_do_nothing,
    running_statistics_agree_with_the_reference,
    threads_and_fused_sets_give_the_same_bits,
    offsets_do_not_change_bits,
    golden_values_are_met,
);

proptest! {
    #![proptest_config(cases(80, file!()))]

    #[test]
    fn any_layer_agrees_with_the_reference(
        n in prop_oneof![2..40usize, prop::sample::select(ROWS.to_vec())],
        c in 1..40usize,
        variant in 0..16usize,
        offset in 0..16usize,
        seed: u64,
    ) {
        agree(&Layer::<f32>::new(seed, n, c, variant), offset);
        agree(&Layer::<f64>::new(seed, n, c, variant), offset);
    }

    #[test]
    fn any_layer_of_planes_agrees_with_the_reference(
        images in 1..12usize,
        c in 1..12usize,
        l in prop_oneof![2..70usize, 70..700usize],
        variant in 0..16usize,
        offset in 0..16usize,
        seed: u64,
    ) {
        agree(&Layer::<f32>::new(seed, images * l, c, variant).inner(l), offset);
        agree(&Layer::<f64>::new(seed, images * l, c, variant).inner(l), offset);
    }
}
