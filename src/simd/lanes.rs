//! What a vector type can do, what a kernel is, and sums over 64 bytes of lanes.
//!
//! Public, so that [`Element`] can name them, in a room that is not: no code outside the crate can use them.

use super::Element;
use std::ops::{Add, Div, Mul, Sub};

/// A vector of [`Element`]s: about twenty operations that every backend has for f32 and f64.
pub trait Lanes:
    Copy + Add<Output = Self> + Sub<Output = Self> + Mul<Output = Self> + Div<Output = Self> + Send + Sync + 'static
{
    /// What is in the lanes.
    type Elem: Element;
    /// The result of a comparison.
    type Mask: Copy;
    /// Half as many lanes, of which the same processor has vectors with the same arithmetic; itself where a register tile has no use for
    /// them.
    type Half: Lanes<Elem = Self::Elem>;
    /// Number of lanes.
    const WIDTH: usize;
    /// Vector registers of the instruction set: what a register tile has to fit in.
    const REGISTERS: usize;
    /// Vectors in a group of 64 bytes.
    const GROUP: usize = 64 / (size_of::<Self::Elem>() * Self::WIDTH);

    /// `x` in every lane.
    fn splat(x: Self::Elem) -> Self;
    /// The first `WIDTH` elements of `x`.
    fn load(x: &[Self::Elem]) -> Self;
    /// All of `x`, which has at most `WIDTH` elements; zero in the other lanes.
    fn load_partial(x: &[Self::Elem]) -> Self;
    /// Writes the first `WIDTH` elements of `x`.
    fn store(self, x: &mut [Self::Elem]);
    /// [`store`](Lanes::store) past the caches, where the instruction set can and `x` begins at a multiple of a vector's bytes.
    ///
    /// # Safety
    /// An `sfence` follows on this thread before any thread reads or writes the elements again.
    #[inline(always)]
    unsafe fn stream(self, x: &mut [Self::Elem]) {
        self.store(x);
    }
    /// Fills `x`, which has at most `WIDTH` elements, from the first lanes.
    fn store_partial(self, x: &mut [Self::Elem]);
    /// The first `WIDTH` bytes of `x`, as numbers.
    fn from_bytes(x: &[u8]) -> Self;
    /// `self * b + c`, rounded once where the instruction set can.
    fn mul_add(self, b: Self, c: Self) -> Self;
    /// Square root.
    fn sqrt(self) -> Self;
    /// `self <= other`; false where either is NaN.
    fn le(self, other: Self) -> Self::Mask;
    /// `yes` where the mask holds, else `no`.
    fn select(mask: Self::Mask, yes: Self, no: Self) -> Self;
    /// 2 to the power of `self`, which holds integers from the exponent of the smallest normal number to that of the largest.
    fn pow2(self) -> Self;
    /// Sum of the lanes, by halving: `x[i] + x[i + WIDTH/2]`, then the same on the half.
    fn sum(self) -> Self::Elem;
    /// Lane j of vector i becomes lane i of vector j, for the first `WIDTH` vectors of `square`.
    fn transpose(square: &mut [Self; 16]);

    /// Zero in every lane.
    #[inline(always)]
    fn zero() -> Self {
        Self::splat(Self::Elem::ZERO)
    }

    /// `load` of a full vector, `load_partial` of what is left of one.
    #[inline(always)]
    fn load_up_to(x: &[Self::Elem]) -> Self {
        if x.len() >= Self::WIDTH { Self::load(x) } else { Self::load_partial(x) }
    }

    /// `store` to a full vector, `store_partial` to what is left of one.
    #[inline(always)]
    fn store_up_to(self, x: &mut [Self::Elem]) {
        if x.len() >= Self::WIDTH { self.store(x) } else { self.store_partial(x) }
    }

    /// The larger of two; `self` where either is NaN.
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        Self::select(self.le(other), other, self)
    }

    /// `self` where `gate` is above zero or NaN, +0 elsewhere: the ReLU mask, which keeps NaN on every backend.
    #[inline(always)]
    fn gated(self, gate: Self) -> Self {
        Self::select(gate.le(Self::zero()), Self::zero(), self)
    }

    /// Zero where the magnitude is below the smallest normal number, else `self` (NaN too).
    #[inline(always)]
    fn flush_subnormal(self) -> Self {
        let largest = Self::splat(Self::Elem::LARGEST_SUBNORMAL);
        let smallest = Self::splat(-Self::Elem::LARGEST_SUBNORMAL);
        let above_smallest = Self::select(smallest.le(self), Self::zero(), self);
        Self::select(self.le(largest), above_smallest, self)
    }

    /// `v.sqrt().mul_add(scale, offset)` of several vectors, to the bit.
    ///
    /// Together, so that a backend whose divider is slower than all the rest can find some of the roots without it.
    #[inline(always)]
    fn roots_mul_add<const N: usize>(mut v: [Self; N], scale: Self::Elem, offset: Self::Elem) -> [Self; N] {
        let (scale, offset) = (Self::splat(scale), Self::splat(offset));
        for i in 0..N {
            v[i] = v[i].sqrt().mul_add(scale, offset);
        }
        v
    }

    /// e to the power of `self`, for `self` at most 0; NaN stays NaN.
    ///
    /// x = n ln 2 + r with integer n and |r| <= ln(2)/2; e^x = 2^n e^r, e^r by its Taylor series to a degree that leaves less
    /// than u/4 (f32: r^8/8! = 5e-9, f64: r^14/14! = 4e-18). Error found to be below 2u (f32) and 4u (f64), one more without
    /// a fused multiply-add. Where the result would be subnormal it is 0.
    #[inline(always)]
    fn exp_nonpositive(self) -> Self {
        let magic = Self::splat(Self::Elem::ROUND_MAGIC);
        // Adding and subtracting 1.5 * 2^p rounds to an integer.
        let n = self.mul_add(Self::splat(Self::Elem::from_f64(std::f64::consts::LOG2_E)), magic) - magic;
        let minus_ln2 = Self::Elem::LN_2;
        let r = n.mul_add(Self::splat(-minus_ln2.0), self);
        let r = n.mul_add(Self::splat(-minus_ln2.1), r);
        let mut series = Self::zero();
        let mut degree = Self::Elem::EXP_DEGREE;
        while degree > 0 {
            series = series.mul_add(r, Self::splat(Self::Elem::from_f64(INVERSE_FACTORIAL[degree])));
            degree -= 1;
        }
        let series = series.mul_add(r, Self::splat(Self::Elem::ONE));
        // Below this n the power is clamped so that it stays a number, and the result replaced by zero.
        let lowest = Self::splat(Self::Elem::from_f64(Self::Elem::LOWEST_EXPONENT));
        let tiny = n.le(lowest);
        let power = Self::select(tiny, lowest, n).pow2();
        Self::select(tiny, Self::zero(), series * power)
    }
}

