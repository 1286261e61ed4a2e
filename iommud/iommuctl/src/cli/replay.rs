//! `iommuctl replay`.

use std::io::Write;
use std::path::Path;

use super::outcome::{CommandError, Found};
use crate::output::{document, write_json};
use crate::replay;

pub(super) fn run(file: &Path, json: bool, out: &mut dyn Write) -> Result<Found, CommandError> {
    let bytes = std::fs::read(file).map_err(|error| CommandError::File(file.into(), error))?;
    let replayed = replay::replay(&bytes);
    if json {
        write_json(out, &document("replay", replayed.json()))?;
    } else {
        out.write_all(replayed.text().as_bytes())?;
    }
    Ok(if replayed.finding.is_some() { Found::Something } else { Found::Nothing })
}
