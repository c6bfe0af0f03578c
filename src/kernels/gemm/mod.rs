//! General matrix multiplication: `C <- alpha A B + beta C`.
//!
//! A is `m x k`, B is `k x n`, C is `m x n`; all three are views with strides, so `A^T B` and `A B^T` are the same call with
//! transposed views. Backward passes need nothing else: for `Y = X W`, `dX = dY W^T` and `dW = X^T dY`.
//!
//! # The loops
//!
//! ```text
//! jc: columns of C in blocks of nc
//!   pc: k in blocks of kc                  pack B[pc.., jc..] into panels of 2 vectors (or read it where it lies)
//!     ic: rows of C in blocks of mc        pack A[ic.., pc..] into strips (or read it where it lies)
//!       tasks: rows by panels              one, or shared between threads
//!         strips of one height, panels of one width: one sweep, a call for all of them
//!           register tile                  up to 6 x 2 vectors of accumulators (12 x 2 with AVX-512) over kc products
//! ```
//!
//! The loops down to the tasks are in `pass`, what one task does in `task`, the sweep and the tile in `micro`.
//!
//! A sweep takes one panel after the other, which stays in the first cache while all strips pass by; or one strip after the other, where
//! all of B is in the first cache, or where the second keeps up with a tile of twelve rows, so that A and C are passed through once and
//! in order. The lines of C under a large tile are asked for while it is summed, one every few steps.
//!
//! **Tiles divide the shape.** Rows are cut into strips of nearly equal height, because a tile of fewer than eight vectors waits for
//! its own sums. A panel's last vector ends with its last column and overlaps the one before it, so that nothing is masked: both
//! compute the same bits for what they share. Three vectors that are left over make one panel; a lone vector, where C is that narrow,
//! is masked. Where half a vector costs half, up to that many columns are one behind one or two whole: 60x784x40 took 16 % less time on a
//! Zen 4, 64x784x100 5 %.
//!
//! **What has no use for tiles** has a loop of its own: a few numbers (`tiny`), before anything is asked about caches or threads; few
//! rows or columns (`thin`), which are bound by the other operand's bytes; small k (`shallow`), bound by C's.
//!
//! **Packing only where it pays.** B whose rows are contiguous is read in place while it is small or the rows of A are few; A whose
//! rows or columns are contiguous, while few columns of C read it. B transposed is packed, unless the product is thin. The limits are in
//! `blocking`, with their reasons. What is packed goes to scratch that the caller owns.
//!
//! **Epilogues** ([`Epilogue`]) are applied after the last block of k, while the tile is in registers.
//!
//! **Threads** share a pass: the panels to pack, the strips to pack, then its tasks, which are cut by the shape alone.
//!
//! # Numerics
//!
//! Each element of C is a sum of blocks of at most 256 products of about the same size; a block is one chain of multiply-adds, and is
//! added to `beta C` (the first) or to what is there. The order depends on k alone, so the same bits for any number of threads, any
//! strides, packed or not, and on every fused instruction set. Thin products with k from 32 on that are not tiny are dot products instead,
//! whose order depends on k alone as well: those of up to four columns where A's rows are contiguous or no more than four, and those of
//! up to four rows where B's columns are contiguous. Error bound for one element, u the unit roundoff: `(min(k, 256) + k / 256 + 3) u (|alpha| |A| |B| + |beta| |C|)`, in either
//! order. `beta = 0` never reads C, `alpha = 0` never reads A or B; NaN and infinities in what is read propagate.
//!
//! # Cost
//!
//! `2 m n k` flops. The tile of 6 x 16 f32 on AVX2 is 12 multiply-adds and 8 loads for each k: six cycles where
//! two multiply-adds begin in each, so arithmetic is the bound while A and B come from the first two caches. Packing moves `k n`
//! elements, and `m k` elements for every block of NC columns.
//!
//! # References
//!
//! Goto and van de Geijn, "Anatomy of high-performance matrix multiplication", ACM TOMS 34 (2008); Van Zee and van de Geijn,
//! "BLIS", ACM TOMS 41 (2015), whose names are used.

