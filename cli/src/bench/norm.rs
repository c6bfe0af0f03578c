//! The tensors of a pass over a batch: with our kernels, as a textbook has it, and beside the f64 reference.

use super::batch::{Job, Pass};
use super::noise;
use crate::failure::Failure;
use evenkeel::kernels::Activation;
use evenkeel::kernels::batchnorm::{self, BatchNorm, Gradients, Saved, Statistics, saved_len, scratch_len};
use evenkeel::reference;
use evenkeel::simd::Element;
use evenkeel::tensor::Tensor;

/// What the textbook's loop is called in tables, lines and pictures.
pub(crate) const TEXTBOOK: &str = "textbook";

const EPS: f64 = 1e-5;

/// Why the kernels cannot refuse.
const CHECKED: &str = "a job is checked before its tensors are made";

/// The tensors of a job, full of noise.
pub(crate) struct Tensors<T> {
    job: Job,
    x: Tensor<T>,
    dy: Tensor<T>,
    y: Tensor<T>,
    dx: Tensor<T>,
    gamma: Tensor<T>,
    beta: Tensor<T>,
    dgamma: Tensor<T>,
    dbeta: Tensor<T>,
    /// What a pass with frozen statistics is given.
    mean: Tensor<T>,
    var: Tensor<T>,
    saved: Tensor<T>,
    scratch: Tensor<T>,
}

impl<T: Element> Tensors<T> {
    pub(crate) fn new(job: Job) -> Result<Tensors<T>, Failure> {
        let [n, c, l] = job.batch.planes();
        let len = n * c * l;
        let backward = |len: usize| if job.pass.is_backward() { len } else { 0 };
        let mut dy = noise(backward(len))?;
        // Another one than x: what two equal tensors add up to is a special case.
        dy.data_mut().reverse();
        let mut var = Tensor::zeros([c])?;
        var.data_mut().fill(T::from_f64(1.5));
        let mut tensors = Tensors {
            job,
            x: noise(len)?,
            dy,
            y: Tensor::zeros([len])?,
            dx: Tensor::zeros([backward(len)])?,
            gamma: noise(c)?,
            beta: noise(c)?,
            dgamma: Tensor::zeros([c])?,
            dbeta: Tensor::zeros([c])?,
            mean: Tensor::zeros([c])?,
            var,
            saved: Tensor::zeros([saved_len(c)])?,
            scratch: Tensor::zeros([scratch_len::<T>(n, c, l)])?,
        };
        tensors.forward();
        Ok(tensors)
    }

    /// The forward pass of the job: itself, or what it goes back through.
    fn forward(&mut self) {
        let Tensors { job, x, y, gamma, beta, mean, var, saved, scratch, .. } = self;
        let norm = norm(*job, gamma, beta);
        let (x, y, saved, scratch) = (x.data(), y.data_mut(), saved.data_mut(), scratch.data_mut());
        if job.pass.is_frozen() {
            batchnorm::forward_frozen(&norm, x, (mean.data(), var.data()), y, saved, scratch).expect(CHECKED);
        } else {
            batchnorm::forward(&norm, x, y, saved, scratch).expect(CHECKED);
        }
    }

    /// The pass with our kernels.
    pub(crate) fn pass(&mut self) {
        if !self.job.pass.is_backward() {
            return self.forward();
        }
        let Tensors { job, x, dy, dx, gamma, beta, dgamma, dbeta, saved, scratch, .. } = self;
        let statistics = if job.pass.is_frozen() { Statistics::Frozen } else { Statistics::Batch };
        let with_sums = job.pass != Pass::FrozenBackward;
        let gradients = Gradients {
            dx: Some(dx.data_mut()),
            dgamma: with_sums.then(|| dgamma.data_mut()),
            dbeta: with_sums.then(|| dbeta.data_mut()),
        };
        let (norm, scratch) = (norm(*job, gamma, beta), scratch.data_mut());
        batchnorm::backward(&norm, statistics, x.data(), dy.data(), saved.data(), gradients, scratch);
    }

    /// The pass as a textbook has it, on one thread: channel by channel, each formula a loop over its values.
    pub(crate) fn textbook(&mut self) {
        let Tensors { job, x, dy, y, dx, gamma, beta, dgamma, dbeta, mean, var, saved, .. } = self;
        let Job { batch, pass, activation } = *job;
        let [n, c, l] = batch.planes();
        let (x, y, dy, dx) = (x.data(), y.data_mut(), dy.data(), dx.data_mut());
        let saved = Saved::new(saved.data(), c);
        let count = T::from_f64((n * l) as f64);
        let is_cut = |z: T| activation == Activation::Relu && z <= T::ZERO;
        for j in 0..c {
            let (gamma, beta) = (gamma.data()[j], beta.data()[j]);
            let (mean, var) = match pass {
                Pass::Forward => {
                    let (mut mean, mut var) = (T::ZERO, T::ZERO);
                    each(batch.planes(), j, |i| mean = mean + x[i]);
                    mean = mean / count;
                    each(batch.planes(), j, |i| var = var + (x[i] - mean) * (x[i] - mean));
                    (mean, var / count)
                }
                Pass::Backward => (T::from_f64(saved.mean(j)), T::from_f64(saved.var(j))),
                _ => (mean.data()[j], var.data()[j]),
            };
            let std = T::from_f64((var.to_f64() + EPS).sqrt());
            if !pass.is_backward() {
                each(batch.planes(), j, |i| {
                    let z = gamma * (x[i] - mean) / std + beta;
                    y[i] = if is_cut(z) { T::ZERO } else { z };
                });
                continue;
            }
            // What arrives before the activation, and x_hat.
            let before = |i: usize| {
                let x_hat = (x[i] - mean) / std;
                (if is_cut(gamma * x_hat + beta) { T::ZERO } else { dy[i] }, x_hat)
            };
            let (mut of_gamma, mut of_beta) = (T::ZERO, T::ZERO);
            if pass != Pass::FrozenBackward {
                each(batch.planes(), j, |i| {
                    let (dz, x_hat) = before(i);
                    of_gamma = of_gamma + dz * x_hat;
                    of_beta = of_beta + dz;
                });
                dgamma.data_mut()[j] = of_gamma;
                dbeta.data_mut()[j] = of_beta;
            }
            if pass.is_frozen() {
                each(batch.planes(), j, |i| dx[i] = gamma / std * before(i).0);
            } else {
                each(batch.planes(), j, |i| {
                    let (dz, x_hat) = before(i);
                    dx[i] = gamma / std * (dz - of_beta / count - x_hat * of_gamma / count);
                });
            }
        }
    }

