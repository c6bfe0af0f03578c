//! Kernels on slices: lengths that disagree panic, values are refused by an error, and what is not finite
//! goes as far as the formula takes it.

use crate::support::*;
use crate::table::Kind::*;
use crate::table::*;
use evenkeel::kernels::update::{Adam, Momentum, Sgd, adam, sgd};
use evenkeel::kernels::{mse, reduce, relu, softmax_xent};
use evenkeel::simd::Element;
use evenkeel::{Result, Rng};

impl<T: Element, const N: usize> Written for [Guarded<T>; N] {
    fn numbers(&mut self) -> Vec<u64> {
        self.iter().for_each(|part| part.check("an output"));
        self.iter().flat_map(|part| bits(part.get())).collect()
    }
}

/// A call that panics or succeeds.
pub(crate) fn call<T: Element, const N: usize>(
    outputs: &mut [Guarded<T>; N],
    f: impl FnOnce([&mut [T]; N]),
) -> Result<()> {
    attempt(outputs, |outputs| {
        f(outputs.each_mut().map(Guarded::get_mut));
        Ok(())
    })
}

/// Outputs of these lengths, unwritten.
pub(crate) fn unwritten<T: Element, const N: usize>(lengths: [usize; N]) -> [Guarded<T>; N] {
    lengths.map(|len| Guarded::unwritten(len, 0))
}

/// NaN where `own` says so, and elsewhere the bits of `clean`.
#[track_caller]
pub(crate) fn nan_only<T: Element>(what: &str, found: &[T], clean: &[T], own: impl Fn(usize) -> bool) {
    assert_eq!(found.len(), clean.len(), "{what}: length");
    for (i, (x, clean)) in found.iter().zip(clean).enumerate() {
        let right = if own(i) { x.to_f64().is_nan() } else { x.bits() == clean.bits() };
        assert!(right, "{what}[{i}] is {x}, without NaN {clean}");
    }
}

/// Results from slices that start `offset` elements after an allocation are the same bits for every offset.
#[track_caller]
pub(crate) fn same_at_every_offset(results: impl Fn(usize) -> Vec<u64>) {
    let aligned = results(0);
    for offset in 1..=16 {
        assert_same_bits(&format!("offset {offset} and none"), &results(offset), &aligned);
    }
}

/// The largest number of the type.
pub(crate) fn largest<T: Element>() -> T {
    T::from_f64(if T::NAME == "f32" { f64::from(f32::MAX) } else { f64::MAX })
}

pub(crate) fn drawn<T: Element>(seed: u64, len: usize) -> Vec<T> {
    normals(&mut Rng::new(seed, "hostile"), len)
}

/// `clean` with another number at `place`.
pub(crate) fn with<T: Element>(clean: &[T], place: usize, value: f64) -> Vec<T> {
    let mut x = clean.to_vec();
    x[place] = T::from_f64(value);
    x
}

const NAN: f64 = f64::NAN;
const INFINITY: f64 = f64::INFINITY;

// ---- Element by element.

