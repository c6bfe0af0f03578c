//! The backward step of an element: the terms of the sums, and the input gradient.

use super::map::{self, Map, Values};
use super::saved::Constants;
use super::shape::Reach;
use super::sums::{PerColumn, PerPlane, Source, Terms};
use crate::kernels::Activation;
use crate::simd::{Element, Lanes, Rows, RowsMut};

/// dz, with the forward's own operations, so that the mask has its bits; and `t = x - mean_hi`.
#[inline(always)]
fn masked<V: Lanes, const RELU: bool>(constants: &Constants<V>, x: V, dy: V) -> (V, V) {
    let t = x - constants.mean;
    (if RELU { dy.gated(t.mul_add(constants.a, constants.b)) } else { dy }, t)
}

/// dz and t, to be summed.
#[derive(Clone, Copy)]
pub(super) struct Upstream<'a, T, P, const RELU: bool> {
    pub(super) x: Rows<'a, T>,
    pub(super) dy: Rows<'a, T>,
    pub(super) constants: Constants<P>,
}

/// The same of a block.
pub(super) struct UpstreamTerms<'a, V: Lanes, const RELU: bool> {
    x: Rows<'a, V::Elem>,
    dy: Rows<'a, V::Elem>,
    constants: Constants<V>,
}

impl<'a, V: Lanes, P: PerColumn<V>, const RELU: bool> Source<V> for Upstream<'a, V::Elem, P, RELU> {
    type Terms = UpstreamTerms<'a, V, RELU>;
    const TENSORS: usize = 2;

    #[inline(always)]
    fn block(&self, rows: (usize, usize), cols: (usize, usize)) -> Self::Terms {
        let constants = self.constants.at(cols.0, cols.1.min(V::WIDTH));
        UpstreamTerms { x: self.x.block(rows, cols), dy: self.dy.block(rows, cols), constants }
    }
}

impl<V: Lanes, const RELU: bool> Terms<V> for UpstreamTerms<'_, V, RELU> {
    #[inline(always)]
    fn prefetch(&self, i: usize, j: usize) {
        self.x.prefetch(i, j);
        self.dy.prefetch(i, j);
    }
    #[inline(always)]
    fn left(&self) -> usize {
        self.x.cols()
    }
    #[inline(always)]
    fn pass(&mut self, len: usize) {
        self.x.pass(len);
        self.dy.pass(len);
    }
    #[inline(always)]
    fn at(&self, i: usize, j: usize, len: usize) -> (V, V) {
        let (x, dy) = (V::load_up_to(self.x.slice(i, j, len)), V::load_up_to(self.dy.slice(i, j, len)));
        masked::<V, RELU>(&self.constants, x, dy)
    }
}

/// Sums of dz and of dz (x - mean) of one channel.
#[derive(Clone, Copy)]
pub(super) struct Sums {
    pub(super) dz: f64,
    pub(super) dzt: f64,
}

/// What pass 2 needs of channels besides mean, a and b.
///
/// k and shift; or, where k is out of range, G and B', the flag set, and rstd.
#[derive(Clone, Copy)]
pub(super) struct Slopes<P> {
    pub(super) first: P,
    pub(super) second: P,
    pub(super) is_scaled: P,
    pub(super) rstd: P,
}

impl<P: Copy> Slopes<P> {
    #[inline(always)]
    fn at<V: Lanes>(self, j: usize, len: usize) -> Slopes<V>
    where
        P: PerColumn<V>,
    {
        Slopes {
            first: self.first.at(j, len),
            second: self.second.at(j, len),
            is_scaled: self.is_scaled.at(j, len),
            rstd: self.rstd.at(j, len),
        }
    }
}

