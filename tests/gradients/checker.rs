//! The checker, on layers of a user's own with bugs planted in them.

use super::*;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Bug {
    None,
    /// BatchNorm's dx without its mean term.
    NoMean,
    /// BatchNorm's dx without its projection on x_hat.
    NoProjection,
    /// BatchNorm's projection with the unbiased variance: too large by m/(m-1).
    Unbiased,
    /// BatchNorm's backward pass with 1/sqrt(var).
    NoEps,
    /// BatchNorm's backward pass with the mean of another batch.
    Stale,
    /// Linear's dx through W in place of its transpose.
    NotTransposed,
    /// ReLU's mask from dy.
    MaskOfGradient,
    /// The largest entry of dx off by a little more than ten times what is allowed.
    OneEntry,
    /// The largest entry of a parameter's gradient likewise.
    OneParameter,
    /// All of dx off by a thousandth.
    Thousandth,
    /// A gradient that is infinite.
    Infinite,
}

/// Loops of a user's own: what the layer is, its (square) weight or scale, and what is wrong with it.
struct Own {
    kind: Kind,
    width: usize,
    weight: Vec<f64>,
    dweight: Vec<f64>,
    bug: Bug,
    seed: u64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Norm,
    Linear,
    Relu,
}

/// At least a tenth of the variance of what is checked, so that a missing one shows.
const OWN_EPS: f64 = 0.5;

/// Ten times what is allowed for the largest entry of a tensor, relative to it, and a little.
const JUST_WRONG: f64 = 10.0 * (1e-5 + 1e-7) * 1.01;

impl Own {
    fn new(kind: Kind, width: usize, bug: Bug, seed: u64) -> Self {
        let len = match kind {
            Kind::Norm => width,
            Kind::Linear => width * width,
            Kind::Relu => 0,
        };
        let weight = normals(&mut Rng::new(seed, "own"), len);
        Own { kind, width, dweight: vec![0.0; weight.len()], weight, bug, seed }
    }

    /// x_hat and 1 / sqrt(var + eps) of one channel.
    fn normalised(&self, x: &[f64], channel: usize, bug: Bug) -> (Vec<f64>, f64) {
        let column: Vec<f64> = x.iter().skip(channel).step_by(self.width).copied().collect();
        let n = column.len() as f64;
        let mean_of = |column: &[f64]| column.iter().sum::<f64>() / n;
        let mut mean = mean_of(&column);
        let var = column.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / n;
        let rstd = 1.0 / (var + if bug == Bug::NoEps { 0.0 } else { OWN_EPS }).sqrt();
        if bug == Bug::Stale {
            mean = mean_of(&normals(&mut Rng::new(self.seed, "the batch before"), column.len()));
        }
        (column.iter().map(|x| (x - mean) * rstd).collect(), rstd)
    }

    fn map(&self, base: &[f64], x: &[f64], y: &mut [f64]) {
        let c = self.width;
        match self.kind {
            Kind::Norm => {
                for j in 0..c {
                    for (i, x_hat) in self.normalised(x, j, Bug::None).0.iter().enumerate() {
                        y[i * c + j] = self.weight[j] * x_hat;
                    }
                }
            }
            Kind::Linear => {
                for (x, y) in x.chunks(c).zip(y.chunks_mut(c)) {
                    for j in 0..c {
                        y[j] = (0..c).map(|i| x[i] * self.weight[i * c + j]).sum();
                    }
                }
            }
            Kind::Relu => {
                for ((y, x), base) in y.iter_mut().zip(x).zip(base) {
                    *y = if *base > 0.0 { *x } else { 0.0 };
                }
            }
        }
    }

