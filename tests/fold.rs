//! Folded models: the answers of the unfolded ones within the derived bound, and everything that stays as it was.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails, in its helpers too")]

use evenkeel::layers::{AffineMap, BatchNorm1d, BatchNorm2d, BatchNormOptions, Layer, Linear, PerChannel, Relu};
use evenkeel::simd::{Element, Isa, with_isa};
use evenkeel::tensor::{ImageLayout, Shape, Tensor, TensorMut, TensorRef};
use evenkeel::{Error, Result, Rng, Sequential};
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::RngSeed;

/// Sets what a BatchNorm has learnt and counted; what it has not is left out.
fn set<T: Element>(layer: &mut dyn Layer<T>, gamma: &[f64], beta: &[f64], mean: &[f64], var: &[f64]) {
    let fill = |to: &mut [T], from: &[f64]| to.iter_mut().zip(from).for_each(|(to, &from)| *to = T::from_f64(from));
    layer.visit_mut(&mut |p| fill(p.value, if p.name == "weight" { gamma } else { beta }));
    layer.visit_buffers_mut(&mut |name, values| fill(values, if name == "running_mean" { mean } else { var }));
}

fn linear<T: Element>(inputs: usize, outputs: usize, seed: u64) -> Linear<T> {
    Linear::new(inputs, outputs, &mut Rng::new(seed, "linear")).unwrap()
}

fn infer<T: Element>(model: &Sequential<T>, x: &Tensor<T>) -> Result<Vec<T>> {
    let mut space = model.infer_space(x.shape())?;
    Ok(model.infer(x.view(), &mut space)?.data().to_vec())
}

fn normals<T: Element>(shape: impl Into<Shape>, seed: u64) -> Tensor<T> {
    let (mut tensor, mut rng) = (Tensor::zeros(shape).unwrap(), Rng::new(seed, "normals"));
    tensor.data_mut().fill_with(|| T::from_f64(rng.normal()));
    tensor
}

/// What the layers are, and the names of their parameters.
fn names<T: Element>(model: &Sequential<T>) -> (Vec<String>, Vec<String>) {
    let mut parameters = Vec::new();
    model.visit(&mut |i, p| parameters.push(format!("{i}.{}", p.name)));
    (model.layers().map(|layer| layer.describe()).collect(), parameters)
}

// ---- Worked by hand.

fn worked_by_hand<T: Element>() {
    let numbers = |values: &[f64]| values.iter().map(|&v| T::from_f64(v)).collect::<Vec<T>>();
    // sqrt(var + eps) is 2 and 4.
    let options = BatchNormOptions { eps: 0.5, ..BatchNormOptions::default() };
    let statistics = (&[1.0, 5.0][..], &[3.5, 15.5][..]);
    for (bias, affine, weight, shift) in [
        // s = 3/2 and 1/8; b' = 3/2 (1 - 1) - 1 and 1/8 (-3 - 5) + 2.
        (Some([1.0, -3.0]), true, [3.0, -1.5, 0.0625, 0.5], [-1.0, 1.0]),
        (None, true, [3.0, -1.5, 0.0625, 0.5], [-2.5, 1.375]),
        // s = 1/2 and 1/4.
        (Some([1.0, -3.0]), false, [1.0, -0.5, 0.125, 1.0], [0.0, -2.0]),
        (None, false, [1.0, -0.5, 0.125, 1.0], [-0.5, -1.25]),
    ] {
        let mut first = linear::<T>(2, 2, 1);
        first.set_weight(&numbers(&[2.0, -1.0, 0.5, 4.0])).unwrap();
        match bias {
            Some(bias) => first.set_bias(&numbers(&bias)).unwrap(),
            None => first = first.without_bias(),
        }
        let mut norm = BatchNorm1d::with_options(2, BatchNormOptions { affine, ..options }).unwrap();
        set(&mut norm, &[3.0, 0.5], &[-1.0, 2.0], statistics.0, statistics.1);
        let mut model = Sequential::new().push(first).push(norm).push(Relu::new()).push(linear(2, 1, 2));
        let x = Tensor::from_slice([2, 2], &numbers(&[1.0, 0.0, -2.0, 4.0])).unwrap();
        let before = infer(&model, &x).unwrap();
        model.fold().unwrap();
        let parameters = ["0.weight", "0.bias", "2.weight", "2.bias"].map(String::from).to_vec();
        let layers = ["Linear(2, 2)", "ReLU", "Linear(2, 1)"].map(String::from).to_vec();
        assert_eq!(names(&model), (layers, parameters));
        model.visit(&mut |i, p| match (i, p.name) {
            // In the layer's own order, [in, out].
            (0, "weight") => assert_eq!(p.value, numbers(&[weight[0], weight[2], weight[1], weight[3]])),
            (0, _) => assert_eq!(p.value, numbers(&shift)),
            _ => {}
        });
        // With such numbers nothing rounds before the last layer.
        assert_eq!(infer(&model, &x).unwrap(), before);
    }
}

