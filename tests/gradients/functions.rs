//! The checker on functions that are no layers: kinks, f32, twins, and what it says.

use super::*;

fn square(wrong: f64) -> std::result::Result<Report, Failure> {
    let square = |[x]: [&[f64]; 1], y: &mut [f64]| y[0] = x[0] * x[0];
    GradCheck::new(7).function([Input::new("x", [1], &[3.0])], 1, square, |[x], dy, [dx]| {
        dx[0] = if wrong == 1.0 { 2.0 * x[0] * dy[0] } else { wrong };
    })
}

#[test]
fn nothing_but_a_finite_gradient_passes() {
    passes("2 x", square(1.0));
    for wrong in [f64::INFINITY, f64::NEG_INFINITY, f64::NAN, 1e300, 0.0] {
        let report = fails(&format!("{wrong}"), square(wrong));
        assert_eq!(report.tensors[0].excess().is_infinite(), !wrong.is_finite(), "{report}");
    }
}

#[test]
fn a_gradient_that_is_left_unwritten_is_not_zero() {
    let inputs = [Input::new("x", [2], &[0.0, 1.0]), Input::new("unused", [1], &[5.0])];
    let forward = |[x, _]: [&[f64]; 2], y: &mut [f64]| y.copy_from_slice(x);
    passes(
        "zero",
        GradCheck::new(1).function(inputs, 2, forward, |_, dy, [dx, unused]| {
            dx.copy_from_slice(dy);
            unused[0] = 0.0;
        }),
    );
    for check in [GradCheck::new(1), GradCheck::new(1).fast()] {
        let report = fails("unwritten", check.function(inputs, 2, forward, |_, dy, [dx, _]| dx.copy_from_slice(dy)));
        assert!(report.tensor("x").unwrap().passed() && !report.tensor("unused").unwrap().passed());
        assert!(
            report.to_string().contains("unused: the backward pass gives NaN, or leaves this unwritten"),
            "{report}"
        );
    }
}

/// |x| at points on the kink, near it, and far.
fn absolute(x: &[f64], check: GradCheck, wrong: bool) -> std::result::Result<Report, Failure> {
    let forward = |[x]: [&[f64]; 1], y: &mut [f64]| y.iter_mut().zip(x).for_each(|(y, x)| *y = x.abs());
    check.function([Input::new("x", [x.len()], x)], x.len(), forward, |[x], dy, [dx]| {
        for i in 0..x.len() {
            dx[i] = dy[i] * if wrong { 1.0 } else { x[i].signum() };
        }
    })
}

#[test]
fn entries_at_a_kink_are_skipped_and_counted() {
    let x = [0.0, 1e-15, -1e-6, 1e-5, 1e-4, -2e-3, 1.0, -0.5, -0.0];
    for check in [GradCheck::new(5), GradCheck::new(5).fast()] {
        let report = passes("kinks", absolute(&x, check, false));
        assert_eq!((report.checked(), report.skipped()), (6, 3), "{report}");
        // What is not at a kink is checked all the same.
        let wrong = fails("wrong side", absolute(&x, check, true));
        assert_eq!(wrong.skipped(), 3, "{wrong}");
    }
    // With nothing left to check, nothing is said to be right.
    let nothing = fails("all at kinks", absolute(&[0.0, 0.0], GradCheck::new(5), false));
    assert_eq!(nothing.tensors[0].verdict(), Verdict::Unknown);
    assert!(nothing.to_string().contains("2 of 2 entries lie at a kink: move the data off it"), "{nothing}");
}

#[test]
fn a_kink_does_not_excuse_what_is_no_number() {
    let forward = |[x]: [&[f64]; 1], y: &mut [f64]| y[0] = x[0].abs();
    let checked = GradCheck::new(1).function([Input::new("x", [1], &[0.0])], 1, forward, |_, _, [dx]| dx[0] = f64::NAN);
    assert_eq!(fails("NaN", checked).skipped(), 0);
}

