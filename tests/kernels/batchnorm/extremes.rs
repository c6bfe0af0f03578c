//! Data too large for their squares, data that are not finite, and data that are hardly there.

use super::layer::{ALL, Forward, Layer};
use super::oracle::Oracle;
use crate::support::*;
use evenkeel::kernels::Activation;
use evenkeel::kernels::batchnorm::{Saved, Statistics};
use evenkeel::simd::Element;

/// Data whose squares overflow: judged through data scaled down by a power of two, which changes no digit of y.
fn squares_that_overflow_are_repaired<T: Element>() {
    let exponent = if T::NAME == "f32" { 100 } else { 997 };
    let up = 2f64.powi(exponent);
    for (n, c, variant, l) in [
        (40, 5, 3, 1),
        (33, 17, 7, 1),
        (1500, 3, 0, 1),
        (100, 5, 3, 25),
        (1500, 3, 0, 300),
        (40, 3, 0, 5),
        (40, 72, 0, 1),
    ] {
        let mut layer = Layer::<T>::new(3, n, c, variant).inner(l);
        layer.eps = 1e-5;
        // Only every second channel is huge; its neighbours must not notice.
        let ordinary = layer.clone();
        for i in 0..n * c {
            if i % c % 2 == 0 {
                layer.x[i] = T::from_f64(layer.x[i].to_f64() * up);
            }
        }
        // As if eps had been scaled with the data: next to such a variance it is nothing.
        let small = Layer { eps: f64::MIN_POSITIVE, ..ordinary.clone() };
        let (scaled, plain) = (Oracle::batch(&small), Oracle::batch(&ordinary));
        sweep::<T>(|_| {
            let Forward { y, saved } = layer.forward(0);
            let all = layer.backward(Statistics::Batch, &saved, ALL, 0);
            let read = Saved::new(&saved, c);
            let neighbours = ordinary.forward(0);
            for j in 0..c {
                if j % 2 == 0 {
                    assert_eq!(read.var(j), f64::INFINITY, "channel {j}: the variance does not fit");
                } else {
                    assert_eq!(read.var(j), Saved::new(&neighbours.saved, c).var(j));
                }
            }
            // Put together what the oracle of each kind of channel expects.
            for (oracle, parity) in [(&scaled, 0), (&plain, 1)] {
                let other = oracle.layer.forward(0);
                let mut mixed = y.clone();
                let mut gradients = all.clone();
                let replaced = oracle.layer.backward(Statistics::Batch, &other.saved, ALL, 0);
                for i in 0..n * c {
                    if i % c % 2 != parity {
                        mixed[i] = other.y[i];
                        gradients[0][i] = replaced[0][i];
                    } else if parity == 0 {
                        gradients[0][i] = T::from_f64(gradients[0][i].to_f64() * up);
                    }
                }
                for j in 0..c {
                    if j % 2 != parity {
                        gradients[1][j] = replaced[1][j];
                        gradients[2][j] = replaced[2][j];
                    }
                }
                oracle.check_y(&mixed);
                oracle.check_gradients(&mixed, &gradients);
            }
            if variant == 0 {
                // Twice what rstd and x_hat may be off, and the mean of y; in f64 what Welford's recurrence is off by as well.
                for j in (0..c).step_by(2) {
                    let squares: f64 = y.iter().skip(j).step_by(c).map(|y| y.to_f64() * y.to_f64()).sum();
                    let kappa = (1.0 + scaled.moments.mean[j].powi(2) / scaled.moments.var[j]).sqrt();
                    let limit = 64.0 * T::ROUNDOFF + 2.0 * U64 * n as f64 * kappa;
                    near_one(&"variance of y", squares / n as f64, 1.0, || limit);
                }
            }
        });
    }
}

