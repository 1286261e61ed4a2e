//! Driver of the edu device of QEMU: the smallest complete user of iommu-client.
//!
//! ```no_run
//! use edud::Driver;
//! use iommu_client::{Connection, Device};
//!
//! let connection = Connection::system()?;
//! let device = Device::open(&connection, "0000--00--04.0")?;
//! let (mut driver, permission) = Driver::start(&device)?;
//! driver.round_trip(0)?;
//! drop(driver); // bus mastering off, then the buffer
//! device.detach(permission).map_err(iommu_client::Error::from)?;
//! # Ok::<(), edud::Failure>(())
//! ```

mod edu;
pub mod engine;

use iommu_client::{BufferOptions, BusMasterPermission, Device, DmaBuffer, Error};

pub use edu::Edu;
pub use engine::{Direction, MOST};

/// Why a copy is not as expected.
pub type Failure = Box<dyn std::error::Error>;

/// The driver of one device.
pub struct Driver<'device> {
    /// Dropped first, so that bus mastering is disabled before the buffer is released.
    pub edu: Edu,
    /// Memory that the device reaches.
    pub buffer: DmaBuffer,
    device: &'device Device,
}

impl<'device> Driver<'device> {
    /// Takes the device into use, and allocates the buffer.
    ///
    /// # Errors
    /// It is no edu device; or errors of the server.
    pub fn start(device: &'device Device) -> Result<(Self, BusMasterPermission), Error> {
        let (edu, permission) = Edu::start(device)?;
        let buffer = device.allocate(4096, BufferOptions::default())?;
        Ok((Self { edu, buffer, device }, permission))
    }

    /// Copies a pattern to the device, overwrites the memory, and copies the pattern back from the device.
    ///
    /// # Errors
    /// The data is not the pattern, or a fault was reported.
    pub fn round_trip(&mut self, round: u64) -> Result<(), Failure> {
        let pattern: Vec<u8> = (0..MOST).map(|index| pattern(round, index)).collect();
        self.buffer.write(0, &pattern)?;
        self.edu.dma(self.buffer.iova(), MOST, Direction::FromMemory)?;
        self.buffer.write(0, &vec![0xee; pattern.len()])?;
        self.edu.dma(self.buffer.iova(), MOST, Direction::ToMemory)?;
        let checked = self.check(&pattern);
        // The server knows why data is wrong: there was a fault, or the server is gone, and the mapping with it.
        match self.device.next_fault()? {
            Some(fault) => Err(format!("a fault that was not expected: {fault}").into()),
            None => checked,
        }
    }

    /// Compares the start of the buffer with `expected`.
    ///
    /// # Errors
    /// The buffer holds other bytes.
    pub fn check(&self, expected: &[u8]) -> Result<(), Failure> {
        let found = self.buffer.snapshot_bytes(0, expected.len())?;
        let differs = found.iter().zip(expected).position(|(a, b)| a != b);
        differs.map_or(Ok(()), |at| Err(format!("wrong data at byte {at}").into()))
    }
}

/// Differs from its neighbours, from round to round and from any single repeated byte.
fn pattern(round: u64, index: u64) -> u8 {
    let [low, ..] = (index.wrapping_mul(31) ^ index >> 5).wrapping_add(round * 7).to_le_bytes();
    low
}
