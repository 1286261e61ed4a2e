//! Redox: the scheme itself.

mod channel;
mod inherited;
mod interrupt;
pub mod pci;
mod scheme;
mod unmap;
mod vector;

pub use inherited::{Brought, BufferKey};
pub use scheme::Scheme;
pub use vector::Vector;

pub(super) use unmap::end;
