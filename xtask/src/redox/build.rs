//! Builds this project's programs for Redox with Debian's compiler and the standard library's sources.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::tree::Tree;
use crate::packages::{self, Missing};
use crate::workspace::{cargo, quietly, root, target};

const TARGET: &str = "x86_64-unknown-redox";

/// Debian's compiler, which matches the library's sources. The package `rust-web-src` has no program, so a file shows
/// its presence.
const CARGO: &str = "/usr/bin/cargo";
const RUSTC: &str = "/usr/bin/rustc";
const CLIPPY: &str = "/usr/bin/cargo-clippy";
const SOURCES: &str = "/usr/lib/rustlib/src/rust/library/std/Cargo.toml";

/// The required files, and their packages.
const COMPILER: [(&str, &str); 3] =
    [(CARGO, "cargo-web"), (RUSTC, "rustc-web"), (SOURCES, "rust-web-src")];

/// The crates for Redox.
const PACKAGES: [&str; 7] =
    ["iommud", "iommuctl", "iommu-run", "edud", "nvme", "rogue", "redox-guest"];

/// The programs of those crates.
const PROGRAMS: [&str; 7] =
    ["iommud", "iommuctl", "iommu-run", "edud", "nvme", "rogue", "redox-guest"];

/// Builds the loader, for a machine without an operating system.
///
/// # Errors
/// It does not compile.
pub(crate) fn loader() -> Result<PathBuf> {
    let triple = "x86_64-unknown-linux-gnu";
    let directory = target().join("redox-loader");
    let mut command = cargo();
    command.args(["build", "--quiet", "--locked", "--target", triple, "--target-dir"]);
    command.arg(&directory).arg("--manifest-path").arg(root().join("tests/vm/redox/Cargo.toml"));
    command.env_remove("CARGO_ENCODED_RUSTFLAGS");
    command.env("RUSTFLAGS", "-Crelocation-model=static -Ctarget-feature=+crt-static");
    ensure!(command.status()?.success(), "building the loader failed");
    Ok(directory.join(triple).join("debug/redox-loader"))
}

/// Ensures that a compiler for Redox is available.
///
/// # Errors
/// `Missing` packages; they cannot be installed.
pub(crate) fn compiler() -> Result<()> {
    packages::require_files(&COMPILER)?;
    if version()? >= wanted() {
        return Ok(());
    }
    // Old package lists name an old compiler. The linter must have the compiler's version.
    let linter = Path::new(CLIPPY).exists().then_some("rust-web-clippy");
    let names: Vec<&str> = COMPILER.iter().map(|(_, package)| *package).chain(linter).collect();
    packages::renew(&names)?;
    let (found, wanted) = (version()?, wanted());
    ensure!(
        found >= wanted,
        Missing::new(format!("rustc-web {found:?} is too old: {wanted:?} is wanted"))
    );
    Ok(())
}

/// Version of Debian's compiler.
fn version() -> Result<(u32, u32)> {
    let text = quietly(Command::new(RUSTC).arg("--version"))?;
    let number = text.split_whitespace().nth(1).unwrap_or_default();
    numbers(number).with_context(|| format!("no version in: {text}"))
}

/// The oldest compiler that can build the project.
fn wanted() -> (u32, u32) {
    numbers(env!("CARGO_PKG_RUST_VERSION")).unwrap_or_default()
}

/// The first two numbers of a version such as `1.95.0`.
fn numbers(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.split('.').map(str::parse);
    Some((parts.next()?.ok()?, parts.next()?.ok()?))
}

/// The same as [`debian_cargo`], with this workspace's lock file unchanged.
fn locked(program: &str, command: &str) -> Result<Command> {
    debian_cargo(program, command, &["--locked"])
}

/// Builds a command of Debian's cargo. `program` is cargo or cargo-clippy, because `cargo clippy` would find another
/// toolchain's.
fn debian_cargo(program: &str, command: &str, options: &[&str]) -> Result<Command> {
    compiler()?;
    let mut cargo = Command::new(program);
    cargo.current_dir(root()).env("RUSTC", RUSTC).env("RUSTC_BOOTSTRAP", "1").env("CARGO", CARGO);
    cargo.env_remove("RUSTUP_TOOLCHAIN").env_remove("CARGO_ENCODED_RUSTFLAGS");
    cargo.args([command, "--quiet", "--target", TARGET]).args(options);
    cargo.args(["-Z", "build-std=std,panic_abort", "--target-dir"]);
    cargo.arg(target().join("redox"));
    Ok(cargo)
}

/// Compiles everything for Redox without linking it, so no tree is needed.
///
/// # Errors
/// `Missing` packages.
pub(crate) fn check() -> Result<bool> {
    let (passed, failed, skipped) = check_counted()?;
    println!("redox: {passed} passed, {failed} failed, {skipped} not checked");
    Ok(failed == 0)
}

