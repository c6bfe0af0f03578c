//! How fast this computer is: arithmetic that stays in registers, and passes over memory.
//!
//! A kernel's speed means something beside the most that the same lanes could do, measured at the same time. Each probe runs once, on
//! the calling thread, with [`Isa::current`], and returns the work it did; the caller takes the time, repeats it, and takes the median.
//! [`Threads::together`](crate::Threads::together) runs one on every thread at once, each over a buffer of its own:
//!
//! ```
//! use evenkeel::{Threads, machine::probe};
//! use std::time::Instant;
//! let rates = Threads::new(2)?.together(|_| {
//!     let start = Instant::now();
//!     let flops = probe::fma::<f32>(10_000);
//!     flops as f64 / start.elapsed().as_secs_f64()
//! });
//! assert!(rates.iter().all(|&rate| rate > 0.0));
//! # Ok::<(), evenkeel::Error>(())
//! ```
//!
//! Bytes are those that the program names. A store that misses makes most processors read the line first; that is not counted.

use crate::simd::{Element, Isa, Kernel, Lanes};
use std::hint::black_box;

/// Vectors that a pass over memory handles between two branches.
const UNROLL: usize = 8;

/// Multiply-adds that need no memory: `rounds` of one on each of a dozen vectors (two dozen where there are 32 registers).
/// Returns the operations done, two for each multiply-add and lane.
///
/// No vector waits for another, so the rate is what the multiply-add units can do. Values stay between 0.5 and 2, far from what
/// processors are slow at. `portable` multiplies, then adds, where the target has no fused instruction.
pub fn fma<T: Element>(rounds: usize) -> usize {
    Isa::current().run(Fma { rounds, factor: T::from_f64(0.75), term: T::from_f64(0.25) })
}

/// Reads all of `x`, as a sum. Returns the bytes read.
pub fn read<T: Element>(x: &[T]) -> usize {
    black_box(Isa::current().run(Read { x: black_box(x) }));
    size_of_val(x)
}

/// `y <- x`. Returns the bytes read and written.
///
/// # Panics
/// If the lengths differ.
pub fn copy<T: Element>(x: &[T], y: &mut [T]) -> usize {
    assert_eq!(x.len(), y.len(), "copy: x has {} elements, y has {}", x.len(), y.len());
    Isa::current().run(Copy { x, y: black_box(&mut *y) });
    2 * size_of_val(x)
}

/// `a <- b + s c` with some number `s`. Returns the bytes read and written.
///
/// # Panics
/// If the lengths differ.
///
/// # References
/// McCalpin, "Memory bandwidth and machine balance in current high performance computers", IEEE TCCA newsletter (1995): the triad of
/// STREAM.
pub fn triad<T: Element>(a: &mut [T], b: &[T], c: &[T]) -> usize {
    assert_eq!(a.len(), b.len(), "triad: a has {} elements, b has {}", a.len(), b.len());
    assert_eq!(a.len(), c.len(), "triad: a has {} elements, c has {}", a.len(), c.len());
    Isa::current().run(Triad { a: black_box(&mut *a), b, c, s: T::from_f64(0.5) });
    3 * size_of_val(b)
}

struct Fma<T> {
    rounds: usize,
    factor: T,
    term: T,
}

impl<T: Element> Kernel<T> for Fma<T> {
    type Output = usize;

    #[inline(always)]
    fn run<V: Lanes<Elem = T>>(self) -> usize {
        // A branch on a constant: one of the two is compiled for each vector type. Two registers are for factor and term.
        if V::REGISTERS >= 32 { self.chains::<V, 24>() } else { self.chains::<V, 12>() }
    }
}

impl<T: Element> Fma<T> {
    #[inline(always)]
    fn chains<V: Lanes<Elem = T>, const N: usize>(self) -> usize {
        // Values that the compiler cannot know, and chains that differ: nothing can be left out or merged.
        let (factor, term) = (V::splat(black_box(self.factor)), V::splat(black_box(self.term)));
        let mut chains = [V::zero(); N];
        let mut start = T::ONE;
        for i in 0..N {
            chains[i] = V::splat(start);
            start = start + T::from_f64(1.0 / 32.0);
        }
        for _ in 0..self.rounds {
            for i in 0..N {
                chains[i] = chains[i].mul_add(factor, term);
            }
        }
        let mut sum = V::zero();
        for i in 0..N {
            sum = sum + chains[i];
        }
        black_box(sum.sum());
        2 * N * V::WIDTH * self.rounds
    }
}

struct Read<'a, T> {
    x: &'a [T],
}

