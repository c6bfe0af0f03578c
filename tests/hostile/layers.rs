//! Layers: every pass of every layer. A refusal leaves outputs, parameters, gradients, running statistics and counts as
//! they were.

use crate::kernels::{drawn, largest, nan_only, same_at_every_offset, with};
use crate::support::*;
use crate::table::Kind::*;
use crate::table::*;
use evenkeel::layers::{BatchNorm1d, BatchNorm2d, BatchNormOptions, Layer, Linear, Relu};
use evenkeel::simd::Element;
use evenkeel::tensor::{ImageLayout, Shape, TensorMut, TensorRef};
use evenkeel::{Result, Rng};

const MAX: usize = usize::MAX;

/// Every number that a layer holds.
pub(crate) fn state<T: Element>(layer: &mut dyn Layer<T>) -> Vec<u64> {
    let mut all = Vec::new();
    layer.visit(&mut |p| all.extend(p.value.iter().chain(p.grad).map(|v| v.bits())));
    layer.visit_buffers_mut(&mut |_, values| all.extend(bits(values)));
    layer.visit_counts_mut(&mut |_, count| all.push(*count));
    all
}

/// A layer, what its passes write, and where their slices begin.
struct Case<T: Element> {
    layer: Box<dyn Layer<T>>,
    y: Guarded<T>,
    dx: Guarded<T>,
    saved: Guarded<T>,
    scratch: Guarded<T>,
    offset: usize,
}

impl<T: Element> Written for Case<T> {
    fn numbers(&mut self) -> Vec<u64> {
        let parts = [&self.y, &self.dx, &self.saved];
        parts.iter().chain([&&self.scratch]).for_each(|part| part.check("an output"));
        let mut all = state(self.layer.as_mut());
        parts.iter().for_each(|part| all.extend(bits(part.get())));
        all
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Pass {
    Infer,
    Forward,
    Held,
    Backward,
}

const PASSES: [Pass; 4] = [Pass::Infer, Pass::Forward, Pass::Held, Pass::Backward];

/// What a pass is called with, besides the layer: shapes that need not fit, and how much too short its room is.
#[derive(Clone)]
struct Call<T> {
    x: (Shape, Vec<T>),
    dy: (Shape, Vec<T>),
    base: (Shape, Vec<T>),
    y: Shape,
    dx: Shape,
    saved_missing: usize,
    scratch_missing: usize,
}

impl<T: Element> Call<T> {
    /// A call with everything right, over drawn numbers.
    fn right(layer: &dyn Layer<T>, x: Shape) -> Self {
        let y = layer.output_shape(x).unwrap_or(x);
        let of = |seed, shape: Shape| (shape, drawn(seed, shape.len()));
        let (missing, base) = (0, of(1, x));
        Call { x: base.clone(), dy: of(2, y), base, y, dx: x, saved_missing: missing, scratch_missing: missing }
    }
}

impl<T: Element> Case<T> {
    /// Room for a call; of shapes that the layer does not take, as much as for the right one.
    fn new(layer: Box<dyn Layer<T>>, right: Shape, call: &Call<T>, offset: usize) -> Self {
        let [saved, scratch] =
            [layer.saved_len(right) - call.saved_missing, layer.scratch_len(right) - call.scratch_missing];
        let [y, dx, saved, scratch] =
            [call.y.len(), call.dx.len(), saved, scratch].map(|len| Guarded::unwritten(len, offset));
        Case { layer, y, dx, saved, scratch, offset }
    }

    fn pass(&mut self, pass: Pass, call: &Call<T>) -> Result<()> {
        let offset = self.offset;
        let [x, dy, base] = [&call.x, &call.dy, &call.base].map(|(shape, data)| (*shape, Guarded::new(data, offset)));
        let [x, dy, base] = [&x, &dy, &base].map(|(shape, data)| TensorRef::new(*shape, data.get()).unwrap());
        attempt(self, |case| {
            let Case { layer, y, dx, saved, scratch, .. } = case;
            let (saved, scratch) = (saved.get_mut(), scratch.get_mut());
            let y = TensorMut::new(call.y, y.get_mut())?;
            match pass {
                Pass::Infer => layer.infer(x, y, scratch),
                Pass::Forward => layer.forward(x, y, saved, scratch),
                Pass::Held => layer.forward_held(base, x, y, saved, scratch),
                Pass::Backward => layer.backward(x, dy, Some(TensorMut::new(call.dx, dx.get_mut())?), saved, scratch),
            }
        })
    }
}

/// A layer under test: how it is made, a shape that it takes, others that it does not, and which elements of x an
/// element of y depends on.
#[derive(Clone, Copy)]
struct Subject<T: Element> {
    name: &'static str,
    make: fn() -> Box<dyn Layer<T>>,
    right: &'static [usize],
    says: &'static str,
    wrong: &'static [&'static [usize]],
    /// The group of element `i`, of x or of y: what is not finite in one group stays in it.
    group: fn(i: usize) -> usize,
    empty: &'static [&'static [usize]],
    one_row: &'static [usize],
    normalises: bool,
}

