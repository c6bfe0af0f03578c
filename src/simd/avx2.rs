//! 8 x f32 and 4 x f64 in 256 bits: AVX2 and FMA.
//!
//! **The fact that every `SAFETY` comment here relies on.** These types never leave the crate's kernels, and kernels receive
//! them only from `Isa::run`, which names them, or those of AVX-512 that have them as their half, only for an `Isa` value that was made
//! after the processor was found to have AVX2 and FMA. So wherever a method of this file runs, its instructions exist.

use super::{Element, Lanes};
use std::arch::x86_64::*;
use std::ops::{Add, Div, Mul, Sub};

/// 8 x f32.
#[derive(Clone, Copy)]
pub struct F32x8(__m256);

/// 4 x f64.
#[derive(Clone, Copy)]
pub struct F64x4(__m256d);

macro_rules! operator {
    ($name:ident, $trait:ident, $method:ident, $intrinsic:ident) => {
        impl $trait for $name {
            type Output = Self;
            #[inline(always)]
            fn $method(self, other: Self) -> Self {
                // SAFETY: AVX2 was detected (top of the file).
                unsafe { $name($intrinsic(self.0, other.0)) }
            }
        }
    };
}
operator!(F32x8, Add, add, _mm256_add_ps);
operator!(F32x8, Sub, sub, _mm256_sub_ps);
operator!(F32x8, Mul, mul, _mm256_mul_ps);
operator!(F32x8, Div, div, _mm256_div_ps);
operator!(F64x4, Add, add, _mm256_add_pd);
operator!(F64x4, Sub, sub, _mm256_sub_pd);
operator!(F64x4, Mul, mul, _mm256_mul_pd);
operator!(F64x4, Div, div, _mm256_div_pd);

/// A window of `n` set lanes starts at element `WIDTH - n`.
static WINDOW_32: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];
static WINDOW_64: [i64; 8] = [-1, -1, -1, -1, 0, 0, 0, 0];

#[inline(always)]
fn mask_32(n: usize) -> __m256i {
    let window = &WINDOW_32[8 - n..][..8];
    // SAFETY: the slice has 8 elements, 32 bytes; AVX2 was detected (top of the file).
    unsafe { _mm256_loadu_si256(window.as_ptr().cast()) }
}

#[inline(always)]
fn mask_64(n: usize) -> __m256i {
    let window = &WINDOW_64[4 - n..][..4];
    // SAFETY: the slice has 4 elements, 32 bytes; AVX2 was detected (top of the file).
    unsafe { _mm256_loadu_si256(window.as_ptr().cast()) }
}

impl Lanes for F32x8 {
    type Elem = f32;
    type Mask = __m256;
    type Half = Self;
    const WIDTH: usize = 8;
    const REGISTERS: usize = 16;

