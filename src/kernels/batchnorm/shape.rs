//! How a tensor lies under the lanes.
//!
//! A tensor is `[n, c, l]`: n images of c channels of l neighbouring values; l is 1 for `[n, c]` and for images with channels
//! innermost. There are two ways to walk through it:
//!
//! - **By rows**, where l is small: every lane keeps to a column of a matrix and walks down its rows. An image is a row of
//!   `c l` columns; where that is no multiple of 64 bytes and short, and images are many, several make a row, so that the lanes are
//!   full. A channel is several columns then, whose sums are added at the end.
//! - **By planes**, where l is at least [`PLANE`]: the lanes walk along the l values of one channel, then of the next, for some
//!   neighbouring channels; and so image after image. Channel by channel, short planes would be read in bits far apart: that took up to
//!   three times as long.
//!
//! Which way, and every boundary of a sum, follows from the shape alone. How far tensors reach decides how many channels of planes go
//! together, what is asked for ahead and what is written past the caches, which changes no bit.

use super::sums::STEP;
use super::{ABREAST, TILE};
use crate::kernels::reduce::LEAF;
use crate::machine;
use crate::simd::{Element, Rows, unaligned};

/// Values of a plane from which on it is worth walking along.
const PLANE: usize = 32;
/// Bytes of an image that are gone over in order, about, before those of the next image are.
const IN_ORDER: usize = 16 << 10;
/// Bytes of all images instead, where tensors are in memory: three of so many stay in a second cache.
const RESIDENT: usize = 128 << 10;
/// Bytes of a channel in a leaf of planes, at most.
const PLANES_LEAF: usize = 32 << 10;
/// Roundings of a sum in a leaf of planes, about, before f64 takes over.
const ROUNDINGS: usize = 32;
/// Values that one task writes, at least.
const PLANES_TASK: usize = 1 << 16;
/// Widest image, in elements, of which several are joined to a row.
const JOINED: usize = 64;
/// Such rows that it takes, for each element of an image, and at least and at most: what repeats parameters and adds up the columns of a
/// channel costs as much for few rows as for many. Forward and backward of `[n, c]` took as long with rows joined as without at 16 rows
/// for c = 1, 24 for 2, 32 to 48 up to 4, and 48 to 64 from 5 to 61; at 16 rows of those up to twice as long, at 128 a fifth less.
const JOINED_ROWS: usize = 12;
const JOINED_ROWS_LEAST: usize = 16;
const JOINED_ROWS_MOST: usize = 64;

/// `[n, c, l]`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) n: usize,
    pub(super) c: usize,
    pub(super) l: usize,
}

/// Where tensors of a size are found, by what the last cache holds of them. It decides how they are fetched and stored, and changes no
/// result by a bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Reach {
    /// In a cache.
    Near,
    /// In the last cache at best: what comes next is asked for early.
    Far,
    /// In memory: what is written goes there past the caches.
    Past,
}

impl Reach {
    fn of(bytes: usize) -> Self {
        match machine::last_cache() {
            last if bytes > last / 4 => Reach::Past,
            last if bytes > last / 8 => Reach::Far,
            _ => Reach::Near,
        }
    }
}

/// How a tensor is walked through.
#[derive(Clone, Copy, Debug)]
pub(super) enum Walk {
    Rows(Grid),
    Planes(Planes),
}

impl Shape {
    /// Values of a channel.
    pub(super) fn count(self) -> usize {
        self.n * self.l
    }

    pub(super) fn walk<T>(self) -> Walk {
        let Shape { n, c, l } = self;
        let reach = Reach::of(size_of::<T>().saturating_mul(n * c * l));
        if l >= PLANE {
            let size = size_of::<T>();
            let fitting = if reach == Reach::Past { RESIDENT / (n * l) } else { IN_ORDER / l };
            let tasks = c.div_ceil((fitting / size).clamp(1, c));
            // Where channels allow it, as many tasks as two or four threads share evenly.
            let even = c.div_ceil(tasks.next_multiple_of(4));
            let channels = if tasks > 4 && c.div_ceil(even).is_multiple_of(4) { even } else { c.div_ceil(tasks) };
            return Walk::Planes(Planes { shape: self, size, channels, reach });
        }
        let (unit, lanes) = (c * l, 64 / size_of::<T>());
        // The lanes are a power of two, so the greatest common divisor is the lowest bit of either.
        let joined = if unit > JOINED { 1 } else { lanes >> (lanes | unit).trailing_zeros() };
        let needed = (JOINED_ROWS * unit).clamp(JOINED_ROWS_LEAST, JOINED_ROWS_MOST);
        let joined = if n / joined < needed { 1 } else { joined };
        let (cols, rows, tail) = (unit * joined, n / joined, n % joined * unit);
        Walk::Rows(Grid { cols, rows, tail, shape: self, reach })
    }
}

