//! PCI functions, for drivers that pcid-spawner did not start.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use iommu_protocol::ids::PciAddress;
use libredox::call::call_rw;
use syscall::flag::CallFlags;

use crate::device::BusMasterPermission;
use crate::error::Error;
use crate::platform::Memory;

/// Metadata of a call of pcid's `access` file that reads.
const READ: u64 = 1;

/// Offset of the first base address register (PCI Local Bus Specification 3.0, section 6.2.5).
const BARS: u16 = 0x10;

/// A function that no other driver uses. Opening its channel makes pcid enable it, bus mastering included:
/// that is done when the permission is there, and not before.
#[derive(Debug)]
pub struct Function {
    address: PciAddress,
    access: File,
    channel: std::cell::OnceCell<File>,
}

impl Function {
    /// Takes a function into use.
    ///
    /// # Errors
    /// There is no pcid, or this is not uid 0.
    pub fn open(address: PciAddress) -> io::Result<Self> {
        let access = File::options().read(true).write(true).open("/scheme/pci/access")?;
        Ok(Self { address, access, channel: std::cell::OnceCell::new() })
    }

    /// Vendor and device id.
    ///
    /// # Errors
    /// Configuration space cannot be read.
    pub fn ids(&self) -> io::Result<(u16, u16)> {
        let [v0, v1, d0, d1] = self.read(0)?.to_le_bytes();
        Ok((u16::from_le_bytes([v0, v1]), u16::from_le_bytes([d0, d1])))
    }

    /// Lets the function master the bus. `permission` is what attaching its device gave.
    ///
    /// # Errors
    /// The permission is another device's (`InvalidInput`); another driver has the function.
    pub fn enable_bus_mastering(&self, permission: &BusMasterPermission) -> io::Result<()> {
        if permission.address() != self.address {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let channel = File::options()
            .read(true)
            .write(true)
            .open(format!("/scheme/pci/{}/channel", self.address))?;
        let _ = self.channel.set(channel);
        Ok(())
    }

    /// pcid offers no way to take bus mastering back.
    ///
    /// # Errors
    /// None.
    pub const fn disable_bus_mastering(&self) -> io::Result<()> {
        Ok(())
    }

    /// The first `length` bytes of the registers behind a memory base address register, 0 to 5. It is the
    /// caller who knows that the device has as many.
    ///
    /// # Errors
    /// There is none, or it cannot be mapped.
    pub fn registers(&self, bar: u8, length: u64) -> Result<Memory, Error> {
        let length = usize::try_from(length).map_err(|_| Error::Outside)?.next_multiple_of(4096);
        let low = self.read(BARS + 4 * u16::from(bar))?;
        if low & 1 != 0 {
            return Err(io::Error::from(io::ErrorKind::Unsupported).into());
        }
        let high = if low & 6 == 4 { self.read(BARS + 4 * u16::from(bar) + 4)? } else { 0 };
        let address = u64::from(low & !0xf) | u64::from(high) << 32;
        let memory = File::options().read(true).write(true).open("/scheme/memory/physical@uc")?;
        Memory::of(descriptor(&memory)?, address, length)
    }

    fn read(&self, offset: u16) -> io::Result<u32> {
        let id = self.address.requester;
        let place = u64::from(self.address.segment) << 28
            | u64::from(id.bus()) << 20
            | u64::from(id.device()) << 15
            | u64::from(id.function()) << 12
            | u64::from(offset & 0xfff);
        let mut word = [0; 4];
        call_rw(descriptor(&self.access)?, &mut word, CallFlags::empty(), &[READ, place])?;
        Ok(u32::from_le_bytes(word))
    }
}

fn descriptor(file: &File) -> io::Result<usize> {
    usize::try_from(file.as_raw_fd()).map_err(|_| io::ErrorKind::InvalidInput.into())
}