#[test]
fn worked_by_hand_in_single_precision() {
    worked_by_hand::<f32>();
}

#[test]
fn worked_by_hand_in_double_precision() {
    worked_by_hand::<f64>();
}

// ---- Any stack.

#[derive(Clone, Debug)]
struct Block {
    width: usize,
    bias: bool,
    /// One BatchNorm after the other: whether it is affine, and its eps.
    norms: Vec<(bool, f64)>,
    relu: bool,
}

#[derive(Clone, Debug)]
struct Stack {
    rows: usize,
    inputs: usize,
    blocks: Vec<Block>,
    seed: u64,
}

fn any_stack() -> impl Strategy<Value = Stack> {
    let width = || select(&[1, 2, 3, 5, 8, 16, 17, 33][..]);
    let norm = (any::<bool>(), select(&[1e-5, 1e-2, 1.0][..]));
    let norms = prop_oneof![1 => Just(vec![]), 6 => norm.clone().prop_map(|norm| vec![norm]), 1 => prop::collection::vec(norm, 2)];
    let block = (width(), any::<bool>(), norms, any::<bool>()).prop_map(|(width, bias, norms, relu)| Block {
        width,
        bias,
        norms,
        relu,
    });
    (1..6usize, prop_oneof![4 => width(), 1 => Just(300)], prop::collection::vec(block, 1..=3), 0..1u64 << 32)
        .prop_map(|(rows, inputs, blocks, seed)| Stack { rows, inputs, blocks, seed })
}

/// An output of the specification, and how far the answers of both models may be from it and from each other.
#[derive(Clone, Copy)]
struct Near {
    value: f64,
    off: f64,
}

/// The numbers of a BatchNorm.
struct Norm {
    s: Vec<f64>,
    mean: Vec<f64>,
    beta: Vec<f64>,
}

impl Norm {
    /// As it could have been learnt: of either sign and zero, with variances down to 1e-3.
    fn draw<T: Element>(width: usize, affine: bool, eps: f64, rng: &mut Rng) -> (Self, BatchNorm1d<T>) {
        let options = BatchNormOptions { eps, affine, ..BatchNormOptions::default() };
        let mut layer = BatchNorm1d::<T>::with_options(width, options).unwrap();
        let mut draw =
            |f: &dyn Fn(&mut Rng) -> f64| -> Vec<f64> { (0..width).map(|_| T::from_f64(f(rng)).to_f64()).collect() };
        let mut gamma = draw(&|rng| if rng.below(8) == 0 { 0.0 } else { rng.normal() });
        let (mut beta, mean) = (draw(&|rng| rng.normal()), draw(&|rng| 3.0 * rng.normal()));
        let var = draw(&|rng| 10f64.powf(rng.range(-3.0, 2.0)));
        set(&mut layer, &gamma, &beta, &mean, &var);
        if !affine {
            (gamma, beta) = (vec![1.0; width], vec![0.0; width]);
        }
        let s = gamma.iter().zip(&var).map(|(gamma, var)| gamma / (var + eps).sqrt()).collect();
        (Norm { s, mean, beta }, layer)
    }
}

