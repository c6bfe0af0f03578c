//! General matrix multiplication: `C <- alpha A B + beta C`.
//!
//! A is `m x k`, B is `k x n`, C is `m x n`; all three are views with strides, so `A^T B` and `A B^T` are the same call with
//! transposed views. Backward passes need nothing else: for `Y = X W`, `dX = dY W^T` and `dW = X^T dY`.
//!
//! # The loops
//!
//! ```text
//! jc: columns of C in blocks of NC          B's block stays in L2
//!   pc: k in blocks of KC                   pack B[pc.., jc..] into panels of NR columns (or read it where it lies)
//!     ic: rows of C in tasks                split over threads; each C element is computed by one task
//!       ir: panels of MR rows               pack A[ir.., pc..] on the task's stack (or read it where it lies)
//!         jr: panels of NR columns          one register tile: MR x NR accumulators over kc products
//! ```
//!
//! # Numerics
//!
//! Each element of C is a sum of blocks of KC products; a block is one chain of multiply-adds, and is added to `beta C` (the
//! first) or to what is there. The order depends on k alone: the same bits for any number of threads, and on every fused
//! instruction set. Error bound for one element, u the unit roundoff: `(min(k, KC) + k / KC + 3) u (|alpha| |A| |B| + |beta| |C|)`.
//! `beta = 0` never reads C, `alpha = 0` never reads A or B; NaN and infinities in what is read propagate.
//!
//! # Cost
//!
//! `2 m n k` flops. Packing moves `k n` elements once and `m k` elements once for every NC columns.
//!
//! # References
//!
//! Goto and van de Geijn, "Anatomy of high-performance matrix multiplication", ACM TOMS 34 (2008); Van Zee and van de Geijn,
//! "BLIS", ACM TOMS 41 (2015), whose names are used.

mod blocking;
mod micro;
mod pack;

use crate::matrix::{MatMut, MatRef};
use crate::parallel::{self, Cost, Split};
use crate::simd::{Element, Isa, Kernel, Lanes};
use blocking::{KC, MR_16, MR_32, NC, NV};

/// Elements of scratch that [`gemm`] needs for a product of this size.
pub fn scratch_len<T: Element>(m: usize, k: usize, n: usize) -> usize {
    // C may be written through its transpose, so B may be as wide as m. Two vectors of 64 bytes are the widest panel.
    let widest = 2 * 64 / size_of::<T>();
    k.min(KC) * m.max(n).min(NC).next_multiple_of(widest)
}

/// `C <- alpha A B + beta C`.
///
/// # Shapes
/// `a`: `m x k`, `b`: `k x n`, `c`: `m x n`, any strides; `scratch`: at least [`scratch_len`] elements, contents irrelevant.
/// An empty `m` or `n` is a no-op; `k = 0` leaves `beta C`.
///
/// # Numerics
/// See the [module](self). `beta = 0` overwrites C without reading it.
///
/// # Panics
/// If the shapes disagree, or if `scratch` is too short.
///
/// # Examples
/// ```
/// use evenkeel::kernels::gemm::{gemm, scratch_len};
/// use evenkeel::matrix::{MatMut, MatRef};
/// let (a, b) = ([1.0, 2.0, 3.0, 4.0], [1.0, 0.0, 2.0, 1.0]);
/// let mut c = [0.0f32; 4];
/// let mut scratch = vec![0.0; scratch_len::<f32>(2, 2, 2)];
/// gemm(1.0, MatRef::new(&a, 2, 2), MatRef::new(&b, 2, 2), 0.0, MatMut::new(&mut c, 2, 2), &mut scratch);
/// assert_eq!(c, [5.0, 2.0, 11.0, 4.0]);
/// ```
pub fn gemm<T: Element>(alpha: T, a: MatRef<'_, T>, b: MatRef<'_, T>, beta: T, c: MatMut<'_, T>, scratch: &mut [T]) {
    let (m, k, n) = (a.rows(), a.cols(), b.cols());
    assert_eq!(b.rows(), k, "gemm: A is {m}x{k}, B is {}x{n}", b.rows());
    assert_eq!((c.rows(), c.cols()), (m, n), "gemm: A B is {m}x{n}, C is {}x{}", c.rows(), c.cols());
    let needed = scratch_len::<T>(m, k, n);
    assert!(scratch.len() >= needed, "gemm: {} elements of scratch, {needed} needed", scratch.len());
    if m == 0 || n == 0 {
        return;
    }
    if k == 0 || alpha == T::ZERO {
        return scale(beta, c);
    }
    // Tiles are written along rows; a C whose columns are contiguous is the transpose of one whose rows are.
    if c.col_stride() != 1 && (c.row_stride() == 1 || !c.rows_are_apart()) {
        product(alpha, b.transpose(), a.transpose(), beta, c.transpose(), scratch);
    } else {
        product(alpha, a, b, beta, c, scratch);
    }
}

