//! Panels: strips of A and B laid out in the order in which the register tile reads them, padded with zeros.

use crate::matrix::MatRef;
use crate::simd::Element;

/// Rows `i0..i0 + mr` of A at columns `p0..p0 + kc`, k outermost: `panel[p * mr + i]`. Rows past the end become zeros.
#[inline(always)]
pub(super) fn pack_a<T: Element>(a: MatRef<'_, T>, i0: usize, p0: usize, kc: usize, mr: usize, panel: &mut [T]) {
    let (rs, cs) = (a.row_stride(), a.col_stride());
    let rows = mr.min(a.rows() - i0);
    let panel = &mut panel[..kc * mr];
    if rows < mr {
        panel.fill(T::ZERO);
    }
    let data = &a.data()[i0 * rs + p0 * cs..];
    if rs == 1 {
        for p in 0..kc {
            panel[p * mr..p * mr + rows].copy_from_slice(&data[p * cs..p * cs + rows]);
        }
        return;
    }
    for i in 0..rows {
        let row = &data[i * rs..];
        for p in 0..kc {
            panel[p * mr + i] = row[p * cs];
        }
    }
}

/// Columns `j0..j0 + nr` of B at rows `p0..p0 + kc`, k outermost: `panel[p * nr + j]`. Columns past the end become zeros.
#[inline(always)]
pub(super) fn pack_b<T: Element>(b: MatRef<'_, T>, p0: usize, j0: usize, kc: usize, nr: usize, panel: &mut [T]) {
    let (rs, cs) = (b.row_stride(), b.col_stride());
    let cols = nr.min(b.cols() - j0);
    let panel = &mut panel[..kc * nr];
    if cols < nr {
        panel.fill(T::ZERO);
    }
    let data = &b.data()[p0 * rs + j0 * cs..];
    if cs == 1 {
        for p in 0..kc {
            panel[p * nr..p * nr + cols].copy_from_slice(&data[p * rs..p * rs + cols]);
        }
        return;
    }
    for j in 0..cols {
        let column = &data[j * cs..];
        for p in 0..kc {
            panel[p * nr + j] = column[p * rs];
        }
    }
}