pub(crate) fn elementwise<T: Element>() -> Vec<Entry> {
    let tiny = T::LARGEST_SUBNORMAL;
    let forward = |x: &[T], offset: usize| {
        let mut y = Guarded::unwritten(x.len(), offset);
        relu::forward(Guarded::new(x, offset).get(), y.get_mut());
        y.check("y");
        y.get().to_vec()
    };
    let backward = |x: &[T], dy: &[T], offset: usize| {
        let (x, dy, mut dx) = (Guarded::new(x, offset), Guarded::new(dy, offset), Guarded::unwritten(x.len(), offset));
        let mut over = Guarded::new(dy.get(), offset);
        relu::backward(x.get(), dy.get(), dx.get_mut());
        relu::backward_in_place(x.get(), over.get_mut());
        assert_same_bits("in place and beside", &bits(over.get()), &bits(dx.get()));
        over.check("dy");
        dx.check("dx");
        dx.get().to_vec()
    };
    let relu_lengths = |wrong: [usize; 2], said: &'static str| {
        row(Mismatched, format!("lengths {wrong:?}"), panics(&["relu: x and y", said]), move || {
            call(&mut unwritten([wrong[1]]), |[y]| relu::forward(&vec![T::ONE; wrong[0]], y))
        })
    };
    let backward_lengths = |[x, dy, dx]: [usize; 3]| {
        row(
            Mismatched,
            format!("lengths {:?}", [x, dy, dx]),
            panics(&["relu backward: x, dy and dx: lengths"]),
            move || call(&mut unwritten([dx]), |[dx]| relu::backward(&vec![T::ONE; x], &vec![T::ONE; dy], dx)),
        )
    };
    vec![
        entry(
            "kernels::relu::forward",
            [
                row(Empty, "no elements", gives("no elements"), move || {
                    assert!(forward(&[], 0).is_empty());
                    Ok(())
                }),
                relu_lengths([3, 2], "lengths [3, 3, 2]"),
                relu_lengths([2, 3], "lengths [2, 2, 3]"),
                row(Nan, "NaN at each place of 37", gives("NaN there"), move || {
                    let clean = drawn::<T>(1, 37);
                    for place in 0..37 {
                        nan_only("y", &forward(&with(&clean, place, NAN), 0), &forward(&clean, 0), |i| i == place);
                    }
                    Ok(())
                }),
                row(Infinite, "both infinities", gives("the positive one, +0 for the other"), move || {
                    let y = forward(&[T::from_f64(INFINITY), T::from_f64(-INFINITY)], 0);
                    assert_eq!(wide(&y), [INFINITY, 0.0]);
                    Ok(())
                }),
                row(Subnormal, "both signs, and -0", gives("the positive one, +0 for the others"), move || {
                    let y = forward(&[tiny, -tiny, -T::ZERO], 0);
                    assert_eq!(bits(&y), bits(&[tiny, T::ZERO, T::ZERO]));
                    Ok(())
                }),
                row(Misaligned, "every offset to 16", gives("the same bits"), move || {
                    same_at_every_offset(|offset| bits(&forward(&drawn(2, 37), offset)));
                    Ok(())
                }),
            ],
        ),
        entry(
            "kernels::relu::backward and backward_in_place",
            [
                row(Empty, "no elements", gives("no elements"), move || {
                    assert!(backward(&[], &[], 0).is_empty());
                    Ok(())
                }),
                backward_lengths([2, 3, 3]),
                backward_lengths([3, 2, 3]),
                backward_lengths([3, 3, 2]),
                row(Mismatched, "in place, x shorter", panics(&["x and dy: lengths [2, 3]"]), || {
                    call(&mut unwritten([3]), |[dy]| relu::backward_in_place(&[T::ONE; 2], dy))
                }),
                row(Nan, "NaN in x, in dy", gives("the gradient passes, NaN only where dy is"), move || {
                    let (x, dy) = (vec![T::ONE; 37], drawn::<T>(3, 37));
                    assert_same_bits("NaN in x", &bits(&backward(&with(&x, 5, NAN), &dy, 0)), &bits(&dy));
                    nan_only("NaN in dy", &backward(&x, &with(&dy, 5, NAN), 0), &dy, |i| i == 5);
                    // What does not pass is zero, whatever it is.
                    assert_eq!(backward(&[-T::ONE], &[T::from_f64(NAN)], 0)[0].bits(), 0);
                    Ok(())
                }),
                row(Infinite, "infinite dy", gives("it, or +0"), move || {
                    let infinity = T::from_f64(INFINITY);
                    let dx = backward(&[infinity, -infinity], &[infinity; 2], 0);
                    assert_eq!(wide(&dx), [INFINITY, 0.0]);
                    Ok(())
                }),
                row(Subnormal, "a subnormal x is above 0", gives("dy"), move || {
                    assert_eq!(bits(&backward(&[tiny, -tiny], &[tiny; 2], 0)), bits(&[tiny, T::ZERO]));
                    Ok(())
                }),
                row(Misaligned, "every offset to 16", gives("the same bits"), move || {
                    same_at_every_offset(|offset| bits(&backward(&drawn(4, 37), &drawn(5, 37), offset)));
                    Ok(())
                }),
            ],
        ),
        entry("kernels::mse", mean_squares::<T>()),
    ]
}

