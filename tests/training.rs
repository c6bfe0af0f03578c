//! Training as a whole: the same bits for any number of threads, PyTorch's numbers, both modes of BatchNorm, and every way in
//! which a run is refused or stopped.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails, in its helpers too")]

mod golden;

use evenkeel::data::{Images, LastBatch, Loader, Order, Scale, digits};
use evenkeel::kernels::update::Momentum;
use evenkeel::layers::{BatchNorm1d, BatchNormOptions, Layer, Linear, Parameter, Relu};
use evenkeel::model::plan::{Fusion, Plan};
use evenkeel::optim::{Adam, Optimizer, Sgd};
use evenkeel::simd::{Element, Isa, with_isa};
use evenkeel::tensor::{Tensor, TensorRef};
use evenkeel::train::{Evaluator, Trainer, enter, fit};
use evenkeel::{Error, Loss, Result, Rng, Sequential, Targets, Threads};
use golden::pytorch::*;
use std::cell::RefCell;

/// Linear, BatchNorm, ReLU for every hidden width, then a Linear.
fn network<T: Element>(widths: &[usize], seed: u64) -> Sequential<T> {
    let rng = &mut Rng::new(seed, "init");
    let mut model = Sequential::new();
    for (i, pair) in widths.windows(2).enumerate() {
        model = model.push(Linear::new(pair[0], pair[1], rng).unwrap());
        if i + 2 < widths.len() {
            model = model.push(BatchNorm1d::new(pair[1]).unwrap()).push(Relu::new());
        }
    }
    model
}

fn parameters<T: Element>(model: &Sequential<T>) -> Vec<u64> {
    let mut bits = Vec::new();
    model.visit(&mut |_, p| bits.extend(p.value.iter().map(|v| v.to_f64().to_bits())));
    bits
}

/// All that a training run leaves: the losses, the parameters, and the answers in evaluation, where running statistics show.
fn train_digits(
    widths: &[usize],
    batch: usize,
    steps: usize,
    threads: &Threads,
    images: &Images,
) -> (Vec<u64>, Vec<u64>) {
    let adam = Adam::new(0.01).unwrap();
    let mut trainer = Trainer::<f32>::new(network(widths, 1), [batch, 784], Loss::CrossEntropy, adam).unwrap();
    let mut loader = Loader::new(images, batch, Order::Shuffled(1), LastBatch::Drop, Scale::default()).unwrap();
    assert!(loader.batches() >= steps);
    let mut losses = Vec::new();
    enter(threads, || {
        trainer.start_epoch();
        for _ in 0..steps {
            let batch = loader.next_batch().unwrap();
            losses.push(trainer.step(batch.x, Targets::Classes(batch.labels), None).unwrap().to_bits());
        }
        let mut evaluator = Evaluator::new(trainer.model(), Loss::CrossEntropy, images).unwrap();
        let mut all = evaluator.loader(images, Scale::default()).unwrap();
        losses.push(evaluator.evaluate(trainer.model(), &mut all).unwrap().loss.to_bits());
    });
    (losses, parameters(trainer.model()))
}

/// The only test here that uses several threads, so that the count of what they took from each other is its own.
#[test]
fn any_number_of_threads_gives_the_same_bits() {
    let (images, _) = digits::generate(3, 640, 1);
    for (widths, batch, steps) in [(&[784, 32, 32, 10][..], 32, 20), (&[784, 1024, 1024, 10], 128, 3)] {
        let run = |threads: &Threads| train_digits(widths, batch, steps, threads, &images);
        let (losses, parameters) = run(&Threads::one());
        let first = f64::from_bits(losses[0]);
        assert!(losses.iter().all(|&loss| f64::from_bits(loss).is_finite()) && first > 1.0, "{widths:?}: {first}");
        for count in [1, 2, 4] {
            // As shipped, where small work stays on one thread, and with everything split that can be.
            for threads in [Threads::new(count).unwrap(), Threads::new(count).unwrap().fork_from(0)] {
                let before = evenkeel::parallel::migrated();
                let is_wide = widths[1] == 1024 && count > 1;
                // Whether a worker is in time to take a piece is up to the machine; it need not be at the first attempt.
                for attempt in 1..=50 {
                    let (other_losses, other_parameters) = run(&threads);
                    assert_eq!(losses, other_losses, "{widths:?}: losses with {threads:?}");
                    assert!(parameters == other_parameters, "{widths:?}: parameters with {threads:?}");
                    if !is_wide || evenkeel::parallel::migrated() > before {
                        break;
                    }
                    assert!(attempt < 50, "{widths:?}, {threads:?}: one worker did everything, so nothing was shown");
                }
            }
        }
    }
}

