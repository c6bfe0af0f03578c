//! Mean and variance of data on which they are lost, and running statistics.

use super::layer::{Forward, Layer};
use super::oracle::{Limits, Oracle, limits};
use crate::support::*;
use evenkeel::Rng;
use evenkeel::kernels::batchnorm::{self, Saved};
use evenkeel::reference;
use evenkeel::reference::batchnorm::Moments;
use evenkeel::simd::Element;

/// The kinds of data on which variances are lost: name, mean and spread (for the message), and the value of row i.
type Kind = (&'static str, fn(usize, usize, &mut Rng) -> f64);
const KINDS: [Kind; 7] = [
    ("N(0, 1)", |_, _, rng| rng.normal()),
    ("N(100, 0.01^2)", |_, _, rng| 100.0 + 0.01 * rng.normal()),
    ("N(1e4, 1)", |_, _, rng| 1e4 + rng.normal()),
    ("N(1e6, 1)", |_, _, rng| 1e6 + rng.normal()),
    ("first value 0, rest N(100, 0.01^2)", |i, _, rng| if i == 0 { 0.0 } else { 100.0 + 0.01 * rng.normal() }),
    ("slow ramp 1..1.01", |i, n, _| 1.0 + 0.01 * i as f64 / n as f64),
    ("constant 1e7 + 3", |_, _, _| 1e7 + 3.0),
];

/// Some channels of each kind.
fn hard_statistics<T: Element>((n, copies): (usize, usize), l: usize) -> Layer<T> {
    let mut rng = Rng::new(7, "statistics");
    let c = copies * KINDS.len();
    let mut layer = Layer::<T>::new(1, 2, c, 2);
    layer.x = (0..n * c).map(|i| T::from_f64(KINDS[i % 7].1(i / c, n, &mut rng))).collect();
    layer.n = n;
    layer.inner(l)
}

fn statistics_survive_a_large_mean_in<T: Element>(
    (n, copies): (usize, usize),
    l: usize,
    var_limit: impl Fn(Limits, f64) -> f64,
) {
    let layer = hard_statistics::<T>((n, copies), l);
    let wanted = reference::batchnorm::moments(&wide(&layer.x), layer.c);
    sweep::<T>(|isa| {
        let Forward { y, saved } = layer.forward(0);
        let saved = Saved::new(&saved, layer.c);
        println!("{} on {isa}, n = {n}, {l} side by side: relative error of var, error of mean in sigma", T::NAME);
        for (j, (name, _)) in KINDS.iter().cycle().take(layer.c).enumerate() {
            let (mean, var) = (wanted.mean[j], wanted.var[j]);
            if var == 0.0 {
                assert_eq!((saved.mean(j), saved.var(j)), (mean, 0.0), "{name}");
                let beta = layer.beta.as_ref().unwrap()[j].bits();
                assert!(y.iter().skip(j).step_by(layer.c).all(|y| y.bits() == beta), "{name}: y is beta");
                println!("  {name:36} exact");
                continue;
            }
            let (var_error, mean_error) = ((saved.var(j) - var).abs() / var, (saved.mean(j) - mean).abs() / var.sqrt());
            println!("  {name:36} {var_error:8.1e} {mean_error:8.1e}");
            let limits = limits::<T>(&wanted, j, layer.eps);
            let limit = var_limit(limits, var);
            assert!(var_error <= limit, "{name}: var off by {var_error:.1e} of it, allowed {limit:.1e}");
            assert!(mean_error <= limits.mean / var.sqrt(), "{name}: mean off by {mean_error:.1e} sigma");
        }
    });
}

/// In f32 over a million rows: better than the bound, which a single chain of additions would miss by orders of magnitude.
#[test]
fn statistics_of_a_million_rows_in_f32() {
    for l in [1, 8, 256, 1 << 14] {
        statistics_survive_a_large_mean_in::<f32>((1 << 20, 1), l, |_, _| 1e-6);
    }
    // Rows too wide to be joined.
    statistics_survive_a_large_mean_in::<f32>((1 << 15, 10), 1, |_, _| 1e-6);
}

fn statistics_survive_a_large_mean<T: Element>() {
    for (n, l) in [(100, 1), (1000, 1), (5000, 1), (100_000, 1), (100, 10), (100, 50), (1000, 1000), (90_000, 30_000)] {
        statistics_survive_a_large_mean_in::<T>((n, 1), l, |limits, var| limits.var / var);
    }
    statistics_survive_a_large_mean_in::<T>((3000, 10), 1, |limits, var| limits.var / var);
}

/// An outlier in front of fewer rows than a tile, and so a shift far from all others: the mean of what is left rounds, and has to be
/// corrected.
fn an_outlier_in_front_of_a_short_batch<T: Element>() {
    for n in [3, 7, 11, 13, 15] {
        let mut layer = Layer::<T>::new(n as u64, n, 400, 0);
        let mut rng = Rng::new(n as u64, "outlier");
        for (i, x) in layer.x.iter_mut().enumerate() {
            *x = T::from_f64(if i < 400 { 0.0 } else { rng.range(100.0, 110.0) });
        }
        let oracle = Oracle::batch(&layer);
        sweep::<T>(|_| oracle.check_statistics(&layer.forward(0).saved));
    }
}

/// The values that make the shift far from all others of their leaf, as no mean of some of them would be.
fn a_step_behind_the_first_values<T: Element>() {
    for (n, c, l, before) in
        [(1024, 70, 1, 16), (4096, 3, 1, 256), (8192, 3, 8192, 16), (8000, 3, 400, 16), (20_000, 2, 50, 16)]
    {
        let mut layer = Layer::<T>::new(4, n, c, 0).inner(l);
        let mut rng = Rng::new(n as u64, "step");
        for (i, x) in layer.x.iter_mut().enumerate() {
            *x = T::from_f64(if i < before * c { 0.0 } else { rng.range(100.0, 100.1) });
        }
        let oracle = Oracle::batch(&layer);
        sweep::<T>(|_| oracle.check_statistics(&layer.forward(0).saved));
    }
}

/// Squares that are all equal round alike, so that a sum in a long chain is off by as many roundings as it has terms.
fn equal_squares_are_summed_in_short_chains<T: Element>() {
    for (n, c, l) in [(1024, 70, 1), (8192, 40, 1), (8192, 40, 8192), (8160, 40, 17), (8160, 40, 20)] {
        let mut layer = Layer::<T>::new(5, n, c, 0).inner(l);
        let mut rng = Rng::new(n as u64, "equal squares");
        let spread: Vec<f64> = (0..c).map(|_| rng.range(1.0, 2.0)).collect();
        for (i, x) in layer.x.iter_mut().enumerate() {
            let d = spread[i % c];
            *x = T::from_f64(if i / c % 2 == 0 { d } else { -d });
        }
        let oracle = Oracle::batch(&layer);
        sweep::<T>(|_| oracle.check_statistics(&layer.forward(0).saved));
    }
}

/// Three batches, with PyTorch's default momentum, the cumulative average, and momenta beyond what makes sense.
fn running_statistics_agree_with_the_reference<T: Element>() {
    let c = 19;
    for momentum in [Some(0.1), None, Some(0.0), Some(1.0), Some(-1.2)] {
        sweep::<T>(|_| {
            let (mut mean, mut var) = (vec![T::ZERO; c], vec![T::ONE; c]);
            for (seen, n) in (1..).zip([40, 2, 1025]) {
                let saved = Layer::<T>::new(seen, n, c, 0).forward(0).saved;
                // The reference starts each step from what the kernel has, and from the batch's moments as saved.
                let read = Saved::new(&saved, c);
                let moments = |f: &dyn Fn(usize) -> f64| (0..c).map(f).collect::<Vec<f64>>();
                let batch = Moments { mean: moments(&|j| read.mean(j)), var: moments(&|j| read.var(j)) };
                let before = Moments { mean: wide(&mean), var: wide(&var) };
                let mut wanted = before.clone();
                reference::batchnorm::update_running(&mut wanted, momentum, seen, &batch, n);
                let weight = momentum.unwrap_or(1.0 / seen as f64);
                batchnorm::update_running(&saved, None, n, weight, (&mut mean, &mut var));
                // One rounding to the type; in f64 a few on each of the two terms.
                let limit = |wanted: f64, old: f64, new: f64| {
                    T::ROUNDOFF * wanted.abs()
                        + 4.0 * U64 * ((1.0 - weight) * old).abs()
                        + 8.0 * U64 * (weight * new).abs()
                };
                near("running mean", &mean, &wanted.mean, |j| limit(wanted.mean[j], before.mean[j], batch.mean[j]));
                near("running var", &var, &wanted.var, |j| limit(wanted.var[j], before.var[j], 2.0 * batch.var[j]));
            }
        });
    }
}

in_both_types!(
    statistics_survive_a_large_mean,
    an_outlier_in_front_of_a_short_batch,
    a_step_behind_the_first_values,
    equal_squares_are_summed_in_short_chains,
    running_statistics_agree_with_the_reference,
);
