//! Models layer by layer: what is refused leaves parameters, gradients and running statistics as they were, unless the
//! documentation says how far it has come.

use crate::kernels::{drawn, nan_only, same_at_every_offset, with};
use crate::steps::{moved, unwritten_tensor};
use crate::support::*;
use crate::table::Kind::*;
use crate::table::*;
use evenkeel::layers::{BatchNorm1d, BatchNormOptions, Layer, Linear, Relu};
use evenkeel::optim::{Adam, Sgd};
use evenkeel::simd::Element;
use evenkeel::tensor::{Shape, Tensor, TensorMut, TensorRef};
use evenkeel::{Loss, Result, Rng, Sequential};
use std::any::Any;

const MAX: usize = usize::MAX;
const NAN: f64 = f64::NAN;

/// `3 -> widths, with BatchNorm and ReLU between two Linears`.
pub(crate) fn network<T: Element>(widths: &[usize]) -> Sequential<T> {
    let rng = &mut Rng::new(1, "init");
    let mut model = Sequential::new();
    for (i, pair) in widths.windows(2).enumerate() {
        if i > 0 {
            model = model.push(BatchNorm1d::new(pair[0]).unwrap()).push(Relu::new());
        }
        model = model.push(Linear::new(pair[0], pair[1], rng).unwrap());
    }
    model
}

/// Running statistics and counts of the normalisations of a model, which are not parameters.
pub(crate) fn statistics<T: Element>(model: &Sequential<T>) -> Vec<u64> {
    let mut all = Vec::new();
    for layer in model.layers() {
        let layer: &dyn Any = layer;
        if let Some(norm) = layer.downcast_ref::<BatchNorm1d<T>>() {
            all.extend(norm.running().map(|(mean, var)| [bits(mean), bits(var)].concat()).unwrap_or_default());
            all.push(norm.num_batches_tracked());
        }
    }
    all
}

impl<T: Element> Written for Sequential<T> {
    fn numbers(&mut self) -> Vec<u64> {
        let mut all = statistics(self);
        self.visit(&mut |_, p| all.extend(p.value.iter().chain(p.grad).map(|v| v.bits())));
        all
    }
}

pub(crate) fn batch<T: Element>(dims: &[usize]) -> Tensor<T> {
    let shape = Shape::new(dims);
    Tensor::from_slice(shape, &drawn(5, shape.len())).unwrap()
}

/// A model that has been trained with a batch of four, and the memory of it.
pub(crate) fn trained<T: Element>() -> (Sequential<T>, evenkeel::model::Workspace<T>) {
    let mut model = network::<T>(&[3, 2, 4]);
    let mut space = model.workspace([4, 3].into()).unwrap();
    forward_and_backward(&mut model, &mut space, &batch(&[4, 3])).unwrap();
    (model, space)
}

fn forward_and_backward<T: Element>(
    model: &mut Sequential<T>,
    space: &mut evenkeel::model::Workspace<T>,
    x: &Tensor<T>,
) -> Result<()> {
    model.forward(x.view(), space)?;
    space.output_and_gradient()?.1.data().fill(T::ONE);
    model.backward(x.view(), space, None)
}

pub(crate) fn sequentials<T: Element>() -> Vec<Entry> {
    vec![
        entry("Sequential: memory", memory::<T>()),
        entry("Sequential::forward, backward", training_passes::<T>()),
        entry("Sequential::infer, prepare, fold", inference::<T>()),
        entry("Sequential::step", steps::<T>()),
    ]
}

