//! The two passes of the backward step: sums per channel, then the input gradient.

use super::apply::{Channels, Images, parts};
use super::gradient::{Data, Path, Slopes, Sums, Upstream};
use super::saved::Constants;
use super::shape::{Grid, Leaf, Planes, Reach, narrow, widen};
use super::sums;
use super::{ABREAST, BatchNorm, ROWS, Saved, Statistics};
use crate::kernels::Activation;
use crate::parallel::{self, Blocks, BlocksMut, Cost};
use crate::simd::{CellsMut, Element, Isa, Kernel, Lanes, Rows, RowsMut};

/// Rows of scratch for each leaf of a grid: both sums, and work space.
pub(super) const ROWS_OF_LEAF: usize = sums::ROWS_OF_SUMS;
/// Numbers that pass 2 needs of a column besides mean, a and b.
pub(super) const ROWS_OF_SLOPES: usize = 4;

/// Where the upstream gradient is, and where the input gradient goes.
pub(super) enum Flow<'a, T> {
    Apart { dy: &'a [T], dx: Option<&'a mut [T]> },
    InPlace(&'a mut [T]),
}

impl<T> Flow<'_, T> {
    /// The upstream gradient.
    pub(super) fn dy(&self) -> &[T] {
        match self {
            Flow::Apart { dy, .. } => dy,
            Flow::InPlace(dy) => dy,
        }
    }
}

/// Pass 1 by rows: for each leaf [`ROWS_OF_LEAF`] rows in `partial`.
pub(super) fn sums_by_rows<T: Element>(
    x: &[T],
    dy: &[T],
    grid: Grid,
    constants: Constants<&[T]>,
    activation: Activation,
    partial: &mut [T],
) {
    let isa = Isa::current();
    let cost = Cost { flops: 5 * x.len(), bytes: 2 * size_of_val(x) };
    let work = BlocksMut { data: partial, block: ROWS_OF_LEAF * grid.cols };
    parallel::for_each_backwards(grid.leaves(), cost, work, |i, partial| {
        let leaf = grid.leaf(i);
        let (x, dy) = (&x[leaf.start..], &dy[leaf.start..]);
        isa.run(LeafSums { x, dy, leaf, reach: grid.reach, constants, activation, partial: partial.data });
    });
}

/// What [`sums_by_rows`] left, as the gradients of gamma and beta and as what pass 2 needs of each column.
pub(super) struct Finish<'a, 'b, T> {
    pub(super) grid: Grid,
    /// Columns that come last in the slopes.
    pub(super) offset: usize,
    /// Values of a channel.
    pub(super) count: usize,
    pub(super) saved: &'a Saved<'b, T>,
    pub(super) partial: &'a [T],
    pub(super) dgamma: Option<&'a mut [T]>,
    pub(super) dbeta: Option<&'a mut [T]>,
    /// [`ROWS_OF_SLOPES`] rows of the grid's columns, if wanted.
    pub(super) slopes: Option<&'a mut [T]>,
}

impl<T: Element> Kernel<T> for Finish<'_, '_, T> {
    /// Whether any channel's k is out of range and its slopes are wanted.
    type Output = bool;

    #[inline(always)]
    fn run<V: Lanes<Elem = T>>(self) -> bool {
        let channels = self.saved.rows[0].len();
        let mut finish = self;
        let mut any_scaled = false;
        for first in (0..channels).step_by(ABREAST) {
            let channels = (first, ABREAST.min(channels - first));
            any_scaled |= if finish.grid.is_abreast(channels.1) {
                finish.abreast::<true>((first, ABREAST))
            } else {
                finish.abreast::<false>(channels)
            };
        }
        any_scaled
    }
}