impl<T: Element> Slopes<T> {
    /// Of a channel of `count` values, with its a, mean_lo and rstd.
    #[inline(always)]
    pub(super) fn new((a, mean_lo, rstd): (f64, f64, f64), count: usize, sums: Sums) -> Self {
        let m = count as f64;
        let Sums { dz, dzt } = sums;
        let k = a * rstd * rstd * dzt / m;
        // A product that is zero although no factor is has left the range of f64.
        let vanished = k == 0.0 && a != 0.0 && dzt != 0.0;
        let is_direct = is_in_range::<T>(k) && !vanished;
        let (first, second) = if is_direct {
            (k, k * mean_lo - a * dz / m)
        } else {
            let g = rstd * dzt / m;
            (g, dz / m - mean_lo * rstd * g)
        };
        let is_scaled = if is_direct { T::ZERO } else { T::ONE };
        Slopes { first: T::from_f64(first), second: T::from_f64(second), is_scaled, rstd: T::from_f64(rstd) }
    }
}

/// Whether k can be represented with full precision (zero can).
#[inline(always)]
fn is_in_range<T: Element>(k: f64) -> bool {
    let rounded = T::from_f64(k);
    k == 0.0 || (rounded.is_finite() && T::from_f64(k.abs()) > T::LARGEST_SUBNORMAL)
}

/// How the input gradient depends on x.
#[derive(Clone, Copy)]
pub(super) enum Path<P> {
    /// Through the mask alone: `a dz`.
    Frozen,
    /// Through the statistics: `fma(a, dz, fma(-k, t, shift))`.
    Direct(Slopes<P>),
    /// The same, in channels whose k is out of range as `a ((dz - B') - (t rstd) G)`.
    Scaled(Slopes<P>),
}

impl<'a, T: Copy> Path<&'a [T]> {
    /// That of the last `count` columns.
    pub(super) fn last(self, count: usize) -> Self {
        self.map(|row| &row[row.len() - count..])
    }

    /// That of the first `count` columns.
    #[inline(always)]
    pub(super) fn upto(self, count: usize) -> Self {
        self.map(|row| &row[..count])
    }

    /// That of channels whose columns lie `pitch` apart.
    #[inline(always)]
    pub(super) fn per_plane(self, pitch: usize) -> Path<PerPlane<'a, T>> {
        self.map(|numbers| PerPlane { numbers, pitch })
    }

    #[inline(always)]
    fn map<P>(self, f: impl Fn(&'a [T]) -> P) -> Path<P> {
        let of = |s: Slopes<&'a [T]>| Slopes {
            first: f(s.first),
            second: f(s.second),
            is_scaled: f(s.is_scaled),
            rstd: f(s.rstd),
        };
        match self {
            Path::Frozen => Path::Frozen,
            Path::Direct(slopes) => Path::Direct(of(slopes)),
            Path::Scaled(slopes) => Path::Scaled(of(slopes)),
        }
    }
}

#[derive(Clone, Copy)]
struct Frozen<'a, T, P, const RELU: bool> {
    x: Rows<'a, T>,
    constants: Constants<P>,
}

struct FrozenLanes<'a, V: Lanes, const RELU: bool> {
    x: Rows<'a, V::Elem>,
    constants: Constants<V>,
}

impl<'a, V: Lanes, P: PerColumn<V>, const RELU: bool> Map<V> for Frozen<'a, V::Elem, P, RELU> {
    type Values = FrozenLanes<'a, V, RELU>;

    #[inline(always)]
    fn block(&self, rows: (usize, usize), cols: (usize, usize)) -> Self::Values {
        FrozenLanes { x: self.x.block(rows, cols), constants: self.constants.at(cols.0, cols.1.min(V::WIDTH)) }
    }
}

impl<V: Lanes, const RELU: bool> Values<V> for FrozenLanes<'_, V, RELU> {
    #[inline(always)]
    fn prefetch(&self, i: usize, j: usize) {
        if RELU {
            self.x.prefetch(i, j);
        }
    }
    #[inline(always)]
    fn pass(&mut self, len: usize) {
        self.x.pass(len);
    }
    #[inline(always)]
    fn at(&self, i: usize, j: usize, len: usize, dy: V) -> V {
        if !RELU {
            return self.constants.a * dy;
        }
        let x = V::load_up_to(self.x.slice(i, j, len));
        self.constants.a * masked::<V, RELU>(&self.constants, x, dy).0
    }
}

