//! The worked examples: which network, how its pixels are scaled, and how it is trained.

use clap::ValueEnum;
use evenkeel::data::Scale;
use evenkeel::layers::{BatchNorm1d, Linear, Relu};
use evenkeel::optim::{Adam, Optimizer, Sgd};
use evenkeel::{Result, Rng, Sequential};

/// A worked example.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Lab {
    /// 784-32-32-10, batch 32, Adam 0.01, pixels from 0 to 1.
    Mlp32,
    /// 784-100-50-10, batch 64, Adam 0.001, pixels from -1 to 1.
    Mlp100,
}

/// Which optimiser trains.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum OptimizerKind {
    /// Adam with PyTorch's defaults.
    Adam,
    /// Plain stochastic gradient descent.
    Sgd,
}

/// Whether a hidden layer is Linear-BN-ReLU or Linear-ReLU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Norm {
    Batch,
    Without,
}

impl Lab {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Lab::Mlp32 => "mlp32",
            Lab::Mlp100 => "mlp100",
        }
    }

    /// Widths of the hidden layers.
    pub(crate) fn hidden(self) -> &'static [usize] {
        match self {
            Lab::Mlp32 => &[32, 32],
            Lab::Mlp100 => &[100, 50],
        }
    }

    pub(crate) fn batch_size(self) -> usize {
        match self {
            Lab::Mlp32 => 32,
            Lab::Mlp100 => 64,
        }
    }

    pub(crate) fn scale(self) -> Scale {
        match self {
            Lab::Mlp32 => Scale::default(),
            Lab::Mlp100 => Scale { mean: 0.5, std: 0.5 },
        }
    }

    /// Learning rate, unless another is asked for.
    pub(crate) fn lr(self, optimizer: OptimizerKind) -> f64 {
        match (optimizer, self) {
            (OptimizerKind::Sgd, _) => 0.1,
            (OptimizerKind::Adam, Lab::Mlp32) => 0.01,
            (OptimizerKind::Adam, Lab::Mlp100) => 0.001,
        }
    }

    /// The network; both forms draw the same initial weights from one seed, because BatchNorm draws none.
    pub(crate) fn network(self, norm: Norm, inputs: usize, classes: usize, seed: u64) -> Result<Network> {
        let mut rng = Rng::new(seed, "init");
        let (mut model, mut linear, mut before_relu) = (Sequential::new(), Vec::new(), Vec::new());
        let mut width = inputs;
        for &hidden in self.hidden() {
            linear.push(model.len());
            model = model.push(Linear::new(width, hidden, &mut rng)?);
            if norm == Norm::Batch {
                model = model.push(BatchNorm1d::new(hidden)?);
            }
            before_relu.push(model.len() - 1);
            model = model.push(Relu::new());
            width = hidden;
        }
        linear.push(model.len());
        model = model.push(Linear::new(width, classes, &mut rng)?);
        Ok(Network { model, linear, before_relu })
    }
}

/// A model, and which of its layers are worth watching.
pub(crate) struct Network {
    pub(crate) model: Sequential<f32>,
    /// The linear layers, input first.
    pub(crate) linear: Vec<usize>,
    /// The layers whose output a ReLU receives, input first.
    pub(crate) before_relu: Vec<usize>,
}

impl OptimizerKind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            OptimizerKind::Adam => "adam",
            OptimizerKind::Sgd => "sgd",
        }
    }

    pub(crate) fn build(self, lr: f64) -> Result<Box<dyn Optimizer<f32>>> {
        Ok(match self {
            OptimizerKind::Adam => Box::new(Adam::new(lr)?),
            OptimizerKind::Sgd => Box::new(Sgd::new(lr)?),
        })
    }
}
