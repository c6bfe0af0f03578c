//! Gradient checks of functions: what cannot be checked is refused, and what is no number never passes.

use crate::support::narrow;
use crate::table::Kind::*;
use crate::table::*;
use evenkeel::Result;
use evenkeel::gradcheck::{Failure, GradCheck, Input, Report, normal_batch};
use evenkeel::simd::Element;
use evenkeel::tensor::Shape;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

const MAX: usize = usize::MAX;
const NAN: f64 = f64::NAN;
const INFINITY: f64 = f64::INFINITY;

pub(crate) type Checked = std::result::Result<Report, Failure>;

/// A pass, or why there was nothing to check.
pub(crate) fn sound(checked: Checked) -> Result<()> {
    match checked {
        Ok(_) => Ok(()),
        Err(Failure::Refused(error)) => Err(error),
        Err(failure) => panic!("{failure}"),
    }
}

/// A failure that names the tensor, in a report that can be printed.
pub(crate) fn wrong(checked: Checked, tensor: &str) -> Result<()> {
    let report = match checked {
        Ok(report) => panic!("passed: {report}"),
        Err(Failure::Refused(error)) => return Err(error),
        Err(Failure::Gradient(report)) => report,
    };
    assert!(report.tensor(tensor).is_some_and(|tensor| !tensor.passed()), "{tensor} is right: {report}");
    let json = report.to_json();
    assert!(json.contains("\"passed\":false") && !json.contains("NaN") && !json.contains("inf"), "{json}");
    Ok(())
}

/// In full and by directions: both must come to the same.
pub(crate) fn in_both_modes(check: impl Fn(GradCheck) -> Result<()>) -> Result<()> {
    let full = catch_unwind(AssertUnwindSafe(|| check(GradCheck::new(7))));
    let fast = check(GradCheck::new(7).fast());
    let full = full.unwrap_or_else(|cause| resume_unwind(cause));
    assert_eq!(full.is_ok(), fast.is_ok(), "in full and fast");
    full.and(fast)
}

/// Tolerances that are none, and what is said of them.
pub(crate) const TOLERANCES: [(f64, f64, &str); 5] = [
    (NAN, 0.1, "rtol is NaN"),
    (-1e-300, 0.1, "rtol is -"),
    (INFINITY, 0.1, "rtol is inf"),
    (0.1, 1.0, "atol is 1"),
    (0.1, NAN, "atol is NaN"),
];

pub(crate) fn functions() -> Vec<Entry> {
    let mut table: Vec<Entry> = METHODS.into_iter().map(|(name, method)| entry(name, of_method(method))).collect();
    table.extend([
        entry("GradCheck::function: values and closures", of_function()),
        entry("GradCheck::twin: magnitudes and ulps", of_twin()),
        entry("gradcheck::normal_batch", batches()),
    ]);
    table
}

fn squares(x: &[f64], y: &mut [f64]) {
    y.iter_mut().zip(x).for_each(|(y, x)| *y = x * x);
}

fn of_squares<T: Element>(x: &[T], dy: &[T], dx: &mut [T]) {
    for (i, dx) in dx.iter_mut().enumerate() {
        *dx = (x[i] + x[i]) * dy.get(i).copied().unwrap_or(T::ZERO);
    }
}

/// A check of the squares of x, with as many outputs as are asked for.
type Method = fn(GradCheck, Shape, &[f64], usize) -> Checked;

