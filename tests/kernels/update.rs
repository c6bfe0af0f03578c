//! Optimiser steps.

use crate::golden::pytorch::{ADAM, ADAM_DECAY, SGD_MOMENTUM, SGD_NESTEROV, SGD_PLAIN, STEP_GRADIENTS, STEP_START};
use crate::support::*;
use evenkeel::Rng;
use evenkeel::kernels::update::{self, Adam, Momentum, Sgd};
use evenkeel::reference;
use evenkeel::simd::Element;
use proptest::prelude::*;

/// Around lanes and a block of 8192.
const LENGTHS: [usize; 14] = [0, 1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 33, 8191, 8195];
const STEPS: u64 = 6;

/// A rounding of the kernel, and the same one of the reference.
fn roundoff<T: Element>() -> f64 {
    T::ROUNDOFF + U64
}

/// What a moment becomes when it is stored.
fn flushed<T: Element>(x: f64) -> f64 {
    if x.abs() <= T::LARGEST_SUBNORMAL.to_f64() { 0.0 } else { x }
}

const SGDS: [Sgd; 5] = {
    let plain = Sgd { lr: 0.1, momentum: 0.0, form: Momentum::Classical, weight_decay: 0.0, step: 1 };
    [
        plain,
        Sgd { weight_decay: 0.01, ..plain },
        Sgd { momentum: 0.9, ..plain },
        Sgd { momentum: 0.9, weight_decay: 0.01, ..plain },
        Sgd { momentum: 0.9, form: Momentum::Nesterov, weight_decay: 0.01, ..plain },
    ]
};

fn reference_sgd(sgd: &Sgd) -> reference::update::Sgd {
    let momentum = match (sgd.momentum, sgd.form) {
        (0.0, _) => reference::update::Momentum::None,
        (factor, Momentum::Classical) => reference::update::Momentum::Classical(factor),
        (factor, Momentum::Nesterov) => reference::update::Momentum::Nesterov(factor),
    };
    reference::update::Sgd { lr: sgd.lr, momentum, weight_decay: sgd.weight_decay }
}

/// Each step is judged by itself: the reference starts from what the kernel has, so errors do not add up.
fn check_sgd<T: Element>(settings: Sgd, n: usize, offset: usize, seed: u64) {
    let u = roundoff::<T>();
    let mut rng = Rng::new(seed, "sgd");
    let mut p = Guarded::<T>::new(&normals(&mut rng, n), offset);
    // The first step does not read the buffer.
    let mut buffer = Guarded::new(&vec![T::from_f64(f64::NAN); n], (offset + 3) % 16);
    for step in 1..=STEPS {
        let settings = Sgd { step, ..settings };
        let g = Guarded::<T>::new(&normals(&mut rng, n), (offset + 8) % 16);
        let (before, before_b) = (wide(p.get()), wide(buffer.get()));
        let (mut wanted, mut velocity) = (before.clone(), before_b.clone());
        if step == 1 {
            velocity.fill(0.0);
        }
        let old_velocity = velocity.clone();
        reference::update::sgd(&reference_sgd(&settings), &mut wanted, &wide(g.get()), &mut velocity);
        update::sgd(&settings, p.get_mut(), g.get(), buffer.get_mut());
        p.check("sgd p");
        buffer.check("sgd buffer");

        // Each scalar is rounded, each product (where it is not fused) and each sum.
        let (decay, momentum) = (settings.weight_decay, settings.momentum);
        let gradient = |i: usize| (decay * before[i]).abs() + g.get()[i].to_f64().abs();
        let of_velocity = |i: usize| 3.0 * u * (momentum * old_velocity[i]).abs() + 4.0 * u * gradient(i);
        if momentum == 0.0 {
            assert!(buffer.get().iter().all(|b| b.to_f64().is_nan()), "a buffer that is not used");
        } else {
            let velocity: Vec<f64> = velocity.iter().map(|&v| flushed::<T>(v)).collect();
            near(&format!("{settings:?}: buffer"), buffer.get(), &velocity, |i| of_velocity(i) + u * velocity[i].abs());
        }
        near(&format!("{settings:?}: p"), p.get(), &wanted, |i| {
            let direction = gradient(i) + if momentum == 0.0 { 0.0 } else { velocity[i].abs() };
            let own = if momentum == 0.0 { 4.0 * u * gradient(i) } else { of_velocity(i) + 4.0 * u * direction };
            settings.lr * (own + 3.0 * u * direction) + u * wanted[i].abs()
        });
    }
}

