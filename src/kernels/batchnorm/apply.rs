//! The normalisation itself: one subtraction and one multiply-add an element.

use super::map::{self, Map, Values};
use super::saved::{Constants, ROWS_OF_SAVED};
use super::shape::{Grid, Planes, Reach, Shape};
use super::sums::PerColumn;
use super::{BatchNorm, ROWS, Saved, statistics};
use crate::kernels::Activation;
use crate::parallel::{self, Blocks, BlocksMut, Cost, Split};
use crate::simd::{CellsMut, Element, Isa, Kernel, Lanes, Rows};

/// `y = fma(x - mean_hi, a, b)`, and ReLU.
#[derive(Clone, Copy)]
struct Normalise<P, const RELU: bool>(Constants<P>);

/// The same, for a block.
struct NormaliseLanes<V, const RELU: bool>(Constants<V>);

impl<V: Lanes, P: PerColumn<V>, const RELU: bool> Map<V> for Normalise<P, RELU> {
    type Values = NormaliseLanes<V, RELU>;

    #[inline(always)]
    fn block(&self, _: (usize, usize), (j, cols): (usize, usize)) -> Self::Values {
        NormaliseLanes(self.0.at(j, cols.min(V::WIDTH)))
    }
}

impl<V: Lanes, const RELU: bool> Values<V> for NormaliseLanes<V, RELU> {
    #[inline(always)]
    fn at(&self, _: usize, _: usize, _: usize, x: V) -> V {
        let z = (x - self.0.mean).mul_add(self.0.a, self.0.b);
        if RELU { z.gated(z) } else { z }
    }
}

/// The parts of so many elements in rows of `cols`: first element, rows and columns of the whole rows, and of what is left.
pub(super) fn parts(len: usize, cols: usize) -> impl Iterator<Item = (usize, usize, usize)> {
    let (rows, rest) = (len / cols, len % cols);
    [(0, rows, cols), (rows * cols, 1, rest)].into_iter().filter(|&(_, rows, cols)| rows > 0 && cols > 0)
}

/// Normalises by rows; without `x` over `y`. The constants are those of the columns from `offset` on, the first ones last: so many elements
/// are written by themselves, and rows begin behind them.
pub(super) fn by_rows<T: Element>(
    x: Option<&[T]>,
    y: &mut [T],
    (grid, offset): (Grid, usize),
    constants: Constants<&[T]>,
    activation: Activation,
) {
    let isa = Isa::current();
    let (cols, reach, block) = (grid.cols, grid.reach_of_rows::<T>(), ROWS * grid.cols);
    let cost = Cost { flops: 3 * y.len(), bytes: 2 * size_of_val(y) };
    let (head, y) = y.split_at_mut(offset);
    if offset > 0 {
        let (x, constants) = (x.map(|x| &x[..offset]), constants.last(offset));
        apply(isa, x, head, offset, constants, activation, Reach::Near);
    }
    let tasks = y.len().div_ceil(block);
    let work = (x.map(|x| Blocks { data: &x[offset..], block }), BlocksMut { data: y, block });
    parallel::for_each(tasks, cost, work, |_, (x, y)| {
        apply(isa, x.map(|x| x.data), y.data, cols, constants, activation, reach);
    });
}

/// Rows of `cols`, and what is left.
fn apply<T: Element>(
    isa: Isa,
    x: Option<&[T]>,
    y: &mut [T],
    cols: usize,
    constants: Constants<&[T]>,
    activation: Activation,
    reach: Reach,
) {
    for (start, rows, cols) in parts(y.len(), cols) {
        let x = x.map(|x| Rows::new(&x[start..], rows, cols, cols));
        let y = CellsMut::new(&mut y[start..], (rows, cols), (cols, 1));
        isa.run(ApplyRows { x, y, constants, activation, reach });
    }
}

struct ApplyRows<'a, T> {
    x: Option<Rows<'a, T>>,
    y: CellsMut<'a, T>,
    constants: Constants<&'a [T]>,
    activation: Activation,
    reach: Reach,
}

impl<T: Element> Kernel<T> for ApplyRows<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<V: Lanes<Elem = T>>(self) {
        let (c, to) = (self.constants.upto(self.y.cols()), self.y.into_rows());
        match self.activation {
            Activation::Identity => map::write::<V, _>(Normalise::<_, false>(c), None, self.x, to, self.reach),
            Activation::Relu => map::write::<V, _>(Normalise::<_, true>(c), None, self.x, to, self.reach),
        }
    }
}

