//! Products of small k: so few steps that a register tile is finished as soon as it is begun.
//!
//! Each element of C takes up to [`SHALLOW`] multiply-adds, so the bound is C's bytes, and C is written once and in order: a few rows at
//! a time, vector by vector, with the rows of B, all of them in the first cache, and the factors of the rows of A in registers. The
//! chains are a register tile's, without all that begins and ends a tile.

use super::micro::Finish;
use crate::matrix::MatRef;
use crate::simd::{Abreast, Element, Kernel, Lanes, Rows, RowsMut};

/// Most of k.
const SHALLOW: usize = 8;

/// Whether a product with so many steps and columns is one of these: what begins a row costs as much as a dozen vectors.
#[inline(always)]
pub(super) fn suits(k: usize, n: usize) -> bool {
    k <= SHALLOW && n >= 128
}

/// C of any size, with contiguous rows.
pub(super) struct Shallow<'a, T> {
    pub(super) a: MatRef<'a, T>,
    pub(super) b: Rows<'a, T>,
    pub(super) cols: usize,
    pub(super) c: RowsMut<'a, T>,
    pub(super) finish: Finish<'a, T>,
}

/// Elements of B in the columns that are finished before the next: 16 KiB of f32.
const NEAR: usize = 4096;

impl<'a, T: Element> Kernel<T> for &'a mut Shallow<'a, T> {
    type Output = ();

    #[inline(always)]
    fn run<V: Lanes<Elem = T>>(self) {
        // As many rows of C at a time as there are registers for their factors.
        match self.a.cols() {
            1 => self.steps::<V, 4, 1>(),
            2 => self.steps::<V, 4, 2>(),
            3 => self.steps::<V, 2, 3>(),
            4 => self.steps::<V, 2, 4>(),
            5 => self.steps::<V, 1, 5>(),
            6 => self.steps::<V, 1, 6>(),
            7 => self.steps::<V, 1, 7>(),
            SHALLOW => self.steps::<V, 1, SHALLOW>(),
            _ => unreachable!("no more steps than a shallow product has"),
        }
    }
}

impl<T: Element> Shallow<'_, T> {
    #[inline(always)]
    fn steps<V: Lanes<Elem = T>, const MR: usize, const K: usize>(&mut self) {
        let mut j = 0;
        while j < self.cols {
            let cols = (NEAR / K.next_power_of_two()).min(self.cols - j);
            let mut i = 0;
            while i + MR <= self.a.rows() {
                self.rows::<V, MR, K>(i, (j, cols));
                i += MR;
            }
            while i < self.a.rows() {
                self.rows::<V, 1, K>(i, (j, cols));
                i += 1;
            }
            j += cols;
        }
    }

    #[inline(always)]
    fn rows<V: Lanes<Elem = T>, const MR: usize, const K: usize>(&mut self, i: usize, (j, cols): (usize, usize)) {
        let (rs, cs) = (self.a.row_stride(), self.a.col_stride());
        let mut x = [[V::zero(); K]; MR];
        for r in 0..MR {
            for p in 0..K {
                x[r][p] = V::splat(self.a.data()[(i + r) * rs + p * cs]);
            }
        }
        let finish = self.finish.at(i, j);
        let is_plain = finish.is_plain();
        let b = self.b.columns(j, cols);
        let mut b = Abreast::<_, K, 0>::new((b, 0), (b, 0));
        let mut c = self.c.block((i, MR), (j, cols));
        let mut v = 0;
        while b.left() >= V::WIDTH {
            let mut sums = [V::zero(); MR];
            for p in 0..K {
                let row = V::load(b.one(p, 0, V::WIDTH));
                for r in 0..MR {
                    sums[r] = x[r][p].mul_add(row, sums[r]);
                }
            }
            for r in 0..MR {
                let c = c.slice(r, v, V::WIDTH);
                if !is_plain {
                    let bias = finish.bias_at(r, v, V::WIDTH);
                    sums[r] = finish.apply(sums[r], || V::load(c), bias);
                }
                sums[r].store(c);
            }
            b.pass(V::WIDTH);
            v += V::WIDTH;
        }
        let rest = b.left();
        if rest > 0 {
            for r in 0..MR {
                let mut sums = V::zero();
                for p in 0..K {
                    sums = x[r][p].mul_add(V::load_partial(b.one(p, 0, rest)), sums);
                }
                let c = c.slice(r, v, rest);
                sums = finish.apply(sums, || V::load_partial(c), finish.bias_at(r, v, rest));
                sums.store_partial(c);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::Isa;

    #[test]
    fn rows_that_pick_and_one_that_mixes() {
        // Rows of B are j, 1 and 10: the first two rows of A pick one each, the third makes j + 2 + 30 of all.
        let a = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 1.0, 2.0, 3.0];
        const COLS: usize = 17; // more than any vector has, and no multiple of one
        let b: Vec<f32> = (0..3 * COLS).map(|at| [at as f32, 1.0, 10.0][at / COLS]).collect();
        for isa in Isa::available() {
            let mut c = [f32::NAN; 3 * COLS];
            // Stored; then 3 A B - 2 C, which is the same again.
            for (alpha, beta) in [(1.0, 0.0), (3.0, -2.0)] {
                isa.run(&mut Shallow {
                    a: MatRef::new(&a, 3, 3),
                    b: Rows::new(&b, 3, COLS, COLS),
                    cols: COLS,
                    c: RowsMut::new(&mut c, 3, COLS, COLS),
                    finish: Finish { alpha, beta, ..Finish::store() },
                });
                for j in 0..COLS {
                    let column = [c[j], c[COLS + j], c[2 * COLS + j]];
                    assert_eq!(column, [j as f32, 1.0, j as f32 + 32.0], "{isa}: column {j}");
                }
            }
        }
    }
}
