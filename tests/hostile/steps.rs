//! Losses and optimisers.

use crate::kernels::{drawn, nan_only, same_at_every_offset, with};
use crate::support::*;
use crate::table::Kind::*;
use crate::table::*;
use evenkeel::kernels::update::Momentum;
use evenkeel::optim::{Adam, Optimizer, Sgd};
use evenkeel::simd::Element;
use evenkeel::tensor::{Shape, Tensor, TensorMut, TensorRef};
use evenkeel::{Loss, Result, Targets};

const MAX: usize = usize::MAX;
const NAN: f64 = f64::NAN;
const INFINITY: f64 = f64::INFINITY;

// ---- Losses.

/// Loss and gradient of drawn outputs, or of others, that lie `offset` elements from where they might.
fn loss_of<T: Element>(
    loss: Loss,
    dims: &[usize],
    y: &[T],
    targets: Targets<'_, T>,
    offset: usize,
) -> Result<(f64, Vec<T>)> {
    let (shape, y) = (Shape::new(dims), Guarded::new(y, offset));
    let y = TensorRef::new(shape, y.get())?;
    let mut dy = [Guarded::unwritten(shape.len(), offset)];
    let value = attempt(&mut dy, |[dy]| loss.forward_backward(y, targets, TensorMut::new(shape, dy.get_mut())?))?;
    let alone = loss.forward(y, targets)?;
    assert!(alone.to_bits() == value.to_bits() || (alone.is_nan() && value.is_nan()), "{alone} and {value}");
    Ok((value, dy[0].get().to_vec()))
}

pub(crate) fn losses<T: Element>() -> Vec<Entry> {
    let classes = |kind, input: &'static str, dims: &'static [usize], labels: &'static [u8], outcome| {
        row(kind, input, outcome, move || {
            let y = drawn::<T>(1, Shape::new(dims).len());
            loss_of(Loss::CrossEntropy, dims, &y, Targets::Classes(labels), 0).map(drop)
        })
    };
    let values = |kind, input: &'static str, dims: &'static [usize], count: usize, outcome| {
        row(kind, input, outcome, move || {
            let (y, targets) = (drawn::<T>(1, Shape::new(dims).len()), drawn(2, count));
            loss_of(Loss::Mse, dims, &y, Targets::Values(&targets), 0).map(drop)
        })
    };
    let (both, labels) = ([Loss::CrossEntropy, Loss::Mse], [0, 1, 2]);
    let run = move |loss, y: &[T], offset| match loss {
        Loss::CrossEntropy => loss_of(loss, &[3, 4], y, Targets::Classes(&labels), offset),
        Loss::Mse => loss_of(loss, &[3, 4], y, Targets::Values(&drawn(2, 12)), offset),
    };
    let not_finite = move |bad: f64| {
        for loss in both {
            let (clean, (value, dy)) =
                (run(loss, &drawn(1, 12), 0)?.1, run(loss, &with(&drawn::<T>(1, 12), 6, bad), 0)?);
            assert!(!value.is_finite(), "{loss:?}");
            for i in (0..12).filter(|i| i / 4 != 1) {
                assert_eq!(dy[i].bits(), clean[i].bits(), "{loss:?}: dy[{i}]");
            }
        }
        Ok(())
    };
    vec![entry(
        "Loss",
        [
            classes(ZeroRows, "no rows", &[0, 4], &[], gives("0")),
            classes(OneRow, "one row", &[1, 4], &[3], gives("a number")),
            classes(
                Empty,
                "outputs of no dimensions",
                &[],
                &[0],
                shape(&["cross-entropy: outputs: expected [n, c], found []"]),
            ),
            classes(Mismatched, "outputs of one dimension", &[4], &[0], shape(&["expected [n, c], found [4]"])),
            classes(Mismatched, "outputs of three", &[1, 4, 1], &[0], shape(&["expected [n, c], found [1, 4, 1]"])),
            classes(
                Truncated,
                "a class too few",
                &[3, 4],
                &[0, 1],
                shape(&["cross-entropy: classes: expected [3], found [2]"]),
            ),
            classes(Mismatched, "a class too many", &[2, 4], &[0, 1, 1], shape(&["expected [2], found [3]"])),
            classes(
                Oversized,
                "a class that is not there",
                &[3, 4],
                &[0, 4, 1],
                invalid(&["label of row 1 is 4", "below 4"]),
            ),
            classes(Empty, "outputs without classes", &[2, 0], &[0, 0], invalid(&["label of row 0 is 0", "below 0"])),
            values(ZeroRows, "no rows", &[0, 4], 0, gives("0")),
            values(Empty, "no values", &[3, 4], 0, shape(&["mse: values: expected [3, 4], found 0 elements"])),
            values(
                Truncated,
                "a value too few",
                &[3, 4],
                11,
                shape(&["mse: values: expected [3, 4], found 11 elements"]),
            ),
            values(Mismatched, "a value too many", &[3, 4], 13, shape(&["found 13 elements"])),
            row(
                Mismatched,
                "a gradient of another shape",
                shape(&["loss: gradient: expected [3, 4], found [4, 3]"]),
                || {
                    let (y, mut dy) = (Tensor::<T>::zeros([3, 4])?, unwritten_tensor([4, 3]));
                    attempt(&mut dy, |dy| {
                        Loss::CrossEntropy
                            .forward_backward(y.view(), Targets::Classes(&[0, 1, 2]), dy.view_mut())
                            .map(drop)
                    })
                },
            ),
            row(
                Mismatched,
                "values for cross-entropy",
                invalid(&["cross-entropy: targets is values, but must be classes"]),
                || loss_of::<T>(Loss::CrossEntropy, &[1, 2], &drawn(1, 2), Targets::Values(&drawn(1, 2)), 0).map(drop),
            ),
            row(
                Mismatched,
                "classes for a mean of squares",
                invalid(&["mse: targets is classes, but must be values"]),
                || loss_of::<T>(Loss::Mse, &[1, 2], &drawn(1, 2), Targets::Classes(&[0]), 0).map(drop),
            ),
            row(Nan, "NaN in a row", gives("no finite loss, other rows' gradients as they were"), move || {
                not_finite(NAN)
            }),
            row(Infinite, "infinity in a row", gives("the same"), move || not_finite(INFINITY)),
            row(Subnormal, "subnormal outputs", gives("a finite loss"), move || {
                for loss in both {
                    assert!(run(loss, &[T::LARGEST_SUBNORMAL; 12], 0)?.0.is_finite());
                }
                Ok(())
            }),
            row(Misaligned, "every offset to 16", gives("the same bits"), move || {
                for loss in both {
                    same_at_every_offset(|offset| {
                        let (value, dy) = run(loss, &drawn(1, 12), offset).unwrap();
                        [vec![value.to_bits()], bits(&dy)].concat()
                    });
                }
                Ok(())
            }),
        ],
    )]
}