    fn gradient(&mut self, x: &[f64], dy: &[f64], dx: &mut [f64]) {
        let (c, n) = (self.width, x.len() / self.width);
        match self.kind {
            Kind::Norm => {
                for j in 0..c {
                    let (x_hat, rstd) = self.normalised(x, j, self.bug);
                    let dy: Vec<f64> = dy.iter().skip(j).step_by(c).copied().collect();
                    let mean = |terms: &mut dyn Iterator<Item = f64>| terms.sum::<f64>() / n as f64;
                    let mut of_dy = mean(&mut dy.iter().copied());
                    let mut along = mean(&mut dy.iter().zip(&x_hat).map(|(dy, x_hat)| dy * x_hat));
                    self.dweight[j] += along * n as f64;
                    if self.bug == Bug::NoMean {
                        of_dy = 0.0;
                    }
                    match self.bug {
                        Bug::NoProjection => along = 0.0,
                        Bug::Unbiased => along *= n as f64 / (n - 1) as f64,
                        _ => {}
                    }
                    for i in 0..n {
                        dx[i * c + j] = self.weight[j] * rstd * (dy[i] - of_dy - x_hat[i] * along);
                    }
                }
            }
            Kind::Linear => {
                for ((x, dy), dx) in x.chunks(c).zip(dy.chunks(c)).zip(dx.chunks_mut(c)) {
                    for i in 0..c {
                        let at = |j: usize| if self.bug == Bug::NotTransposed { j * c + i } else { i * c + j };
                        dx[i] = (0..c).map(|j| dy[j] * self.weight[at(j)]).sum();
                        for j in 0..c {
                            self.dweight[i * c + j] += x[i] * dy[j];
                        }
                    }
                }
            }
            Kind::Relu => {
                for i in 0..x.len() {
                    let mask = if self.bug == Bug::MaskOfGradient { dy[i] } else { x[i] };
                    dx[i] = if mask > 0.0 { dy[i] } else { 0.0 };
                }
            }
        }
        let largest = |values: &[f64]| (0..values.len()).max_by(|&a, &b| values[a].abs().total_cmp(&values[b].abs()));
        match self.bug {
            Bug::OneEntry => dx[largest(dx).unwrap()] *= 1.0 + JUST_WRONG,
            Bug::OneParameter => {
                let at = largest(&self.dweight).unwrap();
                self.dweight[at] *= 1.0 + JUST_WRONG;
            }
            Bug::Thousandth => dx.iter_mut().for_each(|dx| *dx *= 1.001),
            Bug::Infinite => dx[0] = f64::INFINITY,
            _ => {}
        }
    }
}

impl Layer<f64> for Own {
    fn describe(&self) -> String {
        format!("{:?} with {:?}", self.kind, self.bug)
    }

    fn output_shape(&self, input: Shape) -> Result<Shape> {
        Ok(input)
    }

    fn infer(&self, x: TensorRef<'_, f64>, mut y: TensorMut<'_, f64>, _: &mut [f64]) -> Result<()> {
        self.map(x.data(), x.data(), y.data());
        Ok(())
    }

    fn forward(&mut self, x: TensorRef<'_, f64>, y: TensorMut<'_, f64>, _: &mut [f64], s: &mut [f64]) -> Result<()> {
        self.infer(x, y, s)
    }

    fn forward_held(
        &mut self,
        base: TensorRef<'_, f64>,
        x: TensorRef<'_, f64>,
        mut y: TensorMut<'_, f64>,
        _: &mut [f64],
        _: &mut [f64],
    ) -> Result<()> {
        self.map(base.data(), x.data(), y.data());
        Ok(())
    }

    fn backward(
        &mut self,
        x: TensorRef<'_, f64>,
        dy: TensorRef<'_, f64>,
        dx: Option<TensorMut<'_, f64>>,
        _: &[f64],
        _: &mut [f64],
    ) -> Result<()> {
        let mut unasked = vec![0.0; x.data().len()];
        self.gradient(x.data(), dy.data(), dx.map_or(&mut unasked, TensorMut::into_data));
        Ok(())
    }

