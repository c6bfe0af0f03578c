//! Cases small enough to check by hand, and what no caller sees: that the way memory is gone over changes no bit.

use super::shape::{Planes, Reach};
use super::*;
use crate::rng::Rng;
use crate::simd::with_isa;
use crate::tensor::Tensor;

#[test]
fn two_rows_by_hand() {
    // Channel 0: 1, 3: mean 2, var 1. Channel 1: constant, so y = beta.
    let norm = BatchNorm {
        channels: 2,
        inner: 1,
        gamma: Some(&[2.0, 7.0]),
        beta: Some(&[1.0, 0.3]),
        eps: 3.0,
        activation: Activation::Identity,
    };
    let mut y = [0.0f64; 4];
    let mut saved = vec![0.0; saved_len(2)];
    let mut scratch = vec![0.0; scratch_len::<f64>(2, 2, 1)];
    forward(&norm, &[1.0, 5.5, 3.0, 5.5], &mut y, &mut saved, &mut scratch).unwrap();
    assert_eq!(y, [0.0, 0.3, 2.0, 0.3]);
    let (mut mean, mut var) = ([0.0; 2], [1.0; 2]);
    update_running(&saved, None, 2, 0.5, (&mut mean, &mut var));
    assert_eq!((mean, var), ([1.0, 2.75], [1.5, 0.5]));
}

/// All passes as if tensors were `reach` away.
fn results<T: Element>(size: (usize, usize, usize), reach: Reach, offset: usize, activation: Activation) -> Vec<u64> {
    let (n, c, l) = size;
    let mut walk = (Shape { n, c, l }).walk::<T>();
    match &mut walk {
        Walk::Rows(grid) => grid.reach = reach,
        Walk::Planes(planes) => planes.reach = reach,
    }
    results_of::<T>(size, walk, offset, activation)
}

/// All passes: all that they write, the tensors from element `offset` on.
fn results_of<T: Element>(size: (usize, usize, usize), walk: Walk, offset: usize, activation: Activation) -> Vec<u64> {
    let (n, c, l) = size;
    let (shape, len) = (Shape { n, c, l }, n * c * l);
    let mut rng = Rng::new(3, "reach");
    let mut draw = |len: usize| (0..len).map(|_| T::from_f64(rng.normal())).collect::<Vec<T>>();
    let (x, dy, gamma, beta) = (draw(len), draw(len), draw(c), draw(c));
    let norm = BatchNorm { channels: c, inner: l, gamma: Some(&gamma), beta: Some(&beta), eps: 1e-5, activation };
    let (mut saved, mut scratch) = (vec![T::ZERO; saved_len(c)], vec![T::ZERO; scratch_len::<T>(n, c, l)]);
    let (saved, scratch) = (&mut saved[..], &mut scratch[..]);
    let mut rooms = [(); 4].map(|()| Tensor::<T>::zeros([len + 2 * offset]).unwrap());
    let [y, frozen, apart, over] = rooms.each_mut().map(|room| &mut room.data_mut()[offset..][..len]);
    Pass::Forward { norm, shape, x: &x, y, saved: &mut *saved, scratch: &mut *scratch }.run(walk);
    Pass::Frozen { norm, shape, x: Some(&x), y: frozen, saved: &*saved, scratch: &mut *scratch }.run(walk);
    let (mut dgamma, mut dbeta) = (vec![T::ZERO; c], vec![T::ZERO; c]);
    over.copy_from_slice(&dy);
    let statistics = Statistics::Batch;
    for (flow, parameters) in [
        (Flow::Apart { dy: &dy, dx: Some(apart) }, (Some(&mut dgamma[..]), Some(&mut dbeta[..]))),
        (Flow::InPlace(over), (None, None)),
    ] {
        let (saved, scratch) = (&*saved, &mut *scratch);
        Pass::Backward { norm, shape, statistics, x: &x, flow, saved, parameters, scratch }.run(walk);
    }
    let [y, frozen, apart, over] = rooms.each_ref().map(Tensor::data);
    assert!(y == frozen && apart == over, "{size:?} {walk:?}: by what was saved, and in place");
    assert!(rooms.iter().all(|room| {
        let data = room.data();
        data[..offset].iter().chain(&data[offset + len..]).all(|&gap| gap == T::ZERO)
    }));
    [y, apart, saved, &dgamma, &dbeta].into_iter().flatten().map(|x| x.to_f64().to_bits()).collect()
}

fn how_memory_is_gone_over<T: Element>() {
    // Narrow and wide rows, rows that begin at different places of a line, joined images and what is left behind them; planes longer
    // and shorter than what is asked for ahead.
    let sizes =
        [(300, 64, 1), (39, 272, 1), (50, 37, 1), (40, 300, 1), (523, 6, 1), (1029, 5, 3), (3, 5, 700), (9, 4, 49)];
    let short = [(9, 70, 32), (33, 50, 5), (40, 7, 49), (262, 20, 1)];
    for size in sizes.into_iter().chain(short) {
        for activation in [Activation::Identity, Activation::Relu] {
            for offset in [0, 1, 4, 13] {
                for isa in Isa::available() {
                    let found = |reach| with_isa(isa, || results::<T>(size, reach, offset, activation));
                    let near = found(Reach::Near);
                    assert!(found(Reach::Far) == near, "{size:?}, far, offset {offset}, {isa}");
                    assert!(found(Reach::Past) == near, "{size:?}, past the caches, offset {offset}, {isa}");
                }
            }
        }
    }
}

