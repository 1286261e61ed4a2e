//! The `hal` traits on a stock Linux kernel, for development and continuous integration: an ordinary privileged
//! process owns the units. Registers come through `/dev/mem`, configuration space and tables through sysfs,
//! memory from huge pages with known addresses, and clients through a Unix socket.

mod acpi_tables;
mod keeper;
mod machine;
pub mod memory;
mod options;
mod pci;
mod previous_tables;
mod ram;
mod registers;
mod signals;
mod start;
pub mod transport;
pub mod uevent;

pub use pci::SysfsConfig;
pub use start::main;
