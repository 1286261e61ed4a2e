//! PCI functions through sysfs, for drivers on systems where nobody hands them their device.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use iommu_protocol::ids::PciAddress;

use crate::device::BusMasterPermission;
use crate::error::Error;
use crate::platform::Memory;

/// Offset of the command register (PCI Local Bus Specification 3.0, section 6.2.2).
const COMMAND: u64 = 4;
/// Command register: the function answers accesses to its memory.
const MEMORY_SPACE: u16 = 1 << 1;
/// Command register: the function may master the bus.
const BUS_MASTER: u16 = 1 << 2;

/// A function that no kernel driver uses.
#[derive(Debug)]
pub struct Function {
    address: PciAddress,
    directory: PathBuf,
    config: File,
}

impl Function {
    /// Opens the function at `address`, switches its bus mastering off and its registers on.
    ///
    /// # Errors
    /// It does not exist, or this process may not change it.
    pub fn open(address: PciAddress) -> io::Result<Self> {
        let id = address.requester;
        let name = format!(
            "{:04x}:{:02x}:{:02x}.{:x}",
            address.segment,
            id.bus(),
            id.device(),
            id.function()
        );
        let directory = PathBuf::from("/sys/bus/pci/devices").join(name);
        let config = OpenOptions::new().read(true).write(true).open(directory.join("config"))?;
        let function = Self { address, directory, config };
        function.change_command(MEMORY_SPACE, BUS_MASTER)?;
        Ok(function)
    }

    /// Vendor and device id.
    ///
    /// # Errors
    /// Configuration space cannot be read.
    pub fn ids(&self) -> io::Result<(u16, u16)> {
        Ok((self.read_config(0)?, self.read_config(2)?))
    }

    /// Lets the function master the bus. `permission` is what attaching its device gave.
    ///
    /// # Errors
    /// The permission is another device's (`InvalidInput`); configuration space cannot be written.
    pub fn enable_bus_mastering(&self, permission: &BusMasterPermission) -> io::Result<()> {
        if permission.address() != self.address {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.change_command(BUS_MASTER, 0)
    }

    /// Keeps the function from mastering the bus.
    ///
    /// # Errors
    /// Configuration space cannot be written.
    pub fn disable_bus_mastering(&self) -> io::Result<()> {
        self.change_command(0, BUS_MASTER)
    }

    /// The first `length` bytes, at least, of the registers behind a base address register, 0 to 5.
    ///
    /// # Errors
    /// There is none, it is shorter, or it cannot be mapped.
    pub fn registers(&self, bar: u8, length: u64) -> Result<Memory, Error> {
        let path = self.directory.join(format!("resource{bar}"));
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        Memory::map(&[file], length)
    }

    fn change_command(&self, set: u16, clear: u16) -> io::Result<()> {
        let command = self.read_config(COMMAND)? & !clear | set;
        self.config.write_all_at(&command.to_le_bytes(), COMMAND)
    }

    fn read_config(&self, offset: u64) -> io::Result<u16> {
        let mut bytes = [0; 2];
        self.config.read_exact_at(&mut bytes, offset)?;
        Ok(u16::from_le_bytes(bytes))
    }
}
