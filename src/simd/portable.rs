//! 128-bit lanes from the `wide` crate: SSE2, NEON and wasm, fixed when the crate is compiled.
//!
//! `mul_add` rounds twice where the target has no fused instruction (SSE2), so this backend agrees with the others within a
//! kernel's bound, not bit for bit.

use super::{Element, Lanes};
use std::ops::{Add, Div, Mul, Sub};
use wide::{f32x4, f64x2};

macro_rules! lanes {
    ($name:ident, $inner:ident, $elem:ident, $width:literal, $fraction_bits:literal, $bias:literal) => {
        #[doc = concat!(stringify!($width), " x ", stringify!($elem), " in 128 bits.")]
        #[derive(Clone, Copy)]
        pub struct $name($inner);

        lanes!(operator $name, Add, add, +);
        lanes!(operator $name, Sub, sub, -);
        lanes!(operator $name, Mul, mul, *);
        lanes!(operator $name, Div, div, /);

        impl Lanes for $name {
            type Elem = $elem;
            type Mask = $inner;
            type Half = Self;
            const WIDTH: usize = $width;
            const REGISTERS: usize = 16;

            #[inline(always)]
            fn splat(x: $elem) -> Self {
                $name($inner::splat(x))
            }
            #[inline(always)]
            fn load(x: &[$elem]) -> Self {
                let mut lanes = [0.0; $width];
                lanes.copy_from_slice(&x[..$width]);
                $name($inner::new(lanes))
            }
            #[inline(always)]
            fn load_partial(x: &[$elem]) -> Self {
                let mut lanes = [0.0; $width];
                lanes[..x.len()].copy_from_slice(x);
                $name($inner::new(lanes))
            }
            #[inline(always)]
            fn store(self, x: &mut [$elem]) {
                x[..$width].copy_from_slice(&self.0.to_array());
            }
            #[inline(always)]
            fn store_partial(self, x: &mut [$elem]) {
                x.copy_from_slice(&self.0.to_array()[..x.len()]);
            }
            #[inline(always)]
            fn from_bytes(x: &[u8]) -> Self {
                let mut lanes = [0.0; $width];
                for (lane, &byte) in lanes.iter_mut().zip(&x[..$width]) {
                    *lane = $elem::from(byte);
                }
                $name($inner::new(lanes))
            }
            #[inline(always)]
            fn mul_add(self, b: Self, c: Self) -> Self {
                $name(self.0.mul_add(b.0, c.0))
            }
            #[inline(always)]
            fn sqrt(self) -> Self {
                $name(self.0.sqrt())
            }
            #[inline(always)]
            fn le(self, other: Self) -> $inner {
                self.0.simd_le(other.0)
            }
            #[inline(always)]
            fn select(mask: $inner, yes: Self, no: Self) -> Self {
                $name(mask.bitselect(yes.0, no.0))
            }
            #[inline(always)]
            fn pow2(self) -> Self {
                let mut lanes = self.0.to_array();
                for lane in &mut lanes {
                    // The magic number puts the integer in the low bits; bias it and move it to the exponent field.
                    let bits = (*lane + $elem::ROUND_MAGIC).to_bits();
                    *lane = $elem::from_bits(bits.wrapping_add($bias) << $fraction_bits);
                }
                $name($inner::new(lanes))
            }
            #[inline(always)]
            fn sum(self) -> $elem {
                let mut lanes = self.0.to_array();
                let mut n = $width;
                while n > 1 {
                    n /= 2;
                    for i in 0..n {
                        lanes[i] += lanes[i + n];
                    }
                }
                lanes[0]
            }
            #[inline(always)]
            fn transpose(square: &mut [Self; 16]) {
                let mut rows = [$inner::ZERO; $width];
                for i in 0..$width {
                    rows[i] = square[i].0;
                }
                let columns = $inner::transpose(rows);
                for i in 0..$width {
                    square[i] = $name(columns[i]);
                }
            }
        }
    };
    (operator $name:ident, $trait:ident, $method:ident, $op:tt) => {
        impl $trait for $name {
            type Output = Self;
            #[inline(always)]
            fn $method(self, other: Self) -> Self {
                $name(self.0 $op other.0)
            }
        }
    };
}
lanes!(F32x4, f32x4, f32, 4, 23, 127);
lanes!(F64x2, f64x2, f64, 2, 52, 1023);
