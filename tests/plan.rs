//! Plans: fused steps give what the layers give one by one, for any stack, batch, instruction set and number of threads.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails, in its helpers too")]

use evenkeel::layers::{BatchNorm1d, BatchNorm2d, BatchNormOptions, Layer, Linear, Parameter, ParameterMut, Relu};
use evenkeel::model::plan::{Fusion, Plan};
use evenkeel::optim::{Adam, Optimizer, Sgd};
use evenkeel::parallel::migrated;
use evenkeel::simd::{Element, Isa, with_isa};
use evenkeel::tensor::{ImageLayout, Shape, Tensor, TensorMut, TensorRef};
use evenkeel::train::{Trainer, enter};
use evenkeel::{Loss, Result, Rng, Sequential, Targets, Threads};
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::RngSeed;

/// What a user might write: `y = scale x`, one learnt number for each feature.
struct Scale<T> {
    scale: Vec<T>,
    grad: Vec<T>,
}

impl<T: Element> Scale<T> {
    fn new(features: usize) -> Self {
        let scale = (0..features).map(|i| T::from_f64(1.0 + 0.125 * (i % 5) as f64)).collect();
        Scale { scale, grad: vec![T::ZERO; features] }
    }
}

impl<T: Element> Layer<T> for Scale<T> {
    fn describe(&self) -> String {
        format!("Scale({})", self.scale.len())
    }

    fn output_shape(&self, input: Shape) -> Result<Shape> {
        Ok(input)
    }

    fn saved_len(&self, input: Shape) -> usize {
        input.len()
    }

    fn infer(&self, x: TensorRef<'_, T>, mut y: TensorMut<'_, T>, _scratch: &mut [T]) -> Result<()> {
        for ((y, &x), &scale) in y.data().iter_mut().zip(x.data()).zip(self.scale.iter().cycle()) {
            *y = scale * x;
        }
        Ok(())
    }

    fn forward(&mut self, x: TensorRef<'_, T>, y: TensorMut<'_, T>, saved: &mut [T], scratch: &mut [T]) -> Result<()> {
        saved[..x.data().len()].copy_from_slice(x.data());
        self.infer(x, y, scratch)
    }

    fn backward(
        &mut self,
        _x: TensorRef<'_, T>,
        dy: TensorRef<'_, T>,
        dx: Option<TensorMut<'_, T>>,
        saved: &[T],
        _scratch: &mut [T],
    ) -> Result<()> {
        let c = self.scale.len();
        for (i, (&dy, &x)) in dy.data().iter().zip(saved).enumerate() {
            self.grad[i % c] = self.grad[i % c] + dy * x;
        }
        if let Some(mut dx) = dx {
            for ((dx, &dy), &scale) in dx.data().iter_mut().zip(dy.data()).zip(self.scale.iter().cycle()) {
                *dx = scale * dy;
            }
        }
        Ok(())
    }

