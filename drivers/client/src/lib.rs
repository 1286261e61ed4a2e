//! DMA memory and device sessions for drivers, served by iommud.
//!
//! ```
//! use iommu_client::{Connection, Device, DmaBuffer, DmaPool, PoolOptions};
//!
//! # let model = iommud_tests::model::Model::new();
//! # fn system(model: &iommud_tests::model::Model) -> Result<Connection, iommu_client::Error> {
//! #     Ok(model.connection())
//! # }
//! let connection = system(&model)?; // in a driver: Connection::system()
//! let device = Device::open(&connection, "0000--00--04.0")?;
//! let permission = device.attach()?; // only now may the device master the bus
//!
//! let mut ring = DmaBuffer::<[u64]>::zeroed_slice(&device, 512)?;
//! let pool = DmaPool::new(&device, PoolOptions::default())?; // many small blocks, without a request for each
//! let mut block = pool.take(1500)?;
//! block.write(0, b"hello")?;
//! ring.set(0, block.iova())?; // the device gets an I/O virtual address, never a physical one
//! # assert_eq!(model.device_read(device.address(), block.iova(), 5), Ok(b"hello".to_vec()));
//!
//! drop((ring, pool, block));
//! device.detach(permission)?; // states that the device is quiet
//! # Ok::<(), iommu_client::Error>(())
//! ```
//!
//! | wanted | use |
//! |---|---|
//! | one value or array for the device's lifetime: a ring, a table | [`DmaBuffer`] |
//! | many transfers | [`DmaPool`] |
//! | the device reaches memory only while a transfer runs | [`TransferQueue`]; one range now and then: [`DmaBuffer::grant`] |
//! | descriptors of a length or alignment | [`ScatterList`] |
//! | many mappings at once | [`Batch`] |
//! | a device that an earlier driver left at work | [`Device::quiesce`], before [`Device::attach`] |
//!
//! A driver can rely on three facts. Its device reaches the buffers it was granted and nothing else. A fault of its
//! device is reported to it ([`Device::wait_fault`]). When it dies, its device is cut off before any of its memory is
//! used again. On a machine without an IOMMU the same code runs: addresses are bus addresses, and [`Device::query`]
//! says so.
//!
//! [`Device::sanitize`] finds bugs of a driver: memory that is used too late, in the wrong direction, or read twice.
//!
//! Memory is read and written by volatile copies. It is never referenced, since a device, or another process that has
//! the buffer, may write there at any time. Data that is needed for longer is copied out first.
//!
//! Everything ends in the right order when dropped, whatever the order of the drops. A buffer's mappings end on the
//! device's side before the memory leaves the process. A session lives as long as any object made from it.

mod batch;
mod buffer;
mod connection;
mod device;
mod error;
mod grant;
pub mod handover;
mod imported;
mod mapping;
mod pool;
mod reset;
mod sanitizer;
mod scatter;
mod session;
mod snapshot;
mod transfer;
pub mod transport;

pub mod platform;

pub use batch::Batch;
pub use buffer::{BufferOptions, DmaBuffer, PAGE};
pub use connection::Connection;
pub use device::{BusMasterPermission, DetachError, Device, Query, Quiesced, ReservedRegion};
pub use error::{Error, ProtocolError};
pub use grant::Grant;
pub use imported::Imported;
pub use iommu_protocol::fault::{FaultAccess, FaultRecord};
pub use iommu_protocol::ids::PciAddress;
pub use iommu_protocol::status::Refusal;
pub use iommu_protocol::wire::{Access, RegionKind, SessionFlags};
pub use mapping::{BufferSlot, Mapping, Placement};
pub use pool::{DmaBlock, DmaPool, PoolOptions};
pub use reset::{ConfigSpace, ResetError, function_level_reset};
pub use sanitizer::{Bug, BugReport, Place};
pub use scatter::{DeviceMemory, ScatterList, Segment, SegmentLimits};
pub use snapshot::Snapshot;
pub use transfer::{Direction, Exposure, Granted, Lendable, Slot, TransferOptions, TransferQueue};
