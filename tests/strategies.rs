//! The strategies for property tests: they reach what they are for, and their layers pass a gradient check.
//!
//! Needs the feature `testing`.

#![cfg(feature = "testing")]
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use evenkeel::gradcheck::strategies::{
    Data, activation, batch, batchnorm_options, ill_conditioned, images, layout, linear, sequences, size,
    well_conditioned,
};
use evenkeel::gradcheck::{AWKWARD_SIZES, GradCheck};
use evenkeel::kernels::Activation;
use evenkeel::layers::{BatchNorm1d, BatchNorm2d, Relu};
use evenkeel::tensor::ImageLayout;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{RngSeed, TestRunner};
use std::collections::HashSet;
use std::fmt::Debug;

fn fixed(cases: u32, seed: u64) -> ProptestConfig {
    ProptestConfig { rng_seed: RngSeed::Fixed(seed), failure_persistence: None, ..ProptestConfig::with_cases(cases) }
}

fn draws<V: Debug>(strategy: impl Strategy<Value = V>, count: usize) -> Vec<V> {
    let mut runner = TestRunner::new(fixed(1, 1));
    (0..count).map(|_| strategy.new_tree(&mut runner).unwrap().current()).collect()
}

#[test]
fn sizes_are_mostly_awkward_and_within_bounds() {
    let sizes = draws(size(3..=70), 2000);
    assert!(sizes.iter().all(|size| (3..=70).contains(size)));
    let seen: HashSet<usize> = sizes.iter().copied().collect();
    for wanted in AWKWARD_SIZES.iter().filter(|size| (3..=70).contains(*size)) {
        assert!(seen.contains(wanted), "{wanted} was never drawn");
    }
    let awkward = sizes.iter().filter(|size| AWKWARD_SIZES.contains(size)).count();
    assert!((1500..2000).contains(&awkward), "{awkward} of 2000");
    // Where there are none, any will do; and a single one is that one.
    assert!(draws(size(130..=200), 50).iter().all(|size| (130..=200).contains(size)));
    assert_eq!(draws(size(7..=7), 3), [7, 7, 7]);
    assert!(AWKWARD_SIZES.is_sorted());
}

#[test]
fn options_and_layouts_are_all_drawn() {
    assert_eq!(draws(layout(), 50).into_iter().collect::<HashSet<ImageLayout>>().len(), 2);
    let activations = draws(activation(), 50);
    assert!(activations.contains(&Activation::Relu) && activations.contains(&Activation::Identity));
    let options = draws(batchnorm_options(8), 300);
    let kinds: HashSet<String> = options.iter().map(|o| format!("{o:?}")).collect();
    assert_eq!(kinds.len(), 3 * 4 * 2 * 2, "every combination");
    assert!(draws(batchnorm_options(2), 100).iter().all(|o| o.eps >= 1e-2));
    let biases: HashSet<bool> = draws(linear(3, 2), 30).iter().map(|layer| layer.bias().is_some()).collect();
    assert_eq!(biases.len(), 2);
}

#[test]
fn data_are_as_they_are_called() {
    let fill = |data: Data| {
        let mut values = vec![f64::NAN; 4000];
        data.fill(&mut values, |i| i % 5, 3);
        values
    };
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let spread = |values: &[f64]| mean(&values.iter().map(|x| (x - mean(values)).powi(2)).collect::<Vec<_>>()).sqrt();
    let channel = |values: &[f64], c: usize| values.iter().skip(c).step_by(5).copied().collect::<Vec<f64>>();
    // Standard errors are 0.1 / 63 of the mean and a ninetieth of the spread: five of each.
    let shifted = fill(Data::Normal { centre: -100.0, spread: 0.1 });
    assert!((mean(&shifted) + 100.0).abs() < 0.008 && (spread(&shifted) - 0.1).abs() < 0.006);
    let mixed = fill(Data::MixedScales);
    assert!(spread(&channel(&mixed, 1)) > 1e5 * spread(&channel(&mixed, 2)));
    let constant = fill(Data::ConstantChannels);
    assert!(spread(&channel(&constant, 2)) == 0.0 && spread(&channel(&constant, 3)) > 0.8);
    let zeros = fill(Data::Zeros);
    let of_sign = |negative: bool| zeros.iter().filter(|x| **x == 0.0 && x.is_sign_negative() == negative).count();
    assert!(of_sign(true) > 400 && of_sign(false) > 400);
    let bits = |values: &[f64]| values.iter().map(|x| x.to_bits()).collect::<Vec<u64>>();
    assert_eq!(bits(&fill(Data::Zeros)), bits(&zeros), "a seed draws the same again");
}

fn any_data() -> impl Strategy<Value = Data> {
    prop_oneof![well_conditioned(), ill_conditioned()]
}

proptest! {
    #![proptest_config(fixed(60, 4))]

    #[test]
    fn a_linear_layer_on_any_data(
        (mut layer, x) in (size(1..=17), size(1..=17)).prop_flat_map(|(inputs, outputs)| {
            (linear(inputs, outputs), batch(1..=17, inputs..=inputs, any_data()))
        }),
        seed in any::<u64>(),
    ) {
        GradCheck::new(seed).layer(&mut layer, x.view())?;
    }

    #[test]
    fn a_relu_on_any_data(x in batch(1..=17, 1..=17, any_data()), seed in any::<u64>()) {
        let report = GradCheck::new(seed).layer::<f64>(&mut Relu::new(), x.view())?;
        prop_assert_eq!(report.skipped(), 0, "a layer's decisions are held");
    }

    #[test]
    fn a_normalisation_of_features(
        x in batch(4..=33, 1..=17, well_conditioned()),
        options in batchnorm_options(4),
        seed in any::<u64>(),
    ) {
        let mut layer = BatchNorm1d::<f64>::with_options(x.shape().dims()[1], options)?;
        GradCheck::new(seed).layer(&mut layer, x.view())?;
    }

    #[test]
    fn a_normalisation_of_sequences(
        x in sequences(2..=5, 1..=5, 2..=17, well_conditioned()),
        options in batchnorm_options(4),
        seed in any::<u64>(),
    ) {
        let mut layer = BatchNorm1d::<f64>::with_options(x.shape().dims()[1], options)?;
        GradCheck::new(seed).layer(&mut layer, x.view())?;
    }

    /// With an eps that keeps channels without spread from being too steep for differences.
    #[test]
    fn a_normalisation_of_unkind_images(
        (layout, x) in images(2..=5, 1..=5, 5, ill_conditioned()),
        seed in any::<u64>(),
    ) {
        let channels = x.shape().dims()[if layout == ImageLayout::Nchw { 1 } else { 3 }];
        let options = evenkeel::layers::BatchNormOptions { eps: 1e-2, ..Default::default() };
        let mut layer = BatchNorm2d::<f64>::with_options(channels, layout, options)?;
        GradCheck::new(seed).layer(&mut layer, x.view())?;
    }
}