    fn visit(&self, f: &mut dyn FnMut(Parameter<'_, T>)) {
        f(Parameter { name: "scale", shape: [self.scale.len()].into(), value: &self.scale, grad: &self.grad });
    }

    fn visit_mut(&mut self, f: &mut dyn FnMut(ParameterMut<'_, T>)) {
        f(ParameterMut { name: "scale", value: &mut self.scale, grad: &mut self.grad });
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    /// With a bias or without.
    Linear(bool),
    /// Affine or not, tracking or not.
    Norm(bool, bool),
    Relu,
    Scale,
}

#[derive(Clone, Debug)]
struct Stack {
    inputs: usize,
    widths: Vec<usize>,
    kinds: Vec<Kind>,
    seed: u64,
}

impl Stack {
    /// The model; with `zero`, without the biases that a normalisation follows.
    fn model<T: Element>(&self, zero: bool) -> Sequential<T> {
        let rng = &mut Rng::new(self.seed, "init");
        let (mut model, mut width, mut widths) = (Sequential::new(), self.inputs, self.widths.iter().cycle());
        for (i, kind) in self.kinds.iter().enumerate() {
            model = match *kind {
                Kind::Linear(has_bias) => {
                    let outputs = *widths.next().unwrap();
                    let mut linear = Linear::new(width, outputs, rng).unwrap();
                    let is_cancelled = matches!(self.kinds.get(i + 1), Some(Kind::Norm(..)));
                    if !has_bias || zero && is_cancelled {
                        linear = linear.without_bias();
                    }
                    width = outputs;
                    model.push(linear)
                }
                Kind::Norm(affine, track_running_stats) => {
                    let options = BatchNormOptions { affine, track_running_stats, ..BatchNormOptions::default() };
                    model.push(BatchNorm1d::with_options(width, options).unwrap())
                }
                Kind::Relu => model.push(Relu::new()),
                Kind::Scale => model.push(Scale::new(width)),
            };
        }
        // So that gamma and beta matter.
        let mut rng = Rng::new(self.seed, "affine");
        let mut norms =
            self.kinds.iter().enumerate().filter(|(_, kind)| matches!(kind, Kind::Norm(..))).map(|(i, _)| i);
        let norms: Vec<usize> = norms.by_ref().collect();
        model.visit_mut(&mut |layer, parameter| {
            if norms.contains(&layer) {
                parameter.value.iter_mut().for_each(|x| *x = T::from_f64(rng.range(0.5, 1.5)));
            }
        });
        model
    }

    fn outputs(&self) -> usize {
        let count = self.kinds.iter().filter(|kind| matches!(kind, Kind::Linear(_))).count();
        if count == 0 { self.inputs } else { self.widths[(count - 1) % self.widths.len()] }
    }
}

fn normals<T: Element>(shape: impl Into<Shape>, seed: u64) -> Tensor<T> {
    let (mut tensor, mut rng) = (Tensor::zeros(shape).unwrap(), Rng::new(seed, "normals"));
    tensor.data_mut().fill_with(|| T::from_f64(rng.normal()));
    tensor
}

fn bits<T: Element>(x: &[T]) -> Vec<u64> {
    // Where a bias of zero was added to a product of -0, that became +0.
    x.iter().map(|x| (*x + T::ZERO).bits()).collect()
}

/// Names, values and gradients of all parameters.
fn parameters<T: Element>(plan: &Plan<T>) -> Vec<Shown> {
    let mut all = Vec::new();
    plan.visit(&mut |layer, p| all.push((format!("{layer}.{}", p.name), bits(p.value), bits(p.grad))));
    all
}

/// A parameter's name, and the bits of its values and of their gradients.
type Shown = (String, Vec<u64>, Vec<u64>);

fn classes(rows: usize, outputs: usize) -> Vec<u8> {
    (0..rows).map(|row| u8::try_from(row * 7 % outputs).unwrap()).collect()
}

/// Forward, loss, backward and an update over each batch, all by `plan`: losses, outputs of all layers, gradients and parameters.
fn trained<T: Element>(
    mut plan: Plan<T>,
    batches: &[Tensor<T>],
    outputs: usize,
    optimizer: &mut dyn Optimizer<T>,
    is_watched: fn(usize) -> bool,
) -> Trained {
    let mut trained = Trained::default();
    for (i, x) in batches.iter().enumerate() {
        let labels = classes(x.shape().dims()[0], outputs);
        if is_watched(i) {
            plan.forward_watched(x.view()).unwrap();
        } else {
            plan.forward(x.view()).unwrap();
        }
        trained.losses.push(plan.loss_of(Targets::Classes(&labels)).unwrap().to_bits());
        plan.backward(x.view()).unwrap();
        let output_of = |layer| plan.output_of(layer).map(|y| bits(y.data())).filter(|_| is_watched(i));
        trained.outputs.push((0..plan.layers()).map(output_of).collect());
        trained.gradients.push(parameters(&plan));
        plan.update(optimizer).unwrap();
    }
    trained.parameters = parameters(&plan);
    let model = plan.into_model();
    model.visit(&mut |layer, p| {
        trained.in_model.push((format!("{layer}.{}", p.name), bits(p.value), bits(p.grad)));
    });
    trained
}

#[derive(Debug, Default, PartialEq)]
struct Trained {
    losses: Vec<u64>,
    outputs: Vec<Vec<Option<Vec<u64>>>>,
    gradients: Vec<Vec<Shown>>,
    parameters: Vec<Shown>,
    in_model: Vec<Shown>,
}

/// Biases that a normalisation follows have other values in the two runs, and a gradient that is exactly zero in one of them.
fn without_cancelled(mut all: Vec<Shown>, stack: &Stack) -> Vec<Shown> {
    let cancels = |layer: usize| {
        matches!(stack.kinds[layer], Kind::Linear(_)) && matches!(stack.kinds.get(layer + 1), Some(Kind::Norm(..)))
    };
    all.retain(|(name, ..)| !(name.ends_with(".bias") && cancels(name.split('.').next().unwrap().parse().unwrap())));
    all
}

fn fused_is_layer_by_layer<T: Element>(stack: &Stack, sizes: &[usize]) {
    // A normalisation needs two rows.
    let least = if stack.kinds.iter().any(|kind| matches!(kind, Kind::Norm(..))) { 2 } else { 1 };
    let sizes: Vec<usize> = sizes.iter().map(|&n| n.max(least)).collect();
    let largest = Shape::new(&[*sizes.iter().max().unwrap(), stack.inputs]);
    let batches: Vec<Tensor<T>> =
        sizes.iter().enumerate().map(|(i, &n)| normals([n, stack.inputs], stack.seed + i as u64)).collect();
    let plan = |zero, fusion| Plan::new(stack.model::<T>(zero), largest, Loss::CrossEntropy, fusion).unwrap();
    for isa in Isa::available() {
        with_isa(isa, || {
            let run = |zero, fusion, is_watched| {
                let mut sgd = Sgd::new(0.1).unwrap();
                let mut trained = trained(plan(zero, fusion), &batches, stack.outputs(), &mut sgd, is_watched);
                assert_eq!(trained.parameters, trained.in_model, "what a plan and its model hold");
                trained.in_model.clear();
                trained.parameters = without_cancelled(trained.parameters, stack);
                trained.gradients = trained.gradients.into_iter().map(|all| without_cancelled(all, stack)).collect();
                trained
            };
            // A bias that is not added is one that is not there.
            let (fused, plain) = (run(false, Fusion::On, |_| true), run(true, Fusion::Off, |_| true));
            assert!(fused.outputs.iter().flatten().all(Option::is_some));
            assert_eq!(fused, plain, "{isa}: {stack:?}");
            // What observers see changes nothing.
            let without = |mut trained: Trained| {
                trained.outputs.clear();
                trained
            };
            assert_eq!(without(run(false, Fusion::On, |_| false)), without(fused), "{isa}, not watched: {stack:?}");
        });
    }
}

fn kind() -> impl Strategy<Value = Kind> {
    prop_oneof![
        3 => any::<bool>().prop_map(Kind::Linear),
        3 => (any::<bool>(), any::<bool>()).prop_map(|(affine, track)| Kind::Norm(affine, track)),
        3 => Just(Kind::Relu),
        1 => Just(Kind::Scale),
    ]
}

fn stack() -> impl Strategy<Value = Stack> {
    let width = || select(vec![1usize, 2, 3, 7, 8, 15, 16, 17, 31, 33]);
    let widths = prop::collection::vec(width(), 1..4);
    (width(), widths, prop::collection::vec(kind(), 1..8), any::<u64>()).prop_map(|(inputs, widths, kinds, seed)| {
        Stack {
            inputs,
            widths,
            kinds,
            // Room to count on.
            seed: seed / 2,
        }
    })
}

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, rng_seed: RngSeed::Fixed(5), ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config(120))]