impl<T: Element> Finish<'_, '_, T> {
    /// For some channels: their first, and how many.
    #[inline(always)]
    fn abreast<const IS_ABREAST: bool>(&mut self, (first, len): (usize, usize)) -> bool {
        let (grid, offset) = (self.grid, self.offset);
        let of = |row: usize| widen(self.saved.rows[row], first, len);
        let (mean_lo, a, rstd_hi, rstd_lo) = (of(1), of(2), of(4), of(5));
        let (mut dz, mut dzt) = ([0.0; ABREAST], [0.0; ABREAST]);
        for i in 0..grid.leaves() {
            let (leaf, slot) = (grid.leaf(i), &self.partial[i * ROWS_OF_LEAF * grid.cols..]);
            let leaf_dz = grid.all_columns::<T, IS_ABREAST>(&slot[..leaf.cols], (first, len));
            let leaf_dzt = grid.all_columns::<T, IS_ABREAST>(&slot[leaf.cols..][..leaf.cols], (first, len));
            for k in 0..ABREAST {
                dz[k] += leaf_dz[k];
                dzt[k] += leaf_dzt[k];
            }
        }
        let mut rows = [[T::ZERO; ABREAST]; ROWS_OF_SLOPES];
        let (mut of_gamma, mut any_scaled) = ([0.0; ABREAST], false);
        for k in 0..ABREAST {
            let rstd = rstd_hi[k] + rstd_lo[k];
            let sums = Sums { dz: dz[k], dzt: dzt[k] - mean_lo[k] * dz[k] };
            of_gamma[k] = rstd * sums.dzt;
            let slopes = Slopes::new((a[k], mean_lo[k], rstd), self.count, sums);
            rows[0][k] = slopes.first;
            rows[1][k] = slopes.second;
            rows[2][k] = slopes.is_scaled;
            rows[3][k] = slopes.rstd;
            any_scaled |= k < len && slopes.is_scaled != T::ZERO;
        }
        for (parameter, more) in [(&mut self.dgamma, of_gamma), (&mut self.dbeta, dz)] {
            let Some(parameter) = parameter else { continue };
            let old = widen(parameter, first, len);
            let mut new = [T::ZERO; ABREAST];
            for k in 0..ABREAST {
                new[k] = T::from_f64(old[k] + more[k]);
            }
            narrow(&new, parameter, first, len);
        }
        let Some(slopes) = &mut self.slopes else { return false };
        for (row, to) in rows.iter().zip(slopes.chunks_exact_mut(grid.cols)) {
            if IS_ABREAST && offset == 0 {
                narrow(row, to, first, len);
                continue;
            }
            for k in 0..len {
                for j in grid.columns_of(first + k, grid.cols) {
                    to[if j < offset { j + grid.cols - offset } else { j - offset }] = row[k];
                }
            }
        }
        any_scaled
    }
}

struct LeafSums<'a, T> {
    x: &'a [T],
    dy: &'a [T],
    leaf: Leaf,
    reach: Reach,
    constants: Constants<&'a [T]>,
    activation: Activation,
    partial: &'a mut [T],
}

impl<T: Element> Kernel<T> for LeafSums<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<V: Lanes<Elem = T>>(self) {
        let Leaf { rows, cols, .. } = self.leaf;
        let (x, dy) = (Rows::new(self.x, rows, cols, cols), Rows::new(self.dy, rows, cols, cols));
        let (constants, reach, sums) = (self.constants.upto(cols), self.reach, self.partial);
        match self.activation {
            Activation::Identity => {
                sums::down::<V, _>(Upstream::<_, _, false> { x, dy, constants }, (rows, cols), sums, reach);
            }
            Activation::Relu => {
                sums::down::<V, _>(Upstream::<_, _, true> { x, dy, constants }, (rows, cols), sums, reach);
            }
        }
    }
}

/// Pass 2 by rows; without `dy` over `dx`. Constants and slopes are those of the columns from `offset` on, as in
/// [`apply::by_rows`](super::apply::by_rows).
pub(super) fn input_by_rows<T: Element>(
    x: &[T],
    dy: Option<&[T]>,
    dx: &mut [T],
    (grid, offset): (Grid, usize),
    constants: Constants<&[T]>,
    path: Path<&[T]>,
    activation: Activation,
) {
    let isa = Isa::current();
    let (cols, reach, block) = (grid.cols, grid.reach_of_rows::<T>(), ROWS * grid.cols);
    let cost = Cost { flops: 7 * x.len(), bytes: 3 * size_of_val(x) };
    let (head, dx) = dx.split_at_mut(offset);
    if offset > 0 {
        let (x, dy) = (&x[..offset], dy.map(|dy| &dy[..offset]));
        let (constants, path) = (constants.last(offset), path.last(offset));
        isa.run(InputRows { x, dy, dx: head, cols: offset, constants, path, activation, reach: Reach::Near });
    }
    let part = |data| Blocks { data, block };
    let work = ((part(&x[offset..]), dy.map(|dy| part(&dy[offset..]))), BlocksMut { data: dx, block });
    parallel::for_each((x.len() - offset).div_ceil(block), cost, work, |_, ((x, dy), dx)| {
        let (x, dy, dx) = (x.data, dy.map(|dy| dy.data), dx.data);
        isa.run(InputRows { x, dy, dx, cols, constants, path, activation, reach });
    });
}