/// The slope tells a wrong gradient from a right one, and from a linear function.
#[test]
fn slopes_are_two_one_and_none() {
    let x = normals(&mut Rng::new(1, "x"), 5);
    let check = |factor: f64, curvature: f64| {
        let forward = |[x]: [&[f64]; 1], y: &mut [f64]| {
            y.iter_mut().zip(x).for_each(|(y, x)| *y = 2.0 * x + curvature * x.exp());
        };
        GradCheck::new(3).function([Input::new("x", [5], &x)], 5, forward, |[x], dy, [dx]| {
            (0..5).for_each(|i| dx[i] = factor * dy[i] * (2.0 + curvature * x[i].exp()));
        })
    };
    let slope = |report: Report| report.tensors[0].slope;
    assert!((slope(passes("right", check(1.0, 1.0))).unwrap() - 2.0).abs() < 0.1);
    assert!((slope(fails("wrong", check(1.0001, 1.0))).unwrap() - 1.0).abs() < 0.1);
    assert_eq!(slope(passes("linear", check(1.0, 0.0))), None);
}

/// Numbers of which the function makes one each, and what is claimed of its slope.
fn each(
    x: &[f64],
    f: impl Fn(f64) -> f64,
    slope: impl Fn(f64) -> f64,
    seed: u64,
) -> std::result::Result<Report, Failure> {
    let forward = |[x]: [&[f64]; 1], y: &mut [f64]| y.iter_mut().zip(x).for_each(|(y, &x)| *y = f(x));
    GradCheck::new(seed).function([Input::new("x", [x.len()], x)], x.len(), forward, |[x], dy, [dx]| {
        (0..x.len()).for_each(|i| dx[i] = dy[i] * slope(x[i]));
    })
}

#[test]
fn no_wrong_gradient_passes_beside_a_large_constant() {
    let x = normals(&mut Rng::new(2, "x"), 6);
    for constant in [1e7, 1e8, 1e9, 1e10, 1e11, 1e12] {
        for seed in 0..20 {
            for factor in [0.0, -1.0, 0.5] {
                let checked = each(&x, |x| constant + x.sin(), |x| factor * x.cos(), seed);
                assert!(checked.is_err(), "{factor} times the slope beside {constant:e}: {checked:?}");
            }
        }
    }
    // It is said where nothing is seen.
    let nothing = passes("a constant", each(&x, |_| 1.0, |_| 0.0, 1)).to_string();
    assert!(nothing.contains("x: nothing of a gradient is seen: it is below"), "{nothing}");
}

/// Wherever there is a derivative, whatever its size, and on either side of a kink.
#[test]
fn right_gradients_pass_where_functions_are_awkward() {
    for seed in 0..50 {
        for (what, checked) in [
            ("cubes at zero", each(&[0.0; 4], |x| x * x * x, |x| 3.0 * x * x, seed)),
            ("cubes at one", each(&[1.0; 4], |x| (x - 1.0).powi(3), |x| 3.0 * (x - 1.0).powi(2), seed)),
            ("huge", each(&[0.3, 1.0], |x| 1e155 * x.sin(), |x| 1e155 * x.cos(), seed)),
            ("tiny", each(&[0.3, 1.0], |x| 1e-170 * x.sin(), |x| 1e-170 * x.cos(), seed)),
            ("near a pole", each(&[1.0, 1e-7, 2.0], f64::ln, f64::recip, seed)),
            ("nearer", each(&[1.0, 1e-12, 2.0], f64::ln, f64::recip, seed)),
            ("as near as it gets", each(&[1.0, 1e-30, 2.0], f64::sqrt, |x| 0.5 / x.sqrt(), seed)),
            ("near a kink", each(&[1.0, -0.5, 1e-9], f64::abs, f64::signum, seed)),
            ("nearer", each(&[1.0, -0.5, 1e-10], f64::abs, f64::signum, seed)),
        ] {
            passes(&format!("{what}, seed {seed}"), checked);
        }
    }
}