    #[test]
    fn fused_is_layer_by_layer_in_single_precision(stack in stack(), sizes in prop::collection::vec(1usize..35, 1..4)) {
        fused_is_layer_by_layer::<f32>(&stack, &sizes);
    }

    #[test]
    fn fused_is_layer_by_layer_in_double_precision(stack in stack(), sizes in prop::collection::vec(1usize..35, 1..4)) {
        fused_is_layer_by_layer::<f64>(&stack, &sizes);
    }
}

/// With a bias in front of it, a normalisation gives what it gives without, to within what is stated.
#[test]
fn a_cancelled_bias_changes_outputs_by_roundings_alone() {
    for seed in 0..20 {
        let (n, inputs, outputs) = (2 + seed * 3, 9, 5);
        let x = normals::<f32>([n, inputs], seed as u64);
        let norm = || BatchNorm1d::<f32>::new(outputs).unwrap();
        let mut linear = Linear::new(inputs, outputs, &mut Rng::new(seed as u64, "init")).unwrap();
        let bias: Vec<f32> = vec![0.1, 1.0, 10.0, 100.0, 1000.0];
        linear.set_bias(&bias).unwrap();
        let weight = linear.weight();
        let run = |fusion| {
            let mut linear = Linear::new(inputs, outputs, &mut Rng::new(1, "any")).unwrap();
            linear.set_weight(&weight).unwrap();
            linear.set_bias(&bias).unwrap();
            let model = Sequential::<f32>::new().push(linear).push(norm());
            let mut plan = Plan::new(model, x.shape(), Loss::Mse, fusion).unwrap();
            plan.forward(x.view()).unwrap();
            let z = plan.output_of(0).unwrap().data().to_vec();
            let y = plan.output_of(1).unwrap().data().to_vec();
            let model = plan.into_model();
            let mut space = model.infer_space(x.shape()).unwrap();
            let evaluated = model.infer(x.view(), &mut space).unwrap().data().to_vec();
            (z, y, evaluated)
        };
        let ((product, fused, fused_after), (_, plain, plain_after)) = (run(Fusion::On), run(Fusion::Off));
        let u = f64::from(f32::EPSILON) / 2.0;
        for c in 0..outputs {
            let values: Vec<f64> = (0..n).map(|i| f64::from(product[i * outputs + c])).collect();
            let mean = values.iter().sum::<f64>() / n as f64;
            let var = values.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n as f64;
            let (rstd, bias) = (1.0 / (var + 1e-5).sqrt(), f64::from(bias[c]).abs());
            let largest = values.iter().fold(0f64, |most, x| most.max(x.abs()));
            for i in 0..n {
                let at = i * outputs + c;
                let (found, wanted) = (f64::from(fused[at]), f64::from(plain[at]));
                // A value and its mean round when the bias is added; so do the others, which moves the variance; and the bound of the
                // normalisation itself, once for each run.
                let allowed =
                    4.0 * u * (largest + bias) * rstd * (1.0 + wanted.abs()) + 2.0 * 40.0 * u * (1.0 + wanted.abs());
                assert!((found - wanted).abs() <= allowed, "{found} and {wanted}, {allowed} allowed");
                // Evaluation, whose running mean has the bias.
                let (found, wanted) = (f64::from(fused_after[at]), f64::from(plain_after[at]));
                let allowed = 16.0 * u * (largest + bias + 1.0) * (1.0 + wanted.abs());
                assert!((found - wanted).abs() <= allowed, "evaluation: {found} and {wanted}, {allowed} allowed");
            }
        }
    }
}

