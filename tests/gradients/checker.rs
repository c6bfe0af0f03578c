//! The checker, on layers of a user's own with bugs planted in them.

use super::*;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Bug {
    None,
    /// BatchNorm's dx without its mean term.
    NoMean,
    /// BatchNorm's dx without its projection on x_hat.
    NoProjection,
    /// Linear's dx through W in place of its transpose.
    NotTransposed,
    /// ReLU's mask from dy.
    MaskOfGradient,
    /// One entry of dx off by a thousandth of itself.
    OneEntry,
    /// One entry of a parameter's gradient off by a thousandth of itself.
    OneParameter,
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
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Norm,
    Linear,
    Relu,
}

const OWN_EPS: f64 = 0.1;

impl Own {
    fn new(kind: Kind, width: usize, bug: Bug) -> Self {
        let len = match kind {
            Kind::Norm => width,
            Kind::Linear => width * width,
            Kind::Relu => 0,
        };
        let weight = normals(&mut Rng::new(5, "own"), len);
        Own { kind, width, dweight: vec![0.0; weight.len()], weight, bug }
    }

    /// x_hat and 1 / sqrt(var + eps) of one channel.
    fn normalised(&self, x: &[f64], channel: usize) -> (Vec<f64>, f64) {
        let column: Vec<f64> = x.iter().skip(channel).step_by(self.width).copied().collect();
        let n = column.len() as f64;
        let mean = column.iter().sum::<f64>() / n;
        let var = column.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / n;
        let rstd = 1.0 / (var + OWN_EPS).sqrt();
        (column.iter().map(|x| (x - mean) * rstd).collect(), rstd)
    }

