//! The register tile: the only loop that multiplies.

use crate::simd::Lanes;

/// An `MR x (NV * WIDTH)` tile of `A B`: the sum of the outer products of A's columns, of at least `MR` elements each, and B's
/// rows, of at least `NV * WIDTH`. Both may be packed panels or the matrices themselves; where the lengths are constants, nothing
/// is left to check in the loop.
///
/// Every element is one chain of multiply-adds in the order of the products, whatever the width of a vector.
#[inline(always)]
pub(super) fn tile<'a, V: Lanes, const MR: usize, const NV: usize>(
    a_columns: impl Iterator<Item = &'a [V::Elem]>,
    b_rows: impl Iterator<Item = &'a [V::Elem]>,
) -> [[V; NV]; MR] {
    let mut acc = [[V::zero(); NV]; MR];
    for (a_column, b_row) in a_columns.zip(b_rows) {
        let (a_column, b_row) = (&a_column[..MR], &b_row[..NV * V::WIDTH]);
        let mut b_vectors = [V::zero(); NV];
        for v in 0..NV {
            b_vectors[v] = V::load(&b_row[v * V::WIDTH..]);
        }
        for i in 0..MR {
            let a_element = V::splat(a_column[i]);
            for v in 0..NV {
                acc[i][v] = a_element.mul_add(b_vectors[v], acc[i][v]);
            }
        }
    }
    acc
}
