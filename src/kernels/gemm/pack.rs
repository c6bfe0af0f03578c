//! Panels: strips of A and B laid out in the order in which the register tile reads them.
//!
//! Vectors are loaded and stored whole. Where the last of a row or of k is not full, it begins earlier and repeats what the one before
//! it did; where A's strip is not as high as a vector, what is stored past its end is overwritten by the next column.

use super::blocking::NV;
use crate::matrix::MatRef;
use crate::simd::{Element, Lanes, Rows, RowsMut};

/// Rows `i0..i0 + mr` of A at columns `p0..p0 + kc`, k outermost: `panel[p * mr + i]`.
///
/// Up to `WIDTH` elements behind the panel are overwritten.
#[inline(always)]
pub(super) fn pack_a<V: Lanes>(
    a: MatRef<'_, V::Elem>,
    (i0, mr): (usize, usize),
    (p0, kc): (usize, usize),
    panel: &mut [V::Elem],
) {
    let (rs, cs) = (a.row_stride(), a.col_stride());
    let data = &a.data()[i0 * rs + p0 * cs..];
    if cs != 1 && rs != 1 {
        for p in 0..kc {
            for i in 0..mr {
                panel[p * mr + i] = data[i * rs + p * cs];
            }
        }
        return;
    }
    // The last group of rows first, so that the first of the next column overwrites what it writes past the end.
    for group in (0..mr.div_ceil(V::WIDTH)).rev() {
        let first = group * V::WIDTH;
        let rows = V::WIDTH.min(mr - first);
        let mut panel = RowsMut::new(&mut panel[first..], kc, V::WIDTH, mr);
        if cs == 1 {
            transpose::<V>(Rows::new(&data[first * rs..], rows, kc, rs), rows, kc, &mut panel, 0);
        } else {
            copy::<V>(&data[first..], cs, kc, rows, &mut panel, 0);
        }
    }
}

/// Columns `j0..j0 + cols` of B at rows `p0..p0 + kc`, k outermost: `panel[p * width + j]`, where the width is `cols`, and one vector
/// at least; what is past the end is some number.
#[inline(always)]
pub(super) fn pack_b<V: Lanes>(
    b: MatRef<'_, V::Elem>,
    (p0, kc): (usize, usize),
    (j0, cols): (usize, usize),
    panel: &mut [V::Elem],
) {
    let (rs, cs) = (b.row_stride(), b.col_stride());
    let width = cols.max(V::WIDTH);
    let panel = &mut panel[..kc * width];
    let data = &b.data()[p0 * rs + j0 * cs..];
    if cs != 1 && rs != 1 {
        panel.fill(V::Elem::ZERO);
        for p in 0..kc {
            for j in 0..cols {
                panel[p * width + j] = data[p * rs + j * cs];
            }
        }
        return;
    }
    let mut panel = RowsMut::new(panel, kc, width, width);
    let lanes = V::WIDTH.min(cols);
    let mut next = 0;
    while next < cols {
        // The last vector ends with the last column.
        let first = next.min(cols - lanes);
        if cs == 1 {
            copy::<V>(&data[first..], rs, kc, lanes, &mut panel, first);
        } else {
            transpose::<V>(Rows::new(&data[first * cs..], lanes, kc, cs), lanes, kc, &mut panel, first);
        }
        next += V::WIDTH;
    }
}

/// The columns of B as rows that follow each other: `rows[j * k + p]`.
#[inline(always)]
pub(super) fn columns_to_rows<V: Lanes>(b: MatRef<'_, V::Elem>, rows: &mut [V::Elem]) {
    let (k, n, rs, cs) = (b.rows(), b.cols(), b.row_stride(), b.col_stride());
    if cs != 1 || k < V::WIDTH {
        for j in 0..n {
            for p in 0..k {
                rows[j * k + p] = b.data()[p * rs + j * cs];
            }
        }
        return;
    }
    let (b, mut rows) = (Rows::new(b.data(), k, n, rs), RowsMut::new(rows, n, k, k));
    let mut next = 0;
    while next < k {
        let p = next.min(k - V::WIDTH);
        transpose::<V>(b.block((p, V::WIDTH), (0, n)), V::WIDTH, n, &mut rows, p);
        next += V::WIDTH;
    }
}

/// Panels that are packed at once from a B whose rows are contiguous.
pub(super) const ABREAST: usize = 4;

/// What [`pack_b`] does for each of [`ABREAST`] panels of [`NV`] vectors from column `j0` on, row by row of B, its rows contiguous:
/// the lines that neighbouring panels share are read once, and fewer pages at a time.
#[inline(always)]
pub(super) fn pack_b_abreast<V: Lanes>(
    b: MatRef<'_, V::Elem>,
    (p0, kc): (usize, usize),
    j0: usize,
    panels: &mut [V::Elem],
) {
    let width = NV * V::WIDTH;
    let from = Rows::new(&b.data()[p0 * b.row_stride() + j0..], kc, ABREAST * width, b.row_stride());
    let mut to = RowsMut::new(panels, ABREAST * kc, width, width);
    for p in 0..kc {
        for panel in 0..ABREAST {
            for v in 0..NV {
                let part = V::load(from.slice(p, panel * width + v * V::WIDTH, V::WIDTH));
                part.store(to.slice(panel * kc + p, v * V::WIDTH, V::WIDTH));
            }
        }
    }
}

/// `to[p][at..] <- from[p * stride..][..lanes]` for each p of `kc`.
#[inline(always)]
fn copy<V: Lanes>(from: &[V::Elem], stride: usize, kc: usize, lanes: usize, to: &mut RowsMut<'_, V::Elem>, at: usize) {
    let from = Rows::new(from, kc, lanes, stride);
    if lanes == V::WIDTH {
        for p in 0..kc {
            V::load(from.slice(p, 0, V::WIDTH)).store(to.slice(p, at, V::WIDTH));
        }
    } else {
        for p in 0..kc {
            V::load_partial(from.slice(p, 0, lanes)).store(to.slice(p, at, V::WIDTH));
        }
    }
}

/// `to[p][at + i] <- from[i][p]` for each p of `kc` and each i of `lanes`, by squares.
#[inline(always)]
fn transpose<V: Lanes>(from: Rows<'_, V::Elem>, lanes: usize, kc: usize, to: &mut RowsMut<'_, V::Elem>, at: usize) {
    assert!(lanes > 0);
    let mut square = [V::zero(); 16];
    if kc < V::WIDTH {
        for i in 0..V::WIDTH {
            square[i] = V::load_partial(from.slice(i.min(lanes - 1), 0, kc));
        }
        V::transpose(&mut square);
        for j in 0..V::WIDTH {
            if j < kc {
                square[j].store(to.slice(j, at, V::WIDTH));
            }
        }
        return;
    }
    let mut next = 0;
    while next < kc {
        let p = next.min(kc - V::WIDTH);
        for i in 0..V::WIDTH {
            square[i] = V::load(from.slice(i.min(lanes - 1), p, V::WIDTH));
        }
        V::transpose(&mut square);
        for j in 0..V::WIDTH {
            square[j].store(to.slice(p + j, at, V::WIDTH));
        }
        next += V::WIDTH;
    }
}
