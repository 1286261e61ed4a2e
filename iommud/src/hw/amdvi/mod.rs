//! AMD-Vi units: device table, command ring, event and page request logs, page tables of version 1.

mod event;
mod format;
mod spec;

pub use format::AmdFormat;
