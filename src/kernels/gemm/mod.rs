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
use crate::parallel::{self, BlocksMut, Cost, Split};
use crate::simd::{ByColumn, ByRow, Element, Isa, Kernel, Lanes, Rows};
use blocking::{Even, KC, MC, NC, Panels};
use micro::{Buffer, Finish};

/// Elements of the widest vector: by so much less may packed panels fill their scratch than their vectors store.
const WIDEST: usize = 16;

/// Elements of scratch that [`gemm`] needs for a product of this size.
pub fn scratch_len<T: Element>(m: usize, k: usize, n: usize) -> usize {
    // C may be written through its transpose, so either may be the wider.
    let widest = m.max(n);
    let tasks = widest.min(MC).div_ceil(blocking::rows_per_task(widest.min(MC)));
    let kc = blocking::kc(k);
    kc * (widest.min(NC) + WIDEST) + kc * widest.min(MC) + tasks * WIDEST
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
    let b_in_place = b.col_stride() == 1 && blocking::reads_b_in_place(m, k.min(KC), b.row_stride());
    let a_contiguous = a.row_stride() == 1 || a.col_stride() == 1;
    let a_in_place = a_contiguous && blocking::reads_a_in_place(a.row_stride() == 1, k.min(KC), n);
    let cost = Cost { flops: 2 * m * n * k, bytes: 0 };
    if a_in_place && b_in_place && k <= KC && n <= NC && !parallel::forks(cost) {
        let block = Block { m, pc: 0, kc: k, jc: 0, nc: n };
        return isa.run(Product { alpha, a, packed_a: None, b: B::InPlace(b), beta, c, block });
    }
    let (kc_most, nc_most) = (blocking::kc(k), blocking::nc(n));
    let (b_scratch, a_scratch) = scratch.split_at_mut(kc_most * (nc_most + WIDEST));
    for jc in (0..n).step_by(nc_most) {
        let nc = nc_most.min(n - jc);
        for pc in (0..k).step_by(kc_most) {
            let kc = kc_most.min(k - pc);
            let block = Block { m, pc, kc, jc, nc };
            if !b_in_place {
                isa.run(PackB { b, block, scratch: &mut *b_scratch });
            }
            let b = if b_in_place { B::InPlace(b) } else { B::Packed(b_scratch) };
            let beta = if pc == 0 { beta } else { T::ONE };
            for ic in (0..m).step_by(MC) {
                let mc = MC.min(m - ic);
                let rows = blocking::rows_per_task(mc);
                let cost = Cost { flops: 2 * mc * nc * kc, bytes: 0 };
                let packed_a = BlocksMut { data: &mut *a_scratch, block: rows * kc + WIDEST };
                let c = c.reborrow().split_rows(ic).1.split_rows(mc).0;
                parallel::for_each(
                    mc.div_ceil(rows),
                    cost,
                    (Tasks { c, rows }, packed_a),
                    |index, (task, packed_a)| {
                        let first = ic + index * rows;
                        let a = a.row_range(first, first + task.c.rows());
                        let packed_a = if a_in_place { None } else { Some(packed_a.data) };
                        isa.run(Product { alpha, a, packed_a, b, beta, c: task.c, block });
                    },
                );
            }
        }
    }
}

/// The part of k and n that one pass covers, of `m` rows.
#[derive(Clone, Copy)]
struct Block {
    m: usize,
    pc: usize,
    kc: usize,
    jc: usize,
    nc: usize,
}

/// Packs the panels of B.
struct PackB<'a, T> {
    b: MatRef<'a, T>,
    block: Block,
    scratch: &'a mut [T],
}

impl<T: Element> Kernel<T> for PackB<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<V: Lanes<Elem = T>>(self) {
        let Block { m, pc, kc, jc, nc } = self.block;
        let panels = Panels::new::<V>(m, nc);
        for j in 0..panels.count {
            let (j0, cols) = panels.part(j);
            pack::pack_b::<V>(self.b, (pc, kc), (jc + j0, cols), &mut self.scratch[j0 * kc..]);
        }
    }
}

/// Where B is read.
#[derive(Clone, Copy)]
enum B<'a, T> {
    InPlace(MatRef<'a, T>),
    Packed(&'a [T]),
}

/// The rows of C that belong to one task.
struct Product<'a, T> {
    alpha: T,
    a: MatRef<'a, T>,
    packed_a: Option<&'a mut [T]>,
    b: B<'a, T>,
    beta: T,
    c: MatMut<'a, T>,
    block: Block,
}

impl<T: Element> Kernel<T> for Product<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<V: Lanes<Elem = T>>(self) {
        let Block { m, pc, kc, jc, nc } = self.block;
        let panels = Panels::new::<V>(m, nc);
        let nv = if m <= 3 {
            4
        } else if nc <= V::WIDTH {
            1
        } else {
            2
        };
        let strips = Even::new(self.a.rows(), blocking::mr::<V>(nv));
        let packed_a = self.packed_a.map(|packed| {
            for i in 0..strips.count {
                let (i0, mr) = strips.part(i);
                pack::pack_a::<V>(self.a, (i0, mr), (pc, kc), &mut packed[i0 * kc..]);
            }
            &*packed
        });
        let finish = Finish { alpha: self.alpha, beta: self.beta };
        let (a, b, mut c) = (self.a, self.b, self.c);
        let (rs, cs) = (c.row_stride(), c.col_stride());
        let mut buffer = if cs == 1 { None } else { Some(Buffer::new()) };
        // What is in the inner loop is read again for each step of the outer.
        let strips_outside = kc * nc <= 4096;
        let (outer, inner) = if strips_outside { (strips.count, panels.count) } else { (panels.count, strips.count) };
        for o in 0..outer {
            for i in 0..inner {
                let (i, j) = if strips_outside { (o, i) } else { (i, o) };
                let ((i0, mr), (j0, cols)) = (strips.part(i), panels.part(j));
                let b = match b {
                    B::Packed(panels) => {
                        let width = cols.max(V::WIDTH);
                        Rows::new(&panels[j0 * kc..], kc, width, width)
                    }
                    B::InPlace(b) => Rows::new(&b.data()[pc * b.row_stride() + jc + j0..], kc, cols, b.row_stride()),
                };
                let (size, out) = ((mr, cols), &mut c.data_mut()[i0 * rs + (jc + j0) * cs..]);
                let (finish_tile, target) = match &mut buffer {
                    None => (finish, (&mut *out, rs)),
                    Some(buffer) => (Finish { alpha: T::ONE, beta: T::ZERO }, buffer.rows(cols)),
                };
                if packed_a.is_some() || a.row_stride() == 1 {
                    let columns = match packed_a {
                        Some(packed) => ByColumn::new(&packed[i0 * kc..], mr, kc, mr),
                        None => ByColumn::new(&a.data()[i0 + pc * a.col_stride()..], mr, kc, a.col_stride()),
                    };
                    micro::multiply::<V, _>(columns, b, size, finish_tile, target);
                } else {
                    let rows = ByRow::new(&a.data()[i0 * a.row_stride() + pc..], mr, kc, a.row_stride());
                    micro::multiply::<V, _>(rows, b, size, finish_tile, target);
                }
                if let Some(buffer) = &buffer {
                    buffer.scatter::<V>((mr, cols), finish, out, (rs, cs));
                }
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
