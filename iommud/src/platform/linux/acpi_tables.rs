//! Reads the firmware's tables through sysfs.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// The longest table that is read, in bytes. Real tables have some hundred.
const LONGEST: u64 = 1 << 20;

/// Reads the table with this signature, as the firmware left it. `None` when there is none.
///
/// # Errors
/// The table cannot be read, or is longer than 1 MiB.
pub(super) fn read(signature: &str) -> io::Result<Option<Vec<u8>>> {
    read_file(&Path::new("/sys/firmware/acpi/tables").join(signature))
}

fn read_file(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    let mut bytes = Vec::new();
    let length = file.take(LONGEST + 1).read_to_end(&mut bytes)?;
    if u64::try_from(length).is_ok_and(|length| length <= LONGEST) {
        Ok(Some(bytes))
    } else {
        Err(io::ErrorKind::FileTooLarge.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absent_and_endless_tables() {
        assert!(read_file(Path::new("/nonexistent/DMAR")).unwrap().is_none());
        assert!(read_file(Path::new("/dev/zero")).is_err());
    }
}
