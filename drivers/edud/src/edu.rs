//! The edu device of QEMU, taken into use and given back.

use std::io;

use iommu_client::platform::Memory;
use iommu_client::platform::pci::Function;
use iommu_client::{BusMasterPermission, Device, Error};

use super::engine::{self, Direction};

/// Vendor and device id.
const IDS: (u16, u16) = (0x1234, 0x11e8);
/// Low half of the identification register: `0xRRrr00ed`, with the version in the high half.
const IDENTIFICATION: u32 = 0x00ed;

/// An edu device that may master the bus.
pub struct Edu {
    function: Function,
    registers: Memory,
}

impl Edu {
    /// Takes the device into use. A DMA of its last driver ends before the device is attached, so it meets no memory
    /// of this one: by a reset if the function has one, else by itself.
    ///
    /// # Errors
    /// It is no edu device, or its DMA does not end; or errors of the platform and the server.
    pub fn start(device: &Device) -> Result<(Self, BusMasterPermission), Error> {
        let mut function = Function::open(device.address())?;
        device.quiesce(&mut function)?;
        let registers = function.registers(0, 4096)?;
        let edu = registers.read_u32(0).is_some_and(|id| id & 0xffff == IDENTIFICATION);
        if function.ids()? != IDS || !edu {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "not an edu device").into());
        }
        engine::wait(&registers)?;
        let edu = Self { function, registers };
        let permission = device.attach()?;
        edu.function.enable_bus_mastering(&permission)?;
        Ok((edu, permission))
    }

    /// Copies between the device's buffer and memory: [`engine::dma`].
    ///
    /// # Errors
    /// The device does not report the end within 5 s.
    pub fn dma(&mut self, iova: u64, count: u64, direction: Direction) -> Result<(), Error> {
        engine::dma(&mut self.registers, iova, count, direction)
    }
}

impl Drop for Edu {
    /// Undoes the start: bus mastering is disabled before the device leaves the session's domain.
    fn drop(&mut self) {
        let _ = self.function.disable_bus_mastering();
    }
}
