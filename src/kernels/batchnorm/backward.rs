//! The two passes of the backward step: sums per channel, then the input gradient.

use super::apply::{Channels, Images, parts};
use super::gradient::{Data, Path, Slopes, Sums, Upstream};
use super::saved::Constants;
use super::shape::{Grid, Group, Leaf, Leaves, Planes, Reach, Runs, Shape, groups, narrow, spread, widen};
use super::sums;
use super::{ABREAST, ROWS, Saved, Statistics};
use crate::kernels::Activation;
use crate::parallel::{self, Blocks, BlocksMut, Cost};
use crate::simd::{CellsMut, Element, Isa, Kernel, Lanes, Rows, RowsMut};

/// Rows of scratch for each leaf of a grid: both sums, and work space.
const ROWS_OF_LEAF: usize = sums::ROWS_OF_SUMS;
/// Numbers that pass 2 needs of a channel besides mean, a and b.
const ROWS_OF_SLOPES: usize = 4;

/// Numbers of a column that the forward pass left: mean, a and b.
const ROWS_OF_FORWARD: usize = 3;

/// Elements of scratch for a grid of `cols` columns of `channels`, besides its leaves: what pass 2 needs of channels, and all of columns.
pub(super) fn scratch_of_columns(cols: usize, channels: usize) -> usize {
    (ROWS_OF_FORWARD + ROWS_OF_SLOPES).saturating_mul(cols).saturating_add(ROWS_OF_SLOPES * channels)
}

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

/// What a backward step is told besides its data.
#[derive(Clone, Copy)]
pub(super) struct Step {
    pub(super) activation: Activation,
    pub(super) statistics: Statistics,
    /// Values of a channel.
    pub(super) count: usize,
}

/// Both passes by rows.
pub(super) fn by_rows<T: Element>(
    step: Step,
    grid: Grid,
    x: &[T],
    flow: Flow<'_, T>,
    saved: &Saved<'_, T>,
    (dgamma, dbeta): (Option<&mut [T]>, Option<&mut [T]>),
    scratch: &mut [T],
) {
    let isa = Isa::current();
    let channels = saved.channels();
    let (partial, rest) = scratch.split_at_mut(ROWS_OF_LEAF * grid.leaves() * grid.cols);
    let (slopes, columns) = rest.split_at_mut(ROWS_OF_SLOPES * channels);
    let (of_forward, of_slopes) = columns.split_at_mut(ROWS_OF_FORWARD * grid.cols);
    let Constants { mean, a, b } = saved.constants();
    let (offset, has_input) = match &flow {
        Flow::Apart { dx: None, .. } => (0, false),
        Flow::Apart { dx: Some(dx), .. } | Flow::InPlace(dx) => (grid.unaligned(dx), true),
    };
    let (is_batch, activation) = (step.statistics == Statistics::Batch, step.activation);
    let mut any_scaled = false;
    if dgamma.is_some() || dbeta.is_some() || is_batch {
        let [mean, a, b] = spread(grid, 0, [mean, a, b], &mut *of_forward);
        sums_by_rows(isa, (x, flow.dy()), grid, Constants { mean, a, b }, activation, partial);
        let slopes = (has_input && is_batch).then(|| RowsMut::new(&mut *slopes, ROWS_OF_SLOPES, channels, channels));
        let leaves = Leaves::OfGrid(grid, partial);
        any_scaled = isa.run(Finish { leaves, count: step.count, saved, dgamma, dbeta, slopes });
    }
    let (dy, dx) = match flow {
        Flow::Apart { dx: None, .. } => return,
        Flow::Apart { dy, dx: Some(dx) } => (Some(dy), dx),
        Flow::InPlace(dx) => (None, dx),
    };
    let mut rows = [0, 1, 2, 3].map(|row| &slopes[row * channels..][..channels]);
    if is_batch {
        rows = spread(grid, offset, rows, of_slopes);
    }
    let [first, second, is_scaled, rstd] = rows;
    let path = step.path(Slopes { first, second, is_scaled, rstd }, any_scaled);
    let [mean, a, b] = spread(grid, offset, [mean, a, b], of_forward);
    input_by_rows(isa, (x, dy, dx), (grid, offset), Constants { mean, a, b }, path, activation);
}

impl Step {
    fn path<P>(self, slopes: Slopes<P>, any_scaled: bool) -> Path<P> {
        match self.statistics {
            Statistics::Frozen => Path::Frozen,
            Statistics::Batch if any_scaled => Path::Scaled(slopes),
            Statistics::Batch => Path::Direct(slopes),
        }
    }
}

