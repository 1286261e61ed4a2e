//! PCI functions through sysfs, for drivers on systems where nobody hands them their device.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use iommu_protocol::ids::PciAddress;

use crate::device::BusMasterPermission;
use crate::error::Error;
use crate::platform::Memory;

pub use super::interrupt::Interrupt;

/// Offset of the command register (PCI Local Bus Specification 3.0, section 6.2.2).
const COMMAND: u64 = 4;
/// Command register: the function answers accesses to its memory.
const MEMORY_SPACE: u16 = 1 << 1;
/// Command register: the function may master the bus.
const BUS_MASTER: u16 = 1 << 2;
/// Command register: the function does not assert its interrupt line.
const INTERRUPT_OFF: u16 = 1 << 10;

/// A function that no kernel driver uses, or that uio_pci_generic has, which gives its interrupts.
#[derive(Debug)]
pub struct Function {
    address: PciAddress,
    directory: PathBuf,
    config: File,
}

/// The function that this driver was started for: nobody does that here.
#[must_use]
pub const fn spawned() -> Option<PciAddress> {
    None
}

impl Function {
    /// Opens the function at `address`, switches its bus mastering and its interrupts off and its registers
    /// on.
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
        function.change_command(MEMORY_SPACE | INTERRUPT_OFF, BUS_MASTER)?;
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

    /// Where the function's interrupts arrive.
    ///
    /// # Errors
    /// `Unsupported` when uio_pci_generic does not have the function: Linux gives a process no other way.
    pub fn interrupt(&self) -> Result<Interrupt, Error> {
        let none = |error: io::Error| match error.kind() {
            io::ErrorKind::NotFound => io::ErrorKind::Unsupported.into(),
            _ => error,
        };
        let mut entries = std::fs::read_dir(self.directory.join("uio")).map_err(none)?;
        let entry = entries.next().ok_or(io::Error::from(io::ErrorKind::Unsupported))??;
        let file = File::open(PathBuf::from("/dev").join(entry.file_name()))?;
        Ok(Interrupt::new(file, self.config.try_clone()?))
    }

    fn change_command(&self, set: u16, clear: u16) -> io::Result<()> {
        change_command(&self.config, set, clear)
    }

    fn read_config(&self, offset: u64) -> io::Result<u16> {
        read_config(&self.config, offset)
    }
}

/// Lets a function assert its interrupt line again.
pub(super) fn unmask(config: &File) -> io::Result<()> {
    change_command(config, 0, INTERRUPT_OFF)
}

fn change_command(config: &File, set: u16, clear: u16) -> io::Result<()> {
    let command = read_config(config, COMMAND)? & !clear | set;
    config.write_all_at(&command.to_le_bytes(), COMMAND)
}

fn read_config(config: &File, offset: u64) -> io::Result<u16> {
    let mut bytes = [0; 2];
    config.read_exact_at(&mut bytes, offset)?;
    Ok(u16::from_le_bytes(bytes))
}
