//! The two passes of the backward step: sums per channel, then the input gradient.

use super::{BatchNorm, LEAF, ROWS, Saved};
use crate::kernels::Activation;
use crate::parallel::{self, Blocks, BlocksMut, Cost};
use crate::simd::{Element, Isa, Kernel, Lanes};

/// Rows in a tile of partial sums.
const TILE: usize = 16;

/// Pass 1: for each leaf two rows of c in `partial`, the sums of dz and of dz (x - mean_hi).
///
/// Per lane: 16 rows in a chain, tiles one after another, so at most 16 + 64 roundings before f64 takes over.
pub(super) fn sums<T: Element>(norm: &BatchNorm<'_, T>, x: &[T], dy: &[T], saved: &Saved<'_, T>, partial: &mut [T]) {
    let c = norm.channels;
    if x.is_empty() {
        return;
    }
    let isa = Isa::current();
    let activation = norm.activation;
    let leaves = (x.len() / c).div_ceil(LEAF);
    let cost = Cost { flops: 5 * x.len(), bytes: 2 * size_of_val(x) };
    let inputs = (Blocks { data: x, block: LEAF * c }, Blocks { data: dy, block: LEAF * c });
    let work = (inputs, BlocksMut { data: &mut partial[..2 * leaves * c], block: 2 * c });
    parallel::for_each(leaves, cost, work, |_, ((x, dy), partial)| {
        isa.run(Sums { rows: Rows { x: x.data, dy: dy.data, c, saved, activation }, partial: partial.data });
    });
}

/// Two tensors, what was saved, and the ReLU mask recomputed.
#[derive(Clone, Copy)]
struct Rows<'a, T> {
    x: &'a [T],
    dy: &'a [T],
    c: usize,
    saved: &'a Saved<'a, T>,
    activation: Activation,
}

/// The constants of a vector of channels.
#[derive(Clone, Copy)]
struct Constants<V> {
    mean: V,
    a: V,
    b: V,
    width: usize,
}

impl<T: Element> Rows<'_, T> {
    #[inline(always)]
    fn constants<V: Lanes<Elem = T>>(&self, j: usize) -> Constants<V> {
        Constants {
            mean: V::load_up_to(&self.saved.mean_hi()[j..]),
            a: V::load_up_to(&self.saved.a()[j..]),
            b: V::load_up_to(&self.saved.b()[j..]),
            width: V::WIDTH.min(self.c - j),
        }
    }

    /// `t = x - mean_hi` and dz of the vector at `start`: the forward's own operations, so the mask has its bits.
    #[inline(always)]
    fn at<V: Lanes<Elem = T>>(&self, start: usize, constants: Constants<V>) -> (V, V) {
        let range = start..start + constants.width;
        let t = V::load_up_to(&self.x[range.clone()]) - constants.mean;
        let dy = V::load_up_to(&self.dy[range]);
        let dz = match self.activation {
            Activation::Identity => dy,
            Activation::Relu => dy.gated(t.mul_add(constants.a, constants.b)),
        };
        (t, dz)
    }
}

struct Sums<'a, T> {
    rows: Rows<'a, T>,
    partial: &'a mut [T],
}

impl<T: Element> Kernel<T> for Sums<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<V: Lanes<Elem = T>>(self) {
        let c = self.rows.c;
        let n = self.rows.x.len() / c;
        let (sums_dz, sums_dzt) = self.partial.split_at_mut(c);
        for j in (0..c).step_by(V::WIDTH) {
            let constants = self.rows.constants::<V>(j);
            let (mut sum_dz, mut sum_dzt) = (V::zero(), V::zero());
            for tile in (0..n).step_by(TILE) {
                let (mut tile_dz, mut tile_dzt) = (V::zero(), V::zero());
                for i in tile..n.min(tile + TILE) {
                    let (t, dz) = self.rows.at(i * c + j, constants);
                    tile_dz = tile_dz + dz;
                    tile_dzt = dz.mul_add(t, tile_dzt);
                }
                sum_dz = sum_dz + tile_dz;
                sum_dzt = sum_dzt + tile_dzt;
            }
            sum_dz.store_up_to(&mut sums_dz[j..]);
            sum_dzt.store_up_to(&mut sums_dzt[j..]);
        }
    }
}

