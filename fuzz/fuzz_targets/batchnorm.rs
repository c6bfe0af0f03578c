//! Batch normalisation of any shape and layout, with its own statistics and frozen ones, forward and backward, on every instruction
//! set, agrees with the f64 reference.
//!
//! Run with `cargo +nightly fuzz run batchnorm`. The bounds are those of the tests. What is not wanted and what lies around the outputs
//! must stay as it was, scratch may hold anything, a pass in place and a part of the gradients have the bits of the whole, and so have
//! any number of threads and the fused instruction sets.

#![no_main]

use arbitrary::Arbitrary;
use evenkeel::kernels::Activation;
use evenkeel::kernels::batchnorm::{self, BatchNorm, Gradients, Saved, Statistics, saved_len, scratch_len};
use evenkeel::reference::batchnorm::Moments;
use evenkeel::simd::{Element, Isa, with_isa};
use evenkeel::{Error, Rng, Threads, reference};
use libfuzzer_sys::fuzz_target;
use std::sync::LazyLock;

#[derive(Arbitrary, Debug)]
struct Case {
    shape: Shape,
    has_gamma: bool,
    has_beta: bool,
    relu: bool,
    frozen: bool,
    /// Of dx, dgamma and dbeta.
    wanted: [bool; 3],
    eps: u8,
    /// Elements in front of each tensor.
    offset: u8,
    threads: u8,
    seed: u64,
    is_f64: bool,
}

/// Which sizes come together.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Shape {
    /// `[n, c]`, over more leaves than one.
    Rows { n: u16, c: u8 },
    /// `[n, c, l]` with planes that are shorter than the lanes, or empty.
    Short { n: u16, c: u8, l: u8 },
    /// `[n, c, l]` with planes of up to two leaves.
    Planes { n: u8, c: u8, l: u16 },
}

/// Workers that split everything.
static THREADS: LazyLock<[Threads; 2]> =
    LazyLock::new(|| [2, 3].map(|n| Threads::new(n).expect("threads").fork_from(0)));

/// Roundoff of the reference's own type.
const U64: f64 = f64::EPSILON / 2.0;
/// What a parameter gradient holds before a pass adds to it.
const BEFORE: f64 = 0.5;
/// What lies around the outputs, and in those that are not wanted: exact in either type.
const CANARY: f64 = -12_345.75;
const TAIL: usize = 19;

impl Case {
    /// `[n, c, l]`.
    fn sizes(&self) -> [usize; 3] {
        match self.shape {
            Shape::Rows { n, c } => {
                let n = usize::from(n) % 2600;
                [n, usize::from(c) % if n > 300 { 14 } else { 80 }, 1]
            }
            Shape::Short { n, c, l } => [usize::from(n) % 500, usize::from(c) % 12, usize::from(l) % 16],
            Shape::Planes { n, c, l } => {
                let n = usize::from(n) % 9;
                [n, usize::from(c) % 5, 16 + usize::from(l) % (18_000 / (n + 1))]
            }
        }
    }

    fn eps(&self) -> f64 {
        [1e-5, 0.1, 1e-3][usize::from(self.eps) % 3]
    }
}

fuzz_target!(|case: Case| if case.is_f64 { check::<f64>(&case) } else { check::<f32>(&case) });

/// A slice between canaries.
struct Guarded<T> {
    data: Vec<T>,
    offset: usize,
    len: usize,
}

impl<T: Element> Guarded<T> {
    fn new(inside: impl IntoIterator<Item = T>, offset: usize) -> Self {
        let mut data = vec![T::from_f64(CANARY); offset];
        data.extend(inside);
        let len = data.len() - offset;
        data.resize(offset + len + TAIL, T::from_f64(CANARY));
        Guarded { data, offset, len }
    }

    fn get(&self) -> &[T] {
        &self.data[self.offset..][..self.len]
    }

    fn get_mut(&mut self) -> &mut [T] {
        &mut self.data[self.offset..][..self.len]
    }