/// Pass 1 by rows: for each leaf [`ROWS_OF_LEAF`] rows in `partial`.
fn sums_by_rows<T: Element>(
    isa: Isa,
    (x, dy): (&[T], &[T]),
    grid: Grid,
    constants: Constants<&[T]>,
    activation: Activation,
    partial: &mut [T],
) {
    let cost = Cost { flops: 5 * x.len(), bytes: 2 * size_of_val(x) };
    let work = BlocksMut { data: partial, block: ROWS_OF_LEAF * grid.cols };
    parallel::for_each_backwards(grid.leaves(), cost, work, |i, partial| {
        let leaf = grid.leaf(i);
        let rows = |data| Rows::new(data, leaf.rows, leaf.cols, leaf.cols);
        let (x, dy, reach) = (rows(&x[leaf.start..]), rows(&dy[leaf.start..]), grid.reach);
        isa.run(LeafSums { x, dy, leaf, reach, constants, activation, partial: partial.data });
    });
}

impl<T: Element> Leaves<'_, T> {
    /// Sums of dz and of dz t over all leaves, of some of `all` channels: their first, and how many.
    #[inline(always)]
    fn sums<const IS_ABREAST: bool>(self, all: usize, (first, len): (usize, usize)) -> [[f64; ABREAST]; 2] {
        let mut sums = [[0.0; ABREAST]; 2];
        match self {
            Leaves::OfGrid(grid, partial) => {
                for i in 0..grid.leaves() {
                    let (leaf, slot) = (grid.leaf(i), &partial[i * ROWS_OF_LEAF * grid.cols..]);
                    for (sum, row) in sums.iter_mut().zip(slot.chunks_exact(leaf.cols)) {
                        let more = grid.all_columns::<T, IS_ABREAST>(row, (first, len));
                        for k in 0..ABREAST {
                            sum[k] += more[k];
                        }
                    }
                }
            }
            Leaves::OfPlanes(planes, partial) => {
                let len = if IS_ABREAST { ABREAST } else { len };
                for slot in partial.chunks_exact(all * PARTS_OF_LEAF).take(planes.leaf_count()) {
                    let row = |row: usize| widen(&slot[row * all..][..all], first, len);
                    for (sum, (high, low)) in sums.iter_mut().zip([(row(0), row(1)), (row(2), row(3))]) {
                        for k in 0..ABREAST {
                            sum[k] += high[k] + low[k];
                        }
                    }
                }
            }
        }
        sums
    }
}

/// What the sums of leaves left, as the gradients of gamma and beta and as what pass 2 needs of each channel.
struct Finish<'a, 'b, T> {
    /// Of a grid [`ROWS_OF_LEAF`] rows for each, of planes [`PARTS_OF_LEAF`] numbers.
    leaves: Leaves<'a, T>,
    /// Values of a channel.
    count: usize,
    saved: &'a Saved<'b, T>,
    dgamma: Option<&'a mut [T]>,
    dbeta: Option<&'a mut [T]>,
    /// [`ROWS_OF_SLOPES`] rows, if wanted.
    slopes: Option<RowsMut<'a, T>>,
}

impl<T: Element> Kernel<T> for Finish<'_, '_, T> {
    /// Whether any channel's k is out of range and its slopes are wanted.
    type Output = bool;

    #[inline(always)]
    fn run<V: Lanes<Elem = T>>(self) -> bool {
        let channels = self.saved.channels();
        let mut finish = self;
        let mut any_scaled = false;
        for group in groups(channels, finish.leaves.are_abreast(ABREAST)) {
            any_scaled |= if finish.leaves.are_abreast(group.len) {
                finish.abreast::<true>(Group { len: ABREAST, ..group })
            } else {
                finish.abreast::<false>(group)
            };
        }
        any_scaled
    }
}

impl<T: Element> Finish<'_, '_, T> {
    /// For some channels.
    #[inline(always)]
    fn abreast<const IS_ABREAST: bool>(&mut self, Group { first, len, done }: Group) -> bool {
        let of = |row| widen(row, first, len);
        let [rstd_hi, rstd_lo] = self.saved.rstd_parts().map(of);
        let (mean_lo, a) = (of(self.saved.mean_lo()), of(self.saved.constants().a));
        let [dz, dzt] = self.leaves.sums::<IS_ABREAST>(self.saved.channels(), (first, len));
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
                // Added once.
                new[k] = T::from_f64(if k < done { old[k] } else { old[k] + more[k] });
            }
            narrow(&new, parameter, first, len);
        }
        let Some(slopes) = &mut self.slopes else { return false };
        for (i, row) in rows.iter().enumerate() {
            narrow(row, slopes.slice(i, first, len), 0, len);
        }
        any_scaled
    }
}