/// Leaves in `constants` what pass 2 needs of a channel besides `saved`, as three rows of c: k and shift and 0, or, where k is out
/// of range, G and B' and 1.
pub(super) fn save_constants<T: Element>(
    saved: &Saved<'_, T>,
    channel: usize,
    n: usize,
    dz_sum: f64,
    dzt_sum: f64,
    c: usize,
    constants: &mut [T],
) {
    let m = n as f64;
    let (a, mean_lo, rstd) = (saved.a()[channel].to_f64(), saved.mean_lo()[channel].to_f64(), saved.rstd(channel));
    let k = a * rstd * rstd * dzt_sum / m;
    // A product that is zero although no factor is has left the range of f64.
    let vanished = k == 0.0 && a != 0.0 && dzt_sum != 0.0;
    let direct = is_in_range::<T>(k) && !vanished;
    let (first, second) = if direct {
        (k, k * mean_lo - a * dz_sum / m)
    } else {
        let g = rstd * dzt_sum / m;
        (g, dz_sum / m - mean_lo * rstd * g)
    };
    constants[channel] = T::from_f64(first);
    constants[c + channel] = T::from_f64(second);
    constants[2 * c + channel] = if direct { T::ZERO } else { T::ONE };
}

/// Whether k can be represented with full precision (zero can).
fn is_in_range<T: Element>(k: f64) -> bool {
    let rounded = T::from_f64(k);
    k == 0.0 || (rounded.is_finite() && T::from_f64(k.abs()) > T::LARGEST_SUBNORMAL)
}

/// Pass 2: the input gradient through batch statistics.
pub(super) fn input<T: Element>(
    norm: &BatchNorm<'_, T>,
    x: &[T],
    dy: &[T],
    saved: &Saved<'_, T>,
    constants: &[T],
    dx: &mut [T],
) {
    write(norm, x, dy, saved, Some(constants), dx);
}

/// The input gradient with frozen statistics: `dx = a dz`.
pub(super) fn input_frozen<T: Element>(norm: &BatchNorm<'_, T>, x: &[T], dy: &[T], saved: &Saved<'_, T>, dx: &mut [T]) {
    write(norm, x, dy, saved, None, dx);
}

fn write<T: Element>(
    norm: &BatchNorm<'_, T>,
    x: &[T],
    dy: &[T],
    saved: &Saved<'_, T>,
    constants: Option<&[T]>,
    dx: &mut [T],
) {
    let c = norm.channels;
    if x.is_empty() {
        return;
    }
    let isa = Isa::current();
    let activation = norm.activation;
    let cost = Cost { flops: 7 * x.len(), bytes: 3 * size_of_val(x) };
    let tasks = (x.len() / c).div_ceil(ROWS);
    let inputs = (Blocks { data: x, block: ROWS * c }, Blocks { data: dy, block: ROWS * c });
    let work = (inputs, BlocksMut { data: dx, block: ROWS * c });
    parallel::for_each(tasks, cost, work, |_, ((x, dy), dx)| {
        let rows = Rows { x: x.data, dy: dy.data, c, saved, activation };
        isa.run(Input { rows, constants, dx: dx.data });
    });
}

struct Input<'a, T> {
    rows: Rows<'a, T>,
    constants: Option<&'a [T]>,
    dx: &'a mut [T],
}

impl<T: Element> Kernel<T> for Input<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<V: Lanes<Elem = T>>(self) {
        let (rows, c) = (self.rows, self.rows.c);
        for j in (0..c).step_by(V::WIDTH) {
            let constants = rows.constants::<V>(j);
            let width = constants.width;
            let Some(channel) = self.constants else {
                for start in (j..rows.x.len()).step_by(c) {
                    let (_, dz) = rows.at(start, constants);
                    (constants.a * dz).store_up_to(&mut self.dx[start..start + width]);
                }
                continue;
            };
            let first = V::load_up_to(&channel[j..c]);
            let second = V::load_up_to(&channel[c + j..2 * c]);
            let minus_first = V::zero() - first;
            let is_scaled = &channel[2 * c + j..2 * c + j + width];
            if is_scaled.iter().all(|&s| s == T::ZERO) {
                for start in (j..rows.x.len()).step_by(c) {
                    let (t, dz) = rows.at(start, constants);
                    let dx = constants.a.mul_add(dz, minus_first.mul_add(t, second));
                    dx.store_up_to(&mut self.dx[start..start + width]);
                }
                continue;
            }
            // Some lane's k is out of range: both forms, and each lane takes its own, so that its neighbours do not matter.
            let direct = V::load_up_to(is_scaled).le(V::zero());
            let rstd = V::load_up_to(&rows.saved.rows[4][j..]);
            for start in (j..rows.x.len()).step_by(c) {
                let (t, dz) = rows.at(start, constants);
                let plain = constants.a.mul_add(dz, minus_first.mul_add(t, second));
                let scaled = constants.a * (t * rstd).mul_add(minus_first, dz - second);
                V::select(direct, plain, scaled).store_up_to(&mut self.dx[start..start + width]);
            }
        }
    }
}