/// Rows of 8, normalised: a function that bends within the size of its values, whatever that is.
fn normalise(x: &[f64], y: &mut [f64]) {
    for (x, y) in x.chunks(8).zip(y.chunks_mut(8)) {
        let mean = x.iter().sum::<f64>() / 8.0;
        let r = (x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / 8.0).sqrt();
        (0..8).for_each(|i| y[i] = (x[i] - mean) / r);
    }
}

#[test]
fn normalised_values_may_have_any_size() {
    for size in [1e-9, 1e-3, 1.0, 1e5, 1e9, 1e12] {
        for seed in 0..20 {
            for (factor, is_right) in [(1.0, true), (1.001, false)] {
                let x: Vec<f64> = normals(&mut Rng::new(seed, "x"), 32).iter().map(|x| size * x).collect();
                let forward = |[x]: [&[f64]; 1], y: &mut [f64]| normalise(x, y);
                let inputs = [Input::new("x", [4, 8], &x)];
                let checked = GradCheck::new(seed).function(inputs, 32, forward, |[x], dy, [dx]| {
                    let mut x_hat = vec![0.0; 32];
                    normalise(x, &mut x_hat);
                    for row in (0..32).step_by(8) {
                        let [x, x_hat, dy] = [x, &x_hat, dy].map(|values| &values[row..row + 8]);
                        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
                        let mean = |values: &[f64]| dot(values, &[1.0; 8]) / 8.0;
                        // x_hat r = x - mean, and x_hat has a square of 8.
                        let r = dot(x_hat, x) / 8.0;
                        let along = dot(dy, x_hat) / 8.0;
                        (0..8).for_each(|i| dx[row + i] = factor * (dy[i] - mean(dy) - x_hat[i] * along) / r);
                    }
                });
                assert_eq!(checked.is_ok(), is_right, "{size:e}, seed {seed}: {checked:?}");
            }
        }
    }
}

/// No three steps in f32 fit in front of so near a kink, or only just: right gradients pass, for the entries are checked or skipped.
#[test]
fn f32_functions_with_kinks_pass_at_any_distance() {
    for distance in [0.1, 1e-2, 3e-3, 2e-3, 1e-3, 3e-4, 1e-4, 1e-6, 0.0f32] {
        for seed in 0..100 {
            let x = [1.5, -0.7, distance, -distance, 0.9];
            let forward = |[x]: [&[f32]; 1], y: &mut [f32]| y.iter_mut().zip(x).for_each(|(y, x)| *y = x.max(0.0));
            let check = |side: f32| {
                GradCheck::new(seed).function([Input::new("x", [5], &x)], 5, forward, |[x], dy, [dx]| {
                    (0..5).for_each(|i| dx[i] = if x[i] > 0.0 { side * dy[i] } else { 0.0 });
                })
            };
            assert!(passes(&format!("{distance:e}, seed {seed}"), check(1.0)).skipped() <= 2);
            fails(&format!("{distance:e}, seed {seed}"), check(1.1));
        }
    }
}

#[test]
fn a_gradient_at_a_kink_lies_between_its_sides() {
    let x = [0.0, 1.0, -1.0];
    let relu = |at_zero: f64| each(&x, |x| x.max(0.0), |x| if x == 0.0 { at_zero } else { x.signum().max(0.0) }, 3);
    for inside in [0.0, 0.5, 1.0] {
        assert_eq!(passes("inside", relu(inside)).skipped(), 1);
    }
    for outside in [-0.5, 1.5, 1e300] {
        fails(&format!("{outside}"), relu(outside));
    }
}

