//! Column sums.

use crate::support::*;
use evenkeel::Rng;
use evenkeel::kernels::reduce::{column_sums, scratch_len};
use evenkeel::reference;
use evenkeel::simd::Element;
use proptest::prelude::*;

/// Roundings that one value can meet before f64 takes over. With all 64 tiles of a leaf: 4 in the tile's tree and 63 additions of
/// tiles; with 63 tiles and 15 rows more: 4 + 62 + 15.
const ROUNDINGS: f64 = 81.0;

fn sums<T: Element>(x: &[T], start: &[T], offset: usize) -> Vec<T> {
    let c = start.len();
    let n = x.len().checked_div(c).unwrap_or(0);
    let x = Guarded::new(x, offset);
    let mut out = Guarded::new(start, (offset + 3) % 16);
    let mut scratch = Guarded::new(&vec![T::from_f64(f64::NAN); scratch_len(n, c)], 1);
    column_sums(x.get(), out.get_mut(), scratch.get_mut());
    scratch.check("column sums: scratch");
    out.check("column sums");
    out.get().to_vec()
}

/// Compares with the reference, for sums that start anywhere.
fn check<T: Element>(n: usize, c: usize, x: &[T], offset: usize) {
    let start: Vec<T> = normals(&mut Rng::new(5, "reduce"), c);
    let (wide_x, magnitudes): (Vec<f64>, Vec<f64>) = x.iter().map(|x| (x.to_f64(), x.to_f64().abs())).unzip();
    let wanted: Vec<f64> =
        reference::reduce::column_sums(&wide_x, n, c).iter().zip(&start).map(|(s, t)| s + t.to_f64()).collect();
    let magnitudes = reference::reduce::column_sums(&magnitudes, n, c);
    sweep::<T>(|_| {
        // The bound, the rounding of the result, and in f64 those of the leaves' sum, of the start's, and of `wanted`.
        let leaves = n.div_ceil(1024) as f64;
        near(&format!("{n}x{c} sums"), &sums(x, &start, offset), &wanted, |j| {
            ROUNDINGS * T::ROUNDOFF * magnitudes[j]
                + T::ROUNDOFF * wanted[j].abs()
                + (leaves + 3.0) * U64 * (magnitudes[j] + start[j].to_f64().abs())
        });
    });
}

fn sums_agree_with_the_reference<T: Element>() {
    for n in [0, 1, 2, 15, 16, 17, 31, 100, 1008, 1023, 1024, 1025, 1040, 2049] {
        for c in [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 33] {
            check::<T>(n, c, &normals(&mut Rng::new(n as u64, "reduce"), n * c), (n + c) % 16);
        }
    }
    check::<T>(0, 0, &[], 0);
}

/// One value, and around it others that are lost one by one: just under half a unit in its last place. The sum misses
/// nearly one `u` for each addition, so that the error is as large as the number of roundings allows.
fn the_bound_is_not_exceeded_where_every_addition_rounds<T: Element>() {
    for n in [1024, 1023, 1008, 15] {
        let lost = T::from_f64(T::ROUNDOFF * 0.99);
        for first in [0, n - 1] {
            let mut x = vec![lost; n];
            x[first] = T::ONE;
            check::<T>(n, 1, &x, 0);
        }
        // A single value is lost only if it is not part of a larger tile sum.
        let mut x = vec![T::ZERO; n];
        (x[0], x[1], x[2], x[4], x[8.min(n - 1)]) = (T::ONE, lost, lost, lost, lost);
        for i in (16..n).step_by(16) {
            x[i] = lost;
        }
        x[n / 16 * 16..].fill(lost);
        check::<T>(n, 1, &x, 0);
    }
}

fn whole_numbers_are_exact<T: Element>() {
    let (n, c) = (3001, 5);
    let mut rng = Rng::new(8, "reduce");
    let x: Vec<T> = (0..n * c).map(|_| T::from_f64(rng.index(201) as f64 - 100.0)).collect();
    let wanted = reference::reduce::column_sums(&wide(&x), n, c);
    sweep::<T>(|_| near("sums", &sums(&x, &vec![T::ZERO; c], 0), &wanted, |_| 0.0));
}

fn threads_and_sets_give_the_same_bits<T: Element>() {
    let x: Vec<T> = normals(&mut Rng::new(2, "reduce"), 5000 * 19);
    same_bits_everywhere::<T>(|| bits(&sums(&x, &[T::ONE; 19], 0)));
    // There is no product to fuse: the portable lanes give the same bits, too.
    let mut first = None;
    sweep::<T>(|_| {
        let found = bits(&sums(&x, &[T::ONE; 19], 0));
        assert_same_bits("this set and the first", &found, first.get_or_insert_with(|| found.clone()));
        for offset in 1..16 {
            assert_same_bits("another offset", &bits(&sums(&x, &[T::ONE; 19], offset)), &found);
        }
    });
}

in_both_types!(
    sums_agree_with_the_reference,
    the_bound_is_not_exceeded_where_every_addition_rounds,
    whole_numbers_are_exact,
    threads_and_sets_give_the_same_bits,
);

proptest! {
    #![proptest_config(cases(60, file!()))]

    #[test]
    fn any_sums_agree_with_the_reference(n in 0..1100usize, c in 1..40usize, offset in 0..16usize, seed: u64) {
        check::<f32>(n, c, &normals(&mut Rng::new(seed, "reduce"), n * c), offset);
        check::<f64>(n, c, &normals(&mut Rng::new(seed, "reduce"), n * c), offset);
    }
}
