//! `iommuctl`: what the IOMMU of a machine does, in words, as JSON and as pictures.
//!
//! ```text
//! cli -> audit, check, explain, draw, top, tree, server -> decode
//! ```
//!
//! [`decode`] reads firmware tables and needs no server. Everything else is behind the feature `cli`.

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
pub mod server;
#[cfg(feature = "cli")]
pub mod top;
#[cfg(feature = "cli")]
pub mod tree;
#[cfg(feature = "cli")]
pub mod why;