fn memory<T: Element>() -> Vec<Row> {
    let mut rows = Vec::new();
    type Make<T> = fn(&Sequential<T>, Shape) -> Result<()>;
    let makers: [(&str, Make<T>); 4] = [
        ("workspace", |model, shape| model.workspace(shape).map(drop)),
        ("infer_space", |model, shape| model.infer_space(shape).map(drop)),
        ("evaluation", |model, shape| model.evaluation(shape).map(drop)),
        ("explain", |model, shape| model.explain(shape, Loss::CrossEntropy).map(drop)),
    ];
    for (name, make) in makers {
        let mut refused = |kind, dims: &'static [usize], words: &[&str]| {
            rows.push(row(kind, format!("{name} for {:?}", Shape::new(dims)), shape(words), move || {
                make(&network(&[3, 2, 4]), Shape::new(dims))
            }));
        };
        // An evaluation of no dimensions has no rows to speak of.
        let of_none =
            if name == "evaluation" || name == "explain" { "model: batch: expected at least one" } else { "layer 0" };
        refused(Empty, &[], &[of_none, "found []"]);
        refused(Mismatched, &[3], &["layer 0: Linear(3, 2): expected [n, 3], found [3]"]);
        refused(Mismatched, &[2, 3, 1], &["layer 0: Linear(3, 2)", "found [2, 3, 1]"]);
        refused(Mismatched, &[4, 2], &["layer 0: Linear(3, 2)", "found [4, 2]"]);
        refused(Overflow, &[MAX, 3], &["a size that fits an address"]);
        refused(Overflow, &[MAX / 4, 3], &["a size that fits an address"]);
        if name != "explain" {
            refused(Oversized, &[1 << 50, 3], &["a size that the system has memory for"]);
        }
        rows.push(row(
            Mismatched,
            format!("{name} of layers that do not fit"),
            shape(&["layer 2: Linear(31, 10): expected [n, 31], found [8, 32]"]),
            move || {
                let rng = &mut Rng::new(1, "init");
                let layers = (Linear::new(7, 32, rng)?, BatchNorm1d::new(32)?, Linear::new(31, 10, rng)?);
                make(&Sequential::new().push(layers.0).push(layers.1).push(layers.2), [8, 7].into())
            },
        ));
        rows.push(row(ZeroRows, format!("{name} for no rows"), gives("memory for those"), move || {
            make(&network(&[3, 2, 4]), [0, 3].into())
        }));
    }
    rows.push(row(Senseless, "the name of a layer that is not there", panics(&["index out of bounds"]), || {
        network::<T>(&[3, 2]).name_of(1);
        Ok(())
    }));
    rows.push(row(Empty, "no layers", gives("a model that gives what it takes"), || {
        assert_eq!(Sequential::<T>::new().output_shape([MAX, 3].into())?, [MAX, 3].into());
        Ok(())
    }));
    rows
}

