//! A firmware table in words: what the server would do with it, what is wrong with it, and every field of it.

pub mod acpidump;
mod dmar;
mod ivrs;
mod present;
mod record;
mod verdict;

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use iommud::acpi::dmar::Dmar;
use iommud::acpi::ivrs::Ivrs;
use iommud::acpi::{Anomaly, Table, TableError, build_dmar, build_ivrs};
use iommud::topology::firmware::Firmware;

use acpidump::BadDump;
use present::Functions;
use record::{Record, Value, text};
use verdict::{Sentence, outlook};

/// The longest file that is read, in bytes. A dump of all tables of a machine takes some megabytes.
const LONGEST: u64 = 64 << 20;

/// Why nothing was decoded.
#[derive(Debug)]
pub enum DecodeError {
    /// The file cannot be read.
    Read(io::Error),
    /// The file is longer than 64 MiB.
    TooLong,
    /// The file is a damaged dump.
    Dump(BadDump),
    /// The file is a dump without DMAR or IVRS. It has this many other tables.
    NoTable(usize),
    /// The file, or a table of the dump, is not a DMAR or IVRS, or is too short or too long.
    Table(TableError),
}

impl std::fmt::Display for DecodeError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Read(error) => write!(f, "{error}"),
            Self::TooLong => f.write_str("longer than 64 MiB"),
            Self::Dump(error) => write!(f, "{error}"),
            Self::NoTable(others) => write!(f, "neither DMAR nor IVRS among {others} tables"),
            Self::Table(TableError::Signature(found)) => {
                write!(f, "neither DMAR nor IVRS, but \"{}\"", found.escape_ascii())
            }
            Self::Table(error) => write!(f, "{error}"),
        }
    }
}

/// A decoded table.
#[derive(Clone, Debug)]
pub struct Decoded {
    table: Record,
    outlook: Vec<Sentence>,
}

/// Decodes the DMAR and IVRS tables in a file, or in standard input for the path `-`: one table as it is in memory, or
/// the text of `acpidump`.
///
/// # Errors
/// See [`DecodeError`]. A table that is damaged but still recognisable is decoded.
pub fn file(path: &Path) -> Result<Vec<Decoded>, DecodeError> {
    let bytes = read(path).map_err(DecodeError::Read)?;
    if u64::try_from(bytes.len()).is_ok_and(|length| length > LONGEST) {
        return Err(DecodeError::TooLong);
    }
    let mut decoded = tables(&bytes)?;
    if let (Some(functions), [only]) = (Functions::of(path), &mut decoded[..]) {
        only.compare(&functions, &bytes);
    }
    Ok(decoded)
}

/// Reads one byte more than the longest file has, at most.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if path == Path::new("-") {
        io::stdin().lock().take(LONGEST + 1).read_to_end(&mut bytes)?;
    } else {
        File::open(path)?.take(LONGEST + 1).read_to_end(&mut bytes)?;
    }
    Ok(bytes)
}

/// Decodes the DMAR and IVRS tables in the content of a file, like [`fn@file`].
///
/// # Errors
/// [`DecodeError`], except `Read` and `TooLong`.
pub fn tables(bytes: &[u8]) -> Result<Vec<Decoded>, DecodeError> {
    let dumped = match std::str::from_utf8(bytes) {
        Ok(text) => acpidump::tables(text).map_err(DecodeError::Dump)?,
        Err(_) => Vec::new(),
    };
    if dumped.is_empty() {
        return Ok(vec![table(bytes).map_err(DecodeError::Table)?]);
    }
    let ours = dumped.iter().filter(|table| matches!(&*table.signature, "DMAR" | "IVRS"));
    let decoded: Vec<Decoded> = ours
        .map(|dumped| table(&dumped.bytes))
        .collect::<Result<_, _>>()
        .map_err(DecodeError::Table)?;
    if decoded.is_empty() { Err(DecodeError::NoTable(dumped.len())) } else { Ok(decoded) }
}

