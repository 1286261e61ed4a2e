//! Firmware tables: turns bytes into [`Firmware`](crate::topology::firmware::Firmware). Never panics, and never reads
//! out of bounds.
//!
//! ```text
//! bytes -> table::Table -> dmar::Dmar  -> typed structures -+-> build -> Firmware, anomalies
//!                          ivrs::Ivrs  (printed by decode)  -+
//! ```
//!
//! Unreadable parts are skipped and reported. A unit whose structure is broken keeps its place, with the reason why
//! it is not used ([`crate::topology::firmware::UnitDefect`]). A device that it may serve counts as behind it.

mod anomaly;
mod build;
mod bytes;
pub mod dmar;
mod entry;
pub mod ivrs;
mod parse;
mod scope;
mod table;

pub use anomaly::{Anomaly, RegionProblem, ScopeProblem, UnitProblem};
pub use parse::{build_dmar, build_ivrs, parse_dmar, parse_ivrs};
pub use scope::{BadScopeLength, Scope, Scopes};
pub use table::{Header, LONGEST, Table, TableError};

#[cfg(test)]
mod tests;
