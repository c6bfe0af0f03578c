//! Plans, evaluations and training: as for models, and what an optimiser remembers stays as well.

use crate::kernels::{drawn, nan_only};
use crate::models::{batch, network, statistics, trained};
use crate::steps::moved;
use crate::support::*;
use crate::table::Kind::*;
use crate::table::*;
use evenkeel::data::{Images, LastBatch, Loader, Order, Scale, digits};
use evenkeel::model::Evaluation;
use evenkeel::model::plan::{Fusion, Plan};
use evenkeel::optim::{Adam, Sgd};
use evenkeel::simd::Element;
use evenkeel::tensor::{Shape, Tensor, TensorRef};
use evenkeel::train::{Evaluator, Trainer, fit};
use evenkeel::{Error, Loss, Result, Sequential, Targets, Threads};

const MAX: usize = usize::MAX;
const NAN: f64 = f64::NAN;
const INFINITY: f64 = f64::INFINITY;

// ---- Plans and evaluations.

impl<T: Element> Written for Plan<T> {
    fn numbers(&mut self) -> Vec<u64> {
        let mut all = statistics(self.model());
        self.visit(&mut |_, p| all.extend(p.value.iter().chain(p.grad).map(|v| v.bits())));
        all
    }
}

/// A plan for batches of four that has seen one and is about to go on.
fn planned<T: Element>(fusion: Fusion) -> Plan<T> {
    let mut plan = Plan::new(network(&[3, 2, 4]), [4, 3].into(), Loss::CrossEntropy, fusion).unwrap();
    whole_step(&mut plan, &batch(&[4, 3])).unwrap();
    plan
}

fn whole_step<T: Element>(plan: &mut Plan<T>, x: &Tensor<T>) -> Result<f64> {
    plan.forward(x.view())?;
    let loss = plan.loss_of(Targets::Classes(&[0, 1, 2, 3][..x.shape().dims()[0]]))?;
    plan.backward(x.view())?;
    Ok(loss)
}