#[test]
fn a_cancelled_bias_has_no_gradient_at_all() {
    let stack = Stack {
        inputs: 7,
        widths: vec![5, 3],
        kinds: vec![Kind::Linear(true), Kind::Norm(true, true), Kind::Linear(true)],
        seed: 1,
    };
    let mut plan = Plan::new(stack.model::<f32>(false), [6, 7].into(), Loss::CrossEntropy, Fusion::On).unwrap();
    let x = normals([6, 7], 2);
    let before = parameters(&plan);
    for _ in 0..3 {
        plan.forward(x.view()).unwrap();
        plan.loss_of(Targets::Classes(&classes(6, 3))).unwrap();
        plan.backward(x.view()).unwrap();
        plan.update(&mut Adam::new(0.1).unwrap()).unwrap();
    }
    let after = parameters(&plan);
    for ((name, before, _), (_, after, grad)) in before.iter().zip(&after) {
        if name == "0.bias" {
            assert!(grad.iter().all(|&bits| bits == 0) && before == after);
        } else {
            assert!(before != after && grad.iter().any(|&bits| bits != 0), "{name}");
        }
    }
}

#[test]
fn images_are_normalised_and_gated_in_one_pass() {
    for layout in [ImageLayout::Nchw, ImageLayout::Nhwc] {
        let shape: Shape = if layout == ImageLayout::Nchw { [4, 3, 5, 2].into() } else { [4, 5, 2, 3].into() };
        let run = |fusion| {
            let model = Sequential::<f64>::new()
                .push(Relu::new())
                .push(BatchNorm2d::new(3, layout).unwrap())
                .push(Relu::new())
                .push(BatchNorm2d::new(3, layout).unwrap());
            let mut plan = Plan::new(model, shape, Loss::Mse, fusion).unwrap();
            let x = normals(shape, 1);
            let target = normals::<f64>(shape, 2);
            let mut losses = Vec::new();
            for _ in 0..3 {
                plan.forward(x.view()).unwrap();
                losses.push(plan.loss_of(Targets::Values(target.data())).unwrap().to_bits());
                plan.backward(x.view()).unwrap();
                plan.update(&mut Sgd::new(0.5).unwrap()).unwrap();
            }
            (losses, parameters(&plan))
        };
        assert_eq!(run(Fusion::On), run(Fusion::Off), "{layout:?}");
    }
}