/// Each lane position poisoned in turn: the other channels do not change by a bit.
fn what_is_not_finite_stays_in_its_channel<T: Element>() {
    for (n, c, l) in [
        (40, 1, 1),
        (21, 3, 1),
        (33, 8, 1),
        (18, 16, 1),
        (35, 17, 1),
        (1030, 5, 1),
        (40, 3, 4),
        (34, 5, 17),
        (64, 4, 32),
        (98, 5, 49),
        (20, 3, 2),
        (18, 72, 1),
        (37, 273, 1),
    ] {
        for (turn, bad) in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY].into_iter().enumerate() {
            let clean = Layer::<T>::new(5, n, c, [3, 7, 4][turn]).inner(l);
            sweep::<T>(|_| {
                let expected = clean.forward(0);
                let gradients = clean.backward(Statistics::Batch, &expected.saved, ALL, 0);
                for poisoned in (0..c).filter(|j| c < 50 || j % 11 == 2 || j + 1 == c) {
                    for row in [0, n / 2, n - 1] {
                        let mut layer = clean.clone();
                        layer.x[row * c + poisoned] = T::from_f64(bad);
                        let found = layer.forward(0);
                        let [dx, dgamma, dbeta] = layer.backward(Statistics::Batch, &found.saved, ALL, 0);
                        let check = |what: &str, found: &[T], clean: &[T], own_is_nan: bool| {
                            for i in 0..found.len() {
                                let right = if i % c != poisoned {
                                    found[i].bits() == clean[i].bits()
                                } else {
                                    !own_is_nan || found[i].to_f64().is_nan()
                                };
                                assert!(
                                    right,
                                    "{bad} in channel {poisoned} of {c}, row {row}: {what}[{i}] is {}",
                                    found[i]
                                );
                            }
                        };
                        check("y", &found.y, &expected.y, true);
                        // mean, a, b, rstd and var; the low parts of what is not finite are zero.
                        check("saved", &found.saved, &expected.saved, false);
                        let read = Saved::new(&found.saved, c);
                        assert!(read.mean(poisoned).is_nan() && read.var(poisoned).is_nan());
                        check("dx", &dx, &gradients[0], true);
                        check("dgamma", &dgamma, &gradients[1], true);
                        check("dbeta", &dbeta, &gradients[2], false);
                    }
                }
            });
        }
    }
}

/// What is not finite in the upstream gradient, or in data that are normalised by given statistics: nothing else changes by a bit.
fn what_is_not_finite_goes_no_further<T: Element>() {
    let nan = T::from_f64(f64::NAN);
    for (n, c, l, variant) in [
        (21, 3, 1, 3),
        (35, 17, 1, 7),
        (300, 5, 1, 7),
        (20, 72, 1, 3),
        (40, 3, 4, 7),
        (34, 5, 17, 7),
        (64, 4, 32, 3),
        (66, 4, 33, 7),
    ] {
        let clean = Layer::<T>::new(8, n, c, variant).inner(l);
        let (mean, var) = (vec![T::from_f64(0.2); c], vec![T::from_f64(1.3); c]);
        sweep::<T>(|_| {
            for statistics in [Statistics::Batch, Statistics::Frozen] {
                let forward = |layer: &Layer<T>| match statistics {
                    Statistics::Batch => layer.forward(0),
                    Statistics::Frozen => layer.forward_frozen((&mean, &var), 0),
                };
                let Forward { y, saved } = forward(&clean);
                let wanted = clean.backward(statistics, &saved, ALL, 0);
                for (turn, channel) in (0..c).filter(|j| c < 50 || j % 11 == 2).enumerate() {
                    let at = [0, n / 2, n - 1][turn % 3] * c + channel;
                    let same = |what: &str, found: &[T], wanted: &[T], of: &dyn Fn(usize) -> bool| {
                        for i in (0..found.len()).filter(|&i| !of(i)) {
                            let what = format!("{statistics:?}, NaN in channel {channel} of {c}: {what}[{i}]");
                            assert_eq!(found[i].bits(), wanted[i].bits(), "{what}");
                        }
                    };
                    let own = |i: usize| i % c == channel;
                    let mut layer = clean.clone();
                    layer.dy[at] = nan;
                    let [dx, dgamma, dbeta] = layer.backward(statistics, &saved, ALL, 0);
                    let passes = layer.activation == Activation::Identity || y[at].to_f64() > 0.0;
                    assert_eq!(dx[at].to_f64().is_nan(), passes);
                    assert_eq!((dgamma[channel].to_f64().is_nan(), dbeta[channel].to_f64().is_nan()), (passes, passes));
                    // Given statistics do not depend on x, so that an element's gradient is its own.
                    same("dx", &dx, &wanted[0], &|i| if statistics == Statistics::Batch { own(i) } else { i == at });
                    same("dgamma", &dgamma, &wanted[1], &own);
                    same("dbeta", &dbeta, &wanted[2], &own);
                    if statistics == Statistics::Frozen {
                        let mut layer = clean.clone();
                        layer.x[at] = nan;
                        let found = forward(&layer);
                        assert!(found.y[at].to_f64().is_nan());
                        same("y", &found.y, &y, &|i| i == at);
                        let [dx, dgamma, dbeta] = layer.backward(statistics, &found.saved, ALL, 0);
                        // NaN is not below zero: the gradient passes.
                        let plain = T::from_f64(clean.norm().gamma.map_or(1.0, |gamma| gamma[channel].to_f64()));
                        let is_zero = plain.to_f64() == 0.0 || clean.dy[at].to_f64() == 0.0;
                        assert!(is_zero || dx[at].to_f64() != 0.0, "the gradient of NaN passes");
                        same("dx", &dx, &wanted[0], &|i| i == at);
                        same("dgamma", &dgamma, &wanted[1], &own);
                        same("dbeta", &dbeta, &wanted[2], &own);
                    }
                }
            }
        });
    }
}

