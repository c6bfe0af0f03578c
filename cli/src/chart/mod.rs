//! Pictures of numbers: panels of series in, one SVG and one PNG out.
//!
//! A [`Figure`] is plain data and knows nothing of training; `figures` builds the ones that the commands show.
//!
//! | step | file | what it settles |
//! |---|---|---|
//! | thin | `thin` | which points of a long series are drawn |
//! | fit | `axis` | range, ticks and labels of each axis |
//! | paint | `paint` | where everything stands on the page |
//! | render | `render` | text becomes outlines of the font that travels with the command; SVG text and PNG bytes |
//!
//! The same figure gives the same bytes: no system font is looked for, no time or random name is
//! written, and the SVG holds outlines in place of text, so it looks the same where no font is installed.

pub(crate) mod figures;

mod axis;
mod paint;
mod render;
mod thin;

use std::error::Error;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use crate::files;

/// A page of panels under one title, with one legend for all of them.
///
/// A series keeps its colour and marker from panel to panel: they go by its name, in order of first appearance.
#[derive(Debug, Clone, Default)]
pub(crate) struct Figure {
    pub(crate) title: String,
    /// A line or two under the title: what was run, what a band means. May be empty.
    pub(crate) note: String,
    /// Panels per row; they fill the page row by row.
    pub(crate) columns: usize,
    pub(crate) share_y: ShareY,
    pub(crate) panels: Vec<Panel>,
}

/// Which panels have the same vertical axis, so that heights compare across them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum ShareY {
    #[default]
    Nothing,
    Row,
    All,
}

/// One pair of axes and what is drawn on it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Panel {
    pub(crate) title: String,
    pub(crate) x: Axis,
    pub(crate) y: Axis,
    pub(crate) series: Vec<Series>,
}

#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Axis {
    pub(crate) label: String,
    pub(crate) scale: Scale,
}

/// How an axis lays out its values.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) enum Scale {
    #[default]
    Linear,
    /// Linear from zero, so that heights compare as ratios.
    FromZero,
    /// Linear, with ticks at whole numbers only: epochs, steps.
    Whole,
    /// Logarithmic; values that are not positive are gaps.
    Log,
    /// Logarithmic if every finite value is positive and the largest is more than 20 times the smallest.
    Auto,
    /// Named places: the first name stands at 1, the second at 2, and so on. Names too long to stand side by side are turned.
    Names(Vec<String>),
}

/// A line through points, in order of x. A point that is not finite is a gap in the line.
///
/// Up to 60 points get a marker each, unless `form` says otherwise. Beyond 800 points the series is cut into at most 400 pieces: a series with a
/// band shows the mean of each piece, for line and band alike; one without shows the first, lowest, highest and last
/// point of each, so that no spike is lost.
#[derive(Debug, Clone, Default)]
pub(crate) struct Series {
    pub(crate) name: String,
    pub(crate) points: Vec<(f64, f64)>,
    /// For each point, the low and the high edge of a shaded band.
    pub(crate) band: Option<Vec<(f64, f64)>>,
    pub(crate) form: Form,
}

/// What of a series is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Form {
    /// The line, and markers where they are few.
    #[default]
    Marked,
    /// The line alone.
    Line,
    /// Markers alone: what lies between them means nothing.
    Points,
}

/// What a figure becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Picture {
    Svg,
    Png,
}

/// Why a figure could not be drawn or stored.
#[derive(Debug)]
pub(crate) enum ChartError {
    /// The figure asks for something that cannot be drawn; the text says what.
    Draw(String),
    /// The file could not be written.
    Write { path: PathBuf, source: io::Error },
}

impl fmt::Display for ChartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ChartError::Draw(why) => write!(f, "cannot draw the figure: {why}"),
            ChartError::Write { path, source } => {
                write!(
                    f,
                    "cannot write {}: {source}; free the place, or name another folder with --out",
                    path.display()
                )
            }
        }
    }
}

impl Error for ChartError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            ChartError::Draw(_) => None,
            ChartError::Write { source, .. } => Some(source),
        }
    }
}

/// Writes `stem.svg` and `stem.png` into `folder` and returns their paths, in that order; each file is whole or absent.
///
/// # Errors
///
/// [`ChartError::Draw`] if the figure has no panel, no column, or too many panels for one page; then [`ChartError::Write`].
pub(crate) fn write(figure: &Figure, folder: &Path, stem: &str) -> Result<Vec<PathBuf>, ChartError> {
    let page = page(figure)?;
    let mut written = Vec::new();
    for (kind, picture) in [("svg", Picture::Svg), ("png", Picture::Png)] {
        let bytes = bytes(&page, picture)?;
        let path = folder.join(format!("{stem}.{kind}"));
        files::replace(&path, &bytes).map_err(|source| ChartError::Write { path: path.clone(), source })?;
        written.push(path);
    }
    Ok(written)
}

/// The file of a figure.
///
/// # Errors
///
/// [`ChartError::Draw`], as [`write`] has it.
pub(crate) fn draw(figure: &Figure, picture: Picture) -> Result<Vec<u8>, ChartError> {
    bytes(&page(figure)?, picture)
}

fn bytes(page: &resvg::usvg::Tree, picture: Picture) -> Result<Vec<u8>, ChartError> {
    match picture {
        Picture::Svg => Ok(render::svg(page).into_bytes()),
        Picture::Png => render::png(page),
    }
}

fn page(figure: &Figure) -> Result<resvg::usvg::Tree, ChartError> {
    render::tree(&paint::paint(figure)?)
}

#[cfg(test)]
mod tests;
