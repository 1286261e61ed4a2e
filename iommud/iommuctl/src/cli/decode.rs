//! `iommuctl decode`.

use std::io::Write;

use serde_json::{Value, json};

use super::arguments::Decode;
use super::outcome::{CommandError, Found};
use crate::decode::{self, Decoded};
use crate::output::{Look, Tone, document, write_json};

pub(super) fn run(
    arguments: &Decode,
    json: bool,
    look: Look,
    out: &mut dyn Write,
) -> Result<Found, CommandError> {
    let mut tables = Vec::new();
    for path in &arguments.files {
        let found =
            decode::file(path).map_err(|error| CommandError::Decode(path.clone(), error))?;
        tables.extend(found.into_iter().map(|table| (path.display().to_string(), table)));
    }
    if json {
        let tables: Vec<Value> = tables.iter().map(entry).collect();
        write_json(out, &document("decode", json!({ "tables": tables })))?;
        return Ok(Found::Nothing);
    }
    let several = tables.len() > 1;
    for (index, (file, table)) in tables.iter().enumerate() {
        if index > 0 {
            writeln!(out)?;
        }
        if several {
            writeln!(out, "{}", look.paint(Tone::Faint, format_args!("{file}:")))?;
        }
        let text = if arguments.fields { table.text() } else { table.summary() };
        out.write_all(text.as_bytes())?;
    }
    Ok(Found::Nothing)
}

fn entry((file, table): &(String, Decoded)) -> Value {
    json!({ "file": file, "iommud_would": table.outlook(), "table": table.json() })
}