/// Data and gradients below the smallest normal number are numbers like others: eps alone is the variance then.
fn subnormal_data_are_computed<T: Element>() {
    let down = 2f64.powi(if T::NAME == "f32" { -140 } else { -1060 });
    for (n, c, l) in [(16, 3, 1), (48, 70, 1), (48, 3, 16), (98, 3, 49), (1100, 5, 1)] {
        let mut layer = Layer::<T>::new(9, n, c, 0).inner(l);
        for i in 0..n * c {
            // Small integers, of which a quarter cancels another.
            layer.x[i] = T::from_f64(down * ((i / c * 5 + i % c) % 8) as f64);
            layer.dy[i] = T::from_f64(down * ((i / c * 3 + i % c) % 4) as f64);
        }
        let mean: Vec<f64> = (0..c).map(|j| wide(&layer.x).iter().skip(j).step_by(c).sum::<f64>() / n as f64).collect();
        let smallest = down / 2f64.powi(if T::NAME == "f32" { 9 } else { 14 });
        sweep::<T>(|_| {
            let Forward { y, saved } = layer.forward(0);
            let [dx, ..] = layer.backward(Statistics::Batch, &saved, ALL, 0);
            let rstd = 1.0 / layer.eps.sqrt();
            let (x, dy) = (wide(&layer.x), wide(&layer.dy));
            let wanted: Vec<f64> = (0..n * c).map(|i| (x[i] - mean[i % c]) * rstd).collect();
            // The mean and every difference from it are multiples of the smallest number, or round to one.
            near("y", &y, &wanted, |i| 8.0 * T::ROUNDOFF * wanted[i].abs() + 2.0 * rstd * smallest);
            let sum = |j: usize| dy.iter().skip(j).step_by(c).sum::<f64>() / n as f64;
            let wanted: Vec<f64> = (0..n * c).map(|i| (dy[i] - sum(i % c)) * rstd).collect();
            near("dx", &dx, &wanted, |i| 8.0 * T::ROUNDOFF * (dy[i] * rstd) + 2.0 * rstd * smallest);
        });
    }
}

in_both_types!(
    squares_that_overflow_are_repaired,
    what_is_not_finite_stays_in_its_channel,
    what_is_not_finite_goes_no_further,
    subnormal_data_are_computed,
);
