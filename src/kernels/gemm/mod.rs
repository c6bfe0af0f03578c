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
//! A sweep takes one panel after the other, which stays in the first cache while all strips pass by; or one strip after the other, where
//! all of B is in the first cache, so that A and C are passed through once and in order.
//!
//! **Tiles divide the shape.** Rows are cut into strips of nearly equal height, because a tile of fewer than eight vectors waits for
//! its own sums. A panel's last vector ends with its last column and overlaps the one before it, so that nothing is masked: both
//! compute the same bits for what they share. Three vectors that are left over make one panel; a lone vector, where C is that narrow,
//! is masked.
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
mod prepacked;
mod shallow;
mod thin;
mod tiny;

use crate::matrix::{MatMut, MatRef};
use crate::parallel::{self, BlocksMut, Cost, Split};
use crate::simd::{ByColumn, ByRow, CellsMut, Element, Isa, Kernel, Lanes, Panels, PerElement, Rows, Strips};
use blocking::{Caches, Cut, FEW, KC, MC, NC, NV, TOGETHER, Tiles};
use micro::{A, Bias, Buffer, Finish, Scatter, Sweep};
use prepacked::AllPanels;
pub use prepacked::{PackedB, gemm_packed};
use shallow::Shallow;
use thin::{Dots, FewRows, THIN};
use tiny::Tiny;

/// Elements of the widest vector: whole vectors are stored, so packed panels need up to so many elements more than they have.
const WIDEST: usize = 16;

/// Elements of scratch that [`gemm`] needs for a product of this size.
pub fn scratch_len<T: Element>(m: usize, k: usize, n: usize) -> usize {
    if m == 0 || n == 0 {
        // Nothing is multiplied, however long its sums would be.
        return 0;
    }
    // C may be written through its transpose, so either may be the wider. Every task packs its own rows of A, and stores one vector
    // more at most. Thin products copy what is few.
    let (widest, kc) = (m.max(n), blocking::kc(k));
    (kc * (widest.min(NC) + WIDEST) + (kc + 1) * widest.min(MC) + WIDEST).max(k.saturating_mul(2 * THIN))
}

/// What a product does besides, while its results are at hand.
#[derive(Debug)]
pub enum Epilogue<'a, T> {
    /// Nothing.
    None,
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
        let mut call = Call { alpha, a, b, beta, c, epilogue: Epilogue::None, scratch };
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
        Epilogue::None => n,
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
    assert_eq!(b_rows, k, "gemm: A is {m}x{k}, B is {b_rows}x{n}");
    assert_eq!(c, (m, n), "gemm: A B is {m}x{n}, C is {}x{}", c.0, c.1);
    assert_eq!(columns, n, "gemm: the epilogue has {columns} numbers for {n} columns");
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

/// C in tasks of `rows` rows and `cols` columns, `across` of them in a row; the last ones may differ.
struct Tasks<'a, T> {
    c: CellsMut<'a, T>,
    rows: usize,
    cols: usize,
    across: usize,
}

impl<T: Element> Split for Tasks<'_, T> {
    fn split(self, at: usize) -> (Self, Self) {
        let Tasks { c, rows, cols, across } = self;
        let (a, b) = if c.rows() > rows { c.split_rows(at / across * rows) } else { c.split_cols(at * cols) };
        (Tasks { c: a, rows, cols, across }, Tasks { c: b, rows, cols, across })
    }

    /// Between two rows of tasks, as long as there are several.
    fn middle(&self, count: usize) -> usize {
        if self.c.rows() > self.rows { count / self.across / 2 * self.across } else { count / 2 }
    }
}