fn sgd_agrees_with_the_reference<T: Element>() {
    for (turn, settings) in SGDS.into_iter().enumerate() {
        for n in LENGTHS {
            sweep::<T>(|_| check_sgd::<T>(settings, n, (n + turn) % 16, n as u64));
        }
    }
}

const ADAMS: [Adam; 3] = {
    let plain = Adam { lr: 0.01, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0, step: 1 };
    [plain, Adam { weight_decay: 0.1, ..plain }, Adam { beta1: 0.5, beta2: 0.75, eps: 1.0, lr: 0.25, ..plain }]
};

fn reference_adam(adam: &Adam) -> reference::update::Adam {
    let Adam { lr, beta1, beta2, eps, weight_decay, .. } = *adam;
    reference::update::Adam { lr, beta1, beta2, eps, weight_decay }
}

/// As [`check_sgd`].
fn check_adam<T: Element>(settings: Adam, n: usize, offset: usize, seed: u64) {
    let u = roundoff::<T>();
    let mut rng = Rng::new(seed, "adam");
    let mut p = Guarded::<T>::new(&normals(&mut rng, n), offset);
    let mut m = Guarded::new(&vec![T::ZERO; n], (offset + 3) % 16);
    let mut v = Guarded::new(&vec![T::ZERO; n], (offset + 5) % 16);
    for step in 1..=STEPS {
        let settings = Adam { step, ..settings };
        let Adam { lr, beta1, beta2, eps, weight_decay, .. } = settings;
        let g = Guarded::<T>::new(&normals(&mut rng, n), (offset + 8) % 16);
        let (before, old_m, old_v) = (wide(p.get()), wide(m.get()), wide(v.get()));
        let (mut wanted, mut new_m, mut new_v) = (before.clone(), old_m.clone(), old_v.clone());
        let dw = wide(g.get());
        reference::update::adam(&reference_adam(&settings), step, &mut wanted, &dw, &mut new_m, &mut new_v);
        update::adam(&settings, p.get_mut(), g.get(), m.get_mut(), v.get_mut());
        for (guarded, name) in [(&p, "p"), (&m, "m"), (&v, "v")] {
            guarded.check(&format!("adam {name}"));
        }

        // g' = g + weight_decay p: the factor, the product, the sum.
        let sum = |i: usize| (dw[i] + weight_decay * before[i]).abs();
        let of_g = |i: usize| u * sum(i) + 2.0 * u * (weight_decay * before[i]).abs();
        // m: of g', then the difference, the factor and its product; the sum.
        let of_m = |i: usize| (1.0 - beta1) * (of_g(i) + 3.0 * u * (sum(i) + old_m[i].abs())) + u * new_m[i].abs();
        // v: of g' twice, its square, the factor, the product; beta2 and its product; the sum.
        let of_v = |i: usize| {
            let square = 2.0 * sum(i) * of_g(i) + 3.0 * u * sum(i) * sum(i);
            (1.0 - beta2) * square + 2.0 * u * beta2 * old_v[i] + u * new_v[i]
        };
        let what = format!("{settings:?}");
        near(&format!("{what}: m"), m.get(), &new_m, |i| of_m(i) + 4.0 * U64 * new_m[i].abs());
        near(&format!("{what}: v"), v.get(), &new_v, |i| of_v(i) + 4.0 * U64 * new_v[i]);
        // p: size m / denominator. The root halves v's relative error and rounds; its factor, the product (where
        // not fused), eps and the sum; the quotient; the size and the product; the last sum. What the reference
        // and the kernel find for 1 - beta^t differs by a few f64 roundings over that difference.
        let (of_size, of_correction) =
            ((1.0 - beta1.powf(step as f64)).recip(), (1.0 - beta2.powf(step as f64)).recip());
        near(&format!("{what}: p"), p.get(), &wanted, |i| {
            let root = (new_v[i] * of_correction).sqrt();
            let denominator = root + eps;
            let of_denominator = if root == 0.0 { 0.0 } else { of_v(i) / (2.0 * new_v[i]) } + 5.0 * u;
            let size = lr * of_size;
            size * of_m(i) / denominator
                + size * new_m[i].abs() / denominator
                    * (of_denominator + 3.0 * u + 16.0 * U64 * (of_size + of_correction))
                + u * wanted[i].abs()
        });
    }
}