#[test]
fn fused_instruction_sets_give_the_same_bits() {
    // Exponentials are the crate's own, written over lanes, so even the loss has the same bits. `portable` rounds
    // twice where the others round once, and Adam's first steps, as long for a tiny gradient as for a large one, magnify that.
    let (images, _) = digits::generate(4, 96, 1);
    let run = |isa| with_isa(isa, || train_digits(&[784, 13, 7, 10], 16, 6, &Threads::one(), &images));
    let (losses, parameters) = run(Isa::named("scalar").unwrap());
    for isa in Isa::available() {
        let (other_losses, other_parameters) = run(isa);
        if isa.is_fused() {
            assert_eq!(losses, other_losses, "{isa}");
            assert!(parameters == other_parameters, "{isa}: parameters");
        }
        // Before the first update, some hundred roundings of f32 in a loss of order one.
        let (first, other) = (f64::from_bits(losses[0]), f64::from_bits(other_losses[0]));
        assert!((first - other).abs() < 1e-5 * first, "{isa}: first loss {other}, not {first}");
    }
}

// ---- PyTorch's numbers.

/// Relative to each number. Both sides compute in f64 and sum at most 18 terms in an order of their own, which leaves some
/// 1e-15 of the largest term; the smallest numbers among the golden ones are 1/1000 of the terms that they are sums of.
const GOLDEN: f64 = 1e-10;

#[track_caller]
fn near(what: &str, found: &[f64], wanted: &[f64]) {
    assert_eq!(found.len(), wanted.len(), "{what}: number of elements");
    for (i, (f, w)) in found.iter().zip(wanted).enumerate() {
        assert!((f - w).abs() <= GOLDEN * w.abs(), "{what}[{i}] is {f:e}, not {w:e}");
    }
}

/// `[rows, cols]` to `[cols, rows]`.
fn transposed(values: &[f64], cols: usize) -> Vec<f64> {
    (0..cols).flat_map(|j| values.iter().skip(j).step_by(cols).copied()).collect()
}

/// The network that the golden numbers are of: Linear(3, 4), BatchNorm1d(4), ReLU, Linear(4, 3).
fn golden_stack() -> Sequential<f64> {
    let rng = &mut Rng::new(1, "overwritten");
    let (mut first, mut last) = (Linear::new(3, 4, rng).unwrap(), Linear::new(4, 3, rng).unwrap());
    first.set_weight(&STACK_0_WEIGHT).unwrap();
    first.set_bias(&STACK_0_BIAS).unwrap();
    last.set_weight(&STACK_3_WEIGHT).unwrap();
    last.set_bias(&STACK_3_BIAS).unwrap();
    let mut norm = BatchNorm1d::new(4).unwrap();
    set(&mut norm, &STACK_1_WEIGHT, &STACK_1_BIAS);
    Sequential::new().push(first).push(norm).push(Relu::new()).push(last)
}

fn set(layer: &mut BatchNorm1d<f64>, gamma: &[f64], beta: &[f64]) {
    layer.visit_mut(&mut |p| p.value.copy_from_slice(if p.name == "weight" { gamma } else { beta }));
}

