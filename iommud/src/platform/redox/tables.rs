//! The firmware's tables, from the acpi scheme.

use std::fs::{self, File};
use std::io::{self, Read};

/// Longest table that is read, in bytes. Real ones have some hundred.
const LONGEST: u64 = 1 << 20;

const DIRECTORY: &str = "/scheme/acpi/tables";

/// The first table with this signature; `None` when there is none. Names are signature, OEM id and OEM table
/// id, joined by hyphens.
///
/// # Errors
/// It cannot be read, or is longer than 1 MiB.
pub(super) fn read(signature: &str) -> io::Result<Option<Vec<u8>>> {
    let entries = match fs::read_dir(DIRECTORY) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        entries => entries?,
    };
    for entry in entries {
        let name = entry?.file_name();
        let Some(name) = name.to_str() else { continue };
        if name.split('-').next() == Some(signature) {
            let mut bytes = Vec::new();
            let table = File::open(format!("{DIRECTORY}/{name}"))?;
            let length = table.take(LONGEST + 1).read_to_end(&mut bytes)?;
            let fits = u64::try_from(length).is_ok_and(|length| length <= LONGEST);
            return if fits { Ok(Some(bytes)) } else { Err(io::ErrorKind::FileTooLarge.into()) };
        }
    }
    Ok(None)
}