#[test]
fn a_smaller_batch_is_that_of_a_smaller_plan() {
    let stack = Stack {
        inputs: 20,
        widths: vec![17, 9, 5],
        kinds: vec![
            Kind::Linear(true),
            Kind::Norm(true, true),
            Kind::Relu,
            Kind::Linear(true),
            Kind::Relu,
            Kind::Scale,
            Kind::Linear(false),
        ],
        seed: 3,
    };
    // 257 rows cut k in two blocks of 136, 256 in none.
    for largest in [64, 257] {
        for rows in [2, 3, 31, 63, 64, 256, 257].into_iter().filter(|&rows| rows <= largest) {
            let run = |largest: usize| {
                let mut plan =
                    Plan::new(stack.model::<f32>(false), [largest, 20].into(), Loss::CrossEntropy, Fusion::On).unwrap();
                // Something else was there before.
                let (first, x) = (normals([largest, 20], 8), normals([rows, 20], 9));
                plan.forward(first.view()).unwrap();
                plan.loss_of(Targets::Classes(&classes(largest, 5))).unwrap();
                plan.backward(first.view()).unwrap();
                plan.forward_watched(x.view()).unwrap();
                let loss = plan.loss_of(Targets::Classes(&classes(rows, 5))).unwrap();
                plan.backward(x.view()).unwrap();
                let outputs: Vec<_> = (0..7).map(|layer| bits(plan.output_of(layer).unwrap().data())).collect();
                (loss.to_bits(), outputs, parameters(&plan))
            };
            assert_eq!(run(largest), run(rows), "{rows} of {largest}");
        }
    }
}

