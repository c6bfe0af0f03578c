//! Layers by themselves.

use super::*;

/// The numbers that a check must give back as it found them.
fn bits(layer: &mut dyn Layer<f64>) -> Vec<Vec<u64>> {
    let mut all = Vec::new();
    let mut note = |values: &[f64]| all.push(values.iter().map(|v| v.to_bits()).collect());
    layer.visit(&mut |p| {
        note(p.value);
        note(p.grad);
    });
    layer.visit_buffers_mut(&mut |_, values| note(values));
    all
}

/// Checks a layer with a random upstream gradient, and that the check leaves it as it was.
fn check(layer: &mut dyn Layer<f64>, x: &Tensor<f64>, seed: u64) -> std::result::Result<(), TestCaseError> {
    let before = bits(layer);
    GradCheck::new(seed).layer(layer, x.view())?;
    prop_assert_eq!(bits(layer), before.clone(), "the check changed the layer");
    GradCheck::new(seed).fast().layer(layer, x.view())?;
    prop_assert_eq!(bits(layer), before, "the check changed the layer");
    Ok(())
}

proptest! {
    #![proptest_config(fixed(120, 2))]

    #[test]
    fn linear(n in 1usize..40, inputs in select(WIDTHS), outputs in select(WIDTHS), bias in any::<bool>(), seed in 0..1u64 << 32) {
        let layer = Linear::new(inputs, outputs, &mut Rng::new(seed, "linear")).unwrap();
        let mut layer = if bias { layer } else { layer.without_bias() };
        check(&mut layer, &normal_batch([n, inputs], seed).unwrap(), seed)?;
    }

    #[test]
    fn batchnorm(
        (n, eps) in any_rows().prop_flat_map(|n| (Just(n), any_eps(n))),
        c in select(WIDTHS),
        momentum in select(&[None, Some(0.1), Some(0.0), Some(1.0)][..]),
        (affine, track_running_stats) in any::<(bool, bool)>(),
        (centre, spread) in (select(&[0.0, -10.0][..]), select(&[1.0, 5.0][..])),
        seed in 0..1u64 << 32,
    ) {
        let options = BatchNormOptions { eps, momentum, affine, track_running_stats };
        let mut layer = BatchNorm1d::with_options(c, options).unwrap();
        layer.visit_mut(&mut |p| disturb(&mut Rng::new(seed, p.name), p.value));
        let mut x = normal_batch([n, c], seed).unwrap();
        x.data_mut().iter_mut().for_each(|x| *x = centre + spread * *x);
        check(&mut layer, &x, seed)?;
    }

    #[test]
    fn batchnorm_of_images(
        (n, (h, w)) in (1usize..5, select(&[(1, 1), (1, 2), (3, 1), (2, 2), (3, 3), (4, 4), (1, 17)][..]))
            .prop_filter("one value per channel", |(n, (h, w))| n * h * w > 1),
        layout in select(&[ImageLayout::Nchw, ImageLayout::Nhwc][..]),
        c in select(&[1, 2, 3, 5, 9][..]),
        large_eps in any::<bool>(),
        (affine, track_running_stats) in any::<(bool, bool)>(),
        seed in 0..1u64 << 32,
    ) {
        // As for rows: a small eps leaves a function of two or three values too steep for differences.
        let eps = if large_eps || n * h * w <= 3 { 1.0 } else { 1e-2 };
        let options = BatchNormOptions { eps, affine, track_running_stats, ..BatchNormOptions::default() };
        let mut layer = BatchNorm2d::with_options(c, layout, options).unwrap();
        layer.visit_mut(&mut |p| disturb(&mut Rng::new(seed, p.name), p.value));
        let shape = match layout {
            ImageLayout::Nchw => [n, c, h, w],
            ImageLayout::Nhwc => [n, h, w, c],
        };
        check(&mut layer, &normal_batch(shape, seed).unwrap(), seed)?;
    }

    #[test]
    fn relu_with_inputs_on_the_kink(shape in prop::collection::vec(1usize..6, 1..=4), seed in 0..1u64 << 32) {
        let mut x = normal_batch(Shape::new(&shape), seed).unwrap();
        x.data_mut().iter_mut().step_by(3).for_each(|x| *x = 0.0);
        check(&mut Relu::new(), &x, seed)?;
    }
}

