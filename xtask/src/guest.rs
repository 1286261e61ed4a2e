//! The Linux guest: a stock kernel, our programs as its first file system, three edu devices.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::cpio::Archive;
use crate::options::Iommu;
use crate::qemu::Machine;
use crate::workspace::target;

#[expect(dead_code, reason = "the guest, whose file it is, reads scenarios by name")]
#[path = "../../tests/vm/linux/src/checks.rs"]
mod checks;

pub(crate) use checks::Scenario;

/// Memory of the guest.
const MEMORY: &str = "1G";

/// What the kernel is told. The unit is left to us; interrupts of devices are not remapped.
const COMMAND_LINE: &str = "console=ttyS0 quiet panic=-1 intel_iommu=off intremap=off \
     mitigations=off nokaslr";

/// Where the parts of a guest are.
pub(crate) struct Parts {
    /// The kernel's image.
    pub(crate) kernel: PathBuf,
    /// The first file system.
    pub(crate) initramfs: PathBuf,
    /// A directory for the console's file.
    pub(crate) directory: PathBuf,
}

/// A directory for the files of a guest called `name`.
pub(crate) fn directory(name: &str) -> Result<PathBuf> {
    let path = target().join("vm").join("run").join(format!("{name}-{}", std::process::id()));
    std::fs::create_dir_all(&path).with_context(|| format!("creating {}", path.display()))?;
    Ok(path)
}

/// Writes the first file system: `/init`, and every other program of `binaries` in `/bin`.
pub(crate) fn initramfs(binaries: &Path, to: &Path) -> Result<()> {
    let mut archive = Archive::default();
    for directory in ["dev", "proc", "sys", "run", "tmp", "bin", "etc"] {
        archive.directory(directory)?;
    }
    archive.device("dev/console", 5, 1)?;
    for (name, path) in [
        ("init", "init"),
        ("iommud", "bin/iommud"),
        ("iommuctl", "bin/iommuctl"),
        ("edud", "bin/edud"),
    ] {
        let file = binaries.join(name);
        let content =
            std::fs::read(&file).with_context(|| format!("reading {}", file.display()))?;
        archive.executable(path, &content)?;
    }
    std::fs::write(to, archive.finish()?).with_context(|| format!("writing {}", to.display()))
}

/// QEMU's AMD-Vi unit, from 10.2 on; before, or without `dma-remap`, it translates nothing.
pub(crate) const AMD_UNIT: &str = "amd-iommu,intremap=off,dma-remap=on";

/// The machine that runs scenarios; [`start`] says which.
pub(crate) fn machine(
    parts: &Parts,
    iommu: Iommu,
    caching_mode: bool,
    deadline: Duration,
) -> Machine {
    let mut machine = Machine::new(MEMORY, &parts.directory, deadline);
    // The unit goes first: QEMU puts devices under it as they are added.
    match iommu {
        Iommu::Intel => {
            let mode = if caching_mode { "on" } else { "off" };
            machine.args(["-device", &format!("intel-iommu,intremap=off,caching-mode={mode}")]);
        }
        Iommu::Amd => machine.args(["-device", AMD_UNIT]),
        Iommu::None => {}
    }
    let second = match iommu {
        // On a bus of its own. Not the devices whose faults are looked at: up to QEMU 11.1 the records of
        // this unit have no bus.
        Iommu::Amd => "bus=rootport,addr=00.0",
        Iommu::Intel | Iommu::None => "addr=05.0",
    };
    if second.starts_with("bus") {
        machine.args(["-device", "pcie-root-port,id=rootport,chassis=1,addr=07.0"]);
    }
    for place in ["addr=04.0", second, "addr=06.0"] {
        // All of the guest's memory is within the device's reach, with or without translation.
        machine.args(["-device", &format!("edu,{place},dma_mask=0xffffffff")]);
    }
    machine.args(["-kernel".as_ref(), parts.kernel.as_os_str()]);
    machine.args(["-initrd".as_ref(), parts.initramfs.as_os_str()]);
    machine
}

/// Tells the guest what it is booted for, and on which version of QEMU: what that cannot show is not checked.
pub(crate) fn start(machine: &mut Machine, scenario: Scenario, version: &str) {
    let name = scenario.name();
    let line = format!("{COMMAND_LINE} iommud.scenario={name} iommud.emulator={version}");
    machine.args(["-append", &line]);
}