/// `C <- beta C`.
fn scale<T: Element>(beta: T, mut c: MatMut<'_, T>) {
    let (rows, cols, rs, cs) = (c.rows(), c.cols(), c.row_stride(), c.col_stride());
    let data = c.data_mut();
    for i in 0..rows {
        for j in 0..cols {
            let element = &mut data[i * rs + j * cs];
            *element = if beta == T::ZERO { T::ZERO } else { beta * *element };
        }
    }
}

/// Rows of C, in tasks of `rows` of them.
struct Tasks<'a, T> {
    c: MatMut<'a, T>,
    rows: usize,
}

impl<T: Send> Split for Tasks<'_, T> {
    fn split(self, at: usize) -> (Self, Self) {
        let row = (at * self.rows).min(self.c.rows());
        let (top, bottom) = self.c.split_rows(row);
        (Tasks { c: top, rows: self.rows }, Tasks { c: bottom, rows: self.rows })
    }
}

fn product<T: Element>(alpha: T, a: MatRef<'_, T>, b: MatRef<'_, T>, beta: T, mut c: MatMut<'_, T>, scratch: &mut [T]) {
    let (m, k, n) = (a.rows(), a.cols(), b.cols());
    let isa = Isa::current();
    let rows = blocking::rows_per_task(m);
    let in_place = b.col_stride() == 1 && b.row_stride() > 0 && blocking::reads_b_in_place(m, b.row_stride());
    for jc in (0..n).step_by(NC) {
        let nc = NC.min(n - jc);
        for pc in (0..k).step_by(KC) {
            let kc = KC.min(k - pc);
            let block = Block { pc, kc, jc, nc };
            isa.run(PackB { b, block, in_place, scratch: &mut *scratch });
            let panels = &*scratch;
            let beta = if pc == 0 { beta } else { T::ONE };
            let cost = Cost { flops: 2 * m * nc * kc, bytes: 0 };
            parallel::for_each(m.div_ceil(rows), cost, Tasks { c: c.reborrow(), rows }, |index, task| {
                let first = index * rows;
                let a = a.row_range(first, first + task.c.rows());
                isa.run(Rows { alpha, a, b, in_place, panels, beta, c: task.c, block });
            });
        }
    }
}

/// The part of k and n that one pass covers.
#[derive(Clone, Copy)]
struct Block {
    pc: usize,
    kc: usize,
    jc: usize,
    nc: usize,
}

/// Packs the panels of B that are not read in place: all of them, or only the last, when it is not full.
struct PackB<'a, T> {
    b: MatRef<'a, T>,
    block: Block,
    in_place: bool,
    scratch: &'a mut [T],
}

impl<T: Element> Kernel<T> for PackB<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<V: Lanes<Elem = T>>(self) {
        let Block { pc, kc, jc, nc } = self.block;
        let nr = NV * V::WIDTH;
        for jr in (0..nc).step_by(nr) {
            if self.in_place && jr + nr <= nc {
                continue;
            }
            pack::pack_b(self.b, pc, jc + jr, kc, nr, &mut self.scratch[jr * kc..]);
        }
    }
}

/// The rows of C that belong to one task.
struct Rows<'a, T> {
    alpha: T,
    a: MatRef<'a, T>,
    b: MatRef<'a, T>,
    in_place: bool,
    panels: &'a [T],
    beta: T,
    c: MatMut<'a, T>,
    block: Block,
}

impl<T: Element> Kernel<T> for Rows<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<V: Lanes<Elem = T>>(self) {
        // A branch on a constant: one of the two is compiled for each vector type.
        if V::REGISTERS >= 32 { self.tiles::<V, MR_32>() } else { self.tiles::<V, MR_16>() }
    }
}