/// A matrix that the lanes walk down.
#[derive(Clone, Copy, Debug)]
pub(super) struct Grid {
    /// Columns of a row.
    pub(super) cols: usize,
    /// Whole rows.
    rows: usize,
    /// Elements behind the last whole row.
    tail: usize,
    shape: Shape,
    pub(super) reach: Reach,
}

/// A part of a [`Grid`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Leaf {
    /// Its first element.
    pub(super) start: usize,
    pub(super) rows: usize,
    pub(super) cols: usize,
}

impl Grid {
    /// Whether every column is a channel of its own.
    pub(super) fn is_plain(self) -> bool {
        self.cols == self.shape.c
    }

    /// Whether all rows begin at the same place of a line.
    fn rows_begin_alike<T>(self) -> bool {
        (self.cols * size_of::<T>()).is_multiple_of(64)
    }

    /// How rows are written: past the caches only whole lines.
    pub(super) fn reach_of_rows<T>(self) -> Reach {
        if self.rows_begin_alike::<T>() { self.reach } else { self.reach.min(Reach::Far) }
    }

    /// Elements of `to` before the first that begins a line, if it is written past the caches.
    pub(super) fn unaligned<T>(self, to: &[T]) -> usize {
        match self.reach_of_rows::<T>() {
            Reach::Past => unaligned(to.as_ptr()),
            _ => 0,
        }
    }

    /// The columns of a channel, of which only those below `cols` are there.
    #[inline(always)]
    pub(super) fn columns_of(self, channel: usize, cols: usize) -> impl Iterator<Item = usize> + Clone {
        let Shape { c, l, .. } = self.shape;
        (0..cols).step_by(c * l).flat_map(move |image| image + channel * l..image + (channel + 1) * l)
    }

    /// The values of a channel, row by row.
    pub(super) fn values_of<T: Copy>(self, x: &[T], channel: usize) -> impl Iterator<Item = T> {
        x.chunks(self.cols).flat_map(move |row| self.columns_of(channel, row.len()).map(move |j| row[j]))
    }

    /// Writes the number of each channel to all its columns in a row of whole images.
    #[inline(always)]
    pub(super) fn fill<T: Copy>(self, numbers: &[T], to: &mut [T]) {
        let Shape { c, l, .. } = self.shape;
        if l == 1 {
            to[..c].copy_from_slice(numbers);
        } else {
            for (plane, &number) in to[..c * l].chunks_exact_mut(l).zip(numbers) {
                plane.fill(number);
            }
        }
        // Twice as many images each time: few copies, and long ones.
        let mut done = c * l;
        while done < to.len() {
            let more = done.min(to.len() - done);
            to.copy_within(..more, done);
            done += more;
        }
    }

    /// Values of a channel in a leaf.
    #[inline(always)]
    pub(super) fn values(self, leaf: Leaf) -> usize {
        if self.is_plain() { leaf.rows } else { leaf.rows * (leaf.cols / self.shape.c) }
    }

    /// Whether `len` channels from any on are [`ABREAST`] neighbouring columns of each image: what the two below are told in their type,
    /// so that there is no other way to go and vectors stay vectors.
    #[inline(always)]
    pub(super) fn is_abreast(self, len: usize) -> bool {
        self.shape.l == 1 && len == ABREAST
    }

    /// For `len` channels from `first` on, the number in the first of their columns.
    #[inline(always)]
    pub(super) fn first_column<T: Element, const IS_ABREAST: bool>(
        self,
        row: &[T],
        (first, len): (usize, usize),
    ) -> [f64; ABREAST] {
        if IS_ABREAST {
            return widen(row, first, ABREAST);
        }
        std::array::from_fn(|k| if k < len { row[(first + k) * self.shape.l].to_f64() } else { 0.0 })
    }

