//! A figure laid out on a page and painted as SVG, still with text elements.
//!
//! Distances are pixels of the finished picture. The canvas has ten units to the pixel, because the painter rounds
//! to whole units.

use plotters::coord::Shift;
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::axis::Ruler;
use super::render::{FAMILY, text_width};
use super::thin::thinned;
use super::{Axis, ChartError, Figure, Form, Panel, Scale, Series, ShareY};

/// Canvas units per pixel.
const UNITS: f64 = 10.0;
const MARGIN: f64 = 30.0;
/// Between two columns, and between two rows.
const GAP: f64 = 34.0;
const TITLE: f64 = 25.0;
const HEADING: f64 = 18.0;
const BODY: f64 = 16.0;
const TICK: f64 = 15.0;
/// From a tick label to its axis.
const TICK_GAP: f64 = 9.0;
/// Room below a plot for its tick labels, and for the name of its axis.
const TICK_ROOM: f64 = 29.0;
const LABEL_ROOM: f64 = 26.0;
const HEADING_ROOM: f64 = 32.0;
const TITLE_HEIGHT: f64 = 32.0;
const LINE_HEIGHT: f64 = 24.0;
const SWATCH: f64 = 38.0;
/// No taller page is drawn; a picture of more rows than this fits cannot be read anyway.
const MAX_HEIGHT: f64 = 20_000.0;

/// More points than this go without markers.
const MARKED: usize = 60;

const INK: RGBColor = RGBColor(0x22, 0x22, 0x22);
const SOFT: RGBColor = RGBColor(0x5c, 0x5c, 0x5c);
const AXIS: RGBColor = RGBColor(0x8a, 0x8a, 0x8a);
const GRID: RGBColor = RGBColor(0xe2, 0xe2, 0xe2);
const FAINT: RGBColor = RGBColor(0xf2, 0xf2, 0xf2);

/// Okabe and Ito's palette, less yellow: told apart with any colour vision, and in print.
const PALETTE: [RGBColor; 7] = [
    RGBColor(0x00, 0x72, 0xb2),
    RGBColor(0xd5, 0x5e, 0x00),
    RGBColor(0x00, 0x9e, 0x73),
    RGBColor(0xcc, 0x79, 0xa7),
    RGBColor(0x56, 0xb4, 0xe9),
    RGBColor(0xe6, 0x9f, 0x00),
    RGBColor(0x00, 0x00, 0x00),
];

type Page<'a> = DrawingArea<SVGBackend<'a>, Shift>;
/// From drawn coordinates to the canvas.
type Spec = Cartesian2d<RangedCoordf64, RangedCoordf64>;
type Painted = Result<(), ChartError>;

/// A rectangle of the page, in pixels.
#[derive(Debug, Clone, Copy)]
struct Frame {
    left: f64,
    top: f64,
    right: f64,
    bottom: f64,
}

/// What sets a series apart from the others; it goes by name.
#[derive(Debug, Clone)]
struct Look {
    name: String,
    colour: RGBColor,
    marker: usize,
    marked: bool,
    lined: bool,
    band: bool,
}

/// A panel with its axes fitted; `None` where there is nothing to draw.
struct Fitted<'a> {
    panel: &'a Panel,
    axes: Option<(Ruler, Ruler)>,
}

impl Fitted<'_> {
    /// How the labels below the plot are set: whether they are turned, their greatest length, and every which tick has one.
    fn labels(&self, plot_width: f64) -> (bool, f64, usize) {
        let Some((x, _)) = &self.axes else { return (false, 0.0, 1) };
        let longest = x.ticks.iter().map(|tick| text_width(&tick.label, TICK, false)).fold(0.0, f64::max);
        let scale = plot_width / (x.high - x.low);
        let spacing = x.ticks.windows(2).map(|t| scale * (t[1].at - t[0].at)).fold(f64::INFINITY, f64::min);
        let every = |room: f64| (1..x.ticks.len()).find(|&k| spacing * k as f64 > room).unwrap_or(x.ticks.len().max(1));
        let upright = every(longest + 10.0);
        let turned = upright > 1 && matches!(self.panel.x.scale, Scale::Names(_));
        (turned, longest, if turned { every(1.1 * TICK) } else { upright })
    }

    fn tick_room(&self, plot_width: f64) -> f64 {
        let (turned, longest, _) = self.labels(plot_width);
        if turned { TICK_GAP + longest + 6.0 } else { TICK_ROOM }
    }
}

