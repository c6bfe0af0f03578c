//! Batches: a seeded order, and bytes turned into numbers while a batch is gathered.

use super::Images;
use crate::error::{Error, Result};
use crate::parallel;
use crate::rng::Rng;
use crate::simd::{Element, Isa, Kernel, Lanes, Rows, with_isa};
use crate::tensor::{Tensor, TensorRef};
use std::marker::PhantomData;

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
    /// What is trained on, and what is gathered meanwhile.
    buffers: [Buffer<T>; 2],
    /// The instruction set on which `Gather` was found to need no divisions, or that it does.
    divides_on: Option<(Isa, bool)>,
}

/// Gathered examples, some batches one after another.
#[derive(Debug)]
struct Buffer<T> {
    x: Tensor<T>,
    labels: Vec<u8>,
    rows: usize,
}

/// A batch of examples; gone with the next one.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'b, T> {
    /// The images, `[n, height * width]`.
    pub x: TensorRef<'b, T>,
    /// Their classes, `[n]`.
    pub labels: &'b [u8],
}

/// Some batches that follow one another; gone with the next ones.
#[derive(Clone, Debug)]
pub struct Batches<'b, T> {
    x: &'b [T],
    labels: &'b [u8],
    features: usize,
    batch_size: usize,
}

impl<'b, T> Iterator for Batches<'b, T> {
    type Item = Batch<'b, T>;

    fn next(&mut self) -> Option<Batch<'b, T>> {
        let n = self.batch_size.min(self.labels.len());
        if n == 0 {
            return None;
        }
        let (labels, x);
        (labels, self.labels) = self.labels.split_at(n);
        (x, self.x) = self.x.split_at(n * self.features);
        Some(Batch { x: TensorRef::first_of([n, self.features].into(), x), labels })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.labels.len().div_ceil(self.batch_size);
        (left, Some(left))
    }
}

impl<T> ExactSizeIterator for Batches<'_, T> {}

/// Bytes of batches that are gathered together where another thread does it: handing them over then costs little beside the work on
/// them, and both buffers stay in a second-level cache of a megabyte.
const TOGETHER: usize = 512 << 10;

impl<'a, T: Element> Loader<'a, T> {
    /// A loader before its first epoch.
    ///
    /// # Errors
    /// If there are no images, if the batch size is 0 or larger than the set, or if the scale is not finite or divides by zero in the
    /// element type.
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
        let features = images.height() * images.width();
        let batches = (TOGETHER / (batch_size * features * size_of::<T>())).clamp(1, images.len().div_ceil(batch_size));
        let buffer = || -> Result<Buffer<T>> {
            let rows = batches * batch_size;
            Ok(Buffer { x: Tensor::zeros([rows, features])?, labels: vec![0; rows], rows: 0 })
        };
        let buffers = [buffer()?, buffer()?];
        let indices = (0..images.len()).collect();
        let (next, divides_on) = (0, None);
        let mut loader = Loader { images, order, last, scale, batch_size, indices, next, buffers, divides_on };
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
        let (source, [buffer, _], next) = self.parts();
        buffer.fill(&source, *next, 1);
        *next += buffer.rows;
        buffer.batches(&source).next()
    }

    /// Calls `f` with the batches of what is left of the epoch, in order, one or some at a time: while it works on those, another of the
    /// threads of the enclosing [`Threads::run`](crate::Threads::run), if there are several, gathers the next.
    ///
    /// # Errors
    /// The first that `f` returns; it is not called again then, and the loader stands behind the batches that it was given, of which there
    /// may be more with more threads.
    pub fn for_each<E: Send>(
        &mut self,
        mut f: impl FnMut(Batches<'_, T>) -> std::result::Result<(), E> + Send,
    ) -> std::result::Result<(), E> {
        let (source, [mut current, mut next], at) = self.parts();
        let together = if parallel::are_several() { current.labels.len() / source.batch_size } else { 1 };
        current.fill(&source, *at, together);
        while current.rows > 0 {
            *at += current.rows;
            let (isa, from, f, batches) = (Isa::current(), *at, &mut f, current.batches(&source));
            parallel::join(|| f(batches), || with_isa(isa, || next.fill(&source, from, together))).0?;
            std::mem::swap(&mut current, &mut next);
        }
        Ok(())
    }

    /// What is gathered from, where to, and how many examples of the epoch have been.
    fn parts(&mut self) -> (Source<'_>, [&mut Buffer<T>; 2], &mut usize) {
        let isa = Isa::current();
        let divides = match self.divides_on {
            Some((on, divides)) if on == isa => divides,
            _ => isa.run(NeedsDivision::<T>(Pixels::new(self.scale), PhantomData)),
        };
        self.divides_on = Some((isa, divides));
        let pixels = Pixels { divides, ..Pixels::new(self.scale) };
        let (batch_size, last) = (self.batch_size, self.last);
        let source = Source { images: self.images, indices: &self.indices, batch_size, last, pixels };
        (source, self.buffers.each_mut(), &mut self.next)
    }
}