#[test]
fn a_whole_network_is_pytorchs_on_every_instruction_set() {
    let labels = STACK_LABELS.map(|label| u8::try_from(label).unwrap());
    for isa in Isa::available() {
        with_isa(isa, || {
            let mut model = golden_stack();
            let x = TensorRef::new([6, 3], &STACK_X).unwrap();
            let mut space = model.workspace([6, 3].into()).unwrap();
            let mut dx = Tensor::zeros([6, 3]).unwrap();
            model.forward(x, &mut space).unwrap();
            let (y, dy) = space.output_and_gradient().unwrap();
            let loss = Loss::CrossEntropy.forward_backward(y, Targets::Classes(&labels), dy).unwrap();
            near(&format!("{isa}: loss"), &[loss], &[STACK_LOSS]);
            model.zero_grad();
            model.backward(x, &mut space, Some(dx.view_mut())).unwrap();
            near(&format!("{isa}: dx"), dx.data(), &STACK_DX);
            model.visit(&mut |layer, p| is_golden(&isa.to_string(), layer, &p));
            // By a plan, too.
            for fusion in [Fusion::On, Fusion::Off] {
                let mut plan = Plan::new(golden_stack(), [6, 3].into(), Loss::CrossEntropy, fusion).unwrap();
                plan.forward(x).unwrap();
                near(
                    &format!("{isa}, {fusion:?}: loss"),
                    &[plan.loss_of(Targets::Classes(&labels)).unwrap()],
                    &[STACK_LOSS],
                );
                plan.backward(x).unwrap();
                plan.visit(&mut |layer, p| is_golden(&format!("{isa}, {fusion:?}"), layer, &p));
            }
        });
    }
}

/// Compares the gradient of a parameter of [`golden_stack`].
fn is_golden(what: &str, layer: usize, p: &Parameter<'_, f64>) {
    let what = format!("{what}: d {layer}.{}", p.name);
    match (layer, p.name) {
        (0, "weight") => near(&what, &transposed(p.grad, 4), &STACK_D0_WEIGHT),
        // The normalisation cancels this bias: zero by theory, and noise in PyTorch as well.
        (0, "bias") => {
            assert!(p.grad.iter().chain(&STACK_D0_BIAS).all(|g| g.abs() < 1e-12), "{what}: {:?}", p.grad);
        }
        (1, "weight") => near(&what, p.grad, &STACK_D1_WEIGHT),
        (1, "bias") => near(&what, p.grad, &STACK_D1_BIAS),
        (3, "weight") => near(&what, &transposed(p.grad, 3), &STACK_D3_WEIGHT),
        (3, "bias") => near(&what, p.grad, &STACK_D3_BIAS),
        other => panic!("{other:?} is no parameter of this network"),
    }
}

#[test]
fn optimisers_are_pytorchs() {
    let sgd = || Sgd::<f64>::new(0.1).unwrap();
    let heavy = |form| sgd().momentum(0.9, form).unwrap().weight_decay(0.01).unwrap();
    let adam = || Adam::<f64>::new(0.01).unwrap();
    type Case<'a> = (&'a str, Box<dyn Optimizer<f64>>, &'a [f64]);
    let optimizers: [Case<'_>; 5] = [
        ("SGD", Box::new(sgd()), &SGD_PLAIN),
        ("SGD with momentum", Box::new(heavy(Momentum::Classical)), &SGD_MOMENTUM),
        ("SGD with Nesterov's momentum", Box::new(heavy(Momentum::Nesterov)), &SGD_NESTEROV),
        ("Adam", Box::new(adam()), &ADAM),
        ("Adam with weight decay", Box::new(adam().weight_decay(0.1).unwrap()), &ADAM_DECAY),
    ];
    for (name, mut optimizer, wanted) in optimizers {
        let mut p = STEP_START;
        for (step, (g, wanted)) in STEP_GRADIENTS.chunks(4).zip(wanted.chunks(4)).enumerate() {
            optimizer.begin_step();
            optimizer.update(0, &mut p, g).unwrap();
            near(&format!("{name}, step {}", step + 1), &p, wanted);
        }
    }
}

