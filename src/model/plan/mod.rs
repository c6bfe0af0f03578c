//! What runs when a model trains: decided once, when the model is built for a batch size.
//!
//! A [`Sequential`] is the description, layer by layer. A [`Plan`] is made of it: which layers run as one, where parameters and working
//! memory lie, which gradients nobody needs. With [`Fusion::Off`] every layer runs by its own passes and holds its own parameters, as in
//! [`Sequential::forward`]: the check of all that follows.
//!
//! # What is fused
//!
//! | layers | forward | backward |
//! |---|---|---|
//! | Linear | product with the bias in its epilogue | dW with the sums of dy's columns for the bias, then dX |
//! | Linear, ReLU | bias and ReLU in the epilogue | dy masked where it lies, by the output; then as above |
//! | BatchNorm, ReLU | one pass | one pass, the mask recomputed |
//! | Linear, BatchNorm and perhaps ReLU | product without the bias, which the normalisation cancels; then as above | dy becomes the gradient of the product where it lies; no gradient for the bias |
//! | the loss | with its gradient | |
//! | any other layer | by its own passes | by its own passes |
//!
//! The input of the first layer needs no gradient, so none is computed.
//!
//! **A bias in front of a normalisation** changes no output: `(x + b) - mean(x + b) = x - mean(x)`. It is not added, its gradient is
//! exactly zero, and it is counted in the running mean, as evaluation adds it. With u the unit roundoff, an output differs from that of a
//! run that adds it by what roundings of `x + b`, of its mean and through them of the variance make of it: at most
//! `4 u (X + |b|) (1 + |x_hat|) |gamma| rstd` with X the largest |x| of the channel, on top of the bound of
//! [`kernels::batchnorm`](crate::kernels::batchnorm) for either run. All else is the same operations in the same order, hence the same bits.
//!
//! # Two arenas
//!
//! The parameters of all fused layers lie in one, and their gradients in another of the same shape: matrices first, then what is one
//! number for each output or channel. An optimiser sweeps over all of it at once, however many tensors that are; what is between two of
//! them, to begin the next on a cache line, is zero and stays so. Matrices' gradients are overwritten and need not be cleared.
//!
//! The working memory is the other: for each step its output, what its backward pass needs and what a normalisation reads, in order;
//! then what is kept for observers only, two gradients that take turns, and scratch. Nothing is allocated after that, also not for a
//! smaller batch.
//!
//! # Observers
//!
//! What a ReLU reads is not there where it is fused with the layer before it. A step that is watched ([`Plan::forward_watched`]) writes it
//! beside, in a pass more and with the same bits.

mod explain;
pub(super) mod steps;

pub use explain::{Explanation, Row};

use super::{Sequential, check_batch, disjoint, named};
use crate::error::{Error, Result};
use crate::kernels::batchnorm::{self, BatchNorm, Gradients, Statistics};
use crate::kernels::gemm::{Epilogue, gemm};
use crate::kernels::{Activation, relu};
use crate::layers::{Parameter, as_norm_mut};
use crate::loss::{Loss, Targets};
use crate::matrix::{MatMut, MatRef};
use crate::optim::Optimizer;
use crate::simd::Element;
use crate::tensor::{Shape, Tensor, TensorMut, TensorRef};
use explain::{Clock, Part};
use std::ops::Range;
use steps::{Normalisation, Product, Slot, Step, Steps};

/// Whether neighbouring layers run as one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fusion {
    /// Where the [module](self) says so.
    #[default]
    On,
    /// Not at all.
    Off,
}

impl<T: Element> Sequential<T> {
    /// Kernel by kernel what will run when this model trains with batches of at most the shape `input`: print it.
    ///
    /// # Errors
    /// As [`Plan::new`].
    ///
    /// # Examples
    /// ```
    /// use evenkeel::layers::{BatchNorm1d, Linear, Relu};
    /// use evenkeel::{Loss, Rng, Sequential};
    /// let rng = &mut Rng::new(1, "init");
    /// let model = Sequential::<f32>::new()
    ///     .push(Linear::new(784, 32, rng)?).push(BatchNorm1d::new(32)?).push(Relu::new())
    ///     .push(Linear::new(32, 10, rng)?);
    /// let explanation = model.explain([64, 784].into(), Loss::CrossEntropy)?;
    /// println!("{explanation}");
    /// assert_eq!(explanation.rows()[0].fused_with, "BatchNorm1d(32), ReLU; the bias cancels");
    /// # Ok::<(), evenkeel::Error>(())
    /// ```
    pub fn explain(&self, input: Shape, loss: Loss) -> Result<Explanation> {
        Ok(explain::explain::<T>(self, &Steps::new(self, input, Fusion::On)?, loss, &Clock::default()))
    }
}