fn linear<T: Element>(inputs: usize, outputs: usize) -> Linear<T> {
    Linear::new(inputs, outputs, &mut Rng::new(1, "init")).unwrap()
}

/// The layer after a training pass, so that all it holds differs from what it began with.
fn used<T: Element>(layer: impl Layer<T>, shape: &[usize]) -> Box<dyn Layer<T>> {
    let layer: Box<dyn Layer<T>> = Box::new(layer);
    let shape = Shape::new(shape);
    let call = Call::right(layer.as_ref(), shape);
    let mut case = Case::new(layer, shape, &call, 0);
    case.pass(Pass::Forward, &call).unwrap();
    case.pass(Pass::Backward, &call).unwrap();
    case.layer
}

fn subjects<T: Element>() -> Vec<Subject<T>> {
    let normalises = true;
    vec![
        Subject {
            name: "Linear",
            make: || used(linear(7, 6), &[5, 7]),
            right: &[5, 7],
            says: "Linear(7, 6): expected [n, 7]",
            wrong: &[&[], &[7], &[5, 6], &[7, 5], &[5, 7, 1], &[MAX, 8], &[0, 8]],
            group: |_| 0,
            empty: &[&[0, 7]],
            one_row: &[1, 7],
            normalises: false,
        },
        Subject {
            name: "BatchNorm1d over [n, c]",
            make: || used(BatchNorm1d::new(6).unwrap(), &[5, 6]),
            right: &[5, 6],
            says: "BatchNorm1d(6): expected [n, 6] or [n, 6, l]",
            wrong: &[&[], &[6], &[5, 7], &[5, 6, 2, 2], &[5, 2, 6], &[MAX, 7], &[0, 7]],
            group: |i| i % 6,
            empty: &[&[0, 6], &[0, 6, 5], &[2, 6, 0], &[0, 6, MAX], &[MAX, 6, 0]],
            one_row: &[1, 6],
            normalises,
        },
        Subject {
            name: "BatchNorm1d over [n, c, l]",
            make: || used(BatchNorm1d::new(3).unwrap(), &[5, 3, 4]),
            right: &[5, 3, 4],
            says: "BatchNorm1d(3): expected [n, 3] or [n, 3, l]",
            wrong: &[&[3], &[5, 4, 3], &[5, 3, 4, 1]],
            group: |i| i / 4 % 3,
            empty: &[&[0, 3, 4], &[5, 3, 0]],
            one_row: &[1, 3, 1],
            normalises,
        },
        Subject {
            name: "BatchNorm2d, NCHW",
            make: || used(BatchNorm2d::new(3, ImageLayout::Nchw).unwrap(), &[2, 3, 2, 3]),
            right: &[2, 3, 2, 3],
            says: "BatchNorm2d(3): expected [n, 3, h, w]",
            wrong: &[&[], &[2, 2, 2, 3], &[2, 3], &[2, 3, 4], &[3], &[2, 4, 2, 2], &[MAX, 4, MAX, MAX]],
            group: |i| i / 6 % 3,
            empty: &[
                &[0, 3, 2, 2],
                &[3, 3, 0, 2],
                &[3, 3, 2, 0],
                &[0, 3, MAX, 2],
                &[0, 3, 1 << 40, 1 << 40],
                &[MAX, 3, MAX, 0],
            ],
            one_row: &[1, 3, 1, 1],
            normalises,
        },
        Subject {
            name: "BatchNorm2d, NHWC",
            make: || used(BatchNorm2d::new(3, ImageLayout::Nhwc).unwrap(), &[2, 2, 3, 3]),
            right: &[2, 2, 3, 3],
            says: "BatchNorm2d(3): expected [n, h, w, 3]",
            wrong: &[&[], &[2, 3, 2, 2], &[2, 3], &[2, 4, 3], &[3], &[2, 2, 2, 4], &[MAX, MAX, MAX, 4]],
            group: |i| i % 3,
            empty: &[&[0, 2, 2, 3], &[3, 0, 2, 3], &[3, 2, 0, 3], &[0, MAX, 2, 3], &[MAX, MAX, 0, 3]],
            one_row: &[1, 1, 1, 3],
            normalises,
        },
        Subject {
            name: "Relu",
            make: || Box::new(Relu::new()),
            right: &[5, 7],
            says: "",
            wrong: &[],
            group: |i| i,
            empty: &[&[0, 7], &[0], &[3, 0, 2], &[0, MAX, MAX], &[MAX, MAX, 0]],
            one_row: &[1, 7],
            normalises: false,
        },
    ]
}

