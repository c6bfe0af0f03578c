//! Optimiser steps on flat slices: stochastic gradient descent and Adam, in PyTorch's order of operations.
//!
//! ```text
//! sgd:   g' = g + weight_decay p
//!        b  = momentum b + g'        (b = g' in the first step)
//!        p  = p - lr d,  d = g' without momentum, b with it, g' + momentum b with Nesterov's
//! adam:  g' = g + weight_decay p
//!        m  = m + (1 - beta1) (g' - m)
//!        v  = beta2 v + (1 - beta2) g'^2
//!        p  = p - (lr / (1 - beta1^t)) m / (sqrt(v) / sqrt(1 - beta2^t) + eps)
//! ```
//!
//! | argument | shape |
//! |---|---|
//! | `p`, `g`, `b`, `m`, `v` | any, all of the same length |
//!
//! **Numerics.** Element by element, fused where the formula allows; the scalars in front are computed in f64 and rounded once.
//! Moments below the smallest normal number are stored as zero, so that a gradient that stays away does not slow every later
//! step down. The same bits on every fused instruction set and for any number of threads.
//!
//! **Cost.** SGD with momentum moves 3 reads and 2 writes, Adam 4 reads and 3 writes; Adam also takes one root and one division
//! an element, for which it waits while the data are in a cache. Vectors of f32 with AVX-512 have every second root found by multiplications,
//! beside the divider (`roots_mul_add` of the lanes), with the same bits; but not on a Zen 4, whose divider is one of the two units that
//! multiply: it takes 16 cycles for a root and a quotient of 16 lanes, and a step that shares roots took 20. Blocks are taken from the
//! last to the first, because a backward pass has just written the last gradients and a forward pass begins with the first parameters.
//!
//! **References.** Sutskever et al., ICML 2013, for the momentum form; Kingma and Ba, ICLR 2015, algorithm 1; PyTorch's
//! documentation of `SGD` and `Adam` for the order.

use crate::kernels::BLOCK;
use crate::parallel::{self, Blocks, BlocksMut, Cost};
use crate::simd::{Element, Isa, Kernel, Lanes};

/// Vectors that an Adam step takes together: one root for the divider and one beside it, where lanes can do that. With one root in three
/// or four left to the divider a step took 8 or 14 % longer.
const ABREAST: usize = 2;

/// How momentum enters an SGD step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Momentum {
    /// The step is along the buffer.
    #[default]
    Classical,
    /// The step looks ahead: along the gradient plus momentum times the buffer (Nesterov).
    Nesterov,
}

/// One step of stochastic gradient descent.
#[derive(Clone, Copy, Debug)]
pub struct Sgd {
    /// Learning rate.
    pub lr: f64,
    /// Momentum; 0 for none, and then the buffer is not touched.
    pub momentum: f64,
    /// Which form of momentum.
    pub form: Momentum,
    /// Added to the gradient: `weight_decay p`.
    pub weight_decay: f64,
    /// The step's number, from 1: the first one fills the buffer.
    pub step: u64,
}

/// One step of Adam.
#[derive(Clone, Copy, Debug)]
pub struct Adam {
    /// Learning rate.
    pub lr: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Added to the gradient: `weight_decay p`.
    pub weight_decay: f64,
    /// The step's number, from 1.
    pub step: u64,
}

/// Moves `p` by one SGD step along `g`.
///
/// # Shapes
/// `p`, `g`: same length; `buffer` too, or empty if `momentum` is 0.
///
/// # Panics
/// If the lengths disagree.
pub fn sgd<T: Element>(sgd: &Sgd, p: &mut [T], g: &[T], buffer: &mut [T]) {
    let len = p.len();
    assert_eq!(g.len(), len, "sgd: {len} parameters, {} gradients", g.len());
    let with_momentum = sgd.momentum != 0.0;
    assert!(!with_momentum || buffer.len() == len, "sgd: {len} parameters, {} in the buffer", buffer.len());
    let isa = Isa::current();
    let buffer = with_momentum.then_some(BlocksMut { data: buffer, block: BLOCK });
    let work = ((BlocksMut { data: p, block: BLOCK }, Blocks { data: g, block: BLOCK }), buffer);
    let cost = Cost { flops: 6 * len, bytes: 5 * len * size_of::<T>() };
    parallel::for_each_backwards(len.div_ceil(BLOCK), cost, work, |_, ((p, g), buffer)| {
        isa.run(SgdStep { sgd, p: p.data, g: g.data, buffer: buffer.map(|b| b.data) });
    });
}

struct SgdStep<'a, T> {
    sgd: &'a Sgd,
    p: &'a mut [T],
    g: &'a [T],
    buffer: Option<&'a mut [T]>,
}