#[test]
fn how_memory_is_gone_over_changes_no_bit() {
    how_memory_is_gone_over::<f32>();
    how_memory_is_gone_over::<f64>();
}

fn how_channels_are_gathered<T: Element>() {
    for (n, c, l) in [(9, 70, 32), (9, 7, 49), (130, 3, 33), (3, 5, 700), (2, 3, 9000)] {
        let Walk::Planes(planes) = (Shape { n, c, l }).walk::<T>() else { panic!("{n} x {c} x {l} is not by planes") };
        for isa in Isa::available() {
            let found = |channels| {
                let walk = Walk::Planes(Planes { channels, ..planes });
                with_isa(isa, || results_of::<T>((n, c, l), walk, 0, Activation::Relu))
            };
            let one = found(1);
            for channels in [2, 3, planes.channels, c] {
                assert!(found(channels) == one, "{n} x {c} x {l}: {channels} channels at a time, {isa}");
            }
        }
    }
}

/// Parts are whole steps, which may leave a single value for the last.
#[test]
fn a_part_of_one_value() {
    let l = (1 << 21) + 1;
    let norm =
        BatchNorm { channels: 1, inner: l, gamma: None, beta: None, eps: 1e-5, activation: Activation::Identity };
    let mut x = vec![0.25f32; l];
    let (mut y, mut saved, mut scratch) =
        (vec![1.0f32; l], vec![0.0; saved_len(1)], vec![0.0; scratch_len::<f32>(1, 1, l)]);
    forward(&norm, &x, &mut y, &mut saved, &mut scratch).unwrap();
    assert!(Saved::new(&saved, 1).var(0) == 0.0 && y.iter().all(|&y| y == 0.0));
    x[l - 1] = 2.25;
    forward(&norm, &x, &mut y, &mut saved, &mut scratch).unwrap();
    let (m, found) = (l as f64, Saved::new(&saved, 1));
    assert!((found.mean(0) - 0.25 - 2.0 / m).abs() < 1e-12);
    assert!((found.var(0) - 4.0 / m * (1.0 - 1.0 / m)).abs() < 1e-12);
}

#[test]
fn how_channels_are_gathered_changes_no_bit() {
    how_channels_are_gathered::<f32>();
    how_channels_are_gathered::<f64>();
}

/// Columns of a row, which are a channel's own where no images are joined.
#[test]
fn images_are_joined_where_rows_are_many() {
    let cols = |n, c, l| match (Shape { n, c, l }).walk::<f32>() {
        Walk::Rows(grid) => grid.cols,
        Walk::Planes(_) => panic!("{n} x {c} x {l} is by planes"),
    };
    for (n, c, l, joined) in [(256, 1, 1, 16), (256, 20, 1, 4), (1024, 21, 1, 16), (128, 56, 1, 2), (1024, 5, 3, 16)] {
        assert_eq!(cols(n, c, l), joined * c * l, "{n} x {c} x {l}");
        assert_eq!(cols(n - 1, c, l), c * l, "{n} x {c} x {l}, one image less");
    }
    // A row fills whole vectors as it is, or is wide.
    assert_eq!((cols(1 << 20, 32, 1), cols(1 << 20, 65, 1)), (32, 65));
}

#[test]
fn scratch_for_some_images_suffices_for_fewer() {
    for (c, l) in [(10, 1), (21, 1), (6, 8), (1, 1), (5, 3), (64, 1), (3, 16), (2, 300), (300, 49), (70, 3)] {
        let needed = |n| scratch_len::<f32>(n, c, l);
        assert!((0..5000).all(|n| needed(n) <= needed(n + 1)), "{c} channels of {l} values");
    }
}

#[test]
fn one_row_and_bad_eps_are_refused_before_anything_is_written() {
    let mut norm =
        BatchNorm { channels: 1, inner: 1, gamma: None, beta: None, eps: 1e-5, activation: Activation::Identity };
    let (mut y, mut saved, mut scratch) = ([7.0f32; 1], [7.0; 8], vec![0.0; scratch_len::<f32>(1, 1, 1)]);
    assert!(matches!(
        forward(&norm, &[1.0], &mut y, &mut saved, &mut scratch),
        Err(Error::OneValuePerChannel { channels: 1 })
    ));
    norm.eps = f64::NAN;
    assert!(forward(&norm, &[1.0], &mut y, &mut saved, &mut scratch).is_err());
    norm.eps = 0.0;
    assert!(forward_frozen(&norm, &[1.0], (&[0.0], &[0.0]), &mut y, &mut saved, &mut scratch).is_err());
    assert!(y[0] == 7.0 && saved == [7.0; 8]);
}
