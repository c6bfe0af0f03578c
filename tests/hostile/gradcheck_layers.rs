//! Gradient checks of layers, models and plans: layers and models are left as they were, bit for bit, whatever comes of
//! the check, an error or a panic in the middle of it too.

use crate::gradcheck::{Checked, TOLERANCES, in_both_modes, sound, wrong};
use crate::kernels::{largest, same_at_every_offset, with};
use crate::layers::state;
use crate::models::{batch, trained};
use crate::support::*;
use crate::table::Kind::*;
use crate::table::*;
use evenkeel::gradcheck::GradCheck;
use evenkeel::layers::{BatchNorm1d, BatchNormOptions, Layer, Linear, Parameter, ParameterMut};
use evenkeel::loss::Targets;
use evenkeel::model::plan::Fusion;
use evenkeel::simd::Element;
use evenkeel::tensor::{Shape, Tensor, TensorMut, TensorRef};
use evenkeel::{Error, Loss, Result, Rng, Sequential};
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

const MAX: usize = usize::MAX;
const NAN: f64 = f64::NAN;
const INFINITY: f64 = f64::INFINITY;
const CLASSES: [u8; 4] = [0, 1, 1, 0];

#[derive(Clone, Copy, Debug, PartialEq)]
enum Pass {
    Forward,
    Held,
    Backward,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    None,
    /// An error in this pass, the so-many-th of its kind, when all that the layer holds is spoilt.
    Fails(Pass, usize),
    /// A panic there.
    Panics(Pass, usize),
    /// `visit_mut` shows a bias that `visit` does not.
    HidesItsBias,
    /// `visit` shows a bias that `visit_mut` does not.
    KeepsItsBias,
    HasFewerGradients,
    /// A shape of more elements than an address reaches.
    OverflowsItsShape,
    /// The batch is centred by its total, which stays that of the base point; backward knows of that one only.
    HoldsItsTotal,
    /// What the weight is called.
    Calls(&'static str),
    /// Outputs of so many rows.
    Gives(usize),
    /// A need for so many saved values.
    Saves(usize),
}

/// `y = w x + b` over `[n, 3]`, honest but for its fault. Each pass moves a statistic and a count.
struct Own<T> {
    fault: Fault,
    values: [Vec<T>; 2],
    grads: [Vec<T>; 2],
    seen: Vec<T>,
    batches: u64,
    passes: [usize; 3],
}

impl<T: Element> Own<T> {
    fn new(fault: Fault) -> Self {
        let one = |x| vec![T::from_f64(x)];
        let dbias = if fault == Fault::HasFewerGradients { vec![] } else { one(0.75) };
        let (values, grads) = ([one(1.5), one(-0.5)], [one(0.25), dbias]);
        Own { fault, values, grads, seen: one(3.0), batches: 7, passes: [0; 3] }
    }

    fn numbers(&self) -> Vec<u64> {
        let all = self.values.iter().chain(&self.grads).chain([&self.seen]);
        all.flat_map(|values| bits(values)).chain([self.batches]).collect()
    }

    fn name(&self) -> &'static str {
        if let Fault::Calls(name) = self.fault { name } else { "attn.weight" }
    }

    fn move_on(&mut self, pass: Pass) -> Result<()> {
        self.passes[pass as usize] += 1;
        self.seen[0] = self.seen[0] + T::ONE;
        self.batches += 1;
        match self.fault {
            Fault::Fails(at, nth) | Fault::Panics(at, nth) if (at, nth) == (pass, self.passes[pass as usize]) => {}
            _ => return Ok(()),
        }
        self.values.iter_mut().chain(&mut self.grads).for_each(|values| values.fill(T::ONE));
        assert!(matches!(self.fault, Fault::Fails(..)), "own panics");
        Err(Error::Invalid { what: "own".to_string(), value: "spoilt".to_string(), expected: "whole".to_string() })
    }

    fn total(&self, base: &[T]) -> T {
        if self.fault != Fault::HoldsItsTotal {
            return T::ZERO;
        }
        base.iter().fold(T::ZERO, |sum, x| sum + *x)
    }

    fn map(&self, base: &[T], x: &[T], y: &mut [T]) {
        let (total, w, b) = (self.total(base), self.values[0][0], self.values[1][0]);
        y.iter_mut().zip(x).for_each(|(y, x)| *y = w * (*x - total) + b);
    }
}

