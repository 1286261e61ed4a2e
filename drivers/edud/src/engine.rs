//! DMA between memory and the device's own buffer, through its registers (QEMU docs/specs/edu.rst).

use std::io;
use std::time::{Duration, Instant};

use iommu_client::Error;
use iommu_client::platform::Memory;

const SOURCE: u64 = 0x80;
const DESTINATION: u64 = 0x88;
const COUNT: u64 = 0x90;
const COMMAND: u64 = 0x98;
const START: u64 = 1;
const TO_MEMORY: u64 = 2;
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

/// 64-bit registers by their offset in bytes; `None` outside of them. A test has them in software.
pub trait Registers {
    /// Reads a register.
    fn read(&self, offset: u64) -> Option<u64>;
    /// Writes a register.
    fn write(&mut self, offset: u64, value: u64) -> Option<()>;
}

impl Registers for Memory {
    fn read(&self, offset: u64) -> Option<u64> {
        self.read_u64(offset)
    }

    fn write(&mut self, offset: u64, value: u64) -> Option<()> {
        self.write_u64(offset, value)
    }
}

/// Copies `count` bytes (at most [`MOST`]) between the device's buffer and memory. Returns when the device reports that
/// it is done. It does so even if the DMA was blocked.
///
/// # Errors
/// The device does not report the end within 5 s.
pub fn dma(to: &mut impl Registers, iova: u64, count: u64, way: Direction) -> Result<(), Error> {
    let (source, destination, command) = match way {
        Direction::FromMemory => (iova, DEVICE_BUFFER, START),
        Direction::ToMemory => (DEVICE_BUFFER, iova, START | TO_MEMORY),
    };
    let values = [(SOURCE, source), (DESTINATION, destination), (COUNT, count.min(MOST))];
    for (register, value) in values.into_iter().chain([(COMMAND, command)]) {
        to.write(register, value).ok_or(Error::Outside)?;
    }
    wait(to)
}

/// Waits until no DMA is under way.
///
/// # Errors
/// The device does not report the end within 5 s.
pub fn wait(registers: &impl Registers) -> Result<(), Error> {
    let deadline = Instant::now() + Duration::from_secs(5);
    while registers.read(COMMAND).ok_or(Error::Outside)? & START != 0 {
        if Instant::now() > deadline {
            return Err(io::Error::from(io::ErrorKind::TimedOut).into());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}
