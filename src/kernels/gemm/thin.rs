//! Products of so few rows or columns that a register tile would be mostly empty: the same chains of multiply-adds, in another order
//! of loops.
//!
//! Both are bound by the bytes of the one large operand, which they read once and in the order in which it lies.

use super::blocking::{FEW, KC};
use super::micro::{Bias, Finish};
use crate::matrix::MatRef;
use crate::simd::{CellsMut, Element, Kernel, Lanes, Rows, RowsMut};

/// Vectors of sums in the first cache, for each row.
const CHUNK: usize = 32;

/// At most [`FEW`] rows of A, times a B whose rows are contiguous and too large for the first cache: four rows of B at a time are
/// added to sums in memory.
pub(super) struct FewRows<'a, T> {
    pub(super) a: MatRef<'a, T>,
    /// The part of B that belongs to this pass.
    pub(super) b: Rows<'a, T>,
    pub(super) kc: usize,
    /// The first column of A in this pass.
    pub(super) pc: usize,
    /// As many columns as B has, one vector at least.
    pub(super) c: RowsMut<'a, T>,
    pub(super) finish: Finish<'a, T>,
}

impl<'a, T: Element> Kernel<T> for &'a mut FewRows<'a, T> {
    type Output = ();

    #[inline(always)]
    fn run<V: Lanes<Elem = T>>(self) {
        match self.a.rows() {
            1 => self.rows::<V, 1>(),
            2 => self.rows::<V, 2>(),
            FEW => self.rows::<V, FEW>(),
            _ => unreachable!("at most three rows"),
        }
    }
}

impl<T: Element> FewRows<'_, T> {
    #[inline(always)]
    fn rows<V: Lanes<Elem = T>, const MR: usize>(&mut self) {
        let n = self.c.cols();
        let mut first = 0;
        while first < n {
            let cols = (CHUNK * V::WIDTH).min(n - first);
            // What is left may be less than a vector: the last one begins earlier then, in columns that are not finished yet.
            let cols = if n - first - cols < V::WIDTH && n - first > cols { cols - V::WIDTH } else { cols };
            self.chunk::<V, MR>(first, cols);
            first += cols;
        }
    }

    #[inline(always)]
    fn chunk<V: Lanes<Elem = T>, const MR: usize>(&mut self, first: usize, cols: usize) {
        let vectors = cols.div_ceil(V::WIDTH);
        let at = |v: usize| first + (v * V::WIDTH).min(cols - V::WIDTH);
        let (b, rs, cs) = (self.b, self.a.row_stride(), self.a.col_stride());
        let a = &self.a.data()[self.pc * cs..];
        let mut sums = [[V::zero(); CHUNK]; MR];
        let mut p = 0;
        while p < self.kc {
            let steps = if p + 4 <= self.kc { 4 } else { 1 };
            let mut x = [[V::zero(); 4]; MR];
            for i in 0..MR {
                for u in 0..steps {
                    x[i][u] = V::splat(a[i * rs + (p + u) * cs]);
                }
            }
            if steps == 4 {
                for v in 0..vectors {
                    for u in 0..4 {
                        let row = V::load(b.slice(p + u, at(v), V::WIDTH));
                        for i in 0..MR {
                            sums[i][v] = x[i][u].mul_add(row, sums[i][v]);
                        }
                    }
                }
            } else {
                for v in 0..vectors {
                    let row = V::load(b.slice(p, at(v), V::WIDTH));
                    for i in 0..MR {
                        sums[i][v] = x[i][0].mul_add(row, sums[i][v]);
                    }
                }
            }
            p += steps;
        }
        let finish = self.finish;
        for i in 0..MR {
            let c = self.c.slice(i, 0, first + cols);
            for v in 0..vectors {
                let bias = match finish.bias {
                    Bias::None => None,
                    Bias::OfColumns(bias) => Some(V::load(&bias[at(v)..])),
                    Bias::OfRows(bias) => Some(V::splat(bias[i])),
                };
                sums[i][v] = finish.apply(sums[i][v], || V::load(&c[at(v)..]), bias);
            }
            // Stored when all is read, because the last vector may overlap the one before it.
            for v in 0..vectors {
                sums[i][v].store(&mut c[at(v)..]);
            }
        }
    }
}

/// Most columns of [`FewColumns`].
pub(super) const NARROW: usize = 4;

/// At most [`NARROW`] columns of B, any strides: the lanes lie along the rows of A, which are transposed on the way if they are contiguous.
pub(super) struct FewColumns<'a, T> {
    pub(super) a: MatRef<'a, T>,
    pub(super) b: MatRef<'a, T>,
    pub(super) pc: usize,
    pub(super) kc: usize,
    pub(super) c: CellsMut<'a, T>,
    /// The row of C that is the first here: where the bias of rows begins.
    pub(super) i0: usize,
    pub(super) finish: Finish<'a, T>,
}