/// Loss and gradient, and the same loss alone.
fn squares<T: Element>(y: &[T], target: &[T], offset: usize) -> (f64, Vec<T>) {
    let (y, target, mut dy) =
        (Guarded::new(y, offset), Guarded::new(target, offset), Guarded::unwritten(y.len(), offset));
    let loss = mse::forward_backward(y.get(), target.get(), dy.get_mut());
    let alone = mse::forward(y.get(), target.get());
    assert!(alone.to_bits() == loss.to_bits() || (alone.is_nan() && loss.is_nan()), "{alone} and {loss}");
    dy.check("dy");
    (loss, dy.get().to_vec())
}

fn mean_squares<T: Element>() -> Vec<Row> {
    let lengths = |[y, target, dy]: [usize; 3]| {
        let said = format!("mse: y, target and dy: lengths {:?}", [y, target, dy]);
        row(Mismatched, format!("lengths {:?}", [y, target, dy]), panics(&[&said]), move || {
            call(&mut unwritten([dy]), |[dy]| _ = mse::forward_backward(&vec![T::ONE; y], &vec![T::ONE; target], dy))
        })
    };
    vec![
        row(Empty, "no elements", gives("loss 0"), || {
            assert_eq!(squares::<T>(&[], &[], 0), (0.0, vec![]));
            Ok(())
        }),
        lengths([2, 3, 3]),
        lengths([3, 2, 3]),
        lengths([3, 3, 2]),
        row(Mismatched, "the loss alone", panics(&["mse: y and target: lengths [3, 2]"]), || {
            mse::forward(&[T::ONE; 3], &[T::ONE; 2]);
            Ok(())
        }),
        row(Nan, "NaN at each place of y", gives("loss NaN, dy NaN there only"), || {
            let (y, target) = (drawn::<T>(1, 37), drawn(2, 37));
            for place in 0..37 {
                let (loss, dy) = squares(&with(&y, place, NAN), &target, 0);
                assert!(loss.is_nan());
                nan_only("dy", &dy, &squares(&y, &target, 0).1, |i| i == place);
            }
            Ok(())
        }),
        row(Infinite, "infinity at each place of y", gives("both infinite"), || {
            let (y, target) = (drawn::<T>(1, 37), drawn(2, 37));
            for place in 0..37 {
                let (loss, dy) = squares(&with(&y, place, -INFINITY), &target, 0);
                assert_eq!((loss, dy[place].to_f64()), (INFINITY, -INFINITY));
                assert_eq!(dy.iter().filter(|dy| !dy.is_finite()).count(), 1);
            }
            Ok(())
        }),
        row(Overflow, "a difference too large to be squared", gives("loss infinite, dy finite"), || {
            let half = T::from_f64(largest::<T>().to_f64() / 2.0);
            let (loss, dy) = squares(&[half, T::ZERO, T::ZERO, T::ZERO], &[T::ZERO; 4], 0);
            assert_eq!((loss, dy[0].to_f64()), (INFINITY, half.to_f64() / 2.0));
            Ok(())
        }),
        row(Subnormal, "a subnormal difference", gives("loss 0, dy exact"), || {
            let (loss, dy) = squares(&[T::LARGEST_SUBNORMAL, T::ZERO], &[T::ZERO; 2], 0);
            assert_eq!((loss, dy[0].bits()), (0.0, T::LARGEST_SUBNORMAL.bits()));
            Ok(())
        }),
        row(Misaligned, "every offset to 16", gives("the same bits"), || {
            same_at_every_offset(|offset| {
                let (loss, dy) = squares::<T>(&drawn(1, 37), &drawn(2, 37), offset);
                [vec![loss.to_bits()], bits(&dy)].concat()
            });
            Ok(())
        }),
    ]
}