/// What batches are gathered from.
struct Source<'l> {
    images: &'l Images,
    indices: &'l [usize],
    batch_size: usize,
    last: LastBatch,
    pixels: Pixels,
}

impl<T: Element> Buffer<T> {
    /// Gathers the next `batches` batches from example `at` of the epoch on, or what is left of it.
    fn fill(&mut self, source: &Source<'_>, at: usize, batches: usize) {
        let left = &source.indices[at..];
        let whole = left.len() / source.batch_size * source.batch_size;
        let left = if source.last == LastBatch::Drop { whole } else { left.len() };
        self.rows = left.min(batches * source.batch_size);
        let (indices, images) = (&source.indices[at..], source.images);
        let features = images.height() * images.width();
        let from = Rows::new(images.pixels(), images.len(), features, features);
        let x = &mut self.x.data_mut()[..self.rows * features];
        Isa::current().run(Gather { from, indices, pixels: source.pixels, x });
        for (label, &index) in self.labels.iter_mut().zip(&indices[..self.rows]) {
            *label = images.labels()[index];
        }
    }

    fn batches(&self, source: &Source<'_>) -> Batches<'_, T> {
        let features = source.images.height() * source.images.width();
        let (x, labels) = (&self.x.data()[..self.rows * features], &self.labels[..self.rows]);
        Batches { x, labels, features, batch_size: source.batch_size }
    }
}

/// How bytes become numbers, and whether that takes divisions.
#[derive(Clone, Copy)]
struct Pixels {
    scale: Scale,
    divides: bool,
}

impl Pixels {
    fn new(scale: Scale) -> Self {
        Pixels { scale, divides: true }
    }

    /// `(byte / 255 - mean) / std` for a vector of bytes.
    #[inline(always)]
    fn by_division<V: Lanes>(self) -> impl Fn(V) -> V {
        let of = |x| V::splat(V::Elem::from_f64(x));
        let (full, mean, std) = (of(255.0), of(self.scale.mean), of(self.scale.std));
        move |byte| (byte / full - mean) / std
    }

    /// The same by products with the inverse, which is the sum of two numbers: `x / d = x h + x l` with h the inverse rounded and l what it
    /// lacks, `l = (1 - h d) h`. With one rounding for a product and its sum, that of `x h` is off the quotient by no more than a few
    /// roundings of `x l`, each 2^-24 of its last place in f32: it is correctly rounded but for rare x and d, and there are 256 x only, which
    /// [`NeedsDivision`] tries.
    #[inline(always)]
    fn by_product<V: Lanes>(self) -> impl Fn(V) -> V {
        let (one, of) = (V::splat(V::Elem::ONE), |x| V::splat(V::Elem::from_f64(x)));
        let inverse = |d: V| {
            let h = one / d;
            (h, (V::zero() - h).mul_add(d, one) * h)
        };
        let (full, mean, std) = (inverse(of(255.0)), of(self.scale.mean), inverse(of(self.scale.std)));
        let divided = move |x: V, (h, l): (V, V)| x.mul_add(h, x * l);
        move |byte| divided(divided(byte, full) - mean, std)
    }
}

/// Whether [`Pixels::by_product`] gives other bits than [`Pixels::by_division`] for any byte.
struct NeedsDivision<T>(Pixels, PhantomData<T>);

impl<T: Element> Kernel<T> for NeedsDivision<T> {
    type Output = bool;

    #[inline(always)]
    fn run<V: Lanes<Elem = T>>(self) -> bool {
        let (by_division, by_product) = (self.0.by_division::<V>(), self.0.by_product::<V>());
        let bytes: [u8; 256] = std::array::from_fn(|byte| u8::try_from(byte).unwrap_or(u8::MAX));
        bytes.chunks_exact(V::WIDTH).any(|bytes| {
            let mut both = [[T::ZERO; 16]; 2];
            by_division(V::from_bytes(bytes)).store(&mut both[0]);
            by_product(V::from_bytes(bytes)).store(&mut both[1]);
            both[0].iter().zip(&both[1]).any(|(a, b)| a.bits() != b.bits())
        })
    }
}

/// Rows of pixels, picked by index, as numbers: as many as `x` has room for.
struct Gather<'a, T> {
    from: Rows<'a, u8>,
    /// Also of rows that come after those, and are asked for only.
    indices: &'a [usize],
    pixels: Pixels,
    x: &'a mut [T],
}

/// Rows that are asked for ahead of the one at hand: in shuffled order each lies somewhere else in memory. `cargo bench --bench loader`
/// takes a third of the time that it took without, with 2 it gained less, and with 12 no more.
const AHEAD: usize = 6;

/// Pixels in a line of the caches.
const LINE: usize = 64;

