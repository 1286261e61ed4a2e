//! Parses the output of `iasl -d`: one line for each field, with its offset and length.
//!
//! ```text
//! [054h 0084   2]                       Length : 0020            (2020)
//! [054h 0084 002h]                      Length : 0020            (2025)
//! ```

use std::ops::Range;
use std::path::Path;
use std::process::Command;

/// One field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Line {
    /// Its start, in bytes from the start of the table.
    pub(crate) offset: usize,
    /// Its name, without "(decoded below)".
    pub(crate) name: String,
    /// Its value as printed, without the explanation in brackets.
    pub(crate) value: String,
    /// Whether `iasl` did not decode the structure.
    pub(crate) unknown: bool,
}

/// Disassembles a table.
pub(crate) fn disassemble(iasl: &Path, table: &[u8], scratch: &Path) -> Vec<Line> {
    let input = scratch.join("table.bin");
    std::fs::write(&input, table).unwrap();
    let output =
        Command::new(iasl).arg("-d").arg("table.bin").current_dir(scratch).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = std::fs::read_to_string(scratch.join("table.dsl")).unwrap();
    text.lines().filter_map(parse).collect()
}

fn parse(line: &str) -> Option<Line> {
    let (place, rest) = line.strip_prefix('[')?.split_once(']')?;
    let offset = place.split_whitespace().nth(1)?.parse().ok()?;
    let (name, value) = rest.split_once(" : ")?;
    let quoted = value.starts_with('"');
    let unknown = value.contains("[Unknown Subtable Type]");
    let value = match value.split_once("    [").filter(|_| quoted) {
        Some((text, _)) => text,
        None if quoted => value,
        None => value.split(" [").next()?,
    };
    let name = name.trim().trim_end_matches("(decoded below)").trim().to_owned();
    Some(Line { offset, name, value: value.trim_end().to_owned(), unknown })
}

/// Returns the ranges of structures that `iasl` did not decode, beyond the fields common to all.
pub(crate) fn unknown(lines: &[Line]) -> Vec<Range<usize>> {
    let dmar = lines.first().is_some_and(|line| line.value.starts_with("\"DMAR"));
    let unknown = lines.iter().enumerate().filter(|(_, line)| line.unknown);
    unknown
        .map(|(index, line)| {
            // For a DMAR, nothing is printed from the first unknown structure on.
            let end = if dmar { None } else { lines.get(index + 1..).and_then(next_structure) };
            line.offset..end.unwrap_or(usize::MAX)
        })
        .collect()
}

fn next_structure(lines: &[Line]) -> Option<usize> {
    lines.iter().find(|line| line.name == "Subtable Type").map(|line| line.offset)
}
