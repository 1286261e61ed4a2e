//! Builds the programs for guests.

use std::path::PathBuf;

use anyhow::{Result, ensure};

use crate::workspace::{cargo, root, target};

/// Target of the guests' binaries. They are linked statically and need only a kernel.
const TRIPLE: &str = "x86_64-unknown-linux-gnu";

/// Packages of the Linux guest.
const PACKAGES: [&str; 6] = ["guest", "iommud", "iommuctl", "edud", "nvme", "rogue"];

/// Builds the binaries of the Linux guest. Returns their directory.
pub(crate) fn linux_guest() -> Result<PathBuf> {
    for_linux(&PACKAGES)
}

/// Builds the program of one more package for the Linux guest. Returns its path.
///
/// # Errors
/// It is no package of the workspace, has no program of its name, or does not compile.
pub(crate) fn guest_program(package: &str) -> Result<PathBuf> {
    let program = for_linux(&[package])?.join(package);
    ensure!(program.is_file(), "{package} has no program {package}");
    Ok(program)
}

fn for_linux(packages: &[&str]) -> Result<PathBuf> {
    let directory = target().join("vm");
    let mut command = cargo();
    command.args(["build", "--quiet", "--locked", "--bins", "--target", TRIPLE, "--target-dir"]);
    command.arg(&directory);
    for package in packages {
        command.args(["--package", package]);
    }
    // Because the target is named, only code built for the target gets these flags, not build scripts.
    command.env_remove("CARGO_ENCODED_RUSTFLAGS");
    command.env("RUSTFLAGS", "-Ctarget-feature=+crt-static -Cstrip=debuginfo");
    ensure!(command.status()?.success(), "building the guest's programs failed");
    Ok(directory.join(TRIPLE).join("debug"))
}

/// Builds the bare guest. Returns the path of its image.
pub(crate) fn bare_guest() -> Result<PathBuf> {
    let directory = target().join("bare");
    let mut command = cargo();
    command.args(["build", "--quiet", "--locked", "--release", "--target", TRIPLE, "--target-dir"]);
    command.arg(&directory).arg("--manifest-path").arg(root().join("tests/vm/bare/Cargo.toml"));
    command.env_remove("CARGO_ENCODED_RUSTFLAGS");
    command.env("RUSTFLAGS", "-Crelocation-model=static");
    ensure!(command.status()?.success(), "building the bare guest failed");
    Ok(directory.join(TRIPLE).join("release").join("bare"))
}
