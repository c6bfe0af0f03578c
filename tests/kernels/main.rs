//! The kernels against the f64 reference, on every instruction set of this machine, in f32 and in f64.
//!
//! One module per kernel family. `cargo test --test kernels -- --show-output` prints which instruction sets ran and what
//! the statistics measured; [`evenkeel::simd::REQUIRE_VARIABLE`] makes the absence of one a failure.
//!
//! Tolerances are the bounds that the kernels' module docs state, first order in the unit roundoff `u`; where a result is
//! made of several bounded quantities, the way from those to the tolerance is written beside it.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "every line here belongs to a test")]

mod batchnorm;
mod gemm;
#[path = "../golden/mod.rs"]
mod golden;
mod mse;
mod reduce;
mod relu;
mod softmax_xent;
mod support;
mod update;