pub(crate) fn plans<T: Element>() -> Vec<Entry> {
    let mut rows = Vec::new();
    for fusion in [Fusion::On, Fusion::Off] {
        let made = |kind, dims: &'static [usize], words: &[&str]| {
            row(kind, format!("{fusion:?}: made for {:?}", Shape::new(dims)), shape(words), move || {
                Plan::<T>::new(network(&[3, 2, 4]), Shape::new(dims), Loss::Mse, fusion).map(drop)
            })
        };
        let forward = |kind, dims: &'static [usize], outcome| {
            row(kind, format!("{fusion:?}: forward over {:?}", Shape::new(dims)), outcome, move || {
                let mut plan = planned::<T>(fusion);
                let result = attempt(&mut plan, |plan| plan.forward(batch(dims).view()));
                if result.is_err() {
                    assert!(plan.loss_of(Targets::Classes(&[0; 4])).is_err(), "the latest pass was refused");
                    whole_step(&mut plan, &batch(&[4, 3]))?;
                }
                result
            })
        };
        // After these steps of a pass, a call that comes too early, too late, or with the wrong thing.
        let call = |kind,
                    input: &'static str,
                    words: &[&str],
                    prepare: fn(&mut Plan<T>) -> Result<()>,
                    call: fn(&mut Plan<T>) -> Result<()>| {
            let outcome =
                if words[0].starts_with("mse") || words[0].starts_with("label") || words[0].contains("targets") {
                    invalid(words)
                } else {
                    shape(words)
                };
            row(kind, format!("{fusion:?}: {input}"), outcome, move || {
                let mut plan = planned::<T>(fusion);
                prepare(&mut plan)?;
                attempt(&mut plan, call)
            })
        };
        let no_pass = "plan: loss: expected a forward pass first";
        let no_loss = "plan: expected the loss of a forward pass over the same batch first";
        let ahead = |plan: &mut Plan<T>| plan.forward(batch(&[4, 3]).view());
        rows.extend([
            made(Empty, &[], &["model: batch: expected at least one dimension"]),
            made(Mismatched, &[5], &["layer 0: Linear(3, 2)"]),
            made(Mismatched, &[5, 4], &["layer 0: Linear(3, 2)"]),
            made(Overflow, &[MAX, 3], &["a size that fits an address"]),
            made(Oversized, &[1 << 50, 3], &["a size that the system has memory for"]),
            row(
                Empty,
                format!("{fusion:?}: no layers"),
                shape(&["model: expected at least one layer, found 0"]),
                move || Plan::<T>::new(Sequential::new(), [4, 3].into(), Loss::Mse, fusion).map(drop),
            ),
            forward(Oversized, &[5, 3], shape(&["model: batch: expected at most [4, 3], found [5, 3]"])),
            forward(Mismatched, &[4, 2], shape(&["found [4, 2]"])),
            forward(Empty, &[], shape(&["found []"])),
            forward(OneRow, &[1, 3], refused(Variant::OneValuePerChannel, &["2 channels"])),
            forward(ZeroRows, &[0, 3], gives("nothing")),
            call(
                Senseless,
                "a loss of what parameters have moved away from",
                &[no_pass],
                |plan| plan.update(&mut Sgd::new(0.1)?),
                |plan| plan.loss_of(Targets::Classes(&[0; 4])).map(drop),
            ),
            row(Senseless, format!("{fusion:?}: a loss of no pass at all"), shape(&[no_pass]), move || {
                let mut fresh = Plan::<T>::new(network(&[3, 2, 4]), [4, 3].into(), Loss::CrossEntropy, fusion)?;
                assert!(fresh.backward(batch(&[4, 3]).view()).is_err() && fresh.output_of(0).is_none());
                attempt(&mut fresh, |fresh| fresh.loss_of(Targets::Classes(&[0; 4])).map(drop))
            }),
            row(
                ZeroRows,
                format!("{fusion:?}: a whole step over no rows"),
                gives("a loss of 0, and parameters stay"),
                move || {
                    let mut plan = Plan::<T>::new(network(&[3, 2, 4]), [4, 3].into(), Loss::CrossEntropy, fusion)?;
                    let before = plan.numbers();
                    assert_eq!(whole_step(&mut plan, &batch(&[0, 3]))?, 0.0);
                    plan.update(&mut Adam::new(0.1)?)?;
                    assert_same_bits("the plan", &plan.numbers(), &before);
                    Ok(())
                },
            ),
            call(
                Senseless,
                "a second backward pass",
                &[no_loss],
                |_| Ok(()),
                |plan| plan.backward(batch(&[4, 3]).view()),
            ),
            call(Senseless, "backward without a loss", &[no_loss], ahead, |plan| plan.backward(batch(&[4, 3]).view())),
            call(Mismatched, "values for classes", &["cross-entropy: targets is values"], ahead, |plan| {
                plan.loss_of(Targets::Values(&[T::ONE; 16])).map(drop)
            }),
            call(Truncated, "a class too few", &["cross-entropy: classes: expected [4], found [3]"], ahead, |plan| {
                plan.loss_of(Targets::Classes(&[0; 3])).map(drop)
            }),
            call(Oversized, "a class that is not there", &["label of row 2 is 4"], ahead, |plan| {
                plan.loss_of(Targets::Classes(&[0, 1, 4, 2])).map(drop)
            }),
            call(
                Mismatched,
                "backward over another batch",
                &[no_loss, "over [3, 3]"],
                |plan| {
                    plan.forward(batch(&[4, 3]).view())?;
                    plan.loss_of(Targets::Classes(&[0; 4])).map(drop)
                },
                |plan| plan.backward(batch(&[3, 3]).view()),
            ),
            call(
                Mismatched,
                "an optimiser of another model",
                &["optimiser: parameter 0"],
                |_| Ok(()),
                |plan| plan.update(&mut moved::<T, _>(Adam::new(0.1)?, 0).optimizer),
            ),
            row(Nan, format!("{fusion:?}: NaN in a batch"), gives("a loss of NaN"), move || {
                let mut x = batch::<T>(&[4, 3]);
                x.data_mut()[4] = T::from_f64(NAN);
                assert!(whole_step(&mut planned::<T>(fusion), &x)?.is_nan());
                Ok(())
            }),
        ]);
    }
    vec![entry("model::plan::Plan", rows), entry("model::Evaluation", evaluations::<T>())]
}