impl<T: Element> Layer<T> for Own<T> {
    fn describe(&self) -> String {
        "own".to_string()
    }

    fn output_shape(&self, input: Shape) -> Result<Shape> {
        match (input.dims(), self.fault) {
            ([_, 3], Fault::Gives(rows)) => Ok([rows, 3].into()),
            ([_, 3], _) => Ok(input),
            _ => {
                let (what, expected) = ("own".to_string(), "[n, 3]".to_string());
                Err(Error::Shape { what, expected, found: input.to_string() })
            }
        }
    }

    fn saved_len(&self, _: Shape) -> usize {
        if let Fault::Saves(len) = self.fault { len } else { 0 }
    }

    fn infer(&self, x: TensorRef<'_, T>, mut y: TensorMut<'_, T>, _: &mut [T]) -> Result<()> {
        self.map(x.data(), x.data(), y.data());
        Ok(())
    }

    fn forward(&mut self, x: TensorRef<'_, T>, mut y: TensorMut<'_, T>, _: &mut [T], _: &mut [T]) -> Result<()> {
        self.map(x.data(), x.data(), y.data());
        self.move_on(Pass::Forward)
    }

    fn forward_held(
        &mut self,
        base: TensorRef<'_, T>,
        x: TensorRef<'_, T>,
        mut y: TensorMut<'_, T>,
        _: &mut [T],
        _: &mut [T],
    ) -> Result<()> {
        self.map(base.data(), x.data(), y.data());
        self.move_on(Pass::Held)
    }

    fn backward(
        &mut self,
        x: TensorRef<'_, T>,
        dy: TensorRef<'_, T>,
        dx: Option<TensorMut<'_, T>>,
        _: &[T],
        _: &mut [T],
    ) -> Result<()> {
        let (total, w) = (self.total(x.data()), self.values[0][0]);
        for (x, dy) in x.data().iter().zip(dy.data()) {
            self.grads[0][0] = self.grads[0][0] + (*x - total) * *dy;
            // A gradient that cannot be written cannot be put back.
            if let Some(dbias) = self.grads[1].first_mut().filter(|_| self.fault != Fault::KeepsItsBias) {
                *dbias = *dbias + *dy;
            }
        }
        if let Some(mut dx) = dx {
            dx.data().iter_mut().zip(dy.data()).for_each(|(dx, dy)| *dx = w * *dy);
        }
        self.move_on(Pass::Backward)
    }

