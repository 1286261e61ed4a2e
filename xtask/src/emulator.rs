//! Chooses QEMU: the installed one, or a newer one of Debian's. The newer one is unpacked into the cache and started
//! with its own loader and libraries.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::packages::{self, MMDEBSTRAP, Missing, QEMU};
use crate::workspace::{cache, quietly};

/// Suites of the newer QEMU: the one of its libraries, and its own.
const SUITES: [&str; 2] = ["trixie", "trixie-backports"];

/// A QEMU that can be started.
#[derive(Clone, Debug)]
pub(crate) struct Emulator {
    program: PathBuf,
    arguments: Vec<OsString>,
}

impl Emulator {
    /// Returns the QEMU of Debian's release. Installs it if it is missing and this process is root.
    pub(crate) fn installed() -> Result<Self> {
        packages::require(&[QEMU])?;
        Ok(Self { program: QEMU.name.into(), arguments: Vec::new() })
    }

    /// Returns QEMU 11 or later. Unpacks it on the first call.
    pub(crate) fn newer() -> Result<Self> {
        let root = cache("qemu")?.join("root");
        if !root.is_dir() {
            unpack(&root)?;
        }
        let libraries = root.join("usr/lib/x86_64-linux-gnu");
        let mut arguments: Vec<OsString> = vec!["--library-path".into(), libraries.clone().into()];
        arguments.push(root.join("usr/bin").join(QEMU.name).into());
        for data in ["usr/share/qemu", "usr/share/seabios"] {
            arguments.extend(["-L".into(), root.join(data).into()]);
        }
        Ok(Self { program: libraries.join("ld-linux-x86-64.so.2"), arguments })
    }

    /// Returns a command that starts it.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.arguments);
        command
    }

    /// Its version text.
    pub(crate) fn version(&self) -> Result<String> {
        let text = quietly(self.command().arg("--version"))?;
        Ok(text.lines().next().unwrap_or_default().into())
    }

    /// Its version number, such as `11.1.3`.
    pub(crate) fn number(&self) -> Result<String> {
        let text = self.version()?;
        let digits = |word: &&str| word.starts_with(|first: char| first.is_ascii_digit());
        let number = text.split_whitespace().find(digits);
        Ok(number.with_context(|| format!("no version in: {text}"))?.into())
    }
}

fn unpack(root: &Path) -> Result<()> {
    packages::require(&[MMDEBSTRAP])?;
    let mirror = mirror()?;
    println!("unpacking {} of {}", QEMU.package, SUITES.join(" and "));
    let scratch = root.with_extension("partial");
    if scratch.exists() {
        std::fs::remove_dir_all(&scratch)?;
    }
    let mut command = Command::new(MMDEBSTRAP.name);
    command.args(["--variant=extract", "--quiet", "--include", QEMU.package]);
    let preferred = SUITES.last().copied().unwrap_or_default();
    command.arg(format!("--aptopt=APT::Default-Release \"{preferred}\""));
    command.arg("--aptopt=APT::Install-Recommends \"false\"");
    command.args(SUITES.first()).arg(&scratch);
    command.args(SUITES.map(|suite| format!("deb {mirror} {suite} main")));
    quietly(&mut command)?;
    // Renames last, so that a directory in place is complete.
    std::fs::rename(&scratch, root).with_context(|| format!("renaming {}", scratch.display()))
}

/// Returns the archive from which this machine takes Debian's packages.
fn mirror() -> Result<String> {
    let text = quietly(Command::new("apt-get").args([
        "indextargets",
        "--format",
        "$(SITE)",
        "Created-By: Packages",
        "Origin: Debian",
        "Label: Debian",
    ]))?;
    let first = text.lines().next().unwrap_or_default();
    ensure!(!first.is_empty(), Missing::new("no Debian archive is configured: run apt-get update"));
    Ok(first.into())
}
