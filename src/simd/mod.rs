//! Lanes: the only room that names an instruction set.
//!
//! A kernel is written once, as a struct with its arguments that implements `Kernel`: one generic function over a vector
//! type `V: Lanes`. `Isa::run` picks the vector type after run-time detection and calls it inside a function that is
//! compiled with that instruction set's features:
//!
//! ```text
//! struct Forward<'a, T> { x: &'a [T], y: &'a mut [T] }
//! impl<T: Element> Kernel<T> for Forward<'_, T> {
//!     type Output = ();
//!     #[inline(always)]
//!     fn run<V: Lanes<Elem = T>>(self) { ... }
//! }
//! isa.run(Forward { x, y })
//! ```
//!
//! **Why everything is `inline(always)`.** A function without the target feature cannot receive the intrinsics, so every
//! step from `Isa::run` down to the intrinsic has to end up in one function. One method that escapes costs a factor of a
//! hundred: check the benches after touching this room.
//!
//! **Laws.** All operations act lane by lane with IEEE 754 rounding. `mul_add` rounds once on every backend but
//! `portable`, which may round twice. Sums over lanes are defined on groups of 64 bytes (`Group`): the lanes of a group
//! are added by halving, `x[i] + x[i + n/2]`, so the scalar, AVX2 and AVX-512 backends give the same bits.

mod dispatch;
mod element;
mod lanes;
mod portable;
mod scalar;
mod window;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;

#[cfg(test)]
mod tests;

pub use dispatch::{ISA_VARIABLE, Isa, REQUIRE_VARIABLE, with_isa};
pub use element::Element;
pub(crate) use element::PerElement;
pub(crate) use lanes::{Group, Kernel, Lanes};
pub(crate) use window::{
    Abreast, ByColumn, ByRow, CellsMut, Column, Columns, Pairs, Panels, Row, Rows, RowsMut, Strided, Striped, Strips,
    Transfer, TransferRow, unaligned,
};