pub(crate) fn passes<T: Element>() -> Vec<Entry> {
    let of = |subject: Subject<T>| {
        let rows = lengths(subject).into_iter().chain(shapes(subject)).chain(values(subject));
        entry(format!("layers::{}: its passes", subject.name), rows)
    };
    subjects().into_iter().map(of).collect()
}

/// Outputs of another shape, and too little room.
fn lengths<T: Element>(subject: Subject<T>) -> Vec<Row> {
    let mut rows = Vec::new();
    let mut refused = |kind, input: &str, pass: Pass, words: &[&str], change: fn(&mut Call<T>)| {
        rows.push(row(kind, format!("{pass:?}: {input}"), shape(words), move || {
            let layer = (subject.make)();
            let right = Shape::new(subject.right);
            let mut call = Call::right(layer.as_ref(), right);
            change(&mut call);
            Case::new(layer, right, &call, 0).pass(pass, &call)
        }));
    };
    for pass in PASSES {
        refused(Truncated, "an output of fewer rows", pass, &["y or dy: expected"], |call| {
            call.y = less(call.y);
            shorten(&mut call.dy);
        });
        let has_scratch = (subject.make)().scratch_len(Shape::new(subject.right)) > 0;
        if has_scratch {
            refused(Truncated, "scratch one short", pass, &["scratch: expected at least"], |call| {
                call.scratch_missing = 1
            });
        }
        let has_saved = (subject.make)().saved_len(Shape::new(subject.right)) > 0;
        if has_saved && pass != Pass::Infer {
            refused(Truncated, "saved one short", pass, &["saved: expected at least"], |call| call.saved_missing = 1);
        }
    }
    refused(Mismatched, "dx of fewer rows", Pass::Backward, &["dx: expected"], |call| call.dx = less(call.dx));
    refused(Mismatched, "dx of no dimensions", Pass::Backward, &["dx: expected", "found []"], |call| {
        call.dx = Shape::new(&[])
    });
    refused(Mismatched, "y of one dimension", Pass::Forward, &["y or dy: expected"], |call| {
        call.y = [call.y.len()].into()
    });
    if subject.name == "Relu" {
        refused(Mismatched, "a base of fewer rows", Pass::Held, &["ReLU: base: expected"], |call| {
            shorten(&mut call.base)
        });
    }
    rows
}

