//! What kind of machine this is: the firmware's table, the functions, the units.

use std::collections::BTreeSet;

use iommu_protocol::ids::PciAddress;

use super::pci::SysfsConfig;
use super::tables;
use crate::acpi;
use crate::hw::amdvi::{AmdUnit, Capability};
use crate::hw::vtd::VtdUnit;
use crate::hw::{Unit, UnitError};
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

/// A family of units on this platform.
pub(super) trait LinuxUnit: Unit<Memory = HugeTables> + Sized {
    /// Brings a unit up as far as taking entries; one that translates goes on doing so.
    fn start(
        registers: Registers,
        around: &mut Surroundings<'_>,
        description: &UnitDescription,
    ) -> Result<Self, UnitError>;
}

/// What bringing a unit up looks at besides its registers.
pub(super) struct Surroundings<'a> {
    pub(super) firmware: &'a Firmware,
    pub(super) space: &'a mut SysfsConfig,
    pub(super) tables: &'a mut HugeTables,
}

/// VT-d on this platform.
pub(super) type LinuxVtd = VtdUnit<Registers, MonotonicClock, HugeTables>;

impl LinuxUnit for LinuxVtd {
    fn start(
        registers: Registers,
        around: &mut Surroundings<'_>,
        description: &UnitDescription,
    ) -> Result<Self, UnitError> {
        let UnitKind::Vtd = description.kind else { return Err(OTHER_FAMILY) };
        let bits = around.firmware.host_address_width.unwrap_or(u8::MAX);
        Self::bring_up(registers, MonotonicClock::new(), around.tables, bits)
    }
}

/// AMD-Vi on this platform.
pub(super) type LinuxAmd = AmdUnit<Registers, MonotonicClock, HugeTables>;

impl LinuxUnit for LinuxAmd {
    fn start(
        registers: Registers,
        around: &mut Surroundings<'_>,
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
pub(super) fn bring_up<U: LinuxUnit>(
    index: usize,
    around: &mut Surroundings<'_>,
    description: &UnitDescription,
) -> UnitStart<U> {
    let range = match description.registers {
        Ok(range) => range,
        Err(defect) => {
            log::error!("unit {index}: failed({defect})");
            return UnitStart::Unusable(defect);
        }
    };
    let mapped = Registers::map(range).map_err(|error| {
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
