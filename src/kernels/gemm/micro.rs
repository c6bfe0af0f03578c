//! The register tile, and what becomes of sums before they are stored.

use super::blocking::Tiles;
use crate::simd::{
    ByColumn, ByRow, CellsMut, Column, Columns, Element, Kernel, Lanes, Pairs, Panels, Row, Rows, RowsMut, Striped,
    Strips,
};

/// What becomes of a tile of sums: `C <- alpha tile + beta C`, then the bias, then ReLU.
#[derive(Clone, Copy)]
pub(super) struct Finish<'a, T> {
    pub(super) alpha: T,
    pub(super) beta: T,
    pub(super) bias: Bias<'a, T>,
    pub(super) relu: bool,
}

/// What is added to the elements of C.
#[derive(Clone, Copy)]
pub(super) enum Bias<'a, T> {
    None,
    /// One number for each column, from the tile's first column on.
    OfColumns(&'a [T]),
    /// One number for each row, from the tile's first row on.
    OfRows(&'a [T]),
}

impl<'a, T: Element> Finish<'a, T> {
    /// `C <- tile`.
    #[inline(always)]
    pub(super) fn store() -> Self {
        Finish { alpha: T::ONE, beta: T::ZERO, bias: Bias::None, relu: false }
    }

    /// Whether sums are what C becomes.
    #[inline(always)]
    pub(super) fn is_plain(self) -> bool {
        self.alpha == T::ONE && self.beta == T::ZERO && matches!(self.bias, Bias::None) && !self.relu
    }

    /// The bias of `len` elements from row `i` and column `j` on, along the row.
    #[inline(always)]
    pub(super) fn bias_at<V: Lanes<Elem = T>>(self, i: usize, j: usize, len: usize) -> Option<V> {
        match self.bias {
            Bias::None => None,
            Bias::OfColumns(bias) => Some(V::load_up_to(&bias[j..][..len])),
            Bias::OfRows(bias) => Some(V::splat(bias[i])),
        }
    }

    /// For the same product with rows and columns exchanged.
    #[inline(always)]
    pub(super) fn transposed(self) -> Self {
        let bias = match self.bias {
            Bias::None => Bias::None,
            Bias::OfColumns(bias) => Bias::OfRows(bias),
            Bias::OfRows(bias) => Bias::OfColumns(bias),
        };
        Finish { bias, ..self }
    }

    /// What becomes of sums: `old` is C's, and what is to be added.
    #[inline(always)]
    pub(super) fn apply<V: Lanes<Elem = T>>(self, mut sums: V, old: impl FnOnce() -> V, bias: Option<V>) -> V {
        if self.alpha != T::ONE {
            sums = sums * V::splat(self.alpha);
        }
        if self.beta != T::ZERO {
            sums = V::splat(self.beta).mul_add(old(), sums);
        }
        if let Some(bias) = bias {
            sums = sums + bias;
        }
        if self.relu { sums.gated(sums) } else { sums }
    }

    /// For what begins at row `i` and column `j`.
    #[inline(always)]
    pub(super) fn at(self, i: usize, j: usize) -> Self {
        let bias = match self.bias {
            Bias::OfColumns(bias) => Bias::OfColumns(&bias[j..]),
            Bias::OfRows(bias) => Bias::OfRows(&bias[i..]),
            Bias::None => Bias::None,
        };
        Finish { bias, ..self }
    }
}

/// Strips of A of one height times panels of B of one width.
pub(super) struct Sweep<'a, T> {
    pub(super) a: A<'a, T>,
    /// How many strips there are, and of how many rows.
    pub(super) strips: Strips,
    pub(super) b: Panels<'a, T>,
    /// Columns of a panel.
    pub(super) cols: usize,
    /// All rows of the strips, all columns of the panels.
    pub(super) c: RowsMut<'a, T>,
    /// Rows from one strip's C to the next one's, and columns from one panel's to the next one's.
    pub(super) step: (usize, usize),
    /// Whether a panel is multiplied by all strips before the next one is, or a strip by all panels.
    pub(super) by_panel: bool,
    pub(super) finish: Finish<'a, T>,
}

/// Strips of A, where they lie or packed.
#[derive(Clone, Copy)]
pub(super) enum A<'a, T> {
    ByRow(ByRow<'a, T>),
    ByColumn(ByColumn<'a, T>),
}

impl<'a, T: Element> Kernel<T> for &'a mut Sweep<'a, T> {
    type Output = ();

    #[inline(always)]
    fn run<V: Lanes<Elem = T>>(self) {
        match self.a {
            A::ByRow(a) => self.tiles::<V, _, false>(a),
            A::ByColumn(a) => self.tiles::<V, _, true>(a),
        }
    }
}

