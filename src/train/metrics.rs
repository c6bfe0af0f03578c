//! How well a model does on a set: loss and accuracy in evaluation mode.

use crate::data::{Images, LastBatch, Loader, Order, Scale};
use crate::error::{Error, Result};
use crate::loss::{Loss, Targets};
use crate::model::{InferSpace, Sequential};
use crate::simd::Element;
use crate::tensor::{Shape, Tensor, TensorMut};

/// Rows of a batch in evaluation: enough to run at the speed of the product, few enough to stay in the cache.
const EVALUATION_ROWS: usize = 512;

/// Loss and accuracy over a set.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Metrics {
    /// Mean loss of an example.
    pub loss: f64,
    /// Share of the examples whose largest output is that of their class (the first, of equals); NaN is never right.
    pub accuracy: f64,
}

/// The memory that evaluating a model on sets of images takes.
#[derive(Debug)]
pub struct Evaluator<T> {
    space: InferSpace<T>,
    gradient: Tensor<T>,
    loss: Loss,
}

impl<T: Element> Evaluator<T> {
    /// Memory for `model` on sets whose images have the size of those of `images`.
    ///
    /// # Errors
    /// If the model does not take such images.
    pub fn new(model: &Sequential<T>, loss: Loss, images: &Images) -> Result<Self> {
        let input = Shape::new(&[EVALUATION_ROWS, images.height() * images.width()]);
        let output = model.output_shape(input)?;
        Ok(Evaluator { space: model.infer_space(input)?, gradient: Tensor::zeros(output)?, loss })
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
        loader.start_epoch(1);
        let (mut loss, mut right, mut count) = (0.0, 0usize, 0usize);
        while let Some(batch) = loader.next_batch() {
            let y = model.infer(batch.x, &mut self.space)?;
            let Some(dy) = self.gradient.data_mut().get_mut(..y.data().len()) else {
                return Err(Error::shape("evaluation", "the model that the evaluator was made for", "a wider one"));
            };
            let dy = TensorMut::new(y.shape(), dy)?;
            let n = batch.labels.len();
            loss += self.loss.forward_backward(y, Targets::Classes(batch.labels), dy)? * n as f64;
            right += y
                .data()
                .chunks_exact(y.data().len() / n)
                .zip(batch.labels)
                .filter(|(row, label)| largest(row) == Some(usize::from(**label)))
                .count();
            count += n;
        }
        if count == 0 {
            return Err(Error::invalid("examples to evaluate", 0, "at least 1"));
        }
        Ok(Metrics { loss: loss / count as f64, accuracy: right as f64 / count as f64 })
    }
}

/// Index of the first largest element; none if one is NaN.
fn largest<T: Element>(row: &[T]) -> Option<usize> {
    let mut best = 0;
    for (i, &y) in row.iter().enumerate() {
        if y > row[best] {
            best = i;
        } else if y.partial_cmp(&y).is_none() {
            return None;
        }
    }
    Some(best)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_equals_is_the_largest_and_nan_is_none() {
        assert_eq!(largest(&[1.0, 3.0, 3.0]), Some(1));
        assert_eq!(largest(&[1.0, f32::NAN, 3.0]), None);
    }
}