/// Where things stand, the same for every row.
struct Grid {
    width: f64,
    columns: usize,
    rows: usize,
    plot_width: f64,
    plot_height: f64,
    /// Left edge of each column's plots.
    lefts: Vec<f64>,
    /// Room left of each column's plots.
    gutters: Vec<f64>,
    /// Room below each row's plots for the labels of ticks.
    tick_rooms: Vec<f64>,
}

pub(super) fn paint(figure: &Figure) -> Result<String, ChartError> {
    if figure.panels.is_empty() || figure.columns == 0 {
        return Err(ChartError::Draw("it has no panels or no columns".to_owned()));
    }
    let figure = &thinned(figure);
    let panels = fit(figure);
    let grid = Grid::new(figure, &panels);
    let looks = looks(&figure.panels);
    let header = Header::new(figure, &looks, grid.width - 2.0 * MARGIN);
    let tops = row_tops(figure, &grid, header.bottom() + 12.0);
    let last_bottom = tops[grid.rows - 1] + grid.plot_height;
    let height = (last_bottom + grid.tick_rooms[grid.rows - 1] + LABEL_ROOM + 0.7 * MARGIN).ceil();
    if height > MAX_HEIGHT {
        return Err(ChartError::Draw(format!("{} panels do not fit on one page", figure.panels.len())));
    }

    let (wide, high) = (canvas(grid.width), canvas(height));
    let mut svg = String::new();
    {
        let page = SVGBackend::with_string(&mut svg, (wide.unsigned_abs(), high.unsigned_abs())).into_drawing_area();
        page.fill(&WHITE).map_err(failed)?;
        header.paint(&page)?;
        for (i, fitted) in panels.iter().enumerate() {
            let (row, column) = (i / grid.columns, i % grid.columns);
            let (left, top) = (grid.lefts[column], tops[row]);
            let frame = Frame { left, top, right: left + grid.plot_width, bottom: top + grid.plot_height };
            paint_panel(&page, fitted, frame, &looks)?;
            if labels_x(figure, i) {
                let middle = (frame.left + frame.right) / 2.0;
                let baseline = frame.bottom + grid.tick_rooms[row] + 0.9 * BODY;
                let label = axis_label(&fitted.panel.x, fitted.axes.as_ref().is_some_and(|(x, _)| x.log));
                text(&page, &label, (middle, baseline), Type { anchor: HPos::Center, ..Type::new(BODY, SOFT) })?;
            }
            if labels_y(figure, i) {
                let label = axis_label(&fitted.panel.y, fitted.axes.as_ref().is_some_and(|(_, y)| y.log));
                let at = (frame.left - grid.gutters[column] + 0.8 * BODY, (frame.top + frame.bottom) / 2.0);
                text(&page, &label, at, Type { anchor: HPos::Center, upright: false, ..Type::new(BODY, SOFT) })?;
            }
        }
        page.present().map_err(failed)?;
    }
    // The finished picture is `UNITS` times smaller than the canvas it was painted on.
    let canvas_size = format!("width=\"{wide}\" height=\"{high}\"");
    Ok(svg.replacen(&canvas_size, &format!("width=\"{}\" height=\"{height}\"", grid.width), 1))
}