/// Where B is read.
#[derive(Clone, Copy)]
enum B<'a, T> {
    /// Where it lies, its rows contiguous.
    InPlace(MatRef<'a, T>),
    /// From the panels of one pass.
    Panels(&'a [T]),
    /// From panels made beforehand.
    Packed(AllPanels<'a, T>),
}

/// A product with all that belongs to it, what is trivial about it dealt with.
struct Whole<'a, T> {
    isa: Isa,
    a: MatRef<'a, T>,
    b: B<'a, T>,
    c: MatMut<'a, T>,
    finish: Finish<'a, T>,
    scratch: &'a mut [T],
}

/// Runs a product: compiled here, once for each type, and not again in every crate that multiplies.
struct Multiply;

impl PerElement for Multiply {
    type Args<'a, T: Element> = Whole<'a, T>;

    #[inline(never)]
    fn with_f32(product: Whole<'_, f32>) {
        run(product);
    }

    #[inline(never)]
    fn with_f64(product: Whole<'_, f64>) {
        run(product);
    }
}

#[inline(always)]
fn run<T: Element>(product: Whole<'_, T>) {
    let Whole { isa, mut a, mut b, mut c, mut finish, scratch } = product;
    let mut c = cells(&mut c);
    let takes_dots = |a: MatRef<'_, T>, n: usize| {
        (a.col_stride() == 1 || a.rows() <= THIN) && thin::takes_dots(a.rows(), a.cols(), n)
    };
    if let B::InPlace(right) = b {
        // A thin product's few columns become rows, if A's columns are contiguous; its few rows columns, if B's columns are.
        let few_columns = c.cols() <= THIN && c.rows() >= WIDEST && a.row_stride() == 1;
        if !takes_dots(a, c.cols()) && (few_columns || takes_dots(right.transpose(), c.rows())) {
            (a, b, c, finish) = (right.transpose(), B::InPlace(a.transpose()), c.transpose(), finish.transposed());
        }
    }
    let (m, k, n) = (a.rows(), a.cols(), c.cols());
    let (tiles, caches) = (isa.run::<T, _>(Describe), Caches::found());
    if takes_dots(a, n) {
        return dots(isa, tiles, a, b, c, finish, scratch);
    }
    let a_contiguous = a.row_stride() == 1 || a.col_stride() == 1;
    let mut is_shallow = shallow::suits(k, n) && c.has_contiguous_rows();
    let makes_rows = matches!(b, B::InPlace(b) if is_shallow && b.col_stride() != 1 && n <= NC);
    let (panel, scratch) = scratch.split_at_mut(if makes_rows { k * n } else { 0 });
    let b = match b {
        B::InPlace(b) if makes_rows => {
            // Rows so few are made contiguous in one panel.
            let (block, cut) = (Block { pc: 0, kc: k, jc: 0, nc: n }, Cut::none(n));
            isa.run(PackB { b, block, cut, first: 0, end: 1, panels: &mut *panel });
            B::InPlace(MatRef::new(panel, k, n))
        }
        b => b,
    };
    is_shallow &= matches!(b, B::InPlace(b) if b.col_stride() == 1);
    let packs_b = match b {
        B::InPlace(_) if is_shallow => false,
        B::InPlace(b) => {
            // Where A by columns and B drive each other out of the first cache, one of them is packed.
            let collide = |stride| caches.rows_collide::<T>(k.min(KC), stride);
            b.col_stride() != 1
                || !caches.reads_b_in_place::<T>(m, k.min(KC), b.row_stride())
                || (m > WIDEST && a.row_stride() == 1 && collide(a.col_stride()) && collide(b.row_stride()))
        }
        _ => false,
    };
    let a_in_place =
        is_shallow || a_contiguous && (m <= THIN || blocking::reads_a_in_place(a.row_stride() == 1, k.min(KC), n));
    let (kc_most, nc_most) = (blocking::kc(k), caches.nc::<T>(n));
    let nv = if matches!(b, B::InPlace(_)) && !packs_b { tiles.nv(m) } else { NV };
    let forks = parallel::forks(cost::<T>(m.min(MC), kc_most, nc_most));
    if a_in_place && !packs_b && k <= KC && n <= nc_most && !forks {
        let (cut, block) = (Cut::new(tiles, n, nv), Block { pc: 0, kc: k, jc: 0, nc: n });
        let panels = (0, cut.count);
        return Product { a, packed_a: None, b, c, i0: 0, cut, nv, panels, is_shallow, finish, block }
            .run(isa, tiles, caches);
    }
    let mc_most = if forks { MC } else { caches.rows::<T>(m, kc_most) };
    // Where one thread has all rows of A near, it packs them once for each block of k, and few panels of B at a time, which stay near.
    let few_panels = if !forks && packs_b && m <= mc_most { TOGETHER * NV * tiles.width } else { usize::MAX };
    let nc_most = nc_most.min(few_panels);
    let (b_scratch, a_scratch) = scratch.split_at_mut(if packs_b { kc_most * (nc_most + WIDEST) } else { 0 });
    for pc in (0..k).step_by(kc_most) {
        let kc = kc_most.min(k - pc);
        for jc in (0..n).step_by(nc_most) {
            let nc = nc_most.min(n - jc);
            let cut = Cut::new(tiles, nc, nv);
            let block = Block { pc, kc, jc, nc };
            let cost = cost::<T>(m.min(mc_most), kc, nc);
            let b = match b {
                B::InPlace(b) if packs_b => {
                    let together = if forks { TOGETHER } else { cut.count };
                    let panels = BlocksMut { data: &mut *b_scratch, block: together * cut.width * kc };
                    parallel::for_each(cut.count.div_ceil(together), cost, panels, |index, panels| {
                        let (first, end) = (index * together, cut.count.min((index + 1) * together));
                        isa.run(PackB { b, block, cut, first, end, panels: panels.data });
                    });
                    B::Panels(b_scratch)
                }
                b => b,
            };
            let (is_first, is_last) = (pc == 0, pc + kc == k);
            let finish = Finish {
                beta: if is_first { finish.beta } else { T::ONE },
                bias: if is_last { finish.bias } else { Bias::None },
                relu: is_last && finish.relu,
                ..finish
            };
            for ic in (0..m).step_by(mc_most) {
                let mc = mc_most.min(m - ic);
                let (rows, together) = if forks { blocking::task(mc, kc, cut) } else { (mc, cut.count) };
                let task_a = |index: usize| a.row_range(ic + index * rows, ic + mc.min((index + 1) * rows));
                let packed_len = rows * kc + WIDEST;
                let packed_a = if a_in_place {
                    None
                } else {
                    let is_narrow = nc <= tiles.width;
                    // The strips that the block of columns before this one read serve again, unless those are of other rows or heights.
                    if jc == 0 || is_narrow || mc < m {
                        let nv = if is_narrow { 1 } else { nv };
                        let packed = BlocksMut { data: &mut *a_scratch, block: packed_len };
                        parallel::for_each(mc.div_ceil(rows), cost, packed, |index, packed| {
                            isa.run(PackA { a: task_a(index), block, nv, packed: packed.data });
                        });
                    }
                    Some(&*a_scratch)
                };
                let across = cut.count.div_ceil(together);
                let tasks = Tasks { c: c.block((ic, mc), (jc, nc)), rows, cols: together * cut.width, across };
                parallel::for_each(mc.div_ceil(rows) * across, cost, tasks, |index, task| {
                    let (down, along) = (index / across, index % across);
                    let panels = (along * together, cut.count.min((along + 1) * together));
                    let (a, i0) = (task_a(down), ic + down * rows);
                    let packed_a = packed_a.map(|packed| &packed[down * packed_len..]);
                    Product { a, packed_a, b, c: task.c, i0, cut, nv, panels, is_shallow, finish, block }
                        .run(isa, tiles, caches);
                });
            }
        }
    }
}

