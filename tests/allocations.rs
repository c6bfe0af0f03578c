//! A training step and an evaluation allocate nothing after the first, nor does a prepared model: a counting allocator watches.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails, in its helpers too")]
#![expect(unsafe_code, reason = "an allocator is an unsafe trait; this one only counts and passes on")]

use evenkeel::data::{LastBatch, Loader, Order, Scale, digits};
use evenkeel::kernels::update::Momentum;
use evenkeel::layers::{BatchNorm1d, Linear, Relu};
use evenkeel::optim::{Adam, Optimizer, Sgd};
use evenkeel::tensor::Tensor;
use evenkeel::train::{Evaluator, Trainer, enter};
use evenkeel::{Loss, Rng, Sequential, Threads};
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

/// The only test of this file: another one's allocations would be counted too.
#[test]
fn what_is_repeated_allocates_nothing_after_the_first() {
    answers_of_a_prepared_model();
    // Pools stay until the end: a thread that ends allocates something.
    let _pools = new_pools();
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

/// The first work that is split in a new pool allocates nothing: its workers have begun, with all that they need to look for work.
fn new_pools() -> Vec<Threads> {
    let (x, mut dy) = (vec![1.0f32; 1 << 16], vec![1.0; 1 << 16]);
    let mut pools = Vec::new();
    for _ in 0..20 {
        let threads = Threads::new(4).unwrap().fork_from(0);
        let allocated = threads.run(|| {
            let before = COUNT.load(Ordering::Relaxed);
            for _ in 0..20 {
                evenkeel::kernels::relu::backward_in_place(&x, &mut dy);
            }
            COUNT.load(Ordering::Relaxed) - before
        });
        assert_eq!(allocated, 0, "in a new pool");
        pools.push(threads);
    }
    pools
}

/// The labs' networks and a wide one, with as many steps as a test can wait for.
const NETWORKS: [(&[usize], usize, usize); 3] =
    [(&[784, 32, 32, 10], 32, 1000), (&[784, 100, 50, 10], 64, 1000), (&[784, 1024, 1024, 10], 256, 12)];

fn network(widths: &[usize]) -> Sequential<f32> {
    let rng = &mut Rng::new(1, "init");
    let mut model = Sequential::new();
    for (i, pair) in widths.windows(2).enumerate() {
        model = model.push(Linear::new(pair[0], pair[1], rng).unwrap());
        if i + 2 < widths.len() {
            model = model.push(BatchNorm1d::new(pair[1]).unwrap()).push(Relu::new());
        }
    }
    model
}

fn steps_and_evaluations() {
    // The last batch of an epoch has other sizes: 11, 11 and 75 rows.
    let (train, _) = digits::generate(1, 331, 1);
    // As shipped, and everything split that can be.
    let pools = [1, 2].map(|count| [Threads::new(count).unwrap(), Threads::new(count).unwrap().fork_from(0)]);
    for (widths, batch, steps) in NETWORKS {
        for pools in &pools {
            for threads in pools {
                let plain = Sgd::new(0.01).unwrap();
                let sgd = Box::new(plain.clone().momentum(0.9, Momentum::Nesterov).unwrap());
                let optimizers: [Box<dyn Optimizer<f32>>; 3] =
                    [Box::new(Adam::new(0.001).unwrap()), sgd, Box::new(plain)];
                for optimizer in optimizers {
                    let mut trainer =
                        Trainer::new(network(widths), [batch, 784], Loss::CrossEntropy, optimizer).unwrap();
                    let mut loader =
                        Loader::new(&train, batch, Order::Shuffled(1), LastBatch::Keep, Scale::default()).unwrap();
                    let mut evaluator = Evaluator::new(trainer.model(), Loss::CrossEntropy, &train).unwrap();
                    let mut all = evaluator.loader(&train, Scale::default()).unwrap();
                    enter(threads, || {
                        // The first epoch fills what grows once: the optimiser's moments.
                        trainer.epoch(&mut loader).unwrap();
                        evaluator.evaluate(trainer.model(), &mut all).unwrap();
                        let before = COUNT.load(Ordering::Relaxed);
                        let (mut done, mut losses) = (0, 0.0);
                        while done < steps {
                            losses += trainer.epoch(&mut loader).unwrap();
                            done += loader.batches();
                            losses += evaluator.evaluate(trainer.model(), &mut all).unwrap().loss;
                        }
                        let allocated = COUNT.load(Ordering::Relaxed) - before;
                        assert!(losses.is_finite());
                        assert_eq!(allocated, 0, "{widths:?}: allocations in {done} steps, {threads:?}");
                    });
                }
            }
        }
    }
}
