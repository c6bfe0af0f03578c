//! Batches: a seeded order, and bytes turned into numbers while a batch is gathered.

use super::Images;
use crate::error::{Error, Result};
use crate::rng::Rng;
use crate::simd::{Element, Isa, Kernel, Lanes};
use crate::tensor::{Tensor, TensorRef};

/// How a byte becomes a number: `(byte / 255 - mean) / std`, in PyTorch's order of operations.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scale {
    /// Subtracted after the division by 255.
    pub mean: f64,
    /// Divided by last.
    pub std: f64,
}

impl Default for Scale {
    /// From 0 to 1.
    fn default() -> Self {
        Scale { mean: 0.0, std: 1.0 }
    }
}

/// In which order the examples come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// As they lie.
    #[default]
    AsStored,
    /// Shuffled anew for every epoch, by this seed.
    Shuffled(u64),
}

/// What becomes of the examples that do not fill a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LastBatch {
    /// They make a smaller batch.
    #[default]
    Keep,
    /// They are left out of this epoch.
    Drop,
}

/// Gathers batches from a set of images, which it never copies as a whole.
///
/// # Examples
/// ```
/// use evenkeel::data::{Images, LastBatch, Loader, Order, Scale};
/// let images = Images::new(vec![0, 255, 51, 0, 0, 0], vec![0, 1, 0], 1, 2, 2)?;
/// let mut loader = Loader::<f32>::new(&images, 2, Order::AsStored, LastBatch::Keep, Scale::default())?;
/// loader.start_epoch(1);
/// let batch = loader.next_batch().ok_or("empty")?;
/// assert_eq!(batch.x.data(), [0.0, 1.0, 0.2, 0.0]);
/// assert_eq!(loader.next_batch().ok_or("empty")?.labels, [0]);
/// assert!(loader.next_batch().is_none());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Loader<'a, T> {
    images: &'a Images,
    order: Order,
    last: LastBatch,
    scale: Scale,
    batch_size: usize,
    indices: Vec<usize>,
    next: usize,
    x: Tensor<T>,
    labels: Vec<u8>,
}

/// A batch of examples; gone with the next one.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'b, T> {
    /// The images, `[n, height * width]`.
    pub x: TensorRef<'b, T>,
    /// Their classes, `[n]`.
    pub labels: &'b [u8],
}

impl<'a, T: Element> Loader<'a, T> {
    /// A loader before its first epoch.
    ///
    /// # Errors
    /// If the batch size is 0 or larger than the set, or if the scale is not finite or divides by zero.
    pub fn new(images: &'a Images, batch_size: usize, order: Order, last: LastBatch, scale: Scale) -> Result<Self> {
        if images.is_empty() {
            return Err(Error::invalid("number of images", 0, "at least 1"));
        }
        if batch_size == 0 || batch_size > images.len() {
            let expected = format!("from 1 to the number of examples, {}", images.len());
            return Err(Error::invalid("batch size", batch_size, expected));
        }
        // In the element type: what rounds to 0 divides by 0.
        let (mean, std) = (T::from_f64(scale.mean), T::from_f64(scale.std));
        if !(mean.is_finite() && std.is_finite() && (T::ONE / std).is_finite()) {
            let found = format!("mean {}, std {}", scale.mean, scale.std);
            return Err(Error::invalid("scale of the pixels", found, "finite, and std not 0"));
        }
        let x = Tensor::zeros([batch_size, images.height() * images.width()])?;
        let labels = vec![0; batch_size];
        let indices = (0..images.len()).collect();
        let mut loader = Loader { images, order, last, scale, batch_size, indices, next: 0, x, labels };
        loader.start_epoch(1);
        Ok(loader)
    }

    /// The images that batches are gathered from.
    pub fn images(&self) -> &'a Images {
        self.images
    }

    /// How bytes become numbers.
    pub fn scale(&self) -> Scale {
        self.scale
    }

    /// Rows of a full batch.
    pub fn batch_size(&self) -> usize {
        self.batch_size
    }

    /// Number of batches in an epoch.
    pub fn batches(&self) -> usize {
        match self.last {
            LastBatch::Keep => self.images.len().div_ceil(self.batch_size),
            LastBatch::Drop => self.images.len() / self.batch_size,
        }
    }

    /// Goes back to the first batch; the order of an epoch depends on the seed and its number alone.
    pub fn start_epoch(&mut self, epoch: usize) {
        self.next = 0;
        if let Order::Shuffled(seed) = self.order {
            for (i, index) in self.indices.iter_mut().enumerate() {
                *index = i;
            }
            // The epoch moves the seed by an odd constant, so that neighbouring seeds do not share their epochs.
            let seed = seed ^ (epoch as u64).wrapping_mul(0xd6e8_feb8_6659_fd93);
            Rng::new(seed, "shuffle").shuffle(&mut self.indices);
        }
    }

    /// The next batch of the epoch, unless it has ended.
    pub fn next_batch(&mut self) -> Option<Batch<'_, T>> {
        let left = self.images.len() - self.next;
        let n = left.min(self.batch_size);
        if n == 0 || (self.last == LastBatch::Drop && n < self.batch_size) {
            return None;
        }
        let features = self.images.height() * self.images.width();
        let indices = &self.indices[self.next..self.next + n];
        self.next += n;
        let x = &mut self.x.data_mut()[..n * features];
        Isa::current().run(Gather { pixels: self.images.pixels(), indices, scale: self.scale, features, x });
        for (label, &index) in self.labels.iter_mut().zip(indices) {
            *label = self.images.labels()[index];
        }
        let x = TensorRef::first_of([n, features].into(), self.x.data());
        Some(Batch { x, labels: &self.labels[..n] })
    }
}