fn fit(figure: &Figure) -> Vec<Fitted<'_>> {
    let together = |i: usize, j: usize| match figure.share_y {
        ShareY::Nothing => i == j,
        ShareY::Row => i / figure.columns == j / figure.columns,
        ShareY::All => true,
    };
    let fit = |(i, panel): (usize, &'_ Panel)| {
        let xs: Vec<f64> = panel.series.iter().flat_map(|s| s.points.iter().map(|p| p.0)).collect();
        let group = figure.panels.iter().enumerate().filter(|&(j, _)| together(i, j));
        let series: Vec<&Series> = group.flat_map(|(_, panel)| &panel.series).collect();
        let lines: Vec<f64> = series.iter().flat_map(|s| s.points.iter().map(|p| p.1)).collect();
        let bands = series.iter().flat_map(|s| s.band.iter().flatten().flat_map(|&(low, high)| [low, high]));
        let all: Vec<f64> = lines.iter().copied().chain(bands).collect();
        let y_ticks = if figure.panels.len() > 2 * figure.columns { 4 } else { 5 };
        let x = Ruler::fit(&panel.x.scale, &xs, &xs, 6)?;
        let y = Ruler::fit(&panel.y.scale, &lines, &all, y_ticks)?;
        Some((x, y))
    };
    figure.panels.iter().enumerate().map(|panel| Fitted { panel: panel.1, axes: fit(panel) }).collect()
}