struct InputRows<'a, T> {
    x: &'a [T],
    dy: Option<&'a [T]>,
    dx: &'a mut [T],
    cols: usize,
    constants: Constants<&'a [T]>,
    path: Path<&'a [T]>,
    activation: Activation,
    reach: Reach,
}

impl<T: Element> Kernel<T> for InputRows<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<V: Lanes<Elem = T>>(self) {
        for (start, rows, cols) in parts(self.x.len(), self.cols) {
            let view = |data| Rows::new(data, rows, cols, cols);
            let data = Data {
                x: view(&self.x[start..]),
                dy: self.dy.map(|dy| view(&dy[start..])),
                dx: RowsMut::new(&mut self.dx[start..], rows, cols, cols),
            };
            let (constants, path) = (self.constants.upto(cols), self.path.upto(cols));
            data.write::<V, _, true>(self.reach, constants, path, self.activation);
        }
    }
}

/// Both passes over planes, channel by channel.
#[expect(clippy::too_many_arguments, reason = "what a backward pass has")]
pub(super) fn by_planes<T: Element>(
    norm: &BatchNorm<'_, T>,
    statistics: Statistics,
    planes: Planes,
    x: &[T],
    flow: Flow<'_, T>,
    saved: &Saved<'_, T>,
    (dgamma, dbeta): (Option<&mut [T]>, Option<&mut [T]>),
    scratch: &mut [T],
) {
    let isa = Isa::current();
    let (n, c, l) = (planes.shape.n, planes.shape.c, planes.shape.l);
    let cost = Cost { flops: 12 * x.len(), bytes: 5 * size_of_val(x) };
    let (dy, dx) = match flow {
        Flow::Apart { dy, dx } => (Some(dy), dx),
        Flow::InPlace(dx) => (None, Some(dx)),
    };
    let dx = dx.map(|dx| Channels { cells: CellsMut::new(dx, (n, c * l), (c * l, 1)), width: l });
    let each = |data| BlocksMut { data, block: 1 };
    let slot = PARTS_OF_LEAF * planes.leaf_count();
    let parts = BlocksMut { data: &mut scratch[..c * slot], block: slot };
    let work = ((dx, parts), (dgamma.map(each), dbeta.map(each)));
    parallel::for_each(c, cost, work, |channel, ((dx, parts), (dgamma, dbeta))| {
        let cost = Cost { flops: cost.flops / c, bytes: cost.bytes / c };
        let channel = Channel { isa, activation: norm.activation, planes, cost, channel, saved };
        let (x, dy, dx) = (&x[channel.channel * l..], dy.map(|dy| &dy[channel.channel * l..]), dx.map(|dx| dx.cells));
        let mut path = Path::Frozen;
        if dgamma.is_some() || dbeta.is_some() || statistics == Statistics::Batch {
            let sums = channel.sums(x, dy, dx.as_ref(), parts.data);
            if let Some(dbeta) = dbeta {
                dbeta.data[0] = T::from_f64(dbeta.data[0].to_f64() + sums.dz);
            }
            if let Some(dgamma) = dgamma {
                dgamma.data[0] = T::from_f64(dgamma.data[0].to_f64() + saved.rstd(channel.channel) * sums.dzt);
            }
            if statistics == Statistics::Batch {
                path = channel.path(sums);
            }
        }
        if let Some(dx) = dx {
            channel.input(x, dy, dx, path);
        }
    });
}

/// Numbers kept of a leaf of planes: both sums in two parts.
const PARTS_OF_LEAF: usize = 4;

/// One channel of planes.
struct Channel<'a, 'b, T> {
    isa: Isa,
    activation: Activation,
    planes: Planes,
    cost: Cost,
    channel: usize,
    saved: &'a Saved<'b, T>,
}