// ---- BatchNorm's two modes.

fn forward(layer: &mut dyn Layer<f64>, x: &[f64], rows: usize) -> Result<Vec<f64>> {
    let x = TensorRef::new([rows, x.len() / rows], x)?;
    let mut y = Tensor::from_slice(x.shape(), &vec![-7.0; x.data().len()])?;
    let (mut saved, mut scratch) = (vec![0.0; layer.saved_len(x.shape())], vec![0.0; layer.scratch_len(x.shape())]);
    let result = layer.forward(x, y.view_mut(), &mut saved, &mut scratch);
    assert!(result.is_ok() || y.data().iter().all(|&y| y == -7.0), "an error left something in y");
    result.map(|()| y.data().to_vec())
}

fn infer(layer: &dyn Layer<f64>, x: &[f64], rows: usize) -> Vec<f64> {
    let x = TensorRef::new([rows, x.len() / rows], x).unwrap();
    let (mut y, mut scratch) = (Tensor::zeros(x.shape()).unwrap(), vec![0.0; layer.scratch_len(x.shape())]);
    layer.infer(x, y.view_mut(), &mut scratch).unwrap();
    y.data().to_vec()
}

#[test]
fn running_statistics_and_both_modes_are_pytorchs() {
    for isa in Isa::available() {
        with_isa(isa, || {
            let mut layer = BatchNorm1d::new(3).unwrap();
            set(&mut layer, &BN_GAMMA, &BN_BETA);
            let y = forward(&mut layer, &BN_X1, 5).unwrap();
            near("y in training", &y, &BN_Y);
            near("running mean after one", layer.running().unwrap().0, &BN_RUNNING_MEAN_1);
            near("running var after one", layer.running().unwrap().1, &BN_RUNNING_VAR_1);
            forward(&mut layer, &BN_X2, 4).unwrap();
            near("running mean after two", layer.running().unwrap().0, &BN_RUNNING_MEAN_2);
            near("running var after two", layer.running().unwrap().1, &BN_RUNNING_VAR_2);
            assert_eq!(layer.num_batches_tracked(), 2);
            let evaluated = infer(&layer, &BN_X1, 5);
            near("y in evaluation", &evaluated, &BN_EVAL_Y);
            // One example at a time gives the same in evaluation: nothing depends on the batch there.
            let singly: Vec<f64> = BN_X1.chunks(3).flat_map(|row| infer(&layer, row, 1)).collect();
            assert_eq!(singly, evaluated);
            assert!(y.iter().zip(&evaluated).any(|(a, b)| (a - b).abs() > 0.1), "the modes should differ");
            near("running mean after evaluation", layer.running().unwrap().0, &BN_RUNNING_MEAN_2);

            let cumulative = BatchNormOptions { momentum: None, ..BatchNormOptions::default() };
            let mut layer = BatchNorm1d::<f64>::with_options(3, cumulative).unwrap();
            forward(&mut layer, &BN_X1, 5).unwrap();
            forward(&mut layer, &BN_X2, 4).unwrap();
            near("cumulative mean", layer.running().unwrap().0, &BN_CUMULATIVE_MEAN);
            near("cumulative var", layer.running().unwrap().1, &BN_CUMULATIVE_VAR);

            // Without running statistics, evaluation uses the batch's own, as training does.
            let plain = BatchNormOptions {
                eps: 0.01,
                affine: false,
                track_running_stats: false,
                ..BatchNormOptions::default()
            };
            let mut layer = BatchNorm1d::with_options(3, plain).unwrap();
            near("y without affine", &forward(&mut layer, &BN_X1, 5).unwrap(), &BN_PLAIN_Y);
            near("y without affine, evaluated", &infer(&layer, &BN_X1, 5), &BN_PLAIN_Y);
            assert!(layer.running().is_none() && layer.num_batches_tracked() == 0);
        });
    }
}