impl Grid {
    fn new(figure: &Figure, panels: &[Fitted<'_>]) -> Grid {
        let columns = figure.columns.min(panels.len());
        let rows = panels.len().div_ceil(columns);
        let width = if columns == 1 { 900.0 } else { 1400.0 };
        let plot_height = [460.0, 300.0, 220.0][rows.min(3) - 1];
        let gutters: Vec<f64> = (0..columns)
            .map(|column| {
                let of_column = || (column..panels.len()).step_by(columns);
                let ticks = of_column().filter_map(|i| panels[i].axes.as_ref()).flat_map(|(_, y)| &y.ticks);
                let widest = ticks.map(|tick| text_width(&tick.label, TICK, false)).fold(0.0, f64::max);
                widest + TICK_GAP + if of_column().any(|i| labels_y(figure, i)) { 1.7 * BODY } else { 0.0 }
            })
            .collect();
        let taken: f64 = gutters.iter().sum::<f64>() + GAP * (columns - 1) as f64 + 2.0 * MARGIN;
        let plot_width = ((width - taken) / columns as f64).max(40.0);
        let mut left = MARGIN;
        let lefts = gutters
            .iter()
            .map(|gutter| {
                let plot = left + gutter;
                left = plot + plot_width + GAP;
                plot
            })
            .collect();
        let tick_room =
            |row: &[Fitted<'_>]| row.iter().map(|fitted| fitted.tick_room(plot_width)).fold(TICK_ROOM, f64::max);
        let tick_rooms = panels.chunks(columns).map(tick_room).collect();
        Grid { width, columns, rows, plot_width, plot_height, lefts, gutters, tick_rooms }
    }
}

/// What stands above the panels, broken into lines.
struct Header<'a> {
    titles: Vec<String>,
    notes: Vec<String>,
    legend: Vec<Vec<&'a Look>>,
}

impl<'a> Header<'a> {
    fn new(figure: &Figure, looks: &'a [Look], room: f64) -> Header<'a> {
        Header {
            titles: wrap(&figure.title, TITLE, true, room),
            notes: wrap(&figure.note, BODY, false, room),
            legend: legend_rows(looks, room),
        }
    }

    fn legend_top(&self) -> f64 {
        MARGIN + self.titles.len() as f64 * TITLE_HEIGHT + self.notes.len() as f64 * LINE_HEIGHT + 6.0
    }

    fn bottom(&self) -> f64 {
        self.legend_top() + self.legend.len() as f64 * LINE_HEIGHT
    }

    fn paint(&self, page: &Page<'_>) -> Painted {
        let mut y = MARGIN;
        for line in &self.titles {
            text(page, line, (MARGIN, y + 0.8 * TITLE), Type { bold: true, ..Type::new(TITLE, INK) })?;
            y += TITLE_HEIGHT;
        }
        for line in &self.notes {
            text(page, line, (MARGIN, y + 0.9 * BODY), Type::new(BODY, SOFT))?;
            y += LINE_HEIGHT;
        }
        let mut y = self.legend_top() + 0.5 * LINE_HEIGHT;
        for row in &self.legend {
            let mut x = MARGIN;
            for look in row {
                paint_key(page, look, x, y)?;
                text(page, &look.name, (x + SWATCH + 8.0, y + 0.36 * BODY), Type::new(BODY, INK))?;
                x += key_width(look);
            }
            y += LINE_HEIGHT;
        }
        Ok(())
    }
}

fn row_tops(figure: &Figure, grid: &Grid, header: f64) -> Vec<f64> {
    let mut tops = Vec::new();
    let mut y = header;
    for row in 0..grid.rows {
        y += HEADING_ROOM;
        tops.push(y);
        let of_row = row * grid.columns..((row + 1) * grid.columns).min(figure.panels.len());
        let labelled = of_row.into_iter().any(|i| labels_x(figure, i));
        y += grid.plot_height + grid.tick_rooms[row] + if labelled { LABEL_ROOM } else { 0.0 } + 0.4 * GAP;
    }
    tops
}

/// The name of the x axis stands once per column if the panels below repeat it.
fn labels_x(figure: &Figure, i: usize) -> bool {
    let below = figure.panels.get(i + figure.columns);
    !figure.panels[i].x.label.is_empty() && below.is_none_or(|below| below.x != figure.panels[i].x)
}

/// The name of the y axis stands once per row if the panel to the left shares axis and name.
fn labels_y(figure: &Figure, i: usize) -> bool {
    let repeats = figure.share_y != ShareY::Nothing
        && !i.is_multiple_of(figure.columns)
        && figure.panels[i - 1].y.label == figure.panels[i].y.label;
    !figure.panels[i].y.label.is_empty() && !repeats
}

fn axis_label(axis: &Axis, log: bool) -> String {
    if log { format!("{} (log scale)", axis.label) } else { axis.label.clone() }
}

fn looks(panels: &[Panel]) -> Vec<Look> {
    let mut looks: Vec<Look> = Vec::new();
    for series in panels.iter().flat_map(|panel| &panel.series) {
        let at = looks.iter().position(|look| look.name == series.name).unwrap_or_else(|| {
            let (name, colour) = (series.name.clone(), PALETTE[looks.len() % PALETTE.len()]);
            looks.push(Look { name, colour, marker: looks.len(), marked: false, lined: false, band: false });
            looks.len() - 1
        });
        looks[at].marked |= is_marked(series, series.points.len());
        looks[at].lined |= series.form != Form::Points;
        looks[at].band |= series.band.is_some();
    }
    looks
}

/// Whether a series of which so many points are drawn gets markers.
fn is_marked(series: &Series, points: usize) -> bool {
    match series.form {
        Form::Marked => points <= MARKED,
        Form::Line => false,
        Form::Points => true,
    }
}

fn key_width(look: &Look) -> f64 {
    SWATCH + 8.0 + text_width(&look.name, BODY, false) + 30.0
}

fn legend_rows(looks: &[Look], room: f64) -> Vec<Vec<&Look>> {
    let mut rows: Vec<Vec<&Look>> = Vec::new();
    let mut used = f64::INFINITY;
    for look in looks.iter().filter(|look| !look.name.is_empty()) {
        let width = key_width(look);
        if used + width > room {
            rows.push(Vec::new());
            used = 0.0;
        }
        used += width;
        rows.last_mut().into_iter().for_each(|row| row.push(look));
    }
    rows
}

fn paint_key(page: &Page<'_>, look: &Look, x: f64, y: f64) -> Painted {
    if look.band {
        let corners = [(canvas(x), canvas(y - 8.0)), (canvas(x + SWATCH), canvas(y + 8.0))];
        page.draw(&Rectangle::new(corners, look.colour.mix(0.2).filled())).map_err(failed)?;
    }
    if look.lined {
        line(page, (x, y), (x + SWATCH, y), stroke(look.colour, 2.4))?;
    }
    if look.marked { paint_marker(page, look, (canvas(x + SWATCH / 2.0), canvas(y)), 5.0) } else { Ok(()) }
}

fn paint_panel(page: &Page<'_>, fitted: &Fitted<'_>, frame: Frame, looks: &[Look]) -> Painted {
    let title = Type { bold: true, ..Type::new(HEADING, INK) };
    text(page, &fitted.panel.title, (frame.left, frame.top - 11.0), title)?;
    let Some((x, y)) = &fitted.axes else {
        let middle = ((frame.left + frame.right) / 2.0, (frame.top + frame.bottom) / 2.0);
        let values = fitted.panel.series.iter().flat_map(|series| &series.points);
        let absent = what_is_absent(values.map(|&(_, y)| y));
        text(page, absent, middle, Type { anchor: HPos::Center, ..Type::new(BODY, SOFT) })?;
        return axes(page, frame);
    };
    let spec = Spec::new(
        x.low..x.high,
        y.low..y.high,
        (canvas(frame.left)..canvas(frame.right), canvas(frame.bottom)..canvas(frame.top)),
    );
    // Straight furniture goes on half pixels, where a thin line stays sharp.
    let across = |at: f64| (f64::from(spec.translate(&(at, y.low)).0) / UNITS).floor() + 0.5;
    let up = |at: f64| (f64::from(spec.translate(&(x.low, at)).1) / UNITS).floor() + 0.5;
    let (turned, _, every) = fitted.labels(frame.right - frame.left);
    for (i, tick) in x.ticks.iter().enumerate() {
        line(page, (across(tick.at), frame.top), (across(tick.at), frame.bottom), stroke(GRID, 1.0))?;
        if i % every == 0 {
            let (at, anchor) = match turned {
                true => ((across(tick.at) + 0.36 * TICK, frame.bottom + TICK_GAP), HPos::Right),
                false => ((across(tick.at), frame.bottom + TICK_GAP + 0.8 * TICK), HPos::Center),
            };
            text(page, &tick.label, at, Type { anchor, upright: !turned, ..Type::new(TICK, SOFT) })?;
        }
    }
    for &at in &y.minor {
        line(page, (frame.left, up(at)), (frame.right, up(at)), stroke(FAINT, 1.0))?;
    }
    for tick in &y.ticks {
        // Zero is worth finding: it is where ReLU cuts.
        let crossed = tick.at == 0.0 && !y.log && y.low < 0.0;
        let style = if crossed { stroke(AXIS, 1.0) } else { stroke(GRID, 1.0) };
        line(page, (frame.left, up(tick.at)), (frame.right, up(tick.at)), style)?;
        let at = (frame.left - TICK_GAP, up(tick.at) + 0.36 * TICK);
        text(page, &tick.label, at, Type { anchor: HPos::Right, ..Type::new(TICK, SOFT) })?;
    }
    axes(page, frame)?;

    let looked = |series: &Series| looks.iter().find(|look| look.name == series.name);
    let drawn: Vec<(&Series, &Look, Vec<Vec<Mark>>)> =
        fitted.panel.series.iter().filter_map(|s| Some((s, looked(s)?, runs(&marks(s, x, y))))).collect();
    for (_, look, runs) in &drawn {
        runs.iter().try_for_each(|run| paint_band(page, &spec, look, run))?;
    }
    // A line that cannot be drawn is put into words: on a logarithmic axis zero has no place.
    let mut said_at = frame.top;
    for (series, ..) in drawn.iter().filter(|(_, _, runs)| runs.iter().all(Vec::is_empty)) {
        said_at += 22.0;
        let words = format!("{}: {}", series.name, what_is_absent(series.points.iter().map(|&(_, y)| y)));
        text(page, &words, (frame.left + 12.0, said_at), Type::new(BODY, SOFT))?;
    }
    for (series, look, runs) in &drawn {
        let points: usize = runs.iter().map(Vec::len).sum();
        for run in runs {
            let path: Vec<(i32, i32)> = run.iter().map(|mark| spec.translate(&mark.at)).collect();
            let width = if points > MARKED { 1.6 } else { 2.4 };
            if path.len() > 1 && series.form != Form::Points {
                page.draw(&PathElement::new(path.clone(), stroke(look.colour, width))).map_err(failed)?;
            }
            if is_marked(series, points) || path.len() == 1 {
                let radius = if points <= 25 { 4.5 } else { 3.2 };
                path.iter().try_for_each(|&at| paint_marker(page, look, at, radius))?;
            }
        }
    }
    Ok(())
}

/// Why there is nothing to draw.
fn what_is_absent(mut values: impl Iterator<Item = f64>) -> &'static str {
    if values.all(|y| y == 0.0) { "0 throughout" } else { "no values that can be drawn" }
}

/// The left and the lower edge of a plot.
fn axes(page: &Page<'_>, frame: Frame) -> Painted {
    let (left, bottom) = (frame.left.floor() + 0.5, frame.bottom.floor() + 0.5);
    line(page, (left, frame.top), (left, bottom), stroke(AXIS, 1.0))?;
    line(page, (left, bottom), (frame.right, bottom), stroke(AXIS, 1.0))
}

fn paint_band(page: &Page<'_>, spec: &Spec, look: &Look, run: &[Mark]) -> Painted {
    for part in run.split(|mark| mark.band.is_none()) {
        let low = part.iter().filter_map(|mark| Some((mark.at.0, mark.band?.0)));
        let high = part.iter().filter_map(|mark| Some((mark.at.0, mark.band?.1)));
        let outline: Vec<(i32, i32)> = low.chain(high.rev()).map(|at| spec.translate(&at)).collect();
        if part.len() == 1 {
            page.draw(&PathElement::new(outline, stroke(look.colour.mix(0.35), 5.0))).map_err(failed)?;
        } else if part.len() > 1 {
            page.draw(&Polygon::new(outline, look.colour.mix(0.2).filled())).map_err(failed)?;
        }
    }
    Ok(())
}

/// A point in drawn coordinates.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Mark {
    at: (f64, f64),
    band: Option<(f64, f64)>,
}

