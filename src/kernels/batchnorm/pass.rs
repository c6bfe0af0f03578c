//! The passes over a tensor: which way it is walked through, and what follows what.

use super::apply::{self, Given};
use super::backward::{self, Flow, Step};
use super::saved::Constants;
use super::shape::{Grid, Shape, Walk, spread};
use super::{BatchNorm, Saved, Statistics, statistics};
use crate::simd::{Element, PerElement};

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
                Walk::Planes(planes) => {
                    apply::by_planes(&norm, Some(x), y, planes, Given::Nothing { saved, scratch });
                }
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
                let step = Step { activation: norm.activation, statistics, count: shape.count() };
                match walk {
                    Walk::Planes(planes) => backward::by_planes(step, planes, x, flow, &saved, parameters, scratch),
                    Walk::Rows(grid) => backward::by_rows(step, grid, x, flow, &saved, parameters, scratch),
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
