//! Evenkeel.
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
