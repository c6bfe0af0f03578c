//! What is refused, and batches without values.

use super::layer::{ALL, BEFORE, Forward, Layer};
use crate::support::*;
use evenkeel::Error;
use evenkeel::kernels::batchnorm::{self, Statistics};
use evenkeel::simd::Element;

fn refusals_come_before_any_write<T: Element>() {
    sweep::<T>(|_| {
        let refused = |layer: &Layer<T>, wanted: &str| {
            let mut y = Guarded::unwritten(layer.x.len(), 0);
            let mut saved = Guarded::unwritten(batchnorm::saved_len(layer.c), 0);
            let mut scratch = Guarded::unwritten(batchnorm::scratch_len::<T>(layer.n / layer.l, layer.c, layer.l), 0);
            let result = batchnorm::forward(&layer.norm(), &layer.x, y.get_mut(), saved.get_mut(), scratch.get_mut());
            let text = result.unwrap_err().to_string();
            assert!(text.contains(wanted), "{text}");
            y.check_unwritten("y");
            saved.check_unwritten("saved");
            scratch.check_unwritten("scratch");
        };
        refused(&Layer::new(1, 1, 4, 7), "over 4 channels cannot take statistics from one value per channel");
        for eps in [0.0, -0.0, -1e-5, f64::NAN, f64::INFINITY] {
            refused(&Layer { eps, ..Layer::new(1, 6, 4, 7) }, "eps is");
        }

        let refused = |eps: f64, mean: &[T], var: &[T], wanted: &str| {
            let layer = Layer::<T> { eps, ..Layer::new(1, 6, 4, 7) };
            let mut y = Guarded::unwritten(layer.x.len(), 0);
            let mut saved = Guarded::unwritten(batchnorm::saved_len(4), 0);
            let (norm, mut scratch) = (layer.norm(), layer.scratch());
            let (y_data, scratch) = (y.get_mut(), scratch.get_mut());
            let result = batchnorm::forward_frozen(&norm, &layer.x, (mean, var), y_data, saved.get_mut(), scratch);
            match result {
                Ok(()) => assert!(wanted.is_empty(), "eps {eps}, var {var:?}: not refused"),
                Err(e) => {
                    assert!(!wanted.is_empty() && e.to_string().contains(wanted), "{e}");
                    y.check_unwritten("y");
                    saved.check_unwritten("saved");
                }
            }
        };
        let ones = [T::ONE; 4];
        let with_last = |last: f64| [T::ONE, T::ONE, T::ONE, T::from_f64(last)];
        for eps in [-1e-5, f64::NAN, f64::INFINITY] {
            refused(eps, &ones, &ones, "eps is");
        }
        refused(0.0, &ones, &ones, "");
        refused(0.0, &ones, &with_last(0.0), "running variance + eps of channel 3");
        refused(1e-5, &ones, &with_last(-1.0), "running variance + eps of channel 3");
        refused(1e-5, &ones, &with_last(0.0), "");
    });
    let one = Layer::<T>::new(1, 1, 4, 0);
    let (mut y, mut saved) = ([T::ZERO; 4], vec![T::ZERO; 32]);
    let mut scratch = vec![T::ZERO; batchnorm::scratch_len::<T>(1, 4, 1)];
    let result = batchnorm::forward(&one.norm(), &one.x, &mut y, &mut saved, &mut scratch);
    assert!(matches!(result, Err(Error::OneValuePerChannel { channels: 4 })));
}

/// No rows: nothing but zeroed statistics. No channels: nothing at all.
fn empty_batches_do_nothing<T: Element>() {
    for (n, c, l) in [(0, 4, 1), (0, 0, 1), (5, 0, 1), (0, 4, 20), (60, 0, 20)] {
        let layer = Layer::<T>::new(1, n, c, 3).inner(l);
        sweep::<T>(|_| {
            let Forward { y, saved } = layer.forward(1);
            assert!(y.is_empty() && saved.iter().all(|s| s.to_f64() == 0.0));
            for statistics in [Statistics::Batch, Statistics::Frozen] {
                let [_, dgamma, dbeta] = layer.backward(statistics, &saved, ALL, 1);
                assert!(dgamma.iter().chain(&dbeta).all(|g| g.to_f64() == BEFORE));
            }
            let (mut mean, mut var) = (vec![T::ONE; c], vec![T::ONE; c]);
            batchnorm::update_running(&saved, 0, 0.1, &mut mean, &mut var);
            assert!(mean.iter().chain(&var).all(|s| s.to_f64() == 1.0));
            assert!(layer.forward_frozen((&mean, &var), 2).y.is_empty());
        });
    }
}

in_both_types!(refusals_come_before_any_write, empty_batches_do_nothing,);
