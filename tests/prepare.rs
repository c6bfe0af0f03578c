//! Models prepared for serving: the same bits as without, on every instruction set and after every change of a weight.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails, in its helpers too")]

use evenkeel::layers::{BatchNorm1d, Layer, Linear, Parameter, ParameterMut, Relu};
use evenkeel::optim::Sgd;
use evenkeel::simd::{Element, Isa, with_isa};
use evenkeel::tensor::{Shape, Tensor, TensorMut, TensorRef};
use evenkeel::{Error, Loss, Result, Rng, Sequential, Targets};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Wide enough to be packed, and odd.
const WIDTHS: [usize; 3] = [300, 117, 131];
/// Rows of a batch: none, those with tiles of their own, and more than one strip.
const ROWS: [usize; 7] = [0, 1, 2, 3, 4, 17, 70];

fn normals<T: Element>(shape: impl Into<Shape>, seed: u64) -> Tensor<T> {
    let mut tensor = Tensor::zeros(shape).unwrap();
    let mut rng = Rng::new(seed, "normals");
    tensor.data_mut().fill_with(|| T::from_f64(rng.normal()));
    tensor
}

/// Linear with a bias, BatchNorm, ReLU, the layer given, Linear without a bias, a small Linear.
fn network<T: Element>(middle: impl Layer<T> + 'static) -> Sequential<T> {
    let rng = &mut Rng::new(1, "init");
    Sequential::new()
        .push(Linear::new(WIDTHS[0], WIDTHS[1], rng).unwrap())
        .push(BatchNorm1d::new(WIDTHS[1]).unwrap())
        .push(Relu::new())
        .push(middle)
        .push(Linear::new(WIDTHS[1], WIDTHS[2], rng).unwrap().without_bias())
        .push(Linear::new(WIDTHS[2], 10, rng).unwrap())
}

/// What a model answers to batches of all [`ROWS`].
fn answers<T: Element>(model: &Sequential<T>) -> Vec<u64> {
    let mut bits = Vec::new();
    let mut space = model.infer_space([ROWS[ROWS.len() - 1], WIDTHS[0]].into()).unwrap();
    for rows in ROWS {
        let x = normals::<T>([rows, WIDTHS[0]], 2);
        let y = model.infer(x.view(), &mut space).unwrap();
        bits.extend(y.data().iter().map(|y| y.to_f64().to_bits()));
    }
    assert_eq!(bits.len(), 10 * ROWS.iter().sum::<usize>());
    bits
}

fn same_bits_on_every_instruction_set<T: Element>() {
    let plain = network::<T>(Relu::new());
    for isa in Isa::available() {
        let mut prepared = network::<T>(Relu::new());
        with_isa(isa, || prepared.prepare().unwrap());
        for current in Isa::available() {
            let [found, wanted] = [&prepared, &plain].map(|model| with_isa(current, || answers(model)));
            assert!(found == wanted, "{}: prepared for {isa}, on {current}", T::NAME);
        }
    }
}

#[test]
fn same_bits_in_single_precision() {
    same_bits_on_every_instruction_set::<f32>();
}

#[test]
fn same_bits_in_double_precision() {
    same_bits_on_every_instruction_set::<f64>();
}

fn linear_answers(layer: &Linear<f32>) -> Vec<f32> {
    let x = normals([5, 300], 3);
    let mut y = Tensor::zeros([5, 117]).unwrap();
    let mut scratch = vec![0.0; layer.scratch_len(x.shape())];
    layer.infer(x.view(), y.view_mut(), &mut scratch).unwrap();
    y.data().to_vec()
}