impl<T: Element> Kernel<T> for SgdStep<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<V: Lanes<Elem = T>>(self) {
        let minus_lr = V::splat(T::from_f64(-self.sgd.lr));
        let decay = V::splat(T::from_f64(self.sgd.weight_decay));
        let momentum = V::splat(T::from_f64(self.sgd.momentum));
        let Some(buffer) = self.buffer else {
            for i in (0..self.p.len()).step_by(V::WIDTH) {
                let p = V::load_up_to(&self.p[i..]);
                let g = decay.mul_add(p, V::load_up_to(&self.g[i..]));
                minus_lr.mul_add(g, p).store_up_to(&mut self.p[i..]);
            }
            return;
        };
        let nesterov = self.sgd.form == Momentum::Nesterov;
        for i in (0..self.p.len()).step_by(V::WIDTH) {
            let p = V::load_up_to(&self.p[i..]);
            let g = decay.mul_add(p, V::load_up_to(&self.g[i..]));
            let b = if self.sgd.step <= 1 { g } else { momentum.mul_add(V::load_up_to(&buffer[i..]), g) };
            let b = b.flush_subnormal();
            b.store_up_to(&mut buffer[i..]);
            let direction = if nesterov { momentum.mul_add(b, g) } else { b };
            minus_lr.mul_add(direction, p).store_up_to(&mut self.p[i..]);
        }
    }
}

/// Moves `p` by one Adam step along `g`, with first moments `m` and second moments `v`.
///
/// # Shapes
/// All four of the same length.
///
/// # Panics
/// If the lengths disagree.
pub fn adam<T: Element>(adam: &Adam, p: &mut [T], g: &[T], m: &mut [T], v: &mut [T]) {
    let len = p.len();
    let others = [g.len(), m.len(), v.len()];
    assert!(others == [len; 3], "adam: {len} parameters; gradients and moments: {others:?}");
    let isa = Isa::current();
    let (factors, shares_roots) = (Factors::new(adam), !isa.has_narrow_units());
    let parameters = (BlocksMut { data: p, block: BLOCK }, Blocks { data: g, block: BLOCK });
    let moments = (BlocksMut { data: m, block: BLOCK }, BlocksMut { data: v, block: BLOCK });
    let cost = Cost { flops: 12 * len, bytes: 7 * size_of::<T>() * len };
    parallel::for_each_backwards(len.div_ceil(BLOCK), cost, (parameters, moments), |_, ((p, g), (m, v))| {
        isa.run(AdamStep { factors, shares_roots, p: p.data, g: g.data, m: m.data, v: v.data });
    });
}

/// The scalars of a step, computed in f64 and rounded once.
#[derive(Clone, Copy)]
struct Factors<T> {
    minus_size: T,
    root_correction: T,
    eps: T,
    decay: T,
    rest1: T,
    beta2: T,
    rest2: T,
}

impl<T: Element> Factors<T> {
    fn new(adam: &Adam) -> Self {
        let Adam { lr, beta1, beta2, eps, weight_decay, step } = *adam;
        Factors {
            minus_size: T::from_f64(-lr / (1.0 - power(beta1, step))),
            root_correction: T::from_f64(1.0 / (1.0 - power(beta2, step)).sqrt()),
            eps: T::from_f64(eps),
            decay: T::from_f64(weight_decay),
            rest1: T::from_f64(1.0 - beta1),
            beta2: T::from_f64(beta2),
            rest2: T::from_f64(1.0 - beta2),
        }
    }

    /// Moves `N` vectors of each slice, or what there is of them.
    ///
    /// A vector's moments are stored before the next vector is read: with all reads first, steps over large arrays took up to 15 % longer.
    #[inline(always)]
    fn step<V: Lanes<Elem = T>, const N: usize>(&self, p: &mut [T], g: &[T], m: &mut [T], v: &mut [T]) {
        let decay = V::splat(self.decay);
        let (rest1, beta2, rest2) = (V::splat(self.rest1), V::splat(self.beta2), V::splat(self.rest2));
        let minus_size = V::splat(self.minus_size);
        let at = |i: usize| i * V::WIDTH;
        let [mut ps, mut ms, mut vs] = [[V::zero(); N]; 3];
        for i in 0..N {
            ps[i] = V::load_up_to(&p[at(i)..]);
            let g = decay.mul_add(ps[i], V::load_up_to(&g[at(i)..]));
            let old = V::load_up_to(&m[at(i)..]);
            vs[i] = beta2.mul_add(V::load_up_to(&v[at(i)..]), rest2 * (g * g)).flush_subnormal();
            vs[i].store_up_to(&mut v[at(i)..]);
            ms[i] = rest1.mul_add(g - old, old).flush_subnormal();
            ms[i].store_up_to(&mut m[at(i)..]);
        }
        let denominators = V::roots_mul_add(vs, self.root_correction, self.eps);
        for i in 0..N {
            minus_size.mul_add(ms[i] / denominators[i], ps[i]).store_up_to(&mut p[at(i)..]);
        }
    }
}