#[derive(Clone, Copy)]
struct Batch<'a, T, P, const RELU: bool, const SCALED: bool> {
    x: Rows<'a, T>,
    constants: Constants<P>,
    slopes: Slopes<P>,
}

struct BatchLanes<'a, V: Lanes, const RELU: bool, const SCALED: bool> {
    x: Rows<'a, V::Elem>,
    constants: Constants<V>,
    slopes: Slopes<V>,
    minus_first: V,
}

impl<'a, V: Lanes, P: PerColumn<V>, const RELU: bool, const SCALED: bool> Map<V>
    for Batch<'a, V::Elem, P, RELU, SCALED>
{
    type Values = BatchLanes<'a, V, RELU, SCALED>;

    #[inline(always)]
    fn block(&self, rows: (usize, usize), cols: (usize, usize)) -> Self::Values {
        let (j, len) = (cols.0, cols.1.min(V::WIDTH));
        let slopes = self.slopes.at(j, len);
        let minus_first = V::zero() - slopes.first;
        BatchLanes { x: self.x.block(rows, cols), constants: self.constants.at(j, len), slopes, minus_first }
    }
}

impl<V: Lanes, const RELU: bool, const SCALED: bool> Values<V> for BatchLanes<'_, V, RELU, SCALED> {
    #[inline(always)]
    fn prefetch(&self, i: usize, j: usize) {
        self.x.prefetch(i, j);
    }
    #[inline(always)]
    fn pass(&mut self, len: usize) {
        self.x.pass(len);
    }
    #[inline(always)]
    fn at(&self, i: usize, j: usize, len: usize, dy: V) -> V {
        let (a, slopes) = (self.constants.a, &self.slopes);
        let (dz, t) = masked::<V, RELU>(&self.constants, V::load_up_to(self.x.slice(i, j, len)), dy);
        let direct = a.mul_add(dz, self.minus_first.mul_add(t, slopes.second));
        if !SCALED {
            return direct;
        }
        // Both forms, and each lane takes its own, so that its neighbours do not matter.
        let scaled = a * (t * slopes.rstd).mul_add(self.minus_first, dz - slopes.second);
        V::select(slopes.is_scaled.le(V::zero()), direct, scaled)
    }
}

/// Input, upstream gradient (if it is not where the input gradient goes) and input gradient.
pub(super) struct Data<'a, T> {
    pub(super) x: Rows<'a, T>,
    pub(super) dy: Option<Rows<'a, T>>,
    pub(super) dx: RowsMut<'a, T>,
}

impl<T: Element> Data<'_, T> {
    /// `pitch`: as [`map::write`] takes it.
    #[inline(always)]
    pub(super) fn write<V: Lanes<Elem = T>, P: PerColumn<V>>(
        self,
        pitch: Option<usize>,
        reach: Reach,
        constants: Constants<P>,
        path: Path<P>,
        activation: Activation,
    ) {
        let Data { x, dy, dx } = self;
        macro_rules! by {
            ($map:ident<$($flag:literal),+> { $($slopes:ident)? }) => {
                map::write::<V, _>($map::<_, _, $($flag),+> { x, constants, $($slopes)? }, pitch, dy, dx, reach)
            };
        }
        match (path, activation) {
            (Path::Frozen, Activation::Identity) => by!(Frozen<false> {}),
            (Path::Frozen, Activation::Relu) => by!(Frozen<true> {}),
            (Path::Direct(slopes), Activation::Identity) => by!(Batch < false, false > { slopes }),
            (Path::Direct(slopes), Activation::Relu) => by!(Batch < true, false > { slopes }),
            (Path::Scaled(slopes), Activation::Identity) => by!(Batch < false, true > { slopes }),
            (Path::Scaled(slopes), Activation::Relu) => by!(Batch < true, true > { slopes }),
        }
    }
}
