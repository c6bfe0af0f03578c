//! Batch-normalised networks on a CPU: explicit SIMD kernels, and a minimal layer stack with hand-derived gradients.
//!
//! # Where to start
//!
//! - To train something: [`Sequential`] of [`layers`], a [`train::Trainer`], a [`data::Loader`]; `examples/train_digits.rs`.
//! - To call a kernel on slices: [`kernels`]. What each computes is specified by [`mod@reference`], in plain f64 loops.
//! - To check a gradient, ours or yours: [`gradcheck`].
//!
//! # The ladder
//!
//! A room imports only from rooms below it; `tests/architecture.rs` checks it. From low to high:
//!
//! ```text
//! error
//! rng  parallel  simd  matrix
//! machine  tensor
//! kernels  reference  data
//! layers  loss  optim
//! model
//! train  gradcheck
//! ```
//!
//! Everything above `simd` is generic over [`Element`](simd::Element), f32 or f64: networks train in one, and gradients are
//! checked in the other through the same kernels.
//!
//! # Determinism
//!
//! The same seed gives the same bits with any number of threads; work is cut by size, never by the number of threads. On the
//! fused instruction sets (`scalar`, `avx2`, `avx512`) results are the same bits too; `portable` may round products twice.
//!
//! # Unsafe code
//!
//! Denied in every room but `simd`, which names the instruction sets; each of its files states the one fact it relies on. Outside
//! the library two things need it: counting allocators, in the tests and in the command, and calling a rival with pointers, in the benches
//! and in `evenkeel bench`.
//!
//! # Features
//!
//! `data`: the reader of IDX files (`data::idx`), which needs a decompressor. `testing`: strategies for property tests
//! (`gradcheck::strategies`), which need `proptest`. Nothing is on by default.

pub mod data;
pub mod error;
pub mod gradcheck;
pub mod kernels;
pub mod layers;
pub mod loss;
pub mod machine;
pub mod matrix;
pub mod model;
pub mod optim;
pub mod parallel;
pub mod reference;
pub mod rng;
#[allow(unsafe_code, reason = "the only room that names an instruction set; each file states the fact it relies on")]
pub mod simd;
pub mod tensor;
pub mod train;

pub use error::{Error, Result};
pub use loss::{Loss, Targets};
pub use model::Sequential;
pub use parallel::Threads;
pub use rng::{Init, Rng};

/// The program in the README is compiled and run.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
