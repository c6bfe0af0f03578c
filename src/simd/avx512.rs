//! 16 x f32 and 8 x f64 in 512 bits: AVX-512 F, BW, DQ and VL.
//!
//! **The fact that every `SAFETY` comment here relies on.** These types never leave the crate's kernels, and kernels receive
//! them only from `Isa::run`, which names them only for an `Isa` value that was made after the processor was found to have
//! these AVX-512 features. So wherever a method of this file runs, its instructions exist.

use super::{Element, Lanes};
use std::arch::x86_64::*;
use std::ops::{Add, Div, Mul, Sub};

/// 16 x f32.
#[derive(Clone, Copy)]
pub struct F32x16(__m512);

/// 8 x f64.
#[derive(Clone, Copy)]
pub struct F64x8(__m512d);

macro_rules! operator {
    ($name:ident, $trait:ident, $method:ident, $intrinsic:ident) => {
        impl $trait for $name {
            type Output = Self;
            #[inline(always)]
            fn $method(self, other: Self) -> Self {
                // SAFETY: AVX-512 was detected (top of the file).
                unsafe { $name($intrinsic(self.0, other.0)) }
            }
        }
    };
}
operator!(F32x16, Add, add, _mm512_add_ps);
operator!(F32x16, Sub, sub, _mm512_sub_ps);
operator!(F32x16, Mul, mul, _mm512_mul_ps);
operator!(F32x16, Div, div, _mm512_div_ps);
operator!(F64x8, Add, add, _mm512_add_pd);
operator!(F64x8, Sub, sub, _mm512_sub_pd);
operator!(F64x8, Mul, mul, _mm512_mul_pd);
operator!(F64x8, Div, div, _mm512_div_pd);

/// A mask of the first `n` lanes.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "n is at most 16")]
fn first_16(n: usize) -> __mmask16 {
    assert!(n <= 16);
    ((1u32 << n) - 1) as __mmask16
}

/// A mask of the first `n` lanes.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "n is at most 8")]
fn first_8(n: usize) -> __mmask8 {
    assert!(n <= 8);
    ((1u32 << n) - 1) as __mmask8
}

impl Lanes for F32x16 {
    type Elem = f32;
    type Mask = __mmask16;
    type Half = super::avx2::F32x8;
    const WIDTH: usize = 16;
    const REGISTERS: usize = 32;

