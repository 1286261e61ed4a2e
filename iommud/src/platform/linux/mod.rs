//! Implements the `hal` traits on a stock Linux kernel, for development and continuous integration. An ordinary
//! privileged process owns the units. Registers are mapped through `/dev/mem`. Configuration space and tables are
//! read through sysfs. Memory consists of huge pages with known addresses. Clients connect through a Unix socket.

mod acpi_tables;
pub mod keeper;
pub mod link;
mod machine;
pub mod memory;
mod options;
mod pci;
mod places;
mod previous_tables;
mod ram;
mod registers;
pub mod reply_cache;
mod signals;
mod start;
mod trace_file;
pub mod transport;
pub mod uevent;

pub use pci::SysfsConfig;
pub use start::main;