    /// The numbers, if nothing was written outside of them.
    fn checked(self, what: &str) -> Vec<T> {
        let (before, rest) = self.data.split_at(self.offset);
        let (inside, behind) = rest.split_at(self.len);
        assert!(before.iter().chain(behind).all(|x| x.to_f64() == CANARY), "{what}: written outside");
        inside.to_vec()
    }
}

/// What the passes of a case write, as `[n l, c]`.
struct Found<T> {
    y: Vec<T>,
    saved: Vec<T>,
    gradients: [Vec<T>; 3],
}

impl<T: Element> Found<T> {
    fn bits(&self) -> Vec<u64> {
        let all = [&self.y, &self.saved, &self.gradients[0], &self.gradients[1], &self.gradients[2]];
        all.into_iter().flatten().map(|x| x.bits()).collect()
    }
}

/// A case with its data: x and dy as `[count, c]`, a row for each image and each place in a plane.
struct Layer<'a, T> {
    case: &'a Case,
    count: usize,
    c: usize,
    l: usize,
    x: Vec<T>,
    dy: Vec<T>,
    gamma: Option<Vec<T>>,
    beta: Option<Vec<T>>,
    /// Running statistics.
    mean: Vec<T>,
    var: Vec<T>,
}

fn wide<T: Element>(x: &[T]) -> Vec<f64> {
    x.iter().map(|x| x.to_f64()).collect()
}

impl<'a, T: Element> Layer<'a, T> {
    fn new(case: &'a Case) -> Self {
        let [n, c, l] = case.sizes();
        let mut rng = Rng::new(case.seed, "fuzz");
        let kinds = [(0.0, 1.0), (100.0, 0.01), (-3.0, 0.5), (1e4, 1.0), (1.0, 30.0), (7.0, 0.0)];
        let of_channel = |j: usize| kinds[(j + usize::from(case.eps)) % kinds.len()];
        let x = (0..n * l * c).map(|i| T::from_f64(of_channel(i % c).0 + of_channel(i % c).1 * rng.normal())).collect();
        let mut normals = |len: usize| (0..len).map(|_| T::from_f64(rng.normal())).collect::<Vec<T>>();
        let dy = normals(n * l * c);
        let (gamma, beta) = (case.has_gamma.then(|| normals(c)), case.has_beta.then(|| normals(c)));
        let mean = (0..c).map(|j| T::from_f64(of_channel(j).0 * 1.001 + 0.1)).collect();
        let var = (0..c).map(|j| T::from_f64(of_channel(j).1.powi(2) * 1.5 + 0.01)).collect();
        Layer { case, count: n * l, c, l, x, dy, gamma, beta, mean, var }
    }

