//! One task of a pass: its rows of A times its panels of B, as sweeps of tiles or by the loop that suits it better.

use super::blocking::{self, Caches, Cut, FEW, NV, Tiles, most_halved};
use super::micro::{A, Buffer, Finish, Halved, Scatter, Sweep};
use super::pass::{B, Block};
use super::shallow::Shallow;
use super::thin::{FewRows, THIN};
use crate::matrix::MatRef;
use crate::simd::{ByColumn, ByRow, CellsMut, Element, Isa, Panels, Rows, RowsMut, Strips};

/// One task of a pass.
pub(super) struct Product<'a, T> {
    /// Its rows.
    pub(super) a: MatRef<'a, T>,
    pub(super) packed_a: Option<&'a [T]>,
    /// All of B.
    pub(super) b: B<'a, T>,
    /// Its part of C.
    pub(super) c: CellsMut<'a, T>,
    /// The row of C that is its first: where the bias of rows begins.
    pub(super) i0: usize,
    /// How the columns of the pass are cut, in panels of up to `nv` vectors.
    pub(super) cut: Cut,
    pub(super) nv: usize,
    /// Its first panel, and the one behind its last.
    pub(super) panels: (usize, usize),
    /// Whether k is so small that C is written row by row.
    pub(super) is_shallow: bool,
    pub(super) finish: Finish<'a, T>,
    pub(super) block: Block,
}

impl<T: Element> Product<'_, T> {
    #[inline(always)]
    pub(super) fn run(self, isa: Isa, tiles: Tiles, caches: Caches) {
        let Block { pc, kc, jc, nc } = self.block;
        let (a, b, cut, mut c) = (self.a, self.b, self.cut, self.c);
        let (first, end) = self.panels;
        let m = a.rows();
        let is_near = caches.keep_near::<T>(kc * nc);
        let by_panel = !is_near && !caches.keep_strips_near::<T>(tiles.most(NV), kc, c.cols());
        if let B::InPlace(b) = b {
            // A tile takes what is near, and four rows, unless their elements have to be written one by one.
            let is_thin = if c.has_contiguous_rows() { m <= FEW && !is_near } else { m <= THIN };
            if self.is_shallow || (is_thin && c.cols() >= tiles.width) {
                let (j0, cols) = (jc + cut.part(first).0, c.cols());
                let b = Rows::new(&b.data()[pc * b.row_stride() + j0..], kc, cols, b.row_stride());
                let finish = self.finish.at(self.i0, j0);
                return if self.is_shallow {
                    isa.run(&mut Shallow { a, b, cols, c: c.into_rows(), finish })
                } else {
                    isa.run(&mut FewRows { a, b, k: (pc, kc), c, finish })
                };
            }
        }
        let nv = if nc <= tiles.width { 1 } else { self.nv };
        let has_narrow_units = isa.has_narrow_units();
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
                // Tiles of three vectors, and of some and a half, are lower than those of two: several of them make a strip, where strips
                // are cut already.
                let is_wide = cols > 2 * tiles.width && nv == 2;
                let halved = if has_narrow_units { tiles.halved(cols) } else { None };
                let most = match halved {
                    Some(whole) => most_halved(whole),
                    None if is_wide => tiles.most(3),
                    None => usize::MAX,
                };
                let mut i0 = top;
                while i0 < bottom {
                    let (mr, mut count) = match (self.packed_a, halved) {
                        (None, Some(whole)) => Tiles::strips_halved(whole, bottom - i0),
                        (None, None) if is_wide => tiles.strips(3, bottom - i0),
                        _ => tiles.strips(nv, bottom - i0),
                    };
                    if buffer.is_some() {
                        count = 1;
                    }
                    let even = blocking::rows_of_tile(mr, most);
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
                        let step = (mr, cut.width);
                        let all_rows = (i, (count - 1) * mr + rows);
                        let mut c = c.block(all_rows, (column(j), (panels - 1) * cut.width + cols));
                        let sweep = |c: RowsMut<'_, T>, finish| {
                            let mut sweep = Sweep { a, strips, b, cols, c, step, by_panel, finish };
                            if halved.is_some() { isa.run(&mut Halved(sweep)) } else { isa.run(&mut sweep) }
                        };
                        if let Some(tile) = &mut buffer {
                            sweep(tile.window(rows, cols), Finish::store());
                            isa.run(Scatter { tile, finish, c: c.block((0, rows), (0, cols)) });
                        } else {
                            sweep(c.into_rows(), finish);
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
