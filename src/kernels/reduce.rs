//! Sums over the rows of a matrix: `s[j] += sum_i x[i][j]`, the gradient of a bias.
//!
//! For `y[i][j] = z[i][j] + b[j]`, `dL/db[j] = sum_i dL/dy[i][j]`.
//!
//! | argument | shape |
//! |---|---|
//! | `x` | `[n, c]`, row-major |
//! | `sums` | `[c]`, added to |
//!
//! **Numerics.** Leaves of 1024 rows; within one, tiles of 16 rows are summed as a tree of adjacent pairs and the tiles one
//! after another, then what is left of a leaf row by row, in the element type; leaves are added in f64, in order. Error at
//! most `(4 + 62 + 15) u sum_i |x[i][j]|` (the first tile of 63, with 15 rows left) plus one rounding of the result, whatever
//! n. The order depends on the shape alone: the same bits for any number of threads, and on every instruction set (there is no
//! product to fuse).
//!
//! **Cost.** n c additions, one read; bound by memory.

use crate::parallel::{self, BlocksMut, Cost};
use crate::simd::{Element, Isa, Kernel, Lanes};

/// Rows in a leaf.
pub(crate) const LEAF: usize = 1024;

/// Elements of scratch that [`column_sums`] needs.
pub fn scratch_len(n: usize, c: usize) -> usize {
    n.div_ceil(LEAF).saturating_mul(c)
}

/// `sums[j] += sum_i x[i][j]`.
///
/// # Shapes
/// `x`: `[n, c]` with `c = sums.len()`; `scratch`: at least [`scratch_len`] elements, contents irrelevant.
///
/// # Panics
/// If `x` is not a whole number of rows, or if `scratch` is too short.
///
/// # Examples
/// ```
/// let mut sums = [100.0, 0.0];
/// evenkeel::kernels::reduce::column_sums(&[1.0, 2.0, 3.0, 4.0], &mut sums, &mut [0.0; 2]);
/// assert_eq!(sums, [104.0, 6.0]);
/// ```
pub fn column_sums<T: Element>(x: &[T], sums: &mut [T], scratch: &mut [T]) {
    let c = sums.len();
    if c == 0 || x.is_empty() {
        assert!(x.is_empty(), "column sums: {} elements in rows of 0", x.len());
        return;
    }
    assert!(x.len().is_multiple_of(c), "column sums: {} elements in rows of {c}", x.len());
    let n = x.len() / c;
    let needed = scratch_len(n, c);
    assert!(scratch.len() >= needed, "column sums: {} elements of scratch, {needed} needed", scratch.len());
    let isa = Isa::current();
    let leaves = &mut scratch[..needed];
    let cost = Cost { flops: x.len(), bytes: size_of_val(x) };
    let work = (parallel::Blocks { data: x, block: LEAF * c }, BlocksMut { data: &mut *leaves, block: c });
    parallel::for_each(n.div_ceil(LEAF), cost, work, |_, (x, sums)| {
        isa.run(Leaf { x: x.data, sums: sums.data });
    });
    for (j, sum) in sums.iter_mut().enumerate() {
        let total: f64 = leaves.iter().skip(j).step_by(c).map(|s| s.to_f64()).sum();
        *sum = T::from_f64(sum.to_f64() + total);
    }
}

struct Leaf<'a, T> {
    x: &'a [T],
    sums: &'a mut [T],
}

impl<T: Element> Kernel<T> for Leaf<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<V: Lanes<Elem = T>>(self) {
        let c = self.sums.len();
        let n = self.x.len() / c;
        for j in (0..c).step_by(V::WIDTH) {
            let width = V::WIDTH.min(c - j);
            let at = |i: usize| V::load_up_to(&self.x[i * c + j..][..width]);
            let mut sum = V::zero();
            let mut i = 0;
            while i + 16 <= n {
                let mut quads = [V::zero(); 4];
                for q in 0..4 {
                    let r = i + 4 * q;
                    quads[q] = (at(r) + at(r + 1)) + (at(r + 2) + at(r + 3));
                }
                sum = sum + ((quads[0] + quads[1]) + (quads[2] + quads[3]));
                i += 16;
            }
            while i < n {
                sum = sum + at(i);
                i += 1;
            }
            sum.store_up_to(&mut self.sums[j..]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seventeen_rows_by_hand() {
        // One tile and a row: 0 + 1 + ... + 16 = 136, and its negative; sums are added to.
        let x: Vec<f32> = (0u8..17).flat_map(|i| [f32::from(i), -f32::from(i)]).collect();
        let mut sums = [1.0, 0.0];
        column_sums(&x, &mut sums, &mut [0.0; 2]);
        assert_eq!(sums, [137.0, -136.0]);
        column_sums::<f32>(&[], &mut sums, &mut []);
        assert_eq!(sums, [137.0, -136.0]);
    }
}
