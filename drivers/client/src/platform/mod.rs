//! What differs between operating systems: the way to the server, mapped memory, and registers of devices.
//! The only place of this crate with `unsafe`.

use std::sync::Arc;

use crate::error::Error;
use crate::transport::Transport;

mod memory;
mod piece;
mod span;

#[cfg(target_os = "linux")]
pub mod linux;
#[cfg(target_os = "redox")]
pub mod redox;

#[cfg(target_os = "linux")]
use linux as system;
#[cfg(target_os = "redox")]
use redox as system;

pub use memory::Memory;
pub(crate) use piece::{Piece, split};
pub use system::pci;

/// The transport to the server of this machine.
#[cfg(target_os = "linux")]
pub(crate) fn connect() -> Result<Arc<dyn Transport>, Error> {
    Ok(Arc::new(linux::Socket::connect(&linux::socket_path())?))
}

/// The transport to the server of this machine.
#[cfg(target_os = "redox")]
pub(crate) fn connect() -> Result<Arc<dyn Transport>, Error> {
    Ok(Arc::new(redox::Scheme::connect()?))
}
