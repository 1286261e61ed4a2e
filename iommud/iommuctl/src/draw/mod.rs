//! Pictures: the tree of devices, the addresses of a domain.

pub mod domain;
pub mod dot;
pub mod tree;

use svg::Document;
use svg::node::element::{Line, Rectangle, Text};

/// Font of all text.
const FONT: &str = "DejaVu Sans, Liberation Sans, Arial, sans-serif";

/// Colours: readable on white, and apart for most who do not see all colours.
mod colour {
    pub(super) const INK: &str = "#1f2328";
    pub(super) const FAINT: &str = "#656d76";
    pub(super) const LINE: &str = "#d0d7de";
    pub(super) const PAPER: &str = "#ffffff";
    pub(super) const BOX: &str = "#f6f8fa";
    pub(super) const BAD: &str = "#cf222e";
    pub(super) const OWNED: &str = "#0969da";
    pub(super) const POLICY: &str = "#8c959f";
    pub(super) const RESERVED: &str = "#d4a72c";
    pub(super) const ODD: &str = "#9a6700";
}

/// A document of this size in pixels, on white. The height is rounded up.
fn document(width: f64, height: f64) -> Document {
    let height = height.ceil();
    let paper = Rectangle::new().set("width", "100%").set("height", "100%");
    Document::new()
        .set("viewBox", (0.0, 0.0, width, height))
        .set("width", width)
        .set("height", height)
        .set("font-family", FONT)
        .add(paper.set("fill", colour::PAPER))
}

/// A line of text with its baseline at `y`.
fn label(x: f64, y: f64, size: u32, fill: &str, text: impl Into<String>) -> Text {
    Text::new(text.into()).set("x", x).set("y", y).set("font-size", size).set("fill", fill)
}

/// A rectangle.
fn area(x: f64, y: f64, width: f64, height: f64, fill: &str) -> Rectangle {
    let place = Rectangle::new().set("x", x).set("y", y);
    place.set("width", width).set("height", height).set("fill", fill)
}

/// A line between two points.
fn stroke(from: (f64, f64), to: (f64, f64), colour: &str) -> Line {
    let line = Line::new().set("x1", from.0).set("y1", from.1).set("x2", to.0).set("y2", to.1);
    line.set("stroke", colour)
}

/// At most `most` characters; a text that is cut ends in `…`.
fn cut(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    text.chars().take(most.saturating_sub(1)).chain(['…']).collect()
}

/// A number of rows.
fn count(number: usize) -> f64 {
    u32::try_from(number).map_or(f64::from(u32::MAX), f64::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_cut_at_characters() {
        assert_eq!((cut("äöü", 3), cut("äöüx", 3)), ("äöü".to_owned(), "äö…".to_owned()));
    }

    #[test]
    fn text_cannot_end_its_element() {
        let svg = label(1.0, 2.0, 3, "red", "<script>&").to_string();
        assert!(svg.contains("&lt;script&gt;&amp;"), "{svg}");
    }
}
