//! Redox: the scheme itself.

pub mod pci;
mod scheme;

pub use scheme::Scheme;

pub(super) use scheme::end;
