//! Every pass over every size, offset and layout; the same bits wherever data lie and however many threads there are.

use super::layer::{Layer, everything};
use super::oracle::agree;
use crate::support::*;
use evenkeel::simd::{Element, with_isa};
use proptest::prelude::*;

/// Around lanes.
const CHANNELS: [usize; 15] = [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 19, 31, 32, 33];
/// Around tiles of 16, tasks of 128 and leaves of 1024 rows.
const ROWS: [usize; 22] =
    [2, 3, 4, 5, 7, 9, 15, 16, 17, 18, 31, 32, 33, 39, 127, 129, 1023, 1024, 1025, 1040, 2048, 2100];

fn every_pass_agrees_with_the_reference<T: Element>() {
    for (i, n) in ROWS.into_iter().enumerate() {
        for (j, c) in CHANNELS.into_iter().enumerate() {
            // Many rows with few channels and with a few sizes more.
            if n > 200 && j % 4 != i % 4 {
                continue;
            }
            agree(&Layer::<T>::new((n * 64 + c) as u64, n, c, i + 3 * j), (i + j) % 16);
        }
    }
    for variant in 0..16 {
        agree(&Layer::<T>::new(variant as u64, 50, 9, variant), variant);
        agree(&Layer::<T>::new(variant as u64, 1100, 3, variant), variant);
        agree(&Layer::<T>::new(variant as u64, 50, 9, variant).inner(25), variant);
    }
    // Rows that are not joined, narrow and wide: from 1 KiB on a few of them are read at once.
    for (i, (n, c)) in [(50, 64), (21, 70), (1030, 129), (39, 272), (150, 300), (17, 515)].into_iter().enumerate() {
        agree(&Layer::<T>::new(c as u64, n, c, 3 * i + 1), i);
    }
}

/// Images, channels and values of a plane: such as are walked by rows, and at and around where they no longer are; one off the multiples of a
/// group of lanes, longer than a leaf; one image and many.
const PLANES: [(usize, usize, usize); 29] = [
    (20, 16, 2),
    (9, 7, 3),
    (40, 3, 5),
    (300, 2, 4),
    (3, 90, 4),
    (16, 2, 15),
    (2, 3, 15),
    (2, 3, 16),
    (3, 5, 17),
    (1, 4, 31),
    (2, 2, 32),
    (1, 4, 33),
    (5, 6, 49),
    (2, 1, 100),
    (70, 3, 16),
    (2, 2, 511),
    (2, 2, 784),
    (37, 2, 784),
    (1, 3, 1024),
    (1, 2, 8191),
    (1, 1, 8192),
    (2, 2, 8193),
    (3, 1, 9000),
    (1, 1, 20_000),
    (9, 300, 32),
    (8, 37, 49),
    (1100, 3, 20),
    (40, 70, 7),
    (17, 5, 127),
];

fn every_pass_agrees_with_the_reference_over_planes<T: Element>() {
    for (i, (images, c, l)) in PLANES.into_iter().enumerate() {
        agree(&Layer::<T>::new((i * 64 + c) as u64, images * l, c, 7 * i + 3).inner(l), i % 16);
    }
}

fn threads_and_fused_sets_give_the_same_bits<T: Element>() {
    for (n, c, variant, l) in [
        (3000, 19, 7, 1),
        (1100, 33, 3, 1),
        (2049, 1, 6, 1),
        (3000, 5, 7, 60),
        (2000, 6, 3, 8),
        (320, 300, 7, 32),
        (20_000, 2, 7, 10_000),
        (2100, 70, 7, 1),
    ] {
        let layer = Layer::<T>::new(11, n, c, variant).inner(l);
        same_bits_everywhere::<T>(|| everything(&layer, 0));
    }
}

fn offsets_do_not_change_bits<T: Element>() {
    for (n, c, l) in [(35, 21, 1), (70, 3, 35), (70, 6, 7), (160, 5, 32), (20, 72, 1), (1100, 5, 1), (262, 20, 1)] {
        let layer = Layer::<T>::new(12, n, c, 7).inner(l);
        sweep::<T>(|_| {
            let aligned = everything(&layer, 0);
            for offset in 1..16 {
                assert_same_bits(&format!("offset {offset} and none"), &everything(&layer, offset), &aligned);
            }
        });
    }
}

/// Nothing is shared between calls: some at once give what one gives.
fn calls_at_once_do_not_meet<T: Element>() {
    let layers: Vec<_> = [1, 3, 20, 50].map(|l| Layer::<T>::new(l as u64, 300, 9, 7).inner(l)).into();
    sweep::<T>(|isa| {
        let alone: Vec<_> = layers.iter().map(|layer| everything(layer, 0)).collect();
        std::thread::scope(|scope| {
            let at_once =
                |layer| scope.spawn(move || with_isa(isa, || (0..8).map(|_| everything(layer, 0)).collect::<Vec<_>>()));
            let running: Vec<_> = layers.iter().map(at_once).collect();
            for (thread, wanted) in running.into_iter().zip(&alone) {
                for found in thread.join().unwrap() {
                    assert_same_bits("several calls and one", &found, wanted);
                }
            }
        });
    });
}

in_both_types!(
    every_pass_agrees_with_the_reference,
    every_pass_agrees_with_the_reference_over_planes,
    threads_and_fused_sets_give_the_same_bits,
    offsets_do_not_change_bits,
    calls_at_once_do_not_meet,
);

proptest! {
    #![proptest_config(cases(80, file!()))]

    #[test]
    fn any_layer_agrees_with_the_reference(
        n in prop_oneof![2..40usize, prop::sample::select(ROWS.to_vec())],
        c in 1..40usize,
        variant in 0..16usize,
        offset in 0..16usize,
        seed: u64,
    ) {
        agree(&Layer::<f32>::new(seed, n, c, variant), offset);
        agree(&Layer::<f64>::new(seed, n, c, variant), offset);
    }

    #[test]
    fn any_layer_of_planes_agrees_with_the_reference(
        images in 1..12usize,
        c in 1..12usize,
        l in prop_oneof![2..70usize, 70..700usize],
        variant in 0..16usize,
        offset in 0..16usize,
        seed: u64,
    ) {
        agree(&Layer::<f32>::new(seed, images * l, c, variant).inner(l), offset);
        agree(&Layer::<f64>::new(seed, images * l, c, variant).inner(l), offset);
    }
}
