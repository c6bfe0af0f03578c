//! Normalisations: the layers, and the kernel fused with ReLU, with statistics of the batch and given ones.

use super::function::{Function, Given, layer_backward, layer_forward};
use super::subjects::{OFF_THE_KINK, normals, size, sizes};
use evenkeel::Rng;
use evenkeel::kernels::Activation;
use evenkeel::kernels::batchnorm::{self, BatchNorm, Gradients, Statistics};
use evenkeel::layers::{BatchNorm1d, BatchNorm2d, BatchNormOptions, Layer};
use evenkeel::simd::Element;
use evenkeel::tensor::{ImageLayout, Shape};
use std::fmt;

/// What computes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    /// `[n, c]` or `[n, c, l]`.
    Features,
    Images(ImageLayout),
    /// The kernel, with ReLU or without, over what it read or not.
    Kernel {
        relu: bool,
        is_in_place: bool,
    },
}

/// A normalisation of `n` images of `c` channels of `l` values.
pub(super) struct Norm {
    shape: Shape,
    n: usize,
    c: usize,
    l: usize,
    options: BatchNormOptions,
    /// Whether gamma and beta are there; a layer has both or neither.
    affine: (bool, bool),
    by: By,
    /// Mean and variance, if they are given.
    frozen: Option<(Vec<f32>, Vec<f32>)>,
    /// Where the data of a channel lie, and how far apart.
    centre: f64,
    spread: f64,
}

const EPS: [f64; 3] = [1e-5, 1e-2, 1.0];

impl Norm {
    pub(super) fn features(rng: &mut Rng) -> Self {
        let l = if rng.below(2) == 0 { 1 } else { size(rng, 9) };
        let (n, c) = Norm::rows(rng, l);
        let shape = if l == 1 && rng.below(2) == 0 { [n, c].into() } else { [n, c, l].into() };
        Norm::new(rng, shape, [n, c, l], By::Features)
    }

    pub(super) fn images(rng: &mut Rng) -> Self {
        let (h, w) = (size(rng, 5), size(rng, 5));
        let (n, c) = Norm::rows(rng, h * w);
        let (layout, shape) =
            if rng.below(2) == 0 { (ImageLayout::Nchw, [n, c, h, w]) } else { (ImageLayout::Nhwc, [n, h, w, c]) };
        Norm::new(rng, shape.into(), [n, c, h * w], By::Images(layout))
    }

    /// The kernel with the batch's own statistics.
    pub(super) fn fused(rng: &mut Rng) -> Self {
        let l = if rng.below(2) == 0 { 1 } else { size(rng, 17) };
        let (n, c) = Norm::rows(rng, l);
        let by = By::Kernel { relu: rng.below(4) > 0, is_in_place: rng.below(2) == 0 };
        Norm::new(rng, [n, c, l].into(), [n, c, l], by)
    }

    /// The kernel with given statistics.
    pub(super) fn frozen(rng: &mut Rng) -> Self {
        let mut norm = Norm::fused(rng);
        let mean = normals(rng, norm.c);
        let var = (0..norm.c).map(|_| single(rng.range(0.1, 3.0))).collect();
        norm.frozen = Some((mean, var));
        (norm.centre, norm.spread) = (0.0, 1.0);
        norm
    }

    /// Images of which a channel has more values than one, and channels; now and then about a leaf of statistics.
    fn rows(rng: &mut Rng, l: usize) -> (usize, usize) {
        let [n, c] = sizes(rng, [(64 / l).max(1), (96 / l).clamp(1, 24)], 65);
        match rng.below(64) {
            0 => ((1023 + rng.index(3)) / l, 1),
            _ => (if n * l == 1 { 2 } else { n }, c),
        }
    }

    fn new(rng: &mut Rng, shape: Shape, [n, c, l]: [usize; 3], by: By) -> Self {
        let momentum = [None, Some(0.1), Some(0.0), Some(1.0)][rng.index(4)];
        // Two or three values can lie so close together that with a small eps the function is too steep for differences.
        let eps = if n * l <= 3 { EPS[1 + rng.index(2)] } else { EPS[rng.index(3)] };
        let affine = match by {
            By::Kernel { .. } => (rng.below(4) > 0, rng.below(4) > 0),
            _ => [(true, true), (false, false)][usize::from(rng.below(4) == 0)],
        };
        let options = BatchNormOptions { eps, momentum, affine: affine.0, track_running_stats: rng.below(4) > 0 };
        let (centre, spread) = ([0.0, -10.0, 100.0][rng.index(3)], [1.0, 5.0, 0.5][rng.index(3)]);
        Norm { shape, n, c, l, options, affine, by, frozen: None, centre, spread }
    }

    pub(super) fn make(&self) -> Box<dyn Layer<f64>> {
        self.make_of()
    }

