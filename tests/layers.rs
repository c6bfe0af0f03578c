//! Layers by themselves.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails, in its helpers too")]

use evenkeel::Result;
use evenkeel::layers::{BatchNorm1d, Layer};
use evenkeel::simd::Element;
use evenkeel::tensor::{Shape, Tensor, TensorRef};

/// Room for a pass: NaN, so that what is read before it is written shows.
fn room<T: Element>(len: usize) -> Vec<T> {
    vec![T::from_f64(f64::NAN); len]
}

/// What a training step leaves: y, dx, and the gradients of the parameters that there are.
#[derive(Clone, Debug, PartialEq)]
struct Trained<T> {
    y: Vec<T>,
    dx: Vec<T>,
    parameters: Vec<Vec<T>>,
}

fn train<T: Element>(layer: &mut dyn Layer<T>, x: TensorRef<'_, T>, dy: TensorRef<'_, T>) -> Result<Trained<T>> {
    let (mut y, mut dx) = (Tensor::zeros(x.shape())?, Tensor::zeros(x.shape())?);
    let (mut saved, mut scratch) = (room(layer.saved_len(x.shape())), room(layer.scratch_len(x.shape())));
    layer.forward(x, y.view_mut(), &mut saved, &mut scratch)?;
    layer.visit_mut(&mut |p| p.grad.fill(T::ZERO));
    layer.backward(x, dy, Some(dx.view_mut()), &saved, &mut scratch)?;
    let mut parameters = Vec::new();
    layer.visit(&mut |p| parameters.push(p.grad.to_vec()));
    Ok(Trained { y: y.data().to_vec(), dx: dx.data().to_vec(), parameters })
}

fn infer<T: Element>(layer: &dyn Layer<T>, x: TensorRef<'_, T>) -> Result<Vec<T>> {
    let (mut y, mut scratch) = (Tensor::zeros(layer.output_shape(x.shape())?)?, room(layer.scratch_len(x.shape())));
    layer.infer(x, y.view_mut(), &mut scratch)?;
    Ok(y.data().to_vec())
}

/// Every number that a layer holds.
fn state<T: Element>(layer: &mut dyn Layer<T>) -> Vec<u64> {
    let mut bits = Vec::new();
    layer.visit(&mut |p| bits.extend(p.value.iter().chain(p.grad).map(|v| v.bits())));
    layer.visit_buffers_mut(&mut |_, values| bits.extend(values.iter().map(|v| v.bits())));
    layer.visit_counts_mut(&mut |_, count| bits.push(*count));
    bits
}

#[test]
fn features_without_values_change_nothing() {
    let mut layer = BatchNorm1d::<f64>::new(3).unwrap();
    let before = state(&mut layer);
    for shape in [&[0, 3][..], &[0, 3, 5], &[2, 3, 0], &[0, 3, usize::MAX]] {
        let x = TensorRef::new(Shape::new(shape), &[]).unwrap();
        train(&mut layer, x, x).unwrap();
        assert!(infer(&layer, x).unwrap().is_empty());
        assert_eq!(state(&mut layer), before, "{shape:?}");
    }
}