mod blocking;
mod micro;
mod pack;
mod pass;
mod prepacked;
mod shallow;
mod task;
mod thin;
mod tiny;

use crate::matrix::{MatMut, MatRef};
use crate::simd::{CellsMut, Element, Isa, PerElement};
use blocking::{KC, MC, NC};
use micro::{Bias, Buffer, Finish, Scatter};
use pass::{B, Multiply, Whole};
pub use prepacked::{PackedB, gemm_packed};
use thin::THIN;
use tiny::Tiny;

/// Elements of the widest vector: whole vectors are stored, so packed panels need up to so many elements more than they have.
const WIDEST: usize = 16;

/// Elements of scratch that [`gemm`] needs for a product of this size; what suffices for one suffices for a smaller one.
pub fn scratch_len<T: Element>(m: usize, k: usize, n: usize) -> usize {
    if m == 0 || n == 0 {
        // Nothing is multiplied, however long its sums would be.
        return 0;
    }
    // C may be written through its transpose, so either may be the wider. Every task packs its own rows of A, and stores one vector
    // more at most. Thin products copy what is few. A block of k may be longer where k is shorter, and is no longer than this.
    let (widest, kc) = (m.max(n), k.min(KC));
    (kc * (widest.min(NC) + WIDEST) + (kc + 1) * widest.min(MC) + WIDEST).max(k.saturating_mul(2 * THIN))
}