impl<'a, T: Element> Kernel<T> for &'a mut FewColumns<'a, T> {
    type Output = ();

    #[inline(always)]
    fn run<V: Lanes<Elem = T>>(self) {
        match self.b.cols() {
            1 => self.columns::<V, 1>(),
            2 => self.columns::<V, 2>(),
            3 => self.columns::<V, 3>(),
            NARROW => self.columns::<V, NARROW>(),
            _ => unreachable!("at most four columns"),
        }
    }
}

impl<T: Element> FewColumns<'_, T> {
    #[inline(always)]
    fn columns<V: Lanes<Elem = T>, const N: usize>(&mut self) {
        let (m, kc) = (self.a.rows(), self.kc);
        let mut b = [[T::ZERO; N]; KC];
        for p in 0..kc {
            for j in 0..N {
                b[p][j] = self.b.data()[(self.pc + p) * self.b.row_stride() + j * self.b.col_stride()];
            }
        }
        let b = &b[..kc];
        let mut i0 = 0;
        while i0 < m {
            // Two groups of rows, so that one's chains run while the other waits; the last ones may repeat rows.
            let last = m.saturating_sub(V::WIDTH);
            let starts = [i0.min(last), (i0 + V::WIDTH).min(last)];
            let mut sums = [[V::zero(); N]; 2];
            if self.a.row_stride() == 1 {
                self.by_column::<V, N>(starts, b, &mut sums);
            } else {
                self.by_row::<V, N>(starts, b, &mut sums);
            }
            for g in 0..2 {
                let begin = i0 + g * V::WIDTH;
                if begin < m {
                    self.finish::<V, N>(starts[g], begin, sums[g]);
                }
            }
            i0 += 2 * V::WIDTH;
        }
    }

    #[inline(always)]
    fn by_column<V: Lanes<Elem = T>, const N: usize>(&self, starts: [usize; 2], b: &[[T; N]], sums: &mut [[V; N]; 2]) {
        let a = Rows::new(&self.a.data()[self.pc * self.a.col_stride()..], b.len(), self.a.rows(), self.a.col_stride());
        let lanes = V::WIDTH.min(self.a.rows());
        for p in 0..b.len() {
            for g in 0..2 {
                let column = V::load_up_to(a.slice(p, starts[g], lanes));
                add(&mut sums[g], column, b[p]);
            }
        }
    }

    #[inline(always)]
    fn by_row<V: Lanes<Elem = T>, const N: usize>(&self, starts: [usize; 2], b: &[[T; N]], sums: &mut [[V; N]; 2]) {
        let a = Rows::new(&self.a.data()[self.pc..], self.a.rows(), b.len(), self.a.row_stride());
        // Whole lines of the cache for one group, then for the other: strides of a power of two leave room for few lines at once.
        let line = 64 / size_of::<T>();
        let mut p = 0;
        while p < b.len() {
            let end = (p + line).min(b.len());
            for g in 0..2 {
                let mut q = p;
                while q < end {
                    let steps = V::WIDTH.min(end - q);
                    let mut square = [V::zero(); 16];
                    if steps == V::WIDTH && self.a.rows() >= V::WIDTH {
                        for i in 0..V::WIDTH {
                            square[i] = V::load(a.slice(starts[g] + i, q, V::WIDTH));
                        }
                        V::transpose(&mut square);
                        for u in 0..V::WIDTH {
                            add(&mut sums[g], square[u], b[q + u]);
                        }
                    } else {
                        for i in 0..V::WIDTH {
                            let row = (starts[g] + i).min(self.a.rows() - 1);
                            square[i] = V::load_up_to(a.slice(row, q, steps));
                        }
                        V::transpose(&mut square);
                        for u in 0..steps {
                            add(&mut sums[g], square[u], b[q + u]);
                        }
                    }
                    q += steps;
                }
            }
            p = end;
        }
    }

    /// Writes the sums of the rows from `start` on, but for those before `begin`, which are written already.
    #[inline(always)]
    fn finish<V: Lanes<Elem = T>, const N: usize>(&mut self, start: usize, begin: usize, sums: [V; N]) {
        let finish = self.finish;
        let lanes = V::WIDTH.min(self.a.rows());
        for j in 0..N {
            let mut old = [T::ZERO; 16];
            if finish.beta != T::ZERO {
                for i in begin - start..lanes {
                    old[i] = *self.c.at(start + i, j);
                }
            }
            let bias = match finish.bias {
                Bias::None => None,
                Bias::OfColumns(bias) => Some(V::splat(bias[j])),
                Bias::OfRows(bias) => Some(V::load_up_to(&bias[self.i0 + start..][..lanes])),
            };
            let mut new = [T::ZERO; 16];
            finish.apply(sums[j], || V::load(&old), bias).store(&mut new);
            for i in begin - start..lanes {
                *self.c.at(start + i, j) = new[i];
            }
        }
    }
}

/// `sums[j] <- column * row[j] + sums[j]`.
#[inline(always)]
fn add<V: Lanes, const N: usize>(sums: &mut [V; N], column: V, row: [V::Elem; N]) {
    for j in 0..N {
        sums[j] = column.mul_add(V::splat(row[j]), sums[j]);
    }
}
