//! What is refused, and batches without values.

use super::layer::{ALL, BEFORE, Forward, Layer};
use crate::support::*;
use evenkeel::Error;
use evenkeel::kernels::batchnorm::{self, BatchNorm, Gradients, Statistics};
use evenkeel::simd::Element;
use std::panic::{AssertUnwindSafe, catch_unwind};

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

/// Each length but one right: a panic that says which, before anything is written.
fn lengths_that_disagree_are_refused<T: Element>() {
    let layer = Layer::<T>::new(1, 6, 4, 3);
    let lengths = [24, 24, batchnorm::saved_len(4), batchnorm::scratch_len::<T>(6, 4, 1), 4, 4];
    let names = ["counterpart", "counterpart", "saved for 4 channels", "of scratch", "gamma has not", "beta has not"];
    let forward = |lengths: [usize; 6], (channels, inner): (usize, usize)| {
        let [mut y, mut saved, mut scratch] =
            [lengths[1], lengths[2], lengths[3]].map(|len| Guarded::<T>::unwritten(len, 0));
        let parameter = [T::ONE; 5];
        let (gamma, beta) = (Some(&parameter[..lengths[4]]), Some(&parameter[..lengths[5]]));
        let norm = BatchNorm { channels, inner, gamma, beta, ..layer.norm() };
        let x = vec![T::ONE; lengths[0]];
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            batchnorm::forward(&norm, &x, y.get_mut(), saved.get_mut(), scratch.get_mut()).unwrap();
        }));
        let cause = outcome.err()?;
        for (part, name) in [(&y, "y"), (&saved, "saved"), (&scratch, "scratch")] {
            part.check_unwritten(name);
        }
        Some(message(&*cause).to_owned())
    };
    assert_eq!(forward(lengths, (4, 1)), None);
    for (part, name) in names.into_iter().enumerate() {
        let mut wrong = lengths;
        wrong[part] -= 1;
        let text = forward(wrong, (4, 1)).expect(name);
        assert!(text.contains(name), "{text}");
    }
    let text = forward([22, 22, lengths[2], lengths[3], 4, 4], (4, 1)).unwrap();
    assert!(text.contains("in images of 4 x 1"), "{text}");
    let text = forward(lengths, (4, usize::MAX / 2)).unwrap();
    assert!(text.contains("4 channels of"), "{text}");
    assert_eq!(batchnorm::scratch_len::<T>(usize::MAX / 2, 4, 1), usize::MAX);

    let saved = layer.forward(0).saved;
    for (part, name) in ["dx has not", "a parameter gradient", "a parameter gradient"].into_iter().enumerate() {
        let mut lengths = [24, 4, 4];
        lengths[part] -= 1;
        let mut parts = lengths.map(|len| Guarded::<T>::unwritten(len, 0));
        let mut scratch = layer.scratch();
        let [dx, dgamma, dbeta] = parts.each_mut().map(|part| Some(part.get_mut()));
        let gradients = Gradients { dx, dgamma, dbeta };
        let (norm, scratch) = (layer.norm(), scratch.get_mut());
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            batchnorm::backward(&norm, Statistics::Batch, &layer.x, &layer.dy, &saved, gradients, scratch);
        }));
        let cause = outcome.expect_err(name);
        assert!(message(&*cause).contains(name), "{}", message(&*cause));
        parts.iter().for_each(|part| part.check_unwritten("gradients"));
    }
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
            batchnorm::update_running(&saved, None, 0, 0.1, (&mut mean, &mut var));
            assert!(mean.iter().chain(&var).all(|s| s.to_f64() == 1.0));
            assert!(layer.forward_frozen((&mean, &var), 2).y.is_empty());
        });
    }
}

in_both_types!(refusals_come_before_any_write, lengths_that_disagree_are_refused, empty_batches_do_nothing);
