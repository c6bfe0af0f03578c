//! The weight of a layer, and its panels for products with weights that no longer change.

use crate::error::Result;
use crate::kernels::gemm::PackedB;
use crate::matrix::MatRef;
use crate::simd::{Element, Isa};
use crate::tensor::Tensor;

/// A matrix of weights; a packed copy, if there is one, is never older than the values.
///
/// The values change by [`Weight::values_mut`] alone, which drops the copy.
#[derive(Debug)]
pub(super) struct Weight<T: Element> {
    rows: usize,
    cols: usize,
    values: Tensor<T>,
    packed: Option<PackedB<T>>,
}

impl<T: Element> Weight<T> {
    /// Zeros.
    ///
    /// # Errors
    /// If they cannot be addressed.
    pub(super) fn zeros(rows: usize, cols: usize) -> Result<Self> {
        Ok(Weight { rows, cols, values: Tensor::zeros([rows, cols])?, packed: None })
    }

    /// The values, row by row.
    pub(super) fn values(&self) -> &[T] {
        self.values.data()
    }

    /// The values, to be written.
    pub(super) fn values_mut(&mut self) -> &mut [T] {
        self.packed = None;
        self.values.data_mut()
    }

    /// The values without what is promised of them, to tell them from the copy.
    #[cfg(test)]
    pub(super) fn values_behind_the_copy(&mut self) -> &mut [T] {
        self.values.data_mut()
    }

    /// The values as a matrix.
    pub(super) fn matrix(&self) -> MatRef<'_, T> {
        MatRef::new(self.values.data(), self.rows, self.cols)
    }

    /// Packs the values for the current instruction set, where products gain by it.
    ///
    /// # Errors
    /// If the panels cannot be addressed.
    pub(super) fn pack(&mut self) -> Result<()> {
        if PackedB::<T>::pays(self.rows, self.cols) && self.packed().is_none() {
            self.packed = Some(PackedB::new(self.matrix())?);
        }
        Ok(())
    }

    /// The packed values, if there are any for the current instruction set.
    pub(super) fn packed(&self) -> Option<&PackedB<T>> {
        self.packed.as_ref().filter(|packed| packed.isa() == Isa::current())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::with_isa;

    #[test]
    fn a_packed_copy_lasts_until_the_values_are_asked_for_to_be_written() {
        let mut weight = Weight::<f32>::zeros(256, 256).unwrap();
        assert!(weight.packed().is_none());
        weight.pack().unwrap();
        assert!(weight.packed().is_some());
        weight.values_mut();
        assert!(weight.packed().is_none());
    }

    #[test]
    fn a_packed_copy_is_that_of_the_current_instruction_set_or_none() {
        for isa in Isa::available() {
            let mut weight = Weight::<f64>::zeros(256, 256).unwrap();
            with_isa(isa, || weight.pack().unwrap());
            for other in Isa::available() {
                with_isa(other, || assert_eq!(weight.packed().is_some(), other == isa, "{isa}, then {other}"));
            }
            for other in Isa::available() {
                with_isa(other, || {
                    weight.pack().unwrap();
                    assert_eq!(weight.packed().map(PackedB::isa), Some(other));
                });
            }
        }
    }

    #[test]
    fn what_is_small_or_narrow_is_not_packed() {
        for (rows, cols, is_packed) in [(64, 64, false), (2048, 32, false), (784, 100, true), (16, 1024, true)] {
            let mut weight = Weight::<f32>::zeros(rows, cols).unwrap();
            weight.pack().unwrap();
            assert_eq!(weight.packed().is_some(), is_packed, "{rows}x{cols}");
        }
    }
}
