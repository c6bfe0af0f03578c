//! Which products are timed, and the matrices of one.

use super::rival::Rival;
use super::{check_memory, noise, size};
use crate::failure::Failure;
use evenkeel::kernels::gemm::{Epilogue, gemm, scratch_len};
use evenkeel::matrix::{MatMut, MatRef};
use evenkeel::tensor::Tensor;
use std::fmt;

/// How the operands of `C = A B` lie in memory, row-major.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// A and B as they are: a layer's forward pass.
    Plain,
    /// A is the transpose of what is stored: the gradient of a layer's weights, `dW = X^T dY`.
    TransposedA,
    /// B is the transpose of what is stored: the gradient of a layer's input, `dX = dY W^T`.
    TransposedB,
}

/// The size of a product: C is `m x n`, and k products make an element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Product {
    pub(crate) m: usize,
    pub(crate) k: usize,
    pub(crate) n: usize,
    pub(crate) form: Form,
}

const SQUARES: [usize; 7] = [32, 64, 128, 256, 512, 1024, 2048];

/// Layers, as batch, inputs, outputs: those of the three networks that the command knows or will know, and wide ones, the last a
/// convolution written as a product.
const LAYERS: [[usize; 3]; 13] = [
    [32, 784, 32],
    [32, 32, 32],
    [32, 32, 10],
    [64, 784, 100],
    [64, 100, 50],
    [64, 50, 10],
    [128, 400, 120],
    [128, 120, 84],
    [128, 84, 10],
    [256, 784, 512],
    [256, 1024, 1024],
    [1024, 784, 256],
    [512, 4608, 512],
];

impl Product {
    /// `MxKxN`, then `_tn` where A is stored transposed, `_nt` where B is.
    pub(crate) fn parse(text: &str) -> Result<Product, String> {
        let (sizes, form) = match text.rsplit_once('_') {
            None => (text, Form::Plain),
            Some((sizes, "tn")) => (sizes, Form::TransposedA),
            Some((sizes, "nt")) => (sizes, Form::TransposedB),
            Some(_) => return Err("expected MxKxN, MxKxN_tn or MxKxN_nt".to_string()),
        };
        let parts: Vec<&str> = sizes.split('x').collect();
        let [m, k, n] = parts[..] else { return Err(format!("expected three sizes as in 32x784x32, found {sizes}")) };
        let size = |text: &str| size(text, "three as in 32x784x32", "multiply");
        Ok(Product { m: size(m)?, k: size(k)?, n: size(n)?, form })
    }

    /// Squares, then the three products of each layer: forward, and the gradients of its weights and of its input.
    pub(crate) fn defaults() -> Vec<Product> {
        let product = |m, k, n, form| Product { m, k, n, form };
        let squares = SQUARES.map(|n| product(n, n, n, Form::Plain));
        let layers = LAYERS.iter().flat_map(|&[batch, inputs, outputs]| {
            [
                product(batch, inputs, outputs, Form::Plain),
                product(inputs, batch, outputs, Form::TransposedA),
                product(batch, outputs, inputs, Form::TransposedB),
            ]
        });
        let mut all = Vec::new();
        for product in squares.into_iter().chain(layers) {
            // One layer's forward pass is a square.
            if !all.contains(&product) {
                all.push(product);
            }
        }
        all
    }

    /// Multiplications and additions.
    pub(crate) fn flops(self) -> f64 {
        2.0 * self.m as f64 * self.k as f64 * self.n as f64
    }

    /// Refuses what the memory of this machine is not made for.
    pub(crate) fn check<T: Rival>(self) -> Result<(), Failure> {
        let (m, k, n) = (self.m as f64, self.k as f64, self.n as f64);
        let needed = (m * k + k * n + m * n) * size_of::<T>() as f64;
        check_memory(self, "a product whose three matrices", needed)
    }
}

impl fmt::Display for Product {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let suffix = match self.form {
            Form::Plain => "",
            Form::TransposedA => "_tn",
            Form::TransposedB => "_nt",
        };
        write!(f, "{}x{}x{}{suffix}", self.m, self.k, self.n)
    }
}

