//! Audits of folders that stand in for the root of a host.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use super::host::Host;
use super::{Report, Weight};
use crate::output::Look;

/// A host in a folder, which is removed with it.
struct Stand(PathBuf);

impl Stand {
    fn new(name: &str) -> Self {
        let root =
            std::env::temp_dir().join(format!("iommuctl-audit-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&root);
        fs::create_dir_all(&root).unwrap();
        Self(root)
    }

    fn write(&self, path: &str, content: impl AsRef<[u8]>) {
        let path = self.0.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    /// An endpoint that may master the bus; ATS at 0x100 on demand.
    fn device(&self, name: &str, id: [u16; 2], class: u32, ats: bool) {
        let mut config = vec![0u8; 4096];
        config[0..2].copy_from_slice(&id[0].to_le_bytes());
        config[2..4].copy_from_slice(&id[1].to_le_bytes());
        config[4] = 6;
        config[6] = 0x10;
        config[8..12].copy_from_slice(&(class << 8).to_le_bytes());
        config[0x34] = 0x40;
        config[0x40..0x44].copy_from_slice(&[0x10, 0, 0x92, 0]);
        if ats {
            config[0x100..0x104].copy_from_slice(&0x0001_000fu32.to_le_bytes());
            config[0x104..0x108].copy_from_slice(&0x8000_0000u32.to_le_bytes());
        }
        self.write(&format!("sys/bus/pci/devices/{name}/config"), config);
    }

    fn group(&self, device: &str, group: u32, kind: &str) {
        let folder = self.0.join("sys/kernel/iommu_groups").join(group.to_string());
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("type"), format!("{kind}\n")).unwrap();
        let link = self.0.join("sys/bus/pci/devices").join(device).join("iommu_group");
        symlink(Path::new("../../../kernel/iommu_groups").join(group.to_string()), link).unwrap();
    }

    /// A DMAR with one unit for everything.
    fn dmar(&self, flags: u8) {
        let mut bytes = b"DMAR\x40\0\0\0\x01\x00OEM   TABLE   ".to_vec();
        bytes.resize(64, 0);
        (bytes[36], bytes[37], bytes[50], bytes[52]) = (45, flags, 16, 1);
        (bytes[58], bytes[59]) = (0xd9, 0xfe);
        bytes[9] = 0u8.wrapping_sub(bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte)));
        self.write("sys/firmware/acpi/tables/DMAR", bytes);
    }

    fn report(&self) -> Report {
        Report::new(&Host::read(&self.0))
    }

    fn text(&self) -> String {
        self.report().text(Look::default())
    }
}