#[test]
fn what_is_not_watched_is_not_kept() {
    let kinds = vec![Kind::Linear(true), Kind::Norm(true, true), Kind::Relu, Kind::Linear(true), Kind::Relu];
    let stack = Stack { inputs: 4, widths: vec![3, 2], kinds, seed: 1 };
    let mut plan = Plan::new(stack.model::<f32>(false), [5, 4].into(), Loss::CrossEntropy, Fusion::On).unwrap();
    let x = normals([5, 4], 1);
    let kept = |plan: &Plan<f32>| (0..5).filter(|&layer| plan.output_of(layer).is_some()).collect::<Vec<_>>();
    assert!(kept(&plan).is_empty());
    plan.forward(x.view()).unwrap();
    assert_eq!(kept(&plan), [0, 2, 4]);
    plan.forward_watched(x.view()).unwrap();
    assert_eq!(kept(&plan), [0, 1, 2, 3, 4]);
}

/// `[n, 2 c]` to `[2 n, c]`.
struct Halves;

impl<T: Element> Layer<T> for Halves {
    fn describe(&self) -> String {
        "Halves".to_string()
    }

    fn output_shape(&self, input: Shape) -> Result<Shape> {
        Ok([2 * input.dims()[0], input.dims()[1] / 2].into())
    }

    fn infer(&self, x: TensorRef<'_, T>, mut y: TensorMut<'_, T>, _scratch: &mut [T]) -> Result<()> {
        y.data().copy_from_slice(x.data());
        Ok(())
    }

    fn forward(&mut self, x: TensorRef<'_, T>, y: TensorMut<'_, T>, _saved: &mut [T], scratch: &mut [T]) -> Result<()> {
        self.infer(x, y, scratch)
    }

    fn backward(
        &mut self,
        _x: TensorRef<'_, T>,
        dy: TensorRef<'_, T>,
        dx: Option<TensorMut<'_, T>>,
        _saved: &[T],
        _scratch: &mut [T],
    ) -> Result<()> {
        if let Some(mut dx) = dx {
            dx.data().copy_from_slice(dy.data());
        }
        Ok(())
    }
}

#[test]
fn a_layer_with_other_rows_is_refused_by_its_name() {
    let model = Sequential::<f32>::new().push(Relu::new()).push(Halves);
    let error = Plan::new(model, [4, 6].into(), Loss::Mse, Fusion::On).map(drop).unwrap_err().to_string();
    assert_eq!(error, "layer 1: Halves: rows of the output: expected as many as of the input, found [8, 3] for [4, 6]");
}

// ---- What a plan says of itself.

#[test]
fn a_plan_names_its_kernels_and_times_each() {
    let kinds = vec![
        Kind::Linear(true),
        Kind::Norm(true, true),
        Kind::Relu,
        Kind::Scale,
        Kind::Linear(false),
        Kind::Relu,
        Kind::Relu,
        Kind::Norm(false, true),
        Kind::Linear(true),
    ];
    let stack = Stack { inputs: 20, widths: vec![16, 12, 5], kinds, seed: 1 };
    for fusion in [Fusion::On, Fusion::Off] {
        let mut plan = Plan::new(stack.model::<f32>(false), [8, 20].into(), Loss::CrossEntropy, fusion).unwrap();
        let kernels: Vec<&str> = plan.explain().rows().iter().map(|row| row.kernel).collect();
        match fusion {
            Fusion::On => assert_eq!(
                kernels,
                [
                    "gemm",
                    "batchnorm",
                    "layer",
                    "gemm",
                    "relu",
                    "batchnorm",
                    "gemm",
                    "softmax_xent",
                    "gemm",
                    "gemm",
                    "batchnorm",
                    "relu",
                    "gemm",
                    "gemm",
                    "layer",
                    "batchnorm",
                    "gemm",
                    "update"
                ]
            ),
            Fusion::Off => assert_eq!(kernels.iter().filter(|&&kernel| kernel == "layer").count(), 18),
        }
        assert!(plan.explain().rows().iter().all(|row| row.seconds.is_none()));
        plan.measure();
        let (x, mut adam) = (normals([8, 20], 1), Adam::new(0.1).unwrap());
        for _ in 0..3 {
            // One that is left in the middle counts for nothing.
            plan.forward(x.view()).unwrap();
            plan.forward(x.view()).unwrap();
            plan.loss_of(Targets::Classes(&classes(8, 5))).unwrap();
            plan.backward(x.view()).unwrap();
            plan.update(&mut adam).unwrap();
        }
        let explanation = plan.explain();
        assert!(explanation.rows().iter().all(|row| row.seconds.is_some_and(|s| s > 0.0)), "{explanation}");
        let text = explanation.to_string();
        assert_eq!(text.lines().count(), explanation.rows().len() + 3, "{text}");
        plan.stop_measuring();
        assert!(plan.explain().rows().iter().all(|row| row.seconds.is_none()));
    }
}

