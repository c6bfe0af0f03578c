//! Training: the step, the epoch, and how well a model does.

mod metrics;

pub use metrics::{Evaluator, Metrics};

use crate::data::{Images, Loader};
use crate::error::{Error, Result};
use crate::loss::{Loss, Targets};
use crate::model::{Sequential, Workspace};
use crate::optim::Optimizer;
use crate::parallel::Threads;
use crate::simd::{Element, Isa, with_isa};
use crate::tensor::{Shape, TensorRef};
use std::time::{Duration, Instant};

/// A model on its way: its memory, its optimiser, and where it is.
pub struct Trainer<T> {
    model: Sequential<T>,
    space: Workspace<T>,
    optimizer: Box<dyn Optimizer<T>>,
    loss: Loss,
    epoch: usize,
    step: usize,
}

/// What an observer sees of a step: after the backward pass, before the update.
pub struct Step<'a, T> {
    /// The epoch, from 1.
    pub epoch: usize,
    /// The step within the epoch, from 1.
    pub step: usize,
    /// The batch's loss.
    pub loss: f64,
    /// The model, with the gradients of this batch.
    pub model: &'a Sequential<T>,
    /// Every layer's output for this batch.
    pub space: &'a Workspace<T>,
}

/// What is told of a step; see [`Step`].
pub type Observer<'o, T> = dyn FnMut(&Step<'_, T>) + 'o;

impl<T: Element> Trainer<T> {
    /// Prepares to train `model` with batches of at most the shape `input`.
    ///
    /// # Errors
    /// If the layers do not fit one another or the input, or if the memory cannot be addressed.
    pub fn new(
        model: Sequential<T>,
        input: impl Into<Shape>,
        loss: Loss,
        optimizer: impl Optimizer<T> + 'static,
    ) -> Result<Self> {
        let space = model.workspace(input.into())?;
        Ok(Trainer { model, space, optimizer: Box::new(optimizer), loss, epoch: 0, step: 0 })
    }

    /// The model as it is.
    pub fn model(&self) -> &Sequential<T> {
        &self.model
    }

    /// The loss that is trained on.
    pub fn loss(&self) -> Loss {
        self.loss
    }

    /// The model, trained.
    pub fn into_model(self) -> Sequential<T> {
        self.model
    }

    /// Counts a new epoch; steps count from 1 again.
    pub fn start_epoch(&mut self) {
        self.epoch += 1;
        self.step = 0;
    }

    /// One step on one batch: forward, loss, backward, update. Returns the batch's loss.
    ///
    /// Kernels use the threads of the enclosing [`Threads::run`]. `observer` is called between backward pass and update.
    ///
    /// # Errors
    /// If the batch does not fit; [`Error::NotFinite`] if the loss is NaN or infinite, and then the parameters are those of
    /// before the step (running statistics have seen the batch).
    pub fn step(
        &mut self,
        x: TensorRef<'_, T>,
        targets: Targets<'_, T>,
        observer: Option<&mut Observer<'_, T>>,
    ) -> Result<f64> {
        self.step += 1;
        self.model.forward(x, &mut self.space)?;
        let (y, dy) = self.space.output_and_gradient()?;
        let loss = self.loss.forward_backward(y, targets, dy)?;
        if !loss.is_finite() {
            return Err(self.not_finite());
        }
        self.model.zero_grad();
        self.model.backward(x, &mut self.space, None)?;
        if let Some(observer) = observer {
            observer(&Step { epoch: self.epoch, step: self.step, loss, model: &self.model, space: &self.space });
        }
        self.model.step(self.optimizer.as_mut())?;
        Ok(loss)
    }

    fn not_finite(&self) -> Error {
        let culprit = (0..self.model.len())
            .find(|&layer| self.space.output_of(layer).data().iter().any(|y| !y.is_finite()))
            .map_or("the loss".to_string(), |layer| format!("the output of layer {}", self.model.name_of(layer)));
        Error::NotFinite { epoch: self.epoch, step: self.step, first: culprit }
    }

