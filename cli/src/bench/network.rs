//! Networks whose training step can be timed, and what a step takes.

use super::{check_memory, size};
use crate::failure::Failure;
use crate::lab::{Lab, Norm, OptimizerKind};
use evenkeel::data::Images;
use evenkeel::layers::{BatchNorm1d, Linear, Relu};
use evenkeel::model::plan::{Fusion, Plan};
use evenkeel::optim::{Adam, Optimizer, Sgd};
use evenkeel::simd::Element;
use evenkeel::tensor::Tensor;
use evenkeel::train::Trainer;
use evenkeel::{Loss, Rng, Sequential};
use std::fmt;

/// Linear layers of these widths with ReLU between them, and BatchNorm before that if wanted; cross-entropy; a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Network {
    pub(crate) widths: Vec<usize>,
    pub(crate) batch: usize,
    pub(crate) norm: Norm,
    pub(crate) optimizer: OptimizerKind,
}

const FORM: &str = "widths as in 784-32-32-10, then any of _b32 (the batch), _bn or _nobn, _adam or _sgd";

/// Learning rate of all that is timed: a step costs the same with any.
const LR: f64 = 1e-3;

impl Network {
    /// Widths, then what differs from a batch of 32 with BatchNorm and Adam; `mlp` may stand in front.
    pub(crate) fn parse(text: &str) -> Result<Network, String> {
        let mut words = text.strip_prefix("mlp").unwrap_or(text).split('_');
        let widths: Vec<usize> = words
            .next()
            .unwrap_or_default()
            .split('-')
            .map(|width| size(width, FORM, "learn"))
            .collect::<Result<_, _>>()?;
        if widths.len() < 2 {
            return Err(format!("a network has at least two widths; expected {FORM}"));
        }
        if widths[widths.len() - 1] > 256 {
            return Err("the last width is the number of classes, at most 256".to_string());
        }
        let mut network = Network { widths, batch: 32, norm: Norm::Batch, optimizer: OptimizerKind::Adam };
        for word in words {
            match word {
                "bn" => network.norm = Norm::Batch,
                "nobn" => network.norm = Norm::Without,
                "adam" => network.optimizer = OptimizerKind::Adam,
                "sgd" => network.optimizer = OptimizerKind::Sgd,
                _ => match word.strip_prefix('b') {
                    Some(batch) => network.batch = size(batch, FORM, "learn from")?,
                    None => return Err(format!("{word:?} is unknown; expected {FORM}")),
                },
            }
        }
        if network.batch == 1 && network.norm == Norm::Batch && network.widths.len() > 2 {
            return Err(
                "BatchNorm cannot take the variance of one value per channel: a batch has at least 2".to_string()
            );
        }
        Ok(network)
    }

    /// The network of a lab, with BatchNorm or without.
    pub(crate) fn of_lab(lab: Lab, norm: Norm) -> Network {
        let widths = [&[784], lab.hidden(), &[10]].concat();
        Network { widths, batch: lab.batch_size(), norm, optimizer: OptimizerKind::Adam }
    }

    /// The labs' networks, the first without BatchNorm too, and a wide one.
    pub(crate) fn defaults() -> Vec<Network> {
        let wide =
            Network { widths: vec![784, 1024, 1024, 10], batch: 256, ..Network::of_lab(Lab::Mlp32, Norm::Batch) };
        vec![
            Network::of_lab(Lab::Mlp32, Norm::Batch),
            Network::of_lab(Lab::Mlp32, Norm::Without),
            Network::of_lab(Lab::Mlp100, Norm::Batch),
            wide,
        ]
    }

    pub(crate) fn inputs(&self) -> usize {
        self.widths[0]
    }

    pub(crate) fn classes(&self) -> usize {
        self.widths[self.widths.len() - 1]
    }

    /// Multiplications and additions for one example, evaluated.
    pub(crate) fn forward_flops(&self) -> f64 {
        self.widths.windows(2).map(|pair| 2.0 * pair[0] as f64 * pair[1] as f64).sum()
    }

    /// Examples that are evaluated for a sample: as many as MNIST has, if that takes no more than a few hundredths of a second.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count, far below 2^53")]
    pub(crate) fn evaluated(&self) -> usize {
        (4e9 / self.forward_flops()).clamp(256.0, 60_000.0) as usize
    }

    fn parameters(&self) -> f64 {
        self.widths.windows(2).map(|pair| (pair[0] as f64 + 3.0) * pair[1] as f64).sum()
    }

