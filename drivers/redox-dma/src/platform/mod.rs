//! Code that differs between operating systems, and the values in this memory. Only this module of the crate has
//! `unsafe`.

mod dma;

#[cfg(not(target_os = "redox"))]
mod host;
#[cfg(target_os = "redox")]
mod redox;

#[cfg(not(target_os = "redox"))]
use host as system;
#[cfg(target_os = "redox")]
use redox as system;

pub use dma::Dma;
pub use system::{Error, Result};
pub(crate) use system::{Mapping, function, inherited, keep};

/// Error numbers, as POSIX systems (Redox and Linux alike) number them.
pub(crate) const EIO: i32 = 5;
pub(crate) const ENOMEM: i32 = 12;
pub(crate) const ENODEV: i32 = 19;
pub(crate) const EINVAL: i32 = 22;
pub(crate) const EPROTO: i32 = 71;
