//! The units of the machine, from the firmware's table to taking entries. The same on every platform, but
//! for how tables and registers are reached.

use std::io;

use iommu_protocol::ids::PciAddress;

use super::{HugeTables, MonotonicClock, Registers};
use crate::acpi;
use crate::addr::PhysRange;
use crate::hw::amdvi::{AmdUnit, Capability};
use crate::hw::vtd::VtdUnit;
use crate::hw::{Unit, UnitError};
use crate::server::{TableState, UnitStart};
use crate::topology::firmware::{Firmware, UnitDescription, UnitKind};
use crate::topology::pci::ConfigSpace;

/// Reads the table with a signature; `None` when the firmware has none.
pub(super) type ReadTable = fn(&str) -> io::Result<Option<Vec<u8>>>;

/// Maps the registers of a unit.
pub(super) type MapRegisters = fn(PhysRange) -> io::Result<Registers>;

/// The firmware's table: a DMAR, or else an IVRS. No machine has both.
pub(super) fn firmware(read: ReadTable) -> (TableState, Firmware) {
    let found = read_table(read, "DMAR", acpi::parse_dmar);
    let found = found.or_else(|| read_table(read, "IVRS", acpi::parse_ivrs));
    let (state, firmware) = found.unwrap_or((TableState::Absent, Firmware::default()));
    log::info!("table: {state}");
    (state, firmware)
}

fn read_table(
    read: ReadTable,
    signature: &'static str,
    parse: fn(&[u8]) -> Result<Firmware, acpi::TableError>,
) -> Option<(TableState, Firmware)> {
    let parsed = match read(signature) {
        Ok(bytes) => parse(&bytes?).map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    };
    Some(match parsed {
        Ok(firmware) => (TableState::Parsed(signature), firmware),
        Err(reason) => (TableState::Failed(signature, reason), Firmware::default()),
    })
}

/// A family of units.
pub(super) trait Family: Unit<Memory = HugeTables> + Sized {
    /// Brings a unit up as far as taking entries; one that translates goes on doing so.
    fn start<S: ConfigSpace>(
        registers: Registers,
        around: &mut Surroundings<'_, S>,
        description: &UnitDescription,
    ) -> Result<Self, UnitError>;
}

/// What bringing a unit up looks at besides its registers.
pub(super) struct Surroundings<'a, S> {
    pub(super) firmware: &'a Firmware,
    pub(super) space: &'a mut S,
    pub(super) tables: &'a mut HugeTables,
    pub(super) map: MapRegisters,
}

/// VT-d.
pub(super) type Vtd = VtdUnit<Registers, MonotonicClock, HugeTables>;

impl Family for Vtd {
    fn start<S: ConfigSpace>(
        registers: Registers,
        around: &mut Surroundings<'_, S>,
        description: &UnitDescription,
    ) -> Result<Self, UnitError> {
        let UnitKind::Vtd = description.kind else { return Err(OTHER_FAMILY) };
        let bits = around.firmware.host_address_width.unwrap_or(u8::MAX);
        Self::bring_up(registers, MonotonicClock::new(), around.tables, bits)
    }
}

/// AMD-Vi.
pub(super) type AmdVi = AmdUnit<Registers, MonotonicClock, HugeTables>;

impl Family for AmdVi {
    fn start<S: ConfigSpace>(
        registers: Registers,
        around: &mut Surroundings<'_, S>,
        description: &UnitDescription,
    ) -> Result<Self, UnitError> {
        let UnitKind::AmdVi { function, capability, .. } = description.kind else {
            return Err(OTHER_FAMILY);
        };
        let address = PciAddress { segment: description.segment, requester: function };
        let block = Capability::read(around.space, address, capability);
        Self::bring_up(registers, MonotonicClock::new(), around.tables, description, block)
    }
}

/// No table describes units of both families.
const OTHER_FAMILY: UnitError = UnitError::Unsupported { what: "a unit of another family" };

/// Brings one unit up as far as taking entries; a unit that translates goes on doing so.
pub(super) fn bring_up<U: Family, S: ConfigSpace>(
    index: usize,
    around: &mut Surroundings<'_, S>,
    description: &UnitDescription,
) -> UnitStart<U> {
    let range = match description.registers {
        Ok(range) => range,
        Err(defect) => {
            log::error!("unit {index}: failed({defect})");
            return UnitStart::Unusable(defect);
        }
    };
    let mapped = (around.map)(range).map_err(|error| {
        log::error!("unit {index}: registers: {error}");
        UnitError::Unsupported { what: "registers that cannot be mapped" }
    });
    match mapped.and_then(|registers| U::start(registers, around, description)) {
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