/// Decodes one table.
///
/// # Errors
/// `Short`, `TooLong` and `Signature`.
pub fn table(bytes: &[u8]) -> Result<Decoded, TableError> {
    let table = Table::read(bytes)?;
    match &table.header.signature {
        b"DMAR" => {
            let dmar = Dmar::new(table)?;
            let structures = dmar.structures().map(|item| dmar::structure(&item)).collect();
            Ok(Decoded::new(&table, dmar::fixed(&dmar), structures, build_dmar(&dmar)))
        }
        _ => {
            let ivrs = Ivrs::new(table)?;
            let structures = ivrs.structures().map(|item| ivrs::structure(&item)).collect();
            Ok(Decoded::new(&table, ivrs::fixed(&ivrs), structures, build_ivrs(&ivrs)))
        }
    }
}

impl Decoded {
    fn new(
        table: &Table<'_>,
        fixed: Vec<(&'static str, Value)>,
        structures: Vec<Record>,
        (firmware, anomalies): (Firmware, Vec<Anomaly>),
    ) -> Self {
        let header = &table.header;
        let mut record = Record::new(format!("{} table", text(&header.signature)));
        record.push("signature", Value::Text(text(&header.signature)));
        record.push("length", Value::Number(header.length.into()));
        record.push("revision", Value::Number(header.revision.into()));
        record.push("checksum", Value::Hex(header.checksum.into()));
        record.push("checksum_ok", Value::Flag(table.sum() == 0));
        record.push("oem_id", Value::Text(text(&header.oem_id)));
        record.push("oem_table_id", Value::Text(text(&header.oem_table_id)));
        record.push("oem_revision", Value::Hex(header.oem_revision.into()));
        record.push("creator_id", Value::Text(text(&header.creator_id)));
        record.push("creator_revision", Value::Hex(header.creator_revision.into()));
        record.fields.extend(fixed);
        record.push("structures", Value::Records(structures));
        let anomalies = anomalies.iter().map(ToString::to_string).collect();
        record.push("anomalies", Value::Lines(anomalies));
        Self { table: record, outlook: outlook(table.verify(), &firmware) }
    }

    /// Adds anomalies that show only on the machine that the table describes.
    fn compare(&mut self, functions: &Functions, bytes: &[u8]) {
        let Ok(table) = Table::read(bytes).and_then(Dmar::new) else { return };
        if let Some((_, Value::Lines(anomalies))) = self.table.fields.last_mut() {
            anomalies.extend(functions.missing(&table));
        }
    }

    /// The table as one JSON object.
    #[must_use]
    pub fn json(&self) -> serde_json::Value {
        self.table.json()
    }

    /// The actions that the server would take with the table, one sentence each.
    #[must_use]
    pub fn outlook(&self) -> Vec<String> {
        self.outlook.iter().map(ToString::to_string).collect()
    }

    /// The table as text for people: the actions that the server would take, and the anomalies of the table.
    #[must_use]
    pub fn summary(&self) -> String {
        let mut out = String::new();
        // Writing to a string cannot fail.
        let _ = self.write_summary(&mut out);
        out
    }

    /// The summary, and behind it every field.
    #[must_use]
    pub fn text(&self) -> String {
        let mut out = self.summary();
        let _ = writeln!(out, "  fields:");
        let _ = self.table.write_fields(&mut out, 2);
        out
    }

    fn write_summary(&self, out: &mut String) -> std::fmt::Result {
        let field = |name| self.table.field(name);
        write!(out, "{}", self.table.heading)?;
        if let Some(Value::Text(maker)) = field("oem_id")
            && !maker.trim().is_empty()
        {
            write!(out, " of {}", record::printable(maker.trim()))?;
        }
        if let (Some(revision), Some(length)) = (field("revision"), field("length")) {
            write!(out, ", revision {revision}, {length} bytes")?;
        }
        writeln!(out, "\n  iommud would:")?;
        for sentence in &self.outlook {
            sentence.write(out, 4)?;
        }
        field("anomalies").map_or(Ok(()), |lines| lines.write(out, "anomalies", 1))
    }
}
