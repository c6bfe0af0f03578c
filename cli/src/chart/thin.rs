//! Long series made short enough to draw, before any axis is fitted to them.

use super::{Figure, Series};

/// More points than this are thinned, to this many pieces: a plot is about 600 pixels wide.
const LONG: usize = 800;
const PIECES: usize = 400;

/// The figure with its long series cut into pieces, as [`Series`] says.
pub(super) fn thinned(figure: &Figure) -> Figure {
    let mut figure = figure.clone();
    for series in figure.panels.iter_mut().flat_map(|panel| &mut panel.series) {
        if series.points.len() > LONG {
            let length = series.points.len().div_ceil(PIECES);
            *series = match &series.band {
                Some(band) => averaged(series, band, length),
                None => Series { points: series.points.chunks(length).flat_map(extremes).collect(), ..series.clone() },
            };
        }
    }
    figure
}

/// One point for each piece: the mean of its finite points, or a gap.
fn averaged(series: &Series, band: &[(f64, f64)], length: usize) -> Series {
    let edges = band.chunks(length).map(mean).chain(std::iter::repeat((f64::NAN, f64::NAN)));
    let (points, band) = series.points.chunks(length).map(mean).zip(edges).unzip();
    Series { points, band: Some(band), name: series.name.clone(), form: series.form }
}

fn mean(pairs: &[(f64, f64)]) -> (f64, f64) {
    let seen = pairs.iter().filter(|pair| is_finite(pair));
    let (a, b, n) = seen.fold((0.0, 0.0, 0.0), |(a, b, n), pair| (a + pair.0, b + pair.1, n + 1.0));
    (a / n, b / n)
}

/// The first, lowest, highest and last finite points of a piece, in order, or a gap.
fn extremes(piece: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let seen: Vec<(f64, f64)> = piece.iter().copied().filter(is_finite).collect();
    let by_height = |&a: &usize, &b: &usize| seen[a].1.total_cmp(&seen[b].1);
    let lowest_and_highest = (0..seen.len()).min_by(by_height).zip((0..seen.len()).max_by(by_height));
    let Some((low, high)) = lowest_and_highest else { return vec![(f64::NAN, f64::NAN)] };
    let mut kept = vec![0, low, high, seen.len() - 1];
    kept.sort_unstable();
    kept.dedup();
    kept.into_iter().map(|i| seen[i]).collect()
}

fn is_finite(point: &(f64, f64)) -> bool {
    point.0.is_finite() && point.1.is_finite()
}

#[cfg(test)]
mod tests {
    use super::super::Panel;
    use super::*;

    fn long(band: bool, n: u32) -> Series {
        let points: Vec<(f64, f64)> = (0..n).map(|i| (f64::from(i), if i == 12_345 { 9.0 } else { 1.0 })).collect();
        let band = band.then(|| points.iter().map(|p| (p.1 - 1.0, p.1 + 1.0)).collect());
        Series { band, points, ..Series::default() }
    }

    fn thin(series: Series) -> Series {
        let panel = Panel { series: vec![series], ..Panel::default() };
        thinned(&Figure { panels: vec![panel], ..Figure::default() }).panels.remove(0).series.remove(0)
    }

    #[test]
    fn thinning_keeps_spikes_of_a_bare_line() {
        let thin = thin(long(false, 60_000));
        assert!(thin.points.len() <= 4 * PIECES);
        assert!(thin.points.contains(&(12_345.0, 9.0)));
        assert!(thin.points.is_sorted_by(|a, b| a.0 < b.0));
        assert_eq!(thin.points.last(), Some(&(59_999.0, 1.0)));
    }

    #[test]
    fn thinning_averages_a_banded_line() {
        let averaged = thin(long(true, 60_000));
        assert_eq!(averaged.points.len(), PIECES);
        assert_eq!(averaged.points[0], (74.5, 1.0));
        assert_eq!(averaged.band.unwrap()[0], (0.0, 2.0));
        assert_eq!(thin(long(true, 800)).points.len(), 800);
    }

    #[test]
    fn a_gap_survives_thinning() {
        for band in [false, true] {
            let mut series = long(band, 2_000);
            series.points[500..700].iter_mut().for_each(|p| p.1 = f64::NAN);
            let points = thin(series).points;
            let gaps = points.iter().filter(|p| p.1.is_nan()).count();
            assert_eq!(gaps, 40);
        }
    }
}
