//! An NVMe driver. Queues, lists of addresses and data are in memory of `iommu-client`. The controller reaches that
//! memory and nothing else, and the driver never learns a physical address.
//!
//! ```text
//! registers.rs   the trait for the controller's registers
//! spec.rs        registers, commands, completions, identification: bit layouts and nothing else
//! rings.rs       a submission and a completion ring
//! pointer.rs     the data pointer of a command: one descriptor where the controller has scatter-gather lists
//! prp.rs         the addresses of a transfer as pages
//! admin.rs       the admin queue: start, stop, creation of queues of requests
//! identify.rs    a controller's description of itself
//! queue.rs       requests under way
//! memory.rs      the memory of requests: of a pool, or granted for each
//! completion.rs  polling, or an interrupt
//! controller.rs  all of it together: requests, reset
//! retry.rs       requests carried out to their end: abort, reset, send again
//! error.rs       the errors of the driver
//! ```
//!
//! One thread drives one controller. It may have several queues of requests, which it fills in turn. The controller
//! treats them as independent of each other.

mod admin;
mod completion;
mod controller;
mod error;
mod identify;
mod memory;
mod pointer;
mod prp;
mod queue;
mod registers;
mod retry;
mod rings;
mod spec;

pub use completion::{CompletionMode, Interrupt};
pub use controller::{Controller, Settings};
pub use error::{Error, Status};
pub use identify::{Info, NamespaceInfo};
pub use memory::{Confine, Data, DataSource, LentData};
pub use queue::{Done, Operation, Request};
pub use registers::Registers;
pub use retry::{Trouble, Troubles, Work};
pub use spec::REGISTERS;