/// Softmax-like loops in f32, and what is wrong with them.
fn single(factor: f32, against_f64: bool, seed: u64) -> std::result::Result<Report, Failure> {
    let x: Vec<f32> = normals(&mut Rng::new(seed, "x"), 12).iter().map(|&x| f32::from_f64(x)).collect();
    let inputs = [Input::new("x", [3, 4], &x)];
    let backward = |[x]: [&[f32]; 1], dy: &[f32], [dx]: [&mut [f32]; 1]| {
        (0..x.len()).for_each(|i| dx[i] = factor * dy[i] * x[i].cos());
    };
    if against_f64 {
        let forward = |[x]: [&[f64]; 1], y: &mut [f64]| y.iter_mut().zip(x).for_each(|(y, x)| *y = x.sin());
        GradCheck::new(seed).function_against_f64(inputs, 12, forward, backward)
    } else {
        let forward = |[x]: [&[f32]; 1], y: &mut [f32]| y.iter_mut().zip(x).for_each(|(y, x)| *y = x.sin());
        GradCheck::new(seed).function(inputs, 12, forward, backward)
    }
}

#[test]
fn f32_functions_are_checked_by_what_there_is() {
    for seed in 0..50 {
        let report = passes("f32", single(1.0, false, seed));
        assert_eq!(report.basis, Basis::F32);
        assert!(report.to_string().contains("differences in f32, with f32's tolerances"), "{report}");
        fails("f32 by a twentieth", single(1.05, false, seed));
        let report = passes("f32 against f64", single(1.0, true, seed));
        assert_eq!(report.basis, Basis::F32AgainstF64);
        fails("f32 against f64 by a thousandth", single(1.001, true, seed));
    }
}

#[test]
fn an_f32_layer_is_checked_in_f32() {
    let x = normal_batch([6, 4], 3).unwrap();
    let x: Vec<f32> = x.data().iter().map(|&x| f32::from_f64(x)).collect();
    let mut norm = BatchNorm1d::<f32>::new(4).unwrap();
    let report = passes("f32", GradCheck::new(3).layer(&mut norm, TensorRef::new([6, 4], &x).unwrap()));
    assert_eq!(report.basis, Basis::F32);
}

/// A sum of products, in f32 with a rounding too many or without, against f64.
#[test]
fn a_twin_is_held_to_units_in_the_last_place() {
    let values: Vec<f32> = normals(&mut Rng::new(2, "x"), 64).iter().map(|&x| f32::from_f64(x)).collect();
    let inputs = [Input::new("x", [64], &values), Input::new("scale", [1], &[3.0])];
    let twin = |[x, scale]: [&[f64]; 2], dy: &[f64], [dx, dscale]: [&mut [f64]; 2]| {
        (0..64).for_each(|i| dx[i] = scale[0] * dy[i]);
        dscale[0] = x.iter().zip(dy).map(|(x, dy)| x * dy).sum();
    };
    let magnitude = |[x, scale]: [&[f64]; 2], dy: &[f64], [dx, dscale]: [&mut [f64]; 2]| {
        (0..64).for_each(|i| dx[i] = (scale[0] * dy[i]).abs());
        dscale[0] = x.iter().zip(dy).map(|(x, dy)| (x * dy).abs()).sum();
    };
    let check = |lost: f32| {
        let single = move |[x, scale]: [&[f32]; 2], dy: &[f32], [dx, dscale]: [&mut [f32]; 2]| {
            (0..64).for_each(|i| dx[i] = (scale[0] * dy[i]) * (1.0 + lost));
            dscale[0] = x.iter().zip(dy).map(|(x, dy)| x * dy).sum();
        };
        GradCheck::new(4).twin(inputs, 64, single, twin, magnitude, [0.5, 32.0])
    };
    let report = passes("f32", check(0.0));
    assert!(report.basis == Basis::Twin && report.tensors[1].excess() > 0.0, "{report}");
    let report = fails("two units off", check(2.0 * f32::EPSILON));
    assert!(!report.tensors[0].passed() && report.tensors[1].passed(), "{report}");
    let refused = GradCheck::new(4).twin(inputs, 64, |_, _, _| {}, twin, magnitude, [-1.0, 1.0]);
    assert!(refused.unwrap_err().to_string().contains("ulps is -1, but must be finite and 0 or more"));
}

