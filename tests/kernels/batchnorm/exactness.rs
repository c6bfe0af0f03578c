//! Data on which the answer is known to the bit, and PyTorch's numbers.

use super::layer::{ALL, BEFORE, Forward, Layer};
use super::oracle::Oracle;
use crate::support::*;
use evenkeel::kernels::Activation;
use evenkeel::kernels::batchnorm::{Saved, Statistics};
use evenkeel::reference;
use evenkeel::reference::batchnorm::Moments;
use evenkeel::simd::Element;

/// A constant channel: variance 0, its value as mean, y = beta, no gradient for gamma, and `a (dz - B / m)` for x.
fn constant_channels_are_exact<T: Element>() {
    let largest = if T::NAME == "f32" { f64::from(f32::MAX) } else { f64::MAX };
    // Multiples of 1/49 and others that times the number of values, divided by it, are not what they were.
    for value in [0.1, 1e7 + 3.0, -1e30, 1e-40, largest, 0.0, 3.0 / 49.0, 23.0 / 49.0, 11.0 / 49.0, 1.0 / 49.0] {
        let value = T::from_f64(value);
        for (n, c, l) in [
            (2, 5, 1),
            (3, 5, 1),
            (15, 5, 1),
            (16, 5, 1),
            (17, 5, 1),
            (100, 5, 1),
            (1024, 5, 1),
            (1040, 5, 1),
            (3001, 5, 1),
            (39, 16, 1),
            (1040, 70, 1),
            (15, 5, 3),
            (100, 5, 10),
            (34, 5, 17),
            (98, 5, 49),
            (3001, 5, 3001),
            (9000, 5, 9000),
            (1600, 5, 16),
            (1600, 5, 32),
        ] {
            let mut layer = Layer::<T>::new(n as u64, n, c, 3).inner(l);
            layer.x.fill(value);
            // The rstd of f64 that are nearly as large as can be is that of eps, which is scaled with them, and vanishes.
            let has_slope = value.to_f64() < 1e300;
            let oracle = Oracle::known(&layer, Moments { mean: vec![value.to_f64(); c], var: vec![0.0; c] });
            sweep::<T>(|_| {
                let Forward { y, saved } = layer.forward(0);
                let all = layer.backward(Statistics::Batch, &saved, ALL, 0);
                let saved = Saved::new(&saved, c);
                for j in 0..c {
                    assert_eq!((saved.mean(j), saved.var(j)), (value.to_f64(), 0.0), "{value} x {n}");
                    let beta = layer.beta.as_ref().unwrap()[j];
                    assert!(y.iter().skip(j).step_by(c).all(|y| y.bits() == beta.bits()), "{value} x {n}: y is beta");
                    assert_eq!(all[1][j].to_f64(), BEFORE, "{value} x {n}");
                }
                if has_slope {
                    oracle.check_gradients(&y, &all);
                }
            });
        }
    }
}

/// Rows, channels and neighbouring values whose sums are exact: one lane and many, rows that are joined, narrow, wide and very wide,
/// planes shorter and longer than a leaf.
fn even_sizes() -> impl Iterator<Item = (usize, usize, usize)> {
    let rows = [2, 4, 8, 14, 16, 18, 30, 32, 34, 48, 62, 1008, 1022, 1024, 1026, 1040, 2048, 2078, 4096, 5002];
    let planes = [(16, 2), (60, 4), (36, 18), (98, 98), (980, 98), (5002, 5002), (20_000, 10_000)];
    let each = rows.into_iter().map(|n| (n, 1)).chain(planes);
    let narrow = each.flat_map(|(n, l)| [1, 3, 17].map(|c| (n, c, l)));
    let wide = [16, 64, 70, 270].into_iter().flat_map(|c| [4, 14, 36, 130, 1040].map(|n| (n, c, 1)));
    narrow.chain(wide)
}

/// Pairs `mean + d, mean - d` with a mean that is a power of two and a `d` of few bits (0 at the start of every leaf, whose first
/// value may be the shift): every sum in any order is exact. The upstream gradient is made of small integers, and so are its sums.
fn pairs<T: Element>((n, c, l): (usize, usize, usize), variant: usize) -> Layer<T> {
    let mut layer = Layer::<T>::new(1, n, c, variant).inner(l);
    for i in 0..n {
        for j in 0..c {
            let mean = [1.0, -4.0, 64.0][j % 3];
            let d = mean * ((i / 2 * (5 + j)) % 16) as f64 / 16.0;
            layer.x[i * c + j] = T::from_f64(if i % 2 == 0 { mean + d } else { mean - d });
            layer.dy[i * c + j] = T::from_f64(((i * (3 + j) + j) % 7) as f64 - 2.0);
        }
    }
    layer
}

/// Mean and variance are the reference's, bit for bit.
fn pairs_around_a_power_of_two_are_exact<T: Element>() {
    for size in even_sizes() {
        let layer = pairs::<T>(size, 0);
        let wanted = reference::batchnorm::moments(&wide(&layer.x), layer.c);
        sweep::<T>(|_| {
            let saved = layer.forward(0).saved;
            let saved = Saved::new(&saved, layer.c);
            for j in 0..layer.c {
                assert_eq!(saved.mean(j), wanted.mean[j], "mean of channel {j}, {size:?}");
                // The quotient by n is kept in two parts.
                assert_eq!(saved.var(j), T::join(T::split(wanted.var[j])), "var of channel {j}, {size:?}");
            }
        });
    }
}

/// Sums of the backward pass without a rounding: the parameter gradients are what their formulas give in f64, bit for bit.
fn sums_of_small_integers_are_exact<T: Element>() {
    for (turn, size) in even_sizes().enumerate() {
        let layer = pairs::<T>(size, if turn % 2 == 0 { 3 } else { 7 });
        let (n, c) = (layer.n, layer.c);
        let means = reference::batchnorm::moments(&wide(&layer.x), c).mean;
        let (mean, var): (Vec<T>, _) = (narrow(&means), vec![T::from_f64(0.3); c]);
        sweep::<T>(|_| {
            for statistics in [Statistics::Batch, Statistics::Frozen] {
                let Forward { y, saved } = match statistics {
                    Statistics::Batch => layer.forward(0),
                    Statistics::Frozen => layer.forward_frozen((&mean, &var), 0),
                };
                let [_, dgamma, dbeta] = layer.backward(statistics, &saved, ALL, 0);
                let saved = Saved::new(&saved, c);
                for j in 0..c {
                    let (mut b, mut d) = (0.0, 0.0);
                    for i in (j..n * c).step_by(c) {
                        let passes = layer.activation == Activation::Identity || y[i].to_f64() > 0.0;
                        let dz = if passes { layer.dy[i].to_f64() } else { 0.0 };
                        b += dz;
                        d += dz * (layer.x[i].to_f64() - means[j]);
                    }
                    let what = format!("channel {j}, {size:?}, {statistics:?}");
                    assert_eq!(dbeta[j], T::from_f64(BEFORE + b), "dbeta of {what}");
                    assert_eq!(dgamma[j], T::from_f64(BEFORE + saved.rstd(j) * d), "dgamma of {what}");
                }
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
    constant_channels_are_exact,
    pairs_around_a_power_of_two_are_exact,
    sums_of_small_integers_are_exact,
    golden_values_are_met,
);
