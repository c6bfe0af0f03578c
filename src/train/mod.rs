//! Training: the step, the epoch, and how well a model does.

mod metrics;

pub use metrics::{Evaluator, Metrics};

use crate::data::{Images, Loader};
use crate::error::{Error, Result};
use crate::loss::{Loss, Targets};
use crate::model::Sequential;
use crate::model::plan::{Fusion, Plan};
use crate::optim::Optimizer;
use crate::parallel::{self, Threads};
use crate::simd::{Element, Isa, with_isa};
use crate::tensor::{Shape, TensorRef};
use std::time::{Duration, Instant};

/// A model on its way: its plan, its optimiser, and where it is.
pub struct Trainer<T: Element> {
    plan: Plan<T>,
    optimizer: Box<dyn Optimizer<T>>,
    epoch: usize,
    step: usize,
}

/// What an observer sees of a step: after the backward pass, before the update.
pub struct Step<'a, T: Element> {
    /// The epoch, from 1.
    pub epoch: usize,
    /// The step within the epoch, from 1.
    pub step: usize,
    /// The batch's loss.
    pub loss: f64,
    /// The plan, with the parameters that made this loss, their gradients, and every layer's output ([`Plan::visit`],
    /// [`Plan::output_of`]).
    pub plan: &'a Plan<T>,
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
        Ok(Trainer::of_plan(Plan::new(model, input.into(), loss, Fusion::On)?, optimizer))
    }

    /// Trains by a plan that is there, as one without fusion.
    pub fn of_plan(plan: Plan<T>, optimizer: impl Optimizer<T> + 'static) -> Self {
        Trainer { plan, optimizer: Box::new(optimizer), epoch: 0, step: 0 }
    }

    /// The plan of its steps.
    pub fn plan(&self) -> &Plan<T> {
        &self.plan
    }

    /// The plan of its steps, to be [measured](Plan::measure).
    pub fn plan_mut(&mut self) -> &mut Plan<T> {
        &mut self.plan
    }

    /// The model as it is.
    pub fn model(&mut self) -> &Sequential<T> {
        self.plan.model()
    }

    /// The loss that is trained on.
    pub fn loss(&self) -> Loss {
        self.plan.loss()
    }

    /// The model, trained.
    pub fn into_model(self) -> Sequential<T> {
        self.plan.into_model()
    }

    /// Counts a new epoch; steps count from 1 again.
    pub fn start_epoch(&mut self) {
        self.epoch += 1;
        self.step = 0;
    }

    /// One step on one batch: forward, loss, backward, update. Returns the batch's loss.
    ///
    /// Kernels use the threads of the enclosing [`Threads::run`]. `observer` is called between backward pass and update; a step without
    /// one need not keep what only it would look at, so give it to the steps that are looked at only.
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
        match observer {
            None => self.plan.forward(x)?,
            Some(_) => self.plan.forward_watched(x)?,
        }
        let loss = self.plan.loss_of(targets)?;
        if !loss.is_finite() {
            return Err(self.not_finite(x));
        }
        self.plan.backward(x)?;
        if let Some(observer) = observer {
            observer(&Step { epoch: self.epoch, step: self.step, loss, plan: &self.plan });
        }
        self.plan.update(self.optimizer.as_mut())?;
        Ok(loss)
    }

    fn not_finite(&mut self, x: TensorRef<'_, T>) -> Error {
        let first = self
            .plan
            .first_not_finite(x)
            .map_or("the loss".to_string(), |layer| format!("the output of layer {}", self.plan.name_of(layer)));
        Error::NotFinite { epoch: self.epoch, step: self.step, first }
    }

    /// Loss and accuracy of the model as it is, on all batches of a loader of [`Evaluator::loader`].
    ///
    /// # Errors
    /// As [`Evaluator::evaluate`]; [`Error::NotFinite`] if the loss is NaN or infinite: the latest update broke the model.
    pub fn evaluate(&mut self, evaluator: &mut Evaluator<T>, loader: &mut Loader<'_, T>) -> Result<Metrics> {
        let metrics = evaluator.evaluate(self.plan.model(), loader)?;
        self.finite(metrics)
    }

    /// Metrics of the model as it is, unless they show that it is broken.
    ///
    /// # Errors
    /// [`Error::NotFinite`] if the loss is NaN or infinite: the latest update broke the model.
    pub fn finite(&self, metrics: Metrics) -> Result<Metrics> {
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
        loader.for_each(|batches| {
            for batch in batches {
                total += self.step(batch.x, Targets::Classes(batch.labels), None)?;
            }
            Ok(())
        })?;
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
    let loss = trainer.loss();
    let mut evaluator = Evaluator::new(trainer.model(), loss, validation)?;
    let mut validation = evaluator.loader(validation, loader.scale())?;
    enter(threads, || {
        let mut history = Vec::new();
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

/// Runs both, at once if the enclosing [`Threads::run`] has threads for it, half of them for each; this thread's instruction set is
/// carried along.
///
/// # Examples
/// ```
/// use evenkeel::{Threads, train::{both, enter}};
/// let threads = Threads::new(2)?;
/// assert_eq!(enter(&threads, || both(|| 1, || 2)), (1, 2));
/// # Ok::<(), evenkeel::Error>(())
/// ```
pub fn both<A: Send, B: Send>(a: impl FnOnce() -> A + Send, b: impl FnOnce() -> B + Send) -> (A, B) {
    let isa = Isa::current();
    parallel::join_halves(|| with_isa(isa, a), || with_isa(isa, b))
}

/// [`Threads::run`] with this thread's instruction set carried along.
pub fn enter<R: Send>(threads: &Threads, f: impl FnOnce() -> R + Send) -> R {
    let isa = Isa::current();
    threads.run(|| with_isa(isa, f))
}