impl Stack {
    /// The model, and what it should answer.
    fn model<T: Element>(&self, x: &[T]) -> (Sequential<T>, Vec<Near>) {
        let rng = &mut Rng::new(self.seed, "stack");
        let (mut k, mut model) = (self.inputs, Sequential::new());
        let mut rows: Vec<Vec<Near>> =
            x.chunks(k).map(|row| row.iter().map(|x| Near { value: x.to_f64(), off: 0.0 }).collect()).collect();
        for block in &self.blocks {
            let linear = Linear::<T>::new(k, block.width, rng).unwrap();
            let linear = if block.bias { linear } else { linear.without_bias() };
            let weight: Vec<f64> = linear.weight().iter().map(|w| w.to_f64()).collect();
            let bias: Vec<f64> = (0..block.width).map(|o| linear.bias().map_or(0.0, |b| b[o].to_f64())).collect();
            model = model.push(linear);
            let mut norms = Vec::new();
            for &(affine, eps) in &block.norms {
                let (norm, layer) = Norm::draw(block.width, affine, eps, rng);
                norms.push(norm);
                model = model.push(layer);
            }
            if block.relu {
                model = model.push(Relu::new());
            }
            let g = (k.min(256) + k / 256 + 3) as f64;
            // Every fold has its bound; where there is none, both models round the same products.
            let bound = norms.len().max(1) as f64 * (2.0 * g + 20.0) * T::ROUNDOFF;
            let output = |row: &[Near], o: usize| {
                let terms = || weight[o * k..][..k].iter().zip(row);
                let mut value = terms().map(|(w, x)| w * x.value).sum::<f64>() + bias[o];
                let mut off: f64 = terms().map(|(w, x)| w.abs() * x.off).sum();
                let mut magnitude = terms().map(|(w, x)| (w * x.value).abs()).sum::<f64>() + off + bias[o].abs();
                for Norm { s, mean, beta } in &norms {
                    value = s[o] * (value - mean[o]) + beta[o];
                    off *= s[o].abs();
                    magnitude = s[o].abs() * (magnitude + mean[o].abs()) + beta[o].abs();
                }
                let value = if block.relu { value.max(0.0) } else { value };
                Near { value, off: off + bound * magnitude }
            };
            rows = rows.iter().map(|row| (0..block.width).map(|o| output(row, o)).collect()).collect();
            k = block.width;
        }
        (model, rows.concat())
    }

    fn check<T: Element>(&self) -> std::result::Result<(), TestCaseError> {
        let x = normals::<T>([self.rows, self.inputs], self.seed);
        let [(plain, wanted), (mut folded, _)] = [(); 2].map(|()| self.model(x.data()));
        folded.fold().unwrap();
        let layers = self.blocks.iter().map(|block| 1 + usize::from(block.relu)).sum::<usize>();
        prop_assert_eq!(folded.len(), layers, "every BatchNorm is behind a Linear");
        let [before, after] = [&plain, &folded].map(|model| infer(model, &x).unwrap());
        for (i, wanted) in wanted.iter().enumerate() {
            let (before, after) = (before[i].to_f64(), after[i].to_f64());
            prop_assert!(
                (after - before).abs() <= wanted.off,
                "{}: {after:e} and {before:e}, allowed {:e}",
                T::NAME,
                wanted.off
            );
            prop_assert!(
                (after - wanted.value).abs() <= wanted.off,
                "{}: {after:e}, not {:e}, allowed {:e}",
                T::NAME,
                wanted.value,
                wanted.off
            );
        }
        // Prepared, the same bits; folded again, nothing.
        folded.prepare().unwrap();
        folded.fold().unwrap();
        prop_assert_eq!(folded.len(), layers);
        let prepared = infer(&folded, &x).unwrap();
        prop_assert!(prepared.iter().zip(&after).all(|(a, b)| a.bits() == b.bits()));
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 150,
        rng_seed: RngSeed::Fixed(8),
        // With a fixed seed there is nothing to remember between runs.
        failure_persistence: None,
        max_shrink_iters: 200,
        ..ProptestConfig::default()
    })]

    #[test]
    fn any_stack_answers_within_the_bound(stack in any_stack()) {
        for isa in Isa::available() {
            with_isa(isa, || stack.check::<f32>().and_then(|()| stack.check::<f64>()))?;
        }
    }
}