#[test]
fn one_value_per_channel_cannot_be_trained_on() {
    let mut layer = BatchNorm1d::<f64>::new(3).unwrap();
    let error = forward(&mut layer, &[1.0, 2.0, 3.0], 1).unwrap_err();
    assert!(matches!(error, Error::OneValuePerChannel { channels: 3 }), "{error}");
    assert_eq!(layer.running().unwrap(), (&[0.0; 3][..], &[1.0; 3][..]));
    assert_eq!(layer.num_batches_tracked(), 0);

    let mut trainer =
        Trainer::new(network::<f64>(&[3, 4, 2], 1), [6, 3], Loss::CrossEntropy, Sgd::new(0.1).unwrap()).unwrap();
    let before = parameters(trainer.model());
    let one = TensorRef::new([1, 3], &STACK_X[..3]).unwrap();
    let error = trainer.step(one, Targets::Classes(&[1]), None).unwrap_err();
    assert!(matches!(error, Error::OneValuePerChannel { channels: 4 }), "{error}");
    assert_eq!(parameters(trainer.model()), before);
    // Two are enough, and one is in evaluation.
    trainer.step(TensorRef::new([2, 3], &STACK_X[..6]).unwrap(), Targets::Classes(&[1, 0]), None).unwrap();
    assert_ne!(parameters(trainer.model()), before);
    let mut space = trainer.model().infer_space([6, 3].into()).unwrap();
    assert_eq!(trainer.model().infer(one, &mut space).unwrap().shape(), [1, 2].into());
}

#[test]
fn a_ragged_last_batch_is_trained_on_kept_or_dropped() {
    let (images, _) = digits::generate(5, 70, 1);
    for (last, batch, rows) in [
        (LastBatch::Keep, 32, vec![32, 32, 6]),
        (LastBatch::Drop, 32, vec![32, 32]),
        (LastBatch::Keep, 23, vec![23; 3]),
    ] {
        let mut trainer =
            Trainer::<f32>::new(network(&[784, 8, 10], 1), [32, 784], Loss::CrossEntropy, Adam::new(0.01).unwrap())
                .unwrap();
        let mut loader = Loader::new(&images, batch, Order::Shuffled(1), last, Scale::default()).unwrap();
        loader.start_epoch(1);
        let mut seen = Vec::new();
        while let Some(batch) = loader.next_batch() {
            let mut observed = None;
            let before = parameters(trainer.model());
            let result = trainer.step(
                batch.x,
                Targets::Classes(batch.labels),
                Some(&mut |step| observed = Some((step.loss, step.plan.output_of(3).unwrap().shape().dims()[0]))),
            );
            if batch.labels.len() == 1 {
                assert!(matches!(result, Err(Error::OneValuePerChannel { .. })));
                continue;
            }
            assert_eq!(observed, Some((result.unwrap(), batch.labels.len())));
            assert_ne!(parameters(trainer.model()), before);
            seen.push(batch.labels.len());
        }
        assert_eq!(seen, rows);
    }
}

// ---- Stopped.

