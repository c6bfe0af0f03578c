//! Evaluation with folded statistics is the folded model, whatever the stack, and follows the model as it changes.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails, in its helpers too")]

use evenkeel::data::digits;
use evenkeel::layers::{BatchNorm1d, BatchNormOptions, Linear, Relu};
use evenkeel::optim::Sgd;
use evenkeel::parallel::migrated;
use evenkeel::simd::{Element, Isa, with_isa};
use evenkeel::tensor::Tensor;
use evenkeel::train::{Evaluator, Trainer};
use evenkeel::{Loss, Rng, Sequential, Targets, Threads};

fn normals<T: Element>(shape: [usize; 2], seed: u64) -> Tensor<T> {
    let (mut tensor, mut rng) = (Tensor::zeros(shape).unwrap(), Rng::new(seed, "normals"));
    tensor.data_mut().fill_with(|| T::from_f64(rng.normal()));
    tensor
}

/// Every way in which a stage can be made up.
fn model<T: Element>(seed: u64) -> Sequential<T> {
    let rng = &mut Rng::new(seed, "init");
    let untracked = BatchNormOptions { track_running_stats: false, ..BatchNormOptions::default() };
    Sequential::new()
        .push(Linear::new(20, 17, rng).unwrap())
        .push(BatchNorm1d::new(17).unwrap())
        .push(Relu::new())
        .push(Linear::new(17, 9, rng).unwrap().without_bias())
        .push(BatchNorm1d::new(9).unwrap())
        .push(BatchNorm1d::new(9).unwrap())
        .push(Linear::new(9, 12, rng).unwrap())
        .push(Relu::new())
        .push(Linear::new(12, 6, rng).unwrap())
        .push(BatchNorm1d::with_options(6, untracked).unwrap())
        .push(Relu::new())
        .push(BatchNorm1d::new(6).unwrap())
        .push(Linear::new(6, 3, rng).unwrap())
}

/// The model after some steps, so that statistics are not those of a new one.
fn trained<T: Element>(seed: u64, steps: usize) -> Sequential<T> {
    let mut trainer = Trainer::new(model::<T>(seed), [8, 20], Loss::CrossEntropy, Sgd::new(0.05).unwrap()).unwrap();
    for step in 0..steps {
        let x = normals([8, 20], step as u64);
        trainer.step(x.view(), Targets::Classes(&[0, 1, 2, 0, 1, 2, 0, 1]), None).unwrap();
    }
    trainer.into_model()
}

fn evaluation_is_that_of_the_folded_model<T: Element>() {
    for isa in Isa::available() {
        with_isa(isa, || {
            let (model, mut folded) = (trained::<T>(1, 5), trained::<T>(1, 5));
            // Two layers that stand behind one another are folded one after the other there, and here the first alone.
            folded.fold().unwrap();
            let mut evaluation = model.evaluation([33, 20].into()).unwrap();
            evaluation.refresh(&model).unwrap();
            for rows in [33, 16, 5] {
                let x = normals::<T>([rows, 20], 70);
                let mut space = folded.infer_space(x.shape()).unwrap();
                let wanted = folded.infer(x.view(), &mut space).unwrap().data().to_vec();
                let found = evaluation.infer(&model, x.view()).unwrap();
                assert_eq!(found.shape(), [rows, 3].into());
                for (found, wanted) in found.data().iter().zip(&wanted) {
                    // The second of two normalisations is a pass by itself here: three roundings of numbers of order 1, four times
                    // over by the layers behind it.
                    let (found, wanted) = (found.to_f64(), wanted.to_f64());
                    assert!(
                        (found - wanted).abs() < 200.0 * T::ROUNDOFF * (1.0 + wanted.abs()),
                        "{isa}: {found}, {wanted}"
                    );
                }
            }
        });
    }
}

#[test]
fn evaluation_is_that_of_the_folded_model_in_single_precision() {
    evaluation_is_that_of_the_folded_model::<f32>();
}

#[test]
fn evaluation_is_that_of_the_folded_model_in_double_precision() {
    evaluation_is_that_of_the_folded_model::<f64>();
}

/// Without anything that is folded one after the other, the bits are those of the folded model.
#[test]
fn one_normalisation_has_the_bits_of_fold() {
    let model = |steps: usize| {
        let rng = &mut Rng::new(2, "init");
        let model = Sequential::<f32>::new()
            .push(Linear::new(20, 17, rng).unwrap())
            .push(BatchNorm1d::new(17).unwrap())
            .push(Relu::new())
            .push(Linear::new(17, 3, rng).unwrap());
        let mut trainer = Trainer::new(model, [8, 20], Loss::CrossEntropy, Sgd::new(0.05).unwrap()).unwrap();
        for step in 0..steps {
            let x = normals([8, 20], step as u64);
            trainer.step(x.view(), Targets::Classes(&[0, 1, 2, 0, 1, 2, 0, 1]), None).unwrap();
        }
        trainer.into_model()
    };
    let x = normals([30, 20], 5);
    let mut evaluation = model(0).evaluation([30, 20].into()).unwrap();
    let mut seen = Vec::new();
    // It follows the model from one state to the next.
    for steps in [0, 1, 6] {
        let (plain, mut folded) = (model(steps), model(steps));
        folded.fold().unwrap();
        evaluation.refresh(&plain).unwrap();
        let mut space = folded.infer_space(x.shape()).unwrap();
        let wanted = folded.infer(x.view(), &mut space).unwrap().data().to_vec();
        assert_eq!(evaluation.infer(&plain, x.view()).unwrap().data(), wanted);
        seen.push(wanted);
    }
    assert!(seen[0] != seen[1] && seen[1] != seen[2]);
}

