//! The two element types, and what the lanes need to know of them.

use super::Lanes;
use std::fmt::{Debug, Display};
use std::ops::{Add, Div, Mul, Neg, Sub};

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for f64 {}
}

/// f32 or f64: networks train in one, gradients are checked in the other, through the same kernels.
pub trait Element:
    Copy
    + Default
    + Send
    + Sync
    + PartialOrd
    + Debug
    + Display
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + sealed::Sealed
    + 'static
{
    /// Vectors of the AVX-512 backend.
    #[doc(hidden)]
    #[cfg(target_arch = "x86_64")]
    type Avx512: Lanes<Elem = Self>;
    /// Vectors of the AVX2 backend.
    #[doc(hidden)]
    #[cfg(target_arch = "x86_64")]
    type Avx2: Lanes<Elem = Self>;
    /// Vectors of the portable backend.
    #[doc(hidden)]
    type Portable: Lanes<Elem = Self>;
    /// One lane.
    #[doc(hidden)]
    type Scalar: Lanes<Elem = Self>;

    /// `f32` or `f64`.
    const NAME: &'static str;
    /// 0
    const ZERO: Self;
    /// 1
    const ONE: Self;
    /// Unit roundoff u: half the distance from 1 to the next larger number.
    const ROUNDOFF: f64;
    /// The largest number below the smallest normal one.
    const LARGEST_SUBNORMAL: Self;
    /// 1.5 times 2 to the number of fraction bits: adding and subtracting it rounds to an integer.
    #[doc(hidden)]
    const ROUND_MAGIC: Self;
    /// ln 2 in two parts, of which the first has trailing zeros so that its products with an exponent are exact.
    #[doc(hidden)]
    const LN_2: (Self, Self);
    /// Degree of the Taylor series of e^r for |r| <= ln(2)/2.
    #[doc(hidden)]
    const EXP_DEGREE: usize;
    /// Exponent of the smallest normal number.
    #[doc(hidden)]
    const LOWEST_EXPONENT: f64;

    /// Calls the function's version for this type.
    #[doc(hidden)]
    fn call<F: PerElement>(args: F::Args<'_, Self>);
    /// The nearest number of this type.
    fn from_f64(x: f64) -> Self;
    /// The same number as an f64, exactly.
    fn to_f64(self) -> f64;
    /// Neither NaN nor infinite.
    fn is_finite(self) -> bool;
    /// The bit pattern, widened: equal only for identical values.
    fn bits(self) -> u64;

    /// `x` as a sum of two numbers of this type, the first the nearest to `x`.
    #[inline(always)]
    fn split(x: f64) -> (Self, Self) {
        let high = Self::from_f64(x);
        // An infinite high part has no remainder: inf - inf would be NaN. It is computed in any case, so that several are side by side.
        let low = Self::from_f64(x - high.to_f64());
        (high, if high.is_finite() { low } else { Self::ZERO })
    }

    /// The number that [`Element::split`] took apart.
    fn join(parts: (Self, Self)) -> f64 {
        parts.0.to_f64() + parts.1.to_f64()
    }
}

/// A function that is written out for each type: it is compiled in the crate that writes it, where a generic one would be compiled
/// again in every crate that uses it.
///
/// Public, so that [`Element`] can name it, in a room that is not.
pub trait PerElement {
    /// What it is called with.
    type Args<'a, T: Element>;
    /// Its version for f32.
    fn with_f32(args: Self::Args<'_, f32>);
    /// Its version for f64.
    fn with_f64(args: Self::Args<'_, f64>);
}

impl Element for f32 {
    #[cfg(target_arch = "x86_64")]
    type Avx512 = super::avx512::F32x16;
    #[cfg(target_arch = "x86_64")]
    type Avx2 = super::avx2::F32x8;
    type Portable = super::portable::F32x4;
    type Scalar = super::scalar::One<f32>;

    const NAME: &'static str = "f32";
    const ZERO: f32 = 0.0;
    const ONE: f32 = 1.0;
    const ROUNDOFF: f64 = f32::EPSILON as f64 / 2.0;
    const LARGEST_SUBNORMAL: f32 = f32::from_bits(0x007f_ffff);
    const ROUND_MAGIC: f32 = 12_582_912.0;
    // The first part has 15 significant bits; |n| <= 127 needs 7.
    const LN_2: (f32, f32) = (f32::from_bits(0x3f31_7200), f32::from_bits(0x35bf_be8e));
    const EXP_DEGREE: usize = 7;
    const LOWEST_EXPONENT: f64 = -126.0;

    #[inline(always)]
    fn call<F: PerElement>(args: F::Args<'_, f32>) {
        F::with_f32(args);
    }
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "rounding to the nearest is what is asked for")]
    fn from_f64(x: f64) -> f32 {
        x as f32
    }
    #[inline(always)]
    fn to_f64(self) -> f64 {
        f64::from(self)
    }
    #[inline(always)]
    fn is_finite(self) -> bool {
        f32::is_finite(self)
    }
    fn bits(self) -> u64 {
        u64::from(self.to_bits())
    }
}

impl Element for f64 {
    #[cfg(target_arch = "x86_64")]
    type Avx512 = super::avx512::F64x8;
    #[cfg(target_arch = "x86_64")]
    type Avx2 = super::avx2::F64x4;
    type Portable = super::portable::F64x2;
    type Scalar = super::scalar::One<f64>;

    const NAME: &'static str = "f64";
    const ZERO: f64 = 0.0;
    const ONE: f64 = 1.0;
    const ROUNDOFF: f64 = f64::EPSILON / 2.0;
    const LARGEST_SUBNORMAL: f64 = f64::from_bits(0x000f_ffff_ffff_ffff);
    const ROUND_MAGIC: f64 = 6_755_399_441_055_744.0;
    // The first part has 32 significant bits; |n| <= 1023 needs 10.
    const LN_2: (f64, f64) = (f64::from_bits(0x3fe6_2e42_fee0_0000), f64::from_bits(0x3dea_39ef_3579_3c76));
    const EXP_DEGREE: usize = 13;
    const LOWEST_EXPONENT: f64 = -1022.0;

    #[inline(always)]
    fn call<F: PerElement>(args: F::Args<'_, f64>) {
        F::with_f64(args);
    }
    #[inline(always)]
    fn from_f64(x: f64) -> f64 {
        x
    }
    #[inline(always)]
    fn to_f64(self) -> f64 {
        self
    }
    #[inline(always)]
    fn is_finite(self) -> bool {
        f64::is_finite(self)
    }
    fn bits(self) -> u64 {
        self.to_bits()
    }
}
