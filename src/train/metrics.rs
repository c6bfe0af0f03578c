//! How well a model does on a set: loss and accuracy in evaluation mode.

use crate::data::{Batches, Images, LastBatch, Loader, Order, Scale};
use crate::error::{Error, Result};
use crate::loss::{Loss, Targets};
use crate::model::{Evaluation, Sequential};
use crate::simd::Element;
use crate::tensor::Shape;

/// Rows of a batch in evaluation: enough to run at the speed of the product, few enough to stay in the cache.
const EVALUATION_ROWS: usize = 256;

/// Loss and accuracy over a set.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Metrics {
    /// Mean loss of an example.
    pub loss: f64,
    /// Share of the examples whose largest output is that of their class (the first, of equals); NaN is never right.
    pub accuracy: f64,
}

/// What evaluating a model on sets of images takes, and what was seen of a set.
#[derive(Debug)]
pub struct Evaluator<T: Element> {
    evaluation: Evaluation<T>,
    loss: Loss,
    /// The sum of the losses of the examples seen.
    total: f64,
    right: usize,
    count: usize,
}

impl<T: Element> Evaluator<T> {
    /// For `model` on sets whose images have the size of those of `images`.
    ///
    /// # Errors
    /// If the model does not take such images.
    pub fn new(model: &Sequential<T>, loss: Loss, images: &Images) -> Result<Self> {
        let input = Shape::new(&[EVALUATION_ROWS, images.height() * images.width()]);
        Ok(Evaluator { evaluation: model.evaluation(input)?, loss, total: 0.0, right: 0, count: 0 })
    }

    /// A loader for [`Evaluator::evaluate`]: all images, as they lie.
    ///
    /// # Errors
    /// If there are no images.
    pub fn loader<'a>(&self, images: &'a Images, scale: Scale) -> Result<Loader<'a, T>> {
        Loader::new(images, images.len().clamp(1, EVALUATION_ROWS), Order::AsStored, LastBatch::Keep, scale)
    }

    /// Evaluates `model` on all batches of a loader.
    ///
    /// # Errors
    /// If the loader's batches are larger than those of [`Evaluator::loader`], or do not fit the model.
    pub fn evaluate(&mut self, model: &Sequential<T>, loader: &mut Loader<'_, T>) -> Result<Metrics> {
        self.begin(model)?;
        loader.start_epoch(1);
        loader.for_each(|batches| self.see(model, batches))?;
        self.metrics()
    }

    /// Takes `model` as it is now, and forgets what was seen.
    ///
    /// # Errors
    /// If it is not the model that the evaluator was made for.
    pub fn begin(&mut self, model: &Sequential<T>) -> Result<()> {
        (self.total, self.right, self.count) = (0.0, 0, 0);
        self.evaluation.refresh(model)
    }

    /// Evaluates `model`, which has not changed since [`Evaluator::begin`], on some more batches.
    ///
    /// # Errors
    /// If they are larger than those of [`Evaluator::loader`], or do not fit the model.
    pub fn see(&mut self, model: &Sequential<T>, batches: Batches<'_, T>) -> Result<()> {
        for batch in batches {
            let y = self.evaluation.infer(model, batch.x)?;
            let n = batch.labels.len();
            self.total += self.loss.forward(y, Targets::Classes(batch.labels))? * n as f64;
            let rows = y.data().chunks_exact(y.data().len() / n).zip(batch.labels);
            self.right += rows.filter(|(row, label)| is_largest(row, usize::from(**label))).count();
            self.count += n;
        }
        Ok(())
    }

    /// Loss and accuracy over what was seen.
    ///
    /// # Errors
    /// If nothing was.
    pub fn metrics(&self) -> Result<Metrics> {
        if self.count == 0 {
            return Err(Error::invalid("examples to evaluate", 0, "at least 1"));
        }
        let count = self.count as f64;
        Ok(Metrics { loss: self.total / count, accuracy: self.right as f64 / count })
    }
}

/// Whether element `at` is the first largest of a row without NaN.
fn is_largest<T: Element>(row: &[T], at: usize) -> bool {
    let (before, from) = row.split_at(at);
    // Without an early end, which could not be foreseen.
    let is_above = before.iter().fold(true, |all, y| all & (*y < row[at]));
    from.iter().fold(is_above, |all, y| all & (*y <= row[at]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_equals_is_the_largest_and_nan_is_none() {
        let is = |row: &[f32]| (0..row.len()).filter(|&at| is_largest(row, at)).collect::<Vec<_>>();
        assert_eq!(is(&[1.0, 3.0, 3.0]), [1]);
        assert_eq!(is(&[-1.0]), [0]);
        assert!(is(&[1.0, f32::NAN, 3.0]).is_empty() && is(&[f32::NAN]).is_empty());
    }
}