    fn make_of<T: Element>(&self) -> Box<dyn Layer<T>> {
        const VALID: &str = "options that were drawn from valid ones";
        match self.by {
            By::Images(layout) => Box::new(BatchNorm2d::with_options(self.c, layout, self.options).expect(VALID)),
            _ => Box::new(BatchNorm1d::with_options(self.c, self.options).expect(VALID)),
        }
    }

    fn has_relu(&self) -> bool {
        matches!(self.by, By::Kernel { relu: true, .. })
    }

    /// The channel of an element.
    fn channel(&self, i: usize) -> usize {
        match self.by {
            By::Images(ImageLayout::Nhwc) => i % self.c,
            _ => i / self.l % self.c,
        }
    }

    /// Mean and 1 / sqrt(var + eps) of each channel.
    fn statistics(&self, x: &[f64]) -> Vec<(f64, f64)> {
        let count = (self.n * self.l) as f64;
        let of_channel = |j: usize| {
            let (mean, var) = if let Some((mean, var)) = &self.frozen {
                (f64::from(mean[j]), f64::from(var[j]))
            } else {
                let values = || x.iter().enumerate().filter(|(i, _)| self.channel(*i) == j).map(|(_, x)| x);
                let mean = values().sum::<f64>() / count;
                (mean, values().map(|x| (x - mean).powi(2)).sum::<f64>() / count)
            };
            (mean, 1.0 / (var + self.options.eps).sqrt())
        };
        (0..self.c).map(of_channel).collect()
    }

    fn z(&self, x: &[f64], gamma: &[f64], beta: &[f64]) -> Vec<f64> {
        let statistics = self.statistics(x);
        let of = |(i, x): (usize, &f64)| {
            let j = self.channel(i);
            let (mean, rstd) = statistics[j];
            let (gamma, beta) = (gamma.get(j).copied().unwrap_or(1.0), beta.get(j).copied().unwrap_or(0.0));
            gamma * rstd * (x - mean) + beta
        };
        x.iter().enumerate().map(of).collect()
    }

    fn kernel<'a, T>(&self, gamma: &'a [T], beta: &'a [T]) -> BatchNorm<'a, T> {
        let (gamma, beta) = (self.affine.0.then_some(gamma), self.affine.1.then_some(beta));
        let activation = if self.has_relu() { Activation::Relu } else { Activation::Identity };
        BatchNorm { channels: self.c, inner: self.l, gamma, beta, eps: self.options.eps, activation }
    }

    fn is_in_place(&self) -> bool {
        matches!(self.by, By::Kernel { is_in_place: true, .. })
    }

    fn scratch<T: Element>(&self) -> Vec<T> {
        vec![T::ZERO; batchnorm::scratch_len::<T>(self.n, self.c, self.l)]
    }

    /// The kernel's forward pass, and what it saves.
    fn kernel_forward<T: Element>(&self, [x, gamma, beta]: [&[T]; 3], y: &mut [T]) -> Vec<T> {
        const VALID: &str = "more values than one, and positive variances";
        let (norm, mut scratch) = (self.kernel(gamma, beta), self.scratch());
        let mut saved = vec![T::ZERO; batchnorm::saved_len(self.c)];
        let Some((mean, var)) = &self.frozen else {
            batchnorm::forward(&norm, x, y, &mut saved, &mut scratch).expect(VALID);
            return saved;
        };
        let own = |values: &[f32]| values.iter().map(|&x| T::from_f64(f64::from(x))).collect::<Vec<T>>();
        let (mean, var) = (own(mean), own(var));
        if self.is_in_place() {
            y.copy_from_slice(x);
            batchnorm::forward_frozen_in_place(&norm, y, (&mean, &var), &mut saved, &mut scratch).expect(VALID);
        } else {
            batchnorm::forward_frozen(&norm, x, (&mean, &var), y, &mut saved, &mut scratch).expect(VALID);
        }
        saved
    }
}

#[expect(clippy::cast_possible_truncation, reason = "rounding is what is asked for")]
fn single(x: f64) -> f32 {
    x as f32
}

impl fmt::Display for Norm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dims: Vec<String> = self.shape.dims().iter().map(ToString::to_string).collect();
        write!(f, "{}", dims.join("x"))?;
        if let By::Images(layout) = self.by {
            write!(f, "_{}", format!("{layout:?}").to_lowercase())?;
        }
        write!(f, ", eps {}", self.options.eps)?;
        let options = [
            (self.has_relu(), "relu"),
            (self.is_in_place(), "in place"),
            (!self.affine.0, "no gamma"),
            (!self.affine.1, "no beta"),
        ];
        for (_, text) in options.iter().filter(|(is_so, _)| *is_so) {
            write!(f, ", {text}")?;
        }
        write!(f, ", data {} +- {}", self.centre, self.spread)
    }
}

