//! Layers by themselves: images in both layouts against the specification.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails, in its helpers too")]

mod golden;

use evenkeel::layers::{BatchNorm2d, BatchNormOptions, Layer};
use evenkeel::reference::batchnorm::{self as reference, Moments};
use evenkeel::simd::{Element, Isa, with_isa};
use evenkeel::tensor::{ImageLayout, Shape, Tensor, TensorRef};
use evenkeel::{Result, Rng};
use golden::pytorch::*;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::RngSeed;

const LAYOUTS: [ImageLayout; 2] = [ImageLayout::Nchw, ImageLayout::Nhwc];

/// Images: how many, and how large. Beside them everything lies as the specification wants it, `[n h w, c]`.
#[derive(Clone, Copy, Debug)]
struct Images {
    n: usize,
    c: usize,
    h: usize,
    w: usize,
}

impl Images {
    /// Values of a channel.
    fn count(self) -> usize {
        self.n * self.h * self.w
    }

    fn shape(self, layout: ImageLayout) -> Shape {
        let Images { n, c, h, w } = self;
        match layout {
            ImageLayout::Nchw => [n, c, h, w].into(),
            ImageLayout::Nhwc => [n, h, w, c].into(),
        }
    }

    /// Where element `i` of `[n h w, c]` lies.
    fn place(self, layout: ImageLayout, i: usize) -> usize {
        let (row, channel, plane) = (i / self.c, i % self.c, self.h * self.w);
        match layout {
            ImageLayout::Nchw => (row / plane * self.c + channel) * plane + row % plane,
            ImageLayout::Nhwc => i,
        }
    }

    fn laid<T: Element>(self, layout: ImageLayout, rows: &[T]) -> Tensor<T> {
        let mut laid = Tensor::zeros(self.shape(layout)).unwrap();
        for (i, &x) in rows.iter().enumerate() {
            laid.data_mut()[self.place(layout, i)] = x;
        }
        laid
    }

    fn rows<T: Element>(self, layout: ImageLayout, laid: &[T]) -> Vec<T> {
        (0..laid.len()).map(|i| laid[self.place(layout, i)]).collect()
    }
}

/// Room for a pass: NaN, so that what is read before it is written shows.
fn room<T: Element>(len: usize) -> Vec<T> {
    vec![T::from_f64(f64::NAN); len]
}

/// What a training step leaves: y, dx, and the gradients of the parameters that there are.
#[derive(Clone, Debug, PartialEq)]
struct Trained<T> {
    y: Vec<T>,
    dx: Vec<T>,
    parameters: Vec<Vec<T>>,
}

fn train<T: Element>(layer: &mut dyn Layer<T>, x: TensorRef<'_, T>, dy: TensorRef<'_, T>) -> Result<Trained<T>> {
    let (mut y, mut dx) = (Tensor::zeros(x.shape())?, Tensor::zeros(x.shape())?);
    let (mut saved, mut scratch) = (room(layer.saved_len(x.shape())), room(layer.scratch_len(x.shape())));
    layer.forward(x, y.view_mut(), &mut saved, &mut scratch)?;
    layer.visit_mut(&mut |p| p.grad.fill(T::ZERO));
    layer.backward(x, dy, Some(dx.view_mut()), &saved, &mut scratch)?;
    let mut parameters = Vec::new();
    layer.visit(&mut |p| parameters.push(p.grad.to_vec()));
    Ok(Trained { y: y.data().to_vec(), dx: dx.data().to_vec(), parameters })
}

fn infer<T: Element>(layer: &dyn Layer<T>, x: TensorRef<'_, T>) -> Result<Vec<T>> {
    let (mut y, mut scratch) = (Tensor::zeros(layer.output_shape(x.shape())?)?, room(layer.scratch_len(x.shape())));
    layer.infer(x, y.view_mut(), &mut scratch)?;
    Ok(y.data().to_vec())
}

fn wide<T: Element>(values: &[T]) -> Vec<f64> {
    values.iter().map(|x| x.to_f64()).collect()
}

#[track_caller]
fn near<T: Element>(what: &str, found: &[T], wanted: &[f64], limit: impl Fn(usize) -> f64) {
    assert_eq!(found.len(), wanted.len(), "{what}: number of elements");
    for (i, (found, &wanted)) in found.iter().zip(wanted).enumerate() {
        let (error, limit) = ((found.to_f64() - wanted).abs(), limit(i));
        assert!(error <= limit, "{what}[{i}] is {found}, not {wanted}: off by {error:.1e}, allowed {limit:.1e}");
    }
}

