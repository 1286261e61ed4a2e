//! The protocol between a driver and `iommud`.
//!
//! The crate holds names and bytes only: identities ([`ids`]), scheme paths ([`path`]), one structure per
//! operation ([`wire`]), refusals ([`status`]), fault records ([`fault`]) and the frames that carry scheme
//! operations over a Unix socket where there is no scheme ([`frame`]). It does no input or output.
//!
//! ```
//! use iommu_protocol::path::Path;
//!
//! let path = Path::parse("devices/0000--00--04.0").unwrap();
//! let Path::Device(address) = path else { panic!("another path") };
//! assert_eq!(address.to_string(), "0000--00--04.0");
//! assert!(Path::parse("devices/00:04.0").is_none());
//! ```
//!
//! No structure of this crate has room for a physical address: a client names memory by the slot of a
//! buffer it owns and learns only I/O virtual addresses.
#![no_std]
#![forbid(unsafe_code)]

pub mod fault;
pub mod frame;
pub mod ids;
pub mod path;
pub mod status;
pub mod wire;

pub use ids::{PciAddress, RequesterId};
pub use status::{Errno, Refusal};
