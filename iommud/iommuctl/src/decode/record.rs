//! A decoded table as named values. One description gives both the text form and the JSON form.

use std::fmt;

use serde_json::{Map, Value as Json, json};

/// A named list of values, with a heading in the text form.
#[derive(Clone, Debug, Default)]
pub(super) struct Record {
    pub(super) heading: String,
    pub(super) fields: Vec<(&'static str, Value)>,
}

/// A value, with its text form. In JSON all numbers are integers.
#[derive(Clone, Debug)]
pub(super) enum Value {
    /// A count or an id: decimal.
    Number(u64),
    /// An address or a set of bits: hexadecimal.
    Hex(u64),
    /// Flags, with a word for each flag that is set.
    Flags(u64, Vec<&'static str>),
    /// A number, with its meaning. The JSON form omits the meaning.
    Meaning(u64, String),
    /// Yes or no.
    Flag(bool),
    /// A string from [`text`].
    Text(String),
    /// Unparsed bytes.
    Raw(Vec<u8>),
    /// Device and function numbers of a path.
    Path(Vec<(u8, u8)>),
    /// One string a line.
    Lines(Vec<String>),
    /// A list of records.
    Records(Vec<Record>),
}

impl Record {
    pub(super) fn new(heading: String) -> Self {
        Self { heading, fields: Vec::new() }
    }

    pub(super) fn push(&mut self, name: &'static str, value: Value) {
        self.fields.push((name, value));
    }

    pub(super) fn json(&self) -> Json {
        let fields = self.fields.iter().map(|(name, value)| ((*name).to_owned(), value.json()));
        Json::Object(fields.collect::<Map<_, _>>())
    }

    /// The value of a field.
    pub(super) fn field(&self, name: &str) -> Option<&Value> {
        self.fields.iter().find(|(of, _)| *of == name).map(|(_, value)| value)
    }

    /// Writes heading and fields, indented by `depth` levels.
    fn write(&self, out: &mut dyn fmt::Write, depth: usize) -> fmt::Result {
        let indent = depth * 2;
        writeln!(out, "{:indent$}{}", "", self.heading)?;
        self.write_fields(out, depth + 1)
    }

    /// Writes the fields, `depth` levels in.
    pub(super) fn write_fields(&self, out: &mut dyn fmt::Write, depth: usize) -> fmt::Result {
        self.fields.iter().try_for_each(|(name, value)| value.write(out, name, depth))
    }
}

impl Value {
    fn json(&self) -> Json {
        match self {
            Self::Number(number)
            | Self::Hex(number)
            | Self::Flags(number, _)
            | Self::Meaning(number, _) => json!(number),
            Self::Flag(flag) => json!(flag),
            Self::Text(text) => json!(text),
            Self::Raw(bytes) => json!(hex(bytes)),
            Self::Path(path) => json!(path),
            Self::Lines(lines) => json!(lines),
            Self::Records(records) => records.iter().map(Record::json).collect(),
        }
    }

    /// Writes a named value, `depth` levels in.
    pub(super) fn write(&self, out: &mut dyn fmt::Write, name: &str, depth: usize) -> fmt::Result {
        let indent = depth * 2;
        match self {
            Self::Records(records) if !records.is_empty() => {
                writeln!(out, "{:indent$}{name}:", "")?;
                records.iter().try_for_each(|record| record.write(out, depth + 1))
            }
            Self::Lines(lines) if !lines.is_empty() => {
                writeln!(out, "{:indent$}{name}:", "")?;
                lines.iter().try_for_each(|line| writeln!(out, "{:indent$}  {line}", ""))
            }
            single => writeln!(out, "{:indent$}{name}: {single}", ""),
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => write!(f, "{number}"),
            Self::Hex(number) => write!(f, "{number:#x}"),
            Self::Flags(number, words) if words.is_empty() => write!(f, "{number:#x}"),
            Self::Flags(number, words) => write!(f, "{number:#x} ({})", words.join(", ")),
            Self::Meaning(number, words) => write!(f, "{number:#x} ({words})"),
            Self::Flag(flag) => f.write_str(if *flag { "yes" } else { "no" }),
            Self::Text(text) => write!(f, "\"{}\"", printable(text)),
            Self::Raw(bytes) => f.write_str(&hex(bytes)),
            Self::Path(path) => {
                let steps: Vec<String> =
                    path.iter().map(|(d, n)| format!("{d:02x}.{n:x}")).collect();
                f.write_str(&steps.join("/"))
            }
            Self::Lines(lines) if lines.is_empty() => f.write_str("none"),
            Self::Lines(lines) => f.write_str(&lines.join("; ")),
            Self::Records(records) if records.is_empty() => f.write_str("none"),
            Self::Records(records) => write!(f, "{} of them", records.len()),
        }
    }
}

/// Formats bytes in lower-case hexadecimal, without separators.
fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Converts text of a table: one character for each byte, without trailing zeros.
pub(super) fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    bytes.iter().take(end).copied().map(char::from).collect()
}

/// Escapes all characters that are not printable ASCII.
pub(super) fn printable(text: &str) -> String {
    let plain = |c: &char| c.is_ascii_graphic() || *c == ' ';
    text.chars()
        .map(|c| if plain(&c) { c.to_string() } else { c.escape_default().to_string() })
        .collect()
}

/// The words of those bits in `names` that are set.
pub(super) fn words(bits: u64, names: &[(u64, &'static str)]) -> Vec<&'static str> {
    names.iter().filter(|(bit, _)| bits & bit != 0).map(|(_, word)| *word).collect()
}
