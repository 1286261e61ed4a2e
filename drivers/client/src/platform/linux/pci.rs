//! PCI functions through sysfs, for drivers that get their device from no other program.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use iommu_protocol::ids::PciAddress;

use super::config::{BUS_MASTER, INTERRUPT_OFF, MEMORY_SPACE, change_command, read_config};
use crate::device::BusMasterPermission;
use crate::error::Error;
use crate::platform::Memory;
use crate::reset::ConfigSpace;

pub use super::interrupt::Interrupt;

/// A function without a kernel driver, or one of uio_pci_generic, which delivers its interrupts.
#[derive(Debug)]
pub struct Function {
    address: PciAddress,
    directory: PathBuf,
    config: File,
}

/// The function that this driver was started for: always `None`, since nothing starts drivers here.
#[must_use]
pub const fn spawned() -> Option<PciAddress> {
    None
}

impl ConfigSpace for Function {
    fn read(&mut self, offset: u8) -> io::Result<u32> {
        let mut bytes = [0; 4];
        self.config.read_exact_at(&mut bytes, offset.into())?;
        Ok(u32::from_le_bytes(bytes))
    }

    fn write(&mut self, offset: u8, value: u32) -> io::Result<()> {
        self.config.write_all_at(&value.to_le_bytes(), offset.into())
    }
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
        change_command(&function.config, MEMORY_SPACE | INTERRUPT_OFF, BUS_MASTER)?;
        Ok(function)
    }

    /// Vendor and device id.
    ///
    /// # Errors
    /// Configuration space cannot be read.
    pub fn ids(&self) -> io::Result<(u16, u16)> {
        Ok((read_config(&self.config, 0)?, read_config(&self.config, 2)?))
    }

    /// Lets the function master the bus. `permission` is the one that attaching its device returned.
    ///
    /// # Errors
    /// The permission is for another device (`InvalidInput`); configuration space cannot be written.
    pub fn enable_bus_mastering(&self, permission: &BusMasterPermission) -> io::Result<()> {
        if permission.address() != self.address {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        change_command(&self.config, BUS_MASTER, 0)
    }

    /// Keeps the function from mastering the bus.
    ///
    /// # Errors
    /// Configuration space cannot be written.
    pub fn disable_bus_mastering(&self) -> io::Result<()> {
        change_command(&self.config, 0, BUS_MASTER)
    }

    /// Maps the registers behind a base address register, 0 to 5: at least their first `length` bytes.
    ///
    /// # Errors
    /// There are none, they are shorter, or they cannot be mapped.
    pub fn registers(&self, bar: u8, length: u64) -> Result<Memory, Error> {
        let path = self.directory.join(format!("resource{bar}"));
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        Memory::map(&[file], length)
    }

    /// The function's interrupts.
    ///
    /// # Errors
    /// `Unsupported` if uio_pci_generic does not have the function: Linux gives a process no other way to get them.
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
}
