//! What kind of machine this is: the firmware's table, the functions, the units.

use std::collections::BTreeSet;

use super::pci::SysfsConfig;
use super::tables;
use crate::acpi;
use crate::hw::UnitError;
use crate::platform::HugeTables;
use crate::server::{TableState, UnitStart};
use crate::topology::firmware::{Firmware, UnitDescription, UnitKind};
use crate::topology::pci::PciFunction;
use crate::topology::walk::{Roots, walk};

/// The firmware's table: a DMAR, or else an IVRS. No machine has both.
pub(super) fn firmware() -> (TableState, Firmware) {
    let readers: [(&'static str, fn(&[u8]) -> Result<Firmware, acpi::TableError>); 2] =
        [("DMAR", acpi::parse_dmar), ("IVRS", acpi::parse_ivrs)];
    for (signature, parse) in readers {
        let (state, firmware) = match tables::read(signature) {
            Ok(None) => continue,
            Ok(Some(bytes)) => match parse(&bytes) {
                Ok(firmware) => (TableState::Parsed(signature), firmware),
                Err(error) => failed(signature, error.to_string()),
            },
            Err(error) => failed(signature, error.to_string()),
        };
        log::info!("table: {state}");
        return (state, firmware);
    }
    log::info!("table: {}", TableState::Absent);
    (TableState::Absent, Firmware::default())
}

fn failed(signature: &'static str, reason: String) -> (TableState, Firmware) {
    (TableState::Failed(signature, reason), Firmware::default())
}

/// Every function, bridges included, from a walk that begins at every bus the kernel knows.
pub(super) fn functions(config: &mut SysfsConfig) -> Vec<PciFunction> {
    let buses: BTreeSet<(u16, u8)> = config
        .functions()
        .iter()
        .map(|address| (address.segment, address.requester.bus()))
        .collect();
    let roots: Vec<(u16, u8)> = buses.into_iter().collect();
    walk(config, Roots::Known(&roots))
}

/// Brings one unit up as far as taking entries; a unit that translates goes on doing so.
pub(super) fn bring_up(
    index: usize,
    description: &UnitDescription,
    _tables: &mut HugeTables,
) -> UnitStart<super::no_unit::NoUnit> {
    match (description.registers, description.kind) {
        (Err(defect), _) => {
            log::error!("unit {index}: failed({defect})");
            UnitStart::Unusable(defect)
        }
        (Ok(_), UnitKind::Vtd | UnitKind::AmdVi { .. }) => {
            let error = UnitError::Unsupported { what: "units in this build" };
            log::error!("unit {index}: failed({error})");
            UnitStart::Failed(error)
        }
    }
}
