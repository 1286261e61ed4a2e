//! Commands that need no server.

use std::io::Write;
use std::path::Path;

use iommud::config::{self, ConfigError};
use iommud::topology::pci::PciFunction;

use super::outcome::{CommandError, Found};
use crate::audit::Report;
use crate::audit::host::Host;
use crate::output::{Look, document, write_json, write_lines};
use crate::policy::{check, refused_json};

pub(super) fn audit(
    root: &Path,
    json: bool,
    look: Look,
    out: &mut dyn Write,
) -> Result<Found, CommandError> {
    let report = Report::new(&host(root)?);
    if json {
        write_json(out, &document("audit", report.json()))?;
    } else {
        write_lines(out, look, &report.text(look))?;
    }
    Ok(if report.is_bad() { Found::Something } else { Found::Nothing })
}

pub(super) fn policy(file: &Path, json: bool, out: &mut dyn Write) -> Result<Found, CommandError> {
    print_policy(file, &host(Path::new("/"))?.functions(), json, out)
}

/// The Linux host below a folder.
fn host(root: &Path) -> Result<Host, CommandError> {
    let sysfs = root.join("sys");
    if sysfs.is_dir() {
        Ok(Host::read(root))
    } else {
        Err(CommandError::Nothing(format!("{}: this judges Linux hosts", sysfs.display())))
    }
}

/// Prints what a policy file means for these functions, or what is wrong with it.
pub(super) fn print_policy(
    file: &Path,
    functions: &[PciFunction],
    json: bool,
    out: &mut dyn Write,
) -> Result<Found, CommandError> {
    let config = match config::load(file) {
        Ok(config) => config,
        Err(ConfigError::Read(error)) => return Err(CommandError::File(file.into(), error)),
        Err(error) => {
            if json {
                write_json(out, &document("policy", refused_json(&error)))?;
            } else {
                writeln!(out, "{}: {error}", file.display())?;
            }
            return Ok(Found::Something);
        }
    };
    let checked = check(&config, functions);
    if json {
        write_json(out, &document("policy", checked.json()))?;
    } else {
        out.write_all(checked.text().as_bytes())?;
    }
    Ok(Found::Nothing)
}
