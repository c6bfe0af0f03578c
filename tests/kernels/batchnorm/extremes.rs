//! Data too large for their squares, and data that are not finite.

use super::layer::{ALL, Forward, Layer};
use super::oracle::Oracle;
use crate::support::*;
use evenkeel::kernels::batchnorm::{Saved, Statistics};
use evenkeel::simd::Element;

/// Data whose squares overflow: judged through data scaled down by a power of two, which changes no digit of y.
fn squares_that_overflow_are_repaired<T: Element>() {
    let exponent = if T::NAME == "f32" { 100 } else { 997 };
    let up = 2f64.powi(exponent);
    for (n, c, variant, l) in
        [(40, 5, 3, 1), (33, 17, 7, 1), (1500, 3, 0, 1), (100, 5, 3, 25), (1500, 3, 0, 300), (40, 3, 0, 5)]
    {
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
                // Twice what rstd and x_hat may be off, and the mean of y.
                for j in (0..c).step_by(2) {
                    let squares: f64 = y.iter().skip(j).step_by(c).map(|y| y.to_f64() * y.to_f64()).sum();
                    near_one(&"variance of y", squares / n as f64, 1.0, || 64.0 * T::ROUNDOFF);
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
        (20, 3, 2),
    ] {
        for (turn, bad) in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY].into_iter().enumerate() {
            let clean = Layer::<T>::new(5, n, c, [3, 7, 4][turn]).inner(l);
            sweep::<T>(|_| {
                let expected = clean.forward(0);
                let gradients = clean.backward(Statistics::Batch, &expected.saved, ALL, 0);
                for poisoned in 0..c {
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

in_both_types!(squares_that_overflow_are_repaired, what_is_not_finite_stays_in_its_channel,);