#[test]
fn layers_on_every_instruction_set_and_beyond_one_block_of_rows() {
    // Passes work in blocks of 128 and of 1024 rows.
    for isa in Isa::available() {
        with_isa(isa, || {
            for (n, c) in [(2, 3), (31, 9), (129, 3), (1025, 1)] {
                let x = normal_batch([n, c], 5).unwrap();
                let options = BatchNormOptions { eps: 0.01, ..BatchNormOptions::default() };
                let mut norm = BatchNorm1d::with_options(c, options).unwrap();
                norm.visit_mut(&mut |p| disturb(&mut Rng::new(7, p.name), p.value));
                check(&mut norm, &x, 6).unwrap_or_else(|e| panic!("{isa}, BatchNorm of {n} x {c}: {e}"));
                let mut linear = Linear::new(c, 7, &mut Rng::new(1, "linear")).unwrap();
                check(&mut linear, &x, 6).unwrap_or_else(|e| panic!("{isa}, Linear of {n} x {c}: {e}"));
                check(&mut Relu::new(), &x, 6).unwrap_or_else(|e| panic!("{isa}, ReLU of {n} x {c}: {e}"));
            }
        });
    }
}

#[test]
fn images_on_every_instruction_set() {
    for isa in Isa::available() {
        with_isa(isa, || {
            for (layout, shape) in [
                (ImageLayout::Nchw, [2, 3, 2, 3]),
                (ImageLayout::Nchw, [2, 3, 5, 7]),
                (ImageLayout::Nhwc, [2, 2, 3, 3]),
                (ImageLayout::Nhwc, [2, 5, 7, 3]),
            ] {
                let options = BatchNormOptions { eps: 0.01, ..BatchNormOptions::default() };
                let mut norm = BatchNorm2d::with_options(3, layout, options).unwrap();
                norm.visit_mut(&mut |p| disturb(&mut Rng::new(7, p.name), p.value));
                let x = normal_batch(shape, 5).unwrap();
                check(&mut norm, &x, 6).unwrap_or_else(|e| panic!("{isa}, {layout:?} {shape:?}: {e}"));
            }
        });
    }
}

#[test]
fn a_check_leaves_the_layer_as_it_was() {
    // The cumulative average depends on the number of batches, so that a count left behind would show later.
    for momentum in [Some(0.1), None] {
        let options = BatchNormOptions { momentum, ..BatchNormOptions::default() };
        let mut checked = BatchNorm1d::<f64>::with_options(3, options).unwrap();
        let mut other = BatchNorm1d::with_options(3, options).unwrap();
        let train = |layer: &mut BatchNorm1d<f64>, seed| {
            let x = normal_batch([6, 3], seed).unwrap();
            let (mut y, mut saved) = (x.clone(), vec![0.0; layer.saved_len(x.shape())]);
            let mut scratch = vec![0.0; layer.scratch_len(x.shape())];
            layer.forward(x.view(), y.view_mut(), &mut saved, &mut scratch).unwrap();
        };
        train(&mut checked, 1);
        train(&mut other, 1);
        let x = normal_batch([5, 3], 9).unwrap();
        passes("batchnorm", GradCheck::new(3).layer(&mut checked, x.view()));
        assert_eq!(bits(&mut checked), bits(&mut other));
        assert_eq!(checked.num_batches_tracked(), 1, "momentum {momentum:?}");
        train(&mut checked, 2);
        train(&mut other, 2);
        assert_eq!(bits(&mut checked), bits(&mut other), "the next batch, momentum {momentum:?}");
    }
}

#[test]
fn a_check_of_a_model_leaves_it_as_it_was_even_if_refused() {
    // With the cumulative average a count left behind shows too.
    let build = || {
        let rng = &mut Rng::new(4, "model");
        let options = BatchNormOptions { momentum: None, ..BatchNormOptions::default() };
        Sequential::new()
            .push(Linear::new(3, 5, rng).unwrap())
            .push(BatchNorm1d::with_options(5, options).unwrap())
            .push(Relu::new())
            .push(Linear::new(5, 2, rng).unwrap())
    };
    let (x, later) = (normal_batch([6, 3], 1).unwrap(), normal_batch([4, 3], 2).unwrap());
    // What a model has learnt and counted shows in what it answers and in what one more batch makes of that.
    let answers = |model: &mut Sequential<f64>| {
        let mut infer = model.infer_space(later.shape()).unwrap();
        let mut bits: Vec<u64> = Vec::new();
        for _ in 0..2 {
            bits.extend(model.infer(later.view(), &mut infer).unwrap().data().iter().map(|y| y.to_bits()));
            let mut space = model.workspace(later.shape()).unwrap();
            model.forward(later.view(), &mut space).unwrap();
        }
        bits
    };
    let untouched = answers(&mut build());
    for (classes, is_refused) in [([0, 1, 1, 0, 1, 0], false), ([0, 1, 2, 0, 1, 0], true)] {
        let mut model = build();
        let targets = Targets::Classes(&classes);
        let result = GradCheck::new(5).model(&mut model, Loss::CrossEntropy, x.view(), targets);
        assert_eq!(result.is_err(), is_refused);
        if let Ok(report) = result {
            let shape = |name| report.tensor(name).unwrap().shape.dims().to_vec();
            assert_eq!([shape("x"), shape("0.weight"), shape("0.bias")], [vec![6, 3], vec![3, 5], vec![5]]);
        }
        assert_eq!(answers(&mut model), untouched, "refused: {is_refused}");
    }
}