#[test]
fn a_loss_that_is_not_finite_stops_before_the_update_and_names_the_place() {
    // A step of 1e30 along any gradient leaves numbers whose products overflow f32.
    let (images, validation) = digits::generate(7, 96, 5);
    let rng = &mut Rng::new(1, "init");
    let model = Sequential::<f32>::new()
        .push(Linear::new(784, 16, rng).unwrap())
        .push(Relu::new())
        .push(Linear::new(16, 10, rng).unwrap());
    let mut trainer = Trainer::new(model, [32, 784], Loss::CrossEntropy, Sgd::new(1e30).unwrap()).unwrap();
    let mut loader = Loader::new(&images, 32, Order::AsStored, LastBatch::Drop, Scale::default()).unwrap();
    trainer.start_epoch();
    trainer.start_epoch();
    let mut stopped = None;
    while let Some(batch) = loader.next_batch() {
        let before = parameters(trainer.model());
        let told = RefCell::new(false);
        let result = trainer.step(batch.x, Targets::Classes(batch.labels), Some(&mut |_| *told.borrow_mut() = true));
        if let Err(error) = result {
            assert_eq!(parameters(trainer.model()), before, "the parameters of before the step stay");
            assert!(!*told.borrow(), "there is no gradient to show");
            stopped = Some(error);
            break;
        }
    }
    match stopped {
        Some(Error::NotFinite { epoch: 2, step: 2, first }) => {
            assert_eq!(first, "the output of layer 2: Linear(16, 10)");
        }
        other => panic!("not stopped in epoch 2, step 2: {other:?}"),
    }
    // As part of a run.
    let error = fit(&mut trainer, &mut loader, &validation, 2, &Threads::one(), &mut |_| {}).unwrap_err();
    assert!(matches!(error, Error::NotFinite { epoch: 3, step: 1, .. }), "{error}");
    assert!(error.to_string().contains("lower learning rate"), "{error}");
}

#[test]
fn not_finite_data_and_losses_are_told_apart() {
    let new = |loss| Trainer::new(network::<f64>(&[3, 4, 2], 1), [6, 3], loss, Sgd::new(0.1).unwrap()).unwrap();
    let mut x = Tensor::from_slice([6, 3], &STACK_X).unwrap();
    x.data_mut()[4] = f64::NAN;
    let mut trainer = new(Loss::CrossEntropy);
    trainer.start_epoch();
    let error = trainer.step(x.view(), Targets::Classes(&[0, 1, 1, 0, 1, 0]), None).unwrap_err();
    assert!(
        matches!(&error, Error::NotFinite { epoch: 1, step: 1, first } if first == "the output of layer 0: Linear(3, 4)"),
        "{error}"
    );
    // Every output is finite, but not the square of its distance from the target.
    let x = TensorRef::new([6, 3], &STACK_X).unwrap();
    let error = new(Loss::Mse).step(x, Targets::Values(&[1e200; 12]), None).unwrap_err();
    assert!(matches!(&error, Error::NotFinite { first, .. } if first == "the loss"), "{error}");
}

// ---- Real data.

#[cfg(feature = "data")]
#[test]
fn one_epoch_on_real_mnist() {
    let Some(folder) = std::env::var_os("EVENKEEL_DATA").map(std::path::PathBuf::from) else {
        eprintln!("skipped: EVENKEEL_DATA is not set");
        return;
    };
    let (images, validation) = evenkeel::data::idx::read_split(&folder.join("mnist")).unwrap();
    let model = network::<f32>(&[784, 32, 32, 10], 1);
    let mut trainer = Trainer::new(model, [32, 784], Loss::CrossEntropy, Adam::new(0.01).unwrap()).unwrap();
    let mut loader = Loader::new(&images, 32, Order::Shuffled(1), LastBatch::Drop, Scale::default()).unwrap();
    let epochs = fit(&mut trainer, &mut loader, &validation, 1, &Threads::one(), &mut |_| {}).unwrap();
    let found = epochs[0].validation;
    assert!(found.accuracy >= 0.93, "{found:?}");
}

#[test]
fn an_evaluation_that_is_not_finite_names_the_step_that_broke_the_model() {
    let (images, _) = digits::generate(5, 64, 1);
    let sgd = Sgd::new(1e38).unwrap();
    let mut trainer = Trainer::<f32>::new(network(&[784, 8, 10], 1), [64, 784], Loss::CrossEntropy, sgd).unwrap();
    let mut loader = Loader::new(&images, 64, Order::AsStored, LastBatch::Drop, Scale::default()).unwrap();
    let error = fit(&mut trainer, &mut loader, &images, 1, &Threads::one(), &mut |_| {}).unwrap_err();
    assert!(matches!(error, Error::NotFinite { epoch: 1, step: 1, .. }), "{error}");
    assert!(error.to_string().contains("in evaluation"), "{error}");
}
