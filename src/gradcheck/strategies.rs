//! Strategies for property tests with `proptest`: sizes at which kernels have their edges, data that are kind and data that are not,
//! layouts, and the options of each layer (feature `testing`).
//!
//! # Examples
//!
//! A property test of a layer:
//!
//! ```
//! use evenkeel::gradcheck::GradCheck;
//! use evenkeel::gradcheck::strategies::{batch, well_conditioned};
//! use evenkeel::layers::BatchNorm1d;
//! use proptest::prelude::*;
//! proptest! {
//!     #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(20) })]
//!     # /*
//!     #[test]
//!     # */
//!     fn my_layer_is_right(x in batch(4..=33, 1..=17, well_conditioned()), seed in any::<u64>()) {
//!         let mut layer = BatchNorm1d::<f64>::new(x.shape().dims()[1])?;
//!         GradCheck::new(seed).layer(&mut layer, x.view())?;
//!     }
//! }
//! # my_layer_is_right();
//! ```

use super::AWKWARD_SIZES;
use crate::kernels::Activation;
use crate::layers::{BatchNormOptions, Linear};
use crate::rng::{Init, Rng};
use crate::tensor::{ImageLayout, Shape, Tensor};
use proptest::prelude::*;
use proptest::sample::select;
use std::ops::RangeInclusive;

/// A size within bounds, three times in four one of [`AWKWARD_SIZES`] if there are any; it shrinks to the smallest.
///
/// # Panics
/// If there is none within the bounds, as all strategies here that take bounds.
pub fn size(bounds: RangeInclusive<usize>) -> BoxedStrategy<usize> {
    let awkward: Vec<usize> = AWKWARD_SIZES.into_iter().filter(|size| bounds.contains(size)).collect();
    if awkward.is_empty() { bounds.boxed() } else { prop_oneof![3 => select(awkward), 1 => bounds].boxed() }
}

/// How the numbers of a tensor lie.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Data {
    /// Standard normal numbers times `spread` around `centre`.
    Normal {
        /// The mean.
        centre: f64,
        /// The standard deviation.
        spread: f64,
    },
    /// Standard normal numbers times a power of ten of their channel, from 1e-3 to 1e3.
    MixedScales,
    /// Standard normal numbers, but every other channel has the same value throughout.
    ConstantChannels,
    /// Standard normal numbers, a quarter of them zeros of either sign.
    Zeros,
}

impl Data {
    /// The numbers of a tensor; element `i` is of channel `channel(i)`.
    pub fn fill(self, values: &mut [f64], channel: impl Fn(usize) -> usize, seed: u64) {
        let mut rng = Rng::new(seed, "gradcheck data");
        for (i, value) in values.iter_mut().enumerate() {
            let (normal, channel) = (rng.normal(), channel(i));
            *value = match self {
                Data::Normal { centre, spread } => centre + spread * normal,
                Data::MixedScales => normal * [1.0, 1e3, 1e-3, 10.0, 0.1][channel % 5],
                Data::ConstantChannels if channel % 2 == 0 => channel as f64 - 1.5,
                Data::ConstantChannels => normal,
                Data::Zeros => [0.0, -0.0].get(rng.index(8)).copied().unwrap_or(normal),
            };
        }
    }
}

/// Data on which differences and f32 do well: the mean is at most a few standard deviations from zero.
pub fn well_conditioned() -> BoxedStrategy<Data> {
    let normal = |centre, spread| Data::Normal { centre, spread };
    select(vec![normal(0.0, 1.0), normal(-1.0, 0.5), normal(3.0, 5.0)]).boxed()
}

/// Data on which a careless kernel loses digits: a mean that is large for its spread, scales that differ by channel, channels without
/// spread, zeros.
pub fn ill_conditioned() -> BoxedStrategy<Data> {
    let normal = |centre, spread| Data::Normal { centre, spread };
    let kinds = [normal(1e3, 1.0), normal(-100.0, 0.1), normal(0.0, 1e-3), normal(0.0, 1e3)];
    select([&kinds[..], &[Data::MixedScales, Data::ConstantChannels, Data::Zeros]].concat()).boxed()
}