    /// What the pass writes, once it has been done: y or dx.
    fn result(&self) -> &[T] {
        if self.job.pass.is_backward() { self.dx.data() } else { self.y.data() }
    }

    /// Does the pass with our kernels and returns the largest error of what it writes, y or dx, against the f64 reference: in units
    /// in the last place of the largest value there.
    pub(crate) fn error(&mut self) -> f64 {
        self.forward();
        self.pass();
        let (mut worst, mut largest) = (0.0_f64, 0.0_f64);
        for j in 0..self.job.batch.c {
            let wanted = self.wanted(j);
            let mut at = 0;
            each(self.job.batch.planes(), j, |i| {
                let error = (self.result()[i].to_f64() - wanted[at]).abs();
                // NaN is the largest error, and stays it.
                worst = if worst.is_nan() || error <= worst { worst } else { error };
                largest = largest.max(wanted[at].abs());
                at += 1;
            });
        }
        if worst == 0.0 { 0.0 } else { worst / (2.0 * T::ROUNDOFF * largest) }
    }

    /// What the reference has for a channel. Under ReLU our own y decides which gradients pass, so that a value that the kernel and
    /// the reference round to different sides of zero is not taken for an error.
    fn wanted(&self, j: usize) -> Vec<f64> {
        use reference::batchnorm::{Moments, backward, backward_frozen, infer, moments};
        let wide = |tensor: &Tensor<T>| {
            let mut values = Vec::new();
            each(self.job.batch.planes(), j, |i| values.push(tensor.data()[i].to_f64()));
            values
        };
        let of = |tensor: &Tensor<T>| [tensor.data()[j].to_f64()];
        let (x, gamma, beta) = (wide(&self.x), of(&self.gamma), of(&self.beta));
        let Job { pass, activation, .. } = self.job;
        let moments = if pass.is_frozen() {
            Moments { mean: of(&self.mean).to_vec(), var: of(&self.var).to_vec() }
        } else {
            moments(&x, 1)
        };
        if !pass.is_backward() {
            let z = infer(&x, Some(&gamma), Some(&beta), &moments, EPS);
            return if activation == Activation::Relu { reference::relu::forward(&z) } else { z };
        }
        let dy = wide(&self.dy);
        let dz = if activation == Activation::Relu { reference::relu::backward(&wide(&self.y), &dy) } else { dy };
        let backward = if pass.is_frozen() { backward_frozen } else { backward };
        backward(&x, &dz, Some(&gamma), &moments, EPS).dx
    }
}

fn norm<'a, T>(job: Job, gamma: &'a Tensor<T>, beta: &'a Tensor<T>) -> BatchNorm<'a, T>
where
    T: Element,
{
    let [_, channels, inner] = job.batch.planes();
    let (gamma, beta) = (Some(gamma.data()), Some(beta.data()));
    BatchNorm { channels, inner, gamma, beta, eps: EPS, activation: job.activation }
}

/// Calls `f` with the place of every value of a channel of `[n, c, l]`.
#[inline(always)]
fn each([n, c, l]: [usize; 3], channel: usize, mut f: impl FnMut(usize)) {
    for image in 0..n {
        let start = (image * c + channel) * l;
        for i in start..start + l {
            f(i);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::batch::Typed;
    use super::*;
    use clap::ValueEnum;

    #[test]
    fn ours_the_textbook_and_the_reference_agree() {
        for shape in ["13x5_nc", "6x3x20_ncl", "5x3x2x4_nchw", "5x3x2x4_nhwc"] {
            for &pass in Pass::value_variants() {
                for activation in [Activation::Identity, Activation::Relu] {
                    let job = Job { batch: Typed::parse(shape).unwrap().batches(&[])[0], pass, activation };
                    let mut tensors = Tensors::<f64>::new(job).unwrap();
                    let error = tensors.error();
                    assert!(error < 16.0, "{job}, {activation:?}: {error} units in the last place");
                    let ours = tensors.result().to_vec();
                    tensors.y.data_mut().fill(f64::NAN);
                    tensors.dx.data_mut().fill(f64::NAN);
                    tensors.textbook();
                    for (x, y) in ours.iter().zip(tensors.result()) {
                        assert!((x - y).abs() < 1e-12, "{job}, {activation:?}: {x} and {y}");
                    }
                }
            }
        }
    }

    #[test]
    fn an_error_shows() {
        let batch = Typed::parse("13x5").unwrap().batches(&[])[0];
        let job = Job { batch, pass: Pass::Forward, activation: Activation::Identity };
        let mut tensors = Tensors::<f32>::new(job).unwrap();
        let error = tensors.error();
        assert!(error > 0.0 && error < 16.0, "{error}");
        tensors.x.data_mut()[7] = f32::NAN;
        assert!(tensors.error().is_nan());
    }
}