/// A model, ready to be trained with batches of at most one size.
pub struct Plan<T: Element> {
    /// Of the layers that a step stands for, it holds the running statistics, and parameters that may be out of date.
    model: Sequential<T>,
    loss: Loss,
    largest: Shape,
    laid: Steps,
    values: Tensor<T>,
    grads: Tensor<T>,
    memory: Tensor<T>,
    held: Option<Held>,
    /// Whether parameters have changed since the model's layers had them.
    is_ahead: bool,
    clock: Clock,
}

/// What the working memory holds of a forward pass.
#[derive(Clone, Copy, Debug)]
struct Held {
    rows: usize,
    /// Also what observers see of it.
    is_watched: bool,
    stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// The outputs.
    Forward,
    /// The gradient of the loss as well.
    Loss,
    /// Outputs to be looked at only: the gradient is used up, or parameters have moved.
    Past,
}

/// How a forward pass is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pass {
    Plain,
    /// With all that an observer may want to see.
    Watched,
    /// So again, over a batch that has been passed through: running statistics stay.
    Again,
}

impl<T: Element> Plan<T> {
    /// Decides how `model` runs with batches of at most the shape `input`, and makes all that this needs.
    ///
    /// # Errors
    /// If there are no layers, if they do not fit one another or the input, or if the memory cannot be addressed.
    pub fn new(model: Sequential<T>, input: Shape, loss: Loss, fusion: Fusion) -> Result<Self> {
        let laid = Steps::new(&model, input, fusion)?;
        let (values, grads) = (Tensor::zeros([laid.parameters])?, Tensor::zeros([laid.parameters])?);
        let memory = Tensor::zeros([laid.memory])?;
        let mut plan = Plan {
            model,
            loss,
            largest: input,
            laid,
            values,
            grads,
            memory,
            held: None,
            is_ahead: false,
            clock: Clock::default(),
        };
        plan.read_parameters();
        Ok(plan)
    }

    /// Takes the parameters of the layers that steps stand for.
    fn read_parameters(&mut self) {
        let mut slots = self.laid.slots.iter();
        for step in self.laid.steps.iter().filter(|step| !step.is_single()) {
            for layer in step.layers.clone() {
                self.model.layers[layer].visit(&mut |parameter| {
                    let slot = next_of(&mut slots);
                    self.values.data_mut()[slot.at.clone()].copy_from_slice(parameter.value);
                });
            }
        }
    }

    /// The model, its parameters and gradients those of now.
    pub fn model(&mut self) -> &Sequential<T> {
        if std::mem::take(&mut self.is_ahead) {
            let mut slots = self.laid.slots.iter();
            for step in self.laid.steps.iter().filter(|step| !step.is_single()) {
                for layer in step.layers.clone() {
                    self.model.layers[layer].visit_mut(&mut |parameter| {
                        let slot = next_of(&mut slots);
                        parameter.value.copy_from_slice(&self.values.data()[slot.at.clone()]);
                        parameter.grad.copy_from_slice(&self.grads.data()[slot.at.clone()]);
                    });
                }
            }
        }
        &self.model
    }

    /// The model, its parameters those of now.
    pub fn into_model(mut self) -> Sequential<T> {
        self.model();
        self.model
    }

    /// The loss that is trained on.
    pub fn loss(&self) -> Loss {
        self.loss
    }

    /// Number of layers of the model.
    pub fn layers(&self) -> usize {
        self.model.len()
    }

    /// The layer at `index` as `1: BatchNorm1d(32)`.
    ///
    /// # Panics
    /// If there is no such layer.
    pub fn name_of(&self, index: usize) -> String {
        self.model.name_of(index)
    }