/// An error of one unit roundoff, not of two.
#[test]
fn what_is_folded_is_rounded_once() {
    let (width, rng) = (33, &mut Rng::new(6, "once"));
    let first = linear::<f32>(40, width, 6);
    let (weight, bias) = (first.weight(), first.bias().unwrap().to_vec());
    let (Norm { s, mean, beta }, norm) = Norm::draw(width, true, 1e-5, rng);
    let mut model = Sequential::new().push(first).push(norm);
    model.fold().unwrap();
    let near = |found: f32, wanted: f64, magnitude: f64| {
        let limit = f32::ROUNDOFF * wanted.abs() + 8.0 * f64::ROUNDOFF * magnitude;
        assert!((f64::from(found) - wanted).abs() <= limit, "{found:e}, not {wanted:e}");
    };
    model.visit(&mut |_, p| {
        for (at, &found) in p.value.iter().enumerate() {
            let o = at % width;
            if p.name == "weight" {
                let wanted = s[o] * f64::from(weight[o * 40 + at / width]);
                near(found, wanted, wanted.abs());
            } else {
                let scaled = s[o] * (f64::from(bias[o]) - mean[o]);
                near(found, scaled + beta[o], scaled.abs() + beta[o].abs());
            }
        }
    });
}

// ---- What stays.

#[track_caller]
fn stays(what: &str, model: Sequential<f64>, x: &Tensor<f64>) {
    let mut model = model;
    let (before, layers) = (infer(&model, x), names(&model));
    model.fold().unwrap();
    assert_eq!(names(&model), layers, "{what}");
    match (infer(&model, x), before) {
        (Ok(after), Ok(before)) => {
            assert!(
                after.iter().zip(&before).all(|(a, b)| a.to_bits() == b.to_bits()),
                "{what}: {after:?}, {before:?}"
            );
        }
        (Err(after), Err(before)) => assert_eq!(after.to_string(), before.to_string(), "{what}"),
        (after, before) => panic!("{what}: {after:?}, and {before:?} before"),
    }
}

#[test]
fn what_cannot_be_folded_stays() {
    let x = normals([3, 2], 1);
    let behind = |norm: BatchNorm1d<f64>| Sequential::new().push(linear(2, 2, 1)).push(norm);
    let with = |options| BatchNorm1d::with_options(2, options).unwrap();
    let normal = BatchNormOptions::default();
    stays("nothing", Sequential::new(), &x);
    stays("one Linear", Sequential::new().push(linear(2, 2, 1)), &x);
    stays("a BatchNorm in front", Sequential::new().push(with(normal)).push(linear(2, 2, 1)), &x);
    let far = Sequential::new().push(linear(2, 2, 1)).push(Relu::new()).push(with(normal));
    stays("a BatchNorm behind a ReLU", far, &x);
    stays("no running statistics", behind(with(BatchNormOptions { track_running_stats: false, ..normal })), &x);
    // What evaluation refuses it still refuses.
    for (eps, var) in [(0.0, 0.0), (1e-5, -1.0), (1.0, -1.0)] {
        let mut norm = with(BatchNormOptions { eps, ..normal });
        set(&mut norm, &[1.0; 2], &[0.0; 2], &[0.0; 2], &[1.0, var]);
        assert_eq!(norm.per_channel(), None);
        let model = behind(norm);
        assert!(matches!(infer(&model, &x), Err(Error::Invalid { .. })));
        stays("a variance without a root", model, &x);
    }
    // What is not finite, or would not be.
    for (gamma, mean, var) in
        [(1.0, 0.0, f64::NAN), (f64::NAN, 0.0, 1.0), (1.0, f64::INFINITY, 1.0), (f64::MAX, 0.0, 1e-300)]
    {
        let mut norm = with(BatchNormOptions { eps: 0.0, ..normal });
        set(&mut norm, &[1.0, gamma], &[0.0; 2], &[0.0, mean], &[1.0, var]);
        stays("not finite", behind(norm), &x);
    }
    // Of another width, and of images.
    stays("another width", behind(BatchNorm1d::new(3).unwrap()), &x);
    for layout in [ImageLayout::Nchw, ImageLayout::Nhwc] {
        let norm = BatchNorm2d::new(2, layout).unwrap();
        stays("of images", Sequential::new().push(linear(2, 2, 1)).push(norm), &x);
    }
}

