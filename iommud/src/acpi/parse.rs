//! Turns a table's bytes into the server's description of the machine.

use alloc::string::ToString;
use alloc::vec::Vec;

use super::anomaly::Anomaly;
use super::table::{Table, TableError};
use super::{build, dmar, ivrs};
use crate::topology::firmware::Firmware;

/// Reads a DMAR (VT-d).
///
/// # Errors
/// If the table as a whole cannot be used: signature, length, checksum. Lesser defects are listed in
/// [`Firmware::anomalies`].
pub fn parse_dmar(bytes: &[u8]) -> Result<Firmware, TableError> {
    let table = dmar::Dmar::new(Table::read(bytes)?)?;
    table.table.verify()?;
    Ok(reported(build_dmar(&table)))
}

/// Reads an IVRS (AMD-Vi).
///
/// # Errors
/// If the table as a whole cannot be used, like [`parse_dmar`].
pub fn parse_ivrs(bytes: &[u8]) -> Result<Firmware, TableError> {
    let table = ivrs::Ivrs::new(Table::read(bytes)?)?;
    table.table.verify()?;
    Ok(reported(build_ivrs(&table)))
}

/// Builds the description of a DMAR and lists all its defects, even if length or checksum are wrong. The list in the
/// description itself is empty.
#[must_use]
pub fn build_dmar(table: &dmar::Dmar<'_>) -> (Firmware, Vec<Anomaly>) {
    build::dmar::build(table)
}

/// Builds the description of an IVRS and lists all its defects, even if length or checksum are wrong. The list in the
/// description itself is empty.
#[must_use]
pub fn build_ivrs(table: &ivrs::Ivrs<'_>) -> (Firmware, Vec<Anomaly>) {
    build::ivrs::build(table)
}

fn reported((mut firmware, anomalies): (Firmware, Vec<Anomaly>)) -> Firmware {
    firmware.anomalies = anomalies.iter().map(ToString::to_string).collect();
    firmware
}
