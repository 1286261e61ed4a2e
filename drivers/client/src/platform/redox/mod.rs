//! Redox: the scheme itself.

mod inherited;
pub mod pci;
mod scheme;

pub use scheme::Scheme;

pub(super) use scheme::end;