    /// For `len` channels from `first` on, the sum of a row over their columns.
    #[inline(always)]
    pub(super) fn all_columns<T: Element, const IS_ABREAST: bool>(
        self,
        row: &[T],
        (first, len): (usize, usize),
    ) -> [f64; ABREAST] {
        if IS_ABREAST {
            let mut sums = widen(row, first, ABREAST);
            // No iterator by steps: it would divide to know how many there are.
            let mut image = self.shape.c;
            while image < row.len() {
                let more = widen(row, image + first, ABREAST);
                for k in 0..ABREAST {
                    sums[k] += more[k];
                }
                image += self.shape.c;
            }
            return sums;
        }
        let mut sums = [0.0; ABREAST];
        for k in 0..len {
            sums[k] = self.columns_of(first + k, row.len()).map(|j| row[j].to_f64()).sum();
        }
        sums
    }

    /// Number of leaves.
    pub(super) fn leaves(self) -> usize {
        self.rows.div_ceil(LEAF) + usize::from(self.tail > 0)
    }

    /// Most leaves of any grid with as many images or fewer.
    pub(super) fn most_leaves(self) -> usize {
        self.rows.div_ceil(LEAF) + usize::from(self.cols > self.shape.c * self.shape.l)
    }

    /// Leaf `i`; the last may be what is left behind the whole rows.
    pub(super) fn leaf(self, i: usize) -> Leaf {
        let first = i * LEAF;
        if first < self.rows {
            return Leaf { start: first * self.cols, rows: LEAF.min(self.rows - first), cols: self.cols };
        }
        Leaf { start: self.rows * self.cols, rows: 1, cols: self.tail }
    }
}

/// What one pass left of each leaf, for another to merge.
#[derive(Clone, Copy)]
pub(super) enum Leaves<'a, T> {
    /// Rows of a grid's columns.
    OfGrid(Grid, &'a [T]),
    /// Numbers of each channel, side by side for all channels.
    OfPlanes(Planes, &'a [T]),
}

impl<T> Leaves<'_, T> {
    /// How many.
    pub(super) fn count(self) -> usize {
        match self {
            Leaves::OfGrid(grid, _) => grid.leaves(),
            Leaves::OfPlanes(planes, _) => planes.leaf_count(),
        }
    }

    /// Whether the numbers of `len` channels from any on are [`ABREAST`] neighbours: what is told in a type, so that there is no other way
    /// to go and vectors stay vectors.
    #[inline(always)]
    pub(super) fn are_abreast(self, len: usize) -> bool {
        match self {
            Leaves::OfGrid(grid, _) => grid.is_abreast(len),
            Leaves::OfPlanes(..) => len == ABREAST,
        }
    }
}

/// Rows of numbers for channels, as rows for the columns of a grid from `offset` on, the first `offset` of them last: in `scratch`, a row
/// for each, where those are others.
pub(super) fn spread<'a, T: Element, const N: usize>(
    grid: Grid,
    offset: usize,
    rows: [&'a [T]; N],
    scratch: &'a mut [T],
) -> [&'a [T]; N] {
    if grid.is_plain() && offset == 0 {
        return rows;
    }
    let mut spread = rows;
    for (row, to) in spread.iter_mut().zip(scratch.chunks_exact_mut(grid.cols)) {
        grid.fill(row, to);
        to.rotate_left(offset);
        *row = to;
    }
    spread
}

/// Some channels that are computed side by side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Group {
    pub(super) first: usize,
    pub(super) len: usize,
    /// How many of them, from the first on, are of the group before this one as well.
    pub(super) done: usize,
}

/// `channels` in groups of [`ABREAST`]. Where so many from any channel on `are_abreast`, the last group ends with the last channel and
/// overlaps the one before it, as far as there are so many: what is left of one would be computed number by number.
#[inline(always)]
pub(super) fn groups(channels: usize, are_abreast: bool) -> impl Iterator<Item = Group> {
    (0..channels).step_by(ABREAST).map(move |start| {
        let first = if are_abreast && channels >= ABREAST { start.min(channels - ABREAST) } else { start };
        Group { first, len: ABREAST.min(channels - first), done: start - first }
    })
}

