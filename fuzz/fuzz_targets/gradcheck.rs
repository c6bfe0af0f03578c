//! The front of the gradient check takes anything: any numbers, shapes that do not fit, any tolerance, closures that write nothing.
//!
//! Run with `cargo +nightly fuzz run gradcheck`. It never panics; what does not fit together is refused; a gradient that is no number,
//! or is left unwritten, never passes; of tame functions the right gradient always passes and one with a wrong entry never does; a layer
//! is left as it was, bit for bit; reports can be printed, and their JSON holds no number that JSON does not know.

#![no_main]

use arbitrary::Arbitrary;
use evenkeel::Result;
use evenkeel::gradcheck::{Failure, GradCheck, Input, Report, Verdict};
use evenkeel::layers::{BatchNorm1d, BatchNormOptions, Layer};
use evenkeel::simd::Element;
use evenkeel::tensor::TensorRef;
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
struct Case {
    function: Function,
    /// Values of x, whatever their bits say.
    values: Vec<f64>,
    /// Values around one, which take the place of those.
    is_tame: bool,
    shape: [u8; 2],
    /// Whether the shape is what the values are.
    fits: bool,
    fault: Fault,
    /// Which entry the fault is in.
    place: u8,
    tolerance: Option<[f64; 2]>,
    is_fast: bool,
    kind: Kind,
    seed: u64,
}

/// What is computed of each value.
#[derive(Arbitrary, Clone, Copy, Debug, PartialEq)]
enum Function {
    Linear,
    Square,
    Absolute,
    Exponential,
    Sum,
    Nothing,
    Root,
}

#[derive(Arbitrary, Clone, Copy, Debug, PartialEq)]
enum Fault {
    None,
    /// Off by a tenth of the largest entry.
    Wrong,
    Nan,
    Infinite,
    Unwritten,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Kind {
    F64,
    F32,
    F32AgainstF64,
    Twin,
    BatchNorm { features: u8, eps: f64, momentum: Option<f64> },
}

impl Function {
    fn outputs(self, len: usize) -> usize {
        if self == Function::Sum { 1 } else { len }
    }

    fn forward<T: Element>(self, x: &[T], y: &mut [T]) {
        let own = |f: &dyn Fn(f64) -> f64| x.iter().map(|x| T::from_f64(f(x.to_f64()))).collect::<Vec<T>>();
        match self {
            Function::Linear => y.copy_from_slice(x),
            Function::Square => y.copy_from_slice(&own(&|x| x * x)),
            Function::Absolute => y.copy_from_slice(&own(&f64::abs)),
            Function::Exponential => y.copy_from_slice(&own(&f64::exp)),
            Function::Root => y.copy_from_slice(&own(&f64::sqrt)),
            Function::Sum => y[0] = x.iter().fold(T::ZERO, |sum, &x| sum + x),
            Function::Nothing => {}
        }
    }

    fn slope(self, x: f64) -> f64 {
        match self {
            Function::Linear | Function::Sum => 1.0,
            Function::Square => 2.0 * x,
            Function::Absolute => x.signum(),
            Function::Exponential => x.exp(),
            Function::Root => 0.5 / x.sqrt(),
            Function::Nothing => 0.0,
        }
    }
}

impl Case {
    fn backward<T: Element>(&self, x: &[T], dy: &[T], dx: &mut [T]) {
        for (i, dx) in dx.iter_mut().enumerate() {
            let dy = dy[if self.function == Function::Sum { 0 } else { i }].to_f64();
            *dx = T::from_f64(dy * self.function.slope(x[i].to_f64()));
        }
        let largest = dx.iter().fold(0.0, |largest: f64, dx| largest.max(dx.to_f64().abs()));
        if let Some(at) = usize::from(self.place).checked_rem(dx.len()) {
            match self.fault {
                Fault::None => {}
                Fault::Wrong => dx[at] = T::from_f64(dx[at].to_f64() + 0.1 * largest.max(1e-3)),
                Fault::Nan => dx[at] = T::from_f64(f64::NAN),
                Fault::Infinite => dx[at] = T::from_f64(f64::INFINITY),
                Fault::Unwritten => dx.fill(T::from_f64(f64::NAN)),
            }
        }
    }

    fn check(&self) -> GradCheck {
        let check = if self.is_fast { GradCheck::new(self.seed).fast() } else { GradCheck::new(self.seed) };
        self.tolerance.map_or(check, |[rtol, atol]| check.tolerance(rtol, atol))
    }

    fn values<T: Element>(&self) -> Vec<T> {
        let tame = |x: f64| 0.5 + x.to_bits().count_ones() as f64 / 32.0;
        let value = |&x: &f64| T::from_f64(if self.is_tame { tame(x) } else { x });
        self.values.iter().take(40).map(value).collect()
    }

    /// The check of a function, and how many entries it has.
    fn of_function<T: Element>(&self, x: &[T]) -> std::result::Result<Report, Failure> {
        let f = self.function;
        let outputs = f.outputs(x.len());
        let [rows, columns] = self.shape.map(usize::from);
        let inputs = [if self.fits { Input::new("x", [x.len()], x) } else { Input::new("x", [rows, columns], x) }];
        self.check().function(inputs, outputs, |[x], y| f.forward(x, y), |[x], dy, [dx]| self.backward(x, dy, dx))
    }