/// The points of a series in drawn coordinates; `None` is a gap.
fn marks(series: &Series, x: &Ruler, y: &Ruler) -> Vec<Option<Mark>> {
    // An edge at or below zero on a logarithmic axis lies beyond the foot of the plot.
    let edge = |v: f64| if y.log && v <= 0.0 { Some(y.low) } else { y.place(v) };
    let band = |i: usize| {
        let &(low, high) = series.band.as_ref()?.get(i)?;
        Some((edge(low)?, edge(high)?))
    };
    let mark = |(i, &(px, py)): (usize, &(f64, f64))| Some(Mark { at: (x.place(px)?, y.place(py)?), band: band(i) });
    series.points.iter().enumerate().map(mark).collect()
}

/// Stretches without a gap.
fn runs(marks: &[Option<Mark>]) -> Vec<Vec<Mark>> {
    let stretches = marks.split(Option::is_none).map(|run| run.iter().flatten().copied().collect::<Vec<_>>());
    stretches.filter(|run| !run.is_empty()).collect()
}

/// A filled shape around a point of the canvas: disc, square, triangle or diamond, over and over.
fn paint_marker(page: &Page<'_>, look: &Look, (x, y): (i32, i32), radius: f64) -> Painted {
    let fill = look.colour.filled();
    // Corners as directions from the centre, longer where the shape is slimmer: all markers cover about the same area.
    let corners: &[(f64, f64)] = match look.marker % 4 {
        0 => return page.draw(&Circle::new((x, y), canvas(radius), fill)).map_err(failed),
        1 => &[(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)],
        2 => &[(0.0, -1.3), (1.15, 0.8), (-1.15, 0.8)],
        _ => &[(0.0, -1.3), (1.3, 0.0), (0.0, 1.3), (-1.3, 0.0)],
    };
    let corners: Vec<(i32, i32)> =
        corners.iter().map(|c| (x + canvas(c.0 * radius), y + canvas(c.1 * radius))).collect();
    page.draw(&Polygon::new(corners, fill)).map_err(failed)
}