#[test]
fn parameter_gradients_accumulate_and_the_input_gradient_need_not_be_asked_for() {
    let rng = &mut Rng::new(1, "layers");
    let layers: [Box<dyn Layer<f64>>; 2] =
        [Box::new(Linear::new(5, 5, rng).unwrap()), Box::new(BatchNorm1d::new(5).unwrap())];
    for mut layer in layers {
        let (x, dy) = (normal_batch([7, 5], 1).unwrap(), normal_batch([7, 5], 2).unwrap());
        let (mut y, mut dx) = (x.clone(), x.clone());
        let mut saved = vec![0.0; layer.saved_len(x.shape())];
        let mut scratch = vec![0.0; layer.scratch_len(x.shape())];
        layer.forward(x.view(), y.view_mut(), &mut saved, &mut scratch).unwrap();
        let mut gradients = Vec::new();
        for with_dx in [true, false, true] {
            let dx = with_dx.then(|| dx.view_mut());
            layer.backward(x.view(), dy.view(), dx, &saved, &mut scratch).unwrap();
            let mut flat = Vec::new();
            layer.visit(&mut |p| flat.extend_from_slice(p.grad));
            gradients.push(flat);
        }
        for (i, &once) in gradients[0].iter().enumerate() {
            for (times, sum) in [(2.0, gradients[1][i]), (3.0, gradients[2][i])] {
                // Three roundings at most, of sums of seven products of order one.
                let what = layer.describe();
                assert!(
                    (sum - times * once).abs() <= 1e-14 * once.abs().max(1.0),
                    "{what}: {sum} is not {times} {once}"
                );
            }
        }
    }
}

#[test]
fn a_batch_of_two_with_a_small_eps_has_its_closed_form() {
    // With d half the distance of two values, y = +-d / sqrt(d^2 + eps) and dy/dd = eps / (d^2 + eps)^(3/2): what is left of terms
    // of order one is of order eps, 1e-5, so a relative error of 1e-9 leaves a factor of 100 above their rounding.
    let (eps, gamma) = (1e-5, [1.5, -0.75, 2.0]);
    let (x, dy) = ([0.4, -1.1, 2.0, 1.9, 0.3, -0.7], [0.9, -0.2, 1.1, -0.6, 0.8, 0.5]);
    for isa in Isa::available() {
        with_isa(isa, || {
            let mut norm = BatchNorm1d::<f64>::new(3).unwrap();
            norm.visit_mut(&mut |p| {
                if p.name == "weight" {
                    p.value.copy_from_slice(&gamma);
                }
            });
            let x = Tensor::from_slice([2, 3], &x).unwrap();
            passes("batch of two", GradCheck::new(3).layer(&mut norm, x.view()));
            let (mut y, mut dx) = (x.clone(), x.clone());
            let mut saved = vec![0.0; norm.saved_len(x.shape())];
            let mut scratch = vec![0.0; norm.scratch_len(x.shape())];
            norm.forward(x.view(), y.view_mut(), &mut saved, &mut scratch).unwrap();
            let dy = TensorRef::new([2, 3], &dy).unwrap();
            norm.backward(x.view(), dy, Some(dx.view_mut()), &saved, &mut scratch).unwrap();
            for c in 0..3 {
                let d = (x.data()[c] - x.data()[3 + c]) / 2.0;
                let slope = eps / (d * d + eps).powf(1.5);
                let expected = 0.5 * (dy.data()[c] - dy.data()[3 + c]) * gamma[c] * slope;
                for (found, expected) in [(dx.data()[c], expected), (dx.data()[3 + c], -expected)] {
                    assert!((found - expected).abs() <= 1e-9 * expected.abs(), "{isa}: {found:e}, not {expected:e}");
                }
            }
        });
    }
}

/// Two products with a ReLU between them as one layer: each of its outputs hangs on several decisions.
struct Composite<T> {
    inner: Vec<T>,
    outer: Vec<T>,
    width: usize,
    inputs: usize,
    leaves_unwritten: bool,
}

impl<T: Element> Composite<T> {
    fn new(inputs: usize, width: usize, seed: u64) -> Self {
        let rng = &mut Rng::new(seed, "composite");
        let mut draw = || (0..inputs * width).map(|_| T::from_f64(rng.normal())).collect();
        Composite { inner: draw(), outer: draw(), width, inputs, leaves_unwritten: false }
    }

