//! The batch normalisation layers, with PyTorch's options: over features `[n, c]` and `[n, c, l]`, and over images in both layouts; see
//! [`kernels::batchnorm`](crate::kernels::batchnorm).

use super::{AffineMap, Layer, Parameter, ParameterMut, PerChannel, check_backward, check_output, expect_room};
use crate::error::{Error, Result};
use crate::kernels::Activation;
use crate::kernels::batchnorm::{self, BatchNorm, Gradients, Statistics};
use crate::simd::Element;
use crate::tensor::{ImageLayout, Shape, Tensor, TensorMut, TensorRef};
use std::any::Any;

/// PyTorch's options, with its names and defaults.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BatchNormOptions {
    /// Added to the variance, inside the root. Default 1e-5. Training needs more than 0; with 0 only running statistics can be used.
    pub eps: f64,
    /// Weight of a batch in the running statistics; `None` for their cumulative average. Default 0.1. Any number is taken, as
    /// PyTorch does.
    pub momentum: Option<f64>,
    /// Whether there are a scale and a shift per channel to be learnt. Default yes.
    pub affine: bool,
    /// Whether running statistics are kept, for evaluation; without them evaluation uses the batch's own. Default yes.
    pub track_running_stats: bool,
}

impl Default for BatchNormOptions {
    fn default() -> Self {
        BatchNormOptions { eps: 1e-5, momentum: Some(0.1), affine: true, track_running_stats: true }
    }
}

/// Batch normalisation of features.
///
/// Training normalises with the batch's biased variance and moves the running statistics with the unbiased one,
/// `running = (1 - momentum) running + momentum batch`; evaluation normalises with the running statistics.
///
/// # Shapes
/// `x`, `y`: `[n, features]` or `[n, features, l]`.
#[derive(Debug)]
pub struct BatchNorm1d<T>(Norm<T>);

impl<T: Element> BatchNorm1d<T> {
    /// A layer with PyTorch's defaults: scale 1, shift 0, running mean 0, running variance 1.
    ///
    /// # Errors
    /// If there are no features, or more than can be addressed.
    pub fn new(features: usize) -> Result<Self> {
        BatchNorm1d::with_options(features, BatchNormOptions::default())
    }

    /// A layer with other options.
    ///
    /// # Errors
    /// If there are no features, or more than can be addressed; if eps is negative or not finite, or momentum is not finite.
    pub fn with_options(features: usize, options: BatchNormOptions) -> Result<Self> {
        Norm::new(None, features, options).map(BatchNorm1d)
    }
}

/// Batch normalisation of images, in either layout.
///
/// As [`BatchNorm1d`], with all pixels of all images as the values of a channel: n h w of them make its statistics, so that one image
/// is a batch to train on unless it is a single pixel.
///
/// # Shapes
/// `x`, `y`: `[n, channels, h, w]` for [`ImageLayout::Nchw`], `[n, h, w, channels]` for [`ImageLayout::Nhwc`].
///
/// # Examples
/// ```
/// use evenkeel::layers::{BatchNorm2d, Layer};
/// use evenkeel::tensor::{ImageLayout, Tensor};
/// let mut layer = BatchNorm2d::<f64>::new(2, ImageLayout::Nhwc)?;
/// // One image of 1 x 2 pixels: channel 0 is 1, 3 and channel 1 is 5, 5.
/// let x = Tensor::from_slice([1, 1, 2, 2], &[1.0, 5.0, 3.0, 5.0])?;
/// let mut y = Tensor::zeros(x.shape())?;
/// let (mut saved, mut scratch) = (vec![0.0; layer.saved_len(x.shape())], vec![0.0; layer.scratch_len(x.shape())]);
/// layer.forward(x.view(), y.view_mut(), &mut saved, &mut scratch)?;
/// assert!((y.data()[2] - 1.0).abs() < 1e-5 && y.data()[3] == 0.0);
/// // Mean 2 and unbiased variance 2 weigh a tenth beside the 0 and 1 from before.
/// let (mean, var) = layer.running().unwrap();
/// assert!((mean[0] - 0.2).abs() < 1e-15 && (var[0] - 1.1).abs() < 1e-15);
/// # Ok::<(), evenkeel::Error>(())
/// ```
#[derive(Debug)]
pub struct BatchNorm2d<T>(Norm<T>);

impl<T: Element> BatchNorm2d<T> {
    /// A layer with PyTorch's defaults: scale 1, shift 0, running mean 0, running variance 1.
    ///
    /// # Errors
    /// If there are no channels, or more than can be addressed.
    pub fn new(channels: usize, layout: ImageLayout) -> Result<Self> {
        BatchNorm2d::with_options(channels, layout, BatchNormOptions::default())
    }