// ---- Rows.

/// Loss and gradient, and the same loss alone.
fn cross_entropy<T: Element>(logits: &[T], labels: &[u8], offset: usize) -> Result<(f64, Vec<T>)> {
    let logits = Guarded::new(logits, offset);
    let mut gradient = [Guarded::unwritten(logits.get().len(), offset)];
    let loss =
        attempt(&mut gradient, |[gradient]| softmax_xent::forward_backward(logits.get(), labels, gradient.get_mut()));
    let alone = softmax_xent::forward(logits.get(), labels);
    assert_eq!(loss.is_ok(), alone.is_ok(), "with and without the gradient");
    Ok((loss?, gradient[0].get().to_vec()))
}

pub(crate) fn by_rows<T: Element>() -> Vec<Entry> {
    // Once a lane a row, once lanes along a row.
    const CLASSES: [usize; 3] = [5, 16, 37];
    let poisoned = |bad: f64| {
        for c in CLASSES {
            let clean = cross_entropy::<T>(&drawn(1, 3 * c), &[0, 1, 2], 0)?.1;
            for place in c..2 * c {
                let (loss, gradient) = cross_entropy::<T>(&with(&drawn(1, 3 * c), place, bad), &[0, 1, 2], 0)?;
                assert!(loss.is_nan(), "{bad} at {place}: loss {loss}");
                let own = |i: usize| if bad.is_nan() { i / c == 1 } else { i == place };
                let others = |i: usize| i / c != 1;
                for i in (0..3 * c).filter(|&i| own(i) || others(i)) {
                    let right =
                        if own(i) { gradient[i].to_f64().is_nan() } else { gradient[i].bits() == clean[i].bits() };
                    assert!(right, "{bad} at {place} of rows of {c}: gradient[{i}] is {}", gradient[i]);
                }
            }
        }
        Ok(())
    };
    let disagree = |logits: usize, rows: usize, gradients: usize, said: &'static str| {
        row(Mismatched, format!("{logits} logits, {rows} rows, {gradients} gradients"), panics(&[said]), move || {
            attempt(&mut unwritten([gradients]), |[gradient]| {
                softmax_xent::forward_backward(&vec![T::ONE; logits], &vec![0; rows], gradient.get_mut())
            })
            .map(drop)
        })
    };
    let cross_entropy_rows = vec![
        row(ZeroRows, "no rows", gives("loss 0"), || {
            assert_eq!(cross_entropy::<T>(&[], &[], 0)?, (0.0, vec![]));
            Ok(())
        }),
        row(Empty, "a row without classes", invalid(&["label of row 0 is 0", "below 0"]), || {
            cross_entropy::<T>(&[], &[0], 0).map(drop)
        }),
        disagree(3, 0, 3, "3 logits for no rows"),
        disagree(7, 3, 7, "7 logits for 3 rows"),
        disagree(6, 3, 5, "6 logits, 5 gradients"),
        row(Oversized, "a label that is no class", invalid(&["label of row 3 is 10", "below 10"]), || {
            cross_entropy::<T>(&drawn(1, 40), &[9, 0, 3, 10], 0).map(drop)
        }),
        row(Oversized, "the largest label", invalid(&["label of row 0 is 255", "below 10"]), || {
            cross_entropy::<T>(&drawn(1, 40), &[255, 0, 3, 10], 0).map(drop)
        }),
        row(Nan, "NaN at each place of a row", gives("loss and its row NaN, other rows as they were"), move || {
            poisoned(NAN)
        }),
        row(Infinite, "infinity at each place of a row", gives("loss and its gradient NaN"), move || {
            poisoned(INFINITY)
        }),
        row(Infinite, "minus infinity", gives("a class that is ruled out"), || {
            for c in CLASSES {
                let logits = with(&drawn::<T>(1, c), 2, -INFINITY);
                let (loss, gradient) = cross_entropy(&logits, &[0], 0)?;
                assert!(loss.is_finite() && gradient[2].to_f64() == 0.0, "{loss}, {gradient:?}");
                let (loss, gradient) = cross_entropy(&logits, &[2], 0)?;
                assert!(loss == INFINITY && gradient.iter().all(|g| g.is_finite()), "{loss}, {gradient:?}");
                assert!(cross_entropy(&vec![T::from_f64(-INFINITY); c], &[2], 0)?.0.is_nan(), "nothing is possible");
            }
            Ok(())
        }),
        row(Overflow, "logits further apart than the type reaches", gives("a finite loss"), || {
            let far = largest::<T>();
            let (loss, gradient) = cross_entropy(&[far, -far], &[0], 0)?;
            assert_eq!((loss, wide(&gradient)), (0.0, vec![0.0, 0.0]));
            Ok(())
        }),
        row(Subnormal, "subnormal logits", gives("all classes alike"), || {
            let (loss, _) = cross_entropy(&[T::LARGEST_SUBNORMAL; 8], &[3], 0)?;
            near_one(&"loss", loss, 8f64.ln(), || 4.0 * T::ROUNDOFF);
            Ok(())
        }),
        row(Misaligned, "every offset to 16", gives("the same bits"), || {
            for c in CLASSES {
                same_at_every_offset(|offset| {
                    let (loss, gradient) = cross_entropy::<T>(&drawn(1, 4 * c), &[0, 1, 2, 3], offset).unwrap();
                    [vec![loss.to_bits()], bits(&gradient)].concat()
                });
            }
            Ok(())
        }),
        row(OneRow, "one row of one class", gives("loss 0, gradient 0"), || {
            assert_eq!(cross_entropy(&[T::from_f64(100.0)], &[0], 0)?, (0.0, vec![T::ZERO]));
            Ok(())
        }),
    ];
    vec![
        entry("kernels::softmax_xent", cross_entropy_rows),
        entry("kernels::reduce::column_sums", sums_of_columns::<T>()),
    ]
}