    #[inline(always)]
    fn splat(x: f32) -> Self {
        // SAFETY: AVX-512 was detected (top of the file).
        unsafe { F32x16(_mm512_set1_ps(x)) }
    }
    #[inline(always)]
    fn load(x: &[f32]) -> Self {
        let x = &x[..16];
        // SAFETY: the slice has 16 elements; the load needs no alignment; AVX-512 was detected (top of the file).
        unsafe { F32x16(_mm512_loadu_ps(x.as_ptr())) }
    }
    #[inline(always)]
    fn load_partial(x: &[f32]) -> Self {
        let mask = first_16(x.len());
        // SAFETY: the mask has x.len() lanes set; lanes that are not set are not read; AVX-512 was detected (top of the file).
        unsafe { F32x16(_mm512_maskz_loadu_ps(mask, x.as_ptr())) }
    }
    #[inline(always)]
    fn store(self, x: &mut [f32]) {
        let x = &mut x[..16];
        // SAFETY: the slice has 16 elements; the store needs no alignment; AVX-512 was detected (top of the file).
        unsafe { _mm512_storeu_ps(x.as_mut_ptr(), self.0) }
    }
    #[inline(always)]
    unsafe fn stream(self, x: &mut [f32]) {
        let x = &mut x[..16];
        if x.as_ptr().addr().is_multiple_of(64) {
            // SAFETY: the slice has 16 elements and begins at a multiple of 64 bytes; the caller fences; AVX-512 was detected (top of the
            // file).
            unsafe { _mm512_stream_ps(x.as_mut_ptr(), self.0) }
        } else {
            self.store(x);
        }
    }
    #[inline(always)]
    fn store_partial(self, x: &mut [f32]) {
        let mask = first_16(x.len());
        // SAFETY: the mask has x.len() lanes set; lanes that are not set are not written; AVX-512 was detected (top of the file).
        unsafe { _mm512_mask_storeu_ps(x.as_mut_ptr(), mask, self.0) }
    }
    #[inline(always)]
    fn from_bytes(x: &[u8]) -> Self {
        let x = &x[..16];
        // SAFETY: the slice has the 16 bytes that are loaded; AVX-512 was detected (top of the file).
        unsafe { F32x16(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(x.as_ptr().cast())))) }
    }
    #[inline(always)]
    fn mul_add(self, b: Self, c: Self) -> Self {
        // SAFETY: AVX-512 was detected (top of the file).
        unsafe { F32x16(_mm512_fmadd_ps(self.0, b.0, c.0)) }
    }
    #[inline(always)]
    fn sqrt(self) -> Self {
        // SAFETY: AVX-512 was detected (top of the file).
        unsafe { F32x16(_mm512_sqrt_ps(self.0)) }
    }
    #[inline(always)]
    fn le(self, other: Self) -> __mmask16 {
        // SAFETY: AVX-512 was detected (top of the file).
        unsafe { _mm512_cmp_ps_mask::<_CMP_LE_OQ>(self.0, other.0) }
    }
    #[inline(always)]
    fn select(mask: __mmask16, yes: Self, no: Self) -> Self {
        // SAFETY: AVX-512 was detected (top of the file).
        unsafe { F32x16(_mm512_mask_blend_ps(mask, no.0, yes.0)) }
    }
    #[inline(always)]
    fn flush_subnormal(self) -> Self {
        // SAFETY: AVX-512 was detected (top of the file).
        unsafe {
            // Zero and what is subnormal have no bit in the exponent field.
            let exponent = _mm512_set1_epi32(0x7f80_0000);
            F32x16(_mm512_maskz_mov_ps(_mm512_test_epi32_mask(_mm512_castps_si512(self.0), exponent), self.0))
        }
    }
    #[inline(always)]
    fn roots_mul_add<const N: usize>(v: [Self; N], scale: f32, offset: f32) -> [Self; N] {
        roots_mul_add(v, scale, offset)
    }
    #[inline(always)]
    fn pow2(self) -> Self {
        let shifted = self + Self::splat(f32::ROUND_MAGIC);
        // SAFETY: AVX-512 was detected (top of the file).
        unsafe {
            // The magic number puts the integer in the low bits; bias it and move it to the exponent field.
            let biased = _mm512_add_epi32(_mm512_castps_si512(shifted.0), _mm512_set1_epi32(127));
            F32x16(_mm512_castsi512_ps(_mm512_slli_epi32::<23>(biased)))
        }
    }
    #[inline(always)]
    fn sum(self) -> f32 {
        // SAFETY: AVX-512 was detected (top of the file).
        unsafe {
            let eight = _mm256_add_ps(_mm512_castps512_ps256(self.0), _mm512_extractf32x8_ps::<1>(self.0));
            let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
        }
    }
    #[inline(always)]
    fn transpose(square: &mut [Self; 16]) {
        // Squares of 4 in each quarter, then the quarters among themselves.
        for i in [0, 4, 8, 12] {
            let r = |j: usize| square[i + j].0;
            // SAFETY: no memory is read through a pointer; AVX-512 was detected (top of the file).
            let fours = unsafe {
                let pairs = [
                    _mm512_unpacklo_ps(r(0), r(1)),
                    _mm512_unpackhi_ps(r(0), r(1)),
                    _mm512_unpacklo_ps(r(2), r(3)),
                    _mm512_unpackhi_ps(r(2), r(3)),
                ];
                [
                    _mm512_shuffle_ps::<0x44>(pairs[0], pairs[2]),
                    _mm512_shuffle_ps::<0xEE>(pairs[0], pairs[2]),
                    _mm512_shuffle_ps::<0x44>(pairs[1], pairs[3]),
                    _mm512_shuffle_ps::<0xEE>(pairs[1], pairs[3]),
                ]
            };
            for j in 0..4 {
                square[i + j] = F32x16(fours[j]);
            }
        }
        for j in 0..4 {
            let r = |i: usize| square[4 * i + j].0;
            // Rows j, 4 + j, 8 + j and 12 + j hold, quarter by quarter, columns j, 4 + j, 8 + j and 12 + j.
            // SAFETY: no memory is read through a pointer; AVX-512 was detected (top of the file).
            let columns = unsafe {
                let halves = [
                    _mm512_shuffle_f32x4::<0x88>(r(0), r(1)),
                    _mm512_shuffle_f32x4::<0xDD>(r(0), r(1)),
                    _mm512_shuffle_f32x4::<0x88>(r(2), r(3)),
                    _mm512_shuffle_f32x4::<0xDD>(r(2), r(3)),
                ];
                [
                    _mm512_shuffle_f32x4::<0x88>(halves[0], halves[2]),
                    _mm512_shuffle_f32x4::<0x88>(halves[1], halves[3]),
                    _mm512_shuffle_f32x4::<0xDD>(halves[0], halves[2]),
                    _mm512_shuffle_f32x4::<0xDD>(halves[1], halves[3]),
                ]
            };
            for i in 0..4 {
                square[4 * i + j] = F32x16(columns[i]);
            }
        }
    }
}

