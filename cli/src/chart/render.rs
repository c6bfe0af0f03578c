//! Painted SVG to its final forms, with the text set in the font that travels with the command.

use std::sync::{Arc, LazyLock};

use resvg::tiny_skia::{Color, Pixmap};
use resvg::usvg::fontdb::{Database, Source};
use resvg::usvg::{Node, Options, Transform, Tree, WriteOptions};

use super::ChartError;

pub(super) const FAMILY: &str = "DejaVu Sans";

/// Joins of a curve are rounded: a mitre would point out of every sharp turn.
const SHAPES: &str = "polyline { stroke-linejoin: round; stroke-linecap: round }";

static FONTS: LazyLock<Arc<Database>> = LazyLock::new(|| {
    let mut fonts = Database::new();
    for face in [dejavu::sans::regular(), dejavu::sans::bold()] {
        fonts.load_font_source(Source::Binary(Arc::new(face)));
    }
    Arc::new(fonts)
});

/// Parses painted SVG and lays out its text.
pub(super) fn tree(painted: &str) -> Result<Tree, ChartError> {
    let options = Options {
        font_family: FAMILY.to_owned(),
        fontdb: Arc::clone(&FONTS),
        style_sheet: Some(SHAPES.to_owned()),
        ..Options::default()
    };
    Tree::from_str(painted, &options).map_err(|e| ChartError::Draw(e.to_string()))
}

/// The document with outlines in place of text.
pub(super) fn svg(tree: &Tree) -> String {
    let options = WriteOptions {
        preserve_text: false,
        coordinates_precision: 1, // the page is painted ten times its size: this is a hundredth of a pixel
        indent: resvg::usvg::Indent::None,
        ..WriteOptions::default()
    };
    tree.to_string(&options)
}

/// The picture at one pixel per unit of its size, on white.
pub(super) fn png(tree: &Tree) -> Result<Vec<u8>, ChartError> {
    let size = tree.size().to_int_size();
    let mut pixels = Pixmap::new(size.width(), size.height())
        .ok_or_else(|| ChartError::Draw(format!("{} x {} pixels are too many", size.width(), size.height())))?;
    pixels.fill(Color::WHITE);
    resvg::render(tree, Transform::identity(), &mut pixels.as_mut());
    pixels.encode_png().map_err(|e| ChartError::Draw(e.to_string()))
}

/// Width of a line of text in the units of `size`; nought if it cannot be laid out.
pub(super) fn text_width(text: &str, size: f64, bold: bool) -> f64 {
    let weight = if bold { "bold" } else { "normal" };
    let text: String = text.chars().filter(|c| !c.is_control()).map(escape).collect();
    // Set at 100 units between bars, whose own width is taken off again: blanks at the ends count too.
    let laid_out = |text: &str| {
        let line = format!(
            r#"<svg xmlns="http://www.w3.org/2000/svg" width="1" height="1"><text font-family="{FAMILY}" font-size="100" font-weight="{weight}">|{text}|</text></svg>"#
        );
        let tree = tree(&line).ok()?;
        let Some(Node::Text(text)) = tree.root().children().first() else { return None };
        Some(f64::from(text.bounding_box().width()))
    };
    match (laid_out(&text), laid_out("")) {
        (Some(with), Some(without)) => (with - without) * size / 100.0,
        _ => 0.0,
    }
}

fn escape(c: char) -> String {
    match c {
        '<' => "&lt;".to_owned(),
        '&' => "&amp;".to_owned(),
        // Blanks would otherwise collapse.
        ' ' => "\u{a0}".to_owned(),
        c => c.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_measured_with_the_carried_font() {
        // Advance widths in DejaVu Sans are n/2048 em: 1303 for a digit, 651 for a blank.
        assert!((text_width("88", 20.48, false) - 26.06).abs() < 0.3);
        assert!((text_width("8 8", 20.48, false) - 32.57).abs() < 0.3);
        assert!(text_width("mmm", 20.0, true) > text_width("mmm", 20.0, false));
        assert!(text_width("<&>", 20.0, false) > 30.0);
        assert!(text_width("", 20.0, false).abs() < 1e-6);
    }

    #[test]
    fn only_the_carried_faces_are_known() {
        assert_eq!(FONTS.faces().count(), 2);
        assert!(FONTS.faces().all(|face| face.families.iter().any(|(name, _)| name == FAMILY)));
    }
}