impl Drop for Stand {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

const NIC: [u16; 2] = [0x8086, 0x10d3];
const NVME: [u16; 2] = [0x144d, 0xa808];

#[test]
fn a_host_without_an_iommu() {
    let host = Stand::new("none");
    host.device("0000:00:03.0", NIC, 0x02_0000, false);
    let expected = "\
BAD   1 device reaches all of memory now.
        0000:00:03.0 Ethernet controller: Intel 82574L Gigabit Network Connection
BAD   Firmware describes no IOMMU. Look for VT-d or AMD-Vi in its setup.
note  iommud would confine 0 of 1 devices.
";
    assert_eq!(host.text(), expected);
    assert!(host.report().is_bad());
}

#[test]
fn a_host_that_confines_its_devices() {
    let host = Stand::new("fine");
    host.dmar(5);
    host.write("sys/class/iommu/dmar0/x", "");
    host.write("proc/interrupts", "  24:  0  IR-PCI-MSI  524288-edge  eth0\n");
    host.write("proc/cmdline", "quiet intel_iommu=on iommu.strict=1\n");
    host.device("0000:00:03.0", NIC, 0x02_0000, false);
    host.group("0000:00:03.0", 1, "DMA");
    let expected = "\
good  No device reaches all of memory.
good  Firmware describes 1 unit; the kernel uses 1 (kernel options: intel_iommu=on iommu.strict=1).
good  Firmware asks for devices to be kept from memory before drivers run.
good  Interrupts are remapped.
good  iommud would confine 1 of 1 devices.
";
    assert_eq!(host.text(), expected);
    let report = host.report();
    assert!(!report.is_bad());
    assert_eq!(report.json()["protected"], true);
    assert_eq!(report.json()["devices"][0]["iommud_unit"], 0);
}

#[test]
fn a_device_that_is_passed_through_reaches_all_memory() {
    let host = Stand::new("identity");
    host.dmar(0);
    host.write("sys/class/iommu/dmar0/x", "");
    host.write("proc/interrupts", "  24:  0  PCI-MSI  524288-edge  eth0\n");
    host.device("0000:00:03.0", NIC, 0x02_0000, false);
    host.group("0000:00:03.0", 1, "identity");
    host.device("0000:00:04.0", NVME, 0x01_0802, false);
    host.group("0000:00:04.0", 2, "DMA-FQ");
    let report = host.report();
    let names: Vec<(&str, Weight)> =
        report.findings().iter().map(|finding| (finding.name, finding.weight)).collect();
    let expected = [
        ("reach", Weight::Bad),
        ("dma-opt-in", Weight::Note),
        ("interrupts", Weight::Note),
        ("lazy", Weight::Note),
        ("units", Weight::Good),
        ("iommud", Weight::Good),
    ];
    assert_eq!(names, expected);
    assert_eq!(report.findings()[0].about.len(), 1);
    assert_eq!(report.json()["devices"][1]["reaches"], "mapped");
}

#[test]
fn what_is_not_known_is_not_called_good() {
    let host = Stand::new("unknown");
    assert!(host.text().contains("note  No PCI device was found.\n"), "{}", host.text());
    host.dmar(0);
    host.device("0000:00:03.0", NIC, 0x02_0000, false);
    host.group("0000:00:03.0", 1, "DMA");
    fs::remove_file(host.0.join("sys/kernel/iommu_groups/1/type")).unwrap();
    let line = "note  The kernel does not say what these devices reach:\n        0000:00:03.0 ";
    assert!(host.text().contains(line), "{}", host.text());
    assert!(!host.text().contains("No device reaches all of memory"), "{}", host.text());
    assert_eq!(host.report().json()["devices"][0]["reaches"], "unknown");
}

#[test]
fn units_that_the_kernel_leaves_alone_are_bad() {
    let host = Stand::new("off");
    host.dmar(0);
    host.write("proc/cmdline", "intel_iommu=off\n");
    let text = host.text();
    let line = "BAD   Firmware describes 1 unit; the kernel uses none (kernel options: intel_iommu=off).\n";
    assert!(text.contains(line), "{text}");
}

#[test]
fn ats_of_a_device_from_outside_is_bad_and_of_others_a_note() {
    let host = Stand::new("ats");
    host.device("0000:00:03.0", NIC, 0x02_0000, true);
    let weight = |host: &Stand| {
        let report = host.report();
        report.findings().iter().find(|finding| finding.name == "ats").map(|of| of.weight)
    };
    assert_eq!(weight(&host), Some(Weight::Note));
    host.write("sys/bus/pci/devices/0000:00:03.0/removable", "removable\n");
    assert_eq!(weight(&host), Some(Weight::Bad));
    assert!(host.text().contains("Devices behind ports that face outwards:"));
    host.device("0000:00:03.0", NIC, 0x02_0000, false);
    assert_eq!(weight(&host), None);
}

#[test]
fn thunderbolt_without_protection_is_bad() {
    let host = Stand::new("thunderbolt");
    host.write("sys/bus/thunderbolt/devices/domain0/iommu_dma_protection", "1\n");
    assert!(!host.text().contains("Thunderbolt"));
    host.write("sys/bus/thunderbolt/devices/domain1/iommu_dma_protection", "0\n");
    let text = host.text();
    assert!(
        text.contains("BAD   Thunderbolt ports are not protected from DMA.\n        domain1\n"),
        "{text}"
    );
}

/// A unit that names one device only: the other is not confined, and is named.
#[test]
fn devices_that_iommud_would_not_confine_are_named() {
    let host = Stand::new("outside");
    host.dmar(1);
    let path = host.0.join("sys/firmware/acpi/tables/DMAR");
    let mut table = fs::read(&path).unwrap();
    // No INCLUDE_PCI_ALL; a scope of 8 bytes for the endpoint 00:03.0.
    (table[50], table[52]) = (24, 0);
    table.extend([1, 8, 0, 0, 0, 0, 3, 0]);
    (table[4], table[9]) = (72, 0);
    table[9] = 0u8.wrapping_sub(table.iter().fold(0, |sum, byte| sum.wrapping_add(*byte)));
    fs::write(path, table).unwrap();
    host.device("0000:00:03.0", NIC, 0x02_0000, false);
    host.device("0000:00:04.0", NVME, 0x01_0802, false);
    let text = host.text();
    let end = "\
note  iommud would confine 1 of 2 devices.
        not confined: 0000:00:04.0 Non-Volatile memory controller: \
Samsung Electronics Co Ltd NVMe SSD Controller SM981/PM981/PM983
";
    assert!(text.contains(end), "{text}");
}

/// Two functions of one device without ACS; and what only root may read is not guessed at.
#[test]
fn devices_that_cannot_be_kept_apart_are_named_with_the_reason() {
    let host = Stand::new("groups");
    for (name, header) in [("0000:00:03.0", 0x80), ("0000:00:03.1", 0)] {
        // Not a device that is known to isolate its functions.
        host.device(name, [0x1234, 0x11e8], 0xff_0000, false);
        let path = host.0.join(format!("sys/bus/pci/devices/{name}/config"));
        let mut config = fs::read(&path).unwrap();
        config[0x0e] = header;
        fs::write(path, config).unwrap();
    }
    let expected = "\
note  Devices that cannot be kept apart:
        0000:00:03.0 0000:00:03.1
          0000:00:03.0 and 0000:00:03.1 are one device, which has no ACS
";
    assert!(host.text().contains(expected), "{}", host.text());
    assert!(!host.text().contains("Run this as root"));
    let path = host.0.join("sys/bus/pci/devices/0000:00:03.1/config");
    let config = fs::read(&path).unwrap();
    fs::write(path, &config[..64]).unwrap();
    assert!(host.text().contains("Run this as root"));
}