const INVERSE_FACTORIAL: [f64; 14] = {
    let mut table = [1.0; 14];
    let mut i = 1;
    while i < 14 {
        table[i] = table[i - 1] / i as f64;
        i += 1;
    }
    table
};

/// A kernel with its arguments, written once for every vector type.
pub(crate) trait Kernel<T: Element> {
    /// What the kernel returns.
    type Output;
    /// Runs it; must be `#[inline(always)]`, and so must everything that it calls.
    fn run<V: Lanes<Elem = T>>(self) -> Self::Output;
}

/// Partial sums over 64 bytes of lanes, so that the order of summation does not depend on the width of a vector.
#[derive(Clone, Copy)]
pub(crate) struct Group<V> {
    // 16 is the group of the scalar f32 backend; others use the first V::GROUP.
    pub(crate) lanes: [V; 16],
}

impl<V: Lanes> Group<V> {
    /// Elements in a group.
    pub(crate) const LEN: usize = V::GROUP * V::WIDTH;

    /// Every lane `x`.
    #[inline(always)]
    pub(crate) fn splat(x: V::Elem) -> Self {
        Group { lanes: [V::splat(x); 16] }
    }

    /// Folds `f` over `x` by groups: lane i of the group sees `x[i]`, `x[i + LEN]`, ... in that order.
    ///
    /// `f(accumulator, value, index of the first lane)`; lanes past the end of `x` hold `fill`.
    #[inline(always)]
    pub(crate) fn fold(mut self, x: &[V::Elem], fill: V::Elem, f: impl Fn(V, V, usize) -> V) -> Self {
        let mut start = 0;
        while start + Self::LEN <= x.len() {
            for g in 0..V::GROUP {
                let at = start + g * V::WIDTH;
                self.lanes[g] = f(self.lanes[g], V::load(&x[at..]), at);
            }
            start += Self::LEN;
        }
        if start < x.len() {
            let mut last = [fill; 16];
            let rest = &x[start..];
            last[..rest.len()].copy_from_slice(rest);
            for g in 0..V::GROUP {
                let at = g * V::WIDTH;
                self.lanes[g] = f(self.lanes[g], V::load(&last[at..]), start + at);
            }
        }
        self
    }

    /// Sum of all lanes, by halving down to one vector and then within it.
    #[inline(always)]
    pub(crate) fn sum(mut self) -> V::Elem {
        let mut n = V::GROUP;
        while n > 1 {
            n /= 2;
            for g in 0..n {
                self.lanes[g] = self.lanes[g] + self.lanes[g + n];
            }
        }
        self.lanes[0].sum()
    }

    /// Largest of all lanes.
    #[inline(always)]
    pub(crate) fn max(self) -> V::Elem {
        let mut largest = self.lanes[0];
        for g in 1..V::GROUP {
            largest = largest.max(self.lanes[g]);
        }
        let mut lanes = [V::Elem::ZERO; 16];
        largest.store(&mut lanes);
        let mut best = lanes[0];
        for &x in &lanes[1..V::WIDTH] {
            if x > best {
                best = x;
            }
        }
        best
    }
}