fn adam_agrees_with_the_reference<T: Element>() {
    for (turn, settings) in ADAMS.into_iter().enumerate() {
        for n in LENGTHS {
            sweep::<T>(|_| check_adam::<T>(settings, n, (n + turn) % 16, n as u64));
        }
    }
}

/// Gradients that stop: moments decay, and are zero before they would be subnormal. Both signs.
fn moments_are_never_subnormal<T: Element>() {
    let smallest = T::from_f64(if T::NAME == "f32" { f64::from(f32::MIN_POSITIVE) } else { f64::MIN_POSITIVE });
    let starts: Vec<T> = (0..37).map(|i| T::from_f64(f64::from(i % 6 - 3)) * smallest).collect();
    let is_clean = |x: &T| x.to_f64() == 0.0 || x.to_f64().abs() > T::LARGEST_SUBNORMAL.to_f64();
    sweep::<T>(|_| {
        let zeros = vec![T::ZERO; 37];
        let (mut p, mut m, mut v) = (vec![T::ONE; 37], starts.clone(), starts.clone());
        for x in &mut v {
            *x = T::from_f64(x.to_f64().abs());
        }
        let mut buffer = starts.clone();
        let mut vanished = false;
        for step in 2..40 {
            update::adam(&Adam { beta2: 0.9, step, ..ADAMS[0] }, &mut p, &zeros, &mut m, &mut v);
            update::sgd(&Sgd { step, ..SGDS[2] }, &mut p, &zeros, &mut buffer);
            for (name, moments) in [("m", &m), ("v", &v), ("buffer", &buffer)] {
                let subnormal = moments.iter().position(|x| !is_clean(x));
                assert_eq!(subnormal, None, "{name} in step {step}: {moments:?}");
            }
            vanished |= m[0].to_f64() == 0.0;
        }
        assert!(vanished && [&m, &v, &buffer].iter().all(|x| x.iter().all(|x| x.to_f64() == 0.0)));
        // A subnormal parameter is a number like any other.
        let mut p = [T::LARGEST_SUBNORMAL; 3];
        update::sgd(&SGDS[0], &mut p, &[T::ZERO; 3], &mut []);
        assert!(p.iter().all(|x| x.bits() == T::LARGEST_SUBNORMAL.bits()));
    });
}

