//! Names of devices and classes, from the PCI ID repository.

use iommu_protocol::ids::PciAddress;
use pci_ids::{Device, FromId, Subclass, Vendor};

/// An address as Linux writes it: `0000:00:04.0`.
#[must_use]
pub fn address(address: PciAddress) -> String {
    address.to_string().replace("--", ":")
}

/// Vendor and device by name, or by number where the repository does not know them.
#[must_use]
pub fn device(vendor: u16, device: u16) -> String {
    if let Some(known) = Device::from_vid_pid(vendor, device) {
        return format!("{} {}", short(known.vendor().name()), known.name());
    }
    match Vendor::from_id(vendor) {
        Some(known) => format!("{} device {device:04x}", short(known.name())),
        None => format!("device {vendor:04x}:{device:04x}"),
    }
}

/// The maker without its legal form.
fn short(vendor: &str) -> &str {
    let ends = [" Corporation", ", Inc.", " Inc.", " Co., Ltd.", " Ltd.", ", Inc"];
    ends.iter().find_map(|end| vendor.strip_suffix(end)).unwrap_or(vendor)
}

/// The class in words. `class` is class, subclass and programming interface, bits 23:16, 15:8 and 7:0.
#[must_use]
pub fn class(class: u32) -> String {
    let [_, base, sub, _] = class.to_be_bytes();
    match (Subclass::from_cid_sid(base, sub), pci_ids::Class::from_id(base)) {
        (Some(known), _) => known.name().to_owned(),
        (None, Some(known)) => known.name().to_owned(),
        (None, None) => format!("class {base:02x}{sub:02x}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_devices_have_names_and_others_numbers() {
        assert_eq!(device(0x8086, 0x10d3), "Intel 82574L Gigabit Network Connection");
        assert_eq!(device(0x8086, 0xfffe), "Intel device fffe");
        assert_eq!(device(0xfefe, 1), "device fefe:0001");
    }

    #[test]
    fn classes_are_words() {
        assert_eq!(class(0x01_0802), "Non-Volatile memory controller");
        assert_eq!(class(0x06_0400), "PCI bridge");
        assert_eq!(class(0x01_7700), "Mass storage controller");
        assert_eq!(class(0x77_0000), "class 7700");
    }

    #[test]
    fn addresses_are_written_as_linux_does() {
        assert_eq!(address(PciAddress::new(1, 0x3a, 0x1f, 7).unwrap()), "0001:3a:1f.7");
    }
}
