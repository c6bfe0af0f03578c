//! Panels: strips of A and B laid out in the order in which the register tile reads them, padded with zeros.

use crate::matrix::MatRef;
use crate::simd::Element;

/// Rows of A that are packed together, so that what is written together lies together; divides both heights of a tile.
const STRIP: usize = 6;

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
        copy_rows(panel, mr, data, cs, rows, kc);
        return;
    }
    let mut first = 0;
    if cs == 1 {
        while first + STRIP <= rows {
            let mut sources: [&[T]; STRIP] = [&[]; STRIP];
            for i in 0..STRIP {
                sources[i] = &data[(first + i) * rs..][..kc];
            }
            let [a, b, c, d, e, f] = sources;
            for (p, column) in panel.chunks_exact_mut(mr).enumerate() {
                column[first..first + STRIP].copy_from_slice(&[a[p], b[p], c[p], d[p], e[p], f[p]]);
            }
            first += STRIP;
        }
    }
    for i in first..rows {
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
        copy_rows(panel, nr, data, rs, cols, kc);
        return;
    }
    for j in 0..cols {
        let column = &data[j * cs..];
        for p in 0..kc {
            panel[p * nr + j] = column[p * rs];
        }
    }
}

/// Copies `count` elements from the start of each of `kc` rows, `stride` apart, to rows of `width`.
#[inline(always)]
fn copy_rows<T: Element>(panel: &mut [T], width: usize, data: &[T], stride: usize, count: usize, kc: usize) {
    if count == width {
        // The width is a constant here, and so a row a few moves; below it is a call for each row.
        for p in 0..kc {
            panel[p * width..][..width].copy_from_slice(&data[p * stride..][..width]);
        }
        return;
    }
    for p in 0..kc {
        panel[p * width..][..count].copy_from_slice(&data[p * stride..][..count]);
    }
}