/// The same as [`check`]. Returns the numbers of passed, failed and skipped checks. Lints are checked if the
/// compiler's linter is available.
///
/// # Errors
/// `Missing` packages.
pub(crate) fn check_counted() -> Result<(usize, usize, usize)> {
    compiler()?;
    let linter = packages::require_files(&[(CLIPPY, "rust-web-clippy")]);
    let lints = linter.inspect_err(|error| println!("not checked: lints for Redox: {error:#}"));
    let lints = lints.is_ok();
    let mut cargo = if lints { locked(CLIPPY, "clippy")? } else { locked(CARGO, "check")? };
    for package in ["iommu-protocol", "iommu-client", "redox-dma"].iter().chain(&PACKAGES) {
        cargo.args(["-p", package]);
    }
    if lints {
        cargo.args(["--no-deps", "--", "--deny", "warnings"]);
    }
    let here = cargo.status()?.success();
    let outside = outside()?;
    if !outside {
        println!("FAILED: a crate outside of this workspace with these libraries does not compile");
    }
    let passed = usize::from(here) + usize::from(outside);
    Ok((passed, 2 - passed, usize::from(!lints)))
}

/// Whether a crate outside of this workspace that depends on `iommu-client` and `redox-dma` compiles. It gets a new lock
/// file with the newest versions in the registry.
fn outside() -> Result<bool> {
    let directory = std::env::temp_dir().join(format!("iommud-outside-{}", std::process::id()));
    std::fs::create_dir_all(directory.join("src"))?;
    let (client, memory) = (root().join("drivers/client"), root().join("drivers/redox-dma"));
    let manifest = format!(
        "[package]\nname = \"outside\"\nversion = \"0.1.0\"\nedition = \"2024\"\n\n[workspace]\n\n\
         [dependencies]\niommu-client = {{ path = {client:?} }}\nredox-dma = {{ path = {memory:?} }}\n\
         libredox = \"0.1\"\n"
    );
    std::fs::write(directory.join("Cargo.toml"), manifest)?;
    std::fs::write(directory.join("src/lib.rs"), OUTSIDE)?;
    let mut cargo = debian_cargo(CARGO, "check", &[])?;
    let passed = cargo.current_dir(&directory).status()?.success();
    std::fs::remove_dir_all(&directory)?;
    Ok(passed)
}

/// A driver outside of this workspace, like the one in `drivers/README.md`, and the crate of Redox's own drivers with
/// the change described there.
const OUTSIDE: &str = r#"
pub use redox_dma::{dma, sgl};

pub fn status() -> libredox::error::Result<dma::Dma<u8>> {
    redox_dma::init();
    dma::Dma::new(0)
}

use iommu_client::{Connection, Device, DmaBuffer, Error};

pub fn run() -> Result<(), Error> {
    let device = Device::open(&Connection::system()?, "0000--00--04.0")?;
    let permission = device.attach()?;
    let mut ring = DmaBuffer::<[u64]>::zeroed_slice(&device, 512)?;
    ring.set(0, ring.iova())?;
    Ok(device.detach(permission)?)
}
"#;

/// Builds the programs and links them with the tree's library.
///
/// # Errors
/// `Missing` packages; a failed compilation or link.
pub(crate) fn programs(tree: &Tree) -> Result<Vec<PathBuf>> {
    let mut cargo = locked(CARGO, "build")?;
    cargo.arg("--release");
    for package in PACKAGES {
        cargo.args(["-p", package]);
    }
    // A program is copied page by page when it starts, so its size adds to the boot time.
    cargo.args(["-Z", "build-std-features="]);
    for (key, value) in [
        ("OPT_LEVEL", "s"),
        ("PANIC", "abort"),
        ("LTO", "fat"),
        ("CODEGEN_UNITS", "1"),
        ("DEBUG", "false"),
        ("STRIP", "symbols"),
    ] {
        let name = format!("CARGO_PROFILE_RELEASE_{key}");
        // A user's own setting takes precedence: without LTO the build takes a third of the time.
        if std::env::var_os(&name).is_none() {
            cargo.env(name, value);
        }
    }
    cargo.env("CARGO_ENCODED_RUSTFLAGS", link_flags(&tree.libraries()));
    ensure!(cargo.status()?.success(), "building for Redox failed");
    let built = target().join("redox").join(TARGET).join("release");
    Ok(PROGRAMS.iter().map(|name| built.join(name)).collect())
}

/// Returns flags that make gcc for Linux link a static program for Redox. It uses the tree's start files and library,
/// and only libgcc of this system.
fn link_flags(libraries: &Path) -> OsString {
    let mut arguments: Vec<OsString> =
        ["-nostartfiles", "-nostdlib", "-static", "-no-pie"].map(OsString::from).into();
    let mut search = OsString::from("-L");
    search.push(libraries);
    arguments.push(search);
    for file in ["crt0.o", "crti.o"] {
        arguments.push(libraries.join(file).into());
    }
    for file in ["libgcc_eh.a", "libc.a"] {
        arguments.push(libraries.join(file).into());
    }
    arguments.push("-lgcc".into());
    arguments.push(libraries.join("crtn.o").into());
    let mut flags = OsString::from("-Clinker=gcc");
    for argument in arguments {
        flags.push("\u{1f}-Clink-arg=");
        flags.push(argument);
    }
    flags
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_their_numbers() {
        assert_eq!(numbers("1.96.0"), Some((1, 96)));
        assert_eq!(numbers("1.95"), Some((1, 95)));
        assert!(numbers("1.100.1") > numbers("1.95.0"));
        assert_eq!((numbers("nightly"), numbers("1")), (None, None));
        assert!(wanted() >= (1, 95));
    }
}