impl<T: Element> Sweep<'_, T> {
    /// `FAR`: whether C may be far. A whose rows are read where they lie is multiplied by few columns, so that it is not.
    #[inline(always)]
    fn tiles<V: Lanes<Elem = T>, A: Striped<T>, const FAR: bool>(&mut self, a: A) {
        // One arm for each size of a tile; those that this instruction set has no registers for are not compiled.
        macro_rules! arms {
            ($nv:literal: $($mr:literal)*) => {
                match self.strips.rows {
                    $($mr if $mr <= const { Tiles::of::<V>().most($nv) } => self.tile::<V, A, $mr, $nv, FAR>(a),)*
                    _ => unreachable!("no more rows than a tile has"),
                }
            };
        }
        match self.cols.div_ceil(V::WIDTH) {
            1 if const { Tiles::of::<V>().most(1) } == 4 => arms!(1: 1 2 3 4),
            1 => arms!(1: 1 2 3 4 8 12),
            2 => arms!(2: 1 2 3 4 5 6 8 12),
            3 if const { Tiles::of::<V>().wide } => arms!(3: 1 2 3 4 5 6 8),
            4 if const { Tiles::of::<V>().wide } => arms!(4: 1 2 3),
            _ => unreachable!("no more columns than a tile has"),
        }
    }

    #[inline(always)]
    fn tile<V: Lanes<Elem = T>, A: Striped<T>, const MR: usize, const NV: usize, const FAR: bool>(&mut self, a: A) {
        let Sweep { strips, b, cols, step, by_panel, finish, .. } = *self;
        let (strips, panels) = (strips.count, b.count());
        let (mut s, mut p) = (0, 0);
        while s < strips && p < panels {
            let (i, j) = (s * step.0, p * step.1);
            // Rows that are far apart are read a line at a time, which no processor foresees.
            if by_panel && s == 0 && p + 1 < panels {
                b.prefetch(p + 1);
            }
            let c = self.c.block((i, MR), (j, cols));
            tile::<V, A, MR, NV, FAR>(a.strip(s, MR), b.get(p, cols), cols, finish.at(i, j), c);
            // One loop for both orders, so that the tile is there once.
            if by_panel {
                s += 1;
                if s == strips {
                    (s, p) = (0, p + 1);
                }
            } else {
                p += 1;
                if p == panels {
                    (s, p) = (s + 1, 0);
                }
            }
        }
    }
}

/// An `MR x (NV vectors)` tile of `A B`: the sum of the outer products of A's columns and B's rows.
///
/// Every element is one chain of multiply-adds in the order of the products, whatever the width of a vector. The last of several
/// vectors ends with B's last column and may overlap the one before it, whose elements it then computes again; a single one may
/// be wider than B.
#[inline(always)]
fn tile<V: Lanes, A: Columns<V::Elem>, const MR: usize, const NV: usize, const FAR: bool>(
    a: A,
    b: Rows<'_, V::Elem>,
    cols: usize,
    finish: Finish<'_, V::Elem>,
    mut c: RowsMut<'_, V::Elem>,
) {
    if NV == 1 {
        assert!(cols <= V::WIDTH);
    } else {
        assert!(cols > (NV - 1) * V::WIDTH && cols >= V::WIDTH);
    }
    // The many lines of a large tile are asked for one by one: all at once, they would keep what is read next waiting.
    let is_large = FAR && MR >= 12 && NV >= 2;
    if !is_large {
        for i in 0..MR {
            c.prefetch(i, 0);
        }
    }
    let mut acc = [[V::zero(); NV]; MR];
    let mut pairs = Pairs::new(a, b);
    if matches!(NV, 2 | 3) && MR >= 4 {
        let mut near = 0;
        while pairs.begin(UNROLL) {
            if is_large && near < NV * MR {
                c.prefetch(near / NV, offset::<V, NV>(near % NV, cols));
                near += 1;
            }
            for _ in 0..UNROLL {
                step(&mut acc, pairs.take(), cols);
            }
        }
    }
    while pairs.begin(1) {
        step(&mut acc, pairs.take(), cols);
    }
    if finish.alpha != V::Elem::ONE {
        let alpha = V::splat(finish.alpha);
        for i in 0..MR {
            for v in 0..NV {
                acc[i][v] = acc[i][v] * alpha;
            }
        }
    }
    if finish.beta != V::Elem::ZERO {
        let beta = V::splat(finish.beta);
        for i in 0..MR {
            for v in 0..NV {
                let part = c.slice(i, offset::<V, NV>(v, cols), len::<V, NV>(cols));
                let old = if NV == 1 { V::load_partial(part) } else { V::load(part) };
                acc[i][v] = beta.mul_add(old, acc[i][v]);
            }
        }
    }
    match finish.bias {
        Bias::None => {}
        Bias::OfColumns(bias) => {
            let bias = &bias[..cols];
            for v in 0..NV {
                let part = V::load_up_to(&bias[offset::<V, NV>(v, cols)..]);
                for i in 0..MR {
                    acc[i][v] = acc[i][v] + part;
                }
            }
        }
        Bias::OfRows(bias) => {
            let bias = &bias[..MR];
            for i in 0..MR {
                for v in 0..NV {
                    acc[i][v] = acc[i][v] + V::splat(bias[i]);
                }
            }
        }
    }
    if finish.relu {
        for i in 0..MR {
            for v in 0..NV {
                acc[i][v] = acc[i][v].gated(acc[i][v]);
            }
        }
    }
    for i in 0..MR {
        for v in 0..NV {
            let part = c.slice(i, offset::<V, NV>(v, cols), len::<V, NV>(cols));
            if NV == 1 {
                acc[i][v].store_partial(part);
            } else {
                acc[i][v].store(part);
            }
        }
    }
}