/// A huge scale in f32: the product with the weights overflows where the two layers do not.
#[test]
fn a_weight_that_would_overflow_keeps_its_batchnorm() {
    for (weight, is_folded) in [(1e9, false), (1.0, true)] {
        let mut first = linear::<f32>(1, 1, 1);
        first.set_weight(&[weight]).unwrap();
        let mut norm = BatchNorm1d::new(1).unwrap();
        set(&mut norm, &[1e30], &[0.0], &[0.0], &[1.0]);
        let mut model = Sequential::new().push(first).push(norm);
        model.fold().unwrap();
        assert_eq!(model.len() == 1, is_folded);
        let y = infer(&model, &Tensor::from_slice([1, 1], &[1e-9]).unwrap()).unwrap();
        assert!(y[0].is_finite());
    }
}

/// A channel of infinite variance is its shift, folded or not.
#[test]
fn an_infinite_variance_leaves_the_shift() {
    let mut norm = BatchNorm1d::new(2).unwrap();
    set(&mut norm, &[2.0; 2], &[0.25, -4.0], &[1.0; 2], &[f64::INFINITY; 2]);
    let mut model = Sequential::<f64>::new().push(linear(3, 2, 1)).push(norm);
    let x = normals([1, 3], 2);
    assert_eq!(infer(&model, &x).unwrap(), [0.25, -4.0]);
    model.fold().unwrap();
    assert_eq!((model.len(), infer(&model, &x).unwrap()), (1, vec![0.25, -4.0]));
}

// ---- Around it.

/// Wide enough to be packed.
fn wide(seed: u64) -> Sequential<f32> {
    let mut norm = BatchNorm1d::new(150).unwrap();
    norm.visit_buffers_mut(&mut |_, values| values.iter_mut().enumerate().for_each(|(i, v)| *v = 0.5 + i as f32));
    Sequential::new().push(linear(200, 150, seed)).push(norm).push(Relu::new()).push(linear(150, 3, seed))
}

#[test]
fn a_model_may_be_prepared_before_it_is_folded_and_after() {
    let x = normals([4, 200], 3);
    let mut folded = wide(1);
    folded.fold().unwrap();
    let answers = infer(&folded, &x).unwrap();
    folded.prepare().unwrap();
    assert_eq!(infer(&folded, &x).unwrap(), answers);
    let mut prepared = wide(1);
    prepared.prepare().unwrap();
    let before = infer(&prepared, &x).unwrap();
    prepared.fold().unwrap();
    assert_eq!(infer(&prepared, &x).unwrap(), answers);
    assert_ne!(answers, before, "the same bits are not to be expected");
}

#[test]
fn a_folded_model_trains_with_what_is_left() {
    let x = normals([4, 200], 3);
    let mut model = wide(1);
    let mut old = model.workspace(x.shape()).unwrap();
    model.forward(x.view(), &mut old).unwrap();
    old.output_and_gradient().unwrap().1.data().fill(1.0);
    model.backward(x.view(), &mut old, None).unwrap();
    model.fold().unwrap();
    // The gradients of the numbers that are gone are gone.
    model.visit(&mut |i, p| assert_eq!(i == 0, p.grad.iter().all(|&g| g == 0.0), "{i}.{}", p.name));
    assert!(matches!(model.forward(x.view(), &mut old), Err(Error::Shape { .. })));
    let mut space = model.workspace(x.shape()).unwrap();
    model.forward(x.view(), &mut space).unwrap();
    assert_eq!(space.output_of(2).data(), infer(&model, &x).unwrap(), "nothing is normalised any more");
    space.output_and_gradient().unwrap().1.data().fill(1.0);
    model.backward(x.view(), &mut space, None).unwrap();
    model.visit(&mut |i, p| assert!(p.grad.iter().any(|&g| g != 0.0), "{i}.{}", p.name));
}

/// `y = w x + b` per channel of images, which takes others of its layout in, or refuses with an error.
struct Own {
    w: [f64; 2],
    b: [f64; 2],
    layout: Option<ImageLayout>,
    refuses: bool,
}

impl Layer<f64> for Own {
    fn describe(&self) -> String {
        "Own".to_string()
    }

    fn output_shape(&self, input: Shape) -> Result<Shape> {
        Ok(input)
    }