    #[inline(always)]
    fn splat(x: f32) -> Self {
        // SAFETY: AVX2 was detected (top of the file).
        unsafe { F32x8(_mm256_set1_ps(x)) }
    }
    #[inline(always)]
    fn load(x: &[f32]) -> Self {
        let x = &x[..8];
        // SAFETY: the slice has 8 elements; the load needs no alignment; AVX2 was detected (top of the file).
        unsafe { F32x8(_mm256_loadu_ps(x.as_ptr())) }
    }
    #[inline(always)]
    fn load_partial(x: &[f32]) -> Self {
        let mask = mask_32(x.len());
        // SAFETY: the mask has x.len() lanes set (mask_32 panics above 8); lanes that are not set are not read; AVX2 was detected (top of the file).
        unsafe { F32x8(_mm256_maskload_ps(x.as_ptr(), mask)) }
    }
    #[inline(always)]
    fn store(self, x: &mut [f32]) {
        let x = &mut x[..8];
        // SAFETY: the slice has 8 elements; the store needs no alignment; AVX2 was detected (top of the file).
        unsafe { _mm256_storeu_ps(x.as_mut_ptr(), self.0) }
    }
    #[inline(always)]
    unsafe fn stream(self, x: &mut [f32]) {
        let x = &mut x[..8];
        if x.as_ptr().addr().is_multiple_of(32) {
            // SAFETY: the slice has 8 elements and begins at a multiple of 32 bytes; the caller fences; AVX2 was detected (top of the
            // file).
            unsafe { _mm256_stream_ps(x.as_mut_ptr(), self.0) }
        } else {
            self.store(x);
        }
    }
    #[inline(always)]
    fn store_partial(self, x: &mut [f32]) {
        assert!(x.len() <= 8);
        if x.len() == 8 {
            return self.store(x);
        }
        // In pieces: a masked store takes tens of cycles on some processors.
        let (n, at) = (x.len(), x.as_mut_ptr());
        // SAFETY: four, two and one elements are written if their bit of n is set, the next ones behind them: n in all, which the
        // slice has; AVX2 was detected (top of the file).
        unsafe {
            let mut rest = _mm256_castps256_ps128(self.0);
            if n & 4 != 0 {
                _mm_storeu_ps(at, rest);
                rest = _mm256_extractf128_ps::<1>(self.0);
            }
            if n & 2 != 0 {
                _mm_storel_pd(at.add(n & 4).cast(), _mm_castps_pd(rest));
                rest = _mm_movehl_ps(rest, rest);
            }
            if n & 1 != 0 {
                _mm_store_ss(at.add(n & 6), rest);
            }
        }
    }
    #[inline(always)]
    fn from_bytes(x: &[u8]) -> Self {
        let x = &x[..8];
        // SAFETY: the slice has the 8 bytes that are loaded; AVX2 was detected (top of the file).
        unsafe { F32x8(_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(x.as_ptr().cast())))) }
    }
    #[inline(always)]
    fn mul_add(self, b: Self, c: Self) -> Self {
        // SAFETY: FMA was detected (top of the file).
        unsafe { F32x8(_mm256_fmadd_ps(self.0, b.0, c.0)) }
    }
    #[inline(always)]
    fn sqrt(self) -> Self {
        // SAFETY: AVX2 was detected (top of the file).
        unsafe { F32x8(_mm256_sqrt_ps(self.0)) }
    }
    #[inline(always)]
    fn le(self, other: Self) -> __m256 {
        // SAFETY: AVX2 was detected (top of the file).
        unsafe { _mm256_cmp_ps::<_CMP_LE_OQ>(self.0, other.0) }
    }
    #[inline(always)]
    fn select(mask: __m256, yes: Self, no: Self) -> Self {
        // SAFETY: AVX2 was detected (top of the file).
        unsafe { F32x8(_mm256_blendv_ps(no.0, yes.0, mask)) }
    }
    #[inline(always)]
    fn gated(self, gate: Self) -> Self {
        // A select would become three instructions.
        // SAFETY: AVX2 was detected (top of the file).
        unsafe { F32x8(_mm256_andnot_ps(gate.le(Self::zero()), self.0)) }
    }
    #[inline(always)]
    fn pow2(self) -> Self {
        let shifted = self + Self::splat(f32::ROUND_MAGIC);
        // SAFETY: AVX2 was detected (top of the file).
        unsafe {
            // The magic number puts the integer in the low bits; bias it and move it to the exponent field.
            let biased = _mm256_add_epi32(_mm256_castps_si256(shifted.0), _mm256_set1_epi32(127));
            F32x8(_mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased)))
        }
    }
    #[inline(always)]
    fn flush_subnormal(self) -> Self {
        // SAFETY: AVX2 was detected (top of the file).
        unsafe {
            // Zero and what is subnormal have no bit in the exponent field.
            let exponent = _mm256_and_si256(_mm256_castps_si256(self.0), _mm256_set1_epi32(0x7f80_0000));
            let is_small = _mm256_cmpeq_epi32(exponent, _mm256_setzero_si256());
            F32x8(_mm256_andnot_ps(_mm256_castsi256_ps(is_small), self.0))
        }
    }
    #[inline(always)]
    fn sum(self) -> f32 {
        // SAFETY: AVX2 was detected (top of the file).
        unsafe {
            let four = _mm_add_ps(_mm256_castps256_ps128(self.0), _mm256_extractf128_ps::<1>(self.0));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
        }
    }
    #[inline(always)]
    fn transpose(square: &mut [Self; 16]) {
        // Pairs of rows, pairs of pairs, then the halves. The digits are those of the rows: in each half of `pairs[0]` lie
        // r0c0 r1c0 r0c1 r1c1.
        let r = |i: usize| square[i].0;
        // SAFETY: no memory is read through a pointer; AVX2 was detected (top of the file).
        let columns = unsafe {
            let pairs = [
                _mm256_unpacklo_ps(r(0), r(1)),
                _mm256_unpackhi_ps(r(0), r(1)),
                _mm256_unpacklo_ps(r(2), r(3)),
                _mm256_unpackhi_ps(r(2), r(3)),
                _mm256_unpacklo_ps(r(4), r(5)),
                _mm256_unpackhi_ps(r(4), r(5)),
                _mm256_unpacklo_ps(r(6), r(7)),
                _mm256_unpackhi_ps(r(6), r(7)),
            ];
            let fours = [
                _mm256_shuffle_ps::<0x44>(pairs[0], pairs[2]),
                _mm256_shuffle_ps::<0xEE>(pairs[0], pairs[2]),
                _mm256_shuffle_ps::<0x44>(pairs[1], pairs[3]),
                _mm256_shuffle_ps::<0xEE>(pairs[1], pairs[3]),
                _mm256_shuffle_ps::<0x44>(pairs[4], pairs[6]),
                _mm256_shuffle_ps::<0xEE>(pairs[4], pairs[6]),
                _mm256_shuffle_ps::<0x44>(pairs[5], pairs[7]),
                _mm256_shuffle_ps::<0xEE>(pairs[5], pairs[7]),
            ];
            [
                _mm256_permute2f128_ps::<0x20>(fours[0], fours[4]),
                _mm256_permute2f128_ps::<0x20>(fours[1], fours[5]),
                _mm256_permute2f128_ps::<0x20>(fours[2], fours[6]),
                _mm256_permute2f128_ps::<0x20>(fours[3], fours[7]),
                _mm256_permute2f128_ps::<0x31>(fours[0], fours[4]),
                _mm256_permute2f128_ps::<0x31>(fours[1], fours[5]),
                _mm256_permute2f128_ps::<0x31>(fours[2], fours[6]),
                _mm256_permute2f128_ps::<0x31>(fours[3], fours[7]),
            ]
        };
        for i in 0..8 {
            square[i] = F32x8(columns[i]);
        }
    }
}