    /// Refuses what the memory of this machine is not made for.
    pub(crate) fn check<T: Element>(&self) -> Result<(), Failure> {
        let activations: f64 = self.widths.iter().map(|&width| 4.0 * width as f64 * self.batch as f64).sum();
        let batches = (READY + 2) as f64 * self.inputs() as f64 * self.batch as f64;
        // Parameters and gradients twice, in the layers and in the arenas, two moments, and the copy for evaluation.
        let needed = (7.0 * self.parameters() + activations + batches) * size_of::<T>() as f64;
        check_memory(self, "a network whose parameters, moments and batches", needed)
    }

    /// A trainer at the beginning.
    pub(crate) fn trainer<T: Element>(&self, fusion: Fusion) -> evenkeel::Result<Trainer<T>> {
        let mut rng = Rng::new(1, "init");
        let mut model = Sequential::<T>::new();
        for (i, pair) in self.widths.windows(2).enumerate() {
            model = model.push(Linear::new(pair[0], pair[1], &mut rng)?);
            if i + 2 < self.widths.len() {
                if self.norm == Norm::Batch {
                    model = model.push(BatchNorm1d::new(pair[1])?);
                }
                model = model.push(Relu::new());
            }
        }
        let plan = Plan::new(model, [self.batch, self.inputs()].into(), Loss::CrossEntropy, fusion)?;
        let optimizer: Box<dyn Optimizer<T>> = match self.optimizer {
            OptimizerKind::Adam => Box::new(Adam::new(LR)?),
            OptimizerKind::Sgd => Box::new(Sgd::new(LR)?),
        };
        Ok(Trainer::of_plan(plan, optimizer))
    }

    /// Batches that are ready: normal numbers, and a class for each row.
    pub(crate) fn batches<T: Element>(&self) -> evenkeel::Result<Vec<(Tensor<T>, Vec<u8>)>> {
        let mut rng = Rng::new(2, "batches");
        (0..READY)
            .map(|_| {
                let mut x = Tensor::zeros([self.batch, self.inputs()])?;
                x.data_mut().iter_mut().for_each(|x| *x = T::from_f64(rng.normal()));
                let labels = (0..self.batch).map(|_| self.label(&mut rng)).collect();
                Ok((x, labels))
            })
            .collect()
    }

    /// As many images as MNIST has, or as a limit of memory allows, of one row of pixels as wide as the input.
    pub(crate) fn images(&self) -> evenkeel::Result<Images> {
        let most = (48 << 20) / self.inputs();
        let count = most.clamp(self.batch, 60_000.max(self.batch));
        let mut rng = Rng::new(3, "images");
        let mut pixels = vec![0; count * self.inputs()];
        for eight in pixels.chunks_mut(8) {
            eight.copy_from_slice(&rng.next_u64().to_le_bytes()[..eight.len()]);
        }
        let labels = (0..count).map(|_| self.label(&mut rng)).collect();
        Images::new(pixels, labels, 1, self.inputs(), self.classes())
    }

    fn label(&self, rng: &mut Rng) -> u8 {
        u8::try_from(rng.index(self.classes())).unwrap_or(u8::MAX)
    }
}

/// Batches that take turns.
const READY: usize = 8;

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let widths: Vec<String> = self.widths.iter().map(usize::to_string).collect();
        let norm = if self.norm == Norm::Batch { "bn" } else { "nobn" };
        write!(f, "mlp{}_{norm}_b{}_{}", widths.join("-"), self.batch, self.optimizer.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_as_typed() {
        for (text, shown) in [
            ("784-32-32-10", "mlp784-32-32-10_bn_b32_adam"),
            ("mlp784-32-32-10_nobn_b32_adam", "mlp784-32-32-10_nobn_b32_adam"),
            ("5-2_sgd_b1", "mlp5-2_bn_b1_sgd"),
        ] {
            assert_eq!(Network::parse(text).unwrap().to_string(), shown);
        }
        for (wrong, word) in [
            ("", "\"\""),
            ("784", "two widths"),
            ("784-x", "\"x\""),
            ("784-0-10", "0"),
            ("784-10_b", "\"\""),
            ("784-10_b0", "0"),
            ("784-10_big", "\"ig\""),
            ("784-10_relu", "relu"),
            ("784-257", "classes"),
            ("784-32-10_b1", "at least 2"),
        ] {
            let error = Network::parse(wrong).unwrap_err();
            assert!(error.contains(word), "{wrong}: {error}");
        }
    }

    #[test]
    fn a_lab_is_its_network() {
        assert_eq!(Network::of_lab(Lab::Mlp100, Norm::Without).to_string(), "mlp784-100-50-10_nobn_b64_adam");
    }
}
