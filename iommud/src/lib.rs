//! An IOMMU server in user space. `README.md` describes its use, and `CONTRIBUTING.md` the contents of each folder.
//!
//! ```text
//! main -> platform -> server -> engine -> hw -> hal (RegisterIo, TableMemory, Clock)
//!                     server, engine -> policy -> protocol ids, topology
//!                     acpi -> topology
//!            platform -> sizing -> policy, hw: the memory that all of this needs
//! ```
//!
//! Data moves one way: bytes -> operation -> event -> plan -> unit -> outcome -> commit or abort -> reply.
//! One thread takes one event at a time and runs it to completion; nothing here locks, awaits or calls
//! back into the loop.
//!
//! The library is the server, and the parsers that tools use without it:
//!
//! ```
//! # #[cfg(feature = "std")] {
//! use iommud::config;
//! use iommud::policy::Mode;
//!
//! let text = "default = \"strict\"\n[[device]]\nclass = \"0108\"\npolicy = \"compat\"\n";
//! let policy = config::parse(text).unwrap();
//! assert_eq!(policy.default, Mode::Strict);
//! assert!(config::parse("default = \"open\"").is_err());
//! # }
//! ```
#![cfg_attr(not(feature = "std"), no_std)]

extern crate alloc;

pub mod acpi;
pub mod addr;
pub mod engine;
pub mod facts;
pub mod hw;
pub mod policy;
pub mod server;
pub mod sizing;
pub mod topology;
pub mod trace;

#[cfg(feature = "std")]
pub mod config;
#[cfg(feature = "std")]
pub mod platform;
