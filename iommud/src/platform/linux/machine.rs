//! What kind of machine this is: the firmware's table, the functions, the units.

use std::collections::BTreeSet;

use super::pci::SysfsConfig;
use super::tables;
use crate::acpi;
use crate::addr::PhysRange;
use crate::hw::UnitError;
use crate::hw::vtd::VtdUnit;
use crate::platform::{HugeTables, MonotonicClock, Registers};
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

/// The units of this platform.
pub(super) type LinuxUnit = VtdUnit<Registers, MonotonicClock, HugeTables>;

/// Brings one unit up as far as taking entries; a unit that translates goes on doing so.
pub(super) fn bring_up(
    index: usize,
    firmware: &Firmware,
    description: &UnitDescription,
    tables: &mut HugeTables,
) -> UnitStart<LinuxUnit> {
    let range = match description.registers {
        Ok(range) => range,
        Err(defect) => {
            log::error!("unit {index}: failed({defect})");
            return UnitStart::Unusable(defect);
        }
    };
    let started = match description.kind {
        UnitKind::Vtd => bring_up_vtd(index, range, firmware.host_address_width, tables),
        UnitKind::AmdVi { .. } => Err(UnitError::Unsupported { what: "AMD-Vi on this platform" }),
    };
    match started {
        Ok(unit) => {
            log::info!("unit {index}: parsed");
            UnitStart::Ready(unit)
        }
        Err(error) => {
            log::error!("unit {index}: failed({error})");
            UnitStart::Failed(error)
        }
    }
}

fn bring_up_vtd(
    index: usize,
    range: PhysRange,
    host_bits: Option<u8>,
    tables: &mut HugeTables,
) -> Result<LinuxUnit, UnitError> {
    let registers = Registers::map(range).map_err(|error| {
        log::error!("unit {index}: registers: {error}");
        UnitError::Unsupported { what: "registers that cannot be mapped" }
    })?;
    VtdUnit::bring_up(registers, MonotonicClock::new(), tables, host_bits.unwrap_or(u8::MAX))
}
