//! What is kept of the steps of a run for its pictures: pre-activations and gradients.

use crate::lab::Network;
use evenkeel::train::Step;

/// Samples taken of an epoch, at most.
const SAMPLES: usize = 200;

/// Mean and standard deviation of what a ReLU receives, at one step.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moments {
    pub(crate) step: u64,
    pub(crate) mean: f64,
    pub(crate) std: f64,
}

/// Quantiles of the gradient norms of one layer over one epoch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Norms {
    pub(crate) tenth: f64,
    pub(crate) median: f64,
    pub(crate) ninetieth: f64,
}

/// What one network showed.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    /// For each hidden layer, the moments of its pre-activations.
    pub(crate) drift: Vec<Vec<Moments>>,
    /// For each epoch and each layer with a weight, the quantiles of its gradient norms.
    pub(crate) gradients: Vec<Vec<Norms>>,
    norms: Vec<Vec<f64>>,
    linear: Vec<usize>,
    before_relu: Vec<usize>,
    every: u64,
    steps: u64,
}

impl Watch {
    /// Watches a network over epochs of `steps` steps, some of them.
    pub(crate) fn new(network: &Network, steps: usize) -> Watch {
        Watch {
            drift: vec![Vec::new(); network.before_relu.len()],
            norms: vec![Vec::new(); network.linear.len()],
            linear: network.linear.clone(),
            before_relu: network.before_relu.clone(),
            every: steps.div_ceil(SAMPLES).max(1) as u64,
            ..Watch::default()
        }
    }

    /// Counts a step; returns whether it is one of those that are looked at.
    pub(crate) fn wants_next(&mut self) -> bool {
        self.steps += 1;
        (self.steps - 1).is_multiple_of(self.every)
    }

    /// Looks at a step.
    pub(crate) fn see(&mut self, step: &Step<'_, f32>) {
        for (trace, &layer) in self.drift.iter_mut().zip(&self.before_relu) {
            if let Some(output) = step.plan.output_of(layer) {
                let (mean, std) = moments(output.data());
                trace.push(Moments { step: self.steps, mean, std });
            }
        }
        let (linear, norms) = (&self.linear, &mut self.norms);
        step.plan.visit(&mut |layer, parameter| {
            if let Some(place) = linear.iter().position(|&l| l == layer).filter(|_| parameter.name == "weight") {
                norms[place].push(norm(parameter.grad));
            }
        });
    }

    /// Closes an epoch: its gradient norms become quantiles.
    pub(crate) fn end_epoch(&mut self) {
        self.gradients.push(self.norms.iter_mut().map(|norms| quantiles(&mut std::mem::take(norms))).collect());
    }
}

fn moments(x: &[f32]) -> (f64, f64) {
    let n = x.len() as f64;
    let mean = x.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
    let var = x.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / n;
    (mean, var.sqrt())
}

fn norm(x: &[f32]) -> f64 {
    x.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt()
}

/// Quantiles of at least one number, between neighbours by their distance.
fn quantiles(values: &mut [f64]) -> Norms {
    values.sort_by(f64::total_cmp);
    let at = |share: f64| {
        let place = share * (values.len() - 1) as f64;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a place in the list, not negative"
        )]
        let below = place as usize;
        let above = (below + 1).min(values.len() - 1);
        values[below] + (values[above] - values[below]) * (place - below as f64)
    };
    if values.is_empty() {
        return Norms { tenth: f64::NAN, median: f64::NAN, ninetieth: f64::NAN };
    }
    Norms { tenth: at(0.1), median: at(0.5), ninetieth: at(0.9) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_by_hand() {
        assert_eq!(moments(&[1.0, 3.0]), (2.0, 1.0));
        assert_eq!(norm(&[3.0, 4.0]), 5.0);
        let mut values: Vec<f64> = (0..=10).rev().map(f64::from).collect();
        assert_eq!(quantiles(&mut values), Norms { tenth: 1.0, median: 5.0, ninetieth: 9.0 });
        assert_eq!(quantiles(&mut [2.0]).median, 2.0);
    }
}
