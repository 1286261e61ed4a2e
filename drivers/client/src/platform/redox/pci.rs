//! PCI functions: those that pcid-spawner started a driver for, and all others.

#![allow(unsafe_code)]

use std::cell::OnceCell;
use std::fs::File;
use std::io;
use std::os::fd::{BorrowedFd, RawFd};

use bitflags::Flags;
use iommu_protocol::ids::PciAddress;
use libredox::call::call_rw;

use super::channel::{Channel, VectorTable, descriptor};
use super::vector::Vector;
use crate::device::BusMasterPermission;
use crate::error::Error;
use crate::platform::Memory;
use crate::reset::ConfigSpace;

pub use super::interrupt::Interrupt;

/// Metadata of a call that reads, on pcid's `access` file.
const READ: u64 = 1;

/// Offset of the command register (PCI Local Bus Specification 3.0, section 6.2.2).
const COMMAND: u16 = 4;
/// Command register: the function may master the bus.
const BUS_MASTER: u32 = 1 << 2;
/// The status register, in the same 32 bits. Ones written to it clear its bits.
const STATUS: u32 = 0xffff_0000;

/// Offset of the first base address register (section 6.2.5).
const BARS: u16 = 0x10;

/// Bytes of an entry of the table of vectors (section 6.8.2.6).
const ENTRY: u64 = 16;

/// Variable in which pcid-spawner passes the descriptor of the channel of the driver's function.
const CHANNEL_VARIABLE: &str = "PCID_CLIENT_CHANNEL";

/// A function that no other driver uses. Opening its channel makes pcid enable it, including bus mastering. So the
/// channel is opened only with the permission. (For a driver that pcid-spawner started, it was opened before.)
#[derive(Debug)]
pub struct Function {
    address: PciAddress,
    /// All of configuration space, for a driver that has no channel yet.
    access: Option<File>,
    channel: OnceCell<Channel>,
}

/// The function that pcid-spawner started this driver for; `None` if something else started it.
#[must_use]
pub fn spawned() -> Option<PciAddress> {
    Spawned::inherited().ok()??.address().ok()
}

/// The channel of the function that pcid-spawner started this driver for, under a descriptor of its own: it stays open
/// when the driver closes its channel.
#[derive(Debug)]
pub struct Spawned(Channel);

impl Spawned {
    /// The function's channel; `None` if something else started this process. Nothing is sent.
    ///
    /// # Errors
    /// The variable names no open descriptor; no descriptor is left.
    pub fn inherited() -> io::Result<Option<Self>> {
        let Some(number) = std::env::var_os(CHANNEL_VARIABLE) else { return Ok(None) };
        let number = number.to_str().and_then(|number| number.parse().ok());
        let number = number.filter(|number: &RawFd| *number >= 0);
        let number = number.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        // SAFETY: the number is not -1. pcid-spawner left this descriptor open for this process. If it was closed, the
        // kernel refuses the clone.
        let descriptor = unsafe { BorrowedFd::borrow_raw(number) }.try_clone_to_owned()?;
        Ok(Some(Self(Channel::new(descriptor.into()))))
    }

    /// The function's address. This is a request on the channel, so the driver has none under way meanwhile.
    ///
    /// # Errors
    /// pcid is gone; the descriptor is none of a channel.
    pub fn address(&self) -> io::Result<PciAddress> {
        self.0.address()
    }
}

/// Only the channel writes correctly: what is written through `access` lands 4 bytes late. Before the permission, only
/// a driver that pcid-spawner started has a channel.
impl ConfigSpace for Function {
    fn read(&mut self, offset: u8) -> io::Result<u32> {
        Self::read(self, offset.into())
    }

    fn write(&mut self, offset: u8, value: u32) -> io::Result<()> {
        let channel = self.channel.get().ok_or(io::ErrorKind::Unsupported)?;
        channel.write(offset.into(), value)
    }
}