impl Function<3> for Norm {
    /// Inputs at which no output comes so near the kink that f32 and f64 differ about its side.
    fn given(&self, rng: &mut Rng) -> [Given; 3] {
        loop {
            let mut x = normals(rng, self.n * self.c * self.l);
            x.iter_mut().for_each(|x| *x = single(self.centre + self.spread * f64::from(*x)));
            let mut parameter = |is_there: bool| if is_there { normals(rng, self.c) } else { Vec::new() };
            let (gamma, beta) = (parameter(self.affine.0), parameter(self.affine.1));
            let given = [
                Given { name: "x", shape: self.shape, values: x },
                Given::parameter("weight", gamma),
                Given::parameter("bias", beta),
            ];
            let [x, gamma, beta] = given.each_ref().map(Given::wide);
            if !self.has_relu() || self.z(&x, &gamma, &beta).iter().all(|z| z.abs() > OFF_THE_KINK) {
                return given;
            }
        }
    }

    fn outputs(&self) -> usize {
        self.shape.len()
    }

    fn forward<T: Element>(&self, inputs: [&[T]; 3], y: &mut [T]) {
        if let By::Kernel { .. } = self.by {
            self.kernel_forward(inputs, y);
        } else {
            layer_forward(&mut *self.make_of(), self.shape, inputs, y);
        }
    }

    fn backward<T: Element>(&self, inputs: [&[T]; 3], dy: &[T], gradients: [&mut [T]; 3]) {
        let By::Kernel { .. } = self.by else {
            layer_backward(&mut *self.make_of(), self.shape, inputs, dy, gradients);
            return;
        };
        let saved = self.kernel_forward(inputs, &mut vec![T::ZERO; dy.len()]);
        let [x, gamma, beta] = inputs;
        let [dx, dgamma, dbeta] = gradients;
        let (norm, mut scratch) = (self.kernel(gamma, beta), self.scratch());
        let statistics = if self.frozen.is_some() { Statistics::Frozen } else { Statistics::Batch };
        dgamma.fill(T::ZERO);
        dbeta.fill(T::ZERO);
        let parameters = (self.affine.0.then_some(dgamma), self.affine.1.then_some(dbeta));
        if self.is_in_place() {
            dx.copy_from_slice(dy);
            batchnorm::backward_in_place(&norm, statistics, x, dx, &saved, parameters, &mut scratch);
        } else {
            let gradients = Gradients { dx: Some(dx), dgamma: parameters.0, dbeta: parameters.1 };
            batchnorm::backward(&norm, statistics, x, dy, &saved, gradients, &mut scratch);
        }
    }

    /// In roundings: `dx = a (dz - mean dz - x_hat mean(dz x_hat))` with `a = gamma rstd`. With statistics of the batch, rstd is off by
    /// half of what the variance is, 16 roundings (`kernels::batchnorm`), and so a by 17; each sum has the roundings of its chain; the
    /// mean is off by 8 roundings of the spread, which shifts x_hat. Given statistics are exact.
    fn magnitude(&self, [x, gamma, beta]: [&[f64]; 3], dy: &[f64], [dx, dgamma, dbeta]: [&mut [f64]; 3]) {
        let (statistics, z) = (self.statistics(x), self.z(x, gamma, beta));
        let dz = |i: usize| if self.has_relu() && z[i] <= 0.0 { 0.0 } else { dy[i].abs() };
        let x_hat = |i: usize| {
            let (mean, rstd) = statistics[self.channel(i)];
            ((x[i] - mean) * rstd).abs()
        };
        let (mut of_dz, mut along) = (vec![0.0; self.c], vec![0.0; self.c]);
        for i in 0..x.len() {
            of_dz[self.channel(i)] += dz(i);
            along[self.channel(i)] += dz(i) * x_hat(i);
        }
        let count = (self.n * self.l) as f64;
        // A sum of few terms has fewer roundings than the 34 of a long one.
        let chain = count.min(34.0);
        let (of_rstd, of_mean) = if self.frozen.is_some() { (0.0, 0.0) } else { (16.0, 8.0) };
        for i in 0..x.len() {
            let j = self.channel(i);
            let a = gamma.get(j).map_or(1.0, |gamma| gamma.abs()) * statistics[j].1;
            // a, three roundings on the way, and the last.
            let own = (of_rstd + 5.0) * dz(i);
            let of_batch = (of_rstd + chain + 5.0) * of_dz[j]
                + x_hat(i) * ((3.0 * of_rstd + chain + 9.0) * along[j] + of_mean * of_dz[j])
                + of_mean * along[j];
            dx[i] = a * (own + if self.frozen.is_some() { 0.0 } else { of_batch / count });
        }
        for j in 0..self.c {
            if let Some(dgamma) = dgamma.get_mut(j) {
                *dgamma = (chain + of_rstd + 4.0) * along[j] + of_mean * of_dz[j];
            }
            if let Some(dbeta) = dbeta.get_mut(j) {
                *dbeta = (chain + 1.0) * of_dz[j];
            }
        }
    }

    /// One rounding is half a unit.
    fn ulps(&self) -> [f64; 3] {
        [0.5; 3]
    }
}
