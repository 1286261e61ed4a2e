//! Reads the firmware's tables from the acpi scheme.

use std::fs::{self, File};
use std::io::{self, Read};
use std::sync::OnceLock;

/// The longest table that is read, in bytes. Real tables have some hundred.
const LONGEST: u64 = 1 << 20;

const DIRECTORY: &str = "/scheme/acpi/tables";

/// Names of the tables, listed only once.
static NAMES: OnceLock<Vec<String>> = OnceLock::new();

/// Reads the first table with this signature. `None` when there is none. Names of tables are signature, OEM id and
/// OEM table id, joined by hyphens.
///
/// # Errors
/// The table cannot be read, or is longer than 1 MiB.
pub(super) fn read(signature: &str) -> io::Result<Option<Vec<u8>>> {
    let names = match NAMES.get() {
        Some(names) => names,
        None => {
            let names = list()?;
            NAMES.get_or_init(|| names)
        }
    };
    let name = names.iter().find(|name| name.split('-').next() == Some(signature));
    let Some(name) = name else { return Ok(None) };
    let mut bytes = Vec::new();
    let table = File::open(format!("{DIRECTORY}/{name}"))?;
    let length = table.take(LONGEST + 1).read_to_end(&mut bytes)?;
    let fits = u64::try_from(length).is_ok_and(|length| length <= LONGEST);
    if fits { Ok(Some(bytes)) } else { Err(io::ErrorKind::FileTooLarge.into()) }
}

fn list() -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(DIRECTORY) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let name = |entry: io::Result<fs::DirEntry>| Ok(entry?.file_name().into_string().ok());
    entries.map(name).filter_map(io::Result::transpose).collect()
}
