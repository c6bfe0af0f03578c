//! Optimisers: what they remember between steps. The arithmetic is in [`kernels::update`](crate::kernels::update).

use crate::error::{Error, Result};
use crate::kernels::update::{self, Momentum};
use crate::simd::Element;
use crate::tensor::Tensor;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

/// Moves parameters along their gradients.
///
/// A model calls [`Optimizer::begin_step`] once and then [`Optimizer::update`] for each parameter tensor, always in the same
/// order, so that `index` names the same tensor in every step. A plan that fuses layers hands over the parameters of all of them as one
/// tensor, with zeros between them, so that what an optimiser does must not depend on where one ends.
pub trait Optimizer<T: Element>: Send {
    /// The next step begins.
    fn begin_step(&mut self);
    /// Moves one parameter tensor; any index will do, and takes memory for its own tensor alone.
    ///
    /// # Errors
    /// If value and gradient differ in size, or if the tensor of this index had another size before, where something is remembered of it;
    /// neither the tensor nor what is remembered changes then.
    fn update(&mut self, index: usize, value: &mut [T], grad: &[T]) -> Result<()>;
}

impl<T: Element, O: Optimizer<T> + ?Sized> Optimizer<T> for Box<O> {
    fn begin_step(&mut self) {
        (**self).begin_step();
    }

    fn update(&mut self, index: usize, value: &mut [T], grad: &[T]) -> Result<()> {
        (**self).update(index, value, grad)
    }
}

fn check(what: &str, value: f64, least: f64, below: f64) -> Result<f64> {
    if value.is_finite() && value >= least && value < below {
        return Ok(value);
    }
    let expected = if below.is_finite() {
        format!("from {least} to below {below}")
    } else {
        format!("finite and at least {least}")
    };
    Err(Error::invalid(what, value, expected))
}

/// What is remembered of tensor `index`, which has `len` elements: zeros at first.
fn state<T: Element>(state: &mut BTreeMap<usize, Tensor<T>>, index: usize, len: usize) -> Result<&mut [T]> {
    let tensor = match state.entry(index) {
        Entry::Occupied(entry) => entry.into_mut(),
        Entry::Vacant(entry) => entry.insert(Tensor::zeros([len])?),
    };
    if tensor.data().len() == len {
        return Ok(tensor.data_mut());
    }
    Err(Error::shape(format!("optimiser: parameter {index}"), format!("{} elements", tensor.data().len()), len))
}

/// Stochastic gradient descent with momentum, in PyTorch's order.
#[derive(Clone, Debug)]
pub struct Sgd<T: Element> {
    step: update::Sgd,
    buffers: BTreeMap<usize, Tensor<T>>,
}

impl<T: Element> Sgd<T> {
    /// Plain descent: no momentum, no weight decay.
    ///
    /// # Errors
    /// If the learning rate is negative or not finite.
    pub fn new(lr: f64) -> Result<Self> {
        let lr = check("learning rate", lr, 0.0, f64::INFINITY)?;
        let step = update::Sgd { lr, momentum: 0.0, form: Momentum::Classical, weight_decay: 0.0, step: 0 };
        Ok(Sgd { step, buffers: BTreeMap::new() })
    }

    /// With momentum, in one of its forms.
    ///
    /// # Errors
    /// If the momentum is negative or not finite.
    pub fn momentum(mut self, momentum: f64, form: Momentum) -> Result<Self> {
        self.step.momentum = check("momentum", momentum, 0.0, f64::INFINITY)?;
        self.step.form = form;
        Ok(self)
    }

    /// With weight decay, added to the gradient.
    ///
    /// # Errors
    /// If it is negative or not finite.
    pub fn weight_decay(mut self, weight_decay: f64) -> Result<Self> {
        self.step.weight_decay = check("weight decay", weight_decay, 0.0, f64::INFINITY)?;
        Ok(self)
    }
}

impl<T: Element> Optimizer<T> for Sgd<T> {
    fn begin_step(&mut self) {
        self.step.step += 1;
    }