fn training_passes<T: Element>() -> Vec<Row> {
    let forward = |kind, dims: &'static [usize], outcome| {
        row(kind, format!("forward over {:?}", Shape::new(dims)), outcome, move || {
            let (mut model, mut space) = trained::<T>();
            let result = attempt(&mut model, |model| model.forward(batch(dims).view(), &mut space));
            if result.is_err() {
                // A forward pass that failed leaves nothing to go back over.
                assert!(model.backward(batch(&[4, 3]).view(), &mut space, None).is_err());
                // And nothing is spoilt.
                forward_and_backward(&mut model, &mut space, &batch(&[4, 3])).unwrap();
            }
            result
        })
    };
    let backward = |kind, input: &'static str, dims: &'static [usize], dx: &'static [usize], outcome| {
        row(kind, input, outcome, move || {
            let ((mut model, mut space), mut dx) = (trained::<T>(), unwritten_tensor(Shape::new(dx)));
            let result = attempt(&mut dx, |dx| {
                attempt(&mut model, |model| model.backward(batch(dims).view(), &mut space, Some(dx.view_mut())))
            });
            // The pass is still there.
            model.backward(batch(&[4, 3]).view(), &mut space, None).unwrap();
            result
        })
    };
    let of_another = |widths: &'static [usize], words: &[&str]| {
        row(Mismatched, format!("memory of {widths:?}"), shape(words), move || {
            let (mut model, _) = trained::<T>();
            let mut space = network::<T>(widths).workspace([4, 3].into())?;
            attempt(&mut model, |model| model.forward(batch(&[4, 3]).view(), &mut space))
        })
    };
    let at_most = "model: batch: expected at most [4, 3]";
    vec![
        forward(Oversized, &[5, 3], shape(&[at_most, "found [5, 3]"])),
        forward(Mismatched, &[4, 2], shape(&[at_most, "found [4, 2]"])),
        forward(Mismatched, &[4, 3, 1], shape(&[at_most, "found [4, 3, 1]"])),
        forward(Truncated, &[3], shape(&[at_most, "found [3]"])),
        forward(Empty, &[], shape(&[at_most, "found []"])),
        forward(OneRow, &[1, 3], refused(Variant::OneValuePerChannel, &["2 channels"])),
        forward(ZeroRows, &[0, 3], gives("nothing, and running statistics stay")),
        row(ZeroRows, "a whole step over no rows", gives("nothing changed"), || {
            let (mut model, mut space) = trained::<T>();
            let before = model.numbers();
            forward_and_backward(&mut model, &mut space, &batch(&[0, 3]))?;
            assert_same_bits("the model", &model.numbers(), &before);
            Ok(())
        }),
        row(Mismatched, "memory of a wider model", gives("the same bits"), || {
            let ((mut one, mut own), (mut other, _)) = (trained::<T>(), trained::<T>());
            let mut wider = network::<T>(&[3, 50, 4]).workspace([4, 3].into())?;
            forward_and_backward(&mut one, &mut own, &batch(&[4, 3]))?;
            forward_and_backward(&mut other, &mut wider, &batch(&[4, 3]))?;
            assert_same_bits("the model", &other.numbers(), &one.numbers());
            Ok(())
        }),
        of_another(&[3, 2, 2], &["workspace: expected one made for this model"]),
        of_another(&[3, 4], &["workspace: expected 1 layers, found 4 layers"]),
        row(
            Senseless,
            "backward before forward",
            shape(&["model: expected a forward pass over the same batch first"]),
            || {
                let (mut model, _) = trained::<T>();
                let mut space = model.workspace([4, 3].into())?;
                attempt(&mut model, |model| model.backward(batch(&[4, 3]).view(), &mut space, None))
            },
        ),
        backward(
            Mismatched,
            "backward over another batch",
            &[3, 3],
            &[3, 3],
            shape(&["a forward pass over the same batch first", "over [3, 3]"]),
        ),
        backward(Truncated, "dx of fewer rows", &[4, 3], &[2, 3], shape(&["model: dx: expected [4, 3], found [2, 3]"])),
        backward(Empty, "dx without dimensions", &[4, 3], &[], shape(&["model: dx: expected [4, 3], found []"])),
        row(Mismatched, "backward by another model", shape(&["workspace: expected 4 layers, found 1 layers"]), || {
            let (_, mut space) = trained::<T>();
            attempt(&mut network::<T>(&[3, 4]), |model| model.backward(batch(&[4, 3]).view(), &mut space, None))
        }),
        row(Empty, "the output of no layers", shape(&["model: expected at least one layer"]), || {
            let mut space = Sequential::<T>::new().workspace([4, 3].into())?;
            space.output_and_gradient().map(drop)
        }),
        row(
            Senseless,
            "a layer that refuses behind one that has seen the batch",
            invalid(&["layer 1: batchnorm: eps is 0"]),
            || {
                let no_eps = BatchNormOptions { eps: 0.0, ..BatchNormOptions::default() };
                let mut model =
                    Sequential::<T>::new().push(BatchNorm1d::new(3)?).push(BatchNorm1d::with_options(3, no_eps)?);
                let mut space = model.workspace([4, 3].into())?;
                let result = model.forward(batch(&[4, 3]).view(), &mut space);
                let seen: Vec<u64> = model
                    .layers()
                    .map(|layer| -> u64 {
                        let layer: &dyn Any = layer;
                        layer.downcast_ref::<BatchNorm1d<T>>().unwrap().num_batches_tracked()
                    })
                    .collect();
                assert_eq!(seen, [1, 0]);
                result
            },
        ),
        row(Nan, "NaN in a batch", gives("NaN in every output that depends on it"), || {
            let (mut model, mut space) = trained::<T>();
            let mut x = batch::<T>(&[4, 3]);
            x.data_mut()[5] = T::from_f64(NAN);
            forward_and_backward(&mut model, &mut space, &x)?;
            // Behind the normalisation that is all of them.
            assert!(space.output_of(3).data().iter().all(|y| y.to_f64().is_nan()));
            Ok(())
        }),
        row(Misaligned, "a batch at every offset to 16", gives("the same bits"), || {
            same_at_every_offset(|offset| {
                let ((mut model, mut space), x) = (trained::<T>(), Guarded::new(&drawn::<T>(5, 12), offset));
                let x = TensorRef::new([4, 3], x.get()).unwrap();
                model.forward(x, &mut space).unwrap();
                space.output_and_gradient().unwrap().1.data().fill(T::ONE);
                let mut dx = Guarded::unwritten(12, offset);
                model.backward(x, &mut space, Some(TensorMut::new([4, 3], dx.get_mut()).unwrap())).unwrap();
                [model.numbers(), bits(dx.get())].concat()
            });
            Ok(())
        }),
    ]
}