/// A bound that is none would excuse anything; none at all asks for the same numbers.
#[test]
fn a_twin_needs_a_finite_magnitude() {
    let inputs = [Input::new("x", [2], &[1.0f32, 2.0])];
    let check = |factor: f64, magnitude: f64, ulps| {
        GradCheck::new(1).twin(
            inputs,
            2,
            |_, dy, [dx]| dx.copy_from_slice(dy),
            |_, dy, [dx]| (0..2).for_each(|i| dx[i] = factor * dy[i]),
            |_, _, [sums]| sums.fill(magnitude),
            [ulps],
        )
    };
    passes("exact", check(1.0, 1.0, 0.0));
    fails("hardly off", check(1.0 + 1e-12, 1.0, 0.0));
    for magnitude in [f64::INFINITY, f64::NAN] {
        fails(&format!("{magnitude}"), check(2.0, magnitude, 4.0));
    }
}

/// Rows divided by their norm; one row is padding, with values that hardly are any, so that the function is steep there.
#[test]
fn a_steep_function_is_no_kink() {
    const EPS: f64 = 1e-10;
    let x: Vec<f64> = [0.5, -1.0, 2.0, 0.1].into_iter().chain([0.3, -0.7, 1.1, 0.2].map(|x| 1e-5 * x)).collect();
    let norm = |x: &[f64], eps: f64| (x.iter().map(|x| x * x).sum::<f64>() / 4.0 + eps).sqrt();
    let check = |eps| {
        let forward = |[x]: [&[f64]; 1], y: &mut [f64]| {
            for (x, y) in x.chunks(4).zip(y.chunks_mut(4)) {
                (0..4).for_each(|i| y[i] = x[i] / norm(x, EPS));
            }
        };
        GradCheck::new(3).function([Input::new("x", [2, 4], &x)], 8, forward, |[x], dy, [dx]| {
            for ((x, dy), dx) in x.chunks(4).zip(dy.chunks(4)).zip(dx.chunks_mut(4)) {
                let r = norm(x, eps);
                let along: f64 = x.iter().zip(dy).map(|(x, dy)| x * dy / r).sum();
                (0..4).for_each(|i| dx[i] = (dy[i] - x[i] / r * along / 4.0) / r);
            }
        })
    };
    assert_eq!(passes("with eps", check(EPS)).skipped(), 0);
    assert_eq!(fails("without eps", check(0.0)).skipped(), 0);
}

/// An output that a tensor does not move hides nothing of its gradient, however large it is.
#[test]
fn a_large_output_beside_it_excuses_nothing() {
    let x = normals(&mut Rng::new(2, "x"), 6);
    let narrow: Vec<f32> = x.iter().map(|&x| f32::from_f64(x)).collect();
    for seed in 0..50 {
        for (factor, is_right) in [(1.0, true), (1.001, false), (0.5, false), (0.0, false)] {
            let forward = |[x]: [&[f64]; 1], y: &mut [f64]| {
                y[6] = 1e9;
                (0..6).for_each(|i| y[i] = x[i].sin());
            };
            let checked = GradCheck::new(seed).function([Input::new("x", [6], &x)], 7, forward, |[x], dy, [dx]| {
                (0..6).for_each(|i| dx[i] = factor * dy[i] * x[i].cos());
            });
            assert_eq!(checked.is_ok(), is_right, "{factor}, seed {seed}: {checked:?}");
        }
        for (factor, is_right) in [(1.0, true), (1.1, false), (0.5, false), (0.0, false)] {
            let forward = |[x]: [&[f32]; 1], y: &mut [f32]| {
                y[6] = 1e6;
                (0..6).for_each(|i| y[i] = x[i].sin());
            };
            let inputs = [Input::new("x", [6], &narrow)];
            let checked = GradCheck::new(seed).function(inputs, 7, forward, |[x], dy, [dx]| {
                (0..6).for_each(|i| dx[i] = factor * dy[i] * x[i].cos());
            });
            assert_eq!(checked.is_ok(), is_right, "f32, {factor}, seed {seed}: {checked:?}");
        }
    }
}

