//! The seams on Redox: a scheme daemon.
//!
//! ```text
//!  acpi, pci, memory schemes -> start -> Server -> scheme (SchemeSync) <- requests
//!                                          ^         one loop, one event at a time
//!  timer, fault interrupt -----------------+
//! ```
//!
//! Everything is opened by path before the scheme is announced; after that the process has no name space
//! and opens nothing. [`scheme`] and [`pool`] use nothing of the system and are tested on every host.

pub mod pool;
pub mod scheme;