/// A product with few columns, as dot products: [`takes_dots`](thin::takes_dots).
#[inline(never)]
fn dots<T: Element>(
    isa: Isa,
    tiles: Tiles,
    a: MatRef<'_, T>,
    b: B<'_, T>,
    c: CellsMut<'_, T>,
    finish: Finish<'_, T>,
    scratch: &mut [T],
) {
    let (m, k, n) = (a.rows(), a.cols(), c.cols());
    let (few_rows, scratch) = scratch.split_at_mut(if a.col_stride() == 1 { 0 } else { m * k });
    let a = if a.col_stride() == 1 {
        a
    } else {
        thin::copy_columns(a.transpose(), few_rows);
        MatRef::new(few_rows, m, k)
    };
    let (columns, stride) = match b {
        B::InPlace(b) if b.row_stride() == 1 => (b.data(), b.col_stride()),
        B::InPlace(b) => {
            thin::copy_columns(b, &mut scratch[..n * k]);
            (&*scratch, k)
        }
        B::Packed(b) => {
            let kc = blocking::kc(k);
            let passes = (0..k).step_by(kc).map(|pc| Block { pc, kc: kc.min(k - pc), jc: 0, nc: n });
            thin::copy_packed_columns(b, tiles, passes, k, &mut scratch[..n * k]);
            (&*scratch, k)
        }
        B::Panels(_) => unreachable!("made in a pass of a larger product"),
    };
    let cost = cost::<T>(m, k, n);
    let rows = if parallel::forks(cost) { blocking::rows_of_dots(k, n).min(m) } else { m };
    parallel::for_each(m.div_ceil(rows), cost, Tasks { c, rows, cols: n, across: 1 }, |index, task| {
        let (i0, c) = (index * rows, task.c);
        let a = Rows::new(&a.data()[i0 * a.row_stride()..], c.rows(), k, a.row_stride());
        let b = Rows::new(columns, n, k, stride);
        isa.run(&mut Dots { a, b, c: c.transpose(), finish: finish.at(i0, 0).transposed() });
    });
}

