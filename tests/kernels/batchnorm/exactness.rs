//! Data on which the answer is known to the bit, and PyTorch's numbers.

use super::layer::{ALL, BEFORE, Forward, Layer};
use crate::support::*;
use evenkeel::kernels::Activation;
use evenkeel::kernels::batchnorm::{Saved, Statistics};
use evenkeel::reference;
use evenkeel::simd::Element;

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

in_both_types!(constant_channels_are_exact, pairs_around_a_power_of_two_are_exact, golden_values_are_met,);
