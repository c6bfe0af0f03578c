//! Rectified linear unit: `y = max(0, x)`, element by element.
//!
//! Forward: y = x where x > 0, else +0. Backward: `dL/dx = dL/dy dy/dx` with `dy/dx = [x > 0]`, so `dx = dy` where x > 0, else
//! +0; the derivative at 0 is 0.
//!
//! | argument | shape |
//! |---|---|
//! | `x`, `y`, `dy`, `dx` | any, all of the same length |
//!
//! **Numerics.** No rounding. The mask is `!(x <= 0)`, so NaN passes through in both directions and -0 becomes +0, on every
//! instruction set alike (a hardware `max` does not agree on NaN).
//!
//! **Cost.** Forward 1 read and 1 write, backward 2 reads and 1 write; bound by memory.

use crate::kernels::BLOCK;
use crate::parallel::{self, Blocks, BlocksMut, Cost};
use crate::simd::{Element, Isa, Kernel, Lanes};

/// `y = x` where x > 0 or NaN, else +0.
///
/// # Panics
/// If the lengths differ.
///
/// # Examples
/// ```
/// let mut y = [9.0; 3];
/// evenkeel::kernels::relu::forward(&[-1.0, 0.0, 2.0], &mut y);
/// assert_eq!(y, [0.0, 0.0, 2.0]);
/// ```
pub fn forward<T: Element>(x: &[T], y: &mut [T]) {
    gate("relu: x and y", x, x, y);
}

/// `dx = dy` where x > 0 or NaN, else +0. `x` is the input of [`forward`].
///
/// # Panics
/// If the lengths differ.
pub fn backward<T: Element>(x: &[T], dy: &[T], dx: &mut [T]) {
    gate("relu backward: x, dy and dx", x, dy, dx);
}

/// [`backward`] with the gradient of x over the upstream gradient: `dy` becomes dx, the same bits.
///
/// `x` may be the input of [`forward`] or its output: they are above zero in the same places.
///
/// # Panics
/// If the lengths differ.
///
/// # Examples
/// ```
/// let mut dy = [1.0, 2.0, 3.0];
/// evenkeel::kernels::relu::backward_in_place(&[-1.0, 0.0, 2.0], &mut dy);
/// assert_eq!(dy, [0.0, 0.0, 3.0]);
/// ```
pub fn backward_in_place<T: Element>(x: &[T], dy: &mut [T]) {
    assert!(x.len() == dy.len(), "relu backward: x and dy: lengths {:?}", [x.len(), dy.len()]);
    let isa = Isa::current();
    let (len, bytes) = (dy.len(), 3 * size_of_val(dy));
    let work = (Blocks { data: x, block: BLOCK }, BlocksMut { data: dy, block: BLOCK });
    parallel::for_each(len.div_ceil(BLOCK), Cost { flops: len, bytes }, work, |_, (x, dy)| {
        isa.run(GateInPlace { gate: x.data, value: dy.data });
    });
}

/// `out = value` where `gate` is above zero or NaN, else +0.
fn gate<T: Element>(what: &str, gate: &[T], value: &[T], out: &mut [T]) {
    let lengths = [gate.len(), value.len(), out.len()];
    assert!(lengths[0] == lengths[1] && lengths[1] == lengths[2], "{what}: lengths {lengths:?}");
    let isa = Isa::current();
    let (len, bytes) = (out.len(), 3 * size_of_val(out));
    let block = |data| Blocks { data, block: BLOCK };
    let work = ((block(gate), block(value)), BlocksMut { data: out, block: BLOCK });
    parallel::for_each(len.div_ceil(BLOCK), Cost { flops: len, bytes }, work, |_, ((gate, value), out)| {
        isa.run(Gate { gate: gate.data, value: value.data, out: out.data });
    });
}

struct Gate<'a, T> {
    gate: &'a [T],
    value: &'a [T],
    out: &'a mut [T],
}

impl<T: Element> Kernel<T> for Gate<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<V: Lanes<Elem = T>>(self) {
        for start in (0..self.out.len()).step_by(V::WIDTH) {
            let gate = V::load_up_to(&self.gate[start..]);
            V::load_up_to(&self.value[start..]).gated(gate).store_up_to(&mut self.out[start..]);
        }
    }
}

struct GateInPlace<'a, T> {
    gate: &'a [T],
    value: &'a mut [T],
}

impl<T: Element> Kernel<T> for GateInPlace<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<V: Lanes<Elem = T>>(self) {
        for start in (0..self.value.len()).step_by(V::WIDTH) {
            let gate = V::load_up_to(&self.gate[start..]);
            V::load_up_to(&self.value[start..]).gated(gate).store_up_to(&mut self.value[start..]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nan_and_minus_zero() {
        let x = [f32::NAN, -0.0, -3.0, 5.0];
        let mut y = [0.0; 4];
        forward(&x, &mut y);
        assert!(y[0].is_nan());
        assert_eq!(y[1].to_bits(), 0);
        assert_eq!(y[2..], [0.0, 5.0]);
        backward(&x, &[1.0, 2.0, 3.0, 4.0], &mut y);
        assert_eq!(y, [1.0, 0.0, 0.0, 4.0]);
        let mut dy = [1.0, 2.0, 3.0, 4.0];
        backward_in_place(&x, &mut dy);
        assert_eq!(dy, y);
    }
}
