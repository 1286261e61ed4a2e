//! A root file system in memory, so that init continues to its second stage with the unit of an image.

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::process::Command;

const ROOT: &str = "/scheme/file";
const INITFS: &str = "/scheme/initfs";

/// The checks, run as the last unit of the second stage.
const CHECKS: &str = "[unit]
description = \"Checks\"

[service]
cmd = \"redox-guest\"
args = [\"late\"]
type = \"oneshot\"
";

/// Fills the file system, and starts the reader of the disk.
pub(crate) fn make() -> Result<(), String> {
    for directory in ["usr", "usr/bin", "usr/lib", "usr/lib/init.d", "etc"] {
        let path = format!("{ROOT}/{directory}");
        fs::create_dir(&path).map_err(|error| format!("{path}: {error}"))?;
    }
    let files = [
        ("bin/iommud", "usr/bin/iommud"),
        ("bin/redox-guest", "usr/bin/redox-guest"),
        ("etc/iommud.toml", "etc/iommud.toml"),
        ("late/00_iommud.service", "usr/lib/init.d/00_iommud.service"),
    ];
    for (from, to) in files {
        copy(&format!("{INITFS}/{from}"), &format!("{ROOT}/{to}"))?;
    }
    let unit = format!("{ROOT}/usr/lib/init.d/90_checks.service");
    fs::write(&unit, CHECKS).map_err(|error| format!("{unit}: {error}"))?;
    Command::new(format!("{INITFS}/bin/redox-guest"))
        .arg("load")
        .spawn()
        .map_err(|error| format!("the reader: {error}"))?;
    std::thread::sleep(std::time::Duration::from_millis(500));
    Ok(())
}

fn copy(from: &str, to: &str) -> Result<(), String> {
    let bytes = fs::read(from).map_err(|error| format!("{from}: {error}"))?;
    // All files must be executable; other files made on the memory file system are not.
    fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o755)
        .open(to)
        .and_then(|mut file| file.write_all(&bytes))
        .map_err(|error| format!("{to}: {error}"))
}
