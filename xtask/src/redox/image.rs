//! The initial file system: the tree's, with this project's programs and units.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::tree::Tree;
use crate::workspace::{quietly, root};

/// Units of this project that go into the image.
const UNITS: [&str; 2] = ["40_iommud.service", "40_pcid-spawner-initfs.service"];

/// In place of the root file system, which no test needs, the checks are run.
const CHECKS: &str = r#"[unit]
description = "Checks"
requires_weak = ["40_drivers.target"]

[service]
cmd = "redox-guest"
type = "oneshot"
"#;

/// A driver for the network card too; the tree's configuration has only disks and screens.
const DRIVERS: &str = r#"
[[drivers]]
name = "E1000"
class = 2
subclass = 0
vendor = 0x8086
device = 0x100e
command = ["/scheme/initfs/lib/drivers/e1000d"]
"#;

/// Packs the image into `directory`.
///
/// # Errors
/// A file cannot be copied; the tree's packer fails.
pub(crate) fn pack(tree: &Tree, programs: &[PathBuf], directory: &Path) -> Result<PathBuf> {
    let initfs = directory.join("initfs");
    copy(&tree.initfs(), &initfs)?;
    for program in programs {
        let name = program.file_name().context("a program without a name")?;
        fs::copy(program, initfs.join("bin").join(name))
            .with_context(|| program.display().to_string())?;
    }
    let units = initfs.join("lib/init.d");
    for unit in UNITS {
        fs::copy(root().join("iommud/image").join(unit), units.join(unit))?;
    }
    fs::write(units.join("50_rootfs.service"), CHECKS)?;
    if initfs.join("lib/drivers/e1000d").exists() {
        fs::write(initfs.join("lib/pcid.d/e1000d.toml"), DRIVERS)?;
    }
    let image = directory.join("initfs.img");
    quietly(Command::new(tree.packer()).arg(&initfs).arg(tree.bootstrap()).arg("-o").arg(&image))?;
    Ok(image)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from).with_context(|| from.display().to_string())? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), &target)?;
        }
    }
    Ok(())
}