fn sums<T: Element>(x: &[T], c: usize, offset: usize) -> Vec<T> {
    let (x, mut sums) = (Guarded::new(x, offset), Guarded::new(&vec![T::ONE; c], offset));
    let n = x.get().len().checked_div(c).unwrap_or(0);
    let mut scratch = Guarded::unwritten(reduce::scratch_len(n, c), offset);
    reduce::column_sums(x.get(), sums.get_mut(), scratch.get_mut());
    sums.check("sums");
    scratch.check("scratch");
    sums.get().to_vec()
}

fn sums_of_columns<T: Element>() -> Vec<Row> {
    let refused = |kind, x: usize, c: usize, scratch: usize, said: &'static str| {
        row(kind, format!("{x} elements, {c} columns, {scratch} of scratch"), panics(&[said]), move || {
            call(&mut unwritten([c, scratch]), |[sums, scratch]| reduce::column_sums(&vec![T::ONE; x], sums, scratch))
        })
    };
    vec![
        row(ZeroRows, "no rows", gives("the sums as they were"), || {
            assert_eq!(sums::<T>(&[], 3, 0), [T::ONE; 3]);
            Ok(())
        }),
        row(Empty, "no columns", gives("nothing"), || {
            assert!(sums::<T>(&[], 0, 0).is_empty());
            Ok(())
        }),
        refused(Mismatched, 5, 0, 9, "column sums: 5 elements in rows of 0"),
        refused(Mismatched, 5, 2, 9, "column sums: 5 elements in rows of 2"),
        refused(Truncated, 6, 2, 1, "column sums: 1 elements of scratch, 2 needed"),
        row(Overflow, "scratch for more than can be addressed", gives("the largest number"), || {
            assert_eq!(reduce::scratch_len(usize::MAX, usize::MAX), usize::MAX);
            Ok(())
        }),
        row(Nan, "NaN in each column", gives("the sum of that column NaN"), || {
            // Two leaves, in the order of their rows.
            let x = drawn::<T>(1, 1100 * 19);
            let clean = sums(&x, 19, 0);
            for column in 0..19 {
                let poisoned = with(&x, 57 * column * 19 + column, NAN);
                nan_only("sums", &sums(&poisoned, 19, 0), &clean, |j| j == column);
            }
            Ok(())
        }),
        row(Infinite, "one infinity, then both", gives("infinity, then NaN"), || {
            let infinity = T::from_f64(INFINITY);
            let found = sums(&[infinity, infinity, T::ONE, -infinity], 2, 0);
            assert!(found[0].to_f64() == INFINITY && found[1].to_f64().is_nan(), "{found:?}");
            Ok(())
        }),
        row(Subnormal, "subnormal numbers", gives("their exact sum"), || {
            let tiny = T::LARGEST_SUBNORMAL;
            let mut sums = [T::ZERO];
            reduce::column_sums(&[tiny, tiny, -tiny], &mut sums, &mut [T::ZERO]);
            assert_eq!(sums[0].bits(), tiny.bits());
            Ok(())
        }),
        row(Misaligned, "every offset to 16", gives("the same bits"), || {
            same_at_every_offset(|offset| bits(&sums::<T>(&drawn(1, 37 * 19), 19, offset)));
            Ok(())
        }),
        row(OneRow, "one row", gives("the row added"), || {
            assert_eq!(wide(&sums(&narrow::<T>(&[1.0, -1.0, 2.0]), 3, 0)), [2.0, 0.0, 3.0]);
            Ok(())
        }),
    ]
}

