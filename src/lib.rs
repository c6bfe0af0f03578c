//! Evenkeel.
pub mod data;
pub mod error;
pub mod kernels;
pub mod matrix;
pub mod parallel;
pub mod reference;
pub mod rng;
#[allow(unsafe_code, reason = "the only room that names an instruction set; each file states the fact it relies on")]
pub mod simd;
pub mod tensor;
pub use error::{Error, Result};
pub use parallel::Threads;
pub use rng::{Init, Rng};
