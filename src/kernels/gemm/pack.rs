//! Panels: strips of A and B laid out in the order in which the register tile reads them.

use crate::matrix::MatRef;
use crate::simd::{Element, Lanes};

/// Rows `i0..i0 + mr` of A at columns `p0..p0 + kc`, k outermost: `panel[p * mr + i]`.
///
/// Vectors are stored whole, so up to `WIDTH` elements behind the panel are overwritten.
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
    // The last group of rows first: what it writes past the end of a column is then overwritten by the first of the next.
    for group in (0..mr.div_ceil(V::WIDTH)).rev() {
        let first = group * V::WIDTH;
        let rows = V::WIDTH.min(mr - first);
        if rs == 1 {
            for p in 0..kc {
                V::load_up_to(&data[p * cs + first..][..rows.max(1)]).store(&mut panel[p * mr + first..]);
            }
            continue;
        }
        transposed::<V>(&data[first * rs..], rs, rows, kc, |p, column| column.store(&mut panel[p * mr + first..]));
    }
}

/// Columns `j0..j0 + cols` of B at rows `p0..p0 + kc`, k outermost: `panel[p * width + j]`, where the width is `cols`, and one vector
/// at least, zeros past the end.
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
        if cols < width {
            panel.fill(V::Elem::ZERO);
        }
        for p in 0..kc {
            for j in 0..cols {
                panel[p * width + j] = data[p * rs + j * cs];
            }
        }
        return;
    }
    let mut first = 0;
    while first < cols {
        // The last vector ends with the last column.
        let start = first.min(cols.max(V::WIDTH) - V::WIDTH);
        if cs == 1 {
            let count = V::WIDTH.min(cols);
            for p in 0..kc {
                V::load_up_to(&data[p * rs + start..][..count]).store(&mut panel[p * width + start..]);
            }
        } else {
            let source = &data[start * cs..];
            transposed::<V>(source, cs, V::WIDTH.min(cols), kc, |p, row| row.store(&mut panel[p * width + start..]));
        }
        first += V::WIDTH;
    }
}

/// `f(p, vector)` for each p of `kc`: lane i of the vector is `data[i * stride + p]` for `i < lanes` and zero for others.
#[inline(always)]
fn transposed<V: Lanes>(data: &[V::Elem], stride: usize, lanes: usize, kc: usize, mut f: impl FnMut(usize, V)) {
    let mut square = [V::zero(); 16];
    let mut p = 0;
    while p < kc {
        let steps = V::WIDTH.min(kc - p);
        for i in 0..V::WIDTH {
            square[i] = if i < lanes { V::load_up_to(&data[i * stride + p..][..steps]) } else { V::zero() };
        }
        V::transpose(&mut square);
        for j in 0..V::WIDTH {
            if j < steps {
                f(p + j, square[j]);
            }
        }
        p += V::WIDTH;
    }
}
