//! Firmware tables: bytes to [`Firmware`]. Never panics, never reads outside.
//!
//! ```text
//! bytes -> table::Table -> dmar::Dmar  -> typed structures -+-> build -> Firmware, anomalies
//!                          ivrs::Ivrs  (what decode prints) -+
//! ```
//!
//! What cannot be read is skipped and reported. A unit whose structure is broken keeps its place and says
//! why it is not used ([`crate::topology::firmware::UnitDefect`]); a device that it may serve counts as
//! behind it.

mod anomaly;
mod build;
mod bytes;
pub mod dmar;
mod entry;
pub mod ivrs;
mod scope;
mod table;

use alloc::string::ToString;
use alloc::vec::Vec;

use crate::topology::firmware::Firmware;

pub use anomaly::{Anomaly, RegionProblem, ScopeProblem, UnitProblem};
pub use scope::{BadScopeLength, Scope, Scopes};
pub use table::{Header, LONGEST, Table, TableError};

/// Reads a DMAR (VT-d).
///
/// # Errors
/// When the table as a whole cannot be used: signature, length, checksum. Anything less is in
/// [`Firmware::anomalies`].
pub fn parse_dmar(bytes: &[u8]) -> Result<Firmware, TableError> {
    let table = dmar::Dmar::new(Table::read(bytes)?)?;
    table.table.verify()?;
    Ok(reported(build_dmar(&table)))
}

/// Reads an IVRS (AMD-Vi).
///
/// # Errors
/// As [`parse_dmar`].
pub fn parse_ivrs(bytes: &[u8]) -> Result<Firmware, TableError> {
    let table = ivrs::Ivrs::new(Table::read(bytes)?)?;
    table.table.verify()?;
    Ok(reported(build_ivrs(&table)))
}

/// What a DMAR comes to, whatever its length and checksum, with everything wrong with it. The list in the
/// result itself is empty.
#[must_use]
pub fn build_dmar(table: &dmar::Dmar<'_>) -> (Firmware, Vec<Anomaly>) {
    build::dmar::build(table)
}

/// What an IVRS comes to, whatever its length and checksum, with everything wrong with it. The list in
/// the result itself is empty.
#[must_use]
pub fn build_ivrs(table: &ivrs::Ivrs<'_>) -> (Firmware, Vec<Anomaly>) {
    build::ivrs::build(table)
}

fn reported((mut firmware, anomalies): (Firmware, Vec<Anomaly>)) -> Firmware {
    firmware.anomalies = anomalies.iter().map(ToString::to_string).collect();
    firmware
}

#[cfg(test)]
mod tests;