// ---- Updates.

const SGD: Sgd = Sgd { lr: 0.5, momentum: 0.5, form: Momentum::Nesterov, weight_decay: 0.1, step: 3 };
const ADAM: Adam = Adam { lr: 0.5, beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay: 0.1, step: 3 };

/// Parameters and what is remembered after a step from drawn ones.
fn updated<T: Element>(with_adam: bool, g: &[T], offset: usize) -> Vec<Vec<T>> {
    let squares: Vec<T> = drawn::<T>(9, g.len()).iter().map(|&x| x * x).collect();
    let [mut p, mut m, mut v] = [drawn(7, g.len()), drawn(8, g.len()), squares].map(|x| Guarded::new(&x, offset));
    let g = Guarded::new(g, offset);
    match with_adam {
        true => adam(&ADAM, p.get_mut(), g.get(), m.get_mut(), v.get_mut()),
        false => sgd(&SGD, p.get_mut(), g.get(), m.get_mut()),
    }
    let parts = [p, m, v];
    parts.iter().for_each(|part| part.check("an update"));
    parts.iter().map(|part| part.get().to_vec()).collect()
}

pub(crate) fn updates<T: Element>() -> Vec<Entry> {
    let both = |with_adam: bool| {
        let written = if with_adam { 3 } else { 2 };
        [
            row(Empty, "no parameters", gives("nothing"), move || {
                assert!(updated::<T>(with_adam, &[], 0).iter().all(Vec::is_empty));
                Ok(())
            }),
            row(Nan, "NaN at each place of a gradient", gives("its parameter and moments NaN"), move || {
                let g = drawn::<T>(1, 37);
                let clean = updated(with_adam, &g, 0);
                for place in 0..37 {
                    let found = updated(with_adam, &with(&g, place, NAN), 0);
                    for part in 0..written {
                        nan_only("an update", &found[part], &clean[part], |i| i == place);
                    }
                }
                Ok(())
            }),
            row(Infinite, "an infinite gradient", gives("no other parameter moves by it"), move || {
                let g = drawn::<T>(1, 37);
                let (found, clean) = (updated(with_adam, &with(&g, 5, INFINITY), 0), updated(with_adam, &g, 0));
                for i in (0..37).filter(|&i| i != 5) {
                    assert_eq!(found[0][i].bits(), clean[0][i].bits(), "parameter {i}");
                }
                assert!(!found[0][5].is_finite());
                Ok(())
            }),
            row(Misaligned, "every offset to 16", gives("the same bits"), move || {
                same_at_every_offset(|offset| bits(&updated::<T>(with_adam, &drawn(1, 37), offset).concat()));
                Ok(())
            }),
        ]
    };
    let sgd_lengths = |[p, g, b]: [usize; 3], said: &'static str| {
        row(Mismatched, format!("p, g, b: {:?}", [p, g, b]), panics(&[said]), move || {
            call(&mut unwritten([p, b]), |[p, b]| sgd(&SGD, p, &vec![T::ONE; g], b))
        })
    };
    let adam_lengths = |[p, g, m, v]: [usize; 4], said: &'static str| {
        row(Mismatched, format!("p, g, m, v: {:?}", [p, g, m, v]), panics(&["adam: 3 parameters", said]), move || {
            call(&mut unwritten([p, m, v]), |[p, m, v]| adam(&ADAM, p, &vec![T::ONE; g], m, v))
        })
    };
    let sgd_rows = [
        sgd_lengths([3, 2, 3], "sgd: 3 parameters, 2 gradients"),
        sgd_lengths([3, 3, 2], "sgd: 3 parameters, 2 in the buffer"),
        sgd_lengths([3, 3, 0], "sgd: 3 parameters, 0 in the buffer"),
        row(Mismatched, "a buffer that no momentum needs", gives("the buffer untouched"), || {
            let mut buffer = Guarded::unwritten(5, 0);
            let plain = Sgd { momentum: 0.0, ..SGD };
            sgd(&plain, &mut [T::ONE; 3], &[T::ONE; 3], buffer.get_mut());
            buffer.check_unwritten("the buffer");
            Ok(())
        }),
        row(
            Subnormal,
            "a buffer that decays, a subnormal parameter",
            gives("a buffer of 0, the parameter kept"),
            || {
                let step = Sgd { weight_decay: 0.0, ..SGD };
                let (mut p, mut b) = ([T::LARGEST_SUBNORMAL], [T::LARGEST_SUBNORMAL]);
                sgd(&step, &mut p, &[T::ZERO], &mut b);
                assert_eq!((p[0].bits(), b[0].bits()), (T::LARGEST_SUBNORMAL.bits(), 0));
                Ok(())
            },
        ),
    ];
    let adam_rows = [
        adam_lengths([3, 2, 3, 3], "[2, 3, 3]"),
        adam_lengths([3, 3, 2, 3], "[3, 2, 3]"),
        adam_lengths([3, 3, 3, 2], "[3, 3, 2]"),
        row(Subnormal, "moments that decay", gives("moments of 0"), || {
            let step = Adam { weight_decay: 0.0, ..ADAM };
            let (mut p, mut m, mut v) = ([T::ONE], [T::LARGEST_SUBNORMAL], [T::LARGEST_SUBNORMAL]);
            adam(&step, &mut p, &[T::ZERO], &mut m, &mut v);
            assert_eq!((p[0].bits(), m[0].bits(), v[0].bits()), (T::ONE.bits(), 0, 0));
            Ok(())
        }),
        row(Overflow, "a gradient too large to be squared", gives("the parameter stays"), || {
            let step = Adam { weight_decay: 0.0, ..ADAM };
            let (mut p, mut m, mut v) = ([T::ONE], [T::ZERO], [T::ZERO]);
            adam(&step, &mut p, &[largest::<T>()], &mut m, &mut v);
            assert_eq!((p[0].to_f64(), v[0].to_f64()), (1.0, INFINITY));
            Ok(())
        }),
    ];
    vec![
        entry("kernels::update::sgd", both(false).into_iter().chain(sgd_rows)),
        entry("kernels::update::adam", both(true).into_iter().chain(adam_rows)),
    ]
}
