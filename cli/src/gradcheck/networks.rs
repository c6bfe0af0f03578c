//! Whole networks with their losses: layer by layer, and as a plan runs them.

use super::function::Checked;
use super::subjects::{Case, size};
use evenkeel::gradcheck::{GradCheck, normal_batch};
use evenkeel::layers::{BatchNorm1d, BatchNormOptions, Layer, Linear, Relu};
use evenkeel::model::plan::Fusion;
use evenkeel::{Loss, Rng, Sequential, Targets};
use std::fmt;

/// Linear, perhaps BatchNorm, perhaps ReLU, up to three times; then a Linear.
pub(super) struct Network {
    rows: usize,
    inputs: usize,
    hidden: Vec<Hidden>,
    outputs: usize,
    loss: Loss,
    seed: u64,
}

struct Hidden {
    width: usize,
    has_bias: bool,
    norm: Option<BatchNormOptions>,
    relu: bool,
}

impl Network {
    pub(super) fn new(rng: &mut Rng) -> Self {
        let rows = size(rng, 17).max(4);
        let hidden = (0..1 + rng.index(3)).map(|_| Hidden::new(rng)).collect();
        let loss = if rng.below(2) == 0 { Loss::CrossEntropy } else { Loss::Mse };
        let (inputs, outputs) = (size(rng, 9), size(rng, 7));
        Network { rows, inputs, hidden, outputs, loss, seed: rng.next_u64() }
    }

    fn model(&self) -> evenkeel::Result<Sequential<f64>> {
        let rng = &mut Rng::new(self.seed, "network");
        let (mut model, mut width) = (Sequential::new(), self.inputs);
        for h in &self.hidden {
            let linear = Linear::new(width, h.width, rng)?;
            model = model.push(if h.has_bias { linear } else { linear.without_bias() });
            if let Some(options) = h.norm {
                let mut norm = BatchNorm1d::with_options(h.width, options)?;
                norm.visit_mut(&mut |p| p.value.iter_mut().for_each(|value| *value = rng.normal()));
                model = model.push(norm);
            }
            if h.relu {
                model = model.push(Relu::new());
            }
            width = h.width;
        }
        Ok(model.push(Linear::new(width, self.outputs, rng)?))
    }

    pub(super) fn check_layers(&self, check: GradCheck) -> Case {
        Case { what: self.to_string(), differences: self.checked(check, None), twin: None }
    }

    /// As a plan, mostly with fusion.
    pub(super) fn check_plan(&self, check: GradCheck) -> Case {
        let fusion = if Rng::new(self.seed, "fusion").below(4) == 0 { Fusion::Off } else { Fusion::On };
        Case { what: format!("{self}, fusion {fusion:?}"), differences: self.checked(check, Some(fusion)), twin: None }
    }

    fn checked(&self, check: GradCheck, plan: Option<Fusion>) -> Checked {
        let x = normal_batch([self.rows, self.inputs], self.seed)?;
        let rng = &mut Rng::new(self.seed, "targets");
        let classes: Vec<u8> =
            (0..self.rows).map(|_| u8::try_from(rng.index(self.outputs)).expect("few classes")).collect();
        let values: Vec<f64> = (0..self.rows * self.outputs).map(|_| rng.normal()).collect();
        let targets = match self.loss {
            Loss::CrossEntropy => Targets::Classes(&classes),
            Loss::Mse => Targets::Values(&values),
        };
        let mut model = self.model()?;
        match plan {
            Some(fusion) => check.plan(model, fusion, self.loss, x.view(), targets),
            None => check.model(&mut model, self.loss, x.view(), targets),
        }
    }
}

impl Hidden {
    fn new(rng: &mut Rng) -> Self {
        let options = BatchNormOptions {
            // Layers upon layers magnify the slope of a channel that is nearly constant.
            eps: [1e-3, 1e-2, 1.0][rng.index(3)],
            affine: rng.below(4) > 0,
            ..BatchNormOptions::default()
        };
        let norm = (rng.below(4) > 0).then_some(options);
        Hidden { width: size(rng, 9), has_bias: rng.below(2) == 0, norm, relu: rng.below(4) > 0 }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} rows, {}", self.rows, self.inputs)?;
        for h in &self.hidden {
            let parts = [(h.norm.is_some(), "bn"), (h.relu, "relu"), (!h.has_bias, "no bias")];
            let parts: Vec<&str> = parts.iter().filter(|(is_so, _)| *is_so).map(|(_, text)| *text).collect();
            write!(f, "-{}", h.width)?;
            if !parts.is_empty() {
                write!(f, "({})", parts.join(" "))?;
            }
        }
        write!(f, "-{}, {:?}", self.outputs, self.loss)
    }
}