/// The shape with a row less.
fn less(shape: Shape) -> Shape {
    let mut dims = shape.dims().to_vec();
    dims[0] -= 1;
    Shape::new(&dims)
}

fn shorten<T>(of: &mut (Shape, Vec<T>)) {
    of.0 = less(of.0);
    of.1.truncate(of.0.len());
}

/// Inputs that the layer does not take, inputs without values, and inputs beyond memory.
fn shapes<T: Element>(subject: Subject<T>) -> Vec<Row> {
    let mut rows = Vec::new();
    for &dims in subject.wrong {
        let wrong = Shape::new(dims);
        let said = format!("{}, found {wrong}", subject.says);
        let kind = if dims.is_empty() { Empty } else { Mismatched };
        rows.push(row(kind, format!("output_shape of {wrong}"), shape(&[&said]), move || {
            attempt(&mut (subject.make)(), |layer| layer.output_shape(wrong).map(drop))
        }));
        // What is too large to be there cannot be passed.
        for pass in PASSES.into_iter().filter(|_| wrong.checked_len().is_some_and(|len| len < 1000)) {
            rows.push(row(kind, format!("{pass:?} of {wrong}"), shape(&[&said]), move || {
                let layer = (subject.make)();
                let call = Call::right(layer.as_ref(), wrong);
                Case::new(layer, Shape::new(subject.right), &call, 0).pass(pass, &call)
            }));
        }
    }
    for &dims in subject.empty {
        let kind = if dims[0] == 0 { ZeroRows } else { Empty };
        rows.push(row(kind, format!("{:?}", Shape::new(dims)), gives("nothing, and nothing changes"), move || {
            let mut layer = (subject.make)();
            let shape = Shape::new(dims);
            let (before, call) = (state(layer.as_mut()), Call::right(layer.as_ref(), shape));
            let mut case = Case::new(layer, shape, &call, 0);
            for pass in PASSES {
                case.pass(pass, &call)?;
                assert_same_bits(&format!("state after {pass:?}"), &state(case.layer.as_mut()), &before);
            }
            Ok(())
        }));
    }
    rows.push(row(Mismatched, "room for inputs that it does not take", gives("any number"), move || {
        let layer = (subject.make)();
        for &dims in subject.wrong {
            let _ = (layer.saved_len(Shape::new(dims)), layer.scratch_len(Shape::new(dims)));
        }
        Ok(())
    }));
    let right = subject.right;
    rows.push(row(
        Overflow,
        "room for more rows than can be addressed",
        gives("lengths that no slice has, or that suffice"),
        move || {
            let layer = (subject.make)();
            let mut dims = right.to_vec();
            let one = {
                dims[0] = 1;
                Shape::new(&dims)
            };
            for n in [MAX, MAX / 2, 1 << 60] {
                dims[0] = n;
                let many = Shape::new(&dims);
                assert!(
                    layer.scratch_len(many) >= layer.scratch_len(one) && layer.saved_len(many) >= layer.saved_len(one)
                );
                assert_eq!(layer.output_shape(many)?.dims()[0], n);
            }
            Ok(())
        },
    ));
    rows.push(row(Oversized, "a view of more rows than there are", shape(&["elements"]), move || {
        let mut dims = right.to_vec();
        dims[0] = MAX;
        TensorRef::<T>::new(Shape::new(&dims), &[T::ONE; 35]).map(drop)
    }));
    rows
}