/// What is allowed for rounding is said, and longer steps keep it small.
#[test]
fn a_constant_does_not_loosen_the_tolerance_in_silence() {
    let x = normals(&mut Rng::new(2, "x"), 6);
    for constant in [1e5, 1e6, 1e7] {
        for seed in 0..20 {
            passes("right", each(&x, |x| constant + x.sin(), f64::cos, seed));
            fails("a thousandth off", each(&x, |x| constant + x.sin(), |x| 1.001 * x.cos(), seed));
        }
    }
    let report = passes("right", each(&x, |x| 1e9 + x.sin(), f64::cos, 1)).to_string();
    assert!(report.contains("is allowed, which rounding of the function hides"), "{report}");
}

/// However small or large the values, and whether there is anything to be seen or not.
#[test]
fn a_check_asks_for_a_bounded_number_of_answers() {
    for size in [1e-308, 1e-300, 1e-30, 1.0, 1e30, 1e300] {
        let x: Vec<f64> = normals(&mut Rng::new(3, "x"), 6).iter().map(|x| size * x).collect();
        let functions: [fn(f64) -> f64; 4] = [|_| 1.0, |x| 1e15 + x, f64::abs, |x| if x > 0.0 { 1.0 } else { 0.0 }];
        for (which, f) in functions.into_iter().enumerate() {
            let mut calls = 0;
            let forward = |[x]: [&[f64]; 1], y: &mut [f64]| {
                calls += 1;
                y.iter_mut().zip(x).for_each(|(y, &x)| *y = f(x));
            };
            // Whatever it says.
            let _ = GradCheck::new(1).function([Input::new("x", [6], &x)], 6, forward, |_, _, [dx]| dx.fill(0.0));
            // Six times at most, each entry is stepped to both sides some 250 times: 3000, and as many again to spare.
            assert!(calls < 6 * 6000, "{calls} for function {which} of values of {size:e}");
        }
    }
}

/// A kink that is small beside how the function bends is one all the same.
#[test]
fn a_kink_in_a_curve_is_one() {
    for (jump, bend) in [(1e-3, 1.0), (1e-4, 1.0), (1e-5, -3.0)] {
        for seed in 0..50 {
            let check = |side: f64| {
                let f = move |x: f64| bend * x * x + jump * x.max(0.0);
                let slope = move |x: f64| 2.0 * bend * x + if x == 0.0 { side } else { jump * x.signum().max(0.0) };
                each(&[0.0, 1.0, -1.0], f, slope, seed)
            };
            for side in [0.0, 0.5 * jump, jump] {
                assert_eq!(passes(&format!("{jump} at {bend}, seed {seed}"), check(side)).skipped(), 1);
            }
            fails(&format!("{jump} at {bend}, seed {seed}"), check(-2.0 * jump));
        }
    }
}

/// What rounding hides is not right, and a jump that is skipped excuses nothing else.
#[test]
fn what_cannot_be_seen_is_not_said_to_be_right() {
    let x = [0.5, -0.6, 0.7];
    let shifted = |by: f64, factor: f64| {
        let forward = |[x]: [&[f64]; 1], y: &mut [f64]| (0..3).for_each(|i| y[i] = by + x[i]);
        GradCheck::new(1).function([Input::new("x", [3], &x)], 3, forward, |_, dy, [dx]| {
            (0..3).for_each(|i| dx[i] = factor * dy[i]);
        })
    };
    passes("a small shift", shifted(10.0, 1.0));
    fails("a small shift, wrong", shifted(10.0, 1.0001));
    for by in [1e11, 1e12, 1e13] {
        fails("a huge shift, zero", shifted(by, 0.0));
        fails("a huge shift, wrong", shifted(by, 0.95));
        let report = fails("a huge shift", shifted(by, 1.0));
        assert_eq!(report.tensors[0].verdict(), Verdict::Unknown, "{report}");
    }
    // Where nothing can be seen, that is said.
    let report = passes("a constant that swallows it", shifted(1e15, -1.0));
    assert!(report.tensors[0].is_unseen && report.to_string().contains("nothing of a gradient is seen"), "{report}");
    let jump = |factor: f64| {
        let forward = |[x]: [&[f64]; 1], y: &mut [f64]| {
            (y[0], y[1], y[2]) = (if x[0] > 1e-12 { 1.0 } else { 0.0 }, x[1], x[2]);
        };
        GradCheck::new(1).function([Input::new("x", [3], &[0.0, 1.0, -1.4])], 3, forward, |_, dy, [dx]| {
            (dx[0], dx[1], dx[2]) = (0.0, factor * dy[1], factor * dy[2]);
        })
    };
    let report = passes("beside a jump", jump(1.0));
    assert_eq!(report.skipped(), 1, "{report}");
    fails("wrong beside a jump", jump(1.0002));
}

