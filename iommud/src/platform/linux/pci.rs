//! Reads PCI configuration space through sysfs.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use iommu_protocol::ids::PciAddress;

use crate::addr::{PhysAddr, PhysRange};
use crate::hw::RegisterIo;
use crate::platform::Registers;
use crate::topology::pci::ConfigSpace;

/// The directory where the kernel lists functions.
const DEVICES: &str = "/sys/bus/pci/devices";

/// The configuration space of every function that the kernel lists, bridges included.
#[derive(Debug, Default)]
pub struct SysfsConfig {
    files: BTreeMap<PciAddress, File>,
}

impl SysfsConfig {
    /// Opens the configuration space of every function. Finds no function on a machine without PCI.
    ///
    /// # Errors
    /// The list, or the configuration space of a function in it, cannot be read.
    pub fn open() -> io::Result<Self> {
        Self::open_below(Path::new(DEVICES))
    }

    /// Opens the configuration space of one function. Contains no function if the kernel does not list it.
    #[must_use]
    pub fn of(address: PciAddress) -> Self {
        let name = address.to_string().replace("--", ":");
        let file = File::open(Path::new(DEVICES).join(name).join("config"));
        Self { files: file.ok().map(|file| (address, file)).into_iter().collect() }
    }

    fn open_below(devices: &Path) -> io::Result<Self> {
        let entries = match fs::read_dir(devices) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            entries => entries?,
        };
        let mut files = BTreeMap::new();
        for entry in entries {
            let entry = entry?;
            if let Some(address) = entry.file_name().to_str().and_then(parse_name) {
                match File::open(entry.path().join("config")) {
                    Ok(file) => drop(files.insert(address, file)),
                    // The function was removed after the directory was read.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(Self { files })
    }

    /// The addresses of all functions, in ascending order.
    #[must_use]
    pub fn functions(&self) -> Vec<PciAddress> {
        self.files.keys().copied().collect()
    }
}

impl ConfigSpace for SysfsConfig {
    fn read(&mut self, address: PciAddress, offset: u16) -> u32 {
        let mut bytes = [0; 4];
        let read =
            self.files.get(&address).map(|file| file.read_exact_at(&mut bytes, offset.into()));
        if matches!(read, Some(Ok(()))) { u32::from_le_bytes(bytes) } else { u32::MAX }
    }

    fn chipset(&mut self, address: u64) -> Option<u32> {
        let range = PhysRange::new(PhysAddr(address), 4)?;
        Some(Registers::map(range).ok()?.read32(0))
    }
}

/// Parses the name `SSSS:BB:DD.F` that the kernel gives a function. Rejects segments above `ffff`, which some virtual
/// machines invent: they have no requester ids of their own.
fn parse_name(name: &str) -> Option<PciAddress> {
    let &[_, _, _, _, b':', _, _, b':', _, _, b'.', _] = name.as_bytes() else { return None };
    name.replace(':', "--").parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_the_kernels() {
        assert_eq!(parse_name("0000:3a:1f.7"), PciAddress::new(0, 0x3a, 0x1f, 7));
        for bad in ["10000:00:01.0", "0000:3a:20.0", "0000-3a:1f.7", "0000--3a--1f.7", ""] {
            assert_eq!(parse_name(bad), None, "{bad}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_all_ones() {
        let directory = std::env::temp_dir().join(format!("iommud-pci-{}", std::process::id()));
        let function = directory.join("0000:00:04.0");
        fs::create_dir_all(&function).unwrap();
        fs::write(function.join("config"), [0x34, 0x12, 0xe8, 0x11, 7, 0]).unwrap();
        let mut config = SysfsConfig::open_below(&directory).unwrap();
        fs::remove_dir_all(&directory).unwrap();
        let address = PciAddress::new(0, 0, 4, 0).unwrap();
        assert_eq!(config.functions(), [address]);
        assert_eq!(config.read(address, 0), 0x11e8_1234);
        assert_eq!(config.read(address, 4), u32::MAX);
        assert_eq!(config.read(address, 0x100), u32::MAX);
        assert_eq!(config.read(PciAddress::new(0, 0, 5, 0).unwrap(), 0), u32::MAX);
        assert!(SysfsConfig::open_below(&directory).unwrap().functions().is_empty());
    }
}