#[test]
fn a_layer_answers_by_the_latest_weight() {
    let weight = normals([117, 300], 4);
    let bias = normals([117], 5);
    type Change<'a> = &'a dyn Fn(&mut Linear<f32>);
    let changes: [(&str, Change<'_>); 3] = [
        ("set_weight", &|layer| layer.set_weight(weight.data()).unwrap()),
        ("set_bias", &|layer| layer.set_bias(bias.data()).unwrap()),
        ("visit_mut", &|layer| layer.visit_mut(&mut |p| p.value.iter_mut().for_each(|value| *value *= 2.0))),
    ];
    for (name, change) in changes {
        let [mut plain, mut prepared] = [(); 2].map(|()| Linear::new(300, 117, &mut Rng::new(1, "init")).unwrap());
        prepared.prepare().unwrap();
        let before = linear_answers(&prepared);
        change(&mut plain);
        change(&mut prepared);
        assert_ne!(linear_answers(&plain), before, "{name} changes nothing");
        assert_eq!(linear_answers(&prepared), linear_answers(&plain), "after {name}");
        prepared.prepare().unwrap();
        assert_eq!(linear_answers(&prepared), linear_answers(&plain), "prepared again after {name}");
    }
    // What is refused leaves the answers alone.
    let mut prepared = Linear::new(300, 117, &mut Rng::new(1, "init")).unwrap();
    prepared.prepare().unwrap();
    let before = linear_answers(&prepared);
    assert!(prepared.set_weight(&weight.data()[1..]).is_err());
    assert_eq!(linear_answers(&prepared), before);
}

#[test]
fn a_prepared_model_trains_like_one_that_is_not() {
    let [mut plain, mut prepared] = [(); 2].map(|()| network::<f32>(Relu::new()));
    let x = normals([17, WIDTHS[0]], 6);
    let labels: Vec<u8> = (0..17).map(|i| i % 10).collect();
    let step = |model: &mut Sequential<f32>, sgd: &mut Sgd<f32>| {
        let mut space = model.workspace(x.shape()).unwrap();
        model.forward(x.view(), &mut space).unwrap();
        let (y, dy) = space.output_and_gradient().unwrap();
        let loss = Loss::CrossEntropy.forward_backward(y, Targets::Classes(&labels), dy).unwrap();
        model.zero_grad();
        model.backward(x.view(), &mut space, None).unwrap();
        model.step(sgd).unwrap();
        loss
    };
    let [mut plain_sgd, mut prepared_sgd] = [(); 2].map(|()| Sgd::new(0.5).unwrap());
    for i in 0..4 {
        prepared.prepare().unwrap();
        let before = answers(&prepared);
        let losses = [step(&mut plain, &mut plain_sgd), step(&mut prepared, &mut prepared_sgd)];
        assert_eq!(losses[0].to_bits(), losses[1].to_bits(), "step {i}");
        assert!(answers(&plain) != before, "step {i} changes nothing");
        assert!(answers(&prepared) == answers(&plain), "step {i}");
    }
}

/// `y = w x`, with nothing to prepare.
struct Gain {
    w: [f32; 1],
    dw: [f32; 1],
}

impl Layer<f32> for Gain {
    fn describe(&self) -> String {
        "Gain".to_string()
    }

    fn output_shape(&self, input: Shape) -> Result<Shape> {
        Ok(input)
    }

    fn infer(&self, x: TensorRef<'_, f32>, mut y: TensorMut<'_, f32>, _: &mut [f32]) -> Result<()> {
        y.data().iter_mut().zip(x.data()).for_each(|(y, x)| *y = self.w[0] * x);
        Ok(())
    }

    fn forward(&mut self, x: TensorRef<'_, f32>, y: TensorMut<'_, f32>, _: &mut [f32], s: &mut [f32]) -> Result<()> {
        self.infer(x, y, s)
    }

    fn backward(
        &mut self,
        _: TensorRef<'_, f32>,
        _: TensorRef<'_, f32>,
        _: Option<TensorMut<'_, f32>>,
        _: &[f32],
        _: &mut [f32],
    ) -> Result<()> {
        Ok(())
    }

    fn visit(&self, f: &mut dyn FnMut(Parameter<'_, f32>)) {
        f(Parameter { name: "weight", shape: [self.w.len()].into(), value: &self.w, grad: &self.dw });
    }

    fn visit_mut(&mut self, f: &mut dyn FnMut(ParameterMut<'_, f32>)) {
        f(ParameterMut { name: "weight", value: &mut self.w, grad: &mut self.dw });
    }
}

/// A ReLU that counts how often it is prepared, or refuses.
struct Preparing(Option<Arc<AtomicUsize>>);

impl Layer<f32> for Preparing {
    fn describe(&self) -> String {
        "Preparing".to_string()
    }

    fn output_shape(&self, input: Shape) -> Result<Shape> {
        Ok(input)
    }

    fn prepare(&mut self) -> Result<()> {
        let Some(count) = &self.0 else {
            let [what, expected, found] = ["Preparing", "room", "none"].map(String::from);
            return Err(Error::Shape { what, expected, found });
        };
        count.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn infer(&self, x: TensorRef<'_, f32>, y: TensorMut<'_, f32>, s: &mut [f32]) -> Result<()> {
        Relu::new().infer(x, y, s)
    }

    fn forward(&mut self, x: TensorRef<'_, f32>, y: TensorMut<'_, f32>, _: &mut [f32], s: &mut [f32]) -> Result<()> {
        self.infer(x, y, s)
    }

    fn backward(
        &mut self,
        _: TensorRef<'_, f32>,
        _: TensorRef<'_, f32>,
        _: Option<TensorMut<'_, f32>>,
        _: &[f32],
        _: &mut [f32],
    ) -> Result<()> {
        Ok(())
    }
}

#[test]
fn a_layer_of_ones_own_need_not_know_of_it_and_may() {
    // One that does not.
    let [plain, mut prepared] = [(); 2].map(|()| network(Gain { w: [0.75], dw: [0.0] }));
    prepared.prepare().unwrap();
    assert!(answers(&prepared) == answers(&plain));
    assert!(answers(&plain) != answers(&network::<f32>(Relu::new())), "the gain changes nothing");
    // One that does.
    let count = Arc::default();
    let mut prepared = network(Preparing(Some(Arc::clone(&count))));
    prepared.prepare().unwrap();
    assert_eq!(count.load(Ordering::Relaxed), 1);
    assert!(answers(&prepared) == answers(&network::<f32>(Relu::new())));
    // One that cannot is named, and the model works as before.
    let mut refused = network(Preparing(None));
    assert_eq!(refused.prepare().unwrap_err().to_string(), "layer 3: Preparing: expected room, found none");
    assert!(answers(&refused) == answers(&network::<f32>(Relu::new())));
}
