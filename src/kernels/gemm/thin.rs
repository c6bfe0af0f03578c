//! Products of so few rows or columns that a register tile would be mostly empty: C of up to [`THIN`] rows, or of up to [`THIN`]
//! columns, which is the same with A and B exchanged.
//!
//! Each element of the long operand is used a few times only, so the bound is its bytes: it is read once, in the order in which it
//! lies, and is neither copied nor transposed.
//!
//! - [`FewRows`]: the lanes lie along the long operand's columns, and several of its rows at a time are added to sums in the first
//!   cache. These are a register tile's chains, in another order of loops.
//! - [`Dots`]: k is contiguous in the long operand, and its lanes are sums of one element of C: chains over every sixteenth product
//!   (f32; 64 bytes whatever the vectors) of up to 4096, added by halving. Turning 64 elements of f32, so that the lanes could be rows and the
//!   chains a tile's, takes 16 to 24 shuffles besides 8 multiply-adds for each column; that was 17 to 20 cycles, and dot products
//!   take 7 to 10 where the second cache holds the operand.

use super::blocking::{Cut, Tiles};
use super::micro::{Bias, Finish};
use super::{Block, NV, prepacked::AllPanels};
use crate::matrix::MatRef;
use crate::simd::{Abreast, CellsMut, Element, Kernel, Lanes, Rows};

/// Most rows, or columns, of a thin product.
pub(super) const THIN: usize = 4;

/// Whether a product with `few` columns, for whose rows k is contiguous, is one of dot products: by its size alone, and not where it
/// is tiny.
#[inline(always)]
pub(super) fn takes_dots(many: usize, k: usize, few: usize) -> bool {
    few <= THIN && k >= 32 && many * k * few > super::blocking::TINY
}

/// Elements in 64 bytes.
#[inline(always)]
const fn line<T>() -> usize {
    64 / size_of::<T>()
}

/// Few rows of A, times a B whose rows are contiguous.
pub(super) struct FewRows<'a, T> {
    pub(super) a: MatRef<'a, T>,
    /// The part of B that belongs to this pass.
    pub(super) b: Rows<'a, T>,
    /// The first column of A in this pass, and how many.
    pub(super) k: (usize, usize),
    /// As many columns as B has, one vector at least.
    pub(super) c: CellsMut<'a, T>,
    pub(super) finish: Finish<'a, T>,
}

impl<'a, T: Element> Kernel<T> for &'a mut FewRows<'a, T> {
    type Output = ();

    #[inline(always)]
    fn run<V: Lanes<Elem = T>>(self) {
        // As many rows of B at a time as there are registers for their factors, and sums of 8 KiB with AVX2: rows of B are fetched ahead
        // where they are read in long pieces.
        match self.a.rows() {
            1 => self.rows::<V, 1, 8, 256>(),
            2 => self.rows::<V, 2, 4, 136>(),
            3 => self.rows::<V, 3, 4, 132>(),
            THIN => self.rows::<V, THIN, 2, 68>(),
            _ => unreachable!("more rows than a thin product has"),
        }
    }
}

impl<T: Element> FewRows<'_, T> {
    #[inline(always)]
    fn rows<V: Lanes<Elem = T>, const MR: usize, const U: usize, const CHUNK: usize>(&mut self) {
        let n = self.c.cols();
        assert!(n >= V::WIDTH);
        let mut first = 0;
        while first < n {
            let cols = (CHUNK * V::WIDTH).min(n - first);
            // What is left may be less than a vector: the last one begins earlier then, in columns that are not finished yet.
            let cols = if n - first - cols < V::WIDTH && n - first > cols { cols - V::WIDTH } else { cols };
            self.chunk::<V, MR, U, CHUNK>(first, cols);
            first += cols;
        }
    }

    #[inline(always)]
    fn chunk<V: Lanes<Elem = T>, const MR: usize, const U: usize, const CHUNK: usize>(
        &mut self,
        first: usize,
        cols: usize,
    ) {
        let vectors = cols.div_ceil(V::WIDTH);
        assert!(vectors <= CHUNK);
        let at = |v: usize| first + (v * V::WIDTH).min(cols - V::WIDTH);
        let (b, kc) = ((self.b.columns(first, cols), cols), self.k.1);
        let mut sums = [[V::zero(); CHUNK]; MR];
        let mut p = 0;
        while p + U <= kc {
            self.add::<V, MR, U, CHUNK>(b, p, &mut sums);
            p += U;
        }
        while p < kc {
            self.add::<V, MR, 1, CHUNK>(b, p, &mut sums);
            p += 1;
        }
        for i in 0..MR {
            for v in 0..vectors {
                sums[i][v] = finish::<V>(self.finish, &mut self.c, (i, at(v)), false, sums[i][v]);
            }
            // Written when all is read, because the last vector may overlap the one before it.
            for v in 0..vectors {
                write(&mut self.c, (i, at(v)), (false, V::WIDTH), sums[i][v]);
            }
        }
    }

    /// Adds `U` rows of B from row `p` on, each times its factors, to the sums of its vectors; the last one may overlap the one before.
    #[inline(always)]
    fn add<V: Lanes<Elem = T>, const MR: usize, const U: usize, const CHUNK: usize>(
        &self,
        (b, cols): (Rows<'_, T>, usize),
        p: usize,
        sums: &mut [[V; CHUNK]; MR],
    ) {
        let (rs, cs) = (self.a.row_stride(), self.a.col_stride());
        let a = &self.a.data()[(self.k.0 + p) * cs..];
        let (mut x, mut which) = ([[V::zero(); U]; MR], [p; U]);
        for u in 0..U {
            which[u] += u;
            for i in 0..MR {
                x[i][u] = V::splat(a[i * rs + u * cs]);
            }
        }
        let mut rows = Abreast::new(b, which);
        let mut v = 0;
        while let Some(row) = rows.take(V::WIDTH) {
            if v >= CHUNK {
                break;
            }
            for u in 0..U {
                let row = V::load(row[u]);
                for i in 0..MR {
                    sums[i][v] = x[i][u].mul_add(row, sums[i][v]);
                }
            }
            v += 1;
        }
        if cols > v * V::WIDTH && v < CHUNK {
            for u in 0..U {
                let row = V::load(b.slice(p + u, cols - V::WIDTH, V::WIDTH));
                for i in 0..MR {
                    sums[i][v] = x[i][u].mul_add(row, sums[i][v]);
                }
            }
        }
    }
}

