//! Mean squared error and its gradient.

use crate::golden::pytorch::{MSE_GRADIENT, MSE_LOSS, MSE_T, MSE_Y};
use crate::support::*;
use evenkeel::Rng;
use evenkeel::kernels::mse::forward_backward;
use evenkeel::reference;
use evenkeel::simd::Element;
use proptest::prelude::*;

/// Elements that are summed in the element type.
const BLOCK: usize = 8192;

fn run<T: Element>(y: &[T], target: &[T], offset: usize) -> (f64, Vec<T>) {
    let (y, target) = (Guarded::new(y, offset), Guarded::new(target, (offset + 6) % 16));
    let mut dy = Guarded::unwritten(y.get().len(), (offset + 11) % 16);
    let loss = forward_backward(y.get(), target.get(), dy.get_mut());
    dy.check("mse dy");
    (loss, dy.get().to_vec())
}

fn check<T: Element>(y: &[T], target: &[T], offset: usize) {
    let (wide_y, wide_t) = (wide(y), wide(target));
    let (loss, gradient) = (reference::mse::loss(&wide_y, &wide_t), reference::mse::gradient(&wide_y, &wide_t));
    let u = T::ROUNDOFF;
    // All terms are positive, so errors are relative: the chain of additions that the kernel states, the rounded difference
    // twice in its square, and a product that is not fused; in f64 the blocks' sum, the quotient and the reference's.
    let group = 64 / size_of::<T>();
    let roundings = y.len().min(BLOCK).div_ceil(group) as f64 + 5.0 + 2.0 + 1.0;
    let blocks = y.len().div_ceil(BLOCK) as f64;
    sweep::<T>(|_| {
        let (found, dy) = run(y, target, offset);
        let what = format!("loss of {} elements", y.len());
        near_one(&what, found, loss, || (roundings * u + (blocks + 4.0) * U64) * loss);
        // The difference, the factor 2 / count and their product.
        near("dy", &dy, &gradient, |i| (3.0 * u + 4.0 * U64) * gradient[i].abs());
    });
}

fn pair<T: Element>(seed: u64, n: usize) -> [Vec<T>; 2] {
    let mut rng = Rng::new(seed, "mse");
    [normals(&mut rng, n), normals(&mut rng, n)]
}

fn loss_and_gradient_agree_with_the_reference<T: Element>() {
    for n in [0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 1000, 8191, 8192, 8193, 20_011] {
        for offset in if n < 40 { 0..16 } else { 5..6 } {
            let [y, target] = pair::<T>(n as u64, n);
            check(&y, &target, offset);
        }
    }
}

/// One difference of 1, and others whose squares are just under half a unit in its last place: a chain loses each of them.
fn the_bound_holds_where_every_addition_rounds<T: Element>() {
    let mut y = vec![T::from_f64((0.99 * T::ROUNDOFF).sqrt()); BLOCK];
    y[0] = T::ONE;
    check(&y, &[T::ZERO; BLOCK], 0);
}

fn whole_numbers_are_exact<T: Element>() {
    let mut rng = Rng::new(1, "mse");
    let mut draw = || (0..16_384).map(|_| T::from_f64(rng.index(17) as f64 - 8.0)).collect::<Vec<T>>();
    let (y, target) = (draw(), draw());
    // A power of two: the quotients are exact, too.
    let loss = reference::mse::loss(&wide(&y), &wide(&target));
    let gradient = reference::mse::gradient(&wide(&y), &wide(&target));
    sweep::<T>(|_| {
        let (found, dy) = run(&y, &target, 0);
        assert_eq!(found, loss);
        near("dy", &dy, &gradient, |_| 0.0);
    });
}

fn golden_values_are_met<T: Element>() {
    sweep::<T>(|_| {
        let (loss, dy) = run(&narrow::<T>(&MSE_Y), &narrow::<T>(&MSE_T), 0);
        // Inputs up to 1.2 are rounded to the type: differences are off by 2.4 u, squares of up to 1.5 by 8 u, and some more.
        near_one(&"loss", loss, MSE_LOSS, || 16.0 * T::ROUNDOFF);
        near("dy", &dy, &MSE_GRADIENT, |_| 4.0 * T::ROUNDOFF);
    });
}

fn threads_and_fused_sets_give_the_same_bits<T: Element>() {
    let [y, target] = pair::<T>(4, 20_011);
    let aligned = |offset| {
        let (loss, dy) = run(&y, &target, offset);
        [vec![loss.to_bits()], bits(&dy)].concat()
    };
    // One thread does all of it, whatever the budget: there is nothing to migrate.
    let mut fused = None;
    sweep::<T>(|isa| {
        let found = aligned(0);
        for offset in 1..16 {
            assert_same_bits("another offset", &aligned(offset), &found);
        }
        let threads = evenkeel::Threads::new(4).unwrap().fork_from(0);
        let shared = threads.run(|| evenkeel::simd::with_isa(isa, || aligned(0)));
        assert_same_bits("4 threads and 1", &shared, &found);
        if isa.is_fused() {
            assert_same_bits("this set and the first", &found, fused.get_or_insert_with(|| found.clone()));
        }
    });
}

in_both_types!(
    loss_and_gradient_agree_with_the_reference,
    the_bound_holds_where_every_addition_rounds,
    whole_numbers_are_exact,
    golden_values_are_met,
    threads_and_fused_sets_give_the_same_bits,
);

proptest! {
    #![proptest_config(cases(100, file!()))]

    #[test]
    fn any_pair_agrees_with_the_reference(n in prop_oneof![0..100usize, 0..10_000usize], offset in 0..16usize, seed: u64) {
        let [y, target] = pair::<f32>(seed, n);
        check(&y, &target, offset);
        let [y, target] = pair::<f64>(seed, n);
        check(&y, &target, offset);
    }
}
