//! The register tile: the only loop that multiplies.

use crate::simd::Lanes;

/// An `MR x (NV * WIDTH)` tile of `A B` over `kc` products: element i of A's column p is `a[p * lda + i]`, element j of B's row
/// p is `b[p * ldb + j]`. Both may be packed panels (`lda = MR`, `ldb = NV * WIDTH`) or the matrices themselves.
///
/// Every element is one chain of multiply-adds in the order of p, whatever the width of a vector.
#[inline(always)]
pub(super) fn tile<V: Lanes, const MR: usize, const NV: usize>(
    kc: usize,
    a: &[V::Elem],
    lda: usize,
    b: &[V::Elem],
    ldb: usize,
) -> [[V; NV]; MR] {
    let mut acc = [[V::zero(); NV]; MR];
    for p in 0..kc {
        let a_column = &a[p * lda..][..MR];
        let b_row = &b[p * ldb..][..NV * V::WIDTH];
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
