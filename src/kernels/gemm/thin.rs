//! Products of so few rows or columns that a register tile would be mostly empty: C of up to [`THIN`] rows, or of up to [`THIN`]
//! columns, which is the same with A and B exchanged.
//!
//! Each element of the long operand is used a few times only, so the bound is its bytes: it is read once, in the order in which it
//! lies, and is neither copied nor transposed.
//!
//! - [`FewRows`]: the lanes lie along the long operand's columns, and several of its rows at a time are added to sums in the first
//!   cache. These are a register tile's chains, in another order of loops.
//! - [`Dots`]: k is contiguous in the long operand, and its lanes are sums of one element of C: chains over every sixteenth product
//!   (f32; 64 bytes whatever the vectors) of up to 4096, added by halving. Several columns are used in parts that stay in the first
//!   cache, by sixteen rows each. Turning the elements in registers, so that the lanes could be rows and the chains a tile's, takes
//!   more shuffles than there are multiply-adds.

use super::blocking::{Cut, KC, NV, Tiles, is_tiny};
use super::micro::Finish;
use super::pass::Block;
use super::prepacked::AllPanels;
use crate::matrix::MatRef;
use crate::simd::{Abreast, CellsMut, Element, Group, Kernel, Lanes, Rows};

/// Most rows, or columns, of a thin product.
pub(super) const THIN: usize = 4;