fn evaluations<T: Element>() -> Vec<Row> {
    let refreshed = || -> Result<(Sequential<T>, Evaluation<T>)> {
        let (model, _) = trained::<T>();
        let mut evaluation = model.evaluation([4, 3].into())?;
        evaluation.refresh(&model)?;
        Ok((model, evaluation))
    };
    let over = |kind, dims: &'static [usize], outcome| {
        row(kind, format!("infer over {:?}", Shape::new(dims)), outcome, move || {
            let (mut model, mut evaluation) = refreshed()?;
            attempt(&mut model, |model| evaluation.infer(model, batch(dims).view()).map(drop))
        })
    };
    let of_another = |widths: &'static [usize]| {
        row(
            Mismatched,
            format!("taken from {widths:?}"),
            shape(&["evaluation: expected the model that it was made for"]),
            move || refreshed()?.1.refresh(&network(widths)),
        )
    };
    vec![
        over(Oversized, &[5, 3], shape(&["model: batch: expected at most [4, 3], found [5, 3]"])),
        over(Mismatched, &[4, 2], shape(&["found [4, 2]"])),
        over(Empty, &[], shape(&["found []"])),
        over(ZeroRows, &[0, 3], gives("no rows")),
        over(OneRow, &[1, 3], gives("a row")),
        of_another(&[3, 4]),
        of_another(&[3, 5, 4]),
        of_another(&[4, 2, 4]),
        row(Mismatched, "infer by another model", shape(&["evaluation: layers: expected 4, found 1"]), move || {
            refreshed()?.1.infer(&network(&[3, 4]), batch(&[4, 3]).view()).map(drop)
        }),
        row(Empty, "no layers", shape(&["evaluation: layers: expected 1, found 0"]), || {
            let empty = Sequential::<T>::new();
            empty.evaluation([4, 3].into())?.infer(&empty, batch(&[4, 3]).view()).map(drop)
        }),
        row(Nan, "NaN in a row", gives("NaN in that row only"), move || {
            let (model, mut evaluation) = refreshed()?;
            let (x, mut poisoned) = (batch::<T>(&[4, 3]), batch::<T>(&[4, 3]));
            poisoned.data_mut()[4] = T::from_f64(NAN);
            let clean = evaluation.infer(&model, x.view())?.data().to_vec();
            nan_only("y", evaluation.infer(&model, poisoned.view())?.data(), &clean, |i| i / 4 == 1);
            Ok(())
        }),
        row(Misaligned, "a batch at every offset to 16", gives("the same bits"), move || {
            let (model, mut evaluation) = refreshed()?;
            let mut at = |offset| {
                let x = Guarded::new(&drawn::<T>(5, 12), offset);
                bits(evaluation.infer(&model, TensorRef::new([4, 3], x.get()).unwrap()).unwrap().data())
            };
            let aligned = at(0);
            (1..=16).for_each(|offset| assert_same_bits("offset and none", &at(offset), &aligned));
            Ok(())
        }),
    ]
}

// ---- Training.

/// A trainer for batches of four images of 2 x 3 pixels with three classes.
fn trainer<T: Element>(lr: f64) -> Trainer<T> {
    Trainer::new(network(&[6, 4, 3]), [4, 6], Loss::CrossEntropy, Sgd::new(lr).unwrap()).unwrap()
}

fn images(n: usize) -> Images {
    let pixels = (0..6 * n).map(|i| u8::try_from(i * 41 % 256).unwrap()).collect();
    Images::new(pixels, (0..n).map(|i| u8::try_from(i % 3).unwrap()).collect(), 2, 3, 3).unwrap()
}