    fn norm(&self) -> BatchNorm<'_, T> {
        let activation = if self.case.relu { Activation::Relu } else { Activation::Identity };
        let (gamma, beta) = (self.gamma.as_deref(), self.beta.as_deref());
        BatchNorm { channels: self.c, inner: self.l, gamma, beta, eps: self.case.eps(), activation }
    }

    /// The place of element `i` of `[count, c]` in what the kernel gets.
    fn place(&self, i: usize) -> usize {
        let (row, channel) = (i / self.c, i % self.c);
        (row / self.l * self.c + channel) * self.l + row % self.l
    }

    fn laid(&self, rows: &[T]) -> Vec<T> {
        let mut laid = rows.to_vec();
        for (i, &x) in rows.iter().enumerate() {
            laid[self.place(i)] = x;
        }
        laid
    }

    fn rows(&self, laid: &[T]) -> Vec<T> {
        (0..laid.len()).map(|i| laid[self.place(i)]).collect()
    }

    fn scratch(&self) -> Guarded<T> {
        let [n, c, l] = self.case.sizes();
        Guarded::new(vec![T::from_f64(f64::NAN); scratch_len::<T>(n, c, l)], 3)
    }

    fn canaries(&self, len: usize, offset: usize) -> Guarded<T> {
        Guarded::new(vec![T::from_f64(CANARY); len], (usize::from(self.case.offset) + offset) % 17)
    }

    /// Both passes with the current instruction set; `None` where the batch has one value a channel, which training refuses.
    fn run(&self, wanted: [bool; 3], in_place: bool) -> Option<Found<T>> {
        let (norm, running) = (self.norm(), (&self.mean[..], &self.var[..]));
        let mut x = self.canaries(self.x.len(), 0);
        x.get_mut().copy_from_slice(&self.laid(&self.x));
        let (mut y, mut saved) = (self.canaries(self.x.len(), 1), self.canaries(saved_len(self.c), 2));
        let mut scratch = self.scratch();
        if !self.case.frozen {
            let done = batchnorm::forward(&norm, x.get(), y.get_mut(), saved.get_mut(), scratch.get_mut());
            if self.count == 1 && self.c > 0 {
                assert!(matches!(done, Err(Error::OneValuePerChannel { channels }) if channels == self.c));
                assert!(y.data.iter().chain(&saved.data).all(|x| x.to_f64() == CANARY), "written though refused");
                return None;
            }
            done.expect("a batch of several values a channel");
        } else if in_place {
            y.get_mut().copy_from_slice(x.get());
            let (data, saved) = (y.get_mut(), saved.get_mut());
            batchnorm::forward_frozen_in_place(&norm, data, running, saved, scratch.get_mut()).expect("variances");
        } else {
            let (y, saved) = (y.get_mut(), saved.get_mut());
            batchnorm::forward_frozen(&norm, x.get(), running, y, saved, scratch.get_mut()).expect("variances");
        }
        scratch.checked("scratch");

        let (mut dy, mut dx) = (self.canaries(self.x.len(), 3), self.canaries(self.x.len(), 4));
        dy.get_mut().copy_from_slice(&self.laid(&self.dy));
        let parameter = |is_wanted: bool, offset| {
            let mut parameter = self.canaries(self.c, offset);
            parameter.get_mut().fill(T::from_f64(if is_wanted { BEFORE } else { CANARY }));
            parameter
        };
        let (mut dgamma, mut dbeta) = (parameter(wanted[1], 5), parameter(wanted[2], 6));
        let mut scratch = self.scratch();
        let statistics = if self.case.frozen { Statistics::Frozen } else { Statistics::Batch };
        let of_gamma = wanted[1].then(|| dgamma.get_mut());
        let of_beta = wanted[2].then(|| dbeta.get_mut());
        let (x, read, space) = (x.get(), saved.get(), scratch.get_mut());
        if in_place && wanted[0] {
            batchnorm::backward_in_place(&norm, statistics, x, dy.get_mut(), read, (of_gamma, of_beta), space);
            dx = dy;
        } else {
            let gradients = Gradients { dx: wanted[0].then(|| dx.get_mut()), dgamma: of_gamma, dbeta: of_beta };
            batchnorm::backward(&norm, statistics, x, dy.get(), read, gradients, space);
        }
        scratch.checked("scratch of backward");
        let dx = self.rows(&dx.checked("dx"));
        Some(Found {
            y: self.rows(&y.checked("y")),
            saved: saved.checked("saved"),
            gradients: [dx, dgamma.checked("dgamma"), dbeta.checked("dbeta")],
        })
    }

    /// gamma and beta of a channel.
    fn affine(&self, j: usize) -> (f64, f64) {
        let of = |p: &Option<Vec<T>>, absent| p.as_ref().map_or(absent, |p| p[j].to_f64());
        (of(&self.gamma, 1.0), of(&self.beta, 0.0))
    }
}

/// The reference's statistics of a layer, and how far the kernel's may be off: in the mean, in the variance, and relative in rstd.
struct Oracle {
    moments: Moments,
    limits: Vec<[f64; 3]>,
    rstd: Vec<f64>,
}

