//! An NVMe driver. Queues, PRP lists and data live in memory of `iommu-client`: the controller reaches that and
//! nothing else, and the driver never learns a physical address.
//!
//! ```text
//! registers.rs   the seam to the controller's registers
//! spec.rs        registers, commands, completions, identification: bit layouts and nothing else
//! rings.rs       a submission and a completion ring
//! prp.rs         the addresses of a transfer, as the controller takes them
//! controller.rs  start, identification, reset, end
//! queue.rs       requests under way
//! error.rs       what can go wrong
//! ```
//!
//! One admin queue and one I/O queue; the driver polls. Interrupts are not used: without a kernel driver,
//! Linux gives a process no interrupt of a PCI function (sysfs has no such file), and on Redox the message
//! vectors of a function are pcid's to set up, which this driver does not ask it to.

mod controller;
mod error;
mod prp;
mod queue;
mod registers;
mod rings;
mod spec;

pub use controller::{Controller, Info, NamespaceInfo};
pub use error::{Error, Status};
pub use queue::{Done, Operation, Request};
pub use registers::Registers;