    fn visit(&self, f: &mut dyn FnMut(Parameter<'_, f64>)) {
        let shape = if self.kind == Kind::Linear { [self.width; 2].into() } else { [self.weight.len()].into() };
        f(Parameter { name: "weight", shape, value: &self.weight, grad: &self.dweight });
    }

    fn visit_mut(&mut self, f: &mut dyn FnMut(ParameterMut<'_, f64>)) {
        f(ParameterMut { name: "weight", value: &mut self.weight, grad: &mut self.dweight });
    }
}

/// Every kind of layer with what can be wrong with it. Batches have six to eight rows, standard normal data and an eps of 0.5: a
/// variance taken for its unbiased one, a missing eps and a dropped term are all far above ten times what is allowed there.
const PLANTED: [(Kind, Bug); 16] = [
    (Kind::Norm, Bug::NoMean),
    (Kind::Norm, Bug::NoProjection),
    (Kind::Norm, Bug::Unbiased),
    (Kind::Norm, Bug::NoEps),
    (Kind::Norm, Bug::Stale),
    (Kind::Norm, Bug::OneEntry),
    (Kind::Norm, Bug::OneParameter),
    (Kind::Norm, Bug::Thousandth),
    (Kind::Linear, Bug::NotTransposed),
    (Kind::Linear, Bug::OneEntry),
    (Kind::Linear, Bug::OneParameter),
    (Kind::Linear, Bug::Thousandth),
    (Kind::Relu, Bug::MaskOfGradient),
    (Kind::Relu, Bug::OneEntry),
    (Kind::Relu, Bug::Thousandth),
    (Kind::Relu, Bug::Infinite),
];

/// Prints the rate of each bug (`cargo test --test gradients planted -- --nocapture`).
#[test]
fn planted_bugs_are_found_in_999_of_1000_seeds_in_both_modes() {
    const SEEDS: u64 = 1000;
    for (kind, bug) in PLANTED {
        let at_fault = if bug == Bug::OneParameter { "weight" } else { "x" };
        for is_fast in [false, true] {
            let (mut found, mut sound) = (0, 0);
            for seed in 0..SEEDS {
                let rows = 6 + usize::try_from(seed % 3).unwrap();
                let x = normal_batch([rows, 4], seed).unwrap();
                let check = if is_fast { GradCheck::new(seed).fast() } else { GradCheck::new(seed) };
                let wrong = check.layer(&mut Own::new(kind, 4, bug, seed), x.view());
                if let Err(Failure::Gradient(report)) = &wrong {
                    found += u64::from(!report.tensor(at_fault).unwrap().passed());
                }
                sound += u64::from(check.layer(&mut Own::new(kind, 4, Bug::None, seed), x.view()).is_ok());
            }
            let mode = if is_fast { "fast" } else { "full" };
            println!("{kind:?} with {bug:?}, {mode}: found in {found} of {SEEDS}; without it, {sound} of {SEEDS} pass");
            assert!(1000 * found >= 999 * SEEDS, "{kind:?} with {bug:?}, {mode}: {found}");
            assert_eq!(sound, SEEDS, "{kind:?}, {mode}");
        }
    }
}

#[test]
fn a_planted_bug_is_found_inside_a_network() {
    let x = normal_batch([6, 4], 2).unwrap();
    for (kind, bug) in
        [(Kind::Norm, Bug::NoMean), (Kind::Linear, Bug::NotTransposed), (Kind::Relu, Bug::MaskOfGradient)]
    {
        let build = |bug| {
            let rng = &mut Rng::new(1, "network");
            Sequential::new()
                .push(Linear::new(4, 4, rng).unwrap().without_bias())
                .push(Own::new(kind, 4, bug, 5))
                .push(Linear::new(4, 3, rng).unwrap())
        };
        let targets = Targets::Classes(&[0, 1, 2, 2, 1, 0]);
        for check in [GradCheck::new(7), GradCheck::new(7).fast()] {
            let model = |bug| check.model(&mut build(bug), Loss::CrossEntropy, x.view(), targets);
            let plan = |bug| check.plan(build(bug), Fusion::On, Loss::CrossEntropy, x.view(), targets);
            for checked in [model(Bug::None), plan(Bug::None)] {
                passes(&format!("{kind:?}"), checked);
            }
            for checked in [model(bug), plan(bug)] {
                let report = fails(&format!("{kind:?} with {bug:?}"), checked);
                assert!(!report.tensor("0.weight").unwrap().passed(), "{kind:?} with {bug:?}: {report}");
                assert!(report.tensor("2.weight").unwrap().passed(), "above the bug all is well: {report}");
            }
        }
    }
}

/// Why the upstream gradient is random: the outputs of a normalised channel add up to the same whatever x is, so with ones the
/// gradient is zero, and a backward pass without its projection gives zero just as well.
#[test]
fn an_upstream_gradient_of_ones_sees_nothing_of_a_normalisation() {
    let x = normal_batch([6, 4], 2).unwrap();
    for bug in [Bug::None, Bug::NoProjection] {
        let mut dx = vec![f64::NAN; 24];
        Own::new(Kind::Norm, 4, bug, 5).gradient(x.data(), &[1.0; 24], &mut dx);
        assert!(dx.iter().all(|dx| dx.abs() < 1e-12), "{bug:?}: {dx:?}");
    }
}

/// `y = w x` for one weight and any number of inputs, honest but for the fault that it was made with.
struct Scaling {
    w: [f64; 1],
    dw: Vec<f64>,
    fault: Fault,
    passes: usize,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    None,
    OverwritesItsGradient,
    NeedsDxForItsGradient,
    HasTooFewGradients,
    HidesItsParameter,
    MisstatesItsShape,
    ForgetsItsMask,
    HoldsAnotherFunction,
}

impl Layer<f64> for Scaling {
    fn describe(&self) -> String {
        format!("{:?}", self.fault)
    }

    fn output_shape(&self, input: Shape) -> Result<Shape> {
        Ok(input)
    }

    fn infer(&self, x: TensorRef<'_, f64>, mut y: TensorMut<'_, f64>, _: &mut [f64]) -> Result<()> {
        y.data().iter_mut().zip(x.data()).for_each(|(y, x)| *y = self.w[0] * x);
        Ok(())
    }

    fn forward(&mut self, x: TensorRef<'_, f64>, y: TensorMut<'_, f64>, _: &mut [f64], s: &mut [f64]) -> Result<()> {
        self.infer(x, y, s)
    }

    fn forward_held(
        &mut self,
        _: TensorRef<'_, f64>,
        x: TensorRef<'_, f64>,
        mut y: TensorMut<'_, f64>,
        _: &mut [f64],
        _: &mut [f64],
    ) -> Result<()> {
        self.passes += 1;
        let factor = match self.fault {
            Fault::ForgetsItsMask => self.passes as f64,
            Fault::HoldsAnotherFunction => 2.0,
            _ => 1.0,
        };
        y.data().iter_mut().zip(x.data()).for_each(|(y, x)| *y = factor * self.w[0] * x);
        Ok(())
    }

    fn backward(
        &mut self,
        x: TensorRef<'_, f64>,
        dy: TensorRef<'_, f64>,
        dx: Option<TensorMut<'_, f64>>,
        _: &[f64],
        _: &mut [f64],
    ) -> Result<()> {
        let dw: f64 = x.data().iter().zip(dy.data()).map(|(x, dy)| x * dy).sum();
        match (self.fault, self.dw.first_mut()) {
            (Fault::OverwritesItsGradient, Some(sum)) => *sum = dw,
            (Fault::NeedsDxForItsGradient, Some(_)) if dx.is_none() => {}
            (_, Some(sum)) => *sum += dw,
            (_, None) => {}
        }
        if let Some(mut dx) = dx {
            dx.data().iter_mut().zip(dy.data()).for_each(|(dx, dy)| *dx = self.w[0] * dy);
        }
        Ok(())
    }

    fn visit(&self, f: &mut dyn FnMut(Parameter<'_, f64>)) {
        if self.fault != Fault::HidesItsParameter {
            let shape = if self.fault == Fault::MisstatesItsShape { [2, 1].into() } else { [1].into() };
            f(Parameter { name: "weight", shape, value: &self.w, grad: &self.dw });
        }
    }

    fn visit_mut(&mut self, f: &mut dyn FnMut(ParameterMut<'_, f64>)) {
        f(ParameterMut { name: "weight", value: &mut self.w, grad: &mut self.dw });
    }
}

#[test]
fn the_contract_of_parameter_gradients_is_checked() {
    let x = normal_batch([3, 2], 8).unwrap();
    let check = |fault| {
        let dw = if fault == Fault::HasTooFewGradients { vec![] } else { vec![0.0] };
        let mut layer = Scaling { w: [1.5], dw, fault, passes: 0 };
        GradCheck::new(9).layer(&mut layer, x.view())
    };
    passes("an honest layer", check(Fault::None));
    for fault in [Fault::OverwritesItsGradient, Fault::NeedsDxForItsGradient] {
        let report = fails(&format!("{fault:?}"), check(fault));
        let weight = report.tensor("weight").unwrap();
        assert!(!weight.passed() && weight.is_second_pass, "{fault:?}: {report}");
        assert!(report.to_string().contains("a second backward pass should add the same"), "{report}");
    }
    for (fault, what) in [
        (Fault::HasTooFewGradients, "weight: expected 1 values, found 0 gradients"),
        (Fault::HidesItsParameter, "visit_mut: expected what visit shows: nothing, found weight"),
        (Fault::MisstatesItsShape, "weight: expected [2, 1], found 1 values"),
        (Fault::ForgetsItsMask, "is another one each time, but must be the same for the same input"),
        (Fault::HoldsAnotherFunction, "what forward_held gives at the base point is"),
    ] {
        let refused = check(fault);
        assert!(matches!(refused, Err(Failure::Refused(_))), "{fault:?}: {refused:?}");
        let text = refused.unwrap_err().to_string();
        assert!(text.contains(what), "{fault:?}: {text}");
    }
}
