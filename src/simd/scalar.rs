//! One lane: for interpreters, for sanitizers, and for reading a kernel without thinking of vectors.
//!
//! `mul_add` is the library's fused one, so this backend gives the bits of AVX2 and AVX-512.

use super::{Element, Lanes};
use std::ops::{Add, Div, Mul, Sub};

/// A vector of one element.
#[derive(Clone, Copy)]
pub struct One<T>(T);

macro_rules! operator {
    ($trait:ident, $method:ident, $op:tt) => {
        impl<T: Element> $trait for One<T> {
            type Output = Self;
            #[inline(always)]
            fn $method(self, other: Self) -> Self {
                One(self.0 $op other.0)
            }
        }
    };
}
operator!(Add, add, +);
operator!(Sub, sub, -);
operator!(Mul, mul, *);
operator!(Div, div, /);

macro_rules! lanes {
    ($elem:ident, $fraction_bits:literal, $bias:literal) => {
        impl Lanes for One<$elem> {
            type Elem = $elem;
            type Mask = bool;
            type Half = Self;
            const WIDTH: usize = 1;
            const REGISTERS: usize = 16;

            #[inline(always)]
            fn splat(x: $elem) -> Self {
                One(x)
            }
            #[inline(always)]
            fn load(x: &[$elem]) -> Self {
                One(x[0])
            }
            #[inline(always)]
            fn load_partial(x: &[$elem]) -> Self {
                One(x.first().copied().unwrap_or(0.0))
            }
            #[inline(always)]
            fn store(self, x: &mut [$elem]) {
                x[0] = self.0;
            }
            #[inline(always)]
            fn store_partial(self, x: &mut [$elem]) {
                if let Some(first) = x.first_mut() {
                    *first = self.0;
                }
            }
            #[inline(always)]
            fn from_bytes(x: &[u8]) -> Self {
                One($elem::from(x[0]))
            }
            #[inline(always)]
            fn mul_add(self, b: Self, c: Self) -> Self {
                One(self.0.mul_add(b.0, c.0))
            }
            #[inline(always)]
            fn sqrt(self) -> Self {
                One(self.0.sqrt())
            }
            #[inline(always)]
            fn le(self, other: Self) -> bool {
                self.0 <= other.0
            }
            #[inline(always)]
            fn select(mask: bool, yes: Self, no: Self) -> Self {
                if mask { yes } else { no }
            }
            #[inline(always)]
            fn pow2(self) -> Self {
                // The magic number puts the integer in the low bits; bias it and move it to the exponent field.
                let bits = (self.0 + $elem::ROUND_MAGIC).to_bits();
                One($elem::from_bits(bits.wrapping_add($bias) << $fraction_bits))
            }
            #[inline(always)]
            fn sum(self) -> $elem {
                self.0
            }
            #[inline(always)]
            fn transpose(_: &mut [Self; 16]) {}
        }
    };
}
lanes!(f32, 23, 127);
lanes!(f64, 52, 1023);