// ---- Normalised images.

/// A layer and two batches of one size.
#[derive(Clone, Debug)]
struct Case {
    images: Images,
    options: BatchNormOptions,
    seed: u64,
}

/// An eps of at least 0.1 keeps `rstd` below 3.2, so that the error of a variance is felt no more than that of the values.
fn any_case() -> impl Strategy<Value = Case> {
    // Planes below and above the 16 values from which lanes walk along them, and pixels that fill no vector.
    let planes = select(&[(1, 1), (1, 2), (3, 1), (2, 2), (3, 5), (4, 4), (1, 17), (7, 7), (16, 18)][..]);
    let channels = select(&[1, 2, 3, 5, 8, 16, 17][..]);
    let images = (1..6usize, channels, planes).prop_map(|(n, c, (h, w))| Images { n, c, h, w });
    let images = images.prop_filter("one value per channel", |images| images.count() > 1);
    let options = (select(&[0.1, 1.0][..]), select(&[None, Some(0.1), Some(1.0)][..]), any::<(bool, bool)>()).prop_map(
        |(eps, momentum, (affine, track_running_stats))| BatchNormOptions {
            eps,
            momentum,
            affine,
            track_running_stats,
        },
    );
    (images, options, 0..1u64 << 32).prop_map(|(images, options, seed)| Case { images, options, seed })
}

/// What the specification makes of a batch, and what the kernels allow for their own answer.
struct Expected {
    y: Vec<f64>,
    gradients: reference::Gradients,
    batch: Moments,
    y_limit: Vec<f64>,
    dx_limit: Vec<f64>,
    parameter_limits: [Vec<f64>; 2],
}

impl Case {
    fn batch<T: Element>(&self, name: &str) -> Vec<T> {
        let mut rng = Rng::new(self.seed, name);
        let c = self.images.c;
        let value = |i: usize| [0.0, 2.0, -1.0][i % c % 3] + [1.0, 0.3, 2.0][i % c % 3] * rng.normal();
        (0..self.images.count() * c).map(value).map(T::from_f64).collect()
    }

    fn parameters<T: Element>(&self) -> Option<[Vec<T>; 2]> {
        let mut rng = Rng::new(self.seed, "parameters");
        self.options.affine.then(|| [(); 2].map(|()| (0..self.images.c).map(|_| T::from_f64(rng.normal())).collect()))
    }

    fn layer<T: Element>(&self, layout: ImageLayout) -> BatchNorm2d<T> {
        let mut layer = BatchNorm2d::with_options(self.images.c, layout, self.options).unwrap();
        let mut parameters = self.parameters::<T>().into_iter().flatten();
        layer.visit_mut(&mut |p| p.value.copy_from_slice(&parameters.next().unwrap()));
        layer
    }

