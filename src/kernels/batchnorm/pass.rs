//! The passes over a tensor: which way it is walked through, and what follows what.

use super::apply::{self, Given};
use super::backward::{self, Finish, Flow};
use super::gradient::{Path, Slopes};
use super::saved::Constants;
use super::shape::{Grid, Shape, Walk};
use super::{BatchNorm, Saved, Statistics, statistics};
use crate::simd::{Element, Isa, PerElement};

/// Constants of a column: mean, a and b, and what the second pass backward needs.
pub(super) const ROWS_OF_CONSTANTS: usize = 3 + backward::ROWS_OF_SLOPES;

/// A pass over a tensor that has elements.
pub(super) enum Pass<'a, T> {
    Forward {
        norm: BatchNorm<'a, T>,
        shape: Shape,
        x: &'a [T],
        y: &'a mut [T],
        saved: &'a mut [T],
        scratch: &'a mut [T],
    },
    /// By what is saved already; without x over y.
    Frozen {
        norm: BatchNorm<'a, T>,
        shape: Shape,
        x: Option<&'a [T]>,
        y: &'a mut [T],
        saved: &'a [T],
        scratch: &'a mut [T],
    },
    Backward {
        norm: BatchNorm<'a, T>,
        shape: Shape,
        statistics: Statistics,
        x: &'a [T],
        flow: Flow<'a, T>,
        saved: &'a [T],
        parameters: (Option<&'a mut [T]>, Option<&'a mut [T]>),
        scratch: &'a mut [T],
    },
}

/// Runs a pass: compiled here, once for each type, and not again in every crate that normalises.
pub(super) struct Run;

impl PerElement for Run {
    type Args<'a, T: Element> = Pass<'a, T>;

    #[inline(never)]
    fn with_f32(pass: Pass<'_, f32>) {
        let walk = pass.shape().walk::<f32>();
        pass.run(walk);
    }

    #[inline(never)]
    fn with_f64(pass: Pass<'_, f64>) {
        let walk = pass.shape().walk::<f64>();
        pass.run(walk);
    }
}

impl<T: Element> Pass<'_, T> {
    fn shape(&self) -> Shape {
        match self {
            Pass::Forward { shape, .. } | Pass::Frozen { shape, .. } | Pass::Backward { shape, .. } => *shape,
        }
    }

    #[inline(always)]
    pub(super) fn run(self, walk: Walk) {
        match self {
            Pass::Forward { norm, x, y, saved, scratch, .. } => match walk {
                Walk::Planes(planes) => apply::by_planes(&norm, Some(x), y, planes, Given::Nothing { saved, scratch }),
                Walk::Rows(grid) => {
                    statistics::by_rows(&norm, x, grid, saved, scratch);
                    apply_rows(&norm, Some(x), y, grid, saved, scratch);
                }
            },
            Pass::Frozen { norm, x, y, saved, scratch, .. } => match walk {
                Walk::Planes(planes) => {
                    let constants = Saved::new(saved, norm.channels).constants();
                    apply::by_planes(&norm, x, y, planes, Given::Constants(constants));
                }
                Walk::Rows(grid) => apply_rows(&norm, x, y, grid, saved, scratch),
            },
            Pass::Backward { norm, shape, statistics, x, flow, saved, parameters, scratch } => {
                let saved = Saved::new(saved, norm.channels);
                match walk {
                    Walk::Planes(planes) => {
                        backward::by_planes(&norm, statistics, planes, x, flow, &saved, parameters, scratch);
                    }
                    Walk::Rows(grid) => {
                        let count = shape.count();
                        backward_rows(&norm, statistics, (grid, count), x, flow, &saved, parameters, scratch);
                    }
                }
            }
        }
    }
}

fn apply_rows<T: Element>(
    norm: &BatchNorm<'_, T>,
    x: Option<&[T]>,
    y: &mut [T],
    grid: Grid,
    saved: &[T],
    scratch: &mut [T],
) {
    let Constants { mean, a, b } = Saved::new(saved, norm.channels).constants();
    let offset = grid.unaligned(y);
    let [mean, a, b] = spread(grid, offset, [mean, a, b], scratch);
    apply::by_rows(x, y, (grid, offset), Constants { mean, a, b }, norm.activation);
}

#[expect(clippy::too_many_arguments, reason = "what a backward pass has")]
fn backward_rows<T: Element>(
    norm: &BatchNorm<'_, T>,
    statistics: Statistics,
    (grid, count): (Grid, usize),
    x: &[T],
    flow: Flow<'_, T>,
    saved: &Saved<'_, T>,
    (dgamma, dbeta): (Option<&mut [T]>, Option<&mut [T]>),
    scratch: &mut [T],
) {
    let (partial, columns) = scratch.split_at_mut(backward::ROWS_OF_LEAF * grid.leaves() * grid.cols);
    let (of_forward, of_slopes) = columns.split_at_mut(3 * grid.cols);
    let of_channels = saved.constants();
    let [mean, a, b] = spread(grid, 0, [of_channels.mean, of_channels.a, of_channels.b], &mut *of_forward);
    let constants = Constants { mean, a, b };
    let sums_wanted = dgamma.is_some() || dbeta.is_some() || statistics == Statistics::Batch;
    if sums_wanted {
        backward::sums_by_rows(x, flow.dy(), grid, constants, norm.activation, partial);
    }
    let slopes_wanted = statistics == Statistics::Batch && !matches!(flow, Flow::Apart { dx: None, .. });
    let slopes = slopes_wanted.then_some(&mut *of_slopes);
    let partial = &*partial;
    let offset = match &flow {
        Flow::Apart { dx: None, .. } => 0,
        Flow::Apart { dx: Some(dx), .. } | Flow::InPlace(dx) => grid.unaligned(dx),
    };
    let finish = Finish { grid, offset, count, saved, partial, dgamma, dbeta, slopes };
    let any_scaled = sums_wanted && Isa::current().run(finish);
    let (dy, dx) = match flow {
        Flow::Apart { dx: None, .. } => return,
        Flow::Apart { dy, dx: Some(dx) } => (Some(dy), dx),
        Flow::InPlace(dx) => (None, dx),
    };
    let row = |row: usize| &of_slopes[row * grid.cols..][..grid.cols];
    let slopes = Slopes { first: row(0), second: row(1), is_scaled: row(2), rstd: row(3) };
    let path = match statistics {
        Statistics::Frozen => Path::Frozen,
        Statistics::Batch if any_scaled => Path::Scaled(slopes),
        Statistics::Batch => Path::Direct(slopes),
    };
    let [mean, a, b] = spread(grid, offset, [of_channels.mean, of_channels.a, of_channels.b], of_forward);
    backward::input_by_rows(x, dy, dx, (grid, offset), Constants { mean, a, b }, path, norm.activation);
}

/// Rows of numbers for channels, as rows for the columns of a grid from `offset` on, the first `offset` of them last: in `scratch`, a row
/// for each, where those are others.
fn spread<'a, T: Element, const N: usize>(
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
        for (j, to) in to.iter_mut().enumerate() {
            *to = row[grid.channel((j + offset) % grid.cols)];
        }
        *row = to;
    }
    spread
}
