//! Runs `iommuctl decode FILE [--json]`: prints a firmware table as text or JSON.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use crate::acpi::dmar::Dmar;
use crate::acpi::ivrs::Ivrs;
use crate::acpi::{Anomaly, Table, TableError, build_dmar, build_ivrs};
use crate::topology::firmware::Firmware;

use super::acpidump::{self, BadDump};
use super::present::Functions;
use super::record::{Record, Value, text};
use super::verdict::outlook;
use super::{dmar, ivrs};

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
    outlook: Vec<String>,
}

/// Decodes the DMAR and IVRS tables in a file. The file is one binary table, or the text of `acpidump`.
///
/// # Errors
/// See [`DecodeError`]. A table that is damaged but still recognisable is decoded.
pub fn file(path: &Path) -> Result<Vec<Decoded>, DecodeError> {
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(DecodeError::Read)?;
    file.take(LONGEST + 1).read_to_end(&mut bytes).map_err(DecodeError::Read)?;
    if u64::try_from(bytes.len()).is_ok_and(|length| length > LONGEST) {
        return Err(DecodeError::TooLong);
    }
    let mut decoded = tables(&bytes)?;
    if let (Some(functions), [only]) = (Functions::of(path), &mut decoded[..]) {
        only.compare(&functions, &bytes);
    }
    Ok(decoded)
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
    pub fn outlook(&self) -> &[String] {
        &self.outlook
    }

    /// The table as text for people. It ends with the actions that the server would take.
    #[must_use]
    pub fn text(&self) -> String {
        let mut out = String::new();
        // Writing to a string cannot fail.
        let _ = self.table.write(&mut out, 0);
        let _ = writeln!(out, "  iommud would:");
        for line in &self.outlook {
            let _ = writeln!(out, "    {line}");
        }
        out
    }
}
