//! The seams on a stock Linux kernel, for development and continuous integration: an ordinary privileged
//! process owns the units. Registers come through `/dev/mem`, configuration space and tables through sysfs,
//! memory from huge pages with known addresses, and clients through a Unix socket.

mod cache;
mod clock;
mod logger;
mod machine;
mod mapping;
pub mod memory;
mod no_unit;
mod options;
mod pci;
mod ram;
mod registers;
mod signals;
mod start;
mod tables;
pub mod transport;

pub use clock::MonotonicClock;
pub use mapping::Mapping;
pub use pci::SysfsConfig;
pub use registers::Registers;
pub use start::main;