impl<T: Element> Channel<'_, '_, T> {
    /// Pass 1: the sums over all leaves. Without `dy`, that is in `dx`.
    fn sums(&self, x: &[T], dy: Option<&[T]>, dx: Option<&CellsMut<'_, T>>, parts: &mut [T]) -> Sums {
        let (planes, activation) = (self.planes, self.activation);
        let constants = self.saved.constants().of(self.channel);
        let work = BlocksMut { data: &mut *parts, block: PARTS_OF_LEAF };
        parallel::for_each(planes.leaf_count(), self.cost, work, |i, part| {
            let runs = planes.runs(i);
            let dy = match (dy, dx) {
                (Some(dy), _) => planes.channel(dy),
                (None, Some(dx)) => dx.read(),
                (None, None) => unreachable!("an upstream gradient is somewhere"),
            };
            let (x, dy, reach) = (runs.of(planes.channel(x)), runs.of(dy), planes.reach);
            let shape = (runs.count, runs.len);
            self.isa.run(RunSums { x, dy, shape, reach, constants, activation, part: part.data });
        });
        let mut sums = Sums { dz: 0.0, dzt: 0.0 };
        for part in parts.chunks_exact(PARTS_OF_LEAF).take(planes.leaf_count()) {
            sums.dz += T::join((part[0], part[1]));
            sums.dzt += T::join((part[2], part[3]));
        }
        sums.dzt -= self.saved.mean_lo()[self.channel].to_f64() * sums.dz;
        sums
    }

    /// What pass 2 needs.
    fn path(&self, sums: Sums) -> Path<T> {
        let (a, mean_lo) =
            (self.saved.constants().a[self.channel].to_f64(), self.saved.mean_lo()[self.channel].to_f64());
        let slopes = Slopes::new((a, mean_lo, self.saved.rstd(self.channel)), self.planes.shape.count(), sums);
        if slopes.is_scaled == T::ZERO { Path::Direct(slopes) } else { Path::Scaled(slopes) }
    }

    /// Pass 2.
    fn input(&self, x: &[T], dy: Option<&[T]>, dx: CellsMut<'_, T>, path: Path<T>) {
        let (planes, images, activation) = (self.planes, self.planes.images_of_task(), self.activation);
        let constants = self.saved.constants().of(self.channel);
        let tasks = planes.shape.n.div_ceil(images);
        parallel::for_each(tasks, self.cost, Images { cells: dx, images }, |i, dx| {
            let part = |data| planes.channel(data).block((i * images, dx.cells.rows()), (0, planes.shape.l));
            let (x, dy, reach) = (part(x), dy.map(part), planes.reach);
            self.isa.run(InputPlanes { x, dy, dx: dx.cells, constants, path, activation, reach });
        });
    }
}

/// The sums of a leaf of planes.
struct RunSums<'a, T> {
    x: Rows<'a, T>,
    dy: Rows<'a, T>,
    shape: (usize, usize),
    reach: Reach,
    constants: Constants<T>,
    activation: Activation,
    part: &'a mut [T],
}

impl<T: Element> Kernel<T> for RunSums<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<V: Lanes<Elem = T>>(self) {
        let RunSums { x, dy, shape, reach, .. } = self;
        let constants = self.constants.same();
        let (dz, dzt) = match self.activation {
            Activation::Identity => sums::along::<V, _>(Upstream::<_, _, false> { x, dy, constants }, shape, reach),
            Activation::Relu => sums::along::<V, _>(Upstream::<_, _, true> { x, dy, constants }, shape, reach),
        };
        let ((dz, dz_low), (dzt, dzt_low)) = (T::split(dz), T::split(dzt));
        self.part.copy_from_slice(&[dz, dz_low, dzt, dzt_low]);
    }
}

struct InputPlanes<'a, T> {
    x: Rows<'a, T>,
    dy: Option<Rows<'a, T>>,
    dx: CellsMut<'a, T>,
    constants: Constants<T>,
    path: Path<T>,
    activation: Activation,
    reach: Reach,
}

impl<T: Element> Kernel<T> for InputPlanes<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<V: Lanes<Elem = T>>(self) {
        let InputPlanes { x, dy, dx, reach, activation, .. } = self;
        let path = match self.path {
            Path::Frozen => Path::Frozen,
            Path::Direct(slopes) => Path::Direct(slopes.same()),
            Path::Scaled(slopes) => Path::Scaled(slopes.same()),
        };
        Data { x, dy, dx: dx.into_rows() }.write::<V, _, false>(reach, self.constants.same(), path, activation);
    }
}
