//! Which layers a step stands for, where its tensors lie, and which kernels it calls.

use super::Fusion;
use crate::error::{Error, Result};
use crate::kernels::batchnorm;
use crate::layers::{Layer, Linear, Relu, as_norm};
use crate::model::{Extent, Sequential, checked_len, named};
use crate::simd::Element;
use crate::tensor::Shape;
use std::any::Any;
use std::ops::Range;

/// A product at the head of a step.
#[derive(Clone, Copy, Debug)]
pub(in crate::model) struct Product {
    pub(in crate::model) inputs: usize,
    pub(in crate::model) outputs: usize,
}

/// A normalisation in a step.
#[derive(Clone, Copy, Debug)]
pub(in crate::model) struct Normalisation {
    /// Which layer it is.
    pub(in crate::model) layer: usize,
    pub(in crate::model) channels: usize,
    /// Neighbouring values of a channel.
    pub(in crate::model) inner: usize,
    pub(in crate::model) eps: f64,
}

/// Layers that run as one: a product, a normalisation and a ReLU, or what there is of these, in that order; or a layer by its own passes.
#[derive(Clone, Debug)]
pub(in crate::model) struct Step {
    pub(in crate::model) layers: Range<usize>,
    pub(in crate::model) product: Option<Product>,
    pub(in crate::model) norm: Option<Normalisation>,
    pub(in crate::model) relu: bool,
    /// Shapes for the largest batch.
    pub(in crate::model) input: Shape,
    pub(in crate::model) output: Shape,
    pub(super) at: Places,
}

/// Where the tensors of a step lie; empty where there are none.
#[derive(Clone, Debug, Default)]
pub(super) struct Places {
    /// In the working memory, for the largest batch: the input, unless it is the batch itself.
    pub(super) input: Option<usize>,
    /// What a normalisation in the same step reads.
    pub(super) product: usize,
    pub(super) output: usize,
    /// What a ReLU in the same step reads, kept for an observer only.
    pub(super) before_relu: usize,
    pub(super) saved: Range<usize>,
    /// Among the parameters.
    pub(super) weight: Range<usize>,
    pub(super) bias: Range<usize>,
    pub(super) gamma: Range<usize>,
    pub(super) beta: Range<usize>,
}

/// A parameter of a layer, and its place among all.
#[derive(Clone, Debug)]
pub(super) struct Slot {
    pub(super) layer: usize,
    pub(super) name: &'static str,
    pub(super) shape: Shape,
    pub(super) at: Range<usize>,
}

/// The steps of a model for batches of at most one size, and the sizes of what they need.
#[derive(Clone, Debug)]
pub(super) struct Steps {
    pub(super) steps: Vec<Step>,
    /// Of the layers that a step stands for, in the order in which a model shows its parameters.
    pub(super) slots: Vec<Slot>,
    pub(super) parameters: usize,
    /// Where matrices end among the parameters, and numbers for each output or channel begin.
    pub(super) vectors: usize,
    /// Two gradients that take turns.
    pub(super) gradients: [usize; 2],
    pub(super) scratch: Range<usize>,
    pub(super) memory: usize,
}

impl Steps {
    /// Decides what runs as one, and lays everything out.
    pub(super) fn new<T: Element>(model: &Sequential<T>, largest: Shape, fusion: Fusion) -> Result<Steps> {
        if model.is_empty() {
            return Err(Error::shape("model", "at least one layer", 0));
        }
        if largest.dims().is_empty() {
            return Err(Error::shape("model: batch", "at least one dimension", largest));
        }
        checked_len(largest)?;
        let steps = match fusion {
            Fusion::On => fused(model, largest)?,
            Fusion::Off => single(model, largest)?,
        };
        let mut laid =
            Steps { steps, slots: Vec::new(), parameters: 0, vectors: 0, gradients: [0, 0], scratch: 0..0, memory: 0 };
        laid.lay_out_parameters(model, Extent::new::<T>(largest))?;
        laid.lay_out_memory(model, Extent::new::<T>(largest))?;
        Ok(laid)
    }

    /// Matrices first, in the order of the layers, then all that is one number for each output or channel: backward passes overwrite the
    /// gradients of the former and add to those of the latter, which one sweep sets to zero.
    fn lay_out_parameters<T: Element>(&mut self, model: &Sequential<T>, mut extent: Extent) -> Result<()> {
        for step in self.steps.iter_mut() {
            if let Some(Product { inputs, outputs }) = step.product {
                step.at.weight = extent.take(inputs * outputs)?;
            }
        }
        self.vectors = extent.len();
        for step in self.steps.iter_mut().filter(|step| !step.is_single()) {
            for layer in step.layers.clone() {
                let is_product = step.product.is_some() && layer == step.layers.start;
                let mut result = Ok(());
                model.layers[layer].visit(&mut |parameter| {
                    if result.is_err() {
                        return;
                    }
                    let place = match (is_product, parameter.name) {
                        (true, "weight") => Ok(step.at.weight.clone()),
                        (_, _) => extent.take(parameter.value.len()),
                    };
                    match place {
                        Err(error) => result = Err(error),
                        Ok(at) => {
                            match (is_product, parameter.name) {
                                (true, "weight") => {}
                                (true, _) => step.at.bias = at.clone(),
                                (false, "weight") => step.at.gamma = at.clone(),
                                (false, _) => step.at.beta = at.clone(),
                            }
                            self.slots.push(Slot { layer, name: parameter.name, shape: parameter.shape, at });
                        }
                    }
                });
                result?;
            }
        }
        self.parameters = extent.len();
        Ok(())
    }

