//! The Linux guest: a stock kernel, this project's programs as its first file system, three edu devices.

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

pub(crate) use checks::{Scenario, TRANSLATION_STAYS_ON};

#[path = "../../tests/vm/linux/src/tour.rs"]
mod tour;

pub(crate) use tour::TOUR;

/// Memory size of the guest.
const MEMORY: &str = "1G";

/// The kernel's command line. The kernel leaves the unit to iommud and does not remap device interrupts.
const COMMAND_LINE: &str = "console=ttyS0 quiet panic=-1 intremap=off mitigations=off nokaslr";

/// Whether the kernel drives the unit itself. Then the kernel reserves its registers, so /dev/mem must be allowed to
/// map them.
const fn unit_is_the_kernels(scenario: Scenario) -> &'static str {
    match scenario {
        Scenario::Groups => "intel_iommu=on iomem=relaxed",
        _ => "intel_iommu=off",
    }
}

/// The files of a guest.
pub(crate) struct Parts {
    /// The kernel's image.
    pub(crate) kernel: PathBuf,
    /// The first file system.
    pub(crate) initramfs: PathBuf,
    /// A directory for the console's file.
    pub(crate) directory: PathBuf,
}

/// Creates a directory for the files of a guest called `name`.
pub(crate) fn directory(name: &str) -> Result<PathBuf> {
    let path = target().join("vm").join("run").join(format!("{name}-{}", std::process::id()));
    std::fs::create_dir_all(&path).with_context(|| format!("creating {}", path.display()))?;
    Ok(path)
}

/// Writes the first file system: `/init`, every other program of `binaries` and those of `others` in `/bin`, and the
/// kernel's modules in `/modules`.
pub(crate) fn initramfs(
    binaries: &Path,
    others: &[&Path],
    modules: &[PathBuf],
    to: &Path,
) -> Result<()> {
    let mut archive = Archive::default();
    for directory in ["dev", "proc", "sys", "run", "tmp", "bin", "etc", "modules"] {
        archive.directory(directory)?;
    }
    archive.device("dev/console", 5, 1)?;
    for (name, path) in [
        ("init", "init"),
        ("iommud", "bin/iommud"),
        ("iommuctl", "bin/iommuctl"),
        ("edud", "bin/edud"),
        ("nvme", "bin/nvme"),
        ("rogue", "bin/rogue"),
    ] {
        let file = binaries.join(name);
        let content =
            std::fs::read(&file).with_context(|| format!("reading {}", file.display()))?;
        archive.executable(path, &content)?;
    }
    let others = others.iter().map(|file| ("bin", *file));
    for (folder, file) in others.chain(modules.iter().map(|file| ("modules", &**file))) {
        let name = file.file_name().context("a file without a name")?.to_string_lossy();
        let content = std::fs::read(file).with_context(|| format!("reading {}", file.display()))?;
        archive.executable(&format!("{folder}/{name}"), &content)?;
    }
    std::fs::write(to, archive.finish()?).with_context(|| format!("writing {}", to.display()))
}

/// QEMU's AMD-Vi unit, from 10.2 on. Earlier versions, or a unit without `dma-remap`, translate nothing.
pub(crate) const AMD_UNIT: &str = "amd-iommu,intremap=off,dma-remap=on";

/// Builds the machine for scenarios; [`start`] chooses the scenario.
pub(crate) fn machine(
    parts: &Parts,
    iommu: Iommu,
    caching_mode: bool,
    deadline: Duration,
) -> Machine {
    let mut machine = Machine::new(MEMORY, &parts.directory, deadline);
    // Adds the unit first, because QEMU assigns devices to it as they are added.
    match iommu {
        Iommu::Intel => {
            let mode = if caching_mode { "on" } else { "off" };
            machine.args(["-device", &format!("intel-iommu,intremap=off,caching-mode={mode}")]);
        }
        Iommu::Amd => machine.args(["-device", AMD_UNIT]),
        Iommu::None => {}
    }
    let second = match iommu {
        // This device is on a bus of its own. Devices whose faults are checked are not, because up to QEMU 11.1 this
        // unit's records lack the bus.
        Iommu::Amd => "bus=rootport,addr=00.0",
        Iommu::Intel | Iommu::None => "addr=05.0",
    };
    if second.starts_with("bus") {
        machine.args(["-device", "pcie-root-port,id=rootport,chassis=1,addr=07.0"]);
    }
    for place in ["addr=04.0", second, "addr=06.0"] {
        // The device reaches all of the guest's memory, with or without translation.
        machine.args(["-device", &format!("edu,{place},dma_mask=0xffffffff")]);
    }
    machine.args(["-kernel".as_ref(), parts.kernel.as_os_str()]);
    machine.args(["-initrd".as_ref(), parts.initramfs.as_os_str()]);
    machine
}

/// Passes the scenario, QEMU's version and further words to the guest. Properties that this version cannot show are not
/// checked.
pub(crate) fn start(machine: &mut Machine, scenario: Scenario, words: &str, version: &str) {
    if scenario == Scenario::Groups {
        bridges(machine);
    }
    let unit = unit_is_the_kernels(scenario);
    let name = scenario.name();
    let line =
        format!("{COMMAND_LINE} {unit} iommud.scenario={name} iommud.emulator={version} {words}");
    machine.args(["-append", &line]);
}

