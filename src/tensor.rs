//! Owned, aligned, row-major tensors of up to four dimensions, and the views that layers work on.

use crate::error::{Error, Result};
use crate::simd::Element;
use std::fmt;

/// Bytes to which the elements of a [`Tensor`] are aligned: a cache line, and a vector of AVX-512.
pub const ALIGNMENT: usize = 64;

/// How a batch of images lies in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ImageLayout {
    /// `[n, c, h, w]`: a whole plane for each channel, as in PyTorch.
    Nchw,
    /// `[n, h, w, c]`: the channels of a pixel side by side.
    Nhwc,
}

/// The dimensions of a tensor, at most four, slowest first: `[n, c]`, `[n, c, l]`, `[n, c, h, w]` or `[n, h, w, c]`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shape {
    dims: [usize; 4],
    rank: usize,
}

impl Shape {
    /// A shape from its dimensions.
    ///
    /// # Panics
    /// If there are more than four.
    pub fn new(dims: &[usize]) -> Self {
        assert!(dims.len() <= 4, "a tensor has at most four dimensions, not {}", dims.len());
        let mut all = [1; 4];
        all[..dims.len()].copy_from_slice(dims);
        Shape { dims: all, rank: dims.len() }
    }

    /// The dimensions, slowest first.
    pub fn dims(&self) -> &[usize] {
        &self.dims[..self.rank]
    }

    /// The same with another first dimension, which it has.
    pub(crate) fn with_rows(mut self, rows: usize) -> Self {
        self.dims[0] = rows;
        self
    }

    /// Number of elements, unless it exceeds what can be addressed; none where a dimension is 0, however long the others are.
    pub fn checked_len(&self) -> Option<usize> {
        if self.is_empty() {
            return Some(0);
        }
        self.dims().iter().try_fold(1usize, |product, &d| product.checked_mul(d))
    }

    /// Number of elements.
    ///
    /// # Panics
    /// If it exceeds what can be addressed.
    pub fn len(&self) -> usize {
        self.checked_len().expect("a shape whose number of elements fits an address")
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.dims().contains(&0)
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.dims())
    }
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.dims())
    }
}

impl<const N: usize> From<[usize; N]> for Shape {
    /// Five dimensions are refused when the program is compiled.
    fn from(dims: [usize; N]) -> Self {
        const { assert!(N <= 4, "a tensor has at most four dimensions") };
        Shape::new(&dims)
    }
}

/// An owned tensor; its elements start at a multiple of [`ALIGNMENT`] bytes.
pub struct Tensor<T> {
    // A little longer than the tensor, so that an aligned start can be found in it without unsafe code.
    storage: Vec<T>,
    start: usize,
    shape: Shape,
}

impl<T: Element> Tensor<T> {
    /// A tensor of zeros.
    ///
    /// # Errors
    /// If the size cannot be addressed, or if the system refuses the memory.
    pub fn zeros(shape: impl Into<Shape>) -> Result<Self> {
        let shape = shape.into();
        let slack = ALIGNMENT / size_of::<T>() - 1;
        let len = shape.checked_len().and_then(|len| len.checked_add(slack));
        let bytes = len.and_then(|len| len.checked_mul(size_of::<T>()));
        let (Some(len), Some(true)) = (len, bytes.map(|b| isize::try_from(b).is_ok())) else {
            return Err(Error::shape("tensor", "a size that fits an address", shape));
        };
        // Asking first turns a refusal into an error; `vec!` then asks for pages that are zero already, and aborts if it is refused.
        let refused = |_| Error::shape("tensor", "a size that the system has memory for", shape);
        Vec::<T>::new().try_reserve_exact(len).map_err(refused)?;
        let storage = vec![T::ZERO; len];
        let start = storage.as_ptr().align_offset(ALIGNMENT);
        // align_offset may give up (it does in an interpreter); then the tensor is merely not aligned.
        let start = if start <= slack { start } else { 0 };
        Ok(Tensor { storage, start, shape })
    }

    /// A tensor from its elements, row-major.
    ///
    /// # Errors
    /// If their number is not that of the shape.
    pub fn from_slice(shape: impl Into<Shape>, data: &[T]) -> Result<Self> {
        let shape = shape.into();
        if shape.checked_len() != Some(data.len()) {
            return Err(Error::shape("tensor", shape, format!("{} elements", data.len())));
        }
        let mut tensor = Tensor::zeros(shape)?;
        tensor.data_mut().copy_from_slice(data);
        Ok(tensor)
    }
}

