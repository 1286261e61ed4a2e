//! Linux: a Unix socket, memory by descriptors, PCI functions through sysfs.

mod config;
mod inherited;
mod interrupt;
mod memory;
pub mod pci;
mod socket;
mod unmap;

use std::path::PathBuf;

pub use socket::Socket;
pub(super) use unmap::end;

/// Path at which iommud listens by default.
pub const DEFAULT_SOCKET: &str = "/run/iommu.sock";

/// Environment variable with the path at which iommud listens.
pub const SOCKET_VARIABLE: &str = "IOMMU_SOCKET";

/// The path at which iommud listens.
#[must_use]
pub fn socket_path() -> PathBuf {
    std::env::var_os(SOCKET_VARIABLE).map_or_else(|| DEFAULT_SOCKET.into(), PathBuf::from)
}
