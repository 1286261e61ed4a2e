//! Debian packages. Missing ones are installed as root, or else named.

use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::workspace::quietly;

/// A requirement that must be installed by hand.
#[derive(Debug)]
pub(crate) struct Missing(String);

impl Missing {
    /// Creates the error with a description of the requirement.
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Missing {}

/// A program, and its Debian package.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Program {
    /// Name of the executable.
    pub(crate) name: &'static str,
    /// Name of the package.
    pub(crate) package: &'static str,
}

/// The emulator.
pub(crate) const QEMU: Program = Program { name: "qemu-system-x86_64", package: "qemu-system-x86" };

/// Unpacks packages of another release, with their dependencies, into a directory.
pub(crate) const MMDEBSTRAP: Program = Program { name: "mmdebstrap", package: "mmdebstrap" };

/// The C++ compiler. It builds libFuzzer from source.
pub(crate) const CXX: Program = Program { name: "c++", package: "g++" };

/// Ensures that the programs can be started. Installs missing ones as root, or else names them.
///
/// # Errors
/// `Missing` with the packages' names; a failed installation.
pub(crate) fn require(programs: &[Program]) -> Result<()> {
    let missing: Vec<_> = programs.iter().filter(|program| find(program.name).is_none()).collect();
    let names: Vec<_> = missing.iter().map(|program| program.package).collect();
    bring(&names)
}

fn bring(names: &[&str]) -> Result<()> {
    if names.is_empty() {
        return Ok(());
    }
    if !is_root() || find("apt-get").is_none() {
        let names = names.join(" ");
        return Err(Missing(format!(
            "missing packages: {names}\ninstall them: apt-get install {names}"
        ))
        .into());
    }
    println!("installing {}", names.join(" "));
    if !have_lists() {
        update()?;
    }
    install(names).or_else(|_| {
        // The package lists may name versions that the archive no longer has.
        update()?;
        install(names)
    })
}

/// The same as [`require`], for packages recognised by a file: pairs of file and package.
///
/// # Errors
/// `Missing` with the packages' names; a failed installation.
pub(crate) fn require_files(files: &[(&str, &'static str)]) -> Result<()> {
    let missing = files.iter().filter(|(file, _)| !Path::new(file).exists());
    let missing: Vec<&str> = missing.map(|(_, package)| *package).collect();
    bring(&missing)
}

/// Installs the packages' newest versions, because the installed ones are too old. Updates the package lists first.
///
/// # Errors
/// `Missing` when not root; a failed installation.
pub(crate) fn renew(names: &[&str]) -> Result<()> {
    update()?;
    println!("installing {}", names.join(" "));
    install(names)
}

fn install(names: &[&str]) -> Result<()> {
    let mut apt = apt_get();
    apt.args(["install", "--yes", "--no-install-recommends"]).args(names);
    quietly(&mut apt).map(drop)
}

/// Fetches the lists of packages.
///
/// # Errors
/// `Missing` when not root.
fn update() -> Result<()> {
    if !is_root() {
        return Err(Missing(
            "the package lists are missing or old: run apt-get update as root".into(),
        )
        .into());
    }
    println!("fetching package lists");
    quietly(apt_get().arg("update")).map(drop)
}

/// Downloads a dependency of the meta package `meta` whose name starts with `prefix` into `directory`, without
/// installing it.
///
/// # Errors
/// The package does not exist; a failed download.
pub(crate) fn download_dependency(meta: &str, prefix: &str, directory: &Path) -> Result<PathBuf> {
    download_named(meta, || dependency(meta, prefix), directory)
}

/// Downloads a package into `directory`, without installing it.
///
/// # Errors
/// The package does not exist; a failed download.
pub(crate) fn download(package: &str, directory: &Path) -> Result<PathBuf> {
    download_named(package, || Ok(package.into()), directory)
}

fn download_named(
    what: &str,
    name: impl Fn() -> Result<String>,
    directory: &Path,
) -> Result<PathBuf> {
    if find("apt-get").is_none() {
        return Err(Missing(format!("no apt-get here to download {what} with")).into());
    }
    if !have_lists() {
        update()?;
    }
    name().and_then(|package| download_once(&package, directory)).or_else(|_| {
        update()?;
        download_once(&name()?, directory)
    })
}

fn download_once(package: &str, directory: &Path) -> Result<PathBuf> {
    println!("downloading {package}");
    quietly(apt_get().args(["download", package]).current_dir(directory))?;
    let start = format!("{package}_");
    std::fs::read_dir(directory)?
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .find(|path| {
            path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&start))
        })
        .with_context(|| format!("apt-get download {package} left no file"))
}

fn dependency(meta: &str, prefix: &str) -> Result<String> {
    let text = quietly(Command::new("apt-cache").args(["depends", "--important", meta]))?;
    text.lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .find(|name| name.starts_with(prefix))
        .map(Into::into)
        .with_context(|| format!("{meta} depends on no {prefix}*"))
}

fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command.arg("--quiet=2").env("DEBIAN_FRONTEND", "noninteractive");
    command
}

fn have_lists() -> bool {
    quietly(Command::new("apt-cache").args(["show", QEMU.package])).is_ok()
}

/// Whether this process may install packages.
fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
}

/// Finds the executable of this name on the search path.
pub(crate) fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|directory| directory.join(name)).find(|file| file.is_file())
}