impl Oracle {
    fn new<T: Element>(layer: &Layer<'_, T>) -> Self {
        let (u, eps) = (T::ROUNDOFF, layer.case.eps());
        let moments = if layer.case.frozen {
            Moments { mean: wide(&layer.mean), var: wide(&layer.var) }
        } else {
            reference::batchnorm::moments(&wide(&layer.x), layer.c)
        };
        let limits = (0..layer.c).map(|j| {
            if layer.case.frozen {
                return [0.0, 0.0, 4.0 * U64];
            }
            let (mean, var) = (moments.mean[j], moments.var[j]);
            let limit = 32.0 * u * var + 4.0 * u * u * mean * mean + 8.0 * U64 * var;
            [8.0 * u * var.sqrt() + 2f64.powi(-47) * mean.abs(), limit, limit / (2.0 * (var + eps)) + 4.0 * U64]
        });
        let limits = limits.collect();
        let rstd = moments.var.iter().map(|var| 1.0 / (var + eps).sqrt()).collect();
        Oracle { moments, limits, rstd }
    }

    fn check_forward<T: Element>(&self, layer: &Layer<'_, T>, found: &Found<T>) {
        let (u, c) = (T::ROUNDOFF, layer.c);
        let saved = Saved::new(&found.saved, c);
        for j in 0..c {
            let [of_mean, of_var, of_rstd] = self.limits[j];
            let (mean, var, rstd) = (self.moments.mean[j], self.moments.var[j], self.rstd[j]);
            // Two parts of f32 hold 48 bits.
            let parts = u * u + U64;
            near("mean", j, saved.mean(j), mean, of_mean);
            near("var", j, saved.var(j), var, of_var + parts * var);
            near("rstd", j, saved.rstd(j), rstd, (of_rstd + parts) * rstd);
        }
        let (gamma, beta) = (layer.gamma.as_deref().map(wide), layer.beta.as_deref().map(wide));
        let x = wide(&layer.x);
        let z = reference::batchnorm::infer(&x, gamma.as_deref(), beta.as_deref(), &self.moments, layer.case.eps());
        let wanted = if layer.case.relu { reference::relu::forward(&z) } else { z.clone() };
        for i in 0..x.len() {
            let ((gamma, beta), [of_mean, _, of_rstd], mean) =
                (layer.affine(i % c), self.limits[i % c], self.moments.mean[i % c]);
            let (a, t) = (gamma.abs() * self.rstd[i % c], (x[i] - mean).abs());
            let limit = a * t * (of_rstd + 3.0 * u + 4.0 * U64)
                + a * (of_mean + u * u * mean.abs() + U64 * (x[i].abs() + mean.abs()))
                + u * (beta.abs() + z[i].abs());
            near("y", i, found.y[i].to_f64(), wanted[i], limit);
        }
    }