struct LeafSums<'a, T> {
    x: Rows<'a, T>,
    dy: Rows<'a, T>,
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
        let (x, dy) = (self.x, self.dy);
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
fn input_by_rows<T: Element>(
    isa: Isa,
    (x, dy, dx): (&[T], Option<&[T]>, &mut [T]),
    (grid, offset): (Grid, usize),
    constants: Constants<&[T]>,
    path: Path<&[T]>,
    activation: Activation,
) {
    let (cols, reach, block) = (grid.cols, grid.reach_of_rows::<T>(), ROWS * grid.cols);
    let cost = Cost { flops: 7 * x.len(), bytes: 3 * size_of_val(x) };
    let (head, dx) = dx.split_at_mut(offset);
    if offset > 0 {
        let (x, dy) = (&x[..offset], dy.map(|dy| &dy[..offset]));
        let (constants, path) = (constants.last(offset), path.last(offset));
        input(isa, (x, dy, head), offset, constants, path, activation, Reach::Near);
    }
    let part = |data| Blocks { data, block };
    let work = ((part(&x[offset..]), dy.map(|dy| part(&dy[offset..]))), BlocksMut { data: dx, block });
    parallel::for_each((x.len() - offset).div_ceil(block), cost, work, |_, ((x, dy), dx)| {
        input(isa, (x.data, dy.map(|dy| dy.data), dx.data), cols, constants, path, activation, reach);
    });
}

/// Rows of `cols`, and what is left.
fn input<T: Element>(
    isa: Isa,
    (x, dy, dx): (&[T], Option<&[T]>, &mut [T]),
    cols: usize,
    constants: Constants<&[T]>,
    path: Path<&[T]>,
    activation: Activation,
    reach: Reach,
) {
    for (start, rows, cols) in parts(x.len(), cols) {
        let view = |data| Rows::new(data, rows, cols, cols);
        let (x, dy) = (view(&x[start..]), dy.map(|dy| view(&dy[start..])));
        let dx = CellsMut::new(&mut dx[start..], (rows, cols), (cols, 1));
        isa.run(InputRows { x, dy, dx, constants, path, activation, reach });
    }
}

struct InputRows<'a, T> {
    x: Rows<'a, T>,
    dy: Option<Rows<'a, T>>,
    dx: CellsMut<'a, T>,
    constants: Constants<&'a [T]>,
    path: Path<&'a [T]>,
    activation: Activation,
    reach: Reach,
}

impl<T: Element> Kernel<T> for InputRows<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<V: Lanes<Elem = T>>(self) {
        let InputRows { x, dy, dx, reach, activation, .. } = self;
        let (constants, path) = (self.constants.upto(dx.cols()), self.path.upto(dx.cols()));
        Data { x, dy, dx: dx.into_rows() }.write::<V, _>(None, reach, constants, path, activation);
    }
}

