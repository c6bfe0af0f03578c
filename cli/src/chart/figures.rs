//! The figures of `compare`, the same network trained with BatchNorm and without on the same batches, and of `bench`.

use super::{Axis, Figure, Form, Panel, Scale, Series, ShareY};

/// What one run scored after each epoch, the first at index 0; a value that is missing is NaN.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Epochs<'a> {
    /// "with BatchNorm" or "without".
    pub(crate) run: &'a str,
    pub(crate) train_loss: &'a [f64],
    pub(crate) validation_loss: &'a [f64],
    pub(crate) train_accuracy: &'a [f64],
    pub(crate) validation_accuracy: &'a [f64],
}

/// Mean and standard deviation of what one ReLU of one run receives, at some of the steps.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LayerTrace<'a> {
    pub(crate) run: &'a str,
    pub(crate) layer: &'a str,
    /// Step, mean, standard deviation.
    pub(crate) moments: &'a [(u64, f64, f64)],
}

/// Gradient norms of one layer of one run over one stretch of training: quantiles over its steps.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LayerNorms<'a> {
    pub(crate) run: &'a str,
    pub(crate) layer: &'a str,
    pub(crate) tenth: f64,
    pub(crate) median: f64,
    pub(crate) ninetieth: f64,
}

/// Four panels over the epochs: loss above, accuracy below; training on the left, validation on the right.
///
/// A row shares its axis, so training and validation compare by height; loss turns logarithmic when it spans more
/// than a factor of 20.
pub(crate) fn curves(title: &str, note: &str, runs: &[Epochs<'_>]) -> Figure {
    let panel = |title: &str, label: &str, scale: Scale, values: fn(&Epochs<'_>) -> Vec<f64>| Panel {
        title: title.to_owned(),
        x: axis("epoch", Scale::Whole),
        y: axis(label, scale),
        series: runs
            .iter()
            .map(|run| Series { name: run.run.to_owned(), points: counted(values(run)), ..Series::default() })
            .collect(),
    };
    Figure {
        title: title.to_owned(),
        note: note.to_owned(),
        columns: 2,
        share_y: ShareY::Row,
        panels: vec![
            panel("Training loss", "loss", Scale::Auto, |run| run.train_loss.to_vec()),
            panel("Validation loss", "loss", Scale::Auto, |run| run.validation_loss.to_vec()),
            panel("Training accuracy", "accuracy", Scale::Linear, |run| run.train_accuracy.to_vec()),
            panel("Validation accuracy", "accuracy", Scale::Linear, |run| run.validation_accuracy.to_vec()),
        ],
    }
}

/// One row per hidden layer and one column per run: how the distribution that ReLU receives moves during training.
///
/// The line is the mean, the band one standard deviation to either side. A row shares its axis, so a layer that
/// holds still in one run and wanders in the other shows at a glance. Layers and runs keep the order in which they
/// first appear; a pair that is not there leaves its panel empty.
pub(crate) fn drift(title: &str, note: &str, traces: &[LayerTrace<'_>]) -> Figure {
    let runs = in_order(traces.iter().map(|trace| trace.run));
    let layers = in_order(traces.iter().map(|trace| trace.layer));
    let panel = |layer: &str, run: &str| {
        let moments = traces.iter().find(|t| t.layer == layer && t.run == run).map_or(&[][..], |t| t.moments);
        let at = |step: u64| step as f64;
        Panel {
            title: format!("{layer}, {run}"),
            x: axis("training step", Scale::Whole),
            y: axis("pre-activation", Scale::Linear),
            series: vec![Series {
                name: run.to_owned(),
                points: moments.iter().map(|&(step, mean, _)| (at(step), mean)).collect(),
                band: Some(moments.iter().map(|&(_, mean, std)| (mean - std, mean + std)).collect()),
                ..Series::default()
            }],
        }
    };
    Figure {
        title: title.to_owned(),
        note: note.to_owned(),
        columns: runs.len(),
        share_y: ShareY::Row,
        panels: layers.iter().flat_map(|layer| runs.iter().map(|run| panel(layer, run))).collect(),
    }
}

/// One panel per stretch of training (its title and its norms): the norm of the gradient over the depth of the network.
///
/// The line is the median over the steps, the band reaches from the 10th to the 90th percentile. All panels share one
/// logarithmic axis. Layers stand in the order in which they first appear, input first.
pub(crate) fn gradients(title: &str, note: &str, stretches: &[(&str, &[LayerNorms<'_>])]) -> Figure {
    let layers = in_order(stretches.iter().flat_map(|(_, norms)| norms.iter().map(|n| n.layer)));
    let runs = in_order(stretches.iter().flat_map(|(_, norms)| norms.iter().map(|n| n.run)));
    let series = |norms: &[LayerNorms<'_>], run: &str| {
        let of = |layer: &str| norms.iter().find(|n| n.run == run && n.layer == layer);
        let value = |layer: &str, pick: fn(&LayerNorms<'_>) -> f64| of(layer).map_or(f64::NAN, pick);
        Series {
            name: run.to_owned(),
            points: counted(layers.iter().map(|l| value(l, |n| n.median))),
            band: Some(layers.iter().map(|l| (value(l, |n| n.tenth), value(l, |n| n.ninetieth))).collect()),
            ..Series::default()
        }
    };
    let panel = |&(title, norms): &(&str, &[LayerNorms<'_>])| Panel {
        title: title.to_owned(),
        x: axis("layer, from input to output", Scale::Names(layers.iter().map(|&l| l.to_owned()).collect())),
        y: axis("gradient norm", Scale::Log),
        series: runs.iter().map(|run| series(norms, run)).collect(),
    };
    Figure {
        title: title.to_owned(),
        note: note.to_owned(),
        columns: stretches.len(),
        share_y: ShareY::All,
        panels: stretches.iter().map(panel).collect(),
    }
}

/// Rates of products, or of steps, with one number of threads.
pub(crate) struct Rates {
    pub(crate) title: String,
    /// What the shapes are.
    pub(crate) label: &'static str,
    pub(crate) shapes: Vec<String>,
    /// Who, and GFLOP/s for each shape; NaN where there is none.
    pub(crate) rates: Vec<(String, Vec<f64>)>,
    /// What the machine could have done.
    pub(crate) peak: (String, Vec<f64>),
}

/// Points over the shapes, and a line for the peak.
pub(crate) fn rates(title: &str, note: &str, columns: usize, groups: Vec<Rates>) -> Figure {
    let panel = |group: Rates| {
        let series =
            |(name, rates): (String, Vec<f64>), form| Series { name, points: counted(rates), form, band: None };
        Panel {
            title: group.title,
            x: axis(group.label, Scale::Names(group.shapes)),
            y: axis("GFLOP/s", Scale::FromZero),
            series: std::iter::once(series(group.peak, Form::Line))
                .chain(group.rates.into_iter().map(|rates| series(rates, Form::Points)))
                .collect(),
        }
    };
    Figure {
        title: title.to_owned(),
        note: note.to_owned(),
        columns,
        share_y: ShareY::Nothing,
        panels: groups.into_iter().map(panel).collect(),
    }
}

/// Rates of one pass on one number of threads, over the memory that it touches.
pub(crate) struct Roofline {
    pub(crate) title: String,
    /// Who, and bytes with GB/s; NaN where there is none.
    pub(crate) rates: Vec<(String, Vec<(f64, f64)>)>,
    /// What the machine could have done.
    pub(crate) roof: Vec<(f64, f64)>,
}

/// Points over the working set below a line for the roof, all panels on the same axes.
pub(crate) fn rooflines(title: &str, note: &str, panels: Vec<Roofline>) -> Figure {
    const MIB: f64 = 1024.0 * 1024.0;
    let panel = |panel: Roofline| {
        let series = |(name, points): (String, Vec<(f64, f64)>), form| Series {
            name,
            points: points.into_iter().map(|(bytes, rate)| (bytes / MIB, rate)).collect(),
            form,
            band: None,
        };
        let drawn = panel.rates.into_iter().filter(|(_, points)| points.iter().any(|(_, rate)| rate.is_finite()));
        Panel {
            title: panel.title,
            x: axis("memory that the pass touches, MiB", Scale::Log),
            y: axis("GB/s", Scale::Log),
            series: std::iter::once(series(("roof".to_owned(), as_line(panel.roof)), Form::Line))
                .chain(drawn.map(|rates| series(rates, Form::Points)))
                .collect(),
        }
    };
    Figure {
        title: title.to_owned(),
        note: note.to_owned(),
        columns: if panels.len() == 1 { 1 } else { 2 },
        share_y: ShareY::All,
        panels: panels.into_iter().map(panel).collect(),
    }
}

/// Points at one x as a line to both sides of the highest, a tenth of an octave far; others as they are.
fn as_line(points: Vec<(f64, f64)>) -> Vec<(f64, f64)> {
    let Some(&(x, _)) = points.first().filter(|first| points.iter().all(|point| point.0 == first.0)) else {
        return points;
    };
    let (highest, aside) = (points.iter().fold(f64::MIN, |highest, point| highest.max(point.1)), 0.1f64.exp2());
    vec![(x / aside, highest), (x * aside, highest)]
}

/// Points at 1, 2, 3 and so on.
fn counted(values: impl IntoIterator<Item = f64>) -> Vec<(f64, f64)> {
    values.into_iter().enumerate().map(|(i, value)| ((i + 1) as f64, value)).collect()
}

fn axis(label: &str, scale: Scale) -> Axis {
    Axis { label: label.to_owned(), scale }
}

/// Each name once, in order of first appearance.
fn in_order<'a>(names: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut seen = Vec::new();
    for name in names {
        if !seen.contains(&name) {
            seen.push(name);
        }
    }
    seen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_roof_at_one_size_is_a_line_at_its_highest() {
        let line = as_line(vec![(4.0, 1.0), (4.0, 3.0), (4.0, 2.0)]);
        assert!(line.len() == 2 && line[0].0 < 4.0 && line[1].0 > 4.0 && line.iter().all(|point| point.1 == 3.0));
        assert_eq!(as_line(vec![(4.0, 1.0), (5.0, 3.0)]), [(4.0, 1.0), (5.0, 3.0)]);
        assert_eq!(as_line(Vec::new()), []);
    }
}
