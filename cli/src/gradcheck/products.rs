//! Products: the layer, and the kernel with what is fused into it.

use super::function::{Function, Given, layer_backward, layer_forward};
use super::subjects::{OFF_THE_KINK, normals, sizes};
use evenkeel::kernels::gemm::{Epilogue, PackedB, gemm, gemm_packed, scratch_len};
use evenkeel::kernels::relu;
use evenkeel::layers;
use evenkeel::matrix::{MatMut, MatRef};
use evenkeel::simd::Element;
use evenkeel::{Init, Rng};
use std::fmt;

/// How `y = x W + b` is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    Layer,
    /// The bias in the epilogue of the product.
    Epilogue,
    /// With weights that were packed before.
    Packed,
}

/// `y = x W + b`, or ReLU of that.
#[derive(Clone, Copy)]
pub(super) struct Product {
    n: usize,
    inputs: usize,
    outputs: usize,
    has_bias: bool,
    relu: bool,
    by: By,
}

impl Product {
    /// The layer, with or without bias.
    pub(super) fn layer(rng: &mut Rng) -> Self {
        Product { has_bias: rng.below(4) > 0, relu: false, by: By::Layer, ..Product::sizes(rng) }
    }

    /// The kernel, with bias and perhaps ReLU in its epilogue.
    pub(super) fn fused(rng: &mut Rng) -> Self {
        let by = if rng.below(2) == 0 { By::Epilogue } else { By::Packed };
        Product { relu: rng.below(2) == 0, by, has_bias: rng.below(4) > 0, ..Product::sizes(rng) }
    }

    fn sizes(rng: &mut Rng) -> Self {
        let [n, inputs, outputs] = sizes(rng, [24, 17, 17], 257);
        Product { n, inputs, outputs, has_bias: true, relu: false, by: By::Layer }
    }

    pub(super) fn make(&self) -> layers::Linear<f64> {
        self.make_of()
    }

    fn make_of<T: Element>(&self) -> layers::Linear<T> {
        let rng = &mut Rng::new(1, "replaced");
        let layer = layers::Linear::with_init(self.inputs, self.outputs, Init::Xavier, rng).expect("widths above 0");
        if self.has_bias { layer } else { layer.without_bias() }
    }

    /// The gradient before the ReLU.
    fn through_relu<T: Element>(&self, inputs: [&[T]; 3], dy: &[T]) -> Vec<T> {
        let mut dz = dy.to_vec();
        if self.relu {
            let mut y = dz.clone();
            self.forward(inputs, &mut y);
            relu::backward_in_place(&y, &mut dz);
        }
        dz
    }
}

impl fmt::Display for Product {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}x{}", self.n, self.inputs, self.outputs)?;
        if !self.has_bias {
            write!(f, ", no bias")?;
        }
        if self.relu {
            write!(f, ", relu")?;
        }
        if self.by == By::Packed { write!(f, ", packed") } else { Ok(()) }
    }
}

impl Function<3> for Product {
    /// Inputs at which no output comes so near the kink that f32 and f64 differ about its side.
    fn given(&self, rng: &mut Rng) -> [Given; 3] {
        loop {
            let given = [
                Given { name: "x", shape: [self.n, self.inputs].into(), values: normals(rng, self.n * self.inputs) },
                Given {
                    name: "weight",
                    shape: [self.inputs, self.outputs].into(),
                    values: normals(rng, self.inputs * self.outputs),
                },
                Given::parameter("bias", if self.has_bias { normals(rng, self.outputs) } else { Vec::new() }),
            ];
            let [x, weight, bias] = given.each_ref().map(Given::wide);
            let mut z = vec![0.0; self.n * self.outputs];
            Product { relu: false, ..*self }.forward([&x, &weight, &bias], &mut z);
            if !self.relu || z.iter().all(|z| z.abs() > OFF_THE_KINK) {
                return given;
            }
        }
    }

    fn outputs(&self) -> usize {
        self.n * self.outputs
    }

    fn forward<T: Element>(&self, inputs: [&[T]; 3], y: &mut [T]) {
        let (m, k, n) = (self.n, self.inputs, self.outputs);
        let [x, weight, bias] = inputs;
        if self.by == By::Layer {
            layer_forward(&mut self.make_of(), [m, k].into(), inputs, y);
            return;
        }
        let mut scratch = vec![T::ZERO; scratch_len::<T>(m, k, n)];
        let epilogue = match (self.has_bias, self.relu) {
            (true, true) => Epilogue::BiasRelu(bias),
            (true, false) => Epilogue::Bias(bias),
            (false, true) => Epilogue::Relu,
            (false, false) => Epilogue::None,
        };
        let (a, b, c) = (MatRef::new(x, m, k), MatRef::new(weight, k, n), MatMut::new(y, m, n));
        if self.by == By::Packed {
            let packed = PackedB::new(b).expect("a small matrix");
            gemm_packed(T::ONE, a, &packed, T::ZERO, c, epilogue, &mut scratch)
                .expect("packed for this instruction set");
        } else {
            gemm(T::ONE, a, b, T::ZERO, c, epilogue, &mut scratch);
        }
    }

    fn backward<T: Element>(&self, inputs: [&[T]; 3], dy: &[T], gradients: [&mut [T]; 3]) {
        let (m, k, n) = (self.n, self.inputs, self.outputs);
        let [x, weight, _] = inputs;
        if self.by == By::Layer {
            layer_backward(&mut self.make_of(), [m, k].into(), inputs, dy, gradients);
            return;
        }
        let [dx, dweight, dbias] = gradients;
        let dz = self.through_relu(inputs, dy);
        let most = scratch_len::<T>(k, m, n).max(scratch_len::<T>(m, n, k));
        let mut scratch = vec![T::ZERO; most];
        let (x, dz, weight) = (MatRef::new(x, m, k), MatRef::new(&dz, m, n), MatRef::new(weight, k, n));
        dbias.fill(T::ZERO);
        let sums = if self.has_bias { Epilogue::ColumnSums(dbias) } else { Epilogue::None };
        gemm(T::ONE, x.transpose(), dz, T::ZERO, MatMut::new(dweight, k, n), sums, &mut scratch);
        gemm(T::ONE, dz, weight.transpose(), T::ZERO, MatMut::new(dx, m, k), Epilogue::None, &mut scratch);
    }

    fn magnitude(&self, inputs: [&[f64]; 3], dy: &[f64], [dx, dweight, dbias]: [&mut [f64]; 3]) {
        let (m, k, n) = (self.n, self.inputs, self.outputs);
        let [x, weight, _] = inputs;
        let dz = self.through_relu(inputs, dy);
        dweight.fill(0.0);
        dbias.fill(0.0);
        for i in 0..m {
            for o in 0..n {
                let dz = dz[i * n + o].abs();
                if self.has_bias {
                    dbias[o] += dz;
                }
                for j in 0..k {
                    dweight[j * n + o] += dz * x[i * k + j].abs();
                }
            }
            for j in 0..k {
                dx[i * k + j] = (0..n).map(|o| (dz[i * n + o] * weight[j * n + o]).abs()).sum();
            }
        }
    }

    /// A sum of k products loses k roundings of the sum of their sizes.
    fn ulps(&self) -> [f64; 3] {
        [self.outputs, self.n, self.n].map(|terms| terms as f64 / 2.0)
    }
}