#[test]
fn flops_and_bytes_by_hand() {
    let kinds = vec![Kind::Linear(true), Kind::Norm(true, true), Kind::Relu, Kind::Linear(true)];
    let stack = Stack { inputs: 784, widths: vec![32, 10], kinds, seed: 1 };
    let plan = Plan::new(stack.model::<f32>(false), [64, 784].into(), Loss::CrossEntropy, Fusion::On).unwrap();
    let explanation = plan.explain();
    // Forward and dW of both, dX of the second.
    assert_eq!(explanation.product_flops(), 2 * 64 * (2 * 784 * 32 + 3 * 32 * 10));
    assert_eq!(explanation.parameters(), 784 * 32 + 32 + 2 * 32 + 32 * 10 + 10);
    let first = &explanation.rows()[0];
    assert_eq!((first.shape.as_str(), first.bytes), ("64x784x32", 4 * (64 * 784 + 784 * 32 + 64 * 32)));
    assert_eq!(first.fused_with, "BatchNorm1d(32), ReLU; the bias cancels");
}

// ---- As part of training.

#[test]
fn accuracy_and_bits_hold_with_fusion_and_without() {
    // The same losses to within what the cancelled biases round, for any number of threads.
    // Rows and parameters enough that there are parts to share.
    let widths = [40, 300, 12, 4];
    let model = || {
        let rng = &mut Rng::new(3, "init");
        let mut model = Sequential::<f32>::new();
        for pair in widths.windows(2) {
            model = model.push(Linear::new(pair[0], pair[1], rng).unwrap());
            if pair[1] != 4 {
                model = model.push(BatchNorm1d::new(pair[1]).unwrap()).push(Relu::new());
            }
        }
        model
    };
    let x = normals::<f32>([300, 40], 1);
    let labels = classes(300, 4);
    let run = |fusion, threads: &Threads| -> Vec<f64> {
        let plan = Plan::new(model(), [300, 40].into(), Loss::CrossEntropy, fusion).unwrap();
        let mut trainer = Trainer::of_plan(plan, Adam::new(0.01).unwrap());
        enter(threads, || (0..60).map(|_| trainer.step(x.view(), Targets::Classes(&labels), None).unwrap()).collect())
    };
    let (fused, plain) = (run(Fusion::On, &Threads::one()), run(Fusion::Off, &Threads::one()));
    // Before the first update the outputs differ by roundings; a hundred of them in a loss of about 1.
    assert!((fused[0] - plain[0]).abs() < 100.0 * f64::from(f32::EPSILON), "{} and {}", fused[0], plain[0]);
    assert!(fused[59] < 0.1 * fused[0] && plain[59] < 0.1 * plain[0], "both learn: {} and {}", fused[59], plain[59]);
    for count in [2, 4] {
        let threads = Threads::new(count).unwrap().fork_from(0);
        let before = migrated();
        for attempt in 1..=50 {
            assert_eq!(run(Fusion::On, &threads), fused, "{count} threads");
            assert_eq!(run(Fusion::Off, &threads), plain, "{count} threads");
            if migrated() > before {
                break;
            }
            assert!(attempt < 50, "{count} threads: one worker did everything, so nothing was shown");
        }
    }
}