/// Rows of pixels, picked by index, as numbers.
struct Gather<'a, T> {
    pixels: &'a [u8],
    indices: &'a [usize],
    scale: Scale,
    features: usize,
    x: &'a mut [T],
}

impl<T: Element> Kernel<T> for Gather<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<V: Lanes<Elem = T>>(self) {
        let full = V::splat(T::from_f64(255.0));
        let (mean, std) = (V::splat(T::from_f64(self.scale.mean)), V::splat(T::from_f64(self.scale.std)));
        let whole = self.features / V::WIDTH * V::WIDTH;
        for (row, &index) in self.indices.iter().enumerate() {
            let pixels = &self.pixels[index * self.features..][..self.features];
            let x = &mut self.x[row * self.features..][..self.features];
            for j in (0..whole).step_by(V::WIDTH) {
                ((V::from_bytes(&pixels[j..]) / full - mean) / std).store(&mut x[j..]);
            }
            if whole < self.features {
                let mut last = [0u8; 16];
                let rest = &pixels[whole..];
                last[..rest.len()].copy_from_slice(rest);
                ((V::from_bytes(&last) / full - mean) / std).store_partial(&mut x[whole..]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::with_isa;

    fn images(n: u8, side: usize) -> Images {
        let pixels = (0..usize::from(n) * side * side).map(|i| u8::try_from(i * 7 % 256).unwrap()).collect();
        Images::new(pixels, (0..n).map(|i| i % 10).collect(), side, side, 10).unwrap()
    }

    #[test]
    fn pixels_are_scaled_as_pytorch_does_on_every_isa() {
        let images = images(5, 5);
        let scale = Scale { mean: 0.5, std: 0.5 };
        for isa in Isa::available() {
            with_isa(isa, || {
                let mut loader = Loader::<f32>::new(&images, 5, Order::AsStored, LastBatch::Keep, scale).unwrap();
                let batch = loader.next_batch().unwrap();
                for (x, &byte) in batch.x.data().iter().zip(images.pixels()) {
                    assert_eq!(*x, (f32::from(byte) / 255.0 - 0.5) / 0.5, "{isa}");
                }
            });
        }
    }

    #[test]
    fn an_epoch_is_a_permutation_that_depends_on_seed_and_number() {
        let images = images(103, 2);
        let epoch = |seed, number| {
            let mut loader =
                Loader::<f64>::new(&images, 10, Order::Shuffled(seed), LastBatch::Keep, Scale::default()).unwrap();
            loader.start_epoch(number);
            let mut firsts = Vec::new();
            while let Some(batch) = loader.next_batch() {
                firsts.extend(batch.x.data().chunks(4).map(|row| (row.iter().sum::<f64>() * 255.0).round().to_bits()));
            }
            firsts
        };
        assert_eq!(epoch(1, 2), epoch(1, 2));
        assert_ne!(epoch(1, 2), epoch(1, 3));
        assert_ne!(epoch(1, 2), epoch(2, 2));
        let (mut a, mut b) = (epoch(1, 1), epoch(5, 7));
        assert_eq!(a.len(), 103);
        a.sort_unstable();
        b.sort_unstable();
        assert_eq!(a, b);
    }

    #[test]
    fn last_batches_and_bad_sizes() {
        let images = images(7, 1);
        let count = |last| {
            let mut loader = Loader::<f32>::new(&images, 3, Order::AsStored, last, Scale::default()).unwrap();
            let expected = loader.batches();
            let mut count = 0;
            while loader.next_batch().is_some() {
                count += 1;
            }
            assert_eq!(count, expected);
            count
        };
        assert_eq!((count(LastBatch::Keep), count(LastBatch::Drop)), (3, 2));
        for size in [0, 8] {
            let loader = Loader::<f32>::new(&images, size, Order::AsStored, LastBatch::Keep, Scale::default());
            assert!(loader.is_err());
        }
        let zero = Scale { mean: 0.0, std: 0.0 };
        assert!(Loader::<f32>::new(&images, 3, Order::AsStored, LastBatch::Keep, zero).is_err());
    }
}