/// How a line of text is set.
#[derive(Clone)]
struct Type {
    size: f64,
    colour: RGBColor,
    bold: bool,
    anchor: HPos,
    /// Or turned, reading upwards.
    upright: bool,
}

impl Type {
    fn new(size: f64, colour: RGBColor) -> Type {
        Type { size, colour, bold: false, anchor: HPos::Left, upright: true }
    }
}

/// Sets a line of text; `at` is on its baseline.
fn text(page: &Page<'_>, line: &str, at: (f64, f64), set: Type) -> Painted {
    // The backend divides sizes by 1.24, and moves text that hangs from its top down by 0.76 em.
    let font = (FAMILY, set.size * UNITS * 1.24).into_font();
    let font = if set.bold { font.style(FontStyle::Bold) } else { font };
    let font = if set.upright { font } else { font.transform(FontTransform::Rotate270) };
    let lift = 0.76 * set.size;
    let at = if set.upright { (at.0, at.1 - lift) } else { (at.0 - lift, at.1) };
    let style = TextStyle::from(font).color(&set.colour).pos(Pos::new(set.anchor, VPos::Top));
    // Control characters may not stand in an SVG document.
    let line: String = line.chars().filter(|c| !c.is_control()).collect();
    page.draw_text(&line, &style, (canvas(at.0), canvas(at.1))).map_err(failed)
}