    /// Under ReLU the kernel's own y decides which gradients pass.
    fn check_gradients<T: Element>(&self, layer: &Layer<'_, T>, found: &Found<T>) {
        let (u, c, frozen) = (T::ROUNDOFF, layer.c, layer.case.frozen);
        let (x, dy, gamma) = (wide(&layer.x), wide(&layer.dy), layer.gamma.as_deref().map(wide));
        let dz = if layer.case.relu { reference::relu::backward(&wide(&found.y), &dy) } else { dy };
        let backward = if frozen { reference::batchnorm::backward_frozen } else { reference::batchnorm::backward };
        let wanted = backward(&x, &dz, gamma.as_deref(), &self.moments, layer.case.eps());
        // Sums of |dz| and of |dz (x - mean)|, in which the errors of the sums B and D are measured.
        let mut sums = vec![(0.0, 0.0); c];
        for i in 0..x.len() {
            sums[i % c].0 += dz[i].abs();
            sums[i % c].1 += (dz[i] * (x[i] - self.moments.mean[i % c])).abs();
        }
        let (m, leaves) = (layer.count as f64, layer.count.div_ceil(1024) as f64);
        let of_b = |j: usize| (80.0 * u + (leaves + 2.0) * U64) * sums[j].0;
        let of_d = |j: usize| {
            let mean = self.moments.mean[j].abs();
            let roundings = 82.0 * u + (leaves + 4.0) * U64;
            roundings * sums[j].1 + (self.limits[j][0] + 2.0 * roundings * u * mean + U64 * mean) * sums[j].0
        };
        for j in 0..c {
            let (dgamma, dbeta) = (wanted.dgamma[j], wanted.dbeta[j]);
            let added = |sum: f64| (u + 2.0 * U64) * ((sum + BEFORE).abs() + BEFORE);
            near("dbeta", j, found.gradients[2][j].to_f64(), dbeta + BEFORE, of_b(j) + added(dbeta));
            let of_rstd = (self.limits[j][2] + u * u + 4.0 * U64) * dgamma.abs();
            let limit = self.rstd[j] * of_d(j) + of_rstd + added(dgamma);
            near("dgamma", j, found.gradients[1][j].to_f64(), dgamma + BEFORE, limit);
        }
        for i in 0..x.len() {
            let j = i % c;
            let ([of_mean, _, of_rstd], rstd, mean) = (self.limits[j], self.rstd[j], self.moments.mean[j]);
            let (a, of_a) = (layer.affine(j).0.abs() * rstd, of_rstd + u);
            let own = (of_a + 3.0 * u) * dz[i].abs();
            let of_sums = if frozen {
                0.0
            } else {
                let x_hat = (x[i] - mean).abs() * rstd;
                let (b, g) = (wanted.dbeta[j].abs() / m, wanted.dgamma[j].abs() / m);
                (of_a + 4.0 * u) * b
                    + of_b(j) / m
                    + x_hat * ((3.0 * of_a + 4.0 * u) * g + rstd * of_d(j) / m)
                    + rstd * (of_mean + 2.0 * u * u * mean.abs()) * g
            };
            let limit = a * (own + of_sums) + u * wanted.dx[i].abs();
            near("dx", i, found.gradients[0][i].to_f64(), wanted.dx[i], limit);
        }
    }
}

#[track_caller]
fn near(what: &str, at: usize, found: f64, wanted: f64, limit: f64) {
    let error = (found - wanted).abs();
    assert!(error <= limit, "{what}[{at}] is {found:e}, not {wanted:e}: off by {error:.2e}, allowed {limit:.2e}");
}

fn check<T: Element>(case: &Case) {
    let layer = Layer::<T>::new(case);
    let oracle = Oracle::new(&layer);
    let threads = &THREADS[usize::from(case.threads % 2)];
    let mut fused: Option<Vec<u64>> = None;
    for isa in Isa::available() {
        let Some(whole) = with_isa(isa, || layer.run([true; 3], false)) else { continue };
        let bits = whole.bits();
        let split = threads.run(|| with_isa(isa, || layer.run([true; 3], true))).expect("the same batch");
        assert!(bits == split.bits(), "{isa}: in place, {threads:?}");
        let part = with_isa(isa, || layer.run(case.wanted, false)).expect("the same batch");
        for (i, (part, whole)) in part.gradients.iter().zip(&whole.gradients).enumerate() {
            let same = |(part, whole): (&T, &T)| part.bits() == whole.bits();
            let right = match case.wanted[i] {
                true => part.iter().zip(whole).all(same),
                false => part.iter().all(|x| x.to_f64() == CANARY),
            };
            assert!(right, "{isa}: gradient {i} of {:?}", case.wanted);
        }
        if isa.is_fused() {
            assert!(fused.get_or_insert_with(|| bits.clone()) == &bits, "{isa}: bits");
        }
        if layer.x.is_empty() {
            let untouched = whole.gradients[1].iter().chain(&whole.gradients[2]).all(|g| g.to_f64() == BEFORE);
            assert!(untouched && (case.frozen || whole.saved.iter().all(|s| s.to_f64() == 0.0)), "{isa}: no values");
            continue;
        }
        oracle.check_forward(&layer, &whole);
        oracle.check_gradients(&layer, &whole);
    }
}