impl<T: Element> Rows<'_, T> {
    #[inline(always)]
    fn tiles<V: Lanes<Elem = T>, const MR: usize>(mut self) {
        let Block { pc, kc, jc, nc } = self.block;
        let nr = NV * V::WIDTH;
        let (m, a_stride) = (self.a.rows(), self.a.col_stride());
        let a_in_place = self.a.row_stride() == 1 && a_stride > 0 && blocking::reads_a_in_place(kc);
        let mut packed = [[T::ZERO; MR]; KC];
        let packed = packed.as_flattened_mut();
        for ir in (0..m).step_by(MR) {
            let rows = MR.min(m - ir);
            let (a_panel, lda): (&[T], usize) = if a_in_place && rows == MR {
                (&self.a.data()[ir + pc * a_stride..], a_stride)
            } else {
                pack::pack_a(self.a, ir, pc, kc, MR, packed);
                (packed, MR)
            };
            for jr in (0..nc).step_by(nr) {
                let cols = nr.min(nc - jr);
                let (b_panel, ldb) = if self.in_place && cols == nr {
                    let stride = self.b.row_stride();
                    (&self.b.data()[pc * stride + jc + jr..], stride)
                } else {
                    (&self.panels[jr * kc..], nr)
                };
                let tile = if lda == MR && ldb == nr {
                    // Both cut to kc products, so that neither can end before the other.
                    let (a_panel, b_panel) = (&a_panel[..kc * MR], &b_panel[..kc * nr]);
                    micro::tile::<V, MR, NV>(a_panel.chunks_exact(MR), b_panel.chunks_exact(nr))
                } else {
                    let (a_columns, b_rows) = (a_panel.windows(MR).step_by(lda), b_panel.windows(nr).step_by(ldb));
                    micro::tile::<V, MR, NV>(a_columns.take(kc), b_rows)
                };
                self.write(tile, ir, rows, jc + jr, cols);
            }
        }
    }

    /// `C <- alpha tile + beta C` at `rows` rows from `i0` and `cols` columns from `j0`.
    #[inline(always)]
    fn write<V: Lanes<Elem = T>, const MR: usize>(
        &mut self,
        tile: [[V; NV]; MR],
        i0: usize,
        rows: usize,
        j0: usize,
        cols: usize,
    ) {
        let (rs, cs) = (self.c.row_stride(), self.c.col_stride());
        let (alpha, beta) = (V::splat(self.alpha), V::splat(self.beta));
        let reads_c = self.beta != T::ZERO;
        let data = self.c.data_mut();
        if cs == 1 && rows == MR && cols == NV * V::WIDTH {
            // A full tile goes from its registers to C.
            for i in 0..MR {
                let row = &mut data[(i0 + i) * rs + j0..][..NV * V::WIDTH];
                for v in 0..NV {
                    let part = &mut row[v * V::WIDTH..];
                    let product = tile[i][v] * alpha;
                    let sum = if reads_c { beta.mul_add(V::load(part), product) } else { product };
                    sum.store(part);
                }
            }
            return;
        }
        for i in 0..MR {
            if i >= rows {
                break;
            }
            let start = (i0 + i) * rs + j0 * cs;
            if cs != 1 {
                // Neither rows nor columns are contiguous: through a buffer, element by element.
                let mut buffer = [T::ZERO; 32];
                for v in 0..NV {
                    (tile[i][v] * alpha).store(&mut buffer[v * V::WIDTH..]);
                }
                for j in 0..cols {
                    let element = &mut data[start + j * cs];
                    // The lanes' own multiply-add, so that strides do not change the bits.
                    let old = if reads_c { V::splat(*element) } else { V::zero() };
                    let mut lanes = [T::ZERO; 16];
                    let sum = if reads_c { beta.mul_add(old, V::splat(buffer[j])) } else { V::splat(buffer[j]) };
                    sum.store(&mut lanes);
                    *element = lanes[0];
                }
                continue;
            }
            let row = &mut data[start..start + cols];
            for v in 0..NV {
                let from = v * V::WIDTH;
                if from >= cols {
                    break;
                }
                let part = &mut row[from..];
                let product = tile[i][v] * alpha;
                let sum = if reads_c { beta.mul_add(V::load_up_to(part), product) } else { product };
                sum.store_up_to(part);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_product_that_fits_on_paper() {
        // [1 2; 3 4; 5 6] [1 0 2; 0 1 3] = [1 2 8; 3 4 18; 5 6 28]
        let a = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        let b = [1.0, 0.0, 2.0, 0.0, 1.0, 3.0];
        let mut scratch = vec![0.0; scratch_len::<f64>(3, 2, 3)];
        let mut c = [f64::NAN; 9];
        gemm(1.0, MatRef::new(&a, 3, 2), MatRef::new(&b, 2, 3), 0.0, MatMut::new(&mut c, 3, 3), &mut scratch);
        assert_eq!(c, [1.0, 2.0, 8.0, 3.0, 4.0, 18.0, 5.0, 6.0, 28.0]);
        gemm(2.0, MatRef::new(&a, 3, 2), MatRef::new(&b, 2, 3), -1.0, MatMut::new(&mut c, 3, 3), &mut scratch);
        assert_eq!(c, [1.0, 2.0, 8.0, 3.0, 4.0, 18.0, 5.0, 6.0, 28.0]);
    }

    #[test]
    #[should_panic(expected = "gemm: A is 1x2, B is 1x1")]
    fn shapes_that_disagree_are_named() {
        let mut c = [0.0f32; 1];
        let b = MatRef::new(&[1.0], 1, 1);
        gemm(1.0, MatRef::new(&[1.0, 2.0], 1, 2), b, 0.0, MatMut::new(&mut c, 1, 1), &mut [0.0; 1024]);
    }
}
