//! Rectified linear unit: exact, so every comparison is of bits.

use crate::support::*;
use evenkeel::Rng;
use evenkeel::kernels::relu;
use evenkeel::reference;
use evenkeel::simd::Element;
use proptest::prelude::*;

/// Around lanes, a block of 8192, and two of them.
const LENGTHS: [usize; 20] = [0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 64, 127, 8191, 8192, 8193, 16_421];

/// Normals with every kind of special value among them.
fn values<T: Element>(rng: &mut Rng, n: usize) -> Vec<T> {
    let specials = [0.0, -0.0, f64::NAN, f64::INFINITY, f64::NEG_INFINITY];
    let subnormal = T::LARGEST_SUBNORMAL;
    (0..n)
        .map(|_| match rng.index(16) {
            i @ 0..5 => T::from_f64(specials[i]),
            5 => subnormal,
            6 => -subnormal,
            _ => T::from_f64(rng.normal()),
        })
        .collect()
}

fn check<T: Element>(n: usize, offset: usize, seed: u64) {
    let mut rng = Rng::new(seed, "relu");
    let (x, dy) = (values::<T>(&mut rng, n), values::<T>(&mut rng, n));
    let y = narrow::<T>(&reference::relu::forward(&wide(&x)));
    let dx = narrow::<T>(&reference::relu::backward(&wide(&x), &wide(&dy)));
    let (x, dy) = (Guarded::new(&x, offset), Guarded::new(&dy, (offset + 5) % 16));
    let mut out = Guarded::unwritten(n, 15 - offset);
    relu::forward(x.get(), out.get_mut());
    assert_same_bits(&format!("{n} elements, y and reference"), &comparable(out.get()), &comparable(&y));
    relu::backward(x.get(), dy.get(), out.get_mut());
    assert_same_bits(&format!("{n} elements, dx and reference"), &comparable(out.get()), &comparable(&dx));
    out.get_mut().copy_from_slice(dy.get());
    relu::backward_in_place(x.get(), out.get_mut());
    assert_same_bits(&format!("{n} elements, dx in place and reference"), &comparable(out.get()), &comparable(&dx));
    out.check("relu");
}

fn both_directions_are_exact<T: Element>() {
    for (seed, n) in (0..).zip(LENGTHS) {
        sweep::<T>(|_| {
            for offset in if n < 100 { 0..16 } else { 3..4 } {
                check::<T>(n, offset, seed);
            }
        });
    }
}

fn threads_give_the_same_bits<T: Element>() {
    let mut rng = Rng::new(9, "relu");
    let (x, dy) = (values::<T>(&mut rng, 50_001), values::<T>(&mut rng, 50_001));
    same_bits_everywhere::<T>(|| {
        let (mut y, mut dx) = (vec![T::ONE; x.len()], vec![T::ONE; x.len()]);
        relu::forward(&x, &mut y);
        relu::backward(&x, &dy, &mut dx);
        [comparable(&y), comparable(&dx)].concat()
    });
}

in_both_types!(both_directions_are_exact, threads_give_the_same_bits);

proptest! {
    #![proptest_config(cases(60, file!()))]

    #[test]
    fn any_length_is_exact(n in prop_oneof![0..300usize, 8100..8300usize], offset in 0..16usize, seed: u64) {
        sweep::<f32>(|_| check::<f32>(n, offset, seed));
        sweep::<f64>(|_| check::<f64>(n, offset, seed));
    }
}