struct AdamStep<'a, T> {
    factors: Factors<T>,
    /// Whether [`ABREAST`] vectors are taken together, so that they can share roots, or one after the other.
    shares_roots: bool,
    p: &'a mut [T],
    g: &'a [T],
    m: &'a mut [T],
    v: &'a mut [T],
}

impl<T: Element> Kernel<T> for AdamStep<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<V: Lanes<Elem = T>>(self) {
        if self.shares_roots { self.vectors::<V, ABREAST>() } else { self.vectors::<V, 1>() }
    }
}

impl<T: Element> AdamStep<'_, T> {
    /// Takes `N` vectors at a time.
    #[inline(always)]
    fn vectors<V: Lanes<Elem = T>, const N: usize>(self) {
        let size = N * V::WIDTH;
        let whole = self.p.len() / size * size;
        let (p, p_rest) = self.p.split_at_mut(whole);
        let (g, g_rest) = self.g.split_at(whole);
        let (m, m_rest) = self.m.split_at_mut(whole);
        let (v, v_rest) = self.v.split_at_mut(whole);
        let groups = p.chunks_exact_mut(size).zip(g.chunks_exact(size));
        let moments = m.chunks_exact_mut(size).zip(v.chunks_exact_mut(size));
        for ((p, g), (m, v)) in groups.zip(moments) {
            self.factors.step::<V, N>(p, g, m, v);
        }
        for i in (0..p_rest.len()).step_by(V::WIDTH) {
            self.factors.step::<V, 1>(&mut p_rest[i..], &g_rest[i..], &mut m_rest[i..], &mut v_rest[i..]);
        }
    }
}

/// `base` to the power of `exponent` by squaring: the library's `powf` need not give the same bits everywhere.
fn power(base: f64, mut exponent: u64) -> f64 {
    let (mut square, mut product) = (base, 1.0);
    while exponent > 0 {
        if exponent & 1 == 1 {
            product *= square;
        }
        square *= square;
        exponent >>= 1;
    }
    product
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sgd_by_hand() {
        // g' = 1 + 0.5 * 2 = 2; b = 2; Nesterov's direction 2 + 0.5 * 2 = 3.
        let mut step = Sgd { lr: 0.25, momentum: 0.5, form: Momentum::Nesterov, weight_decay: 0.5, step: 1 };
        let (mut p, mut b) = ([2.0f64], [9.0]);
        sgd(&step, &mut p, &[1.0], &mut b);
        assert_eq!((p, b), ([1.25], [2.0]));
        // g' = 1 + 0.625 = 1.625; b = 0.5 * 2 + 1.625 = 2.625, which is the direction.
        step.form = Momentum::Classical;
        step.step = 2;
        sgd(&step, &mut p, &[1.0], &mut b);
        assert_eq!((p, b), ([1.25 - 0.25 * 2.625], [2.625]));
    }

    #[test]
    fn vectors_one_by_one_and_together_have_the_same_bits() {
        fn check<T: Element>() {
            let factors =
                Factors::new(&Adam { lr: 1e-3, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.1, step: 3 });
            let mut rng = crate::rng::Rng::new(1, "adam");
            let mut numbers = |size: f64| (0..77).map(|_| T::from_f64(size * rng.normal())).collect::<Vec<T>>();
            let (p, g, m) = (numbers(1.0), numbers(1.0), numbers(0.1));
            let v: Vec<T> = numbers(0.1).iter().map(|&x| x * x).collect();
            for isa in Isa::available() {
                let run = |shares_roots| {
                    let (mut p, mut m, mut v) = (p.clone(), m.clone(), v.clone());
                    isa.run(AdamStep { factors, shares_roots, p: &mut p, g: &g, m: &mut m, v: &mut v });
                    [p, m, v].concat().iter().map(|x| x.bits()).collect::<Vec<_>>()
                };
                assert_eq!(run(true), run(false), "{isa}");
            }
        }
        check::<f32>();
        check::<f64>();
    }

    #[test]
    fn adam_by_hand() {
        // beta 0 leaves m = g and v = g^2, so every step is lr g / (|g| + eps) = 0.5 * 3 / 4.
        let step = Adam { lr: 0.5, beta1: 0.0, beta2: 0.0, eps: 1.0, weight_decay: 0.0, step: 7 };
        let (mut p, mut m, mut v) = ([1.0f32], [9.0], [9.0]);
        adam(&step, &mut p, &[3.0], &mut m, &mut v);
        assert_eq!((p, m, v), ([0.625], [3.0], [9.0]));
        assert_eq!(power(0.5, 3), 0.125);
    }
}
