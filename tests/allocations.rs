//! A training step and an evaluation allocate nothing after the first, nor does a prepared model: a counting allocator watches.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails, in its helpers too")]
#![expect(unsafe_code, reason = "an allocator is an unsafe trait; this one only counts and passes on")]

use evenkeel::data::{LastBatch, Loader, Order, Scale, digits};
use evenkeel::kernels::update::Momentum;
use evenkeel::layers::{BatchNorm1d, Linear, Relu};
use evenkeel::optim::{Adam, Optimizer, Sgd};
use evenkeel::tensor::Tensor;
use evenkeel::train::{Evaluator, Trainer, enter};
use evenkeel::{Loss, Rng, Sequential, Targets, Threads};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

struct Counting;

static COUNT: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is passed on to the system's allocator with the caller's own arguments; counting touches no memory of it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise about the layout is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise about the pointer is passed on; it came from the system's allocator.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn model(seed: u64) -> Sequential<f32> {
    let rng = &mut Rng::new(seed, "init");
    Sequential::new()
        .push(Linear::new(784, 32, rng).unwrap())
        .push(BatchNorm1d::new(32).unwrap())
        .push(Relu::new())
        .push(Linear::new(32, 10, rng).unwrap())
}

/// The only test of this file: another one's allocations would be counted too.
#[test]
fn what_is_repeated_allocates_nothing_after_the_first() {
    // First, while there is no pool whose threads might still be ending.
    answers_of_a_prepared_model();
    steps_and_evaluations();
}

fn answers_of_a_prepared_model() {
    let rng = &mut Rng::new(1, "init");
    let mut model = Sequential::<f32>::new()
        .push(Linear::new(784, 100, rng).unwrap())
        .push(Relu::new())
        .push(Linear::new(100, 10, rng).unwrap());
    let mut space = model.infer_space([64, 784].into()).unwrap();
    let before = COUNT.load(Ordering::Relaxed);
    model.prepare().unwrap();
    assert_ne!(COUNT.load(Ordering::Relaxed), before, "the weight of 784x100 is not packed");
    let batches = [1, 3, 64].map(|rows| Tensor::<f32>::zeros([rows, 784]).unwrap());
    let before = COUNT.load(Ordering::Relaxed);
    for x in &batches {
        // A model that is prepared already is left alone.
        model.prepare().unwrap();
        model.infer(x.view(), &mut space).unwrap();
    }
    assert_eq!(COUNT.load(Ordering::Relaxed) - before, 0, "answers of a prepared model");
}

fn steps_and_evaluations() {
    let (train, _) = digits::generate(1, 331, 1);
    for count in [1, 2] {
        // Everything that can be split is split.
        let threads = Threads::new(count).unwrap().fork_from(0);
        let sgd = Box::new(Sgd::new(0.1).unwrap().momentum(0.9, Momentum::Nesterov).unwrap());
        let optimizers: [Box<dyn Optimizer<f32>>; 2] = [Box::new(Adam::new(0.01).unwrap()), sgd];
        for optimizer in optimizers {
            let mut trainer = Trainer::new(model(1), [32, 784], Loss::CrossEntropy, optimizer).unwrap();
            let mut loader = Loader::new(&train, 32, Order::Shuffled(1), LastBatch::Keep, Scale::default()).unwrap();
            let mut evaluator = Evaluator::new(trainer.model(), Loss::CrossEntropy, &train).unwrap();
            let mut all = evaluator.loader(&train, Scale::default()).unwrap();
            enter(&threads, || {
                // The first epoch fills what grows once: the optimiser's moments, the pool's queues.
                trainer.epoch(&mut loader).unwrap();
                evaluator.evaluate(trainer.model(), &mut all).unwrap();
                let mut allocating = 0;
                for epoch in 2..8 {
                    let before = COUNT.load(Ordering::Relaxed);
                    trainer.start_epoch();
                    loader.start_epoch(epoch);
                    // The last batch has 11 rows.
                    while let Some(batch) = loader.next_batch() {
                        trainer.step(batch.x, Targets::Classes(batch.labels), None).unwrap();
                    }
                    evaluator.evaluate(trainer.model(), &mut all).unwrap();
                    allocating += usize::from(COUNT.load(Ordering::Relaxed) != before);
                }
                // The pool allocates once more for each worker that steals its first piece of work, whenever that is.
                assert!(allocating < count, "{allocating} of 6 epochs allocate, with {count} threads");
            });
        }
    }
}