impl<T: Element> Written for Tensor<T> {
    fn numbers(&mut self) -> Vec<u64> {
        bits(self.data())
    }
}

pub(crate) fn unwritten_tensor<T: Element>(shape: impl Into<Shape>) -> Tensor<T> {
    let mut tensor = Tensor::zeros(shape).unwrap();
    tensor.data_mut().fill(T::from_f64(-7.0));
    tensor
}

// ---- Optimisers.

/// An optimiser after two steps over two tensors, and what it would move.
pub(crate) struct Moved<O, T> {
    pub(crate) optimizer: O,
    value: Vec<T>,
}

impl<O: std::fmt::Debug, T: Element> Written for Moved<O, T> {
    /// The text of an optimiser has all that it remembers.
    fn numbers(&mut self) -> Vec<u64> {
        let text = format!("{:?}", self.optimizer).into_bytes().into_iter().map(u64::from);
        text.chain(bits(&self.value)).collect()
    }
}

pub(crate) fn moved<T: Element, O: Optimizer<T>>(mut optimizer: O, len: usize) -> Moved<O, T> {
    for _ in 0..2 {
        optimizer.begin_step();
        for (index, len) in [(0, 3), (1, 5)] {
            optimizer.update(index, &mut drawn::<T>(1, len), &drawn(2, len)).unwrap();
        }
    }
    optimizer.begin_step();
    Moved { optimizer, value: drawn(3, len) }
}

