//! The normalisation itself: one subtraction and one multiply-add an element.

use super::{BatchNorm, ROWS, Saved};
use crate::kernels::Activation;
use crate::parallel::{self, Blocks, BlocksMut, Cost};
use crate::simd::{Element, Isa, Kernel, Lanes};

/// `y = act(fma(x - mean_hi, a, b))`.
pub(super) fn apply<T: Element>(norm: &BatchNorm<'_, T>, x: &[T], y: &mut [T], saved: &Saved<'_, T>) {
    let c = norm.channels;
    if x.is_empty() {
        return;
    }
    let isa = Isa::current();
    let activation = norm.activation;
    let cost = Cost { flops: 3 * x.len(), bytes: 2 * size_of_val(x) };
    let tasks = (x.len() / c).div_ceil(ROWS);
    let work = (Blocks { data: x, block: ROWS * c }, BlocksMut { data: y, block: ROWS * c });
    parallel::for_each(tasks, cost, work, |_, (x, y)| {
        isa.run(Apply { x: x.data, y: y.data, c, saved, activation });
    });
}

struct Apply<'a, T> {
    x: &'a [T],
    y: &'a mut [T],
    c: usize,
    saved: &'a Saved<'a, T>,
    activation: Activation,
}

impl<T: Element> Kernel<T> for Apply<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<V: Lanes<Elem = T>>(self) {
        let c = self.c;
        for j in (0..c).step_by(V::WIDTH) {
            let width = V::WIDTH.min(c - j);
            let mean = V::load_up_to(&self.saved.mean_hi()[j..]);
            let (a, b) = (V::load_up_to(&self.saved.a()[j..]), V::load_up_to(&self.saved.b()[j..]));
            for start in (j..self.x.len()).step_by(c) {
                let z = (V::load_up_to(&self.x[start..start + width]) - mean).mul_add(a, b);
                let y = match self.activation {
                    Activation::Identity => z,
                    Activation::Relu => z.gated(z),
                };
                y.store_up_to(&mut self.y[start..start + width]);
            }
        }
    }
}