/// `len` numbers from `first` on as f64; zero where there are fewer than [`ABREAST`].
#[inline(always)]
pub(super) fn widen<T: Element>(row: &[T], first: usize, len: usize) -> [f64; ABREAST] {
    let mut all = [0.0; ABREAST];
    let row = &row[first..][..len];
    for k in 0..ABREAST {
        all[k] = if k < len { row[k].to_f64() } else { 0.0 };
    }
    all
}

/// Writes the first `len` of `row` from `first` on.
#[inline(always)]
pub(super) fn narrow<T: Element>(row: &[T; ABREAST], to: &mut [T], first: usize, len: usize) {
    let to = &mut to[first..][..len];
    for k in 0..ABREAST {
        if k < len {
            to[k] = row[k];
        }
    }
}

/// Planes that the lanes walk along.
#[derive(Clone, Copy, Debug)]
pub(super) struct Planes {
    pub(super) shape: Shape,
    /// Bytes of an element.
    pub(super) size: usize,
    /// Channels that are dealt with together; the last have fewer.
    pub(super) channels: usize,
    pub(super) reach: Reach,
}

/// A part of some neighbouring channels: in each of several images a run of neighbouring values of each channel.
#[derive(Clone, Copy, Debug)]
pub(super) struct Runs {
    /// The first image, and the first value in its planes.
    first: (usize, usize),
    /// Images.
    pub(super) images: usize,
    /// Channels.
    pub(super) channels: usize,
    /// Values of each channel in an image.
    pub(super) len: usize,
    /// Elements from one channel to the next.
    pub(super) pitch: usize,
}

impl Runs {
    /// The part of channels, given as one image a row.
    #[inline(always)]
    pub(super) fn of<T: Copy>(self, channels: Rows<'_, T>) -> Rows<'_, T> {
        let cols = (self.channels - 1) * self.pitch + self.len;
        channels.block((self.first.0, self.images), (self.first.1, cols))
    }

    /// Those of one channel.
    #[inline(always)]
    pub(super) fn channel(self, channel: usize) -> Self {
        Runs { first: (self.first.0, self.first.1 + channel * self.pitch), channels: 1, ..self }
    }

    /// Values of a channel.
    pub(super) fn values(self) -> usize {
        self.images * self.len
    }
}

impl Planes {
    /// Some channels, of which `data` begins with the first value: an image a row.
    pub(super) fn rows<T: Copy>(self, data: &[T], channels: usize) -> Rows<'_, T> {
        let Shape { n, c, l } = self.shape;
        Rows::new(data, n, channels * l, c * l)
    }

    /// The values of a channel, of which `data` begins with the first.
    pub(super) fn values_of<T: Copy>(self, data: &[T]) -> impl Iterator<Item = T> {
        let Shape { c, l, .. } = self.shape;
        data.chunks(c * l).flat_map(move |image| image[..l].iter().copied())
    }

    /// Images of some channels that one task writes.
    pub(super) fn images_of_task(self, channels: usize) -> usize {
        (PLANES_TASK / (channels * self.shape.l)).max(1)
    }

    /// Images in a leaf, and values of each plane: several planes, or a part of one.
    fn leaf(self) -> (usize, usize) {
        let (l, most, step) = (self.shape.l, PLANES_LEAF / self.size, STEP / self.size);
        // About equal parts in whole steps, but for the last, which may be short.
        let len = l.div_ceil(l.div_ceil(most)).next_multiple_of(step).min(l);
        // Roundings on the way of a term: one for each step of a run, or for each step of a tile and each tile; then one for each image.
        let steps = len.div_ceil(step);
        let in_run = steps.min(TILE) + steps / TILE;
        ((most / l).min(ROUNDINGS.saturating_sub(in_run)).max(1), len)
    }

    /// Number of leaves of each channel.
    pub(super) fn leaf_count(self) -> usize {
        let (together, len) = self.leaf();
        self.shape.n.div_ceil(together) * self.shape.l.div_ceil(len)
    }

    /// Leaf `i` of some channels.
    pub(super) fn runs(self, i: usize, channels: usize) -> Runs {
        let (Shape { n, l, .. }, (together, len)) = (self.shape, self.leaf());
        let parts = l.div_ceil(len);
        let (image, at) = (i / parts * together, i % parts * len);
        Runs { first: (image, at), images: together.min(n - image), channels, len: len.min(l - at), pitch: l }
    }
}
