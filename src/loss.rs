//! Losses: one number for a batch, and its gradient. Thin over [`kernels`](crate::kernels).

use crate::error::{Error, Result};
use crate::kernels::{mse, softmax_xent};
use crate::simd::Element;
use crate::tensor::{Shape, TensorMut, TensorRef};

/// What a batch should come out as.
#[derive(Clone, Copy, Debug)]
pub enum Targets<'a, T> {
    /// A class for each row.
    Classes(&'a [u8]),
    /// A value for each output, row-major.
    Values(&'a [T]),
}

/// A loss, the mean over a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// Softmax of the outputs, then the negative logarithm of the class's share.
    CrossEntropy,
    /// Mean of the squared differences over all outputs.
    Mse,
}

impl Loss {
    /// The loss of outputs `y`, and its gradient in `dy`, which is overwritten.
    ///
    /// # Shapes
    /// `y`, `dy`: `[n, c]`; classes `[n]`, values `[n, c]`.
    ///
    /// # Errors
    /// If a shape does not fit, if the targets are not of the loss's kind, or if a class is not below c; `dy` is unchanged then.
    pub fn forward_backward<T: Element>(
        self,
        y: TensorRef<'_, T>,
        targets: Targets<'_, T>,
        mut dy: TensorMut<'_, T>,
    ) -> Result<f64> {
        if y.shape() != dy.shape() {
            return Err(Error::shape("loss: gradient", y.shape(), dy.shape()));
        }
        match self.fitting(y, targets)? {
            Targets::Classes(labels) => softmax_xent::forward_backward(y.data(), labels, dy.data()),
            Targets::Values(values) => Ok(mse::forward_backward(y.data(), values, dy.data())),
        }
    }

    /// The loss of outputs `y` alone: the same bits.
    ///
    /// # Shapes
    /// As [`Loss::forward_backward`].
    ///
    /// # Errors
    /// If a shape does not fit, if the targets are not of the loss's kind, or if a class is not below c.
    pub fn forward<T: Element>(self, y: TensorRef<'_, T>, targets: Targets<'_, T>) -> Result<f64> {
        match self.fitting(y, targets)? {
            Targets::Classes(labels) => softmax_xent::forward(y.data(), labels),
            Targets::Values(values) => Ok(mse::forward(y.data(), values)),
        }
    }

    /// The targets, if they are of this loss's kind and as many as the outputs.
    fn fitting<'t, T: Element>(self, y: TensorRef<'_, T>, targets: Targets<'t, T>) -> Result<Targets<'t, T>> {
        match (self, targets) {
            (Loss::CrossEntropy, Targets::Classes(labels)) => {
                let [rows, _] = *y.shape().dims() else {
                    return Err(Error::shape("cross-entropy: outputs", "[n, c]", y.shape()));
                };
                if labels.len() != rows {
                    let (wanted, found) = (Shape::new(&[rows]), Shape::new(&[labels.len()]));
                    return Err(Error::shape("cross-entropy: classes", wanted, found));
                }
            }
            (Loss::Mse, Targets::Values(values)) => {
                if values.len() != y.data().len() {
                    return Err(Error::shape("mse: values", y.shape(), format!("{} elements", values.len())));
                }
            }
            (Loss::CrossEntropy, Targets::Values(_)) => {
                return Err(Error::invalid("cross-entropy: targets", "values", "classes"));
            }
            (Loss::Mse, Targets::Classes(_)) => return Err(Error::invalid("mse: targets", "classes", "values")),
        }
        Ok(targets)
    }
}