const METHODS: [(&str, Method); 3] = [
    ("GradCheck::function, Input::new", |check, shape, x, outputs| {
        let x = [Input::new("x", shape, x)];
        check.function(x, outputs, |[x], y| squares(x, y), |[x], dy, [dx]| of_squares(x, dy, dx))
    }),
    ("GradCheck::function_against_f64", |check, shape, x, outputs| {
        let x: Vec<f32> = narrow(x);
        let x = [Input::new("x", shape, &x)];
        check.function_against_f64(x, outputs, |[x], y| squares(x, y), |[x], dy, [dx]| of_squares(x, dy, dx))
    }),
    ("GradCheck::twin", |check, shape, x, outputs| {
        let x: Vec<f32> = narrow(x);
        let size = |[x]: [&[f64]; 1], dy: &[f64], [size]: [&mut [f64]; 1]| {
            of_squares(x, dy, size);
            size.iter_mut().for_each(|size| *size = size.abs());
        };
        let single = |[x]: [&[f32]; 1], dy: &[f32], [dx]: [&mut [f32]; 1]| of_squares(x, dy, dx);
        let x = [Input::new("x", shape, &x)];
        check.twin(x, outputs, single, |[x], dy, [dx]| of_squares(x, dy, dx), size, [4.0])
    }),
];

/// What all three methods say of shapes, counts, tolerances and numbers.
fn of_method(method: Method) -> Vec<Row> {
    let of = |kind, dims: &'static [usize], x: &'static [f64], outputs: usize, outcome| {
        row(kind, format!("{} values as {dims:?}, {outputs} outputs", x.len()), outcome, move || {
            in_both_modes(|check| sound(method(check, Shape::new(dims), x, outputs)))
        })
    };
    let no_number = |kind, x: &'static [f64]| {
        row(kind, format!("{x:?}"), gives("a failure that names x"), move || {
            in_both_modes(|check| wrong(method(check, [x.len()].into(), x, x.len()), "x"))
        })
    };
    let tiny = |x: &'static [f64]| {
        row(Subnormal, format!("{x:?}"), gives("an answer"), move || {
            in_both_modes(|check| {
                drop(method(check, [x.len()].into(), x, x.len()));
                Ok(())
            })
        })
    };
    let mut rows = vec![
        of(Empty, &[3], &[], 3, shape(&["gradient check: x: expected [3], found 0 elements"])),
        of(Empty, &[], &[], 1, shape(&["gradient check: x: expected [], found 0 elements"])),
        of(Truncated, &[3], &[1.0, 2.0], 3, shape(&["gradient check: x: expected [3], found 2 elements"])),
        of(Mismatched, &[2], &[1.0, 2.0, 3.0], 3, shape(&["gradient check: x: expected [2], found 3 elements"])),
        of(Overflow, &[MAX, 2], &[], 0, shape(&["gradient check: x: expected [18446744073709551615, 2]"])),
        of(Overflow, &[1 << 63, 2], &[], 0, shape(&["gradient check: x: expected [9223372036854775808, 2]"])),
        of(Mismatched, &[1; 5], &[1.0], 1, panics(&["at most four dimensions, not 5"])),
        of(Empty, &[2], &[1.0, 2.0], 0, gives("a pass: nothing depends on anything")),
        of(ZeroRows, &[0, 3], &[], 0, gives("a pass")),
        of(ZeroRows, &[0, MAX], &[], 0, gives("a pass")),
        of(ZeroRows, &[MAX, 0, MAX], &[], 0, gives("a pass")),
        of(OneRow, &[], &[3.0], 1, gives("a pass")),
        of(OneRow, &[1, 1, 1, 1], &[3.0], 1, gives("a pass")),
        of(Oversized, &[3], &[1.0, 2.0, 3.0], MAX, shape(&["gradient check"])),
        of(Oversized, &[3], &[1.0, 2.0, 3.0], MAX / 8, shape(&["gradient check"])),
        of(Oversized, &[3], &[1.0, 2.0, 3.0], 1 << 50, shape(&["gradient check"])),
        no_number(Nan, &[1.0, NAN, 2.0]),
        no_number(Infinite, &[1.0, -INFINITY, 2.0]),
        no_number(Overflow, &[1.0, 1e200, 2.0]),
        tiny(&[5e-320, -5e-320, 1e-310]),
        tiny(&[1e-40, -1e-45, 1e-39]),
    ];
    rows.extend(TOLERANCES.map(|(rtol, atol, said)| {
        row(Senseless, said, invalid(&[said, "at least 0 and below 1"]), move || {
            in_both_modes(|check| sound(method(check.tolerance(rtol, atol), [2].into(), &[1.0, 2.0], 2)))
        })
    }));
    rows
}