/// 300 rows are five blocks, and weights of 784 x 100 lie in panels: these products have the bits of the folded model in one piece, whoever
/// computes them, and so have panels that are for another instruction set than the one at hand.
#[test]
fn blocks_and_panels_have_the_bits_of_the_whole() {
    let trained = || {
        let rng = &mut Rng::new(2, "init");
        let model = Sequential::<f32>::new()
            .push(Linear::new(784, 100, rng).unwrap())
            .push(BatchNorm1d::new(100).unwrap())
            .push(Relu::new())
            .push(Linear::new(100, 10, rng).unwrap());
        let mut trainer = Trainer::new(model, [64, 784], Loss::CrossEntropy, Sgd::new(0.05).unwrap()).unwrap();
        let labels: Vec<u8> = (0..10).cycle().take(64).collect();
        for step in 0..3 {
            trainer.step(normals([64, 784], step).view(), Targets::Classes(&labels), None).unwrap();
        }
        trainer.into_model()
    };
    let (model, mut folded) = (trained(), trained());
    folded.fold().unwrap();
    let mut space = folded.infer_space([300, 784].into()).unwrap();
    let x = normals([300, 784], 5);
    let mut evaluation = model.evaluation([300, 784].into()).unwrap();
    let isas = Isa::available();
    for (i, &isa) in isas.iter().enumerate() {
        let wanted = with_isa(isa, || folded.infer(x.view(), &mut space).unwrap().data().to_vec());
        with_isa(isas[(i + 1) % isas.len()], || evaluation.refresh(&model)).unwrap();
        let other = with_isa(isa, || evaluation.infer(&model, x.view()).unwrap().data().to_vec());
        with_isa(isa, || evaluation.refresh(&model)).unwrap();
        assert_eq!(wanted, other, "{isa}: by the panels of another");
        for count in [1, 2, 4] {
            let threads = Threads::new(count).unwrap();
            let before = migrated();
            for attempt in 1..=50 {
                let found =
                    threads.run(|| with_isa(isa, || evaluation.infer(&model, x.view()).unwrap().data().to_vec()));
                assert_eq!(wanted, found, "{isa}: {count} threads");
                if count == 1 || migrated() > before {
                    break;
                }
                assert!(attempt < 50, "{isa}, {count} threads: one worker did everything, so nothing was shown");
            }
        }
        // Less than a block, some blocks and a row, and nothing.
        for rows in [31, 33, 129, 0] {
            let part = Tensor::from_slice([rows, 784], &x.data()[..rows * 784]).unwrap();
            let found = with_isa(isa, || evaluation.infer(&model, part.view()).unwrap().data().to_vec());
            assert_eq!(found, wanted[..rows * 10], "{isa}: {rows} rows");
        }
    }
}

#[test]
fn what_cannot_be_folded_runs_as_it_is() {
    let rng = &mut Rng::new(2, "init");
    let mut model = Sequential::<f32>::new()
        .push(Linear::new(4, 2, rng).unwrap())
        .push(BatchNorm1d::new(2).unwrap())
        .push(Relu::new());
    let mut evaluation = model.evaluation([3, 4].into()).unwrap();
    let x = normals::<f32>([3, 4], 1);
    let mut space = model.infer_space(x.shape()).unwrap();
    // A weight so large that its product with the slope of the normalisation is not finite; its products with x are.
    model.visit_mut(&mut |layer, p| {
        if (layer, p.name) == (0, "weight") {
            p.value.fill(3e38);
        }
        if (layer, p.name) == (0, "bias") {
            p.value.fill(0.0);
        }
        if (layer, p.name) == (1, "weight") {
            p.value.fill(2.0);
        }
    });
    let small = Tensor::from_slice([1, 4], &[1e-3, 0.0, 0.0, 0.0]).unwrap();
    evaluation.refresh(&model).unwrap();
    let wanted = model.infer(small.view(), &mut space).unwrap().data().to_vec();
    assert!(wanted.iter().all(|y| y.is_finite() && *y > 0.0));
    assert_eq!(evaluation.infer(&model, small.view()).unwrap().data(), wanted);
}

#[test]
fn a_set_seen_in_parts_is_the_set() {
    let (images, _) = digits::generate(5, 300, 1);
    let rng = &mut Rng::new(1, "init");
    let model = Sequential::<f32>::new().push(Linear::new(784, 10, rng).unwrap()).push(BatchNorm1d::new(10).unwrap());
    let mut evaluator = Evaluator::new(&model, Loss::CrossEntropy, &images).unwrap();
    let mut loader = evaluator.loader(&images, evenkeel::data::Scale::default()).unwrap();
    let whole = evaluator.evaluate(&model, &mut loader).unwrap();
    assert!(whole.loss > 0.0 && (0.0..1.0).contains(&whole.accuracy));
    evaluator.begin(&model).unwrap();
    assert!(evaluator.metrics().is_err());
    loader.start_epoch(1);
    loader.for_each(|batches| evaluator.see(&model, batches)).unwrap();
    assert_eq!(evaluator.metrics().unwrap(), whole);
}