    /// With x_hat and t = x - mean, and S0, S1 a channel's means of |dy| and |dy x_hat|, the bounds of the kernel's module come to the
    /// following, sigma and rstd being what they are here: rstd is off by at most 17 u of itself, the mean by 8 u sigma and 2^-47 of
    /// itself, sums of gradients by 83 u of their terms' magnitudes.
    fn expected<T: Element>(&self, x: &[T], dy: &[T]) -> Expected {
        let (c, eps, u) = (self.images.c, self.options.eps, T::ROUNDOFF);
        let (x, dy) = (wide(x), wide(dy));
        let (gamma, beta) = match self.parameters::<T>() {
            Some([gamma, beta]) => (Some(wide(&gamma)), Some(wide(&beta))),
            None => (None, None),
        };
        let (y, batch) = reference::forward(&x, c, gamma.as_deref(), beta.as_deref(), eps);
        let gradients = reference::backward(&x, &dy, gamma.as_deref(), &batch, eps);
        let m = self.images.count() as f64;
        let rstd: Vec<f64> = batch.var.iter().map(|var| 1.0 / (var + eps).sqrt()).collect();
        let a = |j: usize| gamma.as_ref().map_or(1.0, |gamma| gamma[j].abs()) * rstd[j];
        let of_mean: Vec<f64> = batch.mean.iter().map(|mean| 2f64.powi(-47) * mean.abs()).collect();
        let (mut s0, mut s1) = (vec![0.0; c], vec![0.0; c]);
        for i in 0..x.len() {
            s0[i % c] += dy[i].abs() / m;
            s1[i % c] += (dy[i] * (x[i] - batch.mean[i % c])).abs() * rstd[i % c] / m;
        }
        let y_limit = (0..x.len()).map(|i| {
            let (j, t) = (i % c, (x[i] - batch.mean[i % c]).abs());
            let beta = beta.as_ref().map_or(0.0, |beta| beta[j].abs());
            a(j) * (20.0 * u * t + 8.0 * u * batch.var[j].sqrt() + of_mean[j]) + 2.0 * u * (beta + y[i].abs())
        });
        let dx_limit = (0..x.len()).map(|i| {
            let (j, x_hat) = (i % c, (x[i] - batch.mean[i % c]).abs() * rstd[i % c]);
            let of_values = 150.0 * u * (dy[i].abs() + (1.0 + x_hat) * (s0[j] + s1[j]));
            a(j) * (of_values + of_mean[j] * rstd[j] * (x_hat * s0[j] + s1[j]))
        });
        let dgamma_limit = (0..c).map(|j| m * (110.0 * u * (s0[j] + s1[j]) + of_mean[j] * rstd[j] * s0[j]));
        let dbeta_limit = (0..c).map(|j| m * 85.0 * u * s0[j]);
        Expected {
            y_limit: y_limit.collect(),
            dx_limit: dx_limit.collect(),
            parameter_limits: [dgamma_limit.collect(), dbeta_limit.collect()],
            y,
            gradients,
            batch,
        }
    }

    /// Two batches in training and one in evaluation, in both layouts.
    fn check<T: Element>(&self) {
        let (images, u) = (self.images, T::ROUNDOFF);
        let mut layers = LAYOUTS.map(|layout| (layout, self.layer::<T>(layout)));
        let mut running = Moments { mean: vec![0.0; images.c], var: vec![1.0; images.c] };
        let mut of_running = vec![(0.0, 0.0); images.c];
        for (seen, name) in [(1, "first"), (2, "second")] {
            let (x, dy) = (self.batch::<T>(name), self.batch::<T>(&format!("{name} dy")));
            let expected = self.expected(&x, &dy);
            reference::update_running(&mut running, self.options.momentum, seen, &expected.batch, images.count());
            let weight = self.options.momentum.unwrap_or(1.0 / seen as f64);
            let unbias = images.count() as f64 / (images.count() as f64 - 1.0);
            for (j, limit) in of_running.iter_mut().enumerate() {
                let (mean, var) = (expected.batch.mean[j].abs(), expected.batch.var[j]);
                let of_mean = 8.0 * u * var.sqrt() + 2f64.powi(-47) * mean + 2.0 * u * mean;
                let of_var = (34.0 * u * var + 4.0 * u * u * mean * mean) * unbias;
                limit.0 = (1.0 - weight) * limit.0 + weight * of_mean + 4.0 * u * running.mean[j].abs();
                limit.1 = (1.0 - weight) * limit.1 + weight * of_var + 4.0 * u * running.var[j];
            }
            let [nchw, nhwc] = layers.each_mut().map(|(layout, layer)| {
                let (x, dy) = (images.laid(*layout, &x), images.laid(*layout, &dy));
                let trained = train(layer, x.view(), dy.view()).unwrap();
                let (y, dx) = (images.rows(*layout, &trained.y), images.rows(*layout, &trained.dx));
                near(&format!("{layout:?}: y"), &y, &expected.y, |i| expected.y_limit[i]);
                near(&format!("{layout:?}: dx"), &dx, &expected.gradients.dx, |i| expected.dx_limit[i]);
                let wanted = [&expected.gradients.dgamma, &expected.gradients.dbeta];
                for (p, found) in trained.parameters.iter().enumerate() {
                    let limits = &expected.parameter_limits[p];
                    near(&format!("{layout:?}: gradient of parameter {p}"), found, wanted[p], |j| limits[j]);
                }
                assert_eq!(trained.parameters.len(), if self.options.affine { 2 } else { 0 });
                assert_eq!(layer.num_batches_tracked(), if self.options.track_running_stats { seen } else { 0 });
                assert_eq!(layer.running().is_some(), self.options.track_running_stats);
                if let Some((mean, var)) = layer.running() {
                    near(&format!("{layout:?}: running mean"), mean, &running.mean, |j| of_running[j].0);
                    near(&format!("{layout:?}: running var"), var, &running.var, |j| of_running[j].1);
                }
                Trained { y, dx, ..trained }
            });
            // Each within its bound of the same number.
            near("y of both layouts", &nchw.y, &wide(&nhwc.y), |i| 2.0 * expected.y_limit[i]);
            near("dx of both layouts", &nchw.dx, &wide(&nhwc.dx), |i| 2.0 * expected.dx_limit[i]);
        }
        // With running statistics a layer answers by those that it has; without, by the batch's own, as in training.
        let (x, dy) = (self.batch::<T>("third"), self.batch::<T>("third dy"));
        let expected = self.expected(&x, &dy);
        for (layout, layer) in &mut layers {
            let laid = images.laid(*layout, &x);
            let y = images.rows(*layout, &infer(layer, laid.view()).unwrap());
            let Some((mean, var)) = layer.running() else {
                near(&format!("{layout:?}: evaluated"), &y, &expected.y, |i| expected.y_limit[i]);
                continue;
            };
            let (running, eps) = (Moments { mean: wide(mean), var: wide(var) }, self.options.eps);
            let parameters = self.parameters::<T>().map(|parameters| parameters.map(|p| wide(&p)));
            let [gamma, beta] = [0, 1].map(|p| parameters.as_ref().map(|parameters| &parameters[p][..]));
            let wanted = reference::infer(&wide(&x), gamma, beta, &running, eps);
            near(&format!("{layout:?}: evaluated"), &y, &wanted, |i| {
                let j = i % images.c;
                let a = gamma.map_or(1.0, |gamma| gamma[j].abs()) / (running.var[j] + eps).sqrt();
                // The difference, a, and their product round; then the sum.
                4.0 * u * a * (x[i].to_f64() - running.mean[j]).abs() + 2.0 * u * wanted[i].abs()
            });
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 60,
        rng_seed: RngSeed::Fixed(5),
        // With a fixed seed there is nothing to remember between runs.
        failure_persistence: None,
        max_shrink_iters: 200,
        ..ProptestConfig::default()
    })]

    #[test]
    fn images_of_both_layouts_are_normalised_as_specified(case in any_case()) {
        for isa in Isa::available() {
            with_isa(isa, || {
                case.check::<f32>();
                case.check::<f64>();
            });
        }
    }
}

