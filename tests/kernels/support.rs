//! What every kernel test needs: the sweep over instruction sets, threads, data, canaries and comparisons.

use evenkeel::simd::{Element, Isa, REQUIRE_VARIABLE, with_isa};
use evenkeel::{Rng, Threads, parallel};
use proptest::test_runner::{Config, FileFailurePersistence, RngSeed};
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Makes a test in f32 and one in f64 of each generic function named.
macro_rules! in_both_types {
    ($($name:ident),+ $(,)?) => {
        mod single {
            $(#[test]
            fn $name() {
                super::$name::<f32>();
            })+
        }
        mod double {
            $(#[test]
            fn $name() {
                super::$name::<f64>();
            })+
        }
    };
}
pub(crate) use in_both_types;

/// Roundoff of the reference's own type.
pub(crate) const U64: f64 = f64::EPSILON / 2.0;

/// The instruction sets of this machine.
///
/// # Panics
/// If [`REQUIRE_VARIABLE`] names one that this machine does not have.
pub(crate) fn isas() -> Vec<Isa> {
    if let Ok(required) = std::env::var(REQUIRE_VARIABLE) {
        for name in required.split(',').map(str::trim).filter(|name| !name.is_empty()) {
            if let Err(e) = Isa::named(name) {
                panic!("{REQUIRE_VARIABLE}={required}: {e}");
            }
        }
    }
    Isa::available()
}

/// Runs `check` on every instruction set; a failure's message names the type and the set.
pub(crate) fn sweep<T: Element>(mut check: impl FnMut(Isa)) {
    let isas = isas();
    println!("{}: ran on {isas:?}", T::NAME);
    for isa in isas {
        let outcome = catch_unwind(AssertUnwindSafe(|| with_isa(isa, || check(isa))));
        if let Err(cause) = outcome {
            panic!("{} on {isa}: {}", T::NAME, message(&*cause));
        }
    }
}

/// What a panic said.
pub(crate) fn message(cause: &(dyn Any + Send)) -> &str {
    let text = cause.downcast_ref::<String>().map(String::as_str);
    text.or(cause.downcast_ref::<&str>().copied()).unwrap_or("a panic without a message")
}

/// Runs `result` with 1, 2, 4 and 7 threads on every instruction set: each set must give the same bits for any number of
/// threads, the fused ones the same bits as each other, and some piece of work must have gone to another thread.
pub(crate) fn same_bits_everywhere<T: Element>(result: impl Fn() -> Vec<u64> + Sync) {
    static BUDGETS: OnceLock<[Threads; 4]> = OnceLock::new();
    // Work of any size is split.
    let budgets = BUDGETS.get_or_init(|| [1, 2, 4, 7].map(|n| Threads::new(n).unwrap().fork_from(0)));
    let before = parallel::migrated();
    let mut fused: Option<(Isa, Vec<u64>)> = None;
    sweep::<T>(|isa| {
        let alone = result();
        for threads in budgets {
            let bits = threads.run(|| with_isa(isa, &result));
            assert_same_bits(&format!("{} threads and the calling thread alone", threads.count()), &bits, &alone);
        }
        if isa.is_fused() {
            let (first, bits) = fused.get_or_insert_with(|| (isa, alone.clone()));
            assert_same_bits(&format!("{isa} and {first}"), &alone, bits);
        }
    });
    // Whether a worker takes a piece is up to the system: on a busy machine it may take more than one try.
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(60) {
        if parallel::migrated() > before {
            return;
        }
        budgets[3].run(&result);
    }
    panic!("{}: no piece of work ran on another thread", T::NAME);
}

#[track_caller]
pub(crate) fn assert_same_bits(what: &str, found: &[u64], wanted: &[u64]) {
    assert_eq!(found.len(), wanted.len(), "{what}: number of values");
    if let Some(i) = (0..found.len()).find(|&i| found[i] != wanted[i]) {
        panic!("{what}: value {i} of {} has bits {:#x} and {:#x}", found.len(), found[i], wanted[i]);
    }
}

pub(crate) fn bits<T: Element>(x: &[T]) -> Vec<u64> {
    x.iter().map(|x| x.bits()).collect()
}