    fn hidden(&self, x: &[T], j: usize) -> T {
        x.iter().zip(&self.inner[j * self.inputs..]).fold(T::ZERO, |sum, (x, w)| sum + *x * *w)
    }

    fn map(&self, base: &[T], x: &[T], y: &mut [T]) {
        for ((base, x), y) in base.chunks(self.inputs).zip(x.chunks(self.inputs)).zip(y.chunks_mut(self.inputs)) {
            let h: Vec<T> = (0..self.width)
                .map(|j| if self.hidden(base, j) > T::ZERO { self.hidden(x, j) } else { T::ZERO })
                .collect();
            let written = self.inputs - usize::from(self.leaves_unwritten);
            for (o, y) in y.iter_mut().enumerate().take(written) {
                *y = h.iter().zip(&self.outer[o * self.width..]).fold(T::ZERO, |sum, (h, w)| sum + *h * *w);
            }
        }
    }
}

impl<T: Element> Layer<T> for Composite<T> {
    fn describe(&self) -> String {
        "composite".to_string()
    }

    fn output_shape(&self, input: Shape) -> Result<Shape> {
        Ok(input)
    }

    fn infer(&self, x: TensorRef<'_, T>, mut y: TensorMut<'_, T>, _: &mut [T]) -> Result<()> {
        self.map(x.data(), x.data(), y.data());
        Ok(())
    }

    fn forward(&mut self, x: TensorRef<'_, T>, y: TensorMut<'_, T>, _: &mut [T], s: &mut [T]) -> Result<()> {
        self.infer(x, y, s)
    }

    fn forward_held(
        &mut self,
        base: TensorRef<'_, T>,
        x: TensorRef<'_, T>,
        mut y: TensorMut<'_, T>,
        _: &mut [T],
        _: &mut [T],
    ) -> Result<()> {
        self.map(base.data(), x.data(), y.data());
        Ok(())
    }

    fn backward(
        &mut self,
        x: TensorRef<'_, T>,
        dy: TensorRef<'_, T>,
        dx: Option<TensorMut<'_, T>>,
        _: &[T],
        _: &mut [T],
    ) -> Result<()> {
        let Some(mut dx) = dx else { return Ok(()) };
        let rows = x.data().chunks(self.inputs).zip(dy.data().chunks(self.inputs));
        for ((x, dy), dx) in rows.zip(dx.data().chunks_mut(self.inputs)) {
            dx.fill(T::ZERO);
            for j in (0..self.width).filter(|&j| self.hidden(x, j) > T::ZERO) {
                let written = self.inputs - usize::from(self.leaves_unwritten);
                let dh = (0..written).fold(T::ZERO, |sum, o| sum + dy[o] * self.outer[o * self.width + j]);
                for (dx, w) in dx.iter_mut().zip(&self.inner[j * self.inputs..]) {
                    *dx = *dx + dh * *w;
                }
            }
        }
        Ok(())
    }

    fn visit(&self, _: &mut dyn FnMut(Parameter<'_, T>)) {}

    fn visit_mut(&mut self, _: &mut dyn FnMut(ParameterMut<'_, T>)) {}
}

fn composites<T: Element>(size: f64) {
    for seed in 0..20 {
        let x = normal_batch([16, 8], seed).unwrap();
        let x: Vec<T> = x.data().iter().map(|x| T::from_f64(size * x)).collect();
        let x = TensorRef::new([16, 8], &x).unwrap();
        let what = format!("values of {size:e}, seed {seed}");
        passes(&what, GradCheck::new(seed).layer(&mut Composite::<T>::new(8, 32, seed), x));
        // What forward does not write is no constant.
        let mut layer = Composite { leaves_unwritten: true, ..Composite::<T>::new(8, 32, seed) };
        fails(&what, GradCheck::new(seed).layer(&mut layer, x));
    }
}

#[test]
fn a_layer_may_hold_many_decisions() {
    composites::<f64>(1.0);
    composites::<f64>(1e-6);
    composites::<f32>(1.0);
}

/// Inputs of f32 that are coarse beside how far they are apart are neither noise nor a kink.
#[test]
fn a_narrow_channel_in_f32() {
    for spread in [1.0, 1e-1, 1e-2, 1e-3, 1e-4] {
        for seed in 0..60 {
            let rng = &mut Rng::new(seed, "x");
            let value = |i: usize, normal: f64| if i % 4 == 1 { 3.0 + spread * normal } else { normal };
            let x: Vec<f32> = (0..32).map(|i| f32::from_f64(value(i, rng.normal()))).collect();
            for check in [GradCheck::new(seed), GradCheck::new(seed).fast()] {
                let mut norm = BatchNorm1d::<f32>::new(4).unwrap();
                passes(&format!("{spread:e}"), check.layer(&mut norm, TensorRef::new([8, 4], &x).unwrap()));
            }
        }
    }
}
