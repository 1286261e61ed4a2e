//! `iommuctl`: what the IOMMU of a machine does, in words, as JSON and as pictures.
//!
//! ```text
//! cli -> audit, check, explain, draw, replay, top, tree, server -> decode
//! ```
//!
//! [`decode`] reads firmware tables and needs no server. Everything else is behind the feature `cli`.
//!
//! ```
//! // A table of which only the header is there.
//! let mut bytes = b"DMAR\x30\0\0\0\x01\0BOCHS BXPC    ".to_vec();
//! bytes.resize(48, 0);
//! bytes[9] = 0u8.wrapping_sub(bytes.iter().fold(0, |sum: u8, byte| sum.wrapping_add(*byte)));
//! let table = iommuctl::decode::table(&bytes).unwrap();
//! assert!(table.summary().starts_with("DMAR table of BOCHS"));
//! ```

pub mod decode;

#[cfg(feature = "cli")]
pub mod audit;
#[cfg(feature = "cli")]
pub mod check;
#[cfg(feature = "cli")]
pub mod cli;
#[cfg(feature = "cli")]
pub mod draw;
#[cfg(feature = "cli")]
pub mod explain;
#[cfg(feature = "cli")]
pub mod metrics;
#[cfg(feature = "cli")]
pub mod names;
#[cfg(feature = "cli")]
pub mod output;
#[cfg(feature = "cli")]
pub mod policy;
#[cfg(feature = "cli")]
pub mod replay;
#[cfg(feature = "cli")]
pub mod server;
#[cfg(feature = "cli")]
pub mod top;
#[cfg(feature = "cli")]
pub mod tree;
#[cfg(feature = "cli")]
pub mod why;