/// Steps of k between two tests for the end.
const UNROLL: usize = 4;

#[inline(always)]
fn step<V: Lanes, A: Columns<V::Elem>, const MR: usize, const NV: usize>(
    acc: &mut [[V; NV]; MR],
    (a, b): (Column<A>, Row<'_, V::Elem>),
    cols: usize,
) {
    let mut row = [V::zero(); NV];
    for v in 0..NV {
        let part = b.slice(offset::<V, NV>(v, cols), len::<V, NV>(cols));
        row[v] = if NV == 1 { V::load_partial(part) } else { V::load(part) };
    }
    for i in 0..MR {
        let x = V::splat(a.get(i));
        for v in 0..NV {
            acc[i][v] = x.mul_add(row[v], acc[i][v]);
        }
    }
}

/// The first column of vector `v` of `NV` that cover `cols` columns.
#[inline(always)]
fn offset<V: Lanes, const NV: usize>(v: usize, cols: usize) -> usize {
    if NV > 1 && v == NV - 1 { cols - V::WIDTH } else { v * V::WIDTH }
}

/// The number of columns in each of the `NV` vectors.
#[inline(always)]
fn len<V: Lanes, const NV: usize>(cols: usize) -> usize {
    if NV == 1 { cols } else { V::WIDTH }
}

/// Where a tile goes before it is written to a C whose rows are not contiguous: as many elements as the largest has.
pub(super) struct Buffer<T>([T; 12 * 32]);

impl<T: Element> Buffer<T> {
    /// Rows and columns that have room.
    pub(super) const ROWS: usize = 12;
    pub(super) const COLS: usize = 32;

    pub(super) fn new() -> Self {
        Buffer([T::ZERO; 12 * 32])
    }

    /// `rows` rows of `cols` columns.
    pub(super) fn window(&mut self, rows: usize, cols: usize) -> RowsMut<'_, T> {
        RowsMut::new(&mut self.0, rows, cols, cols)
    }
}

/// Finishes a tile and writes it to C, element by element.
pub(super) struct Scatter<'a, T> {
    pub(super) tile: &'a Buffer<T>,
    pub(super) finish: Finish<'a, T>,
    pub(super) c: CellsMut<'a, T>,
}

impl<T: Element> Kernel<T> for Scatter<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<V: Lanes<Elem = T>>(self) {
        let Scatter { tile, finish, mut c } = self;
        let cols = c.cols();
        for i in 0..c.rows() {
            for j in 0..cols {
                let element = c.at(i, j);
                // The lanes' own operations, so that strides do not change the bits.
                let bias = finish.bias_at(i, j, 1);
                let new = finish.apply(V::splat(tile.0[i * cols + j]), || V::splat(*element), bias);
                let mut lanes = [T::ZERO; 16];
                new.store(&mut lanes);
                *element = lanes[0];
            }
        }
    }
}