impl Function {
    /// Takes the function at `address` into use. A process with the function's channel opens nothing by path.
    ///
    /// # Errors
    /// There is no pcid; this is not uid 0, and has no channel.
    pub fn open(address: PciAddress) -> io::Result<Self> {
        let ours = |channel: &Channel| channel.address().is_ok_and(|of| of == address);
        let inherited = Spawned::inherited().ok().flatten().map(|spawned| spawned.0);
        if let Some(channel) = inherited.filter(ours) {
            let function = Self { address, access: None, channel: OnceCell::from(channel) };
            function.disable_bus_mastering()?;
            return Ok(function);
        }
        let access = File::options().read(true).write(true).open("/scheme/pci/access")?;
        Ok(Self { address, access: Some(access), channel: OnceCell::new() })
    }

    /// Vendor and device id.
    ///
    /// # Errors
    /// Configuration space cannot be read.
    pub fn ids(&self) -> io::Result<(u16, u16)> {
        let [v0, v1, d0, d1] = self.read(0)?.to_le_bytes();
        Ok((u16::from_le_bytes([v0, v1]), u16::from_le_bytes([d0, d1])))
    }

    /// Lets the function master the bus. `permission` is the one that attaching its device returned.
    ///
    /// # Errors
    /// The permission is for another device (`InvalidInput`); another driver has the function.
    pub fn enable_bus_mastering(&self, permission: &BusMasterPermission) -> io::Result<()> {
        if permission.address() != self.address {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        match self.channel.get() {
            Some(channel) => channel.write(COMMAND, channel.read(COMMAND)? & !STATUS | BUS_MASTER),
            None => {
                let path = format!("/scheme/pci/{}/channel", self.address);
                let channel = File::options().read(true).write(true).open(path)?;
                let _ = self.channel.set(Channel::new(channel));
                Ok(())
            }
        }
    }

    /// Keeps the function from mastering the bus.
    ///
    /// # Errors
    /// pcid is gone.
    pub fn disable_bus_mastering(&self) -> io::Result<()> {
        let Some(channel) = self.channel.get() else { return Ok(()) };
        channel.write(COMMAND, channel.read(COMMAND)? & !(STATUS | BUS_MASTER))
    }

    /// The function's interrupts, all of which raise the same vector. The function must be able to master the bus
    /// already, since interrupts are messages.
    ///
    /// # Errors
    /// `Unsupported` if the function has no vectors of its own (MSI-X), or may not master the bus yet; no vector is
    /// free.
    pub fn interrupt(&self) -> Result<Interrupt, Error> {
        let unsupported = io::Error::from(io::ErrorKind::Unsupported);
        let channel = self.channel.get().ok_or(unsupported)?;
        let VectorTable { bar, offset } = channel.vectors()?;
        let table = u64::from(offset);
        let registers = self.registers(bar, table.saturating_add(ENTRY))?;
        let interrupt = Interrupt::new(registers, table, Vector::any()?)?;
        channel.enable_vectors()?;
        Ok(interrupt)
    }

    /// Maps the first `length` bytes of the registers behind a memory base address register, 0 to 5: through the channel,
    /// or before there is one, by their physical address. The caller must know that the device has as many.
    ///
    /// # Errors
    /// There are none, or they cannot be mapped.
    pub fn registers(&self, bar: u8, length: u64) -> Result<Memory, Error> {
        let length = usize::try_from(length).map_err(|_| Error::Outside)?.next_multiple_of(4096);
        if let Some(channel) = self.channel.get() {
            return channel.registers(bar, length);
        }
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
        let Some(access) = &self.access else {
            let channel = self.channel.get().ok_or(io::ErrorKind::Unsupported)?;
            return channel.read(offset & 0xfff);
        };
        let id = self.address.requester;
        let place = u64::from(self.address.segment) << 28
            | u64::from(id.bus()) << 20
            | u64::from(id.device()) << 15
            | u64::from(id.function()) << 12
            | u64::from(offset & 0xfff);
        let mut word = [0; 4];
        call_rw(descriptor(access)?, &mut word, Flags::empty(), &[READ, place])?;
        Ok(u32::from_le_bytes(word))
    }
}