/// What a product does besides, while its results are at hand.
#[derive(Debug)]
pub enum Epilogue<'a, T> {
    /// Nothing.
    None,
    /// Replaces what is not above zero by +0 and keeps NaN, after all else: ReLU.
    Relu,
    /// Adds one number to each column of C, `[n]`, after all else: a layer's bias.
    Bias(&'a [T]),
    /// Adds one number to each column of C, `[n]`, then replaces what is not above zero by +0 and keeps NaN: bias and ReLU.
    BiasRelu(&'a [T]),
    /// Adds `alpha` times the sums of B's columns to these numbers, `[n]`, as if A had one more row, of ones: with `A B = X^T dY`,
    /// the gradient of the bias.
    ColumnSums(&'a mut [T]),
}

impl<'a, T> Epilogue<'a, T> {
    /// What is added to C, and whether ReLU follows.
    #[inline(always)]
    fn added(&self) -> (Bias<'a, T>, bool) {
        match *self {
            Epilogue::Bias(bias) => (Bias::OfColumns(bias), false),
            Epilogue::BiasRelu(bias) => (Bias::OfColumns(bias), true),
            Epilogue::Relu => (Bias::None, true),
            Epilogue::None | Epilogue::ColumnSums(_) => (Bias::None, false),
        }
    }
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
/// use evenkeel::kernels::gemm::{Epilogue, gemm, scratch_len};
/// use evenkeel::matrix::{MatMut, MatRef};
/// let (a, b) = ([1.0, 2.0, 3.0, 4.0], [1.0, 0.0, 2.0, 1.0]);
/// let (a, b) = (MatRef::new(&a, 2, 2), MatRef::new(&b, 2, 2));
/// let mut c = [0.0f32; 4];
/// let mut scratch = vec![0.0; scratch_len::<f32>(2, 2, 2)];
/// gemm(1.0, a, b, 0.0, MatMut::new(&mut c, 2, 2), Epilogue::None, &mut scratch);
/// assert_eq!(c, [5.0, 2.0, 11.0, 4.0]);
/// gemm(1.0, a, b, 0.0, MatMut::new(&mut c, 2, 2), Epilogue::BiasRelu(&[-6.0, 1.0]), &mut scratch);
/// assert_eq!(c, [0.0, 3.0, 5.0, 5.0]);
/// ```
#[inline]
pub fn gemm<T: Element>(
    alpha: T,
    a: MatRef<'_, T>,
    b: MatRef<'_, T>,
    beta: T,
    c: MatMut<'_, T>,
    epilogue: Epilogue<'_, T>,
    scratch: &mut [T],
) {
    T::call::<Gemm>(Call { alpha, a, b, beta, c, epilogue, scratch });
}

/// What [`gemm`] is called with, in one place: the views of a small product cost more to copy than to multiply.
struct Call<'a, T> {
    alpha: T,
    a: MatRef<'a, T>,
    b: MatRef<'a, T>,
    beta: T,
    c: MatMut<'a, T>,
    epilogue: Epilogue<'a, T>,
    scratch: &'a mut [T],
}

/// [`gemm`], compiled here.
struct Gemm;

impl PerElement for Gemm {
    type Args<'a, T: Element> = Call<'a, T>;

    #[inline(never)]
    fn with_f32(call: Call<'_, f32>) {
        answer(call);
    }

    #[inline(never)]
    fn with_f64(call: Call<'_, f64>) {
        answer(call);
    }
}

#[inline(always)]
fn answer<T: Element>(mut call: Call<'_, T>) {
    check(call.a, (call.b.rows(), call.b.cols()), &call.c, &call.epilogue, call.scratch);
    if call.is_tiny() && call.alpha != T::ZERO && !matches!(call.epilogue, Epilogue::ColumnSums(_)) {
        return Isa::current().run(Tiny(&mut call));
    }
    general(call);
}

impl<T: Element> Call<'_, T> {
    #[inline(always)]
    fn is_tiny(&self) -> bool {
        self.c.col_stride() == 1 && blocking::is_tiny(self.c.rows(), self.a.cols(), self.c.cols())
    }
}

/// A product of any size.
#[inline(never)]
fn general<T: Element>(call: Call<'_, T>) {
    let Call { alpha, mut a, mut b, beta, mut c, epilogue, mut scratch } = call;
    let (m, k, n) = (a.rows(), a.cols(), b.cols());
    let isa = Isa::current();
    let (bias, relu) = epilogue.added();
    let mut finish = Finish { alpha, beta, bias, relu };
    if let Epilogue::ColumnSums(sums) = epilogue
        && m > 0
        && n > 0
        && k > 0
        && alpha != T::ZERO
    {
        let one = [T::ONE];
        let ones = MatRef::with_strides(&one, 1, k, 1, 0).expect("one element, repeated");
        gemm(alpha, ones, b, T::ONE, MatMut::new(sums, 1, n), Epilogue::None, &mut *scratch);
    }
    if m == 0 || n == 0 {
        return;
    }
    if k == 0 || alpha == T::ZERO {
        return scale(isa, finish, c);
    }
    // Tiles are written along rows; a C whose columns are contiguous is the transpose of one whose rows are.
    if c.col_stride() != 1 && c.row_stride() == 1 {
        (a, b, c, finish) = (b.transpose(), a.transpose(), c.transpose(), finish.transposed());
    }
    if let Bias::None = finish.bias {
        let epilogue = if relu { Epilogue::Relu } else { Epilogue::None };
        let mut call = Call { alpha, a, b, beta, c, epilogue, scratch };
        if call.is_tiny() {
            return isa.run(Tiny(&mut call));
        }
        Call { c, scratch, .. } = call;
    }
    T::call::<Multiply>(Whole { isa, a, b: B::InPlace(b), c, finish, scratch });
}

#[inline(always)]
fn check<T: Element>(
    a: MatRef<'_, T>,
    (b_rows, n): (usize, usize),
    c: &MatMut<'_, T>,
    epilogue: &Epilogue<'_, T>,
    scratch: &[T],
) {
    let (m, k, c) = (a.rows(), a.cols(), (c.rows(), c.cols()));
    let columns = match epilogue {
        Epilogue::None | Epilogue::Relu => n,
        Epilogue::Bias(x) | Epilogue::BiasRelu(x) => x.len(),
        Epilogue::ColumnSums(x) => x.len(),
    };
    if b_rows != k || c != (m, n) || columns != n || scratch.len() < scratch_len::<T>(m, k, n) {
        refuse((m, k), (b_rows, n), c, columns, scratch.len());
    }
}

/// Says what is wrong: out of the way of all that is right.
#[cold]
#[inline(never)]
fn refuse((m, k): (usize, usize), (b_rows, n): (usize, usize), c: (usize, usize), columns: usize, scratch: usize) -> ! {
    // Not `assert_eq`, whose own words would come first.
    assert!(b_rows == k, "gemm: A is {m}x{k}, B is {b_rows}x{n}");
    assert!(c == (m, n), "gemm: A B is {m}x{n}, C is {}x{}", c.0, c.1);
    assert!(columns == n, "gemm: the epilogue has {columns} numbers for {n} columns");
    panic!("gemm: {scratch} elements of scratch, {} needed", scratch_len::<f32>(m, k, n));
}

/// What is left of a product without products: `C <- beta C`, and the epilogue.
fn scale<T: Element>(isa: Isa, finish: Finish<'_, T>, mut c: MatMut<'_, T>) {
    let (zero, finish) = (Buffer::new(), Finish { alpha: T::ONE, ..finish });
    let mut c = cells(&mut c);
    for i in (0..c.rows()).step_by(Buffer::<T>::ROWS) {
        for j in (0..c.cols()).step_by(Buffer::<T>::COLS) {
            let (rows, cols) = (Buffer::<T>::ROWS.min(c.rows() - i), Buffer::<T>::COLS.min(c.cols() - j));
            isa.run(Scatter { tile: &zero, finish: finish.at(i, j), c: c.block((i, rows), (j, cols)) });
        }
    }
}

/// The elements of a matrix that has some.
#[inline(always)]
fn cells<'a, T: Copy>(c: &'a mut MatMut<'_, T>) -> CellsMut<'a, T> {
    let (shape, strides) = ((c.rows(), c.cols()), (c.row_stride(), c.col_stride()));
    CellsMut::new(c.data_mut(), shape, strides)
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
        gemm(
            1.0,
            MatRef::new(&a, 3, 2),
            MatRef::new(&b, 2, 3),
            0.0,
            MatMut::new(&mut c, 3, 3),
            Epilogue::None,
            &mut scratch,
        );
        assert_eq!(c, [1.0, 2.0, 8.0, 3.0, 4.0, 18.0, 5.0, 6.0, 28.0]);
        gemm(
            2.0,
            MatRef::new(&a, 3, 2),
            MatRef::new(&b, 2, 3),
            -1.0,
            MatMut::new(&mut c, 3, 3),
            Epilogue::None,
            &mut scratch,
        );
        assert_eq!(c, [1.0, 2.0, 8.0, 3.0, 4.0, 18.0, 5.0, 6.0, 28.0]);
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let refused = |b_rows: usize, c_cols: usize, bias: usize, scratch: usize| {
            let run = || {
                let (a, b, mut c) = ([1.0f32; 6], [1.0; 8], [0.0; 16]);
                let (b, c) = (MatRef::new(&b[..b_rows * 2], b_rows, 2), MatMut::new(&mut c[..2 * c_cols], 2, c_cols));
                let bias = &[1.0; 8][..bias];
                gemm(1.0, MatRef::new(&a, 2, 3), b, 0.0, c, Epilogue::Bias(bias), &mut vec![0.0; scratch]);
            };
            let payload = std::panic::catch_unwind(run).expect_err("it does not fit");
            *payload.downcast::<String>().expect("a message with numbers")
        };
        let needed = scratch_len::<f32>(2, 3, 2);
        assert_eq!(refused(4, 2, 2, needed), "gemm: A is 2x3, B is 4x2");
        assert_eq!(refused(3, 3, 2, needed), "gemm: A B is 2x2, C is 2x3");
        assert_eq!(refused(3, 2, 3, needed), "gemm: the epilogue has 3 numbers for 2 columns");
        let short = format!("gemm: {} elements of scratch, {needed} needed", needed - 1);
        assert_eq!(refused(3, 2, 2, needed - 1), short);
        // The first that is wrong is named, whatever else is.
        assert_eq!(refused(4, 3, 3, 0), "gemm: A is 2x3, B is 4x2");
    }
}