    fn per_channel(&self) -> Option<PerChannel> {
        let maps = (0..2).map(|c| AffineMap { scale: self.w[c], centre: 0.0, shift: self.b[c] });
        Some(PerChannel { layout: self.layout, maps: maps.collect() })
    }

    fn absorb(&mut self, after: &PerChannel) -> Result<bool> {
        if self.refuses {
            let [what, expected, found] = ["Own", "room", "none"].map(String::from);
            return Err(Error::Shape { what, expected, found });
        }
        let fits = after.layout == self.layout && after.maps.len() == 2;
        for (c, map) in after.maps.iter().enumerate().filter(|_| fits) {
            (self.w[c], self.b[c]) = (map.scale * self.w[c], map.apply(self.b[c]));
        }
        Ok(fits)
    }

    fn infer(&self, x: TensorRef<'_, f64>, mut y: TensorMut<'_, f64>, _: &mut [f64]) -> Result<()> {
        for (i, (y, x)) in y.data().iter_mut().zip(x.data()).enumerate() {
            *y = self.w[i % 2] * x + self.b[i % 2];
        }
        Ok(())
    }

    fn forward(&mut self, x: TensorRef<'_, f64>, y: TensorMut<'_, f64>, _: &mut [f64], s: &mut [f64]) -> Result<()> {
        self.infer(x, y, s)
    }

    fn backward(
        &mut self,
        _: TensorRef<'_, f64>,
        _: TensorRef<'_, f64>,
        _: Option<TensorMut<'_, f64>>,
        _: &[f64],
        _: &mut [f64],
    ) -> Result<()> {
        Ok(())
    }
}

#[test]
fn layers_of_ones_own_fold_and_are_folded_into() {
    let own = |layout| Own { w: [2.0, -0.5], b: [1.0, 3.0], layout, refuses: false };
    // Into a Linear, and a BatchNorm into it, one after the other.
    let x = Tensor::from_slice([1, 2], &[4.0, -2.0]).unwrap();
    let mut norm = BatchNorm1d::with_options(2, BatchNormOptions { eps: 0.5, ..BatchNormOptions::default() }).unwrap();
    set(&mut norm, &[3.0, 0.5], &[-1.0, 2.0], &[1.0, 5.0], &[3.5, 15.5]);
    let mut first = linear(2, 2, 1);
    first.set_weight(&[1.0, 0.5, -2.0, 4.0]).unwrap();
    first.set_bias(&[0.0, 1.0]).unwrap();
    let mut model = Sequential::new().push(first).push(own(None)).push(norm);
    let before = infer(&model, &x).unwrap();
    model.fold().unwrap();
    assert_eq!((model.len(), infer(&model, &x).unwrap()), (1, before));
    // A BatchNorm of images into a layer of the same layout, and of no other.
    let x = normals([2, 3, 3, 2], 4);
    for (layout, is_folded) in [(Some(ImageLayout::Nhwc), true), (Some(ImageLayout::Nchw), false), (None, false)] {
        let mut norm = BatchNorm2d::new(2, ImageLayout::Nhwc).unwrap();
        set(&mut norm, &[3.0, 0.5], &[-1.0, 2.0], &[1.0, 5.0], &[3.5, 15.5]);
        let mut model = Sequential::new().push(own(layout)).push(norm);
        let before = infer(&model, &x).unwrap();
        model.fold().unwrap();
        assert_eq!(model.len() == 1, is_folded);
        for (after, before) in infer(&model, &x).unwrap().iter().zip(&before) {
            assert!((after - before).abs() <= 1e-14 * (1.0 + before.abs()), "{layout:?}: {after}, not {before}");
        }
    }
    // One that fails is named, and the model works.
    let refusing = Own { refuses: true, ..own(None) };
    let mut model = Sequential::new().push(Relu::new()).push(refusing).push(BatchNorm1d::new(2).unwrap());
    let x = normals([2, 2], 5);
    let before = infer(&model, &x).unwrap();
    assert_eq!(model.fold().unwrap_err().to_string(), "layer 1: Own: expected room, found none");
    assert_eq!((model.len(), infer(&model, &x).unwrap()), (3, before));
}
