//! Redox: the scheme itself.

mod channel;
mod inherited;
mod interrupt;
pub mod pci;
mod scheme;
mod unmap;

pub use inherited::{Brought, BufferKey};
pub use scheme::Scheme;

pub(super) use unmap::end;