type Map = fn(f64) -> f64;

/// A check of `f` of each value, with `slope` as its derivative.
fn mapped(check: GradCheck, x: &[f64], f: Map, slope: Map) -> Checked {
    let forward = |[x]: [&[f64]; 1], y: &mut [f64]| y.iter_mut().zip(x).for_each(|(y, x)| *y = f(*x));
    check.function([Input::new("x", [x.len()], x)], x.len(), forward, |[x], dy, [dx]| {
        (0..x.len()).for_each(|i| dx[i] = slope(x[i]) * dy[i]);
    })
}

fn of_function() -> Vec<Row> {
    let right = |kind, x: &'static [f64], of: &'static str, f: Map, slope: Map| {
        row(kind, format!("{of} at {x:?}"), gives("a pass"), move || {
            in_both_modes(|check| sound(mapped(check, x, f, slope)))
        })
    };
    let fails = |kind, x: &'static [f64], of: &'static str, f: Map, slope: Map| {
        row(kind, format!("{of} at {x:?}"), gives("a failure that names x"), move || {
            in_both_modes(|check| wrong(mapped(check, x, f, slope), "x"))
        })
    };
    let answers = |kind, x: &'static [f64], of: &'static str, f: Map, slope: Map| {
        row(kind, format!("{of} at {x:?}"), gives("an answer"), move || {
            in_both_modes(|check| {
                drop(mapped(check, x, f, slope));
                Ok(())
            })
        })
    };
    let (logs, hugely, tiny, high): (&[f64], &[f64], &[f64], &[f64]) =
        (&[1e-7, 1.0, 2.0], &[1e20, 1.0, 1.0], &[5e-320, -5e-320], &[f64::MAX, -f64::MAX, 1e308]);
    let triple: Map = |x| 3.0 * x;
    vec![
        right(Mismatched, logs, "ln", f64::ln, |x| 1.0 / x),
        fails(Mismatched, logs, "ln with a gradient a hundredth too large", f64::ln, |x| 1.01 / x),
        right(Mismatched, hugely, "3x", triple, |_| 3.0),
        fails(Mismatched, hugely, "3x with a gradient a hundredth too large", triple, |_| 3.03),
        fails(Mismatched, hugely, "3x with a wrong gradient of the ones", triple, |x| if x > 2.0 { 3.0 } else { 3.03 }),
        answers(Subnormal, tiny, "3x", triple, |_| 3.0),
        answers(Subnormal, tiny, "ln", f64::ln, |x| 1.0 / x),
        fails(Subnormal, tiny, "3x with a gradient of NaN", triple, |_| NAN),
        answers(Overflow, high, "x", |x| x, |_| 1.0),
        answers(Overflow, high, "3x", triple, |_| 3.0),
        fails(Overflow, high, "x with a gradient of NaN", |x| x, |_| NAN),
        fails(Nan, &[1.0, NAN], "a constant", |_| 1.0, |_| 0.0),
        fails(Infinite, &[1.0, INFINITY], "a constant", |_| 1.0, |_| 0.0),
        fails(Nan, &[1.0, 2.0], "NaN with a gradient of zeros", |_| NAN, |_| 0.0),
        fails(Infinite, &[1.0, 2.0], "infinity with a gradient of zeros", |_| INFINITY, |_| 0.0),
        fails(Infinite, &[0.0, 1.0], "1/x", |x| 1.0 / x, |x| -1.0 / (x * x)),
        fails(Infinite, &[1.0, 2.0], "3x with an infinite gradient", triple, |_| INFINITY),
        fails(Senseless, &[0.0, 0.0], "|x|", f64::abs, |_| 0.0),
        row(Empty, "no inputs", shape(&["gradient check: expected at least one input, found 0"]), || {
            in_both_modes(|check| sound(check.function::<f64, 0>([], 3, |_, _| {}, |_, _, _| {})))
        }),
        row(Empty, "no inputs, against f64", shape(&["at least one input, found 0"]), || {
            in_both_modes(|check| sound(check.function_against_f64([], 3, |_, _| {}, |_, _, _| {})))
        }),
        row(Empty, "no outputs, and a gradient of ones", gives("a failure that names x"), || {
            let x = [Input::new("x", [2], &[1.0, 2.0])];
            in_both_modes(|check| wrong(check.function(x, 0, |_, _| {}, |_, _, [dx]| dx.fill(1.0)), "x"))
        }),
        row(Truncated, "a gradient of which the last is not written", gives("a failure that names w"), || {
            let inputs = [Input::new("x", [1], &[1.0]), Input::new("w", [2], &[1.0, 2.0])];
            in_both_modes(|check| {
                let forward = |[x, w]: [&[f64]; 2], y: &mut [f64]| y[0] = x[0] * w[0];
                let checked = check.function(inputs, 1, forward, |[x, w], dy, [dx, dw]| {
                    (dx[0], dw[0]) = (w[0] * dy[0], x[0] * dy[0]);
                });
                wrong(checked, "w")
            })
        }),
        row(Truncated, "an output that is not written", gives("a failure that names x"), || {
            let x = [Input::new("x", [1], &[1.0])];
            in_both_modes(|check| wrong(check.function(x, 2, |[x], y| y[0] = x[0], |_, dy, [dx]| dx[0] = dy[0]), "x"))
        }),
        row(Senseless, "a forward pass that counts", invalid(&["is another one each time"]), || {
            in_both_modes(|check| {
                let mut passes = 0.0;
                let forward = |[x]: [&[f64]; 1], y: &mut [f64]| {
                    passes += 1.0;
                    y[0] = passes * x[0];
                };
                sound(check.function([Input::new("x", [1], &[1.0])], 1, forward, |_, dy, [dx]| dx[0] = dy[0]))
            })
        }),
        row(Senseless, "a forward pass that panics", panics(&["forward panics"]), || {
            let x = [Input::new("x", [1], &[1.0])];
            in_both_modes(|check| sound(check.function(x, 1, |_, _| panic!("forward panics"), |_, _, _| {})))
        }),
        row(Senseless, "a backward pass that panics", panics(&["backward panics"]), || {
            let x = [Input::new("x", [1], &[1.0f64])];
            in_both_modes(|check| sound(check.function(x, 1, |_, _| {}, |_, _, _| panic!("backward panics"))))
        }),
    ]
}

