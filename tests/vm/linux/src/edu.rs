//! A legacy driver for QEMU's edu device (QEMU docs/specs/edu.rst): it uses bus addresses and no server.

use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};

use crate::map::Mapping;
use crate::pci::Function;

/// Vendor and device id.
pub(crate) const EDU: (u16, u16) = (0x1234, 0x11e8);

const BAR_LENGTH: usize = 1 << 20;
const IDENTIFICATION: usize = 0x00;
const LIVENESS: usize = 0x04;
const DMA_SOURCE: usize = 0x80;
const DMA_DESTINATION: usize = 0x88;
const DMA_COUNT: usize = 0x90;
const DMA_COMMAND: usize = 0x98;
const COMMAND_START: u64 = 1;
const COMMAND_TO_MEMORY: u64 = 2;
/// Address of the device's own 4 KiB buffer in its DMA registers.
const DEVICE_BUFFER: u64 = 0x40000;
/// The most bytes that one DMA may copy. The buffer has 4096, but QEMU before 10 ends the whole machine when a DMA
/// touches the last one ("DMA range out of bounds").
pub(crate) const MAX_COUNT: u64 = 4088;

/// One edu device.
pub(crate) struct Edu {
    /// Its PCI function.
    pub(crate) function: Function,
    bar: Mapping,
}

impl Edu {
    /// Maps the registers of a function and enables its DMA.
    pub(crate) fn open(function: Function) -> Result<Self> {
        function.enable(true)?;
        Self::new(function)
    }

    /// Maps the registers of a function. Does not change whether its DMA is enabled.
    pub(crate) fn new(function: Function) -> Result<Self> {
        let bar = function.bar(0, BAR_LENGTH)?;
        Ok(Self { function, bar })
    }

    /// Opens every edu device, by address.
    pub(crate) fn all() -> Result<Vec<Self>> {
        Function::find(EDU.0, EDU.1)?.into_iter().map(Self::open).collect()
    }

    /// Checks the identification (0xRRrr00ed), and that the liveness register returns the inverse of the value
    /// written.
    pub(crate) fn alive(&self) -> Result<u32> {
        let id = self.bar.read32(IDENTIFICATION)?;
        ensure!(id & 0xffff == 0x00ed, "identification is {id:#x}");
        self.bar.write32(LIVENESS, 0x1234_5678)?;
        let inverse = self.bar.read32(LIVENESS)?;
        ensure!(inverse == !0x1234_5678, "liveness gives {inverse:#x}");
        Ok(id)
    }

    /// Starts a DMA of `count` bytes (1 to [`MAX_COUNT`]) between bus address `address` and the device's buffer. It
    /// takes 100 ms, and touches memory at the end.
    pub(crate) fn start(&self, address: u64, count: u64, to_memory: bool) -> Result<()> {
        ensure!((1..=MAX_COUNT).contains(&count), "edu can't copy {count} bytes");
        self.wait()?;
        let (source, destination) =
            if to_memory { (DEVICE_BUFFER, address) } else { (address, DEVICE_BUFFER) };
        self.bar.write64(DMA_SOURCE, source)?;
        self.bar.write64(DMA_DESTINATION, destination)?;
        self.bar.write64(DMA_COUNT, count)?;
        let direction = if to_memory { COMMAND_TO_MEMORY } else { 0 };
        self.bar.write64(DMA_COMMAND, COMMAND_START | direction)
    }

    /// Waits for the DMA under way, if any. The device does not report whether the DMA was blocked.
    pub(crate) fn wait(&self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(5);
        while self.bar.read64(DMA_COMMAND)? & COMMAND_START != 0 {
            if Instant::now() > deadline {
                bail!("{}: a DMA has not ended after 5 s", self.function.name);
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    /// Copies `count` bytes from memory into the device's buffer.
    pub(crate) fn read_memory(&self, address: u64, count: u64) -> Result<()> {
        self.start(address, count, false)?;
        self.wait()
    }

    /// Copies `count` bytes from the device's buffer to memory.
    pub(crate) fn write_memory(&self, address: u64, count: u64) -> Result<()> {
        self.start(address, count, true)?;
        self.wait()
    }
}