/// What a pass over these numbers writes: y of both modes, dx, and the gradients that came to the parameters.
fn results<T: Element>(subject: &Subject<T>, dims: &[usize], x: &[T], dy: &[T], offset: usize) -> Result<[Vec<T>; 4]> {
    let (mut layer, shape) = ((subject.make)(), Shape::new(dims));
    layer.visit_mut(&mut |p| p.grad.fill(T::ZERO));
    let mut call = Call::right(layer.as_ref(), shape);
    call.x.1 = x.to_vec();
    call.base.1 = x.to_vec();
    call.dy.1 = dy.to_vec();
    let mut case = Case::new(layer, shape, &call, offset);
    case.pass(Pass::Infer, &call)?;
    let inferred = case.y.get().to_vec();
    case.pass(Pass::Forward, &call)?;
    let y = case.y.get().to_vec();
    case.pass(Pass::Held, &call)?;
    assert_same_bits("held at x itself", &comparable(case.y.get()), &comparable(&y));
    case.pass(Pass::Backward, &call)?;
    let mut gradients = Vec::new();
    case.layer.visit(&mut |p| gradients.extend(p.grad));
    Ok([inferred, y, case.dx.get().to_vec(), gradients])
}

fn values<T: Element>(subject: Subject<T>) -> Vec<Row> {
    let len = Shape::new(subject.right).len();
    let outputs = move || (subject.make)().output_shape(Shape::new(subject.right)).map(|shape| shape.len());
    let run = move |x: &[T], dy: &[T], offset| results(&subject, subject.right, x, dy, offset);
    // A value at `place` of x: which elements of y, in evaluation and in training, may differ.
    let touched = move |place: usize, i: usize, outputs: usize, is_training: bool| match subject.name {
        "Linear" => i / (outputs / 5) == place / 7,
        _ if is_training => (subject.group)(i) == (subject.group)(place),
        _ => i == place,
    };
    let poisoned = move |bad: f64| {
        let (x, dy, outputs) = (drawn::<T>(1, len), drawn::<T>(2, outputs()?), outputs()?);
        let clean = run(&x, &dy, 0)?;
        for place in 0..len {
            let [inferred, y, dx, _] = run(&with(&x, place, bad), &dy, 0)?;
            let touched = |i, is_training| touched(place, i, outputs, is_training);
            if bad.is_nan() || subject.normalises {
                nan_only("y in training", &y, &clean[1], |i| touched(i, true));
            }
            if bad.is_nan() {
                nan_only("y in evaluation", &inferred, &clean[0], |i| touched(i, false));
            }
            for (what, found, clean, is_training) in
                [("evaluation", &inferred, &clean[0], false), ("training", &y, &clean[1], true)]
            {
                for i in (0..outputs).filter(|&i| !touched(i, is_training)) {
                    assert_eq!(found[i].bits(), clean[i].bits(), "{bad} at {place}: y[{i}] in {what}");
                }
                let changed = (0..outputs)
                    .filter(|&i| touched(i, is_training))
                    .all(|i| !found[i].is_finite() || found[i].to_f64() == 0.0);
                assert!(changed, "{bad} at {place}: y in {what} is {found:?}");
            }
            if subject.normalises {
                nan_only("dx", &dx, &clean[2], |i| touched(i, true));
            }
        }
        Ok(())
    };
    let one_row = match subject.normalises {
        true => {
            (refused(Variant::OneValuePerChannel, &["cannot take statistics from one value per channel"]), "refused")
        }
        false => (gives("what a row gives"), "one of many"),
    };
    let alone = subject.one_row;
    vec![
        row(Nan, "NaN at each place of x", gives("NaN in what depends on it, elsewhere the same bits"), move || {
            poisoned(f64::NAN)
        }),
        row(Infinite, "infinity at each place", gives("nothing finite in what depends on it"), move || {
            poisoned(f64::INFINITY)
        }),
        row(Infinite, "minus infinity at each place", gives("the same, or 0 behind ReLU"), move || {
            poisoned(-f64::INFINITY)
        }),
        row(Nan, "NaN at each place of dy", gives("gradients NaN where they depend on it"), move || {
            let (x, dy) = (vec![T::ONE; len], drawn::<T>(2, outputs()?));
            let x: Vec<T> = x.iter().zip(drawn::<T>(1, len)).map(|(&one, x)| one + x * x).collect();
            let clean = run(&x, &dy, 0)?;
            for place in 0..dy.len() {
                let [_, y, dx, gradients] = run(&x, &with(&dy, place, f64::NAN), 0)?;
                assert_same_bits("y", &bits(&y), &bits(&clean[1]));
                nan_only("dx", &dx, &clean[2], |i| match subject.name {
                    "Linear" => i / 7 == place / (dy.len() / 5),
                    _ => (subject.group)(i) == (subject.group)(place),
                });
                let nans = gradients.iter().filter(|g| g.to_f64().is_nan()).count();
                // A column of the weight and its bias; scale and shift of a channel; nothing.
                let wanted = if subject.normalises {
                    2
                } else if gradients.is_empty() {
                    0
                } else {
                    8
                };
                assert_eq!(nans, wanted, "gradients of parameters that are NaN");
            }
            Ok(())
        }),
        row(Subnormal, "subnormal x and dy", gives("computed as any others"), move || {
            let (tiny, outputs) = (T::LARGEST_SUBNORMAL, outputs()?);
            let x: Vec<T> = (0..len).map(|i| if i % 2 == 0 { tiny } else { T::ZERO }).collect();
            let found = run(&x, &vec![tiny; outputs], 0)?;
            assert!(found.iter().flatten().all(|x| x.is_finite()));
            if subject.name == "Relu" {
                assert_same_bits("y", &bits(&found[1]), &bits(&x));
                assert_same_bits("dx", &bits(&found[2]), &bits(&x));
            } else {
                assert!(found[2].iter().chain(&found[3]).any(|x| x.to_f64() != 0.0), "all gradients were lost");
            }
            Ok(())
        }),
        row(
            Overflow,
            "numbers whose squares overflow",
            gives("y of the order of 1 where it is normalised"),
            move || {
                let half = T::from_f64(largest::<T>().to_f64() / 2.0);
                let x: Vec<T> = (0..len).map(|i| if i % 5 == 0 { half } else { -half }).collect();
                let found = run(&x, &vec![T::ONE; outputs()?], 0)?;
                if subject.name != "Linear" {
                    assert!(found[1].iter().all(|y| y.is_finite()));
                }
                if subject.normalises {
                    assert!(found[1].iter().all(|y| y.to_f64().abs() < 5.0), "{:?}", found[1]);
                }
                Ok(())
            },
        ),
        row(
            Overflow,
            "the largest numbers of the type",
            gives("infinity where a sum or a distance does not fit"),
            move || {
                let x: Vec<T> = (0..len).map(|i| if i % 5 == 0 { largest::<T>() } else { -largest::<T>() }).collect();
                let found = run(&x, &vec![largest(); outputs()?], 0)?;
                // Far above the mean of its channel, or of the order of 1.
                let right = |i: usize| x[i].to_f64() > 0.0 && found[1][i].to_f64() == f64::INFINITY;
                if subject.normalises {
                    assert!((0..len).all(|i| right(i) || found[1][i].to_f64().abs() < 5.0), "{:?}", found[1]);
                }
                Ok(())
            },
        ),
        row(Misaligned, "every offset to 16", gives("the same bits"), move || {
            let outputs = outputs()?;
            same_at_every_offset(|offset| bits(&run(&drawn(1, len), &drawn(2, outputs), offset).unwrap().concat()));
            Ok(())
        }),
        row(OneRow, format!("{alone:?} is {}", one_row.1), one_row.0, move || {
            let (x, outputs) =
                (drawn::<T>(1, Shape::new(alone).len()), (subject.make)().output_shape(Shape::new(alone))?.len());
            let [inferred, y, ..] = results(&subject, alone, &x, &drawn(2, outputs), 0)?;
            assert_same_bits("both modes", &bits(&inferred), &bits(&y));
            Ok(())
        }),
    ]
}