fn filled(shape: Shape, data: Data, channel: impl Fn(usize) -> usize, seed: u64) -> Tensor<f64> {
    let mut tensor = Tensor::zeros(shape).expect("a tensor of a test fits the memory");
    data.fill(tensor.data_mut(), channel, seed);
    tensor
}

/// A batch of `[n, features]`.
pub fn batch(
    rows: RangeInclusive<usize>,
    features: RangeInclusive<usize>,
    data: impl Strategy<Value = Data>,
) -> impl Strategy<Value = Tensor<f64>> {
    (size(rows), size(features), data, any::<u64>())
        .prop_map(|(n, c, data, seed)| filled([n, c].into(), data, |i| i % c, seed))
}

/// A batch of sequences, `[n, c, l]`.
pub fn sequences(
    count: RangeInclusive<usize>,
    channels: RangeInclusive<usize>,
    length: RangeInclusive<usize>,
    data: impl Strategy<Value = Data>,
) -> impl Strategy<Value = Tensor<f64>> {
    (size(count), size(channels), size(length), data, any::<u64>())
        .prop_map(|(n, c, l, data, seed)| filled([n, c, l].into(), data, |i| i / l % c, seed))
}

/// A batch of images of up to `side` pixels a side, with how they lie: `[n, c, h, w]` or `[n, h, w, c]`.
pub fn images(
    count: RangeInclusive<usize>,
    channels: RangeInclusive<usize>,
    side: usize,
    data: impl Strategy<Value = Data>,
) -> impl Strategy<Value = (ImageLayout, Tensor<f64>)> {
    let sizes = (size(count), size(channels), size(1..=side), size(1..=side));
    (sizes, layout(), data, any::<u64>()).prop_map(|((n, c, h, w), layout, data, seed)| {
        let tensor = match layout {
            ImageLayout::Nchw => filled([n, c, h, w].into(), data, |i| i / (h * w) % c, seed),
            ImageLayout::Nhwc => filled([n, h, w, c].into(), data, |i| i % c, seed),
        };
        (layout, tensor)
    })
}

/// Either layout of images.
pub fn layout() -> impl Strategy<Value = ImageLayout> {
    select(&[ImageLayout::Nchw, ImageLayout::Nhwc][..])
}

/// With ReLU or without.
pub fn activation() -> impl Strategy<Value = Activation> {
    select(&[Activation::Identity, Activation::Relu][..])
}

/// Options of a normalisation. `values` is how many a channel has: two or three can lie so close together that with PyTorch's small
/// eps the function is too steep for differences, so that they get larger ones.
pub fn batchnorm_options(values: usize) -> impl Strategy<Value = BatchNormOptions> {
    let eps = if values <= 3 { &[1.0, 1e-2][..] } else { &[1e-5, 1e-2, 1.0] };
    let momentum = select(&[Some(0.1), Some(0.0), Some(1.0), None][..]);
    (select(eps), momentum, any::<bool>(), any::<bool>()).prop_map(|(eps, momentum, affine, track_running_stats)| {
        BatchNormOptions { eps, momentum, affine, track_running_stats }
    })
}

/// A Linear layer of these widths, with every initialisation, with bias and without.
///
/// # Panics
/// If a width is 0, or if the weight does not fit the memory.
pub fn linear(in_features: usize, out_features: usize) -> impl Strategy<Value = Linear<f64>> {
    let init = select(&[Init::PyTorch, Init::Xavier, Init::He][..]);
    (init, any::<bool>(), any::<u64>()).prop_map(move |(init, has_bias, seed)| {
        let layer = Linear::with_init(in_features, out_features, init, &mut Rng::new(seed, "gradcheck linear"));
        let layer = layer.expect("widths above 0 that fit the memory");
        if has_bias { layer } else { layer.without_bias() }
    })
}