/// Columns of a matrix, some for each channel.
pub(super) struct Channels<'a, T> {
    pub(super) cells: CellsMut<'a, T>,
    /// Columns of a channel.
    pub(super) width: usize,
}

impl<T: Element> Split for Channels<'_, T> {
    fn split(self, at: usize) -> (Self, Self) {
        let (a, b) = self.cells.split_cols(at * self.width);
        (Channels { cells: a, width: self.width }, Channels { cells: b, width: self.width })
    }
}

/// Which statistics planes are normalised by.
pub(super) enum Given<'a, T> {
    /// The batch's own, which come first, and are saved.
    Nothing { saved: &'a mut [T], scratch: &'a mut [T] },
    /// Those of these constants.
    Constants(Constants<&'a [T]>),
}

/// Normalises planes, some channels after the other; without `x` over `y`, if the statistics are given.
pub(super) fn by_planes<T: Element>(
    norm: &BatchNorm<'_, T>,
    x: Option<&[T]>,
    y: &mut [T],
    planes: Planes,
    given: Given<'_, T>,
) {
    let isa = Isa::current();
    let (Shape { n, c, l }, width) = (planes.shape, planes.channels);
    let reads_twice = matches!(given, Given::Nothing { .. });
    let cost = Cost { flops: 6 * y.len(), bytes: (2 + usize::from(reads_twice)) * size_of_val(y) };
    let y = Channels { cells: CellsMut::new(y, (n, c * l), (c * l, 1)), width: width * l };
    let (constants, own) = match given {
        Given::Constants(constants) => (Some(constants), None),
        Given::Nothing { saved, scratch } => {
            let saved = Channels { cells: CellsMut::new(saved, (ROWS_OF_SAVED, c), (c, 1)), width };
            let slot = statistics::PARTS_OF_LEAF * planes.leaf_count();
            (None, Some((saved, BlocksMut { data: &mut scratch[..c * slot], block: width * slot })))
        }
    };
    let tasks = c.div_ceil(width);
    parallel::for_each(tasks, cost, (y, own), |i, (y, mut own)| {
        let (first, channels) = (i * width, y.cells.cols() / l);
        let x = x.map(|x| &x[first * l..]);
        let constants = match (constants, x, &mut own) {
            (Some(constants), _, _) => constants.part(first, channels),
            (None, Some(x), Some((saved, scratch))) => {
                statistics::of_planes(isa, &norm.part(first, channels), x, planes, &mut saved.cells, scratch.data);
                Saved::of(saved.cells.read()).constants()
            }
            _ => unreachable!("a batch's own statistics are not taken in place"),
        };
        let values = n * channels * l;
        let cost = Cost { flops: 3 * values, bytes: 2 * values * size_of::<T>() };
        let (images, activation, reach) = (planes.images_of_task(channels), norm.activation, planes.reach);
        parallel::for_each(n.div_ceil(images), cost, Images { cells: y.cells, images }, |i, y| {
            let x = x.map(|x| planes.rows(x, channels).block((i * images, y.cells.rows()), (0, channels * l)));
            isa.run(ApplyPlanes { x, y: y.cells, pitch: l, constants, activation, reach });
        });
    });
}

/// Some channels, an image a row, in blocks of some images.
pub(super) struct Images<'a, T> {
    pub(super) cells: CellsMut<'a, T>,
    pub(super) images: usize,
}

impl<T: Element> Split for Images<'_, T> {
    fn split(self, at: usize) -> (Self, Self) {
        let (a, b) = self.cells.split_rows(at * self.images);
        (Images { cells: a, images: self.images }, Images { cells: b, images: self.images })
    }
}

struct ApplyPlanes<'a, T> {
    x: Option<Rows<'a, T>>,
    y: CellsMut<'a, T>,
    /// Values of a plane.
    pitch: usize,
    constants: Constants<&'a [T]>,
    activation: Activation,
    reach: Reach,
}

impl<T: Element> Kernel<T> for ApplyPlanes<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<V: Lanes<Elem = T>>(self) {
        let (c, to) = (self.constants.per_plane(self.pitch), self.y.into_rows());
        let pitch = Some(self.pitch);
        match self.activation {
            Activation::Identity => map::write::<V, _>(Normalise::<_, false>(c), pitch, self.x, to, self.reach),
            Activation::Relu => map::write::<V, _>(Normalise::<_, true>(c), pitch, self.x, to, self.reach),
        }
    }
}
