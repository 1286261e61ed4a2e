//! The edu device of QEMU: its registers (QEMU docs/specs/edu.rst), and DMA between its own buffer and memory.

use std::io;
use std::time::{Duration, Instant};

use iommu_client::platform::Memory;
use iommu_client::platform::pci::Function;
use iommu_client::{BusMasterPermission, Device, Error};

/// Vendor and device id.
const IDS: (u16, u16) = (0x1234, 0x11e8);
/// Low half of the identification register: `0xRRrr00ed`, with the version in the high half.
const IDENTIFICATION: u32 = 0x00ed;
const DMA_SOURCE: u64 = 0x80;
const DMA_DESTINATION: u64 = 0x88;
const DMA_COUNT: u64 = 0x90;
const DMA_COMMAND: u64 = 0x98;
const COMMAND_START: u64 = 1;
const COMMAND_TO_MEMORY: u64 = 2;
/// Address of the device's own buffer in its DMA registers.
const DEVICE_BUFFER: u64 = 0x40000;

/// Longest DMA in bytes. The device's buffer has 4096 bytes, but QEMU before 10 ends the machine when a DMA touches
/// the last of them.
pub const MOST: u64 = 4088;

/// Direction of a DMA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// The device reads memory.
    FromMemory,
    /// The device writes memory.
    ToMemory,
}

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
        let edu = Self { function, registers };
        edu.wait()?;
        let permission = device.attach()?;
        edu.function.enable_bus_mastering(&permission)?;
        Ok((edu, permission))
    }

    /// Copies `count` bytes (at most [`MOST`]) between the device's buffer and memory. Returns when the device
    /// reports that it is done. It does so even if the DMA was blocked.
    ///
    /// # Errors
    /// The device does not report the end within 5 s.
    pub fn dma(&mut self, iova: u64, count: u64, direction: Direction) -> Result<(), Error> {
        let (source, destination, command) = match direction {
            Direction::FromMemory => (iova, DEVICE_BUFFER, COMMAND_START),
            Direction::ToMemory => (DEVICE_BUFFER, iova, COMMAND_START | COMMAND_TO_MEMORY),
        };
        let count = count.min(MOST);
        let values = [(DMA_SOURCE, source), (DMA_DESTINATION, destination), (DMA_COUNT, count)];
        for (register, value) in values.into_iter().chain([(DMA_COMMAND, command)]) {
            self.registers.write_u64(register, value).ok_or(Error::Outside)?;
        }
        self.wait()
    }

    fn wait(&self) -> Result<(), Error> {
        let deadline = Instant::now() + Duration::from_secs(5);
        while self.registers.read_u64(DMA_COMMAND).ok_or(Error::Outside)? & COMMAND_START != 0 {
            if Instant::now() > deadline {
                return Err(io::Error::from(io::ErrorKind::TimedOut).into());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }
}

impl Drop for Edu {
    /// Undoes the start: bus mastering is disabled before the device leaves the session's domain.
    fn drop(&mut self) {
        let _ = self.function.disable_bus_mastering();
    }
}
