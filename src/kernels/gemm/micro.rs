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

/// A [`Sweep`] whose columns are one or two vectors and at most half a one: compiled by itself, so that neither disturbs the other's
/// registers.
pub(super) struct Halved<'a, T>(pub(super) Sweep<'a, T>);

impl<'a, T: Element> Kernel<T> for &'a mut Halved<'a, T> {
    type Output = ();

    #[inline(always)]
    fn run<V: Lanes<Elem = T>>(self) {
        if const { V::Half::WIDTH == V::WIDTH } {
            unreachable!("only where half a vector costs half");
        }
        match self.0.a {
            A::ByRow(a) => self.0.halved::<V, _, false>(a),
            A::ByColumn(a) => self.0.halved::<V, _, true>(a),
        }
    }
}

/// One arm for each height of a tile of `$nv` vectors and `$halves` halves, up to `$most`: those above are not compiled.
macro_rules! heights {
    ($sweep:ident, $a:ident, $most:expr, $nv:literal, $halves:literal: $($mr:literal)*) => {
        match $sweep.strips.rows {
            $($mr if $mr <= const { $most } => $sweep.tile::<V, A, $mr, $nv, $halves, FAR>($a),)*
            _ => unreachable!("no more rows than a tile has"),
        }
    };
}

impl<T: Element> Sweep<'_, T> {
    /// `FAR`: whether C may be far. A whose rows are read where they lie is multiplied by few columns, so that it is not.
    #[inline(always)]
    fn tiles<V: Lanes<Elem = T>, A: Striped<T>, const FAR: bool>(&mut self, a: A) {
        // Above that, this instruction set has no registers.
        macro_rules! arms {
            ($nv:literal: $($mr:literal)*) => { heights!(self, a, Tiles::of::<V>().most($nv), $nv, 0: $($mr)*) };
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

    /// The same for tiles with half a vector.
    #[inline(always)]
    fn halved<V: Lanes<Elem = T>, A: Striped<T>, const FAR: bool>(&mut self, a: A) {
        match self.cols / V::WIDTH {
            1 => heights!(self, a, usize::MAX, 1, 1: 1 2 3 4 5 6 8),
            2 => heights!(self, a, usize::MAX, 2, 1: 1 2 3 4 5 6),
            _ => unreachable!("one or two vectors and half a one"),
        }
    }

    #[inline(always)]
    fn tile<
        V: Lanes<Elem = T>,
        A: Striped<T>,
        const MR: usize,
        const NV: usize,
        const HALVES: usize,
        const FAR: bool,
    >(
        &mut self,
        a: A,
    ) {
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
            tile::<V, A, MR, NV, HALVES, FAR>(a.strip(s, MR), b.get(p, cols), cols, finish.at(i, j), c);
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

/// An `MR x (NV vectors)` tile of `A B`, with half a vector more or without (`HALVES`, 1 or 0): the sum of the outer products of A's
/// columns and B's rows.
///
/// Every element is one chain of multiply-adds in the order of the products, whatever the width of a vector. The last of several
/// vectors, and the half of one, end with B's last column and may overlap the one before, whose elements they then compute again; a single
/// one may be wider than B.
#[inline(always)]
fn tile<V: Lanes, A: Columns<V::Elem>, const MR: usize, const NV: usize, const HALVES: usize, const FAR: bool>(
    a: A,
    b: Rows<'_, V::Elem>,
    cols: usize,
    finish: Finish<'_, V::Elem>,
    mut c: RowsMut<'_, V::Elem>,
) {
    let (whole, half) = if HALVES > 0 {
        assert!(cols > NV * V::WIDTH && cols <= NV * V::WIDTH + V::Half::WIDTH);
        (Across { first: 0, cols: NV * V::WIDTH }, cols - V::Half::WIDTH)
    } else if NV == 1 {
        assert!(cols <= V::WIDTH);
        (Across { first: 0, cols }, 0)
    } else {
        assert!(cols > (NV - 1) * V::WIDTH && cols >= V::WIDTH);
        (Across { first: 0, cols }, 0)
    };
    let half = Across { first: half, cols: V::Half::WIDTH };
    // The many lines of a large tile are asked for one by one: all at once, they would keep what is read next waiting.
    let is_large = FAR && MR >= 12 && NV >= 2;
    if !is_large {
        for i in 0..MR {
            c.prefetch(i, 0);
        }
    }
    let mut acc = [[V::zero(); NV]; MR];
    let mut rest = [[V::Half::zero(); HALVES]; MR];
    let mut pairs = Pairs::new(a, b);
    if matches!(NV + HALVES, 2 | 3) && MR >= 4 {
        let mut near = 0;
        while pairs.begin(UNROLL) {
            if is_large && near < NV * MR {
                c.prefetch(near / NV, whole.offset::<V, NV>(near % NV));
                near += 1;
            }
            for _ in 0..UNROLL {
                let pair = pairs.take();
                step(&mut acc, pair, whole);
                step(&mut rest, pair, half);
            }
        }
    }
    while pairs.begin(1) {
        let pair = pairs.take();
        step(&mut acc, pair, whole);
        step(&mut rest, pair, half);
    }
    // Both before either is stored: the half may overlap the whole, and with beta reads what was there.
    end(&mut acc, whole, finish, &mut c);
    if HALVES > 0 {
        end(&mut rest, half, finish, &mut c);
    }
    store(&acc, whole, &mut c);
    store(&rest, half, &mut c);
}

/// Steps of k between two tests for the end.
const UNROLL: usize = 4;

/// The columns of a tile that `NV` vectors cover.
#[derive(Clone, Copy)]
struct Across {
    first: usize,
    cols: usize,
}

impl Across {
    /// The first column of vector `v`.
    #[inline(always)]
    fn offset<V: Lanes, const NV: usize>(self, v: usize) -> usize {
        self.first + if NV > 1 && v == NV - 1 { self.cols - V::WIDTH } else { v * V::WIDTH }
    }

    /// The number of columns in each of the vectors.
    #[inline(always)]
    fn len<V: Lanes, const NV: usize>(self) -> usize {
        if NV == 1 { self.cols } else { V::WIDTH }
    }
}

#[inline(always)]
fn step<V: Lanes, A: Columns<V::Elem>, const MR: usize, const NV: usize>(
    acc: &mut [[V; NV]; MR],
    (a, b): (Column<A>, Row<'_, V::Elem>),
    across: Across,
) {
    let mut row = [V::zero(); NV];
    for v in 0..NV {
        let part = b.slice(across.offset::<V, NV>(v), across.len::<V, NV>());
        row[v] = if NV == 1 { V::load_partial(part) } else { V::load(part) };
    }
    for i in 0..MR {
        let x = V::splat(a.get(i));
        for v in 0..NV {
            acc[i][v] = x.mul_add(row[v], acc[i][v]);
        }
    }
}

/// What becomes of sums before they are stored.
#[inline(always)]
fn end<V: Lanes, const MR: usize, const NV: usize>(
    acc: &mut [[V; NV]; MR],
    across: Across,
    finish: Finish<'_, V::Elem>,
    c: &mut RowsMut<'_, V::Elem>,
) {
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
                let part = c.slice(i, across.offset::<V, NV>(v), across.len::<V, NV>());
                let old = if NV == 1 { V::load_partial(part) } else { V::load(part) };
                acc[i][v] = beta.mul_add(old, acc[i][v]);
            }
        }
    }
    match finish.bias {
        Bias::None => {}
        Bias::OfColumns(bias) => {
            let bias = &bias[..across.first + across.cols];
            for v in 0..NV {
                let part = V::load_up_to(&bias[across.offset::<V, NV>(v)..]);
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
}

#[inline(always)]
fn store<V: Lanes, const MR: usize, const NV: usize>(
    acc: &[[V; NV]; MR],
    across: Across,
    c: &mut RowsMut<'_, V::Elem>,
) {
    for i in 0..MR {
        for v in 0..NV {
            let part = c.slice(i, across.offset::<V, NV>(v), across.len::<V, NV>());
            if NV == 1 {
                acc[i][v].store_partial(part);
            } else {
                acc[i][v].store(part);
            }
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;
    use crate::simd::Isa;

    /// One strip of every height that has a tile, by panels of one and two vectors and every rest that fits in half a one: the tiles that
    /// a processor without narrow units would never run have the bits of the others.
    fn halved_tiles_have_the_bits_of_whole_ones<T: Element>(isa: Isa, width: usize) {
        let (k, most) = (11, 2 * width + width / 2);
        let mut rng = Rng::new(1, "tiles");
        let mut numbers = |len: usize| (0..len).map(|_| T::from_f64(rng.normal())).collect::<Vec<T>>();
        let (a, b, bias, old) = (numbers(8 * k), numbers(k * most), numbers(most), numbers(8 * most));
        let heights = [(1, &[1, 2, 3, 4, 5, 6, 8][..]), (2, &[1, 2, 3, 4, 5, 6])];
        for (whole, rows) in heights.into_iter().flat_map(|(whole, all)| all.iter().map(move |&rows| (whole, rows))) {
            for cols in whole * width + 1..=whole * width + width / 2 {
                let strips = Strips { count: 1, step: rows * k, rows, cols: k };
                let by_row = A::ByRow(ByRow::new(&a[..rows * k], strips, k));
                let by_column = A::ByColumn(ByColumn::new(&a[..rows * k], strips, rows));
                for (kind, a) in [("row", by_row), ("column", by_column)] {
                    for beta in [T::ZERO, T::from_f64(0.5)] {
                        let finish =
                            Finish { beta, bias: Bias::OfColumns(&bias[..cols]), relu: true, ..Finish::store() };
                        let run = |halves: bool| {
                            let mut c = old[..rows * cols].to_vec();
                            let mut sweep = Sweep {
                                a,
                                strips,
                                b: Panels::new(&b, (1, 0), (k, cols), most),
                                cols,
                                c: RowsMut::new(&mut c, rows, cols, cols),
                                step: (rows, cols),
                                by_panel: true,
                                finish,
                            };
                            if halves {
                                isa.run(&mut Halved(sweep))
                            } else {
                                isa.run(&mut sweep)
                            }
                            c.iter().map(|x| x.bits()).collect::<Vec<_>>()
                        };
                        assert_eq!(run(true), run(false), "{rows} x {cols}, A by {kind}");
                    }
                }
            }
        }
    }

    #[test]
    fn halved_tiles_have_the_bits_of_whole_ones_in_both_types() {
        match Isa::named("avx512") {
            Ok(isa) => {
                halved_tiles_have_the_bits_of_whole_ones::<f32>(isa, 16);
                halved_tiles_have_the_bits_of_whole_ones::<f64>(isa, 8);
            }
            Err(error) => eprintln!("skipped: {error}"),
        }
    }
}