impl Lanes for F64x8 {
    type Elem = f64;
    type Mask = __mmask8;
    type Half = super::avx2::F64x4;
    const WIDTH: usize = 8;
    const REGISTERS: usize = 32;

    #[inline(always)]
    fn splat(x: f64) -> Self {
        // SAFETY: AVX-512 was detected (top of the file).
        unsafe { F64x8(_mm512_set1_pd(x)) }
    }
    #[inline(always)]
    fn load(x: &[f64]) -> Self {
        let x = &x[..8];
        // SAFETY: the slice has 8 elements; the load needs no alignment; AVX-512 was detected (top of the file).
        unsafe { F64x8(_mm512_loadu_pd(x.as_ptr())) }
    }
    #[inline(always)]
    fn load_partial(x: &[f64]) -> Self {
        let mask = first_8(x.len());
        // SAFETY: the mask has x.len() lanes set; lanes that are not set are not read; AVX-512 was detected (top of the file).
        unsafe { F64x8(_mm512_maskz_loadu_pd(mask, x.as_ptr())) }
    }
    #[inline(always)]
    fn store(self, x: &mut [f64]) {
        let x = &mut x[..8];
        // SAFETY: the slice has 8 elements; the store needs no alignment; AVX-512 was detected (top of the file).
        unsafe { _mm512_storeu_pd(x.as_mut_ptr(), self.0) }
    }
    #[inline(always)]
    unsafe fn stream(self, x: &mut [f64]) {
        let x = &mut x[..8];
        if x.as_ptr().addr().is_multiple_of(64) {
            // SAFETY: the slice has 8 elements and begins at a multiple of 64 bytes; the caller fences; AVX-512 was detected (top of the
            // file).
            unsafe { _mm512_stream_pd(x.as_mut_ptr(), self.0) }
        } else {
            self.store(x);
        }
    }
    #[inline(always)]
    fn store_partial(self, x: &mut [f64]) {
        let mask = first_8(x.len());
        // SAFETY: the mask has x.len() lanes set; lanes that are not set are not written; AVX-512 was detected (top of the file).
        unsafe { _mm512_mask_storeu_pd(x.as_mut_ptr(), mask, self.0) }
    }
    #[inline(always)]
    fn from_bytes(x: &[u8]) -> Self {
        let x = &x[..8];
        // SAFETY: the slice has the 8 bytes that are loaded; AVX-512 was detected (top of the file).
        unsafe { F64x8(_mm512_cvtepi32_pd(_mm256_cvtepu8_epi32(_mm_loadl_epi64(x.as_ptr().cast())))) }
    }
    #[inline(always)]
    fn mul_add(self, b: Self, c: Self) -> Self {
        // SAFETY: AVX-512 was detected (top of the file).
        unsafe { F64x8(_mm512_fmadd_pd(self.0, b.0, c.0)) }
    }
    #[inline(always)]
    fn sqrt(self) -> Self {
        // SAFETY: AVX-512 was detected (top of the file).
        unsafe { F64x8(_mm512_sqrt_pd(self.0)) }
    }
    #[inline(always)]
    fn le(self, other: Self) -> __mmask8 {
        // SAFETY: AVX-512 was detected (top of the file).
        unsafe { _mm512_cmp_pd_mask::<_CMP_LE_OQ>(self.0, other.0) }
    }
    #[inline(always)]
    fn select(mask: __mmask8, yes: Self, no: Self) -> Self {
        // SAFETY: AVX-512 was detected (top of the file).
        unsafe { F64x8(_mm512_mask_blend_pd(mask, no.0, yes.0)) }
    }
    #[inline(always)]
    fn flush_subnormal(self) -> Self {
        // SAFETY: AVX-512 was detected (top of the file).
        unsafe {
            // Zero and what is subnormal have no bit in the exponent field.
            let exponent = _mm512_set1_epi64(0x7ff0_0000_0000_0000);
            F64x8(_mm512_maskz_mov_pd(_mm512_test_epi64_mask(_mm512_castpd_si512(self.0), exponent), self.0))
        }
    }
    #[inline(always)]
    fn pow2(self) -> Self {
        let shifted = self + Self::splat(f64::ROUND_MAGIC);
        // SAFETY: AVX-512 was detected (top of the file).
        unsafe {
            // The magic number puts the integer in the low bits; bias it and move it to the exponent field.
            let biased = _mm512_add_epi64(_mm512_castpd_si512(shifted.0), _mm512_set1_epi64(1023));
            F64x8(_mm512_castsi512_pd(_mm512_slli_epi64::<52>(biased)))
        }
    }
    #[inline(always)]
    fn sum(self) -> f64 {
        // SAFETY: AVX-512 was detected (top of the file).
        unsafe {
            let four = _mm256_add_pd(_mm512_castpd512_pd256(self.0), _mm512_extractf64x4_pd::<1>(self.0));
            let two = _mm_add_pd(_mm256_castpd256_pd128(four), _mm256_extractf128_pd::<1>(four));
            _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)))
        }
    }
    #[inline(always)]
    fn transpose(square: &mut [Self; 16]) {
        // Squares of 2 in each quarter, then the quarters among themselves.
        for i in [0, 2, 4, 6] {
            // SAFETY: no memory is read through a pointer; AVX-512 was detected (top of the file).
            let (low, high) = unsafe {
                let (a, b) = (square[i].0, square[i + 1].0);
                (_mm512_unpacklo_pd(a, b), _mm512_unpackhi_pd(a, b))
            };
            (square[i], square[i + 1]) = (F64x8(low), F64x8(high));
        }
        for j in 0..2 {
            let r = |i: usize| square[2 * i + j].0;
            // SAFETY: no memory is read through a pointer; AVX-512 was detected (top of the file).
            let columns = unsafe {
                let halves = [
                    _mm512_shuffle_f64x2::<0x88>(r(0), r(1)),
                    _mm512_shuffle_f64x2::<0xDD>(r(0), r(1)),
                    _mm512_shuffle_f64x2::<0x88>(r(2), r(3)),
                    _mm512_shuffle_f64x2::<0xDD>(r(2), r(3)),
                ];
                [
                    _mm512_shuffle_f64x2::<0x88>(halves[0], halves[2]),
                    _mm512_shuffle_f64x2::<0x88>(halves[1], halves[3]),
                    _mm512_shuffle_f64x2::<0xDD>(halves[0], halves[2]),
                    _mm512_shuffle_f64x2::<0xDD>(halves[1], halves[3]),
                ]
            };
            for i in 0..4 {
                square[2 * i + j] = F64x8(columns[i]);
            }
        }
    }
}