/// Tolerances mean what the rule says.
#[test]
fn tolerances_are_what_they_say() {
    let check = |factor: f64, rtol, atol| {
        let forward = |[x]: [&[f64]; 1], y: &mut [f64]| y.copy_from_slice(x);
        // Entries of 1 and 1000, of which the smaller is off.
        let inputs = [Input::new("x", [2], &[0.0, 0.0])];
        GradCheck::new(1).tolerance(rtol, atol).function(inputs, 2, forward, |_, dy, [dx]| {
            dx.copy_from_slice(dy);
            dx[0] *= factor;
        })
    };
    passes("within rtol", check(1.0 + 0.9e-3, 1e-3, 0.0));
    fails("beyond rtol", check(1.0 + 1.1e-3, 1e-3, 0.0));
    passes("within atol", check(1.0 + 0.9e-3, 0.0, 1e-2));
    for (rtol, atol, what) in
        [(f64::NAN, 0.0, "rtol is NaN"), (1.0, 0.0, "rtol is 1"), (0.0, -1e-9, "atol is -0.000000001")]
    {
        let refused = check(1.0, rtol, atol).unwrap_err();
        assert!(refused.to_string().contains(what) && refused.report().is_none(), "{refused}");
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let none = GradCheck::new(1).function([] as [Input<'_, f64>; 0], 1, |_, _| {}, |_, _, _| {});
    assert!(none.unwrap_err().to_string().contains("at least one input"));
    for shape in [[2, 3], [usize::MAX, 2]] {
        let inputs = [Input::new("x", shape, &[0.0; 5])];
        let refused = GradCheck::new(1).function(inputs, 1, |_, _| {}, |_, _, _| {}).unwrap_err();
        assert!(refused.to_string().contains("gradient check: x: expected"), "{refused}");
    }
    let mut calls = 0.0;
    let counting = |_: [&[f64]; 1], y: &mut [f64]| {
        calls += 1.0;
        y[0] = calls;
    };
    let refused = GradCheck::new(1).function([Input::new("x", [1], &[0.0])], 1, counting, |_, _, [dx]| dx[0] = 0.0);
    assert!(refused.unwrap_err().to_string().contains("another one each time"));
}

/// Small and large values get steps that suit them.
#[test]
fn values_of_any_size() {
    for exponent in [-200, -30, -9, 0, 6, 12] {
        let size = 10f64.powi(exponent);
        let x: Vec<f64> = normals(&mut Rng::new(3, "size"), 6).iter().map(|x| size * x).collect();
        // Cubes of what is measured in units of `size`.
        let forward = |[x]: [&[f64]; 1], y: &mut [f64]| y.iter_mut().zip(x).for_each(|(y, x)| *y = (x / size).powi(3));
        for check in [GradCheck::new(3), GradCheck::new(3).fast()] {
            for (factor, is_right) in [(1.0, true), (1.001, false)] {
                let inputs = [Input::new("x", [6], &x)];
                let checked = check.function(inputs, 6, forward, |[x], dy, [dx]| {
                    (0..6).for_each(|i| dx[i] = factor * dy[i] * 3.0 * (x[i] / size).powi(2) / size);
                });
                assert_eq!(checked.is_ok(), is_right, "10^{exponent}: {checked:?}");
            }
        }
    }
}

#[test]
fn a_report_as_a_program_reads_it() {
    let report = fails("twice", square(1.5));
    let t = &report.tensors[0];
    let json = report.to_json();
    let expected = [
        "{\"subject\":\"a function\",\"passed\":false,\"basis\":\"f64\",\"rtol\":1e-5,\"atol\":1e-7,\"seed\":7,\"tensors\":[",
        "{\"name\":\"x\",\"shape\":[1],\"checked\":1,\"skipped\":0,\"verdict\":\"WRONG\",\"unseen\":false,\"worst\":[0],\"second_pass\":false,\"excess\":",
    ];
    assert!(json.starts_with(&expected.concat()), "{json}");
    assert!(json.contains("\"analytic\":1.5e0,\"numeric\":"), "{json}");
    assert!(json.ends_with(&format!(",\"slope\":{:e}}}]}}", t.slope.unwrap())), "{json}");
    let nan = fails("NaN", square(f64::NAN)).to_json();
    assert!(nan.contains("\"analytic\":null") && !nan.contains("NaN"), "{nan}");
}

/// What a fast check lets slip through is within the bound that the module derives: `(1 / r)^4` for errors that may cancel, nothing
/// for a single one.
#[test]
fn a_fast_check_misses_no_more_than_it_says() {
    const SEEDS: u64 = 2000;
    let passes_fast = |ratio: f64, entries: usize, seed: u64| {
        let rng = &mut Rng::new(seed, "errors");
        let forward = |[x]: [&[f64]; 1], y: &mut [f64]| y.copy_from_slice(x);
        let checked =
            GradCheck::new(seed).fast().function([Input::new("x", [8], &[0.0; 8])], 8, forward, |_, dy, [dx]| {
                dx.copy_from_slice(dy);
                let scale = dy.iter().fold(0.0f64, |largest, dy| largest.max(dy.abs()));
                dx.iter_mut()
                    .take(entries)
                    .for_each(|dx| *dx += ratio * 1e-7 * scale * if rng.below(2) == 0 { 1.0 } else { -1.0 });
            });
        // In full, so small an error is mostly within rtol.
        checked.is_ok_and(|report| report.tensors[0].directions.is_some())
    };
    for (ratio, entries) in [(3.0, 1), (3.0, 2), (3.0, 8), (10.0, 2), (10.0, 8)] {
        let missed = (0..SEEDS).filter(|&seed| passes_fast(ratio, entries, seed)).count();
        let bound = if entries == 1 { 0.0 } else { f64::powi(1.0 / ratio, 4) };
        println!("{entries} errors of {ratio} times the tolerance: missed {missed} of {SEEDS}, at most {bound:.1e}");
        assert!(missed as f64 <= bound * SEEDS as f64, "{entries} errors, {ratio}: {missed}");
    }
    assert!((0..SEEDS).all(|seed| passes_fast(0.0, 0, seed)), "a right gradient needs no full check");
}

/// As an error in a property test, and as the end of a program.
#[test]
fn a_failure_reads_well() {
    fn property() -> std::result::Result<(), TestCaseError> {
        square(1.5)?;
        Ok(())
    }
    let text = property().unwrap_err().to_string();
    assert!(
        text.contains("gradient check of a function: FAILED\n  differences in f64; |analytic - numeric| <= 1e-7 scale"),
        "{text}"
    );
    let failure = square(1.5).unwrap_err();
    assert_eq!(format!("{failure:?}"), format!("\n{failure}"));
    assert!(failure.to_string().lines().all(|line| line.len() < 160 && line.trim_end() == line), "{failure}");
    let error: Box<dyn std::error::Error> = Box::new(failure);
    assert!(error.source().is_none());
}