/// What an optimiser must do whatever it remembers.
fn updating<T: Element, O: Optimizer<T> + std::fmt::Debug + 'static>(make: fn() -> O, remembers: bool) -> Vec<Row> {
    let update = move |index: usize, values: usize, gradients: usize| {
        let mut moved = moved::<T, O>(make(), values);
        attempt(&mut moved, |moved| moved.optimizer.update(index, &mut moved.value, &drawn(4, gradients)))?;
        Ok(moved.value)
    };
    let another_size = move || {
        if remembers { shape(&["optimiser: parameter 1: expected 5 elements, found"]) } else { gives("a step") }
    };
    vec![
        row(Truncated, "a gradient too short", shape(&["gradient: expected 5, found 4"]), move || {
            update(1, 5, 4).map(drop)
        }),
        row(Mismatched, "a gradient too long", shape(&["gradient: expected 5, found 6"]), move || {
            update(1, 5, 6).map(drop)
        }),
        row(Empty, "no gradient", shape(&["gradient: expected 5, found 0"]), move || update(1, 5, 0).map(drop)),
        row(Truncated, "a tensor shorter than before", another_size(), move || update(1, 4, 4).map(drop)),
        row(Mismatched, "a tensor longer than before", another_size(), move || update(1, 6, 6).map(drop)),
        row(Empty, "a tensor without elements where there were some", another_size(), move || {
            update(1, 0, 0).map(drop)
        }),
        row(Empty, "a new tensor without elements", gives("nothing"), move || update(2, 0, 0).map(drop)),
        row(
            Oversized,
            "an index far beyond the tensors",
            gives("a step, and memory for that tensor alone"),
            move || {
                for index in [MAX, 1 << 40] {
                    assert_same_bits(
                        "the first step of a tensor",
                        &bits(&update(index, 5, 5)?),
                        &bits(&update(2, 5, 5)?),
                    );
                }
                Ok(())
            },
        ),
        row(Nan, "NaN in a gradient", gives("NaN in its parameter"), move || {
            let (mut one, mut other) = (moved::<T, O>(make(), 5), moved::<T, O>(make(), 5));
            one.optimizer.update(1, &mut one.value, &with(&drawn::<T>(4, 5), 2, NAN))?;
            other.optimizer.update(1, &mut other.value, &drawn(4, 5))?;
            nan_only("a parameter", &one.value, &other.value, |i| i == 2);
            Ok(())
        }),
    ]
}

pub(crate) fn optimisers<T: Element>() -> Vec<Entry> {
    let setting = |kind, name: &'static str, value: f64, set: fn(f64) -> Result<()>| {
        row(kind, format!("{name} {value:e}"), invalid(&[name]), move || set(value))
    };
    let mut rows = Vec::new();
    type Set = fn(f64) -> Result<()>;
    let settings: [(&str, Set); 8] = [
        ("learning rate", |lr| Sgd::<T>::new(lr).map(drop)),
        ("learning rate", |lr| Adam::<T>::new(lr).map(drop)),
        ("momentum", |m| Sgd::<T>::new(0.1)?.momentum(m, Momentum::Classical).map(drop)),
        ("weight decay", |w| Sgd::<T>::new(0.1)?.weight_decay(w).map(drop)),
        ("weight decay", |w| Adam::<T>::new(0.1)?.weight_decay(w).map(drop)),
        ("beta1", |b| Adam::<T>::new(0.1)?.betas(b, 0.9).map(drop)),
        ("beta2", |b| Adam::<T>::new(0.1)?.betas(0.9, b).map(drop)),
        ("adam: eps", |eps| Adam::<T>::new(0.1)?.eps(eps).map(drop)),
    ];
    for (name, set) in settings {
        for (kind, value) in [(Nan, NAN), (Infinite, INFINITY), (Infinite, -INFINITY), (Senseless, -0.1)] {
            rows.push(setting(kind, name, value, set));
        }
        if name.starts_with("beta") {
            rows.push(setting(Senseless, name, 1.0, set));
        }
        if name == "adam: eps" {
            rows.push(setting(Senseless, name, 0.0, set));
            // Rounds to 0 in f32, and in f64 below its least.
            rows.push(setting(Subnormal, name, if T::NAME == "f32" { 1e-60 } else { 0.0 }, set));
        }
    }
    let with_momentum = || Sgd::<T>::new(0.1).unwrap().momentum(0.9, Momentum::Nesterov).unwrap();
    vec![
        entry("optim: settings", rows),
        entry("optim::Sgd, plain", updating::<T, _>(|| Sgd::<T>::new(0.1).unwrap(), false)),
        entry("optim::Sgd with momentum", updating::<T, _>(with_momentum, true)),
        entry(
            "optim::Adam",
            updating::<T, _>(|| Adam::<T>::new(0.1).unwrap(), true).into_iter().chain([row(
                Senseless,
                "an update without a step",
                invalid(&["adam: step is 0", "begin_step comes before update"]),
                || {
                    let mut fresh = Moved { optimizer: Adam::<T>::new(0.1)?, value: drawn(1, 3) };
                    attempt(&mut fresh, |fresh| fresh.optimizer.update(0, &mut fresh.value, &drawn(2, 3)))
                },
            )]),
        ),
    ]
}
