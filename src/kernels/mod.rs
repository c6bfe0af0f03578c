//! Kernels: the only code that does arithmetic on whole tensors.
//!
//! One family per file, named as its specification in `reference/`. Rules of the room:
//!
//! - A kernel is written once, over lanes (see [`simd`](crate::simd)); the instruction set is picked once per call, on the caller's
//!   thread, and used inside each task.
//! - Slices and matrix views in and out. Lengths that disagree panic at the first line (`# Panics`); what depends on values is
//!   a `Result`, checked before anything is written.
//! - Nothing is allocated: what a kernel needs beyond its arguments is handed to it as scratch.
//! - Work is cut by size, never by the number of threads, and partial results are merged in the order of their pieces.
//! - Parameter gradients accumulate, input gradients are overwritten.

pub mod batchnorm;
pub mod gemm;
pub mod mse;
pub mod reduce;
pub mod relu;
pub mod softmax_xent;
pub mod update;

/// What follows an affine map in the same kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Activation {
    /// Nothing.
    #[default]
    Identity,
    /// `max(0, z)`, NaN kept.
    Relu,
}

/// Elements in one block of a kernel that works element by element: 32 KiB of f32, so that a block of each operand stays in a
/// first-level cache of 64 KiB or a second-level one of any machine.
pub(crate) const BLOCK: usize = 8192;