    fn lay_out_memory<T: Element>(&mut self, model: &Sequential<T>, mut extent: Extent) -> Result<()> {
        let (mut input, mut scratch, mut widest) = (None, 0, 0);
        for step in &mut self.steps {
            let len = checked_len(step.output)?;
            widest = widest.max(len);
            step.at.input = input;
            step.at.product = extent.take(if step.keeps_product() { len } else { 0 })?.start;
            step.at.output = extent.take(len)?.start;
            step.at.saved = extent.take(step.saved_len(model))?;
            scratch = scratch.max(step.scratch_len(model));
            input = Some(step.at.output);
        }
        // Far from what every step reads and writes.
        for step in &mut self.steps {
            step.at.before_relu = extent.take(if step.hides_before_relu() { step.output.len() } else { 0 })?.start;
        }
        self.gradients = [extent.take(widest)?.start, extent.take(widest)?.start];
        self.scratch = extent.take(scratch)?;
        self.memory = extent.len();
        Ok(())
    }
}

impl Step {
    /// Whether it is a layer by its own passes.
    pub(super) fn is_single(&self) -> bool {
        self.product.is_none() && self.norm.is_none() && !self.relu
    }

    /// Whether what a product gives is kept beside the output.
    pub(super) fn keeps_product(&self) -> bool {
        self.product.is_some() && self.norm.is_some()
    }

    /// Whether what its ReLU reads is not there unless it is asked for.
    pub(super) fn hides_before_relu(&self) -> bool {
        self.relu && self.layers.len() > 1
    }

    /// Whether its bias is added: a normalisation takes it away again.
    pub(super) fn adds_bias(&self) -> bool {
        self.norm.is_none() && !self.at.bias.is_empty()
    }

    fn saved_len<T: Element>(&self, model: &Sequential<T>) -> usize {
        match self.norm {
            Some(norm) => batchnorm::saved_len(norm.channels),
            None if self.is_single() => model.layers[self.layers.start].saved_len(self.input),
            None => 0,
        }
    }

    /// As much as the largest of its layers takes; only the first may change the shape.
    fn scratch_len<T: Element>(&self, model: &Sequential<T>) -> usize {
        let lens = self.layers.clone().map(|layer| {
            let input = if layer == self.layers.start { self.input } else { self.output };
            model.layers[layer].scratch_len(input)
        });
        lens.fold(0, usize::max)
    }
}

/// The layer as one of this type, if it is one.
pub(in crate::model) fn downcast<T: Element, L: Layer<T>>(layer: &dyn Layer<T>) -> Option<&L> {
    let layer: &dyn Any = layer;
    layer.downcast_ref()
}

/// Each layer by itself.
fn single<T: Element>(model: &Sequential<T>, largest: Shape) -> Result<Vec<Step>> {
    let mut input = largest;
    let step = |i: usize| {
        let output = named(i, model.layers[i].output_shape(input))?;
        // So that a smaller batch is one with fewer rows throughout.
        if output.dims().first() != input.dims().first() {
            let what = format!("layer {i}: {}: rows of the output", model.layers[i].describe());
            return Err(Error::shape(what, "as many as of the input", format!("{output} for {input}")));
        }
        let (layers, at) = (i..i + 1, Places::default());
        let step = Step { layers, product: None, norm: None, relu: false, input, output, at };
        input = output;
        Ok(step)
    };
    (0..model.len()).map(step).collect()
}

/// A product takes the normalisation behind it, and either the ReLU behind that. Other layers stay by themselves.
pub(in crate::model) fn fused<T: Element>(model: &Sequential<T>, largest: Shape) -> Result<Vec<Step>> {
    let mut steps: Vec<Step> = Vec::new();
    for mut step in single(model, largest)? {
        let layer = model.layers[step.layers.start].as_ref();
        if let Some(linear) = downcast::<T, Linear<T>>(layer) {
            step.product = Some(Product { inputs: linear.in_features(), outputs: linear.out_features() });
        } else if let Some(norm) = as_norm(layer) {
            let (channels, inner, eps) = (norm.channels(), norm.inner(step.input), norm.eps());
            step.norm = Some(Normalisation { layer: step.layers.start, channels, inner, eps });
            if let Some(last) = steps.last_mut().filter(|last| last.product.is_some() && last.layers.len() == 1) {
                last.norm = step.norm;
                last.layers.end += 1;
                continue;
            }
        } else if downcast::<T, Relu>(layer).is_some() {
            let joins = |last: &&mut Step| (last.product.is_some() || last.norm.is_some()) && !last.relu;
            if let Some(last) = steps.last_mut().filter(joins) {
                last.relu = true;
                last.layers.end += 1;
                continue;
            }
            step.relu = true;
        }
        steps.push(step);
    }
    Ok(steps)
}