/// Like [`bits`], but NaN is NaN, whatever its payload: those of two instruction sets may differ.
pub(crate) fn comparable<T: Element>(x: &[T]) -> Vec<u64> {
    x.iter().map(|x| if x.to_f64().is_nan() { u64::MAX } else { x.bits() }).collect()
}

/// The same numbers in f64, exactly.
pub(crate) fn wide<T: Element>(x: &[T]) -> Vec<f64> {
    x.iter().map(|x| x.to_f64()).collect()
}

pub(crate) fn narrow<T: Element>(x: &[f64]) -> Vec<T> {
    x.iter().map(|&x| T::from_f64(x)).collect()
}

pub(crate) fn normals<T: Element>(rng: &mut Rng, n: usize) -> Vec<T> {
    (0..n).map(|_| T::from_f64(rng.normal())).collect()
}

/// Whether `found` is within `tolerance` of `wanted`; what is not finite must be the same.
#[track_caller]
pub(crate) fn near<T: Element>(what: &str, found: &[T], wanted: &[f64], tolerance: impl Fn(usize) -> f64) {
    assert_eq!(found.len(), wanted.len(), "{what}: number of elements");
    for (i, (f, &w)) in found.iter().zip(wanted).enumerate() {
        near_one(&format_args!("{what}[{i}]"), f.to_f64(), w, || tolerance(i));
    }
}

#[track_caller]
pub(crate) fn near_one(what: &dyn std::fmt::Display, found: f64, wanted: f64, tolerance: impl FnOnce() -> f64) {
    if !wanted.is_finite() {
        assert!(found == wanted || (found.is_nan() && wanted.is_nan()), "{what} is {found:e}, not {wanted:e}");
        return;
    }
    let limit = tolerance();
    let error = (found - wanted).abs();
    assert!(error <= limit, "{what} is {found:e}, not {wanted:e}: off by {error:.2e}, allowed {limit:.2e}");
}

/// A slice somewhere in a buffer, with canaries on both sides.
pub(crate) struct Guarded<T> {
    buffer: Vec<T>,
    start: usize,
    len: usize,
}

/// Exact in both types, and no result of any test.
const CANARY: f64 = -54_321.125;
const MARGIN: usize = 17;

impl<T: Element> Guarded<T> {
    /// `data` at an address that is `offset` elements further than the allocator's.
    pub(crate) fn new(data: &[T], offset: usize) -> Self {
        let canary = T::from_f64(CANARY);
        let mut buffer = vec![canary; offset + data.len() + MARGIN];
        buffer[offset..offset + data.len()].copy_from_slice(data);
        Guarded { buffer, start: offset, len: data.len() }
    }

    /// A slice of canaries: what an output holds before it is written.
    pub(crate) fn unwritten(len: usize, offset: usize) -> Self {
        Guarded::new(&vec![T::from_f64(CANARY); len], offset)
    }

    pub(crate) fn get(&self) -> &[T] {
        &self.buffer[self.start..self.start + self.len]
    }

    pub(crate) fn get_mut(&mut self) -> &mut [T] {
        &mut self.buffer[self.start..self.start + self.len]
    }

    /// Checks both margins.
    #[track_caller]
    pub(crate) fn check(&self, what: &str) {
        let canary = T::from_f64(CANARY).bits();
        for (i, x) in self.buffer.iter().enumerate() {
            let inside = i >= self.start && i < self.start + self.len;
            assert!(
                inside || x.bits() == canary,
                "{what}: {x} written {} elements from its start",
                i.abs_diff(self.start)
            );
        }
    }

    /// Checks that the slice itself still holds canaries.
    #[track_caller]
    pub(crate) fn check_unwritten(&self, what: &str) {
        let canary = T::from_f64(CANARY).bits();
        assert!(self.buffer.iter().all(|x| x.bits() == canary), "{what} was written");
    }
}

/// Property tests draw the same cases in every run; what once failed is kept in `<module>.regressions` and tried first.
pub(crate) fn cases(cases: u32, source_file: &'static str) -> Config {
    Config {
        cases,
        rng_seed: RngSeed::Fixed(20_260_101),
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
        source_file: Some(source_file),
        max_shrink_iters: 200,
        ..Config::default()
    }
}
