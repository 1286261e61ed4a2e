//! `xtask package`: packages of this project's programs, as Redox's installer takes them.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::options::PackageOptions;
use crate::workspace::{cargo, quietly, root, target};
use crate::{guest, redox};

/// The packages: name, and the program in it.
const PACKAGES: [(&str, &str); 4] = [
    ("iommud", "iommud"),
    ("iommuctl", "iommuctl"),
    ("iommu-run", "iommu-run"),
    ("iommu-nvme", "nvme"),
];

/// Builds the programs with the tree's library, and packs them into the cookbook.
///
/// # Errors
/// `Missing` without a complete tree; a program cannot be built or packed.
pub(crate) fn run(options: &PackageOptions) -> Result<bool> {
    let programs = redox::programs(options.tree.as_deref())?;
    let directory = guest::directory("package")?;
    for (name, program) in PACKAGES {
        let built = programs.iter().find(|path| path.ends_with(program)).context(program)?;
        let folder = directory.join(name);
        lay_out(built, &folder)?;
        print!("{}", packed(&options.out, name, &folder)?);
    }
    fs::remove_dir_all(&directory)?;
    Ok(true)
}

/// Puts a program where it is to lie below the root of a file system.
fn lay_out(program: &Path, folder: &Path) -> Result<()> {
    let bin = folder.join("usr/bin");
    fs::create_dir_all(&bin).with_context(|| bin.display().to_string())?;
    let name = program.file_name().context("a program has a name")?;
    fs::copy(program, bin.join(name)).with_context(|| program.display().to_string())?;
    Ok(())
}

/// Runs the packer. It is a workspace of its own, because of the installer's crates. Returns what it prints.
fn packed(out: &Path, name: &str, folder: &Path) -> Result<String> {
    let mut command: Command = cargo();
    command.args(["run", "--quiet", "--locked", "--manifest-path"]);
    command.arg(root().join("xtask/packer/Cargo.toml"));
    command.arg("--target-dir").arg(target().join("packer")).arg("--");
    let version = env!("CARGO_PKG_VERSION");
    let arguments: [OsString; 4] =
        [absolute(out)?.into(), name.into(), version.into(), folder.into()];
    quietly(command.args(arguments))
}

/// A path for a program that runs in another directory.
fn absolute(path: &Path) -> Result<PathBuf> {
    let path = std::path::absolute(path)?;
    ensure!(!path.is_file(), "{}: is a file", path.display());
    Ok(path)
}