fn inference<T: Element>() -> Vec<Row> {
    let over = |kind, dims: &'static [usize], outcome| {
        row(kind, format!("infer over {:?}", Shape::new(dims)), outcome, move || {
            let (mut model, _) = trained::<T>();
            let mut space = model.infer_space([4, 3].into())?;
            attempt(&mut model, |model| model.infer(batch(dims).view(), &mut space).map(drop))
        })
    };
    let of_another = |widths: &'static [usize], words: &[&str]| {
        row(Mismatched, format!("memory of {widths:?}"), shape(words), move || {
            let mut space = network::<T>(widths).infer_space([4, 3].into())?;
            trained::<T>().0.infer(batch(&[4, 3]).view(), &mut space).map(drop)
        })
    };
    let infer = |model: &Sequential<T>, x: &Tensor<T>| -> Result<Vec<T>> {
        Ok(model.infer(x.view(), &mut model.infer_space(x.shape())?)?.data().to_vec())
    };
    vec![
        over(Oversized, &[5, 3], shape(&["model: batch: expected at most [4, 3], found [5, 3]"])),
        over(Mismatched, &[4, 2], shape(&["expected at most [4, 3], found [4, 2]"])),
        over(Empty, &[], shape(&["expected at most [4, 3], found []"])),
        over(ZeroRows, &[0, 3], gives("no rows")),
        over(OneRow, &[1, 3], gives("a row")),
        of_another(&[3, 2, 2], &["model: space for evaluation: expected room for 16 elements"]),
        row(Empty, "no layers", shape(&["model: expected at least one layer, found 0"]), move || {
            infer(&Sequential::new(), &batch(&[4, 3])).map(drop)
        }),
        row(Empty, "fold and prepare of no layers", gives("nothing"), || {
            let mut model = Sequential::<T>::new();
            model.prepare()?;
            model.fold()?;
            assert!(model.is_empty());
            Ok(())
        }),
        row(Nan, "NaN in a row, before and after fold and prepare", gives("NaN in that row only"), move || {
            let (mut model, x) = (trained::<T>().0, batch(&[4, 3]));
            let poisoned = Tensor::from_slice([4, 3], &with(x.data(), 4, NAN))?;
            for _ in 0..2 {
                nan_only("y", &infer(&model, &poisoned)?, &infer(&model, &x)?, |i| i / 4 == 1);
                model.fold()?;
                model.prepare()?;
            }
            assert_eq!(model.len(), 3);
            Ok(())
        }),
        row(Nan, "fold of a variance of NaN", gives("the normalisation where it was"), move || {
            let mut norm = BatchNorm1d::<T>::new(2)?;
            norm.visit_buffers_mut(&mut |_, values| values[1] = T::from_f64(NAN));
            let mut model = Sequential::new().push(Linear::new(3, 2, &mut Rng::new(1, "init"))?).push(norm);
            let before = (model.numbers(), infer(&model, &batch(&[4, 3]))?);
            model.fold()?;
            assert_eq!((model.len(), model.numbers()), (2, before.0));
            assert_same_bits("y", &comparable(&infer(&model, &batch(&[4, 3]))?), &comparable(&before.1));
            Ok(())
        }),
    ]
}

fn steps<T: Element>() -> Vec<Row> {
    vec![
        row(
            Mismatched,
            "an optimiser of another model",
            shape(&["optimiser: parameter 0: expected 3 elements"]),
            || {
                let mut optimizer = moved::<T, _>(Adam::<T>::new(0.1)?, 0).optimizer;
                let (mut model, _) = trained::<T>();
                attempt(&mut model, |model| model.step(&mut optimizer))
            },
        ),
        row(
            Mismatched,
            "one that differs in its second tensor",
            shape(&["optimiser: parameter 1: expected 2 elements"]),
            || {
                // The parameters in front of that have moved.
                let mut optimizer = Adam::<T>::new(0.1)?;
                network(&[3, 2]).step(&mut optimizer)?;
                let mut model =
                    Sequential::<T>::new().push(linear_of_ones(3, 2)?.without_bias()).push(linear_of_ones(2, 5)?);
                model.visit_mut(&mut |_, p| p.grad.fill(T::ONE));
                let result = model.step(&mut optimizer);
                let mut has_moved = Vec::new();
                model.visit(&mut |_, p| has_moved.push(p.value[0] != T::ONE));
                assert_eq!(has_moved, [true, false, false]);
                result
            },
        ),
        row(Empty, "no parameters", gives("nothing"), || {
            Sequential::<T>::new().push(Relu::new()).step(&mut Sgd::<T>::new(0.1)?)
        }),
    ]
}

fn linear_of_ones<T: Element>(inputs: usize, outputs: usize) -> Result<Linear<T>> {
    let mut layer = Linear::new(inputs, outputs, &mut Rng::new(1, "init"))?;
    layer.visit_mut(&mut |p| p.value.fill(T::ONE));
    Ok(layer)
}