impl<T: Element> Written for Box<dyn Layer<T>> {
    fn numbers(&mut self) -> Vec<u64> {
        state(self.as_mut())
    }
}

// ---- Making layers, and setting what they hold.

pub(crate) fn making<T: Element>() -> Vec<Entry> {
    vec![
        entry("layers::Linear: made and set", linear_made::<T>()),
        entry("layers::BatchNorm1d, BatchNorm2d: made and set", norms_made::<T>()),
    ]
}

fn linear_made<T: Element>() -> Vec<Row> {
    let sized = |kind, inputs: usize, outputs: usize, words: &[&str]| {
        row(kind, format!("{inputs} inputs, {outputs} outputs"), shape(words), move || {
            let rng = &mut Rng::new(1, "init");
            let refused = Linear::<T>::new(inputs, outputs, rng).map(drop);
            assert_eq!(rng.next_u64(), Rng::new(1, "init").next_u64(), "numbers were drawn");
            refused
        })
    };
    let set = |kind, input: &'static str, outcome: Outcome, setter: fn(&mut Linear<T>) -> Result<()>| {
        row(kind, input, outcome, move || {
            let mut layer = linear(3, 2);
            let before = (bits(&layer.weight()), layer.bias().map(bits));
            let result = setter(&mut layer);
            let after = (bits(&layer.weight()), layer.bias().map(bits));
            assert_eq!(result.is_err(), before == after, "what was refused was set");
            result
        })
    };
    vec![
        sized(Empty, 0, 5, &["linear: expected at least one input and one output", "0 inputs, 5 outputs"]),
        sized(Empty, 5, 0, &["at least one input and one output"]),
        sized(Overflow, MAX, 2, &["tensor: expected a size that fits an address"]),
        sized(Overflow, 1 << 32, 1 << 32, &["a size that fits an address"]),
        sized(Oversized, 1 << 28, 1 << 28, &["a size that the system has memory for"]),
        set(Truncated, "a weight too short", shape(&["expected [2, 3], found 5 elements"]), |l| {
            l.set_weight(&[T::ONE; 5])
        }),
        set(Mismatched, "a weight too long", shape(&["expected [2, 3], found 7 elements"]), |l| {
            l.set_weight(&[T::ONE; 7])
        }),
        set(Empty, "no weight", shape(&["found 0 elements"]), |l| l.set_weight(&[])),
        set(Truncated, "a bias too short", shape(&["expected [2], found 1 elements"]), |l| l.set_bias(&[T::ONE])),
        set(Mismatched, "a bias too long", shape(&["expected [2], found 3 elements"]), |l| l.set_bias(&[T::ONE; 3])),
        set(Nan, "a weight that is NaN", gives("the weight"), |l| l.set_weight(&[T::from_f64(f64::NAN); 6])),
        row(
            Mismatched,
            "a bias where there is none",
            shape(&["linear: bias: expected none, found 2 elements"]),
            || linear::<T>(3, 2).without_bias().set_bias(&[T::ONE; 2]),
        ),
    ]
}