    /// A layer with other options.
    ///
    /// # Errors
    /// If there are no channels, or more than can be addressed; if eps is negative or not finite, or momentum is not finite.
    pub fn with_options(channels: usize, layout: ImageLayout, options: BatchNormOptions) -> Result<Self> {
        Norm::new(Some(layout), channels, options).map(BatchNorm2d)
    }
}

/// A layer that is the [`Norm`] it holds.
macro_rules! layer_of_norm {
    ($layer:ident) => {
        impl<T: Element> $layer<T> {
            /// The options it was made with.
            pub fn options(&self) -> BatchNormOptions {
                self.0.options
            }

            /// Running mean and running (unbiased) variance, if they are kept.
            pub fn running(&self) -> Option<(&[T], &[T])> {
                self.0.running.as_ref().map(|r| (r.mean.data(), r.var.data()))
            }

            /// Number of training batches seen; PyTorch's `num_batches_tracked`.
            pub fn num_batches_tracked(&self) -> u64 {
                self.0.running.as_ref().map_or(0, |r| r.batches)
            }
        }

        impl<T: Element> Layer<T> for $layer<T> {
            fn describe(&self) -> String {
                self.0.describe()
            }

            fn output_shape(&self, input: Shape) -> Result<Shape> {
                self.0.output_shape(input)
            }

            fn saved_len(&self, input: Shape) -> usize {
                self.0.saved_len(input)
            }

            fn scratch_len(&self, input: Shape) -> usize {
                self.0.scratch_len(input)
            }

            fn per_channel(&self) -> Option<PerChannel> {
                self.0.per_channel()
            }

            fn infer(&self, x: TensorRef<'_, T>, y: TensorMut<'_, T>, scratch: &mut [T]) -> Result<()> {
                self.0.infer(x, y, scratch)
            }

            fn forward(
                &mut self,
                x: TensorRef<'_, T>,
                y: TensorMut<'_, T>,
                saved: &mut [T],
                scratch: &mut [T],
            ) -> Result<()> {
                self.0.forward(x, y, saved, scratch)
            }

            fn backward(
                &mut self,
                x: TensorRef<'_, T>,
                dy: TensorRef<'_, T>,
                dx: Option<TensorMut<'_, T>>,
                saved: &[T],
                scratch: &mut [T],
            ) -> Result<()> {
                self.0.backward(x, dy, dx, saved, scratch)
            }

            fn visit(&self, f: &mut dyn FnMut(Parameter<'_, T>)) {
                self.0.visit(f);
            }

            fn visit_mut(&mut self, f: &mut dyn FnMut(ParameterMut<'_, T>)) {
                self.0.visit_mut(f);
            }

            fn visit_buffers_mut(&mut self, f: &mut dyn FnMut(&'static str, &mut [T])) {
                self.0.visit_buffers_mut(f);
            }

            fn visit_counts_mut(&mut self, f: &mut dyn FnMut(&'static str, &mut u64)) {
                self.0.visit_counts_mut(f);
            }
        }
    };
}

layer_of_norm!(BatchNorm1d);
layer_of_norm!(BatchNorm2d);

/// The normalisation that a layer of this crate is, whatever its shapes.
pub(crate) fn as_norm<T: Element>(layer: &dyn Layer<T>) -> Option<&Norm<T>> {
    let layer: &dyn Any = layer;
    let one = layer.downcast_ref::<BatchNorm1d<T>>().map(|layer| &layer.0);
    one.or_else(|| layer.downcast_ref::<BatchNorm2d<T>>().map(|layer| &layer.0))
}

/// [`as_norm`], to be changed.
pub(crate) fn as_norm_mut<T: Element>(layer: &mut dyn Layer<T>) -> Option<&mut Norm<T>> {
    let layer: &mut dyn Any = layer;
    if layer.is::<BatchNorm1d<T>>() {
        return layer.downcast_mut::<BatchNorm1d<T>>().map(|layer| &mut layer.0);
    }
    layer.downcast_mut::<BatchNorm2d<T>>().map(|layer| &mut layer.0)
}

/// What the layers have in common.
#[derive(Debug)]
pub(crate) struct Norm<T> {
    /// That of images; none for features.
    layout: Option<ImageLayout>,
    channels: usize,
    options: BatchNormOptions,
    affine: Option<Affine<T>>,
    running: Option<Running<T>>,
}

#[derive(Debug)]
struct Affine<T> {
    gamma: Tensor<T>,
    dgamma: Tensor<T>,
    beta: Tensor<T>,
    dbeta: Tensor<T>,
}

#[derive(Debug)]
struct Running<T> {
    mean: Tensor<T>,
    var: Tensor<T>,
    batches: u64,
}

impl<T: Element> Norm<T> {
    fn new(layout: Option<ImageLayout>, channels: usize, options: BatchNormOptions) -> Result<Self> {
        if channels == 0 {
            return Err(Error::shape("batchnorm", "at least one channel", 0));
        }
        if !(options.eps.is_finite() && options.eps >= 0.0) {
            return Err(Error::invalid("batchnorm: eps", options.eps, "finite and at least 0"));
        }
        if let Some(momentum) = options.momentum.filter(|m| !m.is_finite()) {
            return Err(Error::invalid("batchnorm: momentum", momentum, "finite"));
        }
        let zeros = Tensor::zeros([channels])?;
        let mut ones = zeros.clone();
        ones.data_mut().fill(T::ONE);
        let affine = options.affine.then(|| Affine {
            gamma: ones.clone(),
            dgamma: zeros.clone(),
            beta: zeros.clone(),
            dbeta: zeros.clone(),
        });
        let running = options.track_running_stats.then_some(Running { mean: zeros, var: ones, batches: 0 });
        Ok(Norm { layout, channels, options, affine, running })
    }

    /// Values of a channel that lie side by side; 1 where there are no values at all, however long a plane of them would be.
    pub(crate) fn inner(&self, input: Shape) -> usize {
        match input.dims() {
            _ if input.is_empty() => 1,
            [_, _, l] => *l,
            [_, _, h, w] if self.layout == Some(ImageLayout::Nchw) => h * w,
            _ => 1,
        }
    }

    /// Moves the running statistics, if there are any, towards those of a batch with `n` values of each channel; `offset` as
    /// [`batchnorm::update_running`] takes it.
    pub(crate) fn track(&mut self, saved: &[T], offset: Option<&[T]>, n: usize) {
        if let Some(running) = self.running.as_mut().filter(|_| n > 0) {
            running.batches += 1;
            let momentum = self.options.momentum.unwrap_or(1.0 / running.batches as f64);
            let statistics = (running.mean.data_mut(), running.var.data_mut());
            batchnorm::update_running(saved, offset, n, momentum, statistics);
        }
    }

    /// Number of channels.
    pub(crate) fn channels(&self) -> usize {
        self.channels
    }

    /// Added to the variance.
    pub(crate) fn eps(&self) -> f64 {
        self.options.eps
    }

    /// What evaluation does to a channel; nothing where that has no running statistics or is refused.
    pub(crate) fn map(&self, c: usize) -> Option<AffineMap> {
        let running = self.running.as_ref()?;
        // Evaluation refuses what has no root.
        let var = Some(running.var.data()[c].to_f64() + self.options.eps).filter(|&var| var > 0.0)?;
        let of = |part: fn(&Affine<T>) -> &Tensor<T>, absent| {
            self.affine.as_ref().map_or(absent, |affine| part(affine).data()[c].to_f64())
        };
        let scale = of(|affine| &affine.gamma, 1.0) / var.sqrt();
        Some(AffineMap { scale, centre: running.mean.data()[c].to_f64(), shift: of(|affine| &affine.beta, 0.0) })
    }

    fn norm(&self, inner: usize) -> BatchNorm<'_, T> {
        BatchNorm {
            channels: self.channels,
            inner,
            gamma: self.affine.as_ref().map(|a| a.gamma.data()),
            beta: self.affine.as_ref().map(|a| a.beta.data()),
            eps: self.options.eps,
            activation: Activation::Identity,
        }
    }
}

impl<T: Element> Layer<T> for Norm<T> {
    fn describe(&self) -> String {
        let dimensions = if self.layout.is_some() { 2 } else { 1 };
        format!("BatchNorm{dimensions}d({})", self.channels)
    }

    fn output_shape(&self, input: Shape) -> Result<Shape> {
        let c = self.channels;
        let fits = match (self.layout, input.dims()) {
            (None, [_, channels] | [_, channels, _])
            | (Some(ImageLayout::Nchw), [_, channels, _, _])
            | (Some(ImageLayout::Nhwc), [_, _, _, channels]) => *channels == c,
            _ => false,
        };
        if fits {
            return Ok(input);
        }
        let wanted = match self.layout {
            None => format!("[n, {c}] or [n, {c}, l]"),
            Some(ImageLayout::Nchw) => format!("[n, {c}, h, w]"),
            Some(ImageLayout::Nhwc) => format!("[n, h, w, {c}]"),
        };
        Err(Error::shape(self.describe(), wanted, input))
    }

    fn saved_len(&self, _input: Shape) -> usize {
        batchnorm::saved_len(self.channels)
    }

    fn scratch_len(&self, input: Shape) -> usize {
        let Some(len) = input.checked_len() else { return usize::MAX };
        let inner = self.inner(input);
        let pass = batchnorm::scratch_len::<T>(len / self.channels / inner, self.channels, inner);
        // Evaluation keeps its constants in scratch as well.
        pass.saturating_add(batchnorm::saved_len(self.channels))
    }

    fn per_channel(&self) -> Option<PerChannel> {
        let maps = (0..self.channels).map(|c| self.map(c)).collect::<Option<_>>()?;
        Some(PerChannel { layout: self.layout, maps })
    }

    fn infer(&self, x: TensorRef<'_, T>, mut y: TensorMut<'_, T>, scratch: &mut [T]) -> Result<()> {
        check_output(self, x.shape(), y.shape(), scratch)?;
        let (saved, scratch) = scratch.split_at_mut(batchnorm::saved_len(self.channels));
        let norm = self.norm(self.inner(x.shape()));
        match &self.running {
            Some(running) => {
                let statistics = (running.mean.data(), running.var.data());
                batchnorm::forward_frozen(&norm, x.data(), statistics, y.data(), saved, scratch)
            }
            None => batchnorm::forward(&norm, x.data(), y.data(), saved, scratch),
        }
    }

    fn forward(
        &mut self,
        x: TensorRef<'_, T>,
        mut y: TensorMut<'_, T>,
        saved: &mut [T],
        scratch: &mut [T],
    ) -> Result<()> {
        check_output(self, x.shape(), y.shape(), scratch)?;
        let needed = batchnorm::saved_len(self.channels);
        expect_room(self, "saved", needed, saved.len())?;
        let saved = &mut saved[..needed];
        batchnorm::forward(&self.norm(self.inner(x.shape())), x.data(), y.data(), saved, scratch)?;
        self.track(saved, None, x.data().len() / self.channels);
        Ok(())
    }

    fn backward(
        &mut self,
        x: TensorRef<'_, T>,
        dy: TensorRef<'_, T>,
        dx: Option<TensorMut<'_, T>>,
        saved: &[T],
        scratch: &mut [T],
    ) -> Result<()> {
        check_backward(self, x.shape(), dy.shape(), dx.as_ref(), saved, scratch)?;
        let saved = &saved[..batchnorm::saved_len(self.channels)];
        let mut norm = BatchNorm {
            channels: self.channels,
            inner: self.inner(x.shape()),
            gamma: None,
            beta: None,
            eps: self.options.eps,
            activation: Activation::Identity,
        };
        let mut gradients = Gradients { dx: dx.map(TensorMut::into_data), dgamma: None, dbeta: None };
        if let Some(affine) = &mut self.affine {
            norm.gamma = Some(affine.gamma.data());
            norm.beta = Some(affine.beta.data());
            gradients.dgamma = Some(affine.dgamma.data_mut());
            gradients.dbeta = Some(affine.dbeta.data_mut());
        }
        batchnorm::backward(&norm, Statistics::Batch, x.data(), dy.data(), saved, gradients, scratch);
        Ok(())
    }

    fn visit(&self, f: &mut dyn FnMut(Parameter<'_, T>)) {
        if let Some(a) = &self.affine {
            f(Parameter { name: "weight", shape: a.gamma.shape(), value: a.gamma.data(), grad: a.dgamma.data() });
            f(Parameter { name: "bias", shape: a.beta.shape(), value: a.beta.data(), grad: a.dbeta.data() });
        }
    }

    fn visit_mut(&mut self, f: &mut dyn FnMut(ParameterMut<'_, T>)) {
        if let Some(a) = &mut self.affine {
            f(ParameterMut { name: "weight", value: a.gamma.data_mut(), grad: a.dgamma.data_mut() });
            f(ParameterMut { name: "bias", value: a.beta.data_mut(), grad: a.dbeta.data_mut() });
        }
    }

    fn visit_buffers_mut(&mut self, f: &mut dyn FnMut(&'static str, &mut [T])) {
        if let Some(running) = &mut self.running {
            f("running_mean", running.mean.data_mut());
            f("running_var", running.var.data_mut());
        }
    }

    fn visit_counts_mut(&mut self, f: &mut dyn FnMut(&'static str, &mut u64)) {
        if let Some(running) = &mut self.running {
            f("num_batches_tracked", &mut running.batches);
        }
    }
}