fn of_twin() -> Vec<Row> {
    // `y = x`, so that f32 has the gradient exactly; `change` is what it makes of it.
    let twin = |check: GradCheck, change: fn(f32) -> f32, magnitude: f64, ulps: f64| {
        let single = |_: [&[f32]; 1], dy: &[f32], [dx]: [&mut [f32]; 1]| {
            dx.iter_mut().zip(dy).for_each(|(dx, dy)| *dx = change(*dy));
        };
        let double = |_: [&[f64]; 1], dy: &[f64], [dx]: [&mut [f64]; 1]| dx.copy_from_slice(dy);
        let x = [Input::new("x", [3], &[1.0f32, 2.0, 3.0])];
        check.twin(x, 3, single, double, |_, _, [size]| size.fill(magnitude), [ulps])
    };
    let units = |ulps: f64, said: &'static str| {
        row(Senseless, format!("{ulps} ulps"), invalid(&["gradient check: ulps", said]), move || {
            in_both_modes(|check| sound(twin(check, |dy| dy, 1.0, ulps)))
        })
    };
    let fails = |kind, input: &'static str, change: fn(f32) -> f32, magnitude: f64, ulps: f64| {
        row(kind, input, gives("a failure that names x"), move || {
            in_both_modes(|check| wrong(twin(check, change, magnitude, ulps), "x"))
        })
    };
    vec![
        units(NAN, "NaN"),
        units(INFINITY, "inf"),
        units(-INFINITY, "-inf"),
        units(-1.0, "-1"),
        row(Senseless, "0 ulps of what is exact", gives("a pass"), move || {
            in_both_modes(|check| sound(twin(check, |dy| dy, 1.0, 0.0)))
        }),
        fails(Senseless, "0 ulps of the next number", f32::next_up, 1.0, 0.0),
        fails(Infinite, "an infinite magnitude", |dy| dy, INFINITY, 4.0),
        fails(Infinite, "an infinite magnitude of a wrong gradient", |dy| 2.0 * dy, INFINITY, 4.0),
        fails(Infinite, "0 ulps of an infinite magnitude", |dy| dy, INFINITY, 0.0),
        fails(Nan, "a magnitude of NaN", |dy| dy, NAN, 4.0),
        fails(Senseless, "a magnitude below zero", |dy| dy, -1.0, 4.0),
        fails(Overflow, "units that overflow", |dy| 2.0 * dy, f64::MAX, 1e10),
        fails(Nan, "a gradient of NaN", |_| f32::NAN, 1.0, 4.0),
        fails(Infinite, "an infinite gradient", |_| f32::INFINITY, 1.0, 4.0),
        row(Empty, "no inputs", shape(&["at least one input, found 0"]), || {
            in_both_modes(|check| sound(check.twin([], 3, |_, _, _| {}, |_, _, _| {}, |_, _, _| {}, [])))
        }),
        row(Truncated, "a twin that writes nothing", gives("a failure that names x"), || {
            let x = [Input::new("x", [1], &[1.0f32])];
            in_both_modes(|check| {
                let checked =
                    check.twin(x, 1, |_, dy, [dx]| dx[0] = dy[0], |_, _, _| {}, |_, _, [s]| s.fill(1.0), [4.0]);
                wrong(checked, "x")
            })
        }),
        row(Senseless, "magnitudes that panic", panics(&["magnitude panics"]), || {
            let x = [Input::new("x", [1], &[1.0f32])];
            in_both_modes(|check| {
                let magnitude = |_: [&[f64]; 1], _: &[f64], _: [&mut [f64]; 1]| panic!("magnitude panics");
                sound(check.twin(x, 1, |_, _, _| {}, |_, _, _| {}, magnitude, [4.0]))
            })
        }),
    ]
}

fn batches() -> Vec<Row> {
    let of = |kind, dims: &'static [usize], outcome| {
        row(kind, format!("{dims:?}"), outcome, move || {
            let x = normal_batch(Shape::new(dims), u64::MAX)?;
            assert_eq!((x.shape(), x.data().len()), (Shape::new(dims), dims.iter().product::<usize>()));
            assert!(x.data().iter().all(|x| x.is_finite()));
            Ok(())
        })
    };
    vec![
        of(Overflow, &[MAX, 2], shape(&["tensor: expected a size that fits an address"])),
        of(Overflow, &[1 << 63, 2], shape(&["tensor: expected a size that fits an address"])),
        of(Overflow, &[MAX / 8], shape(&["tensor: expected a size that fits an address"])),
        of(Oversized, &[1 << 50, 3], shape(&["tensor: expected a size that the system has memory for"])),
        of(Empty, &[], gives("one number")),
        of(ZeroRows, &[0, 3], gives("no numbers")),
        of(ZeroRows, &[0, MAX], gives("no numbers")),
        of(OneRow, &[1, 1, 1, 1], gives("one number")),
    ]
}