/// What becomes of sums that begin at element (i, j) of C and go along its row, or down its column.
#[inline(always)]
fn finish<V: Lanes>(
    finish: Finish<'_, V::Elem>,
    c: &mut CellsMut<'_, V::Elem>,
    (i, j): (usize, usize),
    down: bool,
    sums: V,
) -> V {
    let left = if down { c.rows() - i } else { c.cols() - j };
    let lanes = V::WIDTH.min(left);
    let bias = match (finish.bias, down) {
        (Bias::None, _) => None,
        (Bias::OfColumns(bias), true) => Some(V::splat(bias[j])),
        (Bias::OfRows(bias), false) => Some(V::splat(bias[i])),
        (Bias::OfColumns(bias), false) => Some(V::load_up_to(&bias[j..][..lanes])),
        (Bias::OfRows(bias), true) => Some(V::load_up_to(&bias[i..][..lanes])),
    };
    let old = || {
        let mut old = [V::Elem::ZERO; 16];
        for l in 0..lanes {
            old[l] = if down { *c.at(i + l, j) } else { *c.at(i, j + l) };
        }
        V::load(&old)
    };
    finish.apply(sums, old, bias)
}

/// Writes the first lanes from element (i, j) of C on, along its row or down its column.
#[inline(always)]
fn write<V: Lanes>(c: &mut CellsMut<'_, V::Elem>, (i, j): (usize, usize), (down, lanes): (bool, usize), new: V) {
    if !down && c.has_contiguous_rows() {
        return new.store_partial(c.block((i, 1), (j, lanes)).into_rows().slice(0, 0, lanes));
    }
    let mut values = [V::Elem::ZERO; 16];
    new.store(&mut values);
    for l in 0..lanes {
        *(if down { c.at(i + l, j) } else { c.at(i, j + l) }) = values[l];
    }
}

/// Few columns of B, k contiguous in each of them, times an A whose rows are contiguous.
pub(super) struct Dots<'a, T> {
    pub(super) a: Rows<'a, T>,
    /// The columns of B, as rows.
    pub(super) b: Rows<'a, T>,
    pub(super) c: CellsMut<'a, T>,
    pub(super) finish: Finish<'a, T>,
}

impl<'a, T: Element> Kernel<T> for &'a mut Dots<'a, T> {
    type Output = ();

    #[inline(always)]
    fn run<V: Lanes<Elem = T>>(self) {
        // Eight chains or more run side by side: rows, columns, and the vectors of 64 bytes.
        match (self.c.cols(), const { V::GROUP == 1 }) {
            (1, true) => self.columns::<V, 8, 1>(),
            (2, true) => self.columns::<V, 4, 2>(),
            (3, true) => self.columns::<V, 4, 3>(),
            (THIN, true) => self.columns::<V, 2, THIN>(),
            (1, false) => self.columns::<V, 4, 1>(),
            (2, false) => self.columns::<V, 2, 2>(),
            (3, false) => self.columns::<V, 2, 3>(),
            (THIN, false) => self.columns::<V, 1, THIN>(),
            _ => unreachable!("more columns than a thin product has"),
        }
    }
}

