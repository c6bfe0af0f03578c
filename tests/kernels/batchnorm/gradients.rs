//! Which gradients are computed, and through which mask.

use super::layer::{ALL, BEFORE, Forward, Layer};
use crate::support::*;
use evenkeel::Rng;
use evenkeel::kernels::batchnorm::Statistics;
use evenkeel::kernels::{Activation, relu};
use evenkeel::simd::Element;

/// A gradient is the same bits whatever else is asked for, and what is not asked for is not written.
fn any_subset_of_gradients_is_the_whole<T: Element>() {
    for (variant, n, c, l) in
        [(7, 37, 19, 1), (3, 1030, 5, 1), (0, 6, 1, 1), (7, 60, 7, 20), (3, 60, 7, 3), (7, 35, 70, 1), (7, 147, 7, 49)]
    {
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
                for subset in 0..4 {
                    let wanted = [true, subset & 1 != 0, subset & 2 != 0];
                    let found = layer.backward_in_place(statistics, &saved, wanted);
                    for part in 0..3 {
                        let right = if wanted[part] { &all[part] } else { &none[part] };
                        let what = format!("{statistics:?}, in place, {wanted:?}, part {part}");
                        assert_same_bits(&what, &bits(&found[part]), &bits(right));
                    }
                }
            }
        });
    }
}

/// The first channel constant, its beta a zero of either sign, so that it is y; a NaN in the last.
fn with_edges<T: Element>(mut layer: Layer<T>) -> Layer<T> {
    for x in layer.x.iter_mut().step_by(layer.c) {
        *x = T::from_f64(0.3);
    }
    if let Some(beta) = &mut layer.beta {
        beta[0] = if layer.c.is_multiple_of(2) { -T::ZERO } else { T::ZERO };
    }
    *layer.x.last_mut().unwrap() = T::from_f64(f64::NAN);
    layer
}

/// Fused with ReLU is the same bits as the two kernels one after the other, in both directions.
fn fused_relu_is_two_kernels<T: Element>() {
    for (n, c, variant, l) in [
        (33, 17, 7, 1),
        (40, 3, 4, 1),
        (1100, 6, 5, 1),
        (129, 32, 6, 1),
        (102, 5, 7, 17),
        (80, 6, 5, 8),
        (35, 70, 7, 1),
        (147, 5, 7, 49),
    ] {
        let fused = with_edges(Layer::<T>::new(2, n, c, variant).inner(l));
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

in_both_types!(
    any_subset_of_gradients_is_the_whole,
    fused_relu_is_two_kernels,
    the_mask_has_the_bits_of_the_forward_pass,
);
