//! The fully connected layer: `Y = X W^T + b` in PyTorch's terms.
//!
//! The weight is stored as `[in, out]`, the order in which the product reads it without a copy; [`Linear::weight`] and
//! [`Linear::set_weight`] speak PyTorch's `[out, in]`. With the stored W:
//!
//! ```text
//! Y = X W + 1 b^T        dX = dY W^T        dW = X^T dY        db = dY^T 1
//! ```
//!
//! [`Layer::prepare`] packs a W of at least 64 KiB and more than 32 f32 (16 f64) outputs for [`Layer::infer`]; a smaller or
//! narrower one is read where it lies, as fast. What is packed is held twice, until it changes.

use super::weight::Weight;
use super::{AffineMap, Layer, Parameter, ParameterMut, PerChannel, check_backward, check_output};
use crate::error::{Error, Result};
use crate::kernels::gemm::{self, Epilogue, gemm, gemm_packed};
use crate::matrix::{MatMut, MatRef};
use crate::rng::{Init, Rng};
use crate::simd::Element;
use crate::tensor::{Shape, Tensor, TensorMut, TensorRef};

/// A fully connected layer.
///
/// # Shapes
/// `x`: `[n, in_features]`, `y`: `[n, out_features]`.
#[derive(Debug)]
pub struct Linear<T: Element> {
    in_features: usize,
    out_features: usize,
    weight: Weight<T>,
    dweight: Tensor<T>,
    bias: Option<(Tensor<T>, Tensor<T>)>,
}

impl<T: Element> Linear<T> {
    /// A layer with a bias, initialised as PyTorch does: weight and bias uniform in +-1/sqrt(in_features).
    ///
    /// # Errors
    /// If a width is 0, or if the weight cannot be addressed.
    pub fn new(in_features: usize, out_features: usize, rng: &mut Rng) -> Result<Self> {
        Linear::with_init(in_features, out_features, Init::PyTorch, rng)
    }

    /// A layer whose weight is drawn as `init` says; the bias is PyTorch's for [`Init::PyTorch`] and zero else.
    ///
    /// # Errors
    /// If a width is 0, or if the weight cannot be addressed.
    pub fn with_init(in_features: usize, out_features: usize, init: Init, rng: &mut Rng) -> Result<Self> {
        if in_features == 0 || out_features == 0 {
            let found = format!("{in_features} inputs, {out_features} outputs");
            return Err(Error::shape("linear", "at least one input and one output", found));
        }
        let weight = Weight::zeros(in_features, out_features)?;
        let dweight = Tensor::zeros([in_features, out_features])?;
        let bias = Some((Tensor::zeros([out_features])?, Tensor::zeros([out_features])?));
        let mut layer = Linear { in_features, out_features, weight, dweight, bias };
        // Drawn in PyTorch's order, row by row of [out, in], then the bias.
        let stored = layer.weight.values_mut();
        for o in 0..out_features {
            for i in 0..in_features {
                stored[i * out_features + o] = T::from_f64(init.draw(in_features, out_features, rng));
            }
        }
        if let (Some((bias, _)), Init::PyTorch) = (&mut layer.bias, init) {
            for b in bias.data_mut() {
                *b = T::from_f64(init.draw(in_features, out_features, rng));
            }
        }
        Ok(layer)
    }

    /// The same layer without its bias.
    pub fn without_bias(mut self) -> Self {
        self.bias = None;
        self
    }

    /// The weight in PyTorch's order, `[out, in]`.
    pub fn weight(&self) -> Vec<T> {
        let stored = self.weight.matrix().transpose();
        let (rows, cols) = (self.out_features, self.in_features);
        (0..rows * cols).map(|at| stored.get(at / cols, at % cols)).collect()
    }

    /// Sets the weight from PyTorch's order, `[out, in]`.
    ///
    /// # Errors
    /// If the number of elements is not `out_features * in_features`.
    pub fn set_weight(&mut self, weight: &[T]) -> Result<()> {
        let shape = Shape::new(&[self.out_features, self.in_features]);
        let source = TensorRef::new(shape, weight)?;
        let stored = self.weight.values_mut();
        for o in 0..self.out_features {
            for i in 0..self.in_features {
                stored[i * self.out_features + o] = source.data()[o * self.in_features + i];
            }
        }
        Ok(())
    }

    /// The bias, if there is one.
    pub fn bias(&self) -> Option<&[T]> {
        self.bias.as_ref().map(|(bias, _)| bias.data())
    }

    /// Sets the bias.
    ///
    /// # Errors
    /// If there is none, or if the number of elements is not `out_features`.
    pub fn set_bias(&mut self, bias: &[T]) -> Result<()> {
        let Some((stored, _)) = &mut self.bias else {
            return Err(Error::shape("linear: bias", "none", format!("{} elements", bias.len())));
        };
        *stored = Tensor::from_slice([self.out_features], bias)?;
        Ok(())
    }

    /// Number of inputs.
    pub fn in_features(&self) -> usize {
        self.in_features
    }

    /// Number of outputs.
    pub fn out_features(&self) -> usize {
        self.out_features
    }

    /// Writes what the weight, in the stored order, and the bias would be with a map of each output behind them; returns whether all
    /// of it is finite.
    pub(crate) fn with_maps(&self, maps: &[AffineMap], weight: &mut [T], bias: &mut [T]) -> bool {
        for (o, b) in bias.iter_mut().enumerate() {
            *b = T::from_f64(maps[o].apply(self.bias().map_or(0.0, |old| old[o].to_f64())));
        }
        let rows = self.weight.values().chunks_exact(self.out_features).zip(weight.chunks_exact_mut(self.out_features));
        for (old, new) in rows {
            for ((new, old), map) in new.iter_mut().zip(old).zip(maps) {
                *new = T::from_f64(map.scale * old.to_f64());
            }
        }
        bias.iter().chain(&*weight).all(|x| x.is_finite())
    }