impl<T> Tensor<T> {
    /// The dimensions.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// The elements, row-major.
    pub fn data(&self) -> &[T] {
        &self.storage[self.start..][..self.shape.len()]
    }

    /// The elements, row-major.
    pub fn data_mut(&mut self) -> &mut [T] {
        &mut self.storage[self.start..][..self.shape.len()]
    }

    /// A view to read.
    pub fn view(&self) -> TensorRef<'_, T> {
        TensorRef { shape: self.shape, data: self.data() }
    }

    /// A view to write.
    pub fn view_mut(&mut self) -> TensorMut<'_, T> {
        TensorMut { shape: self.shape, data: self.data_mut() }
    }
}

impl<T: Element> Clone for Tensor<T> {
    fn clone(&self) -> Self {
        Tensor::from_slice(self.shape, self.data()).expect("a copy has the size of what it is copied from")
    }
}

impl<T: fmt::Debug> fmt::Debug for Tensor<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tensor{} {:?}", self.shape, self.data())
    }
}

/// A slice with a shape.
#[derive(Clone, Copy, Debug)]
pub struct TensorRef<'a, T> {
    shape: Shape,
    data: &'a [T],
}

/// A slice with a shape, to be written.
#[derive(Debug)]
pub struct TensorMut<'a, T> {
    shape: Shape,
    data: &'a mut [T],
}

impl<'a, T> TensorRef<'a, T> {
    /// A view of `data` as `shape`, row-major.
    ///
    /// # Errors
    /// If the number of elements is not that of the shape.
    pub fn new(shape: impl Into<Shape>, data: &'a [T]) -> Result<Self> {
        let shape = shape.into();
        if shape.checked_len() != Some(data.len()) {
            return Err(Error::shape("tensor", shape, format!("{} elements", data.len())));
        }
        Ok(TensorRef { shape, data })
    }

    /// A view of the first elements of `data`, which has at least as many as `shape`.
    pub(crate) fn first_of(shape: Shape, data: &'a [T]) -> Self {
        TensorRef { shape, data: &data[..shape.len()] }
    }

    /// The dimensions.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// The elements, row-major.
    pub fn data(&self) -> &'a [T] {
        self.data
    }
}

impl<'a, T> TensorMut<'a, T> {
    /// A view of `data` as `shape`, row-major.
    ///
    /// # Errors
    /// If the number of elements is not that of the shape.
    pub fn new(shape: impl Into<Shape>, data: &'a mut [T]) -> Result<Self> {
        let shape = shape.into();
        if shape.checked_len() != Some(data.len()) {
            return Err(Error::shape("tensor", shape, format!("{} elements", data.len())));
        }
        Ok(TensorMut { shape, data })
    }

    /// A view of the first elements of `data`, which has at least as many as `shape`.
    pub(crate) fn first_of(shape: Shape, data: &'a mut [T]) -> Self {
        TensorMut { shape, data: &mut data[..shape.len()] }
    }

    /// The dimensions.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// The elements, row-major.
    pub fn data(&mut self) -> &mut [T] {
        self.data
    }

    /// The elements for as long as the view itself could live.
    pub fn into_data(self) -> &'a mut [T] {
        self.data
    }

    /// The same view for a shorter time.
    pub fn reborrow(&mut self) -> TensorMut<'_, T> {
        TensorMut { shape: self.shape, data: self.data }
    }

    /// A view to read.
    pub fn as_ref(&self) -> TensorRef<'_, T> {
        TensorRef { shape: self.shape, data: self.data }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_are_aligned_and_checked() {
        for n in [0, 1, 3, 100] {
            let t = Tensor::<f32>::zeros([n, 3]).unwrap();
            assert_eq!(t.data().len(), 3 * n);
            assert_eq!(t.data().as_ptr() as usize % ALIGNMENT, 0);
            assert_eq!(t.clone().data().as_ptr() as usize % ALIGNMENT, 0);
        }
        assert!(Tensor::<f64>::zeros([usize::MAX, 2]).is_err());
        assert!(Tensor::from_slice([2, 2], &[1.0f32; 3]).is_err());
    }
}