/// Whether a product with `few` columns, for whose rows k is contiguous, is one of dot products: by its size alone, and not where it
/// is tiny.
#[inline(always)]
pub(super) fn takes_dots(many: usize, k: usize, few: usize) -> bool {
    few <= THIN && k >= 32 && !is_tiny(many, k, few)
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
        // As many rows of B at a time as there are registers for their factors. Rows of B are fetched ahead where they are read in long
        // pieces; the sums stay below half of a first cache, and rows of sums are no multiple of 4 KiB apart, where a store makes
        // loads wait.
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
                sums[i][v] = finish::<V>(self.finish, &mut self.c, (i, at(v)), sums[i][v]);
            }
            // Written when all is read, because the last vector may overlap the one before it.
            for v in 0..vectors {
                write(&mut self.c, (i, at(v)), sums[i][v]);
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
        let mut x = [[V::zero(); U]; MR];
        for u in 0..U {
            for i in 0..MR {
                x[i][u] = V::splat(a[i * rs + u * cs]);
            }
        }
        let mut rows = Abreast::<_, U, 0>::new((b, p), (b, 0));
        let mut v = 0;
        while rows.left() >= V::WIDTH && v < CHUNK {
            for u in 0..U {
                let row = V::load(rows.one(u, 0, V::WIDTH));
                for i in 0..MR {
                    sums[i][v] = x[i][u].mul_add(row, sums[i][v]);
                }
            }
            rows.pass(V::WIDTH);
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

/// What becomes of sums that go along a row of C from element (i, j) on.
#[inline(always)]
fn finish<V: Lanes>(finish: Finish<'_, V::Elem>, c: &mut CellsMut<'_, V::Elem>, (i, j): (usize, usize), sums: V) -> V {
    let lanes = V::WIDTH.min(c.cols() - j);
    let old = || {
        let mut old = [V::Elem::ZERO; 16];
        for l in 0..lanes {
            old[l] = *c.at(i, j + l);
        }
        V::load(&old)
    };
    finish.apply(sums, old, finish.bias_at(i, j, lanes))
}

/// Writes lanes along a row of C from element (i, j) on.
#[inline(always)]
fn write<V: Lanes>(c: &mut CellsMut<'_, V::Elem>, (i, j): (usize, usize), new: V) {
    let lanes = V::WIDTH.min(c.cols() - j);
    let mut c = c.block((i, 1), (j, lanes));
    if c.has_contiguous_rows() {
        return new.store_partial(c.into_rows().slice(0, 0, lanes));
    }
    let mut values = [V::Elem::ZERO; 16];
    new.store(&mut values);
    for l in 0..lanes {
        *c.at(0, l) = values[l];
    }
}

/// Few columns of B, k contiguous in each of them, times an A whose rows are contiguous.
pub(super) struct Dots<'a, T> {
    pub(super) a: Rows<'a, T>,
    /// The columns of B, as rows.
    pub(super) b: Rows<'a, T>,
    /// C with rows and columns exchanged, as `finish` takes it.
    pub(super) c: CellsMut<'a, T>,
    pub(super) finish: Finish<'a, T>,
}

impl<'a, T: Element> Kernel<T> for &'a mut Dots<'a, T> {
    type Output = ();

    #[inline(always)]
    fn run<V: Lanes<Elem = T>>(self) {
        // Eight chains or more run side by side: rows, columns, and the vectors of 64 bytes.
        match (self.c.rows(), const { V::GROUP == 1 }) {
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
const LINES: usize = KC;

/// Rows of C that are finished together: a multiple of every vector's lanes.
const ROWS: usize = 16;

/// Lines of 64 bytes of all columns together that serve these rows before the next: half of a first cache, the other half is for A.
const NEAR: usize = 256;

impl<T: Element> Dots<'_, T> {
    #[inline(always)]
    fn columns<V: Lanes<Elem = T>, const R: usize, const N: usize>(&mut self) {
        let (m, k, line) = (self.c.cols(), self.a.cols(), Group::<V>::LEN);
        let mut kept = [[[T::ZERO; 16]; N]; ROWS];
        let mut first = 0;
        while first < m {
            let rows = ROWS.min(m - first);
            let mut sums = [[T::ZERO; ROWS]; N];
            let mut done = 0;
            while done < k {
                // To the end of the chains or of what is near, whichever comes first.
                let chain = done - done % (LINES * line);
                let end = k.min(chain + LINES * line);
                let part = (done, (NEAR / N.next_power_of_two() * line).min(end - done));
                let (begins, ends) = (done == chain, done + part.1 == end);
                let mut r = 0;
                while r < rows {
                    if rows - r >= R {
                        self.dots::<V, R, N>((first, r), part, (begins, ends), &mut kept, &mut sums);
                        r += R;
                    } else {
                        self.dots::<V, 1, N>((first, r), part, (begins, ends), &mut kept, &mut sums);
                        r += 1;
                    }
                }
                done += part.1;
            }
            for j in 0..N {
                let mut r = 0;
                while r < rows {
                    let at = (j, first + r);
                    let new = finish::<V>(self.finish, &mut self.c, at, V::load(&sums[j][r..]));
                    write(&mut self.c, at, new);
                    r += V::WIDTH;
                }
            }
            first += ROWS;
        }
    }

    /// A part of the dot products of all columns and of `R` rows of A from row `first + r` on: the chains are kept for the next part, or
    /// added to the sums from `r` on where they end.
    #[inline(always)]
    fn dots<V: Lanes<Elem = T>, const R: usize, const N: usize>(
        &self,
        (first, r): (usize, usize),
        (start, len): (usize, usize),
        (begins, ends): (bool, bool),
        kept: &mut [[[T; 16]; N]; ROWS],
        sums: &mut [[T; ROWS]; N],
    ) {
        let line = Group::<V>::LEN;
        let (a, b) = (self.a.columns(start, len), self.b.columns(start, len));
        let mut both = Abreast::<_, R, N>::new((a, first + r), (b, 0));
        let mut acc = [[Group::<V>::splat(T::ZERO); N]; R];
        if !begins {
            for i in 0..R {
                for j in 0..N {
                    for g in 0..V::GROUP {
                        acc[i][j].lanes[g] = V::load(&kept[r + i][j][g * V::WIDTH..]);
                    }
                }
            }
        }
        while both.left() >= line {
            for g in 0..V::GROUP {
                let at = g * V::WIDTH;
                let mut row = [V::zero(); R];
                for i in 0..R {
                    row[i] = V::load(both.one(i, at, V::WIDTH));
                }
                for j in 0..N {
                    let column = V::load(both.other(j, at, V::WIDTH));
                    for i in 0..R {
                        let lanes = &mut acc[i][j].lanes[g];
                        *lanes = row[i].mul_add(column, *lanes);
                    }
                }
            }
            both.pass(line);
        }
        let rest = both.left();
        if rest > 0 {
            for g in 0..V::GROUP {
                let at = (g * V::WIDTH).min(rest);
                let len = V::WIDTH.min(rest - at);
                for i in 0..R {
                    let row = V::load_up_to(both.one(i, at, len));
                    for j in 0..N {
                        let lanes = &mut acc[i][j].lanes[g];
                        *lanes = row.mul_add(V::load_up_to(both.other(j, at, len)), *lanes);
                    }
                }
            }
        }
        for i in 0..R {
            for j in 0..N {
                if !ends {
                    for g in 0..V::GROUP {
                        acc[i][j].lanes[g].store(&mut kept[r + i][j][g * V::WIDTH..]);
                    }
                    continue;
                }
                sums[j][r + i] = sums[j][r + i] + acc[i][j].sum();
            }
        }
    }
}

/// Copies the `n` columns of B to rows of `k` elements, from panels, in passes over k.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::Isa;

    /// 17 columns are more than any vector has, and no multiple of one.
    const COLS: usize = 17;

    #[test]
    fn two_rows_by_multiples_of_the_column() {
        // Column j of B is (1, 2, 3, 4, 5) j: its sum is 15 j, its last element 5 j. C is 1 before.
        let a = [1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0];
        let b: Vec<f32> = (0..5 * COLS).map(|at| ((at / COLS + 1) * (at % COLS)) as f32).collect();
        for isa in Isa::available() {
            let mut c = [1.0; 2 * COLS];
            isa.run(&mut FewRows {
                a: MatRef::new(&a, 2, 5),
                b: Rows::new(&b, 5, COLS, COLS),
                k: (0, 5),
                c: CellsMut::new(&mut c, (2, COLS), (COLS, 1)),
                finish: Finish { beta: 1.0, ..Finish::store() },
            });
            for j in 0..COLS {
                assert_eq!((c[j], c[COLS + j]), (15.0 * j as f32 + 1.0, 5.0 * j as f32 + 1.0), "{isa}: column {j}");
            }
        }
    }

    #[test]
    fn rows_of_one_number_by_ones_and_by_counting() {
        // 33 ones add up to 33, and 0 + 1 + ... + 32 = 528; row i of A is i + 1 all along.
        let a: Vec<f32> = (0..3 * 33).map(|at| (at / 33 + 1) as f32).collect();
        let b: Vec<f32> = (0..2 * 33).map(|at| if at < 33 { 1.0 } else { (at - 33) as f32 }).collect();
        for isa in Isa::available() {
            let mut c = [f32::NAN; 6];
            isa.run(&mut Dots {
                a: Rows::new(&a, 3, 33, 33),
                b: Rows::new(&b, 2, 33, 33),
                c: CellsMut::new(&mut c, (3, 2), (2, 1)).transpose(),
                finish: Finish::store(),
            });
            assert_eq!(c, [33.0, 528.0, 66.0, 1056.0, 99.0, 1584.0], "{isa}");
        }
    }
}