/// Adds bridges of every kind that QEMU has, with devices behind each. Root ports with ACS and without, alone and as
/// functions of one device; a switch; PCI Express to PCI; conventional bridges, one behind the other; a second root
/// bus. Also adds devices with several functions.
fn bridges(machine: &mut Machine) {
    for device in [
        "pcie-root-port,id=alone,bus=pcie.0,chassis=1,addr=08.0",
        "pcie-root-port,id=open,bus=pcie.0,chassis=2,addr=09.0,disable-acs=on",
        "pcie-root-port,id=first,bus=pcie.0,chassis=3,addr=0a.0,multifunction=on",
        "pcie-root-port,id=second,bus=pcie.0,chassis=4,addr=0a.1",
        "pcie-root-port,id=trunk,bus=pcie.0,chassis=5,addr=0b.0",
        "pcie-root-port,id=old,bus=pcie.0,chassis=6,addr=0c.0",
        "pcie-root-port,id=loose,bus=pcie.0,chassis=7,addr=0d.0,disable-acs=on",
        "x3130-upstream,id=up,bus=trunk",
        "xio3130-downstream,id=down1,bus=up,chassis=8,addr=00.0",
        "xio3130-downstream,id=down2,bus=up,chassis=9,addr=01.0",
        "x3130-upstream,id=looseup,bus=loose",
        "xio3130-downstream,id=loosedown,bus=looseup,chassis=10,addr=00.0",
        "pcie-pci-bridge,id=pci,bus=old",
        "i82801b11-bridge,id=dmi,bus=pcie.0,addr=0e.0",
        "pci-bridge,id=inner,bus=dmi,chassis_nr=11,addr=01.0",
        "pxb-pcie,id=far,bus=pcie.0,bus_nr=64,addr=0f.0",
        "pcie-root-port,id=farport,bus=far,chassis=12,addr=00.0",
        "virtio-rng-pci,bus=alone,addr=00.0,multifunction=on",
        "virtio-rng-pci,bus=alone,addr=00.1",
        "virtio-rng-pci,bus=open",
        "virtio-rng-pci,bus=first",
        "virtio-rng-pci,bus=second",
        "virtio-rng-pci,bus=down1",
        "virtio-rng-pci,bus=down2",
        "virtio-rng-pci,bus=loosedown",
        "edu,bus=pci,addr=01.0",
        "edu,bus=pci,addr=02.0",
        "edu,bus=dmi,addr=02.0",
        "edu,bus=inner,addr=01.0",
        "virtio-rng-pci,bus=farport",
        "virtio-rng-pci,bus=pcie.0,addr=10.0,multifunction=on",
        "virtio-rng-pci,bus=pcie.0,addr=10.1",
    ] {
        machine.args(["-device", device]);
    }
}

/// QEMU's trace event for a unit's translation. VT-d's event reports that it was turned on or off. AMD-Vi's reports
/// every value of the control register, whose bit 0 turns it on.
const fn translation_event(iommu: Iommu) -> &'static str {
    match iommu {
        Iommu::Amd => "amdvi_control_status",
        Iommu::Intel | Iommu::None => "vtd_dmar_enable",
    }
}

/// Makes QEMU record when translation is turned on and off. Returns the file.
pub(crate) fn record_translation(machine: &mut Machine, parts: &Parts, iommu: Iommu) -> PathBuf {
    let record = parts.directory.join("translation.log");
    machine.args(["-trace", translation_event(iommu)]);
    machine.args(["-D".as_ref(), record.as_os_str()]);
    record
}

/// Whether the record shows that translation was turned on once and stayed on.
pub(crate) fn stayed_on(record: &str, iommu: Iommu) -> Result<(), String> {
    let event = translation_event(iommu);
    let values = record.lines().filter_map(|line| line.split_once(event)).map(|(_, value)| value);
    let last = |value: &str| value.split_whitespace().next_back().map(str::to_owned);
    let mut marks = Vec::new();
    for value in values.filter_map(last) {
        let number = match value.strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16),
            None => value.parse(),
        };
        let on = number.map_err(|_| format!("the record: {value}"))? & 1 != 0;
        if marks.last() != Some(&on) {
            marks.push(on);
        }
    }
    // AMD-Vi: iommud writes the register with translation off before it turns it on.
    let turned: Vec<bool> = marks.into_iter().skip_while(|on| iommu == Iommu::Amd && !on).collect();
    if turned == [true] { Ok(()) } else { Err(format!("the record, on or off: {turned:?}")) }
}

#[cfg(test)]
mod tests {
    use super::stayed_on;
    use crate::options::Iommu;

    #[test]
    fn anything_but_on_once_is_wrong() {
        let on = "4711@1700000000.5:vtd_dmar_enable enable 1\n";
        let off = "4711@1700000000.6:vtd_dmar_enable enable 0\n";
        assert_eq!(stayed_on(on, Iommu::Intel), Ok(()));
        for bad in [String::new(), off.into(), [on, off].concat(), [on, off, on].concat()] {
            assert!(stayed_on(&bad, Iommu::Intel).is_err(), "{bad}");
        }
    }

    #[test]
    fn control_values_show_the_same() {
        let line =
            |value: &str| format!("1@2.5:amdvi_control_status MMIO_STATUS state 0x{value}\n");
        let of = |values: &[&str]| values.iter().map(|value| line(value)).collect::<String>();
        assert_eq!(stayed_on(&of(&["400", "0", "b405", "b401", "b405"]), Iommu::Amd), Ok(()));
        for bad in [&[][..], &["400", "0"], &["b405", "0"], &["b405", "400", "b405"]] {
            assert!(stayed_on(&of(bad), Iommu::Amd).is_err(), "{bad:?}");
        }
        assert!(stayed_on("1@2.5:amdvi_control_status MMIO_STATUS state x\n", Iommu::Amd).is_err());
    }
}
