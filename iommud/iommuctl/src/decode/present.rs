//! Checks whether the devices that a table names exist, on the machine whose table it is.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use iommu_protocol::ids::{PciAddress, RequesterId};

use iommud::acpi::Scope;
use iommud::acpi::dmar::{Body, Dmar, Structure};

/// The directory where Linux shows the tables of the machine that it runs on.
const OWN_TABLES: &str = "/sys/firmware/acpi/tables";
/// The directory where Linux shows the functions of that machine.
const OWN_FUNCTIONS: &str = "/sys/bus/pci/devices";
/// Secondary bus number in the header of a bridge (PCI-to-PCI Bridge 1.2 section 3.2.5.4).
const SECONDARY_BUS: u64 = 0x19;

/// The functions of the machine.
#[derive(Clone, Debug)]
pub(super) struct Functions(PathBuf);

impl Functions {
    /// The functions of the machine to which `table` belongs. `None` unless that is this machine.
    pub(super) fn of(table: &Path) -> Option<Self> {
        let own = table.canonicalize().ok()?.starts_with(OWN_TABLES);
        own.then(|| Self(OWN_FUNCTIONS.into()))
    }

    /// Returns one sentence for each endpoint and bridge that the table names and that does not exist.
    pub(super) fn missing(&self, table: &Dmar<'_>) -> Vec<String> {
        let mut missing = Vec::new();
        for structure in table.structures() {
            let Some((segment, scopes)) = segment(&structure).zip(structure.scopes()) else {
                continue;
            };
            let pci = scopes.flatten().filter(|scope| matches!(scope.kind, 1 | 2));
            missing.extend(pci.filter_map(|scope| self.look(segment, &scope)));
        }
        missing
    }

    fn look(&self, segment: u16, scope: &Scope<'_>) -> Option<String> {
        let mut bus = Some(scope.start_bus);
        let mut place = None;
        for (device, function) in scope.path() {
            // A path that continues behind a function that is not a bridge leads nowhere.
            let requester = bus.and_then(|bus| RequesterId::new(bus, device, function));
            place = requester.map(|requester| PciAddress { segment, requester });
            bus = place.and_then(|address| self.secondary(address));
        }
        match place {
            Some(address) if self.folder(address).exists() => None,
            Some(address) => Some(format!(
                "offset {}: scope of a missing device: this machine has no {address}",
                scope.offset
            )),
            None => Some(format!(
                "offset {}: scope of a missing device: its path leads nowhere on this machine",
                scope.offset
            )),
        }
    }

    fn folder(&self, address: PciAddress) -> PathBuf {
        let id = address.requester;
        let (bus, device, function) = (id.bus(), id.device(), id.function());
        self.0.join(format!("{:04x}:{bus:02x}:{device:02x}.{function:x}", address.segment))
    }

    /// Reads the number of the bus behind a bridge. For other functions, returns `None` or a number that leads
    /// nowhere.
    fn secondary(&self, address: PciAddress) -> Option<u8> {
        let mut config = File::open(self.folder(address).join("config")).ok()?;
        config.seek(SeekFrom::Start(SECONDARY_BUS)).ok()?;
        let mut byte = [0];
        config.read_exact(&mut byte).ok()?;
        byte.first().copied().filter(|bus| *bus != 0)
    }
}

const fn segment(structure: &Structure<'_>) -> Option<u16> {
    match structure.body {
        Body::Drhd { segment, .. }
        | Body::Rmrr { segment, .. }
        | Body::Atsr { segment, .. }
        | Body::Satc { segment, .. }
        | Body::Sidp { segment, .. } => Some(segment),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use iommud::acpi::Table;

    /// DRHD with endpoints 00:02.0, 00:03.0, 00:01.0/00.0, 00:01.0/01.0, 00:03.0/00.0 and I/O APIC 00:1f.7.
    const DRHD: &[u8] = &[
        0, 0, 70, 0, 0, 0, 0, 0, 0, 0, 0xd9, 0xfe, 0, 0, 0, 0, //
        1, 8, 0, 0, 0, 0, 2, 0, 1, 8, 0, 0, 0, 0, 3, 0, //
        1, 10, 0, 0, 0, 0, 1, 0, 0, 0, 1, 10, 0, 0, 0, 0, 1, 0, 1, 0, //
        1, 10, 0, 0, 0, 0, 3, 0, 0, 0, 3, 8, 0, 0, 2, 0, 0x1f, 7,
    ];

    #[test]
    fn paths_are_followed_through_bridges() {
        let root = std::env::temp_dir().join(format!("iommud-present-{}", std::process::id()));
        for (name, secondary) in [("00:02.0", 0), ("00:01.0", 7), ("07:00.0", 0)] {
            let folder = root.join(format!("0000:{name}"));
            std::fs::create_dir_all(&folder).unwrap();
            let mut config = [0; 64];
            config[0x19] = secondary;
            std::fs::write(folder.join("config"), config).unwrap();
        }
        let mut bytes = b"DMAR".to_vec();
        bytes.extend(118u32.to_le_bytes());
        bytes.resize(48, 0);
        bytes.extend(DRHD);
        let table = Dmar::new(Table::read(&bytes).unwrap()).unwrap();
        let missing = Functions(root.clone()).missing(&table);
        std::fs::remove_dir_all(root).unwrap();
        let lead = "scope of a missing device: ";
        assert_eq!(
            missing,
            [
                format!("offset 72: {lead}this machine has no 0000--00--03.0"),
                format!("offset 90: {lead}this machine has no 0000--07--01.0"),
                format!("offset 100: {lead}its path leads nowhere on this machine"),
            ]
        );
    }

    #[test]
    fn of_a_table_from_elsewhere_nothing_is_known() {
        assert!(Functions::of(Path::new("/proc/self/status")).is_none());
    }
}
