//! The specification: what every kernel computes, in f64 loops that are meant to be read and never made faster.
//!
//! Each file states one family: the formula, the derivation of its backward pass, and the code that says the same thing
//! again. Kernels are tested against these functions, the functions against numbers from PyTorch, and the backward passes
//! against central differences of the forward ones. Nothing in the crate computes with them, so a mistake here shows up as
//! a disagreement and not as a shared error.
//!
//! | file | states | its backward pass |
//! |---|---|---|
//! | [`gemm`] | `C <- alpha A B + beta C`, and the size of its rounding error | two more products ([`linear`]) |
//! | [`linear`] | `y = x W^T + b` | `dx`, `dweight`, `dbias` |
//! | [`batchnorm`] | statistics, normalisation in training and evaluation, running statistics | both modes |
//! | [`relu`] | zero what is `<= 0` | mask of the forward pass |
//! | [`reduce`] | column and row sums | copies, not stated |
//! | [`softmax_xent`] | cross-entropy of a softmax, mean over rows | its gradient |
//! | [`mse`] | mean squared error | its gradient |
//! | [`update`] | one step of SGD, one of Adam | none |
//! | [`sum`] | a sum that does not depend on its length or order | none |
//!
//! **Conventions.** Matrices are row-major slices; `[n, c]` has `n` rows of `c` values. Steps are unfused: BatchNorm
//! followed by ReLU is [`batchnorm::forward`] and then [`relu::forward`], and the backward passes in the other order.
//! Gradients are returned, not accumulated. A length that does not fit is a panic that names it, as in any slice kernel.
//!
//! **Precision.** Every reduction goes through [`sum::Sum`], which behaves like a sum in twice the precision. That makes
//! the reference a few roundings accurate at any size, good enough to judge kernels that compute in f64 themselves.

pub mod batchnorm;
pub mod gemm;
pub mod linear;
pub mod mse;
pub mod reduce;
pub mod relu;
pub mod softmax_xent;
pub mod sum;
pub mod update;
