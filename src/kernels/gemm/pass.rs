//! The passes of a product over its operands: what is packed, where the others are read, and how a pass is cut into tasks.

use super::blocking::{self, Caches, Cut, KC, MC, NC, NV, TOGETHER, Tiles};
use super::micro::{Bias, Finish};
use super::prepacked::AllPanels;
use super::task::Product;
use super::thin::{self, Dots, THIN};
use super::{WIDEST, cells, pack, shallow};
use crate::matrix::{MatMut, MatRef};
use crate::parallel::{self, BlocksMut, Cost, Split};
use crate::simd::{CellsMut, Element, Isa, Kernel, Lanes, PerElement, Rows};

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
pub(super) enum B<'a, T> {
    /// Where it lies, its rows contiguous.
    InPlace(MatRef<'a, T>),
    /// From the panels of one pass.
    Panels(&'a [T]),
    /// From panels made beforehand.
    Packed(AllPanels<'a, T>),
}

/// A product with all that belongs to it, what is trivial about it dealt with.
pub(super) struct Whole<'a, T> {
    pub(super) isa: Isa,
    pub(super) a: MatRef<'a, T>,
    pub(super) b: B<'a, T>,
    pub(super) c: MatMut<'a, T>,
    pub(super) finish: Finish<'a, T>,
    pub(super) scratch: &'a mut [T],
}

/// Runs a product: compiled here, once for each type, and not again in every crate that multiplies.
pub(super) struct Multiply;

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
            let (block, cut) = (Block { pc: 0, kc: k, jc: 0, nc: n }, Cut::whole(n));
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
        isa.run(ColumnsToRows { b: a.transpose(), rows: few_rows });
        MatRef::new(few_rows, m, k)
    };
    let (columns, stride) = match b {
        B::InPlace(b) if b.row_stride() == 1 => (b.data(), b.col_stride()),
        B::InPlace(b) => {
            isa.run(ColumnsToRows { b, rows: &mut scratch[..n * k] });
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
pub(super) struct Block {
    pub(super) pc: usize,
    pub(super) kc: usize,
    pub(super) jc: usize,
    pub(super) nc: usize,
}

/// Packs panels `first..end` of one pass.
pub(super) struct PackB<'a, T> {
    pub(super) b: MatRef<'a, T>,
    pub(super) block: Block,
    pub(super) cut: Cut,
    pub(super) first: usize,
    pub(super) end: usize,
    pub(super) panels: &'a mut [T],
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

/// Makes rows of the columns of a matrix.
struct ColumnsToRows<'a, T> {
    b: MatRef<'a, T>,
    rows: &'a mut [T],
}

impl<T: Element> Kernel<T> for ColumnsToRows<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<V: Lanes<Elem = T>>(self) {
        pack::columns_to_rows::<V>(self.b, self.rows);
    }
}

/// The tiles of an instruction set.
pub(super) struct Describe;

impl<T: Element> Kernel<T> for Describe {
    type Output = Tiles;

    #[inline(always)]
    fn run<V: Lanes<Elem = T>>(self) -> Tiles {
        Tiles::of::<V>()
    }
}