fn line(page: &Page<'_>, from: (f64, f64), to: (f64, f64), style: ShapeStyle) -> Painted {
    let ends = [(canvas(from.0), canvas(from.1)), (canvas(to.0), canvas(to.1))];
    page.draw(&PathElement::new(ends, style)).map_err(failed)
}

fn stroke(colour: impl Color, width: f64) -> ShapeStyle {
    colour.stroke_width(canvas(width).unsigned_abs())
}

/// Breaks text between words so that no line is wider than `room`, if its words allow.
fn wrap(text: &str, size: f64, bold: bool, room: f64) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if text_width(&format!("{line} {word}"), size, bold) <= room => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

#[expect(clippy::cast_possible_truncation, reason = "a page is at most 20,000 pixels long, and `as` saturates")]
fn canvas(pixels: f64) -> i32 {
    (pixels * UNITS).round() as i32
}

fn failed(error: impl std::fmt::Display) -> ChartError {
    ChartError::Draw(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::super::Scale;
    use super::*;

    fn ruler(scale: Scale) -> Ruler {
        Ruler::fit(&scale, &[], &[1e-3, 1e6], 5).unwrap()
    }

    #[test]
    fn gaps_split_a_line() {
        let linear = ruler(Scale::Linear);
        let series = Series { points: vec![(1.0, 1.0), (2.0, f64::NAN), (3.0, 1.0), (4.0, 2.0)], ..Series::default() };
        let lengths: Vec<usize> = runs(&marks(&series, &linear, &linear)).iter().map(Vec::len).collect();
        assert_eq!(lengths, [1, 2]);
    }

    #[test]
    fn a_band_below_zero_reaches_the_foot_of_a_logarithmic_axis() {
        let log = ruler(Scale::Log);
        let series = Series { points: vec![(1.0, 1.0)], band: Some(vec![(-1.0, 10.0)]), ..Series::default() };
        assert_eq!(marks(&series, &log, &log)[0].unwrap().band, Some((log.low, 1.0)));
    }

    #[test]
    fn panels_share_the_axis_they_should() {
        let panel = |height: f64| Panel {
            series: vec![Series { points: vec![(0.0, 0.0), (1.0, height)], ..Series::default() }],
            ..Panel::default()
        };
        let mut figure = Figure { columns: 2, panels: [1.0, 2.0, 3.0, 4.0].map(panel).into(), ..Figure::default() };
        let mut highs = |share_y| -> Vec<f64> {
            figure.share_y = share_y;
            fit(&figure).into_iter().map(|fitted| fitted.axes.unwrap().1.high).collect()
        };
        assert_eq!(highs(ShareY::Nothing), [1.05, 2.1, 3.15, 4.2]);
        assert_eq!(highs(ShareY::Row), [2.1, 2.1, 4.2, 4.2]);
        assert_eq!(highs(ShareY::All), [4.2; 4]);
    }

    #[test]
    fn text_wraps_between_words() {
        assert_eq!(wrap("one two  three", BODY, false, 1e3), ["one two three"]);
        assert_eq!(wrap("one two three", BODY, false, 70.0), ["one two", "three"]);
        assert!(wrap("", BODY, false, 70.0).is_empty());
    }
}
