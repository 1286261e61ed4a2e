//! DMA memory and device sessions for drivers, served by iommud.
//!
//! ```no_run
//! use iommu_client::{Access, BufferOptions, Connection, Device};
//!
//! # fn main() -> Result<(), iommu_client::Error> {
//! let connection = Connection::system()?;
//! let device = Device::open(&connection, "0000--00--04.0")?;
//! let permission = device.attach()?; // only now may the device master the bus
//! let mut buffer = device.allocate(4096, BufferOptions::default())?;
//! buffer.write(0, b"hello")?;
//! let address = buffer.iova(); // what the device is told: never a physical address
//! # let _ = (permission, address, Access::READ);
//! # Ok(())
//! # }
//! ```
//!
//! What a driver may rely on: its device reaches the buffers it was granted and nothing else; a fault of its
//! device is told to it ([`Device::wait_fault`]); when it dies, its device is cut off before any of its
//! memory is used again. On a machine without an IOMMU the same code runs, addresses are bus addresses, and
//! [`Device::query`] says so.
//!
//! Everything ends in the right order when dropped, whatever the order of the drops: a buffer's mappings
//! end on the device's side before the memory leaves the process, and a session lives as long as anything
//! that came from it.

mod batch;
mod buffer;
mod connection;
mod device;
mod error;
mod mapping;
mod session;
pub mod transport;

pub mod platform;

pub use batch::Batch;
pub use buffer::{BufferOptions, DmaBuffer, Grant};
pub use connection::Connection;
pub use device::{BusMasterPermission, Device, Query, ReservedRegion};
pub use error::{Breach, Error};
pub use iommu_protocol::fault::{FaultAccess, FaultRecord};
pub use iommu_protocol::ids::PciAddress;
pub use iommu_protocol::status::Refusal;
pub use iommu_protocol::wire::{Access, RegionKind, SessionFlags};
pub use mapping::{BufferSlot, Imported, Mapping, Placement};
