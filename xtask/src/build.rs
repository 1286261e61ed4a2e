//! Builds the programs for guests.

use std::path::PathBuf;

use anyhow::{Result, ensure};

use crate::workspace::{cargo, root, target};

/// Target of the guests' binaries. They are linked statically and need only a kernel.
const TRIPLE: &str = "x86_64-unknown-linux-gnu";

/// Packages of the Linux guest.
const PACKAGES: [&str; 6] = ["guest", "iommud", "iommuctl", "edud", "nvme", "rogue"];

/// Builds the binaries of the Linux guest. Returns their directory. Programs that are measured have no debug assertions:
/// these turn the sanitizer of the client library on, which fills memory that a driver gives back.
pub(crate) fn linux_guest(measured: bool) -> Result<PathBuf> {
    if measured {
        return build(&PACKAGES, "vm-measured", &[("CARGO_PROFILE_DEV_DEBUG_ASSERTIONS", "false")]);
    }
    build(&PACKAGES, "vm", &[])
}

/// Builds the program of one more package for the Linux guest. Returns its path.
///
/// # Errors
/// It is no package of the workspace, has no program of its name, or does not compile.
pub(crate) fn guest_program(package: &str) -> Result<PathBuf> {
    let program = build(&[package], "vm", &[])?.join(package);
    ensure!(program.is_file(), "{package} has no program {package}");
    Ok(program)
}

/// Builds programs for Linux below this directory of the target's, with these settings of cargo.
fn build(packages: &[&str], directory: &str, settings: &[(&str, &str)]) -> Result<PathBuf> {
    let directory = target().join(directory);
    let mut command = cargo();
    command.envs(settings.iter().copied());
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
