//! Mean squared error: `loss = mean (y - t)^2`, and its gradient `dy = 2 (y - t) / count`.
//!
//! | argument | shape |
//! |---|---|
//! | `y`, `target`, `dy` | any, all of the same length (the count) |
//!
//! **Numerics.** Squares are summed in the element type over groups of 64 bytes, by blocks of 8192 elements, and the blocks
//! in f64, in order: with g elements in a group (16 of f32, 8 of f64) the error is at most `(8192 / g + log2(g) + 2) u` of the
//! loss. NaN and infinities propagate. The same bits on every fused instruction set.
//!
//! **Cost.** 4 flops an element, two reads and one write.

use crate::kernels::BLOCK;
use crate::simd::{Element, Group, Isa, Kernel, Lanes};

/// Mean squared error, and its gradient with respect to `y`, which is overwritten. For no elements the loss is 0.
///
/// # Panics
/// If the lengths differ.
///
/// # Examples
/// ```
/// let mut dy = [0.0; 2];
/// let loss = evenkeel::kernels::mse::forward_backward(&[1.0, 5.0], &[0.0, 2.0], &mut dy);
/// assert_eq!((loss, dy), (5.0, [1.0, 3.0]));
/// ```
pub fn forward_backward<T: Element>(y: &[T], target: &[T], dy: &mut [T]) -> f64 {
    let lengths = [y.len(), target.len(), dy.len()];
    assert!(lengths[0] == lengths[1] && lengths[1] == lengths[2], "mse: y, target and dy: lengths {lengths:?}");
    if y.is_empty() {
        return 0.0;
    }
    let isa = Isa::current();
    let factor = T::from_f64(2.0 / y.len() as f64);
    let mut total = 0.0;
    for ((y, target), dy) in y.chunks(BLOCK).zip(target.chunks(BLOCK)).zip(dy.chunks_mut(BLOCK)) {
        total += isa.run(Differences { y, target, dy, factor }).to_f64();
    }
    total / y.len() as f64
}

/// [`forward_backward`] without the gradient: the same bits.
///
/// # Panics
/// If the lengths differ.
pub fn forward<T: Element>(y: &[T], target: &[T]) -> f64 {
    let lengths = [y.len(), target.len()];
    assert!(lengths[0] == lengths[1], "mse: y and target: lengths {lengths:?}");
    if y.is_empty() {
        return 0.0;
    }
    let (isa, mut differences, mut total) = (Isa::current(), [T::ZERO; BLOCK], 0.0);
    for (y, target) in y.chunks(BLOCK).zip(target.chunks(BLOCK)) {
        let dy = &mut differences[..y.len()];
        total += isa.run(Differences { y, target, dy, factor: T::ONE }).to_f64();
    }
    total / y.len() as f64
}

/// Leaves `factor (y - target)` in dy; returns the sum of the squared differences.
struct Differences<'a, T> {
    y: &'a [T],
    target: &'a [T],
    dy: &'a mut [T],
    factor: T,
}

impl<T: Element> Kernel<T> for Differences<'_, T> {
    type Output = T;

    #[inline(always)]
    fn run<V: Lanes<Elem = T>>(self) -> T {
        for j in (0..self.dy.len()).step_by(V::WIDTH) {
            let difference = V::load_up_to(&self.y[j..]) - V::load_up_to(&self.target[j..]);
            difference.store_up_to(&mut self.dy[j..]);
        }
        let squares = Group::<V>::splat(T::ZERO).fold(self.dy, T::ZERO, |sum, d, _| d.mul_add(d, sum));
        let factor = V::splat(self.factor);
        for j in (0..self.dy.len()).step_by(V::WIDTH) {
            (V::load_up_to(&self.dy[j..]) * factor).store_up_to(&mut self.dy[j..]);
        }
        squares.sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_numbers_by_hand() {
        let mut dy = [0.0f64; 3];
        assert_eq!(forward_backward(&[1.0, 2.0, 6.0], &[1.0, 5.0, 3.0], &mut dy), 6.0);
        assert_eq!(dy, [0.0, -2.0, 2.0]);
        assert_eq!(forward(&[1.0, 2.0, 6.0], &[1.0, 5.0, 3.0]), 6.0);
        assert_eq!(forward::<f32>(&[], &[]), 0.0);
        assert_eq!(forward_backward::<f32>(&[], &[], &mut []), 0.0);
    }
}
