//! Builds of what runs inside guests.

use std::path::PathBuf;

use anyhow::{Result, ensure};

use crate::workspace::{cargo, root, target};

/// Where guests' binaries are built for: linked statically, they need nothing but a kernel.
const TRIPLE: &str = "x86_64-unknown-linux-gnu";

/// Packages of the Linux guest.
const PACKAGES: [&str; 5] = ["guest", "iommud", "edud", "nvme", "rogue"];

/// Builds the binaries of the Linux guest; returns the directory that they are in.
pub(crate) fn linux_guest() -> Result<PathBuf> {
    let directory = target().join("vm");
    let mut command = cargo();
    command.args(["build", "--quiet", "--locked", "--bins", "--target", TRIPLE, "--target-dir"]);
    command.arg(&directory);
    for package in PACKAGES {
        command.args(["--package", package]);
    }
    // Only what is built for the target gets these flags, since the target is named.
    command.env_remove("CARGO_ENCODED_RUSTFLAGS");
    command.env("RUSTFLAGS", "-Ctarget-feature=+crt-static -Cstrip=debuginfo");
    ensure!(command.status()?.success(), "building the guest's programs failed");
    Ok(directory.join(TRIPLE).join("debug"))
}

/// Builds the bare guest; returns its image.
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
