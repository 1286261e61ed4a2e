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
    let found = read_table("DMAR", acpi::parse_dmar);
    let found = found.or_else(|| read_table("IVRS", acpi::parse_ivrs));
    let (state, firmware) = found.unwrap_or((TableState::Absent, Firmware::default()));
    log::info!("table: {state}");
    (state, firmware)
}

fn read_table(
    signature: &'static str,
    parse: fn(&[u8]) -> Result<Firmware, acpi::TableError>,
) -> Option<(TableState, Firmware)> {
    let parsed = match tables::read(signature) {
        Ok(bytes) => parse(&bytes?).map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    };
    Some(match parsed {
        Ok(firmware) => (TableState::Parsed(signature), firmware),
        Err(reason) => (TableState::Failed(signature, reason), Firmware::default()),
    })
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
