//! The ReLU layer: `y = max(0, x)`; see [`kernels::relu`](crate::kernels::relu).

use super::{Layer, check_backward, check_output};
use crate::error::{Error, Result};
use crate::kernels::relu;
use crate::simd::Element;
use crate::tensor::{Shape, TensorMut, TensorRef};

/// Rectified linear unit, for any shape. NaN passes through; the derivative at 0 is 0.
#[derive(Clone, Copy, Debug, Default)]
pub struct Relu;

impl Relu {
    /// The layer; it has no options.
    pub fn new() -> Self {
        Relu
    }
}

impl<T: Element> Layer<T> for Relu {
    fn describe(&self) -> String {
        "ReLU".to_string()
    }

    fn output_shape(&self, input: Shape) -> Result<Shape> {
        Ok(input)
    }

    fn infer(&self, x: TensorRef<'_, T>, mut y: TensorMut<'_, T>, scratch: &mut [T]) -> Result<()> {
        check_output(self, x.shape(), y.shape(), scratch)?;
        relu::forward(x.data(), y.data());
        Ok(())
    }

    fn forward(&mut self, x: TensorRef<'_, T>, y: TensorMut<'_, T>, _saved: &mut [T], scratch: &mut [T]) -> Result<()> {
        self.infer(x, y, scratch)
    }

    fn backward(
        &mut self,
        x: TensorRef<'_, T>,
        dy: TensorRef<'_, T>,
        dx: Option<TensorMut<'_, T>>,
        saved: &[T],
        scratch: &mut [T],
    ) -> Result<()> {
        check_backward(self, x.shape(), dy.shape(), dx.as_ref(), saved, scratch)?;
        if let Some(mut dx) = dx {
            relu::backward(x.data(), dy.data(), dx.data());
        }
        Ok(())
    }

    fn forward_held(
        &mut self,
        base: TensorRef<'_, T>,
        x: TensorRef<'_, T>,
        mut y: TensorMut<'_, T>,
        _saved: &mut [T],
        scratch: &mut [T],
    ) -> Result<()> {
        check_output(self, x.shape(), y.shape(), scratch)?;
        if base.shape() != x.shape() {
            return Err(Error::shape("ReLU: base", x.shape(), base.shape()));
        }
        // With the mask of `base`, forward is the same linear map as backward.
        relu::backward(base.data(), x.data(), y.data());
        Ok(())
    }
}