    fn map(&self, base: &[f64], x: &[f64], y: &mut [f64]) {
        let c = self.width;
        match self.kind {
            Kind::Norm => {
                for j in 0..c {
                    for (i, x_hat) in self.normalised(x, j).0.iter().enumerate() {
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
                    let (x_hat, rstd) = self.normalised(x, j);
                    let dy: Vec<f64> = dy.iter().skip(j).step_by(c).copied().collect();
                    let mean = |terms: &mut dyn Iterator<Item = f64>| terms.sum::<f64>() / n as f64;
                    let mut of_dy = mean(&mut dy.iter().copied());
                    let mut along = mean(&mut dy.iter().zip(&x_hat).map(|(dy, x_hat)| dy * x_hat));
                    self.dweight[j] += along * n as f64;
                    if self.bug == Bug::NoMean {
                        of_dy = 0.0;
                    }
                    if self.bug == Bug::NoProjection {
                        along = 0.0;
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
            Bug::OneEntry => dx[largest(dx).unwrap()] *= 1.001,
            Bug::OneParameter => {
                let at = largest(&self.dweight).unwrap();
                self.dweight[at] *= 1.001;
            }
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
        f(Parameter { name: "weight", value: &self.weight, grad: &self.dweight });
    }

    fn visit_mut(&mut self, f: &mut dyn FnMut(ParameterMut<'_, f64>)) {
        f(ParameterMut { name: "weight", value: &mut self.weight, grad: &mut self.dweight });
    }
}

#[test]
fn planted_bugs_are_found_in_a_users_own_layers() {
    let bugs = [
        (Kind::Norm, Bug::NoMean),
        (Kind::Norm, Bug::NoProjection),
        (Kind::Norm, Bug::OneEntry),
        (Kind::Norm, Bug::OneParameter),
        (Kind::Norm, Bug::Infinite),
        (Kind::Linear, Bug::NotTransposed),
        (Kind::Linear, Bug::OneEntry),
        (Kind::Linear, Bug::OneParameter),
        (Kind::Relu, Bug::MaskOfGradient),
        (Kind::Relu, Bug::OneEntry),
        (Kind::Relu, Bug::Infinite),
    ];
    let x = normal_batch([6, 4], 2).unwrap();
    for (kind, bug) in bugs {
        for seed in 0..10 {
            let check = |bug| check_layer(&mut Own::new(kind, 4, bug), x.view(), seed, Tolerance::default()).unwrap();
            passes(&format!("{kind:?} without a bug"), &check(Bug::None));
            let report = check(bug);
            assert!(!report.passed(), "{kind:?} with {bug:?}, seed {seed}, was not found: {report}");
            let at_fault = if bug == Bug::OneParameter { "weight" } else { "x" };
            assert!(!report.tensor(at_fault).unwrap().passed(), "{kind:?} with {bug:?}, seed {seed}: {report}");
        }
    }
}

#[test]
fn a_planted_bug_is_found_inside_a_network() {
    let x = normal_batch([6, 4], 2).unwrap();
    for (kind, bug) in
        [(Kind::Norm, Bug::NoMean), (Kind::Linear, Bug::NotTransposed), (Kind::Relu, Bug::MaskOfGradient)]
    {
        let check = |bug| {
            let rng = &mut Rng::new(1, "network");
            let mut model = Sequential::new()
                .push(Linear::new(4, 4, rng).unwrap().without_bias())
                .push(Own::new(kind, 4, bug))
                .push(Linear::new(4, 3, rng).unwrap());
            let targets = Targets::Classes(&[0, 1, 2, 2, 1, 0]);
            check_model(&mut model, Loss::CrossEntropy, x.view(), targets, Tolerance::default()).unwrap()
        };
        passes(&format!("{kind:?}"), &check(Bug::None));
        let report = check(bug);
        assert!(!report.tensor("0.weight").unwrap().passed(), "{kind:?} with {bug:?}: {report}");
        assert!(report.tensor("2.weight").unwrap().passed(), "above the bug all is well: {report}");
    }
}

/// Why the upstream gradient is random: the outputs of a normalised channel add up to the same whatever x is, so with ones the
/// gradient is zero, and a backward pass without its projection gives zero just as well.
#[test]
fn an_upstream_gradient_of_ones_sees_nothing_of_a_normalisation() {
    let x = normal_batch([6, 4], 2).unwrap();
    for bug in [Bug::None, Bug::NoProjection] {
        let mut dx = vec![f64::NAN; 24];
        Own::new(Kind::Norm, 4, bug).gradient(x.data(), &[1.0; 24], &mut dx);
        assert!(dx.iter().all(|dx| dx.abs() < 1e-12), "{bug:?}: {dx:?}");
    }
}

#[test]
fn nothing_but_a_finite_gradient_passes() {
    let square = |x: &[f64], y: &mut [f64]| y[0] = x[0] * x[0];
    for wrong in [f64::INFINITY, f64::NEG_INFINITY, f64::NAN, 1e300, 0.0] {
        let report = check_closures(square, |_, _, dx| dx[0] = wrong, &[3.0], 1, 7, Tolerance::default());
        assert!(!report.passed(), "{wrong}: {report}");
    }
    assert_eq!(STEPS.len(), 4);
}

/// `y = w x` for one weight and any number of inputs, honest but for the fault that it was made with.
struct Scaling {
    w: [f64; 1],
    dw: Vec<f64>,
    fault: Fault,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    None,
    OverwritesItsGradient,
    NeedsDxForItsGradient,
    HasTooFewGradients,
    HidesItsParameter,
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
            f(Parameter { name: "weight", value: &self.w, grad: &self.dw });
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
        let mut layer = Scaling { w: [1.5], dw, fault };
        check_layer(&mut layer, x.view(), 9, Tolerance::default())
    };
    passes("an honest layer", &check(Fault::None).unwrap());
    for fault in [Fault::OverwritesItsGradient, Fault::NeedsDxForItsGradient] {
        let report = check(fault).unwrap();
        assert!(!report.passed() && !report.tensor("weight").unwrap().passed(), "{fault:?}: {report}");
    }
    for fault in [Fault::HasTooFewGradients, Fault::HidesItsParameter] {
        let answer = check(fault);
        assert!(answer.is_err(), "{fault:?}: {answer:?}");
    }
}