/// What a pass costs.
#[inline(always)]
fn cost<T>(m: usize, kc: usize, nc: usize) -> Cost {
    Cost { flops: 2 * m * nc * kc, bytes: size_of::<T>() * (m * kc + kc * nc + 2 * m * nc) }
}

/// The part of k and n that one pass covers.
#[derive(Clone, Copy)]
struct Block {
    pc: usize,
    kc: usize,
    jc: usize,
    nc: usize,
}

/// Packs panels `first..end` of one pass.
struct PackB<'a, T> {
    b: MatRef<'a, T>,
    block: Block,
    cut: Cut,
    first: usize,
    end: usize,
    panels: &'a mut [T],
}

impl<T: Element> Kernel<T> for PackB<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<V: Lanes<Elem = T>>(self) {
        let Block { pc, kc, jc, .. } = self.block;
        let mut j = self.first;
        while j < self.end {
            let (j0, cols) = self.cut.part(j);
            let panels = &mut self.panels[(j - self.first) * self.cut.width * kc..];
            let (rows, start) = ((pc, kc), jc + j0);
            if self.b.col_stride() == 1 && cols == NV * V::WIDTH && self.cut.alike(j, self.end) >= pack::ABREAST {
                pack::pack_b_abreast::<V>(self.b, rows, start, panels);
                j += pack::ABREAST;
            } else {
                pack::pack_b::<V>(self.b, rows, (start, cols), panels);
                j += 1;
            }
        }
    }
}

/// Packs rows of A for one pass, strip by strip.
struct PackA<'a, T> {
    a: MatRef<'a, T>,
    block: Block,
    nv: usize,
    packed: &'a mut [T],
}

impl<T: Element> Kernel<T> for PackA<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<V: Lanes<Elem = T>>(self) {
        let Block { pc, kc, .. } = self.block;
        let mut i0 = 0;
        while i0 < self.a.rows() {
            let (mr, count) = Tiles::of::<V>().strips(self.nv, self.a.rows() - i0);
            for _ in 0..count {
                pack::pack_a::<V>(self.a, (i0, mr), (pc, kc), &mut self.packed[i0 * kc..]);
                i0 += mr;
            }
        }
    }
}

/// The tiles of an instruction set.
struct Describe;

impl<T: Element> Kernel<T> for Describe {
    type Output = Tiles;

    #[inline(always)]
    fn run<V: Lanes<Elem = T>>(self) -> Tiles {
        Tiles::of::<V>()
    }
}

/// One task of a pass.
struct Product<'a, T> {
    /// Its rows.
    a: MatRef<'a, T>,
    packed_a: Option<&'a [T]>,
    /// All of B.
    b: B<'a, T>,
    /// Its part of C.
    c: CellsMut<'a, T>,
    /// The row of C that is its first: where the bias of rows begins.
    i0: usize,
    /// How the columns of the pass are cut, in panels of up to `nv` vectors.
    cut: Cut,
    nv: usize,
    /// Its first panel, and the one behind its last.
    panels: (usize, usize),
    /// Whether k is so small that C is written row by row.
    is_shallow: bool,
    finish: Finish<'a, T>,
    block: Block,
}