    /// Calls `f` with the index of the layer and each of its parameters, as they are now, in the model's order.
    pub fn visit(&self, f: &mut dyn FnMut(usize, Parameter<'_, T>)) {
        let mut slots = self.laid.slots.iter();
        for step in &self.laid.steps {
            for layer in step.layers.clone() {
                if step.is_single() {
                    self.model.layers[layer].visit(&mut |parameter| f(layer, parameter));
                    continue;
                }
                while let Some(slot) = slots.as_slice().first().filter(|slot| slot.layer == layer) {
                    let (value, grad) = (&self.values.data()[slot.at.clone()], &self.grads.data()[slot.at.clone()]);
                    f(layer, Parameter { name: slot.name, shape: slot.shape, value, grad });
                    slots.next();
                }
            }
        }
    }

    /// Measures from now on how long each kernel takes: [`Plan::explain`] tells. What was measured before is forgotten.
    pub fn measure(&mut self) {
        self.clock = Clock::running(self.explain().rows());
    }

    /// Measures no longer, and forgets what was measured.
    pub fn stop_measuring(&mut self) {
        self.clock = Clock::default();
    }

    /// Kernel by kernel what runs in a training step with the largest batch.
    pub fn explain(&self) -> Explanation {
        explain::explain::<T>(&self.model, &self.laid, self.loss, &self.clock)
    }

    /// Runs a training batch forward: running statistics move.
    ///
    /// # Errors
    /// If the batch is larger than the largest, or if a layer refuses it (a batch of one before BatchNorm); the layers before that one have
    /// seen the batch then.
    pub fn forward(&mut self, x: TensorRef<'_, T>) -> Result<()> {
        self.run_forward(x, Pass::Plain)
    }

    /// [`Plan::forward`] with every layer's output kept for [`Plan::output_of`]: the same bits.
    ///
    /// # Errors
    /// As there.
    pub fn forward_watched(&mut self, x: TensorRef<'_, T>) -> Result<()> {
        self.run_forward(x, Pass::Watched)
    }

    fn run_forward(&mut self, x: TensorRef<'_, T>, pass: Pass) -> Result<()> {
        self.held = None;
        check_batch(x.shape(), self.largest)?;
        let rows = x.shape().dims()[0];
        self.clock.start(Part::Forward);
        for index in 0..self.laid.steps.len() {
            if self.laid.steps[index].is_single() {
                self.forward_single(index, x, rows, pass)?;
            } else {
                self.forward_fused(index, x, rows, pass)?;
            }
        }
        self.held = Some(Held { rows, is_watched: pass != Pass::Plain, stage: Stage::Forward });
        Ok(())
    }

    fn forward_single(&mut self, index: usize, x: TensorRef<'_, T>, rows: usize, pass: Pass) -> Result<()> {
        // Its output is there, and a layer moves its statistics by itself.
        if pass == Pass::Again {
            return Ok(());
        }
        let step = &self.laid.steps[index];
        let (input, output) = (step.input.with_rows(rows), step.output.with_rows(rows));
        let layer = self.model.layers[step.layers.start].as_mut();
        let found = named(step.layers.start, layer.output_shape(input))?;
        if found != output {
            return Err(Error::shape(format!("layer {}: output", step.layers.start), output, found));
        }
        let [x_part, y, saved, scratch] = parts(
            &mut self.memory,
            [
                step.input_range(input.len()),
                from(step.at.output, output.len()),
                step.at.saved.clone(),
                self.laid.scratch.clone(),
            ],
        );
        let x = if step.at.input.is_some() { TensorRef::first_of(input, x_part) } else { x };
        named(step.layers.start, layer.forward(x, TensorMut::first_of(output, y), saved, scratch))?;
        self.clock.lap();
        Ok(())
    }

    fn forward_fused(&mut self, index: usize, x: TensorRef<'_, T>, rows: usize, pass: Pass) -> Result<()> {
        let step = &self.laid.steps[index];
        let (input_len, len) = (step.input.with_rows(rows).len(), step.output.with_rows(rows).len());
        let kept = |keep: bool| if keep { len } else { 0 };
        let [x_part, product, before_relu, y, saved, scratch] = parts(
            &mut self.memory,
            [
                step.input_range(input_len),
                from(step.at.product, kept(step.keeps_product())),
                from(step.at.before_relu, kept(step.hides_before_relu())),
                from(step.at.output, len),
                step.at.saved.clone(),
                self.laid.scratch.clone(),
            ],
        );
        let values = self.values.data();
        let part = |range: &Range<usize>| (!range.is_empty()).then(|| &values[range.clone()]);
        let mut x = if step.at.input.is_some() { &*x_part } else { x.data() };
        // What is fused, and whether the ReLU is.
        let is_apart = step.relu && (pass != Pass::Plain || step.layers.len() == 1);
        let activation = if step.relu && !is_apart { Activation::Relu } else { Activation::Identity };
        if let Some(Product { inputs, outputs }) = step.product {
            let bias = part(&step.at.bias).filter(|_| step.adds_bias());
            let epilogue = match (bias, step.norm.is_none() && activation == Activation::Relu) {
                (Some(bias), true) => Epilogue::BiasRelu(bias),
                (Some(bias), false) => Epilogue::Bias(bias),
                (None, true) => Epilogue::Relu,
                (None, false) => Epilogue::None,
            };
            let z = match step.norm {
                Some(_) => &mut *product,
                None if is_apart => &mut *before_relu,
                None => &mut *y,
            };
            let weight = MatRef::new(&values[step.at.weight.clone()], inputs, outputs);
            let (a, c) = (MatRef::new(x, rows, inputs), MatMut::new(z, rows, outputs));
            gemm(T::ONE, a, weight, T::ZERO, c, epilogue, scratch);
            self.clock.lap();
        }
        if let Some(Normalisation { layer, channels, inner, eps }) = step.norm {
            let (gamma, beta) = (part(&step.at.gamma), part(&step.at.beta));
            let norm = BatchNorm { channels, inner, gamma, beta, eps, activation };
            let x = if step.product.is_some() { &*product } else { x };
            let z = if is_apart { &mut *before_relu } else { &mut *y };
            named(layer, batchnorm::forward(&norm, x, z, saved, scratch))?;
            let running = as_norm_mut(self.model.layers[layer].as_mut()).filter(|_| pass != Pass::Again);
            if let Some(running) = running {
                running.track(saved, part(&step.at.bias).filter(|_| step.product.is_some()), len / channels);
            }
            self.clock.lap();
        }
        if is_apart {
            if step.layers.len() > 1 {
                x = before_relu;
            }
            relu::forward(x, y);
            if step.layers.len() == 1 {
                self.clock.lap();
            }
        }
        Ok(())
    }

    /// What is held can be looked at only from here on.
    fn pass_by(&mut self) {
        self.held = self.held.map(|held| Held { stage: Stage::Past, ..held });
    }

    /// The loss of the latest forward pass; its gradient is where [`Plan::backward`] begins.
    ///
    /// # Errors
    /// If there was no forward pass, or if the targets do not fit the outputs.
    pub fn loss_of(&mut self, targets: Targets<'_, T>) -> Result<f64> {
        let Some(held) = self.held.filter(|held| held.stage != Stage::Past) else {
            return Err(Error::shape("plan: loss", "a forward pass first", "none with these parameters"));
        };
        let rows = held.rows;
        let last = self.laid.steps.len() - 1;
        let step = &self.laid.steps[last];
        let output = step.output.with_rows(rows);
        let ranges = [from(step.at.output, output.len()), from(self.laid.gradients[last % 2], output.len())];
        let [y, dy] = parts(&mut self.memory, ranges);
        self.clock.start(Part::Loss);
        let loss =
            self.loss.forward_backward(TensorRef::first_of(output, y), targets, TensorMut::first_of(output, dy))?;
        self.clock.lap();
        self.held = Some(Held { stage: Stage::Loss, ..held });
        Ok(loss)
    }

    /// The gradients of all parameters, from that of the loss. `x` is the batch of the forward pass.
    ///
    /// They take the place of those from before: where layers by themselves add, a plan begins anew with each batch.
    ///
    /// # Errors
    /// If there was no loss of a forward pass over a batch of this shape, or if parameters have moved since; nothing is changed then. If a
    /// layer refuses, the gradients of the layers behind it are there and those before it are not.
    pub fn backward(&mut self, x: TensorRef<'_, T>) -> Result<()> {
        let held = self.held.filter(|held| held.stage == Stage::Loss && x.shape() == self.largest.with_rows(held.rows));
        let Some(Held { rows, .. }) = held else {
            let found = format!("a backward pass over {}", x.shape());
            return Err(Error::shape("plan", "the loss of a forward pass over the same batch first", found));
        };
        // From here on the gradient of the output is overwritten.
        self.pass_by();
        self.is_ahead = true;
        self.clock.start(Part::Backward);
        self.grads.data_mut()[self.laid.vectors..].fill(T::ZERO);
        for index in (0..self.laid.steps.len()).rev() {
            if self.laid.steps[index].is_single() {
                self.backward_single(index, x, rows)?;
            } else {
                self.backward_fused(index, x, rows);
            }
        }
        Ok(())
    }

    /// Where the gradient of a step's output lies, and that of its input, which the first step does not need.
    fn gradient_ranges(&self, index: usize, input_len: usize, len: usize) -> [Range<usize>; 2] {
        let [dy, dx] = [index % 2, (index + 1) % 2].map(|turn| self.laid.gradients[turn]);
        [from(dy, len), from(dx, if index == 0 { 0 } else { input_len })]
    }

    fn backward_single(&mut self, index: usize, x: TensorRef<'_, T>, rows: usize) -> Result<()> {
        let step = &self.laid.steps[index];
        let (input, output) = (step.input.with_rows(rows), step.output.with_rows(rows));
        let [dy_range, dx_range] = self.gradient_ranges(index, input.len(), output.len());
        let ranges =
            [step.input_range(input.len()), dy_range, dx_range, step.at.saved.clone(), self.laid.scratch.clone()];
        let [x_part, dy, dx, saved, scratch] = parts(&mut self.memory, ranges);
        let x = if step.at.input.is_some() { TensorRef::first_of(input, x_part) } else { x };
        let dx = (index > 0).then(|| TensorMut::first_of(input, dx));
        let layer = self.model.layers[step.layers.start].as_mut();
        layer.visit_mut(&mut |parameter| parameter.grad.fill(T::ZERO));
        let dy = TensorRef::first_of(output, dy);
        named(step.layers.start, layer.backward(x, dy, dx, saved, scratch))?;
        self.clock.lap();
        Ok(())
    }

    fn backward_fused(&mut self, index: usize, x: TensorRef<'_, T>, rows: usize) {
        let step = &self.laid.steps[index];
        let (input_len, len) = (step.input.with_rows(rows).len(), step.output.with_rows(rows).len());
        let [dy_range, dx_range] = self.gradient_ranges(index, input_len, len);
        let ranges = [
            step.input_range(input_len),
            from(step.at.product, if step.keeps_product() { len } else { 0 }),
            from(step.at.output, len),
            step.at.saved.clone(),
            dy_range,
            dx_range,
            self.laid.scratch.clone(),
        ];
        let [x_part, product, y, saved, dy, dx, scratch] = parts(&mut self.memory, ranges);
        let x = if step.at.input.is_some() { &*x_part } else { x.data() };
        let values = self.values.data();
        let part = |range: &Range<usize>| (!range.is_empty()).then(|| &values[range.clone()]);
        let at = &step.at;
        let [dweight, dbias, dgamma, dbeta] =
            disjoint(self.grads.data_mut(), [at.weight.clone(), at.bias.clone(), at.gamma.clone(), at.beta.clone()]);
        if let Some(Normalisation { channels, inner, eps, .. }) = step.norm {
            let activation = if step.relu { Activation::Relu } else { Activation::Identity };
            let norm = BatchNorm { channels, inner, gamma: part(&at.gamma), beta: part(&at.beta), eps, activation };
            let [dgamma, dbeta] = [dgamma, dbeta].map(|grad| (!grad.is_empty()).then_some(grad));
            if step.product.is_some() {
                let parameters = (dgamma, dbeta);
                batchnorm::backward_in_place(&norm, Statistics::Batch, product, dy, saved, parameters, scratch);
            } else {
                let dx = (index > 0).then_some(&mut *dx);
                let gradients = Gradients { dx, dgamma, dbeta };
                batchnorm::backward(&norm, Statistics::Batch, x, dy, saved, gradients, scratch);
            }
            self.clock.lap();
        } else if step.relu && step.product.is_some() {
            // The output is above zero where the input of the ReLU is.
            relu::backward_in_place(y, dy);
        } else if step.relu {
            if index > 0 {
                relu::backward(x, dy, dx);
            }
            self.clock.lap();
        }
        if let Some(Product { inputs, outputs }) = step.product {
            let (a, b) = (MatRef::new(x, rows, inputs), MatRef::new(dy, rows, outputs));
            let epilogue = if step.adds_bias() { Epilogue::ColumnSums(dbias) } else { Epilogue::None };
            gemm(T::ONE, a.transpose(), b, T::ZERO, MatMut::new(dweight, inputs, outputs), epilogue, scratch);
            self.clock.lap();
            if index > 0 {
                let weight = MatRef::new(&values[at.weight.clone()], inputs, outputs);
                let c = MatMut::new(dx, rows, inputs);
                gemm(T::ONE, b, weight.transpose(), T::ZERO, c, Epilogue::None, scratch);
                self.clock.lap();
            }
        }
    }

    /// Moves the parameters along their gradients: all that lie together in one sweep, as tensor 0 of the optimiser's, then those that
    /// layers hold themselves.
    ///
    /// # Errors
    /// If the optimiser was used with another model before; parameters in front of the first that differs have moved then.
    pub fn update(&mut self, optimizer: &mut dyn Optimizer<T>) -> Result<()> {
        self.is_ahead = true;
        // A loss or a gradient would be that of other parameters than the outputs.
        self.pass_by();
        self.clock.start(Part::Update);
        optimizer.begin_step();
        let mut index = 0;
        if self.laid.parameters > 0 {
            optimizer.update(index, self.values.data_mut(), self.grads.data())?;
            index += 1;
        }
        let mut result = Ok(());
        for step in self.laid.steps.iter().filter(|step| step.is_single()) {
            self.model.layers[step.layers.start].visit_mut(&mut |parameter| {
                if result.is_ok() {
                    result = optimizer.update(index, parameter.value, parameter.grad);
                }
                index += 1;
            });
        }
        self.clock.lap();
        result
    }

    /// Output of a layer in the latest forward pass; of a Linear in front of a BatchNorm, without the bias that this cancels.
    ///
    /// Nothing where it was not kept: before the first pass, and of a layer whose ReLU runs with it unless the pass was
    /// [watched](Plan::forward_watched).
    ///
    /// # Panics
    /// If there is no such layer.
    pub fn output_of(&self, layer: usize) -> Option<TensorRef<'_, T>> {
        let Held { rows, is_watched, .. } = self.held?;
        let step = self.laid.steps.iter().find(|step| step.layers.contains(&layer)).expect("a layer of the model");
        let is_head = layer == step.layers.start;
        let start = match () {
            () if layer + 1 == step.layers.end => step.at.output,
            () if is_head && step.keeps_product() => step.at.product,
            () if is_watched => step.at.before_relu,
            () => return None,
        };
        Some(TensorRef::first_of(step.output.with_rows(rows), &self.memory.data()[start..]))
    }

    /// The first layer whose output for the batch of the latest forward pass is not finite, if there is one.
    pub(crate) fn first_not_finite(&mut self, x: TensorRef<'_, T>) -> Option<usize> {
        // What was not kept is computed again; nobody asks for the outputs of a run that has failed.
        self.run_forward(x, Pass::Again).ok()?;
        let is_finite = |layer: &usize| self.output_of(*layer).is_none_or(|y| y.data().iter().all(|y| y.is_finite()));
        (0..self.model.len()).find(|layer| !is_finite(layer))
    }
}

impl Step {
    /// Where the input lies, if it is not the batch itself.
    fn input_range(&self, len: usize) -> Range<usize> {
        self.at.input.map_or(0..0, |start| from(start, len))
    }
}

fn from(start: usize, len: usize) -> Range<usize> {
    start..start + len
}

/// Parts of the working memory.
fn parts<T: Element, const N: usize>(memory: &mut Tensor<T>, ranges: [Range<usize>; N]) -> [&mut [T]; N] {
    disjoint(memory.data_mut(), ranges)
}

fn next_of<'s>(slots: &mut std::slice::Iter<'s, Slot>) -> &'s Slot {
    slots.next().expect("a slot was laid out for every parameter that a layer shows")
}