/// 2 to the power of `n`, which is that of a normal number.
const fn two_to(n: i32) -> f32 {
    f32::from_bits(((127 + n) as u32) << 23)
}

/// What `vfpclassps` finds wrong with a root's inverse: NaN of both kinds, zero and infinity of both signs, anything negative.
const NOT_AN_INVERSE: i32 = 0x01 | 0x80 | 0x02 | 0x04 | 0x08 | 0x10 | 0x40;

/// `v.sqrt().mul_add(scale, offset)`: the first root by the divider, the others beside it by [`root`] where their lanes allow it.
///
/// A kernel with a root and a division a vector waits for the divider, which they keep for 12 and 10 cycles; by multiplications a root
/// takes about 7 of the two other units.
///
/// **Range.** The root is taken of x = 2^64 v + 2^-88 and multiplied by 2^-32 scale, so that no lane needs to be told from another:
/// - A normal v below 2^64 has x = 2^64 v, since 2^-88 is less than half a unit in the last place of any number from 2^-62 on. Scaling by
///   powers of two is exact, and so the fused last step has the same product.
/// - For a zero or subnormal v, x is at most 2^-62. Of either root the product with scale is at most 2^-63 scale, and that is less than
///   half a unit in the last place of offset, which is the result: scale is at most 2^37 offset.
/// - Where v is negative or NaN, or so large that x overflows, the approximation of the root's inverse is NaN or zero. One such lane, or a
///   scale out of range, sends all these vectors to the divider.
#[inline(always)]
fn roots_mul_add<const N: usize>(v: [F32x16; N], scale: f32, offset: f32) -> [F32x16; N] {
    let splat = F32x16::splat;
    let in_range = (1.0..=two_to(64)).contains(&scale) && scale <= offset * two_to(37);
    let (mut out, mut x, mut y) = (v, v, v);
    let mut outside = 0;
    for i in 1..N {
        x[i] = v[i].mul_add(splat(two_to(64)), splat(two_to(-88)));
        // SAFETY: AVX-512 was detected (top of the file).
        unsafe {
            y[i] = F32x16(_mm512_rsqrt14_ps(x[i].0));
            outside |= _mm512_fpclass_ps_mask::<NOT_AN_INVERSE>(y[i].0);
        }
    }
    if in_range && outside == 0 {
        for i in 0..N.min(1) {
            out[i] = v[i].sqrt().mul_add(splat(scale), splat(offset));
        }
        for i in 1..N {
            out[i] = root(x[i], y[i]).mul_add(splat(scale * two_to(-32)), splat(offset));
        }
    } else {
        for i in 0..N {
            out[i] = v[i].sqrt().mul_add(splat(scale), splat(offset));
        }
    }
    out
}

