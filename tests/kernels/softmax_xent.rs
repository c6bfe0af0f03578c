//! Softmax and cross-entropy.

use crate::golden::pytorch::{XENT_GRADIENT, XENT_LABELS, XENT_LOGITS, XENT_LOSS};
use crate::support::*;
use evenkeel::kernels::softmax_xent::{forward, forward_backward};
use evenkeel::reference;
use evenkeel::simd::{Element, with_isa};
use evenkeel::{Rng, Threads};
use proptest::prelude::*;

fn run<T: Element>(logits: &[T], labels: &[u8], offset: usize) -> (f64, Vec<T>) {
    let logits = Guarded::new(logits, offset);
    let mut gradient = Guarded::unwritten(logits.get().len(), (offset + 7) % 16);
    let loss = forward_backward(logits.get(), labels, gradient.get_mut()).unwrap();
    gradient.check("cross-entropy gradient");
    assert_eq!(forward(logits.get(), labels).unwrap().to_bits(), loss.to_bits(), "with the gradient and without");
    (loss, gradient.get().to_vec())
}

fn check<T: Element>(logits: &[T], labels: &[u8], c: usize, offset: usize) {
    let z = wide(logits);
    let n = labels.len();
    let loss = reference::softmax_xent::loss(&z, labels, c);
    let gradient = reference::softmax_xent::gradient(&z, labels, c);
    let u = T::ROUNDOFF;
    // An exponential: 2 u stated for f32, to which a portable reduction without fusion adds one; 4 u in f64, whose polynomial
    // is longer. Below the smallest normal number it may be zero.
    let exp = if T::NAME == "f32" { 3.0 * u } else { 5.0 * u };
    let tiny = if T::NAME == "f32" { f64::from(f32::MIN_POSITIVE) } else { f64::MIN_POSITIVE };
    let additions = c.div_ceil(64 / size_of::<T>()) as f64 + 4.0;
    // By row: the largest logit, the sum, and the relative error of that sum. z - max rounds, which moves e^(z - max) by as
    // much relative to itself; the sum of exponentials is at least 1.
    let rows: Vec<(f64, f64, f64)> = z
        .chunks(c.max(1))
        .map(|row| {
            let top = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let terms = row.iter().filter(|z| z.is_finite()).map(|z| ((z - top).exp(), (z - top).abs()));
            let sum: f64 = terms.clone().map(|(e, _)| e).sum();
            let of_arguments: f64 = terms.map(|(e, distance)| e * distance).sum::<f64>() * u / sum;
            (top, sum, exp + of_arguments + additions * u + c as f64 * tiny)
        })
        .collect();
    let limit: f64 = rows
        .iter()
        .zip(labels)
        .enumerate()
        .map(|(i, ((top, sum, relative), &label))| {
            // ln turns a relative error into an absolute one; then f64.
            let distance = (top - z[i * c + usize::from(label)]).abs();
            relative + 4.0 * U64 * (1.0 + sum.ln().abs() + distance)
        })
        .sum::<f64>()
        / n.max(1) as f64
        + (n as f64 + 4.0) * U64 * loss.abs();
    sweep::<T>(|_| {
        let (found, dlogits) = run(logits, labels, offset);
        near_one(&format_args!("loss of {n}x{c}"), found, loss, || limit);
        near(&format!("gradient of {n}x{c}"), &dlogits, &gradient, |i| {
            let (top, sum, of_sum) = rows[i / c];
            let share = 1.0 / n as f64;
            let distance = if z[i].is_finite() { top - z[i] } else { 0.0 };
            let p = (z[i] - top).exp() / sum * share;
            // The exponential, its argument, the sum, and two roundings of the product; 1/n and the last difference.
            let of_label = if usize::from(labels[i / c]) == i % c { u * share } else { 0.0 };
            p * (exp + u * distance + of_sum + 2.0 * u + 8.0 * U64)
                + of_label
                + u * gradient[i].abs()
                + 4.0 * U64 * share
                + 2.0 * tiny
        });
    });
}

fn batch<T: Element>(seed: u64, n: usize, c: usize, spread: f64) -> (Vec<T>, Vec<u8>) {
    let mut rng = Rng::new(seed, "xent");
    let logits = (0..n * c).map(|_| T::from_f64(spread * rng.normal())).collect();
    #[expect(clippy::cast_possible_truncation, reason = "labels are below 256")]
    let labels = (0..n).map(|_| rng.index(c.min(256)) as u8).collect();
    (logits, labels)
}