/// The matrices of a product, full of noise.
pub(crate) struct Operands<T> {
    product: Product,
    a: Tensor<T>,
    b: Tensor<T>,
    c: Tensor<T>,
    scratch: Tensor<T>,
}

impl<T: Rival> Operands<T> {
    pub(crate) fn new(product: Product) -> Result<Operands<T>, Failure> {
        let Product { m, k, n, .. } = product;
        Ok(Operands {
            product,
            a: noise(m * k)?,
            b: noise(k * n)?,
            c: Tensor::zeros([m * n])?,
            scratch: Tensor::zeros([scratch_len::<T>(m, k, n)])?,
        })
    }

    /// A, B, C and scratch.
    fn views(&mut self) -> (MatRef<'_, T>, MatRef<'_, T>, MatMut<'_, T>, &mut [T]) {
        let Product { m, k, n, form } = self.product;
        let (a, b) = (self.a.data(), self.b.data());
        let a = if form == Form::TransposedA { MatRef::new(a, k, m).transpose() } else { MatRef::new(a, m, k) };
        let b = if form == Form::TransposedB { MatRef::new(b, n, k).transpose() } else { MatRef::new(b, k, n) };
        (a, b, MatMut::new(self.c.data_mut(), m, n), self.scratch.data_mut())
    }

    /// `C <- A B` with ours.
    pub(crate) fn multiply(&mut self) {
        let (a, b, c, scratch) = self.views();
        gemm(T::ONE, a, b, T::ZERO, c, Epilogue::None, scratch);
    }

    /// `C <- A B` with matrixmultiply.
    pub(crate) fn multiply_with_rival(&mut self) {
        let (a, b, c, _) = self.views();
        T::matrixmultiply(a, b, c);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_as_typed() {
        for text in ["32x784x32", "784x32x32_tn", "32x10x32_nt"] {
            assert_eq!(Product::parse(text).unwrap().to_string(), text);
        }
        for (wrong, word) in [
            ("", "three sizes"),
            ("32", "three sizes"),
            ("1x2x3x4", "three sizes"),
            ("32x0x32", "0"),
            ("axbxc", "\"a\""),
            ("1x2x", "\"\""),
            ("-1x2x3", "\"-1\""),
            ("1x2x+3", "\"+3\""),
            ("1x2x3_tt", "_nt"),
            ("1x2x3_", "_nt"),
            ("99999999999999999999x1x1", "addressed"),
        ] {
            let error = Product::parse(wrong).unwrap_err();
            assert!(error.contains(word), "{wrong}: {error}");
        }
    }

    #[test]
    fn a_layer_has_two_products_backward() {
        let names: Vec<String> = Product::defaults().iter().map(Product::to_string).collect();
        assert_eq!(
            names[..7],
            ["32x32x32", "64x64x64", "128x128x128", "256x256x256", "512x512x512", "1024x1024x1024", "2048x2048x2048"]
        );
        assert_eq!(names[7..10], ["32x784x32", "784x32x32_tn", "32x32x784_nt"]);
        assert_eq!(names.len(), 7 + 3 * LAYERS.len() - 1);
    }

    #[test]
    fn ours_and_the_rival_agree_in_every_form() {
        for form in [Form::Plain, Form::TransposedA, Form::TransposedB] {
            let mut operands = Operands::<f64>::new(Product { m: 5, k: 7, n: 3, form }).unwrap();
            operands.multiply();
            let ours = operands.c.clone();
            operands.c.data_mut().fill(f64::NAN);
            operands.multiply_with_rival();
            for (x, y) in ours.data().iter().zip(operands.c.data()) {
                assert!((x - y).abs() < 1e-12, "{form:?}: {x} and {y}");
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_refused_with_its_size() {
        let product = Product { m: usize::MAX, k: usize::MAX, n: 1, form: Form::Plain };
        assert!(product.check::<f32>().unwrap_err().to_string().contains("GiB"));
        Product { m: 8, k: 8, n: 8, form: Form::Plain }.check::<f64>().unwrap();
    }
}