pub(crate) fn training<T: Element>() -> Vec<Entry> {
    let step = |kind, input: &'static str, outcome, dims: &'static [usize], value: f64, labels: &'static [u8]| {
        row(kind, input, outcome, move || {
            let (mut trainer, mut x) = (trainer::<T>(0.1), batch::<T>(dims));
            if value != 0.0 {
                x.data_mut()[7] = T::from_f64(value);
            }
            trainer.start_epoch();
            let parameters = |trainer: &mut Trainer<T>| {
                let mut all = Vec::new();
                trainer.plan().visit(&mut |_, p| all.extend(bits(p.value)));
                all
            };
            let before = parameters(&mut trainer);
            let result = trainer.step(x.view(), Targets::Classes(labels), None).map(drop);
            if result.is_err() {
                assert_same_bits("parameters", &parameters(&mut trainer), &before);
            }
            result
        })
    };
    let fitted = |kind, input: &'static str, outcome, size: usize, epochs: usize, validation: fn() -> Images| {
        row(kind, input, outcome, move || {
            // At such a rate one step is enough to break the model.
            let mut trainer = trainer::<T>(if epochs == MAX { f64::MAX } else { 0.1 });
            let (set, before) = (images(8), trainer.plan_mut().numbers());
            let mut loader = Loader::new(&set, size, Order::AsStored, LastBatch::Keep, Scale::default())?;
            let result = fit(&mut trainer, &mut loader, &validation(), epochs, &Threads::one(), &mut |_| {});
            if !matches!(result, Ok(_) | Err(Error::NotFinite { .. })) {
                assert_same_bits("the model", &trainer.plan_mut().numbers(), &before);
            }
            result.map(|history| assert_eq!(history.len(), epochs))
        })
    };
    let first = ["epoch 1, step 1", "first not finite: the output of layer 0: Linear(6, 4)"];
    let metrics = |evaluator: &Evaluator<T>| evaluator.metrics().map(drop);
    vec![
        entry(
            "train::Trainer::step",
            [
                step(Nan, "NaN in a batch", refused(Variant::NotFinite, &first), &[4, 6], NAN, &[0, 1, 2, 0]),
                step(
                    Infinite,
                    "infinity in a batch",
                    refused(Variant::NotFinite, &first),
                    &[4, 6],
                    INFINITY,
                    &[0, 1, 2, 0],
                ),
                step(OneRow, "one row", refused(Variant::OneValuePerChannel, &["4 channels"]), &[1, 6], 0.0, &[0]),
                step(ZeroRows, "no rows", gives("a loss of 0"), &[0, 6], 0.0, &[]),
                step(
                    Oversized,
                    "too many rows",
                    shape(&["expected at most [4, 6], found [5, 6]"]),
                    &[5, 6],
                    0.0,
                    &[0; 5],
                ),
                step(Mismatched, "rows of another width", shape(&["found [4, 5]"]), &[4, 5], 0.0, &[0; 4]),
                step(Truncated, "a class too few", shape(&["classes: expected [4], found [3]"]), &[4, 6], 0.0, &[0; 3]),
                step(
                    Oversized,
                    "a class that is not there",
                    invalid(&["label of row 1 is 3"]),
                    &[4, 6],
                    0.0,
                    &[0, 3, 0, 0],
                ),
            ],
        ),
        entry(
            "train::fit",
            [
                fitted(Empty, "no epochs", invalid(&["epochs is 0, but must be at least 1"]), 4, 0, || images(4)),
                fitted(
                    Oversized,
                    "epochs without end, and a loss that ends them",
                    refused(Variant::NotFinite, &["epoch 1"]),
                    4,
                    MAX,
                    || images(4),
                ),
                fitted(OneRow, "batches of one", refused(Variant::OneValuePerChannel, &["4 channels"]), 1, 1, || {
                    images(4)
                }),
                fitted(
                    Oversized,
                    "batches beyond the trainer's",
                    shape(&["at most [4, 6], found [8, 6]"]),
                    8,
                    1,
                    || images(4),
                ),
                fitted(ZeroRows, "nothing to validate with", invalid(&["number of images is 0"]), 4, 1, || images(0)),
                fitted(OneRow, "one image to validate with", gives("an epoch"), 4, 1, || images(1)),
                fitted(
                    Mismatched,
                    "validation with other images",
                    shape(&["layer 0: Linear(6, 4)", "784"]),
                    4,
                    1,
                    || digits::generate(1, 0, 2).1,
                ),
            ],
        ),
        entry(
            "train::Evaluator",
            [
                row(Empty, "metrics of nothing", invalid(&["examples to evaluate is 0"]), move || {
                    metrics(&Evaluator::new(&network(&[6, 3]), Loss::CrossEntropy, &images(4))?)
                }),
                row(
                    Mismatched,
                    "another model",
                    shape(&["evaluation: expected the model that it was made for"]),
                    || {
                        Evaluator::<T>::new(&network(&[6, 3]), Loss::CrossEntropy, &images(4))?
                            .begin(&network(&[6, 4, 3]))
                    },
                ),
                row(Mismatched, "images that the model does not take", shape(&["layer 0: Linear(5, 3)"]), || {
                    Evaluator::<T>::new(&network(&[5, 3]), Loss::CrossEntropy, &images(4)).map(drop)
                }),
                row(Mismatched, "a loss over values", invalid(&["mse: targets is classes"]), || {
                    let (model, set) = (network::<T>(&[6, 3]), images(4));
                    let mut evaluator = Evaluator::new(&model, Loss::Mse, &set)?;
                    let mut loader = evaluator.loader(&set, Scale::default())?;
                    evaluator.evaluate(&model, &mut loader).map(drop)
                }),
                row(ZeroRows, "no images", invalid(&["number of images is 0"]), || {
                    let none = images(0);
                    Evaluator::<T>::new(&network(&[6, 3]), Loss::CrossEntropy, &none)?
                        .loader(&none, Scale::default())
                        .map(drop)
                }),
            ],
        ),
    ]
}
