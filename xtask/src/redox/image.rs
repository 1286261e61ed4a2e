//! The initial file system: the tree's own, with this project's programs and units.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::tree::Tree;
use crate::workspace::{quietly, root};

/// Units of this project that go into the image.
const UNITS: [&str; 2] = ["40_iommud.service", "40_pcid-spawner-initfs.service"];

/// The time at which iommud starts, and the program run after the drivers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// iommud starts before the first driver; then the checks run.
    Early,
    /// Like `Early`, by a unit of type oneshot.
    Oneshot,
    /// iommud starts from a root file system while a disk is read; then the checks run.
    Late,
    /// Like `Early`; then only the time is reported.
    EarlyTimed,
    /// iommud does not start; only the time is reported.
    WithoutTimed,
    /// Like `Early`; then a prompt instead of the checks.
    Shell,
}

impl Stage {
    /// The task of the guest's program, which runs in place of mounting the root file system.
    const fn task(self) -> &'static str {
        match self {
            Self::Early | Self::Oneshot => "early",
            Self::Late => "root",
            Self::EarlyTimed | Self::WithoutTimed => "mark\", \"end",
            Self::Shell => "shell",
        }
    }
}

/// Returns the unit that replaces the root file system's.
fn last_unit(stage: Stage) -> String {
    let root = if stage == Stage::Late { ", \"ramfs@file.service\"" } else { "" };
    let task = stage.task();
    format!(
        r#"[unit]
description = "Checks"
requires_weak = ["40_drivers.target"{root}]

[service]
cmd = "redox-guest"
args = ["{task}"]
type = "oneshot"
"#
    )
}

/// A driver for the network card. The tree's configuration has only disks and screens.
const DRIVERS: &str = r#"
[[drivers]]
name = "E1000"
class = 2
subclass = 0
vendor = 0x8086
device = 0x100e
command = ["/scheme/initfs/lib/drivers/e1000d"]
"#;

/// This project's NVMe driver for the second controller, launched without a name as another user. The controller has
/// different ids from the system's disk. The first
/// matching driver is used, and files are read in the order of their names.
const NVME: &str = r#"
[[drivers]]
name = "NVMe through iommud"
vendor = 0x8086
device = 0x5845
command = ["/scheme/initfs/bin/iommu-run", "--user", "1000", "--names", "none", "--", "/scheme/initfs/bin/nvme", "info", "--interrupts"]
"#;

/// Packs the image for `stage` into `directory`.
///
/// # Errors
/// A file cannot be copied; the tree's packer fails.
pub(super) fn pack(
    tree: &Tree,
    programs: &[PathBuf],
    stage: Stage,
    directory: &Path,
) -> Result<PathBuf> {
    let initfs = directory.join("initfs");
    let _ = fs::remove_dir_all(&initfs);
    copy(&tree.initfs(), &initfs)?;
    for program in programs {
        let name = program.file_name().context("a program without a name")?;
        fs::copy(program, initfs.join("bin").join(name))
            .with_context(|| program.display().to_string())?;
    }
    let units = initfs.join("lib/init.d");
    let ours = root().join("iommud/image");
    match stage {
        Stage::Early | Stage::Oneshot | Stage::EarlyTimed | Stage::Shell => {
            for unit in UNITS {
                fs::copy(ours.join(unit), units.join(unit))?;
            }
        }
        Stage::Late => {
            for (folder, from) in [("late", "image/00_iommud.service"), ("etc", "policy.toml")] {
                let from = root().join("iommud").join(from);
                fs::create_dir_all(initfs.join(folder))?;
                let name = from.file_name().context("a file without a name")?;
                let name = if folder == "etc" { "iommud.toml".as_ref() } else { name };
                fs::copy(&from, initfs.join(folder).join(name))
                    .with_context(|| from.display().to_string())?;
            }
        }
        Stage::WithoutTimed => {}
    }
    if stage == Stage::Oneshot {
        let unit = units.join(UNITS[0]);
        change(&unit, "[\"--keep\"]", "[\"--keep\", \"--oneshot\"]")?;
        change(&unit, "{ scheme = \"iommu\" }", "\"oneshot\"")?;
    }
    if matches!(stage, Stage::EarlyTimed | Stage::WithoutTimed) {
        timed(&units)?;
    }
    fs::write(units.join("50_rootfs.service"), last_unit(stage))?;
    fs::write(initfs.join("lib/pcid.d/00_nvme.toml"), NVME)?;
    if initfs.join("lib/drivers/e1000d").exists() {
        fs::write(initfs.join("lib/pcid.d/e1000d.toml"), DRIVERS)?;
    }
    let image = directory.join("initfs.img");
    quietly(Command::new(tree.packer()).arg(&initfs).arg(tree.bootstrap()).arg("-o").arg(&image))?;
    Ok(image)
}

/// Adds marks before and after iommud's unit, alike in the images with and without it.
fn timed(units: &Path) -> Result<()> {
    let mark = |point: &str, after: &str| {
        let text = format!(
            "[unit]\ndescription = \"Mark\"\nrequires_weak = [\"{after}\"]\n\n[service]\n\
             cmd = \"redox-guest\"\nargs = [\"mark\", \"{point}\"]\ntype = \"oneshot\"\n"
        );
        fs::write(units.join(format!("40_mark-{point}.service")), text)
    };
    mark("before", "40_hwd.service")?;
    let iommud = units.join(UNITS[0]);
    let after = if iommud.exists() { UNITS[0] } else { "40_mark-before.service" };
    mark("after", after)?;
    if iommud.exists() {
        change(&iommud, "\"40_hwd.service\"", "\"40_mark-before.service\"")?;
    }
    change(&units.join(UNITS[1]), "\"40_hwd.service\"", "\"40_mark-after.service\"")
}

/// Replaces `old`, which must be present, by `new`.
fn change(unit: &Path, old: &str, new: &str) -> Result<()> {
    let text = fs::read_to_string(unit).with_context(|| unit.display().to_string())?;
    ensure!(text.contains(old), "{}: no {old}", unit.display());
    Ok(fs::write(unit, text.replace(old, new))?)
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