    fn visit(&self, f: &mut dyn FnMut(Parameter<'_, T>)) {
        let shape = if self.fault == Fault::OverflowsItsShape { [MAX, 2].into() } else { [1].into() };
        f(Parameter { name: self.name(), shape, value: &self.values[0], grad: &self.grads[0] });
        if self.fault != Fault::HidesItsBias {
            f(Parameter { name: "attn.bias", shape: [1].into(), value: &self.values[1], grad: &self.grads[1] });
        }
    }

    fn visit_mut(&mut self, f: &mut dyn FnMut(ParameterMut<'_, T>)) {
        let (name, [weight, bias], [dweight, dbias]) = (self.name(), &mut self.values, &mut self.grads);
        f(ParameterMut { name, value: weight, grad: dweight });
        if self.fault != Fault::KeepsItsBias {
            f(ParameterMut { name: "attn.bias", value: bias, grad: dbias });
        }
    }

    fn visit_buffers_mut(&mut self, f: &mut dyn FnMut(&'static str, &mut [T])) {
        f("seen", &mut self.seen);
    }

    fn visit_counts_mut(&mut self, f: &mut dyn FnMut(&'static str, &mut u64)) {
        f("batches", &mut self.batches);
    }
}

/// A check, after which every number that its subject holds is what it was.
fn untouched<S>(
    mut subject: S,
    numbers: impl Fn(&mut S) -> Vec<u64>,
    check: impl FnOnce(&mut S) -> Checked,
) -> Checked {
    let before = numbers(&mut subject);
    let outcome = catch_unwind(AssertUnwindSafe(|| check(&mut subject)));
    assert_same_bits("what was checked", &numbers(&mut subject), &before);
    outcome.unwrap_or_else(|cause| resume_unwind(cause))
}

/// How a layer is checked: by itself, between two Linears, and in the plan of those.
#[derive(Clone, Copy)]
struct Way<T: Element> {
    name: &'static str,
    check: fn(GradCheck, Own<T>, TensorRef<'_, T>) -> Checked,
    /// What is put in front of its parameters' names.
    place: &'static str,
    /// A tensor that is wrong if the batch is no number.
    first: &'static str,
}

fn ways<T: Element>() -> [Way<T>; 3] {
    [
        Way {
            name: "GradCheck::layer",
            check: |check, own, x| untouched(own, |own| own.numbers(), |own| check.layer(own, x)),
            place: "",
            first: "x",
        },
        Way {
            name: "GradCheck::model",
            check: |check, own, x| {
                let numbers = |model: &mut Sequential<T>| {
                    let mut own = Vec::new();
                    for layer in model.layers() {
                        let layer: &dyn Any = layer;
                        own.extend(layer.downcast_ref::<Own<T>>().map(Own::numbers).unwrap_or_default());
                    }
                    [model.numbers(), own].concat()
                };
                let model = between(own);
                untouched(model, numbers, |model| check.model(model, Loss::CrossEntropy, x, classes_of(x)))
            },
            place: "1.",
            first: "x",
        },
        Way {
            name: "GradCheck::plan",
            check: |check, own, x| check.plan(between(own), Fusion::On, Loss::CrossEntropy, x, classes_of(x)),
            place: "1.",
            first: "0.weight",
        },
    ]
}

fn between<T: Element>(own: Own<T>) -> Sequential<T> {
    let linear = |outputs| Linear::new(3, outputs, &mut Rng::new(1, "init")).unwrap();
    Sequential::new().push(linear(3)).push(own).push(linear(2))
}

fn classes_of<T>(x: TensorRef<'_, T>) -> Targets<'static, T> {
    Targets::Classes(&CLASSES[..x.shape().dims().first().map_or(0, |rows| *rows)])
}

pub(crate) fn checks<T: Element>() -> Vec<Entry> {
    let mut table: Vec<Entry> =
        ways::<T>().into_iter().map(|way| entry(format!("{}: a layer of one's own", way.name), of_own(way))).collect();
    table.push(entry("GradCheck::layer: ours", ours::<T>()));
    table.push(entry("GradCheck::model, plan: ours", models::<T>()));
    table
}

fn of_own<T: Element>(way: Way<T>) -> Vec<Row> {
    use Pass::*;
    let right = || batch::<T>(&[4, 3]);
    let mut rows = Vec::new();
    let mut with_fault = |kind, fault, outcome| {
        rows.push(row(kind, format!("{fault:?}"), outcome, move || {
            in_both_modes(|check| sound((way.check)(check, Own::new(fault), right().view())))
        }));
    };
    with_fault(Mismatched, Fault::HidesItsBias, shape(&["visit_mut", "what visit shows", "attn.bias"]));
    with_fault(Mismatched, Fault::KeepsItsBias, shape(&["visit_mut", "what visit shows", "attn.bias"]));
    with_fault(Truncated, Fault::HasFewerGradients, shape(&["attn.bias: expected 1 values, found 0 gradients"]));
    with_fault(Overflow, Fault::OverflowsItsShape, shape(&["attn.weight: expected [", "2], found 1 values"]));
    with_fault(Senseless, Fault::HoldsItsTotal, invalid(&["forward_held"]));
    // A plan takes no layer that gives more rows than it takes.
    let [wraps, fills] = match way.name {
        "GradCheck::plan" => ["own: rows of the output: expected as many as of the input"; 2],
        _ => ["a size that fits an address", "a size that the system has memory for"],
    };
    with_fault(Overflow, Fault::Gives(MAX), shape(&[wraps]));
    with_fault(Oversized, Fault::Gives(1 << 50), shape(&[fills]));
    with_fault(Overflow, Fault::Saves(MAX), shape(&["a size that fits an address"]));
    for (pass, nth) in [(Forward, 1), (Held, 1), (Held, 2), (Held, 40), (Backward, 1), (Backward, 2)] {
        // The gradients of a plan take the place of those before: it goes back once.
        if way.name == "GradCheck::plan" && (pass, nth) == (Backward, 2) {
            continue;
        }
        with_fault(Senseless, Fault::Fails(pass, nth), invalid(&["own is spoilt, but must be whole"]));
        with_fault(Senseless, Fault::Panics(pass, nth), panics(&["own panics"]));
    }
    for name in ["attn.weight", "0.weight", ".", ""] {
        rows.push(row(Senseless, format!("a parameter called {name:?}"), gives("a pass by that name"), move || {
            in_both_modes(|check| {
                let checked = (way.check)(check, Own::new(Fault::Calls(name)), right().view());
                if let Ok(report) = &checked {
                    assert!(report.tensor(&format!("{}{name}", way.place)).is_some(), "{report}");
                }
                sound(checked)
            })
        }));
    }
    let over = |kind, dims: &'static [usize], outcome| {
        row(kind, format!("a batch of {dims:?}"), outcome, move || {
            in_both_modes(|check| sound((way.check)(check, Own::new(Fault::None), batch(dims).view())))
        })
    };
    let filled = |kind, x: fn() -> Tensor<T>| {
        row(kind, format!("a batch of {:?}", x().data()[4]), gives("an answer"), move || {
            in_both_modes(|check| {
                drop((way.check)(check, Own::new(Fault::None), x().view()));
                Ok(())
            })
        })
    };
    let poisoned = |kind, value: f64| {
        row(kind, format!("{value} in a batch"), gives("a failure that names what depends on it"), move || {
            let x = Tensor::from_slice([4, 3], &with(right().data(), 4, value))?;
            in_both_modes(|check| wrong((way.check)(check, Own::new(Fault::None), x.view()), way.first))
        })
    };
    rows.extend([
        over(Empty, &[], shape(&["found []"])),
        over(Truncated, &[3], shape(&["found [3]"])),
        over(Mismatched, &[4, 2], shape(&["found [4, 2]"])),
        over(Mismatched, &[4, 3, 1], shape(&["found [4, 3, 1]"])),
        over(ZeroRows, &[0, 3], gives("a pass")),
        over(OneRow, &[1, 3], gives("a pass")),
        filled(Subnormal, || Tensor::from_slice([4, 3], &[T::LARGEST_SUBNORMAL; 12]).unwrap()),
        filled(Overflow, || Tensor::from_slice([4, 3], &[largest(); 12]).unwrap()),
        poisoned(Nan, NAN),
        poisoned(Infinite, -INFINITY),
        row(Misaligned, "a batch at every offset to 16", gives("the same report"), move || {
            same_at_every_offset(|offset| {
                let x = Guarded::new(right().data(), offset);
                let x = TensorRef::new([4, 3], x.get()).unwrap();
                let report = (way.check)(GradCheck::new(7).fast(), Own::new(Fault::None), x).unwrap();
                report.to_json().bytes().map(u64::from).collect()
            });
            Ok(())
        }),
    ]);
    rows.extend(TOLERANCES.map(|(rtol, atol, said)| {
        row(Senseless, said, invalid(&[said, "at least 0 and below 1"]), move || {
            let own = || Own::new(Fault::None);
            in_both_modes(|check| sound((way.check)(check.tolerance(rtol, atol), own(), right().view())))
        })
    }));
    rows
}

fn ours<T: Element>() -> Vec<Row> {
    type Make<T> = fn() -> Result<Box<dyn Layer<T>>>;
    let norm: Make<T> = || Ok(Box::new(BatchNorm1d::new(3)?));
    let linear: Make<T> = || Ok(Box::new(Linear::new(3, 2, &mut Rng::new(1, "init"))?));
    let check = |make: Make<T>, x: &Tensor<T>, judge: fn(Checked) -> Result<()>| {
        in_both_modes(|check| {
            judge(untouched(make()?, |layer| state(layer.as_mut()), |layer| check.layer(layer.as_mut(), x.view())))
        })
    };
    let over = move |kind, input: &'static str, make: Make<T>, dims: &'static [usize], outcome| {
        row(kind, format!("{input} over {dims:?}"), outcome, move || check(make, &batch(dims), sound))
    };
    let poisoned = move |kind, input: &'static str, make: Make<T>, value: f64| {
        row(kind, format!("{value} for {input}"), gives("a failure that names x"), move || {
            let x = Tensor::from_slice([4, 3], &with(batch(&[4, 3]).data(), 4, value))?;
            check(make, &x, |checked| wrong(checked, "x"))
        })
    };
    vec![
        over(ZeroRows, "BatchNorm1d", norm, &[0, 3], gives("a pass")),
        over(OneRow, "BatchNorm1d", norm, &[1, 3], refused(Variant::OneValuePerChannel, &["3 channels"])),
        over(Mismatched, "BatchNorm1d", norm, &[4, 2], shape(&["BatchNorm1d(3)", "found [4, 2]"])),
        over(ZeroRows, "Linear", linear, &[0, 3], gives("a pass")),
        over(OneRow, "Linear", linear, &[1, 3], gives("a pass")),
        over(Empty, "Linear", linear, &[], shape(&["Linear(3, 2): expected [n, 3], found []"])),
        over(
            Senseless,
            "BatchNorm1d without eps",
            || Ok(Box::new(BatchNorm1d::with_options(3, BatchNormOptions { eps: 0.0, ..Default::default() })?)),
            &[4, 3],
            invalid(&["eps is 0"]),
        ),
        poisoned(Nan, "BatchNorm1d", norm, NAN),
        poisoned(Infinite, "BatchNorm1d", norm, INFINITY),
        poisoned(Nan, "Linear", linear, NAN),
        poisoned(Infinite, "Linear", linear, INFINITY),
    ]
}

/// Checks of a model and of its plan: each must come to what the row says.
fn models<T: Element>() -> Vec<Row> {
    type Make<T> = fn() -> Sequential<T>;
    type Judge = fn(Checked, &str) -> Result<()>;
    let both = |make: Make<T>, loss, x: &Tensor<T>, targets: Targets<'_, T>, judge: Judge| {
        in_both_modes(|check| {
            let by_layers = untouched(make(), Sequential::numbers, |model| check.model(model, loss, x.view(), targets));
            let plan = check.plan(make(), Fusion::On, loss, x.view(), targets);
            let (by_layers, plan) = (judge(by_layers, "0.weight"), judge(plan, "0.weight"));
            assert_eq!(by_layers.is_ok(), plan.is_ok(), "layer by layer: {by_layers:?}; the plan: {plan:?}");
            by_layers.and(plan)
        })
    };
    let whole: Judge = |checked, _| sound(checked);
    let network: Make<T> = || trained().0;
    let over = move |kind, dims: &'static [usize], classes: &'static [u8], outcome| {
        row(kind, format!("{} classes for {dims:?}", classes.len()), outcome, move || {
            both(network, Loss::CrossEntropy, &batch(dims), Targets::Classes(classes), whole)
        })
    };
    let values = move |kind, value: f64, len: usize, loss, outcome, judge: Judge| {
        row(kind, format!("{len} targets of {value:e} for {loss:?}"), outcome, move || {
            let values = with(&vec![T::ZERO; len], 0, value);
            both(network, loss, &batch(&[4, 3]), Targets::Values(&values), judge)
        })
    };
    let fails = || gives("a failure that names the first weight");
    vec![
        row(Empty, "no layers", shape(&["model: expected at least one layer, found 0"]), move || {
            both(Sequential::new, Loss::CrossEntropy, &batch(&[4, 3]), Targets::Classes(&CLASSES), whole)
        }),
        over(ZeroRows, &[0, 3], &[], gives("a pass")),
        over(OneRow, &[1, 3], &[1], refused(Variant::OneValuePerChannel, &["2 channels"])),
        over(Empty, &[4, 3], &[], shape(&["cross-entropy: classes: expected [4], found [0]"])),
        over(Truncated, &[4, 3], &[0, 1, 2], shape(&["cross-entropy: classes: expected [4], found [3]"])),
        over(Mismatched, &[4, 3], &[0; 5], shape(&["cross-entropy: classes: expected [4], found [5]"])),
        over(Oversized, &[4, 3], &[0, 1, 4, 0], invalid(&["label of row 2 is 4", "below 4"])),
        values(Mismatched, 0.0, 16, Loss::CrossEntropy, invalid(&["cross-entropy: targets is values"]), whole),
        values(Truncated, 0.0, 15, Loss::Mse, shape(&["mse: values", "15 elements"]), whole),
        values(Nan, NAN, 16, Loss::Mse, fails(), wrong),
        values(Infinite, INFINITY, 16, Loss::Mse, fails(), wrong),
        values(Overflow, largest::<T>().to_f64(), 16, Loss::Mse, fails(), wrong),
        row(Mismatched, "classes for Mse", invalid(&["mse: targets is classes"]), move || {
            both(network, Loss::Mse, &batch(&[4, 3]), Targets::Classes(&CLASSES), whole)
        }),
    ]
}