fn loss_and_gradient_agree_with_the_reference<T: Element>() {
    for n in [0, 1, 2, 33] {
        for c in [1, 2, 3, 4, 5, 7, 8, 9, 10, 15, 16, 17, 31, 32, 33, 64, 65, 100, 257] {
            for spread in [1.0, 30.0] {
                let (logits, labels) = batch::<T>((n * 512 + c) as u64, n, c, spread);
                check(&logits, &labels, c, (n + c) % 16);
            }
        }
    }
    for offset in 0..16 {
        let (logits, labels) = batch::<T>(5, 7, 19, 3.0);
        check(&logits, &labels, 19, offset);
    }
}

/// Logits of 1e4 either way, whose exponentials neither overflow nor lose the small differences.
fn large_logits_are_stable<T: Element>() {
    for at in [1e4, -1e4] {
        for c in [2, 5, 17, 65] {
            let (mut logits, labels) = batch::<T>(c as u64, 6, c, 1.0);
            for z in &mut logits {
                *z = T::from_f64(z.to_f64() + at);
            }
            check(&logits, &labels, c, 0);
            for (i, z) in logits.iter_mut().enumerate() {
                *z = T::from_f64(if i % c == 1 { at } else { -at } + (i % 7) as f64);
            }
            check(&logits, &labels, c, 0);
        }
    }
    // Exponentials on both sides of the smallest normal number.
    let logits: Vec<T> =
        [0.0, -87.0, -87.5, -88.0, -100.0, -104.0, -700.0, -708.0, -709.0, -745.0].map(T::from_f64).into();
    for label in 0..10 {
        check(&logits, &[label], 10, 0);
    }
}

/// Minus infinity rules a class out, at every position; as the label it makes the loss infinite and the gradient finite.
fn classes_can_be_ruled_out<T: Element>() {
    for c in [2, 9, 33] {
        for out in 0..c {
            let (mut logits, _) = batch::<T>(c as u64, 1, c, 1.0);
            logits[out] = T::from_f64(f64::NEG_INFINITY);
            #[expect(clippy::cast_possible_truncation, reason = "at most 33 classes")]
            for label in [out as u8, ((out + 1) % c) as u8] {
                check(&logits, &[label], c, 0);
            }
        }
    }
}

fn one_class_costs_nothing<T: Element>() {
    let (logits, labels) = batch::<T>(1, 5, 1, 100.0);
    sweep::<T>(|_| {
        let (loss, gradient) = run(&logits, &labels, 0);
        assert!(loss == 0.0 && gradient.iter().all(|g| g.to_f64() == 0.0), "{loss}, {gradient:?}");
    });
}

fn golden_values_are_met<T: Element>() {
    let labels = XENT_LABELS.map(|label| u8::try_from(label).unwrap());
    let largest = XENT_LOGITS.iter().fold(0.0f64, |best, z| best.max(z.abs()));
    sweep::<T>(|_| {
        let (loss, gradient) = run(&narrow::<T>(&XENT_LOGITS), &labels, 0);
        // Logits are rounded to the type, and so is their distance from the largest; exponentials, sum and quotient add some.
        let limit = (4.0 * largest + 16.0) * T::ROUNDOFF;
        near_one(&"loss", loss, XENT_LOSS, || limit);
        near("gradient", &gradient, &XENT_GRADIENT, |_| limit);
    });
}

fn threads_and_fused_sets_give_the_same_bits<T: Element>() {
    let (logits, labels) = batch::<T>(4, 64, 37, 5.0);
    let result = |offset| {
        let (loss, gradient) = run(&logits, &labels, offset);
        [vec![loss.to_bits()], bits(&gradient)].concat()
    };
    // One thread does all of it, whatever the budget: there is nothing to migrate.
    let mut fused = None;
    sweep::<T>(|isa| {
        let found = result(0);
        for offset in 1..16 {
            assert_same_bits("another offset", &result(offset), &found);
        }
        let threads = Threads::new(4).unwrap().fork_from(0);
        assert_same_bits("4 threads and 1", &threads.run(|| with_isa(isa, || result(0))), &found);
        if isa.is_fused() {
            assert_same_bits("this set and the first", &found, fused.get_or_insert_with(|| found.clone()));
        }
    });
}

in_both_types!(
    loss_and_gradient_agree_with_the_reference,
    large_logits_are_stable,
    classes_can_be_ruled_out,
    one_class_costs_nothing,
    golden_values_are_met,
    threads_and_fused_sets_give_the_same_bits,
);

proptest! {
    #![proptest_config(cases(150, file!()))]

    #[test]
    fn any_batch_agrees_with_the_reference(
        n in 0..20usize,
        c in 1..130usize,
        spread in prop::sample::select(vec![0.0, 0.1, 3.0, 50.0, 1e4]),
        offset in 0..16usize,
        seed: u64,
    ) {
        let (logits, labels) = batch::<f32>(seed, n, c, spread);
        check(&logits, &labels, c, offset);
        let (logits, labels) = batch::<f64>(seed, n, c, spread);
        check(&logits, &labels, c, offset);
    }
}
