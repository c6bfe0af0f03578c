//! B packed once, for many products: the weights of a model that no longer changes.

use super::blocking::{self, Caches, Cut, NV, Tiles};
use super::micro::Finish;
use super::pass::{B, Block, Describe, Multiply, PackB, Whole};
use super::{Epilogue, check, scale};
use crate::error::{Error, Result};
use crate::matrix::{MatMut, MatRef};
use crate::simd::{Element, Isa};
use crate::tensor::Tensor;

/// Fewest bytes of a B worth packing beforehand: twice a first cache of 32 KiB. `cargo bench --bench gemm` times packed products beside
/// plain ones.
const PACKED_MIN_BYTES: usize = 64 << 10;
/// A row of a B worth packing beforehand is longer: two panels of AVX2 at least.
const PACKED_MIN_ROW_BYTES: usize = 128;

/// B of a product, in the panels that the register tile reads.
///
/// The panels suit the instruction set that was current when they were made; [`gemm_packed`] checks it.
#[derive(Clone, Debug)]
pub struct PackedB<T: Element> {
    isa: Isa,
    k: usize,
    n: usize,
    panels: Tensor<T>,
}

impl<T: Element> PackedB<T> {
    /// Packs `b`, `k x n` with any strides.
    ///
    /// # Errors
    /// If the panels cannot be addressed.
    pub fn new(b: MatRef<'_, T>) -> Result<Self> {
        let (isa, k, n) = (Isa::current(), b.rows(), b.cols());
        let tiles = isa.run::<T, _>(Describe);
        let nc_most = Caches::found().nc::<T>(n);
        // The last block of columns may be narrower than a vector, which its panel is not.
        let last = n.saturating_sub(1) / nc_most.max(1) * nc_most;
        let panels = Tensor::zeros([k, last + padded(tiles, n - last)])?;
        let mut packed = PackedB { isa, k, n, panels };
        packed.fill(b);
        Ok(packed)
    }

    /// Packs another `b` of the same shape, for the same instruction set.
    ///
    /// # Panics
    /// If the shape is another.
    pub(crate) fn fill(&mut self, b: MatRef<'_, T>) {
        let (isa, k, n) = (self.isa, self.k, self.n);
        assert!((b.rows(), b.cols()) == (k, n), "packed B: {k}x{n}, not {}x{}", b.rows(), b.cols());
        let tiles = isa.run::<T, _>(Describe);
        let (kc_most, nc_most) = (blocking::kc(k), Caches::found().nc::<T>(n));
        let mut start = 0;
        // Without rows there is nothing to pack, however many columns are claimed.
        let columns = if k == 0 { 0 } else { n };
        for jc in (0..columns).step_by(nc_most.max(1)) {
            let nc = nc_most.min(n - jc);
            for pc in (0..k).step_by(kc_most.max(1)) {
                let kc = kc_most.min(k - pc);
                let (block, cut) = (Block { pc, kc, jc, nc }, Cut::new(tiles, nc, NV));
                let panels = &mut self.panels.data_mut()[start..];
                isa.run(PackB { b, block, cut, first: 0, end: cut.count, panels });
                start += kc * padded(tiles, nc);
            }
        }
    }

    /// Whether a B of `k` rows and `n` columns, its rows contiguous, gains by being packed, and loses for no number of rows of A.
    ///
    /// A smaller or narrower one is read where it lies, by panels of up to four vectors where A has up to three rows, which is faster
    /// than panels of two.
    pub(crate) fn pays(k: usize, n: usize) -> bool {
        let row = n.saturating_mul(size_of::<T>());
        row > PACKED_MIN_ROW_BYTES && k.saturating_mul(row) >= PACKED_MIN_BYTES
    }

    /// The instruction set whose panels these are: current when they were made.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Rows of B.
    pub fn rows(&self) -> usize {
        self.k
    }

    /// Columns of B.
    pub fn cols(&self) -> usize {
        self.n
    }
}

/// The panels of all passes.
#[derive(Clone, Copy)]
pub(super) struct AllPanels<'a, T> {
    panels: &'a [T],
    k: usize,
}

impl<'a, T: Element> AllPanels<'a, T> {
    /// The panels of one pass.
    #[inline(always)]
    pub(super) fn block(self, tiles: Tiles, block: Block) -> &'a [T] {
        &self.panels[block.jc * self.k + block.pc * padded(tiles, block.nc)..]
    }
}

/// Elements in a row of the panels of `nc` columns.
#[inline(always)]
fn padded(tiles: Tiles, nc: usize) -> usize {
    let cut = Cut::new(tiles, nc, NV);
    if cut.count == 0 {
        return 0;
    }
    let (start, cols) = cut.part(cut.count - 1);
    start + cols.max(tiles.width)
}

/// `C <- alpha A B + beta C` with a B packed beforehand: the same bits as [`gemm`](super::gemm) with a B whose rows are contiguous.
///
/// # Shapes
/// `a`: `m x k`, `b`: `k x n`, `c`: `m x n`, any strides; `scratch`: at least [`scratch_len`](super::scratch_len) elements.
///
/// # Errors
/// If `b` was packed for another instruction set than the current one, or if the epilogue needs the sums of B's columns, which panels
/// do not give. Nothing is written then.
///
/// # Panics
/// If the shapes disagree, or if `scratch` is too short.
pub fn gemm_packed<T: Element>(
    alpha: T,
    a: MatRef<'_, T>,
    b: &PackedB<T>,
    beta: T,
    c: MatMut<'_, T>,
    epilogue: Epilogue<'_, T>,
    scratch: &mut [T],
) -> Result<()> {
    check(a, (b.k, b.n), &c, &epilogue, scratch);
    let isa = Isa::current();
    if b.isa != isa {
        return Err(Error::invalid("packed B", b.isa.name(), format!("packed for {isa}: pack it again")));
    }
    if let Epilogue::ColumnSums(_) = epilogue {
        return Err(Error::invalid("epilogue", "column sums", "one that needs no sums of a packed B"));
    }
    let (bias, relu) = epilogue.added();
    let finish = Finish { alpha, beta, bias, relu };
    if a.rows() == 0 || b.n == 0 {
        return Ok(());
    }
    if b.k == 0 || alpha == T::ZERO {
        scale(isa, finish, c);
    } else {
        let panels = AllPanels { panels: b.panels.data(), k: b.k };
        T::call::<Multiply>(Whole { isa, a, b: B::Packed(panels), c, finish, scratch });
    }
    Ok(())
}