    fn update(&mut self, index: usize, value: &mut [T], grad: &[T]) -> Result<()> {
        if grad.len() != value.len() {
            return Err(Error::shape("sgd: gradient", value.len(), grad.len()));
        }
        let has_momentum = self.step.momentum != 0.0;
        let buffer: &mut [T] = if has_momentum { state(&mut self.buffers, index, value.len())? } else { &mut [] };
        update::sgd(&self.step, value, grad, buffer);
        Ok(())
    }
}

/// Adam, in PyTorch's order; defaults beta1 0.9, beta2 0.999, eps 1e-8, no weight decay.
#[derive(Clone, Debug)]
pub struct Adam<T: Element> {
    step: update::Adam,
    first: BTreeMap<usize, Tensor<T>>,
    second: BTreeMap<usize, Tensor<T>>,
}

impl<T: Element> Adam<T> {
    /// Adam with PyTorch's defaults but for the learning rate.
    ///
    /// # Errors
    /// If the learning rate is negative or not finite.
    pub fn new(lr: f64) -> Result<Self> {
        let lr = check("learning rate", lr, 0.0, f64::INFINITY)?;
        let step = update::Adam { lr, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0, step: 0 };
        Ok(Adam { step, first: BTreeMap::new(), second: BTreeMap::new() })
    }

    /// With other decays of the moments.
    ///
    /// # Errors
    /// If one of them is not in `[0, 1)`.
    pub fn betas(mut self, beta1: f64, beta2: f64) -> Result<Self> {
        self.step.beta1 = check("beta1", beta1, 0.0, 1.0)?;
        self.step.beta2 = check("beta2", beta2, 0.0, 1.0)?;
        Ok(self)
    }

    /// With another constant in the denominator.
    ///
    /// # Errors
    /// If it is not finite, or not above 0 in the element type: a gradient that was always 0 would divide 0 by 0.
    pub fn eps(mut self, eps: f64) -> Result<Self> {
        if !(eps.is_finite() && T::from_f64(eps) > T::ZERO) {
            return Err(Error::invalid("adam: eps", eps, format!("finite and above 0 in {}", T::NAME)));
        }
        self.step.eps = eps;
        Ok(self)
    }

    /// With weight decay, added to the gradient.
    ///
    /// # Errors
    /// If it is negative or not finite.
    pub fn weight_decay(mut self, weight_decay: f64) -> Result<Self> {
        self.step.weight_decay = check("weight decay", weight_decay, 0.0, f64::INFINITY)?;
        Ok(self)
    }
}

impl<T: Element> Optimizer<T> for Adam<T> {
    fn begin_step(&mut self) {
        self.step.step += 1;
    }

    fn update(&mut self, index: usize, value: &mut [T], grad: &[T]) -> Result<()> {
        if grad.len() != value.len() {
            return Err(Error::shape("adam: gradient", value.len(), grad.len()));
        }
        if self.step.step == 0 {
            return Err(Error::invalid("adam: step", 0, "at least 1: begin_step comes before update"));
        }
        let first = state(&mut self.first, index, value.len())?;
        let second = state(&mut self.second, index, value.len())?;
        update::adam(&self.step, value, grad, first, second);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_step_by_hand_and_bad_options() {
        let mut p = [1.0f64];
        let mut sgd = Sgd::new(0.5).unwrap();
        sgd.begin_step();
        sgd.update(0, &mut p, &[2.0]).unwrap();
        assert_eq!(p, [0.0]);
        // Adam's first step is lr g / (|g| + eps'), whatever the size of g.
        let mut adam = Adam::new(0.1).unwrap().eps(1e-300).unwrap();
        assert!(adam.update(0, &mut p, &[1.0]).is_err(), "a step that was not begun");
        adam.begin_step();
        adam.update(0, &mut p, &[-300.0]).unwrap();
        assert!((p[0] - 0.1).abs() < 1e-15);
        assert!(adam.update(0, &mut [0.0; 2], &[0.0; 2]).is_err());
        for lr in [f64::NAN, -1.0, f64::INFINITY] {
            assert!(Sgd::<f32>::new(lr).is_err() && Adam::<f32>::new(lr).is_err());
        }
    }
}