/// PyTorch's parameters after each of three steps. Inputs of order 1 are rounded to the type; a step makes some 16 roundings
/// of numbers up to 4 (gradients and velocities), of which a tenth (the learning rate) reaches the parameter in SGD. Adam's
/// step is lr m/sqrt(v), whose relative error is that of the gradient, at most 30 u after weight decay.
fn golden_values_are_met<T: Element>() {
    let limit = 3.0 * 16.0 * T::ROUNDOFF;
    for (settings, wanted) in [(SGDS[0], SGD_PLAIN), (SGDS[3], SGD_MOMENTUM), (SGDS[4], SGD_NESTEROV)] {
        sweep::<T>(|_| {
            let (mut p, mut buffer) = (narrow::<T>(&STEP_START), vec![T::ZERO; 4]);
            for (step, (g, wanted)) in (1..).zip(STEP_GRADIENTS.chunks(4).zip(wanted.chunks(4))) {
                update::sgd(&Sgd { step, ..settings }, &mut p, &narrow::<T>(g), &mut buffer);
                near(&format!("{settings:?}, step {step}"), &p, wanted, |_| limit);
            }
        });
    }
    for (settings, wanted) in [(ADAMS[0], ADAM), (ADAMS[1], ADAM_DECAY)] {
        sweep::<T>(|_| {
            let (mut p, mut m, mut v) = (narrow::<T>(&STEP_START), vec![T::ZERO; 4], vec![T::ZERO; 4]);
            for (step, (g, wanted)) in (1..).zip(STEP_GRADIENTS.chunks(4).zip(wanted.chunks(4))) {
                update::adam(&Adam { step, ..settings }, &mut p, &narrow::<T>(g), &mut m, &mut v);
                near(&format!("{settings:?}, step {step}"), &p, wanted, |_| limit);
            }
        });
    }
}

fn threads_and_fused_sets_give_the_same_bits<T: Element>() {
    let n = 40_001;
    let mut rng = Rng::new(9, "update");
    let (start, mut g): (Vec<T>, Vec<T>) = (normals(&mut rng, n), normals(&mut rng, n));
    // Second moments that are zero in whole vectors, subnormal before they are flushed, and far above the others.
    g[..200].fill(T::ZERO);
    for i in 0..40 {
        g[300 + 16 * i] = T::from_f64(10f64.powf(i as f64 - 20.0));
    }
    same_bits_everywhere::<T>(|| {
        let (mut p, mut q) = (start.clone(), start.clone());
        let [mut m, mut v, mut b] = [(); 3].map(|()| vec![T::ZERO; n]);
        for step in 1..4 {
            // The first step is without weight decay, which would lift small gradients.
            update::adam(&Adam { step, ..ADAMS[usize::from(step > 1)] }, &mut p, &g, &mut m, &mut v);
            update::sgd(&Sgd { step, ..SGDS[4] }, &mut q, &g, &mut b);
        }
        [p, m, v, q, b].iter().flat_map(|x| bits(x)).collect()
    });
}

in_both_types!(
    sgd_agrees_with_the_reference,
    adam_agrees_with_the_reference,
    moments_are_never_subnormal,
    golden_values_are_met,
    threads_and_fused_sets_give_the_same_bits,
);

proptest! {
    #![proptest_config(cases(40, file!()))]

    #[test]
    fn any_settings_agree_with_the_reference(
        n in prop_oneof![0..200usize, 8180..8210usize],
        offset in 0..16usize,
        (lr, weight_decay) in (1e-4..1.0, prop_oneof![Just(0.0), 1e-6..0.1]),
        (momentum, is_nesterov) in (prop_oneof![Just(0.0), 0.1..0.99], any::<bool>()),
        (beta1, beta2, eps) in (0.0..0.99, 0.5..0.9999, 1e-9..1.0),
        seed: u64,
    ) {
        let form = if is_nesterov { Momentum::Nesterov } else { Momentum::Classical };
        let sgd = Sgd { lr, momentum, form, weight_decay, step: 1 };
        let adam = Adam { lr, beta1, beta2, eps, weight_decay, step: 1 };
        sweep::<f32>(|_| check_sgd::<f32>(sgd, n, offset, seed));
        sweep::<f64>(|_| check_sgd::<f64>(sgd, n, offset, seed));
        sweep::<f32>(|_| check_adam::<f32>(adam, n, offset, seed));
        sweep::<f64>(|_| check_adam::<f64>(adam, n, offset, seed));
    }
}