/// The square root of `x`, rounded correctly, from `y`: 1/sqrt(x) with a relative error of at most 2^-14.
///
/// g = x y and h = y/2 come near to sqrt(x) and 1/(2 sqrt(x)), as near as r = 1/2 - g h is to zero; g + g r and h + h r are within about
/// one unit in the last place (Goldschmidt), and with h (x - g^2) added g is rounded to the nearest (Markstein).
///
/// **Proof.** Processors approximate 1/sqrt(x) by tables of their own, and only the bound of the error is common to them. The tests below
/// take every x from 1 to 4 with every y within that bound. Four times x doubles g, halves y and h, leaves r alone and changes no rounding
/// as long as nothing overflows or is too small to be exact: for all finite x from 2^-88 on.
///
/// **References.** Markstein, *IA-64 and Elementary Functions*, 2000, on square roots with a fused multiply-add; Intel's manual for the
/// bound of `vrsqrt14ps`.
#[inline(always)]
fn root(x: F32x16, y: F32x16) -> F32x16 {
    // SAFETY: AVX-512 was detected (top of the file).
    unsafe {
        let half = _mm512_set1_ps(0.5);
        let (g, h) = (_mm512_mul_ps(x.0, y.0), _mm512_mul_ps(half, y.0));
        let r = _mm512_fnmadd_ps(g, h, half);
        let (g, h) = (_mm512_fmadd_ps(g, r, g), _mm512_fmadd_ps(h, r, h));
        let rest = _mm512_fnmadd_ps(g, g, x.0);
        F32x16(_mm512_fmadd_ps(rest, h, g))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::Isa;
    use std::ops::Range;

    /// Every x of `some`, with every y within the bound or, of those, with 15 from the first to the last and the processor's own.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    fn check_roots(some: Range<u32>, every: bool) {
        let lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        let all = |bits: u32| _mm512_set1_epi32(bits.cast_signed());
        for x in some.map(f32::from_bits) {
            let inverse = 1.0 / f64::from(x).sqrt();
            let bound = inverse * f64::from(two_to(-14));
            // One more on either side, so that no rounding of the bound leaves one out.
            let first = f32::from_f64(inverse - bound).to_bits() - 1;
            let last = f32::from_f64(inverse + bound).to_bits() + 1;
            let root_of_x = _mm512_set1_ps(x.sqrt());
            let check = |y: __m512| {
                let found = root(F32x16::splat(x), F32x16(y));
                let differs = _mm512_cmp_ps_mask::<_CMP_NEQ_UQ>(found.0, root_of_x);
                assert!(differs == 0, "sqrt({x}) from {y:?} is {:?}", found.0);
            };
            if every {
                for group in (first..=last).step_by(16) {
                    check(_mm512_castsi512_ps(_mm512_min_epu32(_mm512_add_epi32(all(group), lanes), all(last))));
                }
            } else {
                // From the first by fourteenths of the way to the last, in the fifteenth; the sixteenth is the processor's.
                let step = _mm512_mullo_epi32(all((last - first) / 14), lanes);
                let y = _mm512_castsi512_ps(_mm512_add_epi32(all(first), step));
                let y = _mm512_mask_mov_ps(y, 1 << 14, _mm512_castsi512_ps(all(last)));
                check(_mm512_mask_rsqrt14_ps(y, 1 << 15, _mm512_set1_ps(x)));
            }
        }
    }

    /// Every x from 1 to 4, shared by as many threads as there are.
    fn check_all_roots(every: bool) {
        if let Err(error) = Isa::named("avx512") {
            return eprintln!("skipped: {error}");
        }
        let (first, end) = (1.0f32.to_bits(), 4.0f32.to_bits());
        let threads = u32::try_from(std::thread::available_parallelism().map_or(1, usize::from)).expect("few");
        let each = (end - first).div_ceil(threads);
        std::thread::scope(|scope| {
            for start in (first..end).step_by(each as usize) {
                // SAFETY: AVX-512 was detected: there is an Isa of that name.
                scope.spawn(move || unsafe { check_roots(start..end.min(start + each), every) });
            }
        });
    }

    #[test]
    fn roots_by_multiplication_are_rounded_correctly() {
        check_all_roots(false);
    }

    #[test]
    #[ignore = "the whole proof, of 2^34 roots, takes some ten seconds"]
    fn roots_by_multiplication_are_rounded_correctly_from_every_approximation() {
        check_all_roots(true);
    }
}