/// Both passes over planes, some channels after the other.
pub(super) fn by_planes<T: Element>(
    step: Step,
    planes: Planes,
    x: &[T],
    flow: Flow<'_, T>,
    saved: &Saved<'_, T>,
    (dgamma, dbeta): (Option<&mut [T]>, Option<&mut [T]>),
    scratch: &mut [T],
) {
    let isa = Isa::current();
    let (Shape { n, c, l }, width) = (planes.shape, planes.channels);
    let cost = Cost { flops: 12 * x.len(), bytes: 5 * size_of_val(x) };
    let (dy, dx) = match flow {
        Flow::Apart { dy, dx } => (Some(dy), dx),
        Flow::InPlace(dx) => (None, Some(dx)),
    };
    let dx = dx.map(|dx| Channels { cells: CellsMut::new(dx, (n, c * l), (c * l, 1)), width: width * l });
    let each = |data| BlocksMut { data, block: width };
    let (leaves, slot) = (planes.leaf_count(), scratch_of_planes(planes));
    let scratch = BlocksMut { data: &mut scratch[..c * slot], block: width * slot };
    let work = ((dx, scratch), (dgamma.map(each), dbeta.map(each)));
    let tasks = c.div_ceil(width);
    parallel::for_each(tasks, cost, work, |i, ((dx, scratch), (dgamma, dbeta))| {
        let (first, channels) = (i * width, width.min(c - i * width));
        let values = n * channels * l;
        let (x, dy) = (&x[first * l..], dy.map(|dy| &dy[first * l..]));
        let (dx, saved) = (dx.map(|dx| dx.cells), saved.part(first, channels));
        let (constants, activation, reach) = (saved.constants(), step.activation, planes.reach);
        let (partial, slopes) = scratch.data.split_at_mut(channels * leaves * PARTS_OF_LEAF);
        let slopes = &mut slopes[..channels * ROWS_OF_SLOPES];
        let is_batch = step.statistics == Statistics::Batch;
        let mut any_scaled = false;
        if dgamma.is_some() || dbeta.is_some() || is_batch {
            let work = BlocksMut { data: &mut *partial, block: channels * PARTS_OF_LEAF };
            let cost = Cost { flops: 5 * values, bytes: 2 * values * size_of::<T>() };
            parallel::for_each(leaves, cost, work, |i, partial| {
                let runs = planes.runs(i, channels);
                let dy = match (dy, &dx) {
                    (Some(dy), _) => planes.rows(dy, channels),
                    (None, Some(dx)) => dx.read(),
                    (None, None) => unreachable!("an upstream gradient is somewhere"),
                };
                let (x, dy) = (runs.of(planes.rows(x, channels)), runs.of(dy));
                isa.run(RunSums { x, dy, runs, reach, constants, activation, partial: partial.data });
            });
            let slopes =
                (dx.is_some() && is_batch).then(|| RowsMut::new(&mut *slopes, ROWS_OF_SLOPES, channels, channels));
            let (dgamma, dbeta) = (dgamma.map(|d| d.data), dbeta.map(|d| d.data));
            let leaves = Leaves::OfPlanes(planes, partial);
            any_scaled = isa.run(Finish { leaves, count: step.count, saved: &saved, dgamma, dbeta, slopes });
        }
        let Some(dx) = dx else { return };
        let row = |row: usize| &slopes[row * channels..][..channels];
        let slopes = Slopes { first: row(0), second: row(1), is_scaled: row(2), rstd: row(3) };
        let path = step.path(slopes, any_scaled);
        let images = planes.images_of_task(channels);
        let cost = Cost { flops: 7 * values, bytes: 3 * values * size_of::<T>() };
        parallel::for_each(n.div_ceil(images), cost, Images { cells: dx, images }, |i, dx| {
            let part = |data| planes.rows(data, channels).block((i * images, dx.cells.rows()), (0, channels * l));
            let (x, dy) = (part(x), dy.map(part));
            isa.run(InputPlanes { x, dy, dx: dx.cells, pitch: l, constants, path, activation, reach });
        });
    });
}

/// Numbers kept of a channel in a leaf of planes: both sums in two parts, and their lanes.
const PARTS_OF_LEAF: usize = 4 + 2 * sums::MOST_LANES;

/// Elements of scratch for each channel of planes.
pub(super) fn scratch_of_planes(planes: Planes) -> usize {
    PARTS_OF_LEAF.saturating_mul(planes.leaf_count()) + ROWS_OF_SLOPES
}

/// The sums of a leaf of planes.
struct RunSums<'a, T> {
    x: Rows<'a, T>,
    dy: Rows<'a, T>,
    runs: Runs,
    reach: Reach,
    constants: Constants<&'a [T]>,
    activation: Activation,
    /// [`PARTS_OF_LEAF`] numbers of each channel.
    partial: &'a mut [T],
}

impl<T: Element> Kernel<T> for RunSums<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<V: Lanes<Elem = T>>(self) {
        let RunSums { x, dy, runs, reach, partial, .. } = self;
        let (c, constants) = (runs.channels, self.constants.per_plane(runs.pitch));
        let (parts, lanes) = partial.split_at_mut(4 * c);
        let each = 2 * sums::lanes_of_sum::<T>();
        let lanes = &mut lanes[..c * each];
        match self.activation {
            Activation::Identity => {
                sums::along::<V, _>(Upstream::<_, _, false> { x, dy, constants }, runs, lanes, reach);
            }
            Activation::Relu => sums::along::<V, _>(Upstream::<_, _, true> { x, dy, constants }, runs, lanes, reach),
        }
        for (channel, lanes) in lanes.chunks_exact(each).enumerate() {
            sums::keep(sums::total(lanes), parts, (channel, c));
        }
    }
}

struct InputPlanes<'a, T> {
    x: Rows<'a, T>,
    dy: Option<Rows<'a, T>>,
    dx: CellsMut<'a, T>,
    /// Values of a plane.
    pitch: usize,
    constants: Constants<&'a [T]>,
    path: Path<&'a [T]>,
    activation: Activation,
    reach: Reach,
}

impl<T: Element> Kernel<T> for InputPlanes<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<V: Lanes<Elem = T>>(self) {
        let InputPlanes { x, dy, dx, pitch, reach, activation, .. } = self;
        let (constants, path) = (self.constants.per_plane(pitch), self.path.per_plane(pitch));
        Data { x, dy, dx: dx.into_rows() }.write::<V, _>(Some(pitch), reach, constants, path, activation);
    }
}