    fn of_single(&self, x: &[f32], is_twin: bool) -> std::result::Result<Report, Failure> {
        let f = self.function;
        let (inputs, outputs) = ([Input::new("x", [x.len()], x)], f.outputs(x.len()));
        if !is_twin {
            return self.check().function_against_f64(
                inputs,
                outputs,
                |[x], y| f.forward(x, y),
                |[x], dy, [dx]| self.backward(x, dy, dx),
            );
        }
        let right = Case { fault: Fault::None, values: Vec::new(), ..*self };
        self.check().twin(
            inputs,
            outputs,
            |[x], dy, [dx]| self.backward(x, dy, dx),
            |[x], dy, [dx]| right.backward(x, dy, dx),
            |[x], dy, [sums]| {
                right.backward(x, dy, sums);
                sums.iter_mut().for_each(|sum| *sum = sum.abs());
            },
            [4.0],
        )
    }
}

fuzz_target!(|case: Case| {
    let tolerance_is_valid = case.tolerance.is_none_or(|t| t.iter().all(|t| (0.0..1.0).contains(t)));
    let (result, len, is_function) = match case.kind {
        Kind::F64 => {
            let x = case.values::<f64>();
            (case.of_function(&x), x.len(), true)
        }
        Kind::F32 => {
            let x = case.values::<f32>();
            (case.of_function(&x), x.len(), false)
        }
        Kind::F32AgainstF64 => {
            let x = case.values::<f32>();
            (case.of_single(&x, false), x.len(), false)
        }
        Kind::Twin => {
            let x = case.values::<f32>();
            (case.of_single(&x, true), x.len(), false)
        }
        Kind::BatchNorm { features, eps, momentum } => {
            let _ = batchnorm(&case, usize::from(features), eps, momentum);
            return;
        }
    };
    readable(&result);
    let is_twin = matches!(case.kind, Kind::Twin);
    let [rows, columns] = case.shape.map(usize::from);
    let fits = case.fits || !matches!(case.kind, Kind::F64 | Kind::F32) || rows * columns == len;
    if !fits || !tolerance_is_valid {
        assert!(matches!(result, Err(Failure::Refused(_))), "{result:?}");
        return;
    }
    let passed = match &result {
        Ok(report) => report.passed(),
        Err(Failure::Gradient(report)) => report.passed(),
        // Only a function that is not one is refused, and these are.
        Err(Failure::Refused(error)) => panic!("{error}"),
    };
    assert_eq!(passed, result.is_ok());
    if len > 0 && matches!(case.fault, Fault::Nan | Fault::Unwritten | Fault::Infinite) {
        assert!(!passed, "{case:?}");
    }
    // What is right and what is wrong beyond doubt, for numbers of order one.
    if case.is_tame && case.tolerance.is_none() && case.function != Function::Nothing && len > 0 {
        match case.fault {
            Fault::None => assert!(passed, "{result:?}"),
            Fault::Wrong if is_function || is_twin => assert!(!passed, "{result:?}"),
            _ => {}
        }
    }
});

/// A layer with any options over any numbers: refused or checked, and left as it was.
fn batchnorm(case: &Case, features: usize, eps: f64, momentum: Option<f64>) -> Result<()> {
    let options = BatchNormOptions { eps, momentum, affine: case.fits, track_running_stats: case.place % 2 == 0 };
    let mut layer = BatchNorm1d::<f64>::with_options(features, options)?;
    let values = case.values::<f64>();
    let rows = values.len() / features;
    let before = bits(&mut layer);
    let result = case.check().layer(&mut layer, TensorRef::new([rows, features], &values[..rows * features])?);
    assert_eq!(bits(&mut layer), before, "the check changed the layer");
    readable(&result);
    if let Ok(report) = &result {
        assert!(report.tensors.iter().all(|t| t.error.is_finite() && t.verdict() == Verdict::Right));
    }
    Ok(())
}

fn bits(layer: &mut BatchNorm1d<f64>) -> Vec<u64> {
    let mut bits = Vec::new();
    layer.visit_mut(&mut |p| bits.extend(p.value.iter().chain(p.grad.iter()).map(|x| x.to_bits())));
    layer.visit_buffers_mut(&mut |_, buffer| bits.extend(buffer.iter().map(|x| x.to_bits())));
    layer.visit_counts_mut(&mut |_, count| bits.push(*count));
    bits
}

/// Whatever came out can be printed, and read by a program.
fn readable(result: &std::result::Result<Report, Failure>) {
    let report = match result {
        Ok(report) => report,
        Err(failure) => {
            assert!(!failure.to_string().is_empty());
            let Some(report) = failure.report() else { return };
            report
        }
    };
    assert!(report.to_string().lines().count() > report.tensors.len());
    let json = report.to_json();
    assert!(!json.contains("NaN") && !json.contains("inf"), "{json}");
}
