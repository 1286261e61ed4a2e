//! Where output goes, and what it may look like there.

use std::fmt;
use std::io::{self, IsTerminal, Write};

use anstyle::{AnsiColor, Style};
use clap::ValueEnum;
use serde_json::{Value, json};

/// Narrowest width that lines are cut to.
const NARROWEST: usize = 40;

/// When output has colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Colour {
    /// On a terminal, unless NO_COLOR is set
    Auto,
    /// Always
    Always,
    /// Never
    Never,
}

/// What the output looks like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Look {
    /// Escape sequences may be written.
    pub colour: bool,
    /// Columns; `None` where lines may have any length.
    pub width: Option<usize>,
}

/// What a piece of text means to the reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tone {
    /// A heading.
    Strong,
    /// Less important.
    Faint,
    /// In order.
    Good,
    /// Not in order, or not confined.
    Bad,
    /// Worth a look.
    Odd,
}

impl Look {
    /// The look of standard output.
    #[must_use]
    pub fn of_stdout(colour: Colour) -> Self {
        let terminal = io::stdout().is_terminal();
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        let colour = match colour {
            Colour::Always => true,
            Colour::Never => false,
            Colour::Auto => terminal && wanted,
        };
        Self { colour, width: if terminal { columns() } else { None } }
    }

    /// `text` in a tone.
    #[must_use]
    pub fn paint<T: fmt::Display>(self, tone: Tone, text: T) -> Painted<T> {
        let style = match tone {
            Tone::Strong => Style::new().bold(),
            Tone::Faint => Style::new().dimmed(),
            Tone::Good => AnsiColor::Green.on_default(),
            Tone::Bad => AnsiColor::Red.on_default().bold(),
            Tone::Odd => AnsiColor::Yellow.on_default(),
        };
        Painted { style: if self.colour { style } else { Style::new() }, text }
    }
}

/// Text with a style around it.
#[derive(Clone, Copy, Debug)]
pub struct Painted<T> {
    style: Style,
    text: T,
}

impl<T: fmt::Display> fmt::Display for Painted<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}{}", self.style.render(), self.text, self.style.render_reset())
    }
}

/// Columns of the terminal at standard output.
fn columns() -> Option<usize> {
    #[cfg(target_os = "linux")]
    if let Ok(size) = rustix::termios::tcgetwinsize(io::stdout())
        && size.ws_col > 0
    {
        return Some(usize::from(size.ws_col).max(NARROWEST));
    }
    let text = std::env::var("COLUMNS").ok()?;
    text.parse::<usize>().ok().map(|columns| columns.max(NARROWEST))
}

/// A number of bytes in the largest unit that holds it without a rest.
#[must_use]
pub fn size(bytes: u64) -> String {
    let units = [(1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    let whole = units.iter().find(|(unit, _)| bytes >= *unit && bytes.is_multiple_of(*unit));
    match whole {
        Some((unit, name)) => format!("{} {name}", bytes / unit),
        None if bytes == 1 => "1 byte".to_owned(),
        None => format!("{bytes} bytes"),
    }
}

/// A JSON document of a command, with the name of its schema first.
#[must_use]
pub fn document(command: &str, content: Value) -> Value {
    let mut document = json!({ "schema": format!("iommuctl.{command}/1") });
    if let (Some(to), Value::Object(from)) = (document.as_object_mut(), content) {
        to.extend(from);
    }
    document
}

/// Writes a JSON document and a line feed.
///
/// # Errors
/// What the writer reports.
pub fn write_json(out: &mut dyn Write, document: &Value) -> io::Result<()> {
    writeln!(out, "{document:#}")
}

/// Writes lines, none of them longer than the terminal is wide. A line that is cut ends in `…`. Escape sequences take
/// no columns.
///
/// # Errors
/// What the writer reports.
pub fn write_lines(out: &mut dyn Write, look: Look, text: &str) -> io::Result<()> {
    match look.width {
        None => out.write_all(text.as_bytes()),
        Some(width) => text.lines().try_for_each(|line| writeln!(out, "{}", cut(line, width))),
    }
}

/// The first `width` columns of a line.
fn cut(line: &str, width: usize) -> String {
    if visible(line) <= width {
        return line.to_owned();
    }
    let mut kept = String::new();
    let (mut used, mut escape) = (0, false);
    for c in line.chars() {
        escape |= c == '\x1b';
        if escape {
            kept.push(c);
            escape = !c.is_ascii_alphabetic();
            continue;
        }
        used += 1;
        if used < width {
            kept.push(c);
        } else if used == width {
            kept.push('…');
        }
    }
    kept
}

/// Columns that a line takes.
fn visible(line: &str) -> usize {
    let mut escape = false;
    line.chars()
        .filter(|c| {
            let hidden = escape || *c == '\x1b';
            escape = hidden && !c.is_ascii_alphabetic();
            !hidden
        })
        .count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_cut_to_the_terminal_and_colours_take_no_room() {
        assert_eq!(cut("0123456789", 10), "0123456789");
        assert_eq!(cut("0123456789a", 10), "012345678…");
        assert_eq!(cut("\x1b[1m0123456789\x1b[0m", 10), "\x1b[1m0123456789\x1b[0m");
        assert_eq!(cut("\x1b[1m0123456789a\x1b[0m", 10), "\x1b[1m012345678…\x1b[0m");
        let mut out = Vec::new();
        write_lines(&mut out, Look { colour: false, width: Some(3) }, "abc\nabcd\n").unwrap();
        assert_eq!(out, "abc\nab…\n".as_bytes());
    }

    #[test]
    fn no_escape_sequence_without_colour() {
        let plain = Look::default();
        assert_eq!(plain.paint(Tone::Bad, "x").to_string(), "x");
        let coloured = Look { colour: true, width: None };
        assert_eq!(coloured.paint(Tone::Strong, "x").to_string(), "\x1b[1mx\x1b[0m");
    }

    #[test]
    fn sizes_are_whole() {
        let words = [1, 17, 1024, 1536, 1 << 20, 3 << 30].map(size);
        assert_eq!(words, ["1 byte", "17 bytes", "1 KiB", "1536 bytes", "1 MiB", "3 GiB"]);
    }

    #[test]
    fn a_document_says_its_schema() {
        let document = document("status", json!({ "units": [] }));
        assert_eq!(document.to_string(), r#"{"schema":"iommuctl.status/1","units":[]}"#);
    }
}