    fn rows(&self, input: Shape) -> usize {
        input.dims().first().map_or(0, |&n| n)
    }
}

impl<T: Element> Layer<T> for Linear<T> {
    fn describe(&self) -> String {
        format!("Linear({}, {})", self.in_features, self.out_features)
    }

    fn output_shape(&self, input: Shape) -> Result<Shape> {
        match input.dims() {
            [n, features] if *features == self.in_features => Ok(Shape::new(&[*n, self.out_features])),
            _ => Err(Error::shape(self.describe(), format!("[n, {}]", self.in_features), input)),
        }
    }

    fn scratch_len(&self, input: Shape) -> usize {
        let (n, i, o) = (self.rows(input), self.in_features, self.out_features);
        let products = [(n, i, o), (n, o, i), (i, n, o)].map(|(m, k, n)| gemm::scratch_len::<T>(m, k, n));
        products.into_iter().fold(0, usize::max)
    }

    fn prepare(&mut self) -> Result<()> {
        self.weight.pack()
    }

    fn absorb(&mut self, after: &PerChannel) -> Result<bool> {
        let maps = &after.maps;
        if after.layout.is_some() || maps.len() != self.out_features {
            return Ok(false);
        }
        let (mut weight, mut bias) =
            (Tensor::zeros([self.in_features, self.out_features])?, Tensor::zeros([self.out_features])?);
        if !self.with_maps(maps, weight.data_mut(), bias.data_mut()) {
            return Ok(false);
        }
        let dbias = Tensor::zeros([self.out_features])?;
        self.weight.values_mut().copy_from_slice(weight.data());
        self.bias = Some((bias, dbias));
        self.dweight.data_mut().fill(T::ZERO);
        Ok(true)
    }

    fn infer(&self, x: TensorRef<'_, T>, mut y: TensorMut<'_, T>, scratch: &mut [T]) -> Result<()> {
        check_output(self, x.shape(), y.shape(), scratch)?;
        let (n, i, o) = (self.rows(x.shape()), self.in_features, self.out_features);
        let (x, y) = (MatRef::new(x.data(), n, i), MatMut::new(y.data(), n, o));
        let epilogue = self.bias.as_ref().map_or(Epilogue::None, |(bias, _)| Epilogue::Bias(bias.data()));
        if let Some(packed) = self.weight.packed() {
            return gemm_packed(T::ONE, x, packed, T::ZERO, y, epilogue, scratch);
        }
        gemm(T::ONE, x, self.weight.matrix(), T::ZERO, y, epilogue, scratch);
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
        let (n, i, o) = (self.rows(x.shape()), self.in_features, self.out_features);
        let (x, dy) = (MatRef::new(x.data(), n, i), MatRef::new(dy.data(), n, o));
        let dweight = MatMut::new(self.dweight.data_mut(), i, o);
        let epilogue = self.bias.as_mut().map_or(Epilogue::None, |(_, dbias)| Epilogue::ColumnSums(dbias.data_mut()));
        gemm(T::ONE, x.transpose(), dy, T::ONE, dweight, epilogue, scratch);
        if let Some(mut dx) = dx {
            let weight = self.weight.matrix();
            gemm(T::ONE, dy, weight.transpose(), T::ZERO, MatMut::new(dx.data(), n, i), Epilogue::None, scratch);
        }
        Ok(())
    }

    fn visit(&self, f: &mut dyn FnMut(Parameter<'_, T>)) {
        let (weight, dweight) = (self.weight.values(), &self.dweight);
        f(Parameter { name: "weight", shape: dweight.shape(), value: weight, grad: dweight.data() });
        if let Some((bias, dbias)) = &self.bias {
            f(Parameter { name: "bias", shape: bias.shape(), value: bias.data(), grad: dbias.data() });
        }
    }

    fn visit_mut(&mut self, f: &mut dyn FnMut(ParameterMut<'_, T>)) {
        f(ParameterMut { name: "weight", value: self.weight.values_mut(), grad: self.dweight.data_mut() });
        if let Some((bias, dbias)) = &mut self.bias {
            f(ParameterMut { name: "bias", value: bias.data_mut(), grad: dbias.data_mut() });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::{Isa, with_isa};

    #[test]
    fn infer_reads_the_packed_weight_on_its_instruction_set_and_the_plain_one_on_others() {
        for isa in Isa::available() {
            let mut layer = Linear::<f32>::new(256, 256, &mut Rng::new(1, "init")).unwrap();
            layer.set_weight(&vec![1.0; 256 * 256]).unwrap();
            layer.set_bias(&[0.5; 256]).unwrap();
            with_isa(isa, || layer.prepare().unwrap());
            layer.weight.values_behind_the_copy().fill(2.0);
            for current in Isa::available() {
                let (x, mut y) = (Tensor::from_slice([1, 256], &[1.0; 256]).unwrap(), Tensor::zeros([1, 256]).unwrap());
                let mut scratch = vec![0.0; layer.scratch_len(x.shape())];
                with_isa(current, || layer.infer(x.view(), y.view_mut(), &mut scratch).unwrap());
                let wanted = if current == isa { 256.5 } else { 512.5 };
                assert_eq!(y.data(), [wanted; 256], "prepared for {isa}, on {current}");
            }
        }
    }
}