/// Most multiply-adds in a chain: as many as in a tile's.
const LINES: usize = super::KC;

/// Rows of C that are finished together: a multiple of every vector's lanes.
const ROWS: usize = 16;

impl<T: Element> Dots<'_, T> {
    #[inline(always)]
    fn columns<V: Lanes<Elem = T>, const R: usize, const N: usize>(&mut self) {
        let m = self.c.rows();
        let mut first = 0;
        while first < m {
            let rows = ROWS.min(m - first);
            let mut sums = [[T::ZERO; ROWS]; N];
            let mut r = 0;
            while r < rows {
                let dots = self.dots::<V, R, N>(first + r);
                for i in 0..R {
                    for j in 0..N {
                        // What is behind the last row is not written to C.
                        sums[j][(r + i) % ROWS] = dots[i][j];
                    }
                }
                r += R;
            }
            for j in 0..N {
                let mut r = 0;
                while r < rows {
                    let (at, lanes) = ((first + r, j), V::WIDTH.min(rows - r));
                    let new = finish::<V>(self.finish, &mut self.c, at, true, V::load(&sums[j][r..]));
                    write(&mut self.c, at, (true, lanes), new);
                    r += V::WIDTH;
                }
            }
            first += ROWS;
        }
    }

    /// The dot products of `R` rows of A from row `i0` on, of which those behind the last repeat it, and all columns.
    #[inline(always)]
    fn dots<V: Lanes<Elem = T>, const R: usize, const N: usize>(&self, i0: usize) -> [[T; N]; R] {
        let mut which = [self.c.rows() - 1; R];
        for i in 0..R {
            which[i] = which[i].min(i0 + i);
        }
        let mut which_columns = [0; N];
        for j in 0..N {
            which_columns[j] = j;
        }
        let (mut rows, mut columns) = (Abreast::new(self.a, which), Abreast::new(self.b, which_columns));
        let mut dots = [[T::ZERO; N]; R];
        loop {
            let mut acc = [[[V::zero(); 16]; N]; R];
            let mut lines = 0;
            while lines < LINES {
                let (Some(x), Some(y)) = (rows.take(line::<T>()), columns.take(line::<T>())) else { break };
                for g in 0..V::GROUP {
                    let at = g * V::WIDTH;
                    let mut row = [V::zero(); R];
                    for i in 0..R {
                        row[i] = V::load(&x[i][at..]);
                    }
                    for j in 0..N {
                        let column = V::load(&y[j][at..]);
                        for i in 0..R {
                            acc[i][j][g] = row[i].mul_add(column, acc[i][j][g]);
                        }
                    }
                }
                lines += 1;
            }
            let is_last = lines < LINES;
            if is_last {
                let (x, y) = (rows.rest(), columns.rest());
                let left = x[0].len();
                for g in 0..V::GROUP {
                    let (at, end) = ((g * V::WIDTH).min(left), ((g + 1) * V::WIDTH).min(left));
                    for i in 0..R {
                        let row = V::load_up_to(&x[i][at..end]);
                        for j in 0..N {
                            acc[i][j][g] = row.mul_add(V::load_up_to(&y[j][at..end]), acc[i][j][g]);
                        }
                    }
                }
            }
            for i in 0..R {
                for j in 0..N {
                    let mut n = V::GROUP;
                    while n > 1 {
                        n /= 2;
                        for g in 0..n {
                            acc[i][j][g] = acc[i][j][g] + acc[i][j][g + n];
                        }
                    }
                    dots[i][j] = dots[i][j] + acc[i][j][0].sum();
                }
            }
            if is_last {
                return dots;
            }
        }
    }
}

/// Copies the `n` columns of B to rows of `k` elements.
pub(super) fn copy_columns<T: Element>(b: MatRef<'_, T>, to: &mut [T]) {
    let (k, rs, cs) = (b.rows(), b.row_stride(), b.col_stride());
    for (j, to) in to.chunks_exact_mut(k).enumerate() {
        for (p, to) in to.iter_mut().enumerate() {
            *to = b.data()[p * rs + j * cs];
        }
    }
}

/// The same from panels, in passes over k.
pub(super) fn copy_packed_columns<T: Element>(
    b: AllPanels<'_, T>,
    tiles: Tiles,
    passes: impl Iterator<Item = Block>,
    k: usize,
    to: &mut [T],
) {
    for block in passes {
        let (cut, panels) = (Cut::new(tiles, block.nc, NV), b.block(tiles, block));
        for (j, to) in to.chunks_exact_mut(k).enumerate() {
            let (start, cols) = cut.part((j / cut.width).min(cut.count - 1));
            for p in 0..block.kc {
                to[block.pc + p] = panels[start * block.kc + p * cols.max(tiles.width) + j - start];
            }
        }
    }
}