impl<T: Element> Kernel<T> for Read<'_, T> {
    type Output = T;

    #[inline(always)]
    fn run<V: Lanes<Elem = T>>(self) -> T {
        let mut sums = [V::zero(); UNROLL];
        let mut blocks = self.x.chunks_exact(UNROLL * V::WIDTH);
        for block in &mut blocks {
            for i in 0..UNROLL {
                sums[i] = sums[i] + V::load(&block[i * V::WIDTH..]);
            }
        }
        for rest in blocks.remainder().chunks(V::WIDTH) {
            sums[0] = sums[0] + V::load_up_to(rest);
        }
        let mut sum = V::zero();
        for i in 0..UNROLL {
            sum = sum + sums[i];
        }
        sum.sum()
    }
}

struct Copy<'a, T> {
    x: &'a [T],
    y: &'a mut [T],
}

impl<T: Element> Kernel<T> for Copy<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<V: Lanes<Elem = T>>(self) {
        let block = UNROLL * V::WIDTH;
        let (mut xs, mut ys) = (self.x.chunks_exact(block), self.y.chunks_exact_mut(block));
        for (x, y) in (&mut xs).zip(&mut ys) {
            for i in 0..UNROLL {
                V::load(&x[i * V::WIDTH..]).store(&mut y[i * V::WIDTH..]);
            }
        }
        for (x, y) in xs.remainder().chunks(V::WIDTH).zip(ys.into_remainder().chunks_mut(V::WIDTH)) {
            V::load_up_to(x).store_up_to(y);
        }
    }
}

struct Triad<'a, T> {
    a: &'a mut [T],
    b: &'a [T],
    c: &'a [T],
    s: T,
}

impl<T: Element> Kernel<T> for Triad<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<V: Lanes<Elem = T>>(self) {
        let s = V::splat(self.s);
        let block = UNROLL * V::WIDTH;
        let mut blocks = self.a.chunks_exact_mut(block);
        let (mut bs, mut cs) = (self.b.chunks_exact(block), self.c.chunks_exact(block));
        for ((a, b), c) in (&mut blocks).zip(&mut bs).zip(&mut cs) {
            for i in 0..UNROLL {
                let at = i * V::WIDTH;
                V::load(&c[at..]).mul_add(s, V::load(&b[at..])).store(&mut a[at..]);
            }
        }
        let rest = bs.remainder().chunks(V::WIDTH).zip(cs.remainder().chunks(V::WIDTH));
        for (a, (b, c)) in blocks.into_remainder().chunks_mut(V::WIDTH).zip(rest) {
            V::load_up_to(c).mul_add(s, V::load_up_to(b)).store_up_to(a);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::with_isa;

    fn passes_reach_every_element<T: Element>() {
        for isa in Isa::available() {
            for n in [0, 1, 7, 8, 127, 128, 129, 300] {
                let numbers: Vec<T> = (0..n).map(|i| T::from_f64(i as f64)).collect();
                let mut y = vec![T::ZERO; n];
                let bytes = n * size_of::<T>();
                with_isa(isa, || {
                    assert_eq!(read(&numbers), bytes);
                    // Sums of these are exact in either type.
                    let sum = isa.run(Read { x: &numbers });
                    assert_eq!(sum.to_f64(), (n * n.saturating_sub(1) / 2) as f64, "{isa}: sum of {n}");
                    assert_eq!(copy(&numbers, &mut y), 2 * bytes, "{isa}");
                    assert!(y == numbers, "{isa}: copy of {n}");
                    assert_eq!(triad(&mut y, &numbers, &numbers), 3 * bytes);
                });
                assert!(y.iter().zip(&numbers).all(|(y, x)| y.to_f64() == 1.5 * x.to_f64()), "{isa}: triad of {n}");
            }
        }
    }

    #[test]
    fn passes_reach_every_element_of_both_types() {
        passes_reach_every_element::<f32>();
        passes_reach_every_element::<f64>();
    }

    #[test]
    fn work_is_counted_by_lanes() {
        for isa in Isa::available() {
            let (single, double) = with_isa(isa, || (fma::<f32>(10), fma::<f64>(10)));
            let chains = if isa.name() == "avx512" { 24 } else { 12 };
            let lanes = |bytes: usize| if isa.name() == "scalar" { 1 } else { bytes };
            let widest = match isa.name() {
                "avx512" => 16,
                "avx2" => 8,
                _ => 4,
            };
            assert_eq!(single, 20 * chains * lanes(widest), "{isa}");
            assert_eq!(double, 20 * chains * lanes(widest / 2), "{isa}");
            assert_eq!(with_isa(isa, || fma::<f32>(0)), 0);
        }
    }
}
