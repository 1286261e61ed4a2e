//! A table's bytes to what the server knows of the machine.

use alloc::string::ToString;
use alloc::vec::Vec;

use super::anomaly::Anomaly;
use super::table::{Table, TableError};
use super::{build, dmar, ivrs};
use crate::topology::firmware::Firmware;

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