fn norms_made<T: Element>() -> Vec<Row> {
    let normal = BatchNormOptions::default();
    let all = |channels: usize, options: BatchNormOptions| -> Result<()> {
        let one = BatchNorm1d::<T>::with_options(channels, options).map(drop);
        for layout in [ImageLayout::Nchw, ImageLayout::Nhwc] {
            let two = BatchNorm2d::<T>::with_options(channels, layout, options).map(drop);
            assert_eq!(format!("{one:?}"), format!("{two:?}"));
        }
        one
    };
    let sized = |kind, channels: usize, words: &[&str]| {
        row(kind, format!("{channels} channels"), shape(words), move || all(channels, normal))
    };
    let eps = |kind, eps: f64| {
        row(kind, format!("eps {eps}"), invalid(&["batchnorm: eps is", "finite and at least 0"]), move || {
            all(3, BatchNormOptions { eps, ..normal })
        })
    };
    let momentum = |kind, momentum: f64| {
        row(kind, format!("momentum {momentum}"), invalid(&["batchnorm: momentum is", "finite"]), move || {
            all(3, BatchNormOptions { momentum: Some(momentum), ..normal })
        })
    };
    // Legal options, and what a pass with them says.
    let passes = |kind, input: &'static str, outcome, options: BatchNormOptions, var: f64, pass: Pass| {
        row(kind, input, outcome, move || {
            let mut layer = BatchNorm1d::<T>::with_options(3, options)?;
            layer.visit_buffers_mut(&mut |name, values| {
                if name == "running_var" {
                    values[2] = T::from_f64(var);
                }
            });
            let shape = Shape::new(&[4, 3]);
            let call = Call::right(&layer, shape);
            let mut case = Case::new(Box::new(layer), shape, &call, 0);
            case.pass(pass, &call)?;
            let y = case.y.get();
            assert!((0..12).all(|i| y[i].is_finite() == (i % 3 != 2 || !var.is_nan())), "{y:?}");
            Ok(())
        })
    };
    let (nan, infinity) = (f64::NAN, f64::INFINITY);
    let untracked = BatchNormOptions { track_running_stats: false, ..normal };
    let no_eps = BatchNormOptions { eps: 0.0, ..normal };
    vec![
        sized(Empty, 0, &["batchnorm: expected at least one channel, found 0"]),
        sized(Overflow, MAX, &["tensor: expected a size that fits an address"]),
        sized(Oversized, 1 << 55, &["a size that the system has memory for"]),
        eps(Senseless, -1e-5),
        eps(Nan, nan),
        eps(Infinite, infinity),
        eps(Infinite, -infinity),
        momentum(Nan, nan),
        momentum(Infinite, infinity),
        row(Senseless, "a momentum outside 0 to 1", gives("a layer, as PyTorch does"), move || {
            all(3, BatchNormOptions { momentum: Some(-1.2), ..normal })
        }),
        row(Subnormal, "a subnormal eps", gives("a layer"), move || all(3, BatchNormOptions { eps: 1e-310, ..normal })),
        passes(
            Senseless,
            "eps 0 in training",
            invalid(&["eps is 0", "finite and above 0"]),
            no_eps,
            1.0,
            Pass::Forward,
        ),
        passes(Senseless, "eps 0 in evaluation", gives("numbers"), no_eps, 1.0, Pass::Infer),
        passes(
            Senseless,
            "eps 0 and a variance of 0",
            invalid(&["running variance + eps of channel 2 is 0"]),
            no_eps,
            0.0,
            Pass::Infer,
        ),
        passes(
            Senseless,
            "a negative variance",
            invalid(&["running variance + eps of channel 2"]),
            normal,
            -1.0,
            Pass::Infer,
        ),
        passes(
            Infinite,
            "a variance of minus infinity",
            invalid(&["running variance + eps of channel 2 is -inf"]),
            normal,
            -infinity,
            Pass::Infer,
        ),
        passes(Nan, "a variance of NaN", gives("NaN in its channel"), normal, nan, Pass::Infer),
        passes(Infinite, "a variance of infinity", gives("the shift in its channel"), normal, infinity, Pass::Infer),
        row(
            OneRow,
            "one row in evaluation without running statistics",
            refused(Variant::OneValuePerChannel, &["3 channels"]),
            move || {
                let layer = BatchNorm1d::<T>::with_options(3, untracked)?;
                let call = Call::right(&layer, Shape::new(&[1, 3]));
                Case::new(Box::new(layer), Shape::new(&[1, 3]), &call, 0).pass(Pass::Infer, &call)
            },
        ),
    ]
}