impl Lanes for F64x4 {
    type Elem = f64;
    type Mask = __m256d;
    type Half = Self;
    const WIDTH: usize = 4;
    const REGISTERS: usize = 16;

    #[inline(always)]
    fn splat(x: f64) -> Self {
        // SAFETY: AVX2 was detected (top of the file).
        unsafe { F64x4(_mm256_set1_pd(x)) }
    }
    #[inline(always)]
    fn load(x: &[f64]) -> Self {
        let x = &x[..4];
        // SAFETY: the slice has 4 elements; the load needs no alignment; AVX2 was detected (top of the file).
        unsafe { F64x4(_mm256_loadu_pd(x.as_ptr())) }
    }
    #[inline(always)]
    fn load_partial(x: &[f64]) -> Self {
        let mask = mask_64(x.len());
        // SAFETY: the mask has x.len() lanes set (mask_64 panics above 4); lanes that are not set are not read; AVX2 was detected (top of the file).
        unsafe { F64x4(_mm256_maskload_pd(x.as_ptr(), mask)) }
    }
    #[inline(always)]
    fn store(self, x: &mut [f64]) {
        let x = &mut x[..4];
        // SAFETY: the slice has 4 elements; the store needs no alignment; AVX2 was detected (top of the file).
        unsafe { _mm256_storeu_pd(x.as_mut_ptr(), self.0) }
    }
    #[inline(always)]
    unsafe fn stream(self, x: &mut [f64]) {
        let x = &mut x[..4];
        if x.as_ptr().addr().is_multiple_of(32) {
            // SAFETY: the slice has 4 elements and begins at a multiple of 32 bytes; the caller fences; AVX2 was detected (top of the
            // file).
            unsafe { _mm256_stream_pd(x.as_mut_ptr(), self.0) }
        } else {
            self.store(x);
        }
    }
    #[inline(always)]
    fn store_partial(self, x: &mut [f64]) {
        assert!(x.len() <= 4);
        if x.len() == 4 {
            return self.store(x);
        }
        let (n, at) = (x.len(), x.as_mut_ptr());
        // SAFETY: two elements and one are written if their bit of n is set, the one behind the two: n in all, which the slice has;
        // AVX2 was detected (top of the file).
        unsafe {
            let mut rest = _mm256_castpd256_pd128(self.0);
            if n & 2 != 0 {
                _mm_storeu_pd(at, rest);
                rest = _mm256_extractf128_pd::<1>(self.0);
            }
            if n & 1 != 0 {
                _mm_store_sd(at.add(n & 2), rest);
            }
        }
    }
    #[inline(always)]
    fn from_bytes(x: &[u8]) -> Self {
        // SAFETY: no memory is read through a pointer; AVX2 was detected (top of the file).
        unsafe {
            let four = _mm_cvtsi32_si128(i32::from_le_bytes([x[0], x[1], x[2], x[3]]));
            F64x4(_mm256_cvtepi32_pd(_mm_cvtepu8_epi32(four)))
        }
    }
    #[inline(always)]
    fn mul_add(self, b: Self, c: Self) -> Self {
        // SAFETY: FMA was detected (top of the file).
        unsafe { F64x4(_mm256_fmadd_pd(self.0, b.0, c.0)) }
    }
    #[inline(always)]
    fn sqrt(self) -> Self {
        // SAFETY: AVX2 was detected (top of the file).
        unsafe { F64x4(_mm256_sqrt_pd(self.0)) }
    }
    #[inline(always)]
    fn le(self, other: Self) -> __m256d {
        // SAFETY: AVX2 was detected (top of the file).
        unsafe { _mm256_cmp_pd::<_CMP_LE_OQ>(self.0, other.0) }
    }
    #[inline(always)]
    fn select(mask: __m256d, yes: Self, no: Self) -> Self {
        // SAFETY: AVX2 was detected (top of the file).
        unsafe { F64x4(_mm256_blendv_pd(no.0, yes.0, mask)) }
    }
    #[inline(always)]
    fn gated(self, gate: Self) -> Self {
        // A select would become three instructions.
        // SAFETY: AVX2 was detected (top of the file).
        unsafe { F64x4(_mm256_andnot_pd(gate.le(Self::zero()), self.0)) }
    }
    #[inline(always)]
    fn pow2(self) -> Self {
        let shifted = self + Self::splat(f64::ROUND_MAGIC);
        // SAFETY: AVX2 was detected (top of the file).
        unsafe {
            // The magic number puts the integer in the low bits; bias it and move it to the exponent field.
            let biased = _mm256_add_epi64(_mm256_castpd_si256(shifted.0), _mm256_set1_epi64x(1023));
            F64x4(_mm256_castsi256_pd(_mm256_slli_epi64::<52>(biased)))
        }
    }
    #[inline(always)]
    fn flush_subnormal(self) -> Self {
        // SAFETY: AVX2 was detected (top of the file).
        unsafe {
            let exponent = _mm256_and_si256(_mm256_castpd_si256(self.0), _mm256_set1_epi64x(0x7ff0_0000_0000_0000));
            let is_small = _mm256_cmpeq_epi64(exponent, _mm256_setzero_si256());
            F64x4(_mm256_andnot_pd(_mm256_castsi256_pd(is_small), self.0))
        }
    }
    #[inline(always)]
    fn sum(self) -> f64 {
        // SAFETY: AVX2 was detected (top of the file).
        unsafe {
            let two = _mm_add_pd(_mm256_castpd256_pd128(self.0), _mm256_extractf128_pd::<1>(self.0));
            _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)))
        }
    }
    #[inline(always)]
    fn transpose(square: &mut [Self; 16]) {
        let r = |i: usize| square[i].0;
        // SAFETY: no memory is read through a pointer; AVX2 was detected (top of the file).
        let columns = unsafe {
            let pairs = [
                _mm256_unpacklo_pd(r(0), r(1)),
                _mm256_unpackhi_pd(r(0), r(1)),
                _mm256_unpacklo_pd(r(2), r(3)),
                _mm256_unpackhi_pd(r(2), r(3)),
            ];
            [
                _mm256_permute2f128_pd::<0x20>(pairs[0], pairs[2]),
                _mm256_permute2f128_pd::<0x20>(pairs[1], pairs[3]),
                _mm256_permute2f128_pd::<0x31>(pairs[0], pairs[2]),
                _mm256_permute2f128_pd::<0x31>(pairs[1], pairs[3]),
            ]
        };
        for i in 0..4 {
            square[i] = F64x4(columns[i]);
        }
    }
}