impl<T: Element> Kernel<T> for Gather<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<V: Lanes<Elem = T>>(mut self) {
        if self.pixels.divides {
            self.rows(self.pixels.by_division::<V>());
        } else {
            self.rows(self.pixels.by_product::<V>());
        }
    }
}

impl<T: Element> Gather<'_, T> {
    #[inline(always)]
    fn rows<V: Lanes<Elem = T>>(&mut self, number: impl Fn(V) -> V) {
        let features = self.from.cols();
        for (i, x) in self.x.chunks_exact_mut(features).enumerate() {
            let ahead = self.indices.get(i + AHEAD).copied().unwrap_or(self.indices[i]);
            let pixels = self.from.slice(self.indices[i], 0, features);
            // A line at a time, so that what is asked for comes while the one at hand is worked on.
            for (line, (pixels, x)) in pixels.chunks(LINE).zip(x.chunks_mut(LINE)).enumerate() {
                self.from.prefetch(ahead, line * LINE);
                let (mut pixels, mut x) = (pixels.chunks_exact(V::WIDTH), x.chunks_exact_mut(V::WIDTH));
                for (pixels, x) in (&mut pixels).zip(&mut x) {
                    number(V::from_bytes(pixels)).store(x);
                }
                let rest = pixels.remainder();
                if !rest.is_empty() {
                    let mut last = [0u8; 16];
                    last[..rest.len()].copy_from_slice(rest);
                    number(V::from_bytes(&last)).store_partial(x.into_remainder());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parallel::Threads;

    fn images(n: u8, side: usize) -> Images {
        let pixels = (0..usize::from(n) * side * side).map(|i| u8::try_from(i * 7 % 256).unwrap()).collect();
        Images::new(pixels, (0..n).map(|i| i % 10).collect(), side, side, 10).unwrap()
    }

    #[test]
    fn pixels_are_scaled_as_pytorch_does_on_every_isa() {
        // Every byte, in rows that are no multiple of a vector.
        let images = Images::new((0..=255).chain(0..=255).chain([7; 13]).collect(), vec![0; 15], 5, 7, 1).unwrap();
        for (mean, std) in [(0.5f32, 0.5f32), (0.0, 1.0), (0.1307, 0.3081), (0.3, -7.0), (1e-3, 1e30)] {
            let scale = Scale { mean: mean.into(), std: std.into() };
            for isa in Isa::available() {
                with_isa(isa, || {
                    let mut loader = Loader::<f32>::new(&images, 15, Order::AsStored, LastBatch::Keep, scale).unwrap();
                    let batch = loader.next_batch().unwrap();
                    for (x, &byte) in batch.x.data().iter().zip(images.pixels()) {
                        assert_eq!(*x, (f32::from(byte) / 255.0 - mean) / std, "{isa}: {scale:?}");
                    }
                    // Where a product is rounded with its sum, the labs' scales take no divisions.
                    if isa.is_fused() && std.abs() <= 1.0 {
                        assert_eq!(loader.divides_on, Some((isa, false)), "{scale:?}");
                    }
                });
            }
        }
    }

    #[test]
    fn some_batches_at_a_time_are_the_batches_one_by_one() {
        // Of 144 KB a batch: three are gathered together.
        let images = images(103, 60);
        for last in [LastBatch::Keep, LastBatch::Drop] {
            let new = || Loader::<f32>::new(&images, 10, Order::Shuffled(3), last, Scale::default()).unwrap();
            let mut loader = new();
            let (mut wanted, mut count) = (Vec::new(), 0);
            while let Some(batch) = loader.next_batch() {
                wanted.push((batch.x.data().to_vec(), batch.labels.to_vec()));
                count += 1;
            }
            assert_eq!(count, loader.batches());
            for threads in [1, 2, 4] {
                let threads = Threads::new(threads).unwrap();
                let (mut loader, mut found) = (new(), Vec::new());
                threads
                    .run(|| {
                        // From the middle of an epoch, too.
                        found.extend(loader.next_batch().map(|batch| (batch.x.data().to_vec(), batch.labels.to_vec())));
                        loader.for_each(|batches| {
                            let (left, before) = (batches.len(), found.len());
                            found.extend(batches.map(|batch| (batch.x.data().to_vec(), batch.labels.to_vec())));
                            assert_eq!(found.len() - before, left);
                            Ok::<(), ()>(())
                        })
                    })
                    .unwrap();
                assert_eq!(found, wanted, "{last:?}, {threads:?}");
                assert!(loader.next_batch().is_none());
                // It ends where it is told to.
                loader.start_epoch(2);
                let mut calls = 0;
                let ended = threads.run(|| {
                    loader.for_each(|_| {
                        calls += 1;
                        Err("enough")
                    })
                });
                assert_eq!((ended, calls), (Err("enough"), 1));
            }
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
