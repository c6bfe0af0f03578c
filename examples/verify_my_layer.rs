//! A layer of your own, with a bug in its backward pass, before a property test: `cargo run --example verify_my_layer -p evenkeel
//! --features testing`.
//!
//! The layer divides each row by its root mean square, `y = gain x / r` with `r = sqrt(mean x^2 + eps)`. Its gradient is
//! `dx = gain / r (dy - x_hat mean(dy x_hat))` with `x_hat = x / r`; the bug is that the second term is forgotten.

#![expect(clippy::print_stdout, reason = "showing the report is what it is for")]

use evenkeel::Result;
use evenkeel::gradcheck::GradCheck;
use evenkeel::gradcheck::strategies::{batch, well_conditioned};
use evenkeel::layers::{Layer, Parameter, ParameterMut};
use evenkeel::tensor::{Shape, TensorMut, TensorRef};
use proptest::prelude::any;
use proptest::test_runner::{Config, RngSeed, TestRunner};

struct RmsNorm {
    gain: [f64; 1],
    dgain: [f64; 1],
    has_bug: bool,
}

const EPS: f64 = 1e-3;

fn root(x: &[f64]) -> f64 {
    (x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64 + EPS).sqrt()
}

impl Layer<f64> for RmsNorm {
    fn describe(&self) -> String {
        "RmsNorm".to_string()
    }

    fn output_shape(&self, input: Shape) -> Result<Shape> {
        Ok(input)
    }

    fn infer(&self, x: TensorRef<'_, f64>, mut y: TensorMut<'_, f64>, _: &mut [f64]) -> Result<()> {
        let width = x.shape().dims()[1];
        for (x, y) in x.data().chunks(width).zip(y.data().chunks_mut(width)) {
            let r = root(x);
            y.iter_mut().zip(x).for_each(|(y, x)| *y = self.gain[0] * x / r);
        }
        Ok(())
    }

    fn forward(&mut self, x: TensorRef<'_, f64>, y: TensorMut<'_, f64>, _: &mut [f64], s: &mut [f64]) -> Result<()> {
        self.infer(x, y, s)
    }

    fn backward(
        &mut self,
        x: TensorRef<'_, f64>,
        dy: TensorRef<'_, f64>,
        mut dx: Option<TensorMut<'_, f64>>,
        _: &[f64],
        _: &mut [f64],
    ) -> Result<()> {
        let width = x.shape().dims()[1];
        for (row, (x, dy)) in x.data().chunks(width).zip(dy.data().chunks(width)).enumerate() {
            let r = root(x);
            let along: f64 = x.iter().zip(dy).map(|(x, dy)| dy * x / r).sum();
            self.dgain[0] += along;
            if let Some(dx) = &mut dx {
                let mean = if self.has_bug { 0.0 } else { along / width as f64 };
                for (j, dx) in dx.data()[row * width..][..width].iter_mut().enumerate() {
                    *dx = self.gain[0] / r * (dy[j] - x[j] / r * mean);
                }
            }
        }
        Ok(())
    }

    fn visit(&self, f: &mut dyn FnMut(Parameter<'_, f64>)) {
        f(Parameter { name: "gain", shape: [1].into(), value: &self.gain, grad: &self.dgain });
    }

    fn visit_mut(&mut self, f: &mut dyn FnMut(ParameterMut<'_, f64>)) {
        f(ParameterMut { name: "gain", value: &mut self.gain, grad: &mut self.dgain });
    }
}

fn main() {
    for has_bug in [true, false] {
        // In a test of yours `proptest!` writes these lines; a fixed seed makes this example print the same every time.
        let config = Config { rng_seed: RngSeed::Fixed(1), failure_persistence: None, ..Config::with_cases(50) };
        let strategy = (batch(1..=17, 1..=33, well_conditioned()), any::<u64>());
        let result = TestRunner::new(config).run(&strategy, |(x, seed)| {
            let mut layer = RmsNorm { gain: [1.5], dgain: [0.0], has_bug };
            GradCheck::new(seed).layer(&mut layer, x.view())?;
            Ok(())
        });
        assert_eq!(result.is_err(), has_bug, "the check finds what was planted, and nothing else");
        match result {
            Ok(()) => println!("without it, 50 random batches pass."),
            Err(error) => println!("With the bug: {error}"),
        }
    }
}