impl<T: Element> Product<'_, T> {
    #[inline(always)]
    fn run(self, isa: Isa, tiles: Tiles, caches: Caches) {
        let Block { pc, kc, jc, nc } = self.block;
        let (a, b, cut, mut c) = (self.a, self.b, self.cut, self.c);
        let (first, end) = self.panels;
        let m = a.rows();
        let is_near = caches.keep_near::<T>(kc * nc);
        if let B::InPlace(b) = b {
            // A tile takes what is near, and four rows, unless their elements have to be written one by one.
            let is_thin = if c.has_contiguous_rows() { m <= FEW && !is_near } else { m <= THIN };
            if self.is_shallow {
                let (j0, cols) = (jc + cut.part(first).0, c.cols());
                let b = Rows::new(&b.data()[j0..], kc, cols, b.row_stride());
                let finish = self.finish.at(self.i0, j0);
                return isa.run(&mut Shallow { a, b, cols, c: c.into_rows(), finish });
            }
            if is_thin && c.cols() >= tiles.width {
                let (j0, cols) = (jc + cut.part(first).0, c.cols());
                let b = Rows::new(&b.data()[pc * b.row_stride() + j0..], kc, cols, b.row_stride());
                let finish = self.finish.at(self.i0, j0);
                return isa.run(&mut FewRows { a, b, k: (pc, kc), c, finish });
            }
        }
        let nv = if nc <= tiles.width { 1 } else { self.nv };
        let mut buffer = if c.has_contiguous_rows() { None } else { Some(Buffer::new()) };
        let column = |j: usize| cut.part(j).0 - cut.part(first).0;
        // Where all of B is near, rows of C are finished before the next are begun, so that A and C are passed through once and in
        // order: a few rows at a time, if there are panels of two widths. Strips that are packed are cut already.
        let is_even = cut.alike(first, end) == end - first;
        let at_once = if is_near && !is_even && self.packed_a.is_none() { blocking::ROWS_AT_ONCE } else { m };
        let mut top = 0;
        while top < m {
            let bottom = m.min(top + at_once);
            let mut j = first;
            while j < end {
                let (j0, cols) = cut.part(j);
                let panels = if buffer.is_some() { 1 } else { cut.alike(j, end) };
                let width = cols.max(tiles.width);
                let b = match b {
                    B::InPlace(b) => {
                        let data = &b.data()[pc * b.row_stride() + jc + j0..];
                        Panels::new(data, (panels, cut.width), (kc, cols), b.row_stride())
                    }
                    B::Panels(data) => Panels::new(&data[j0 * kc..], (panels, cut.width * kc), (kc, width), width),
                    B::Packed(packed) => {
                        let data = packed.block(tiles, self.block);
                        Panels::new(&data[j0 * kc..], (panels, cut.width * kc), (kc, width), width)
                    }
                };
                // Tiles of three vectors are lower than others: several of them make a strip, where strips are cut already.
                let is_wide = cols > 2 * tiles.width && nv == 2;
                let nv = if is_wide && self.packed_a.is_none() { 3 } else { nv };
                let most = if is_wide { tiles.most(3) } else { usize::MAX };
                let mut i0 = top;
                while i0 < bottom {
                    let (mr, mut count) = tiles.strips(nv, bottom - i0);
                    if buffer.is_some() {
                        count = 1;
                    }
                    let even = if mr > most { mr.div_ceil(mr.div_ceil(most)) } else { mr };
                    let mut done = 0;
                    while done < mr {
                        let (rows, i) = (even.min(mr - done), i0 + done);
                        let of = |step| Strips { count, step, rows, cols: kc };
                        let (strips, a) = match self.packed_a {
                            Some(packed) => {
                                let strips = of(mr * kc);
                                (strips, A::ByColumn(ByColumn::new(&packed[i0 * kc + done..], strips, mr)))
                            }
                            None if a.row_stride() == 1 => {
                                let (strips, data) = (of(mr), &a.data()[i + pc * a.col_stride()..]);
                                (strips, A::ByColumn(ByColumn::new(data, strips, a.col_stride())))
                            }
                            None => {
                                let (strips, data) = (of(mr * a.row_stride()), &a.data()[i * a.row_stride() + pc..]);
                                (strips, A::ByRow(ByRow::new(data, strips, a.row_stride())))
                            }
                        };
                        let finish = self.finish.at(self.i0 + i, jc + j0);
                        let (step, by_panel) = ((mr, cut.width), !is_near);
                        let all_rows = (i, (count - 1) * mr + rows);
                        let mut c = c.block(all_rows, (column(j), (panels - 1) * cut.width + cols));
                        if let Some(tile) = &mut buffer {
                            let sums = tile.window(rows, cols);
                            isa.run(&mut Sweep {
                                a,
                                strips,
                                b,
                                cols,
                                c: sums,
                                step,
                                by_panel,
                                finish: Finish::store(),
                            });
                            isa.run(Scatter { tile, finish, c: c.block((0, rows), (0, cols)) });
                        } else {
                            isa.run(&mut Sweep { a, strips, b, cols, c: c.into_rows(), step, by_panel, finish });
                        }
                        done += rows;
                    }
                    i0 += mr * count;
                }
                j += panels;
            }
            top = bottom;
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
            payload.downcast::<String>().expect("a message with numbers")
        };
        let needed = scratch_len::<f32>(2, 3, 2);
        assert!(refused(4, 2, 2, needed).contains("gemm: A is 2x3, B is 4x2"));
        assert!(refused(3, 3, 2, needed).contains("gemm: A B is 2x2, C is 2x3"));
        assert!(refused(3, 2, 3, needed).contains("gemm: the epilogue has 3 numbers for 2 columns"));
        let short = format!("gemm: {} elements of scratch, {needed} needed", needed - 1);
        assert!(refused(3, 2, 2, needed - 1).contains(&short));
        // The first that is wrong is named, whatever else is.
        assert!(refused(4, 3, 3, 0).contains("gemm: A is 2x3, B is 4x2"));
    }
}
