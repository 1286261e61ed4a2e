//! Code that differs between operating systems: the transport to the server, mapped memory, and registers of devices.
//! Only this module of the crate has `unsafe`.

mod connect;
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

pub(crate) use connect::connect;
pub use memory::Memory;
pub(crate) use piece::{Piece, split};
pub use system::pci;