    /// Loss and accuracy of the model as it is, on all batches of a loader of [`Evaluator::loader`].
    ///
    /// # Errors
    /// As [`Evaluator::evaluate`]; [`Error::NotFinite`] if the loss is NaN or infinite: the latest update broke the model.
    pub fn evaluate(&self, evaluator: &mut Evaluator<T>, loader: &mut Loader<'_, T>) -> Result<Metrics> {
        let metrics = evaluator.evaluate(&self.model, loader)?;
        if metrics.loss.is_finite() {
            return Ok(metrics);
        }
        let first = "the loss in evaluation after that step".to_string();
        Err(Error::NotFinite { epoch: self.epoch, step: self.step, first })
    }

    /// One epoch over all batches of a loader. Returns the mean of the batches' losses.
    ///
    /// # Errors
    /// As [`Trainer::step`].
    pub fn epoch(&mut self, loader: &mut Loader<'_, T>) -> Result<f64> {
        self.start_epoch();
        loader.start_epoch(self.epoch);
        let mut total = 0.0;
        while let Some(batch) = loader.next_batch() {
            total += self.step(batch.x, Targets::Classes(batch.labels), None)?;
        }
        Ok(total / loader.batches() as f64)
    }
}

/// How a model stands after an epoch.
#[derive(Clone, Copy, Debug)]
pub struct Epoch {
    /// Its number, from 1.
    pub number: usize,
    /// Mean of the batches' losses during the epoch, in training mode.
    pub step_loss: f64,
    /// On the validation set after the epoch, in evaluation mode.
    pub validation: Metrics,
    /// Time spent training, without the evaluation.
    pub duration: Duration,
}

/// Trains for a number of epochs, evaluating after each; `on_epoch` is told of each as it ends.
///
/// The threads are entered once for the whole of it.
///
/// # Errors
/// If `epochs` is 0; as [`Trainer::step`] and [`Evaluator::evaluate`]. What was trained until then stays in `trainer`.
///
/// # Examples
/// ```
/// # fn main() -> evenkeel::Result<()> {
/// use evenkeel::data::{Images, LastBatch, Loader, Order, Scale};
/// use evenkeel::layers::Linear;
/// use evenkeel::{Loss, Rng, Sequential, Threads, optim::Sgd, train::{Trainer, fit}};
/// // Two images, black and white, told apart by a line.
/// let images = Images::new(vec![0, 255], vec![0, 1], 1, 1, 2)?;
/// let model = Sequential::new().push(Linear::new(1, 2, &mut Rng::new(1, "init"))?);
/// let mut trainer = Trainer::<f32>::new(model, [2, 1], Loss::CrossEntropy, Sgd::new(1.0)?)?;
/// let mut batches = Loader::new(&images, 2, Order::Shuffled(1), LastBatch::Drop, Scale::default())?;
/// let epochs = fit(&mut trainer, &mut batches, &images, 50, &Threads::one(), &mut |_| {})?;
/// assert_eq!(epochs[49].validation.accuracy, 1.0);
/// # Ok(())
/// # }
/// ```
pub fn fit<T: Element>(
    trainer: &mut Trainer<T>,
    loader: &mut Loader<'_, T>,
    validation: &Images,
    epochs: usize,
    threads: &Threads,
    on_epoch: &mut (dyn FnMut(&Epoch) + Send),
) -> Result<Vec<Epoch>> {
    if epochs == 0 {
        return Err(Error::invalid("epochs", epochs, "at least 1"));
    }
    let mut evaluator = Evaluator::new(trainer.model(), trainer.loss(), validation)?;
    let mut validation = evaluator.loader(validation, loader.scale())?;
    enter(threads, || {
        let mut history = Vec::with_capacity(epochs);
        for _ in 0..epochs {
            let start = Instant::now();
            let step_loss = trainer.epoch(loader)?;
            let duration = start.elapsed();
            let metrics = trainer.evaluate(&mut evaluator, &mut validation)?;
            let epoch = Epoch { number: trainer.epoch, step_loss, validation: metrics, duration };
            on_epoch(&epoch);
            history.push(epoch);
        }
        Ok(history)
    })
}

/// [`Threads::run`] with this thread's instruction set carried along.
pub fn enter<R: Send>(threads: &Threads, f: impl FnOnce() -> R + Send) -> R {
    let isa = Isa::current();
    threads.run(|| with_isa(isa, f))
}