/// The golden rows are the pixels of images: NHWC as they lie, NCHW with their channels apart.
#[test]
fn normalised_images_are_pytorchs() {
    // Relative to each number: both compute in f64, with sums of at most 5 terms in an order of their own.
    let golden = |what: &str, found: &[f64], wanted: &[f64]| near(what, found, wanted, |i| 1e-10 * wanted[i].abs());
    let (first, second) = (Images { n: 1, c: 3, h: 5, w: 1 }, Images { n: 2, c: 3, h: 1, w: 2 });
    for isa in Isa::available() {
        with_isa(isa, || {
            for layout in LAYOUTS {
                let mut layer = BatchNorm2d::<f64>::new(3, layout).unwrap();
                layer.visit_mut(&mut |p| {
                    p.value.copy_from_slice(if p.name == "weight" { &BN_GAMMA } else { &BN_BETA });
                });
                let (x, dy) = (first.laid(layout, &BN_X1), first.laid(layout, &BN_DY));
                let trained = train(&mut layer, x.view(), dy.view()).unwrap();
                golden("y", &first.rows(layout, &trained.y), &BN_Y);
                golden("dx", &first.rows(layout, &trained.dx), &BN_DX);
                golden("dgamma", &trained.parameters[0], &BN_DGAMMA);
                golden("dbeta", &trained.parameters[1], &BN_DBETA);
                golden("running mean", layer.running().unwrap().0, &BN_RUNNING_MEAN_1);
                golden("running var", layer.running().unwrap().1, &BN_RUNNING_VAR_1);
                let x2 = second.laid(layout, &BN_X2);
                train(&mut layer, x2.view(), x2.view()).unwrap();
                golden("running mean of two", layer.running().unwrap().0, &BN_RUNNING_MEAN_2);
                golden("running var of two", layer.running().unwrap().1, &BN_RUNNING_VAR_2);
                assert_eq!(layer.num_batches_tracked(), 2);
                golden("evaluated", &first.rows(layout, &infer(&layer, x.view()).unwrap()), &BN_EVAL_Y);
            }
        });
    }
}
