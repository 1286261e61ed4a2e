//! Finds the units in the firmware's table and brings them up until they accept entries. Platforms differ only in how
//! they read tables and map registers.

use std::io;

use iommu_protocol::ids::PciAddress;

use super::{HugeTables, MonotonicClock, Registers};
use crate::acpi;
use crate::addr::PhysRange;
use crate::hw::amdvi::{AmdUnit, Capability};
use crate::hw::vtd::VtdUnit;
use crate::hw::{BufferMemory, Nanos, Survey, Unit, UnitError};
use crate::policy::UnitIndex;
use crate::server::{Budget, Server, TableState, UnitStart};
use crate::topology::firmware::{Firmware, UnitDescription, UnitKind};
use crate::topology::pci::ConfigSpace;

/// Reads the table with a signature; `None` when the firmware has none.
pub(super) type ReadTable = fn(&str) -> io::Result<Option<Vec<u8>>>;

/// Maps the registers of a unit.
pub(super) type MapRegisters = fn(PhysRange) -> io::Result<Registers>;

/// Reads and parses the DMAR, or the IVRS if there is no DMAR. No machine has both.
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

/// One family of units: VT-d or AMD-Vi.
pub(super) trait Family: Unit<Memory = HugeTables> + Sized {
    /// Reads the properties of a unit that bringing it up depends on. Changes nothing.
    fn survey<S: ConfigSpace>(
        registers: Registers,
        firmware: &Firmware,
        space: &mut S,
        description: &UnitDescription,
    ) -> Result<Survey, UnitError>;

    /// Checks the capabilities of a unit and allocates the memory that it needs. See `prepare` of the two backends.
    fn prepare_unit<S: ConfigSpace>(
        registers: Registers,
        around: &mut Surroundings<'_, S>,
        description: &UnitDescription,
    ) -> Result<Self, UnitError>;

    /// Brings the unit up until it accepts entries. A unit that translates goes on translating.
    fn take_over_unit(&mut self, tables: &mut HugeTables) -> Result<(), UnitError>;
}

/// Inputs of bringing a unit up, besides its registers.
pub(super) struct Surroundings<'a, S> {
    pub(super) firmware: &'a Firmware,
    pub(super) space: &'a mut S,
    pub(super) tables: &'a mut HugeTables,
    pub(super) map: MapRegisters,
    pub(super) budget: &'a Budget,
}

/// Surveys every unit, in the order of the table. `None` for a unit whose registers cannot be mapped or whose survey
/// fails.
pub(super) fn surveys<U: Family, S: ConfigSpace>(
    firmware: &Firmware,
    space: &mut S,
    map: MapRegisters,
) -> Vec<Option<Survey>> {
    let mut survey = |unit: &UnitDescription| {
        let registers = map(unit.registers.ok()?).ok()?;
        U::survey(registers, firmware, space, unit).ok()
    };
    firmware.units.iter().map(&mut survey).collect()
}

/// The VT-d backend over this platform's registers and memory.
pub(super) type Vtd = VtdUnit<Registers, MonotonicClock, HugeTables>;

impl Family for Vtd {
    fn survey<S: ConfigSpace>(
        registers: Registers,
        firmware: &Firmware,
        _space: &mut S,
        description: &UnitDescription,
    ) -> Result<Survey, UnitError> {
        let UnitKind::Vtd = description.kind else { return Err(OTHER_FAMILY) };
        Self::survey(registers, MonotonicClock::new(), host_bits(firmware))
    }

    fn prepare_unit<S: ConfigSpace>(
        registers: Registers,
        around: &mut Surroundings<'_, S>,
        description: &UnitDescription,
    ) -> Result<Self, UnitError> {
        let UnitKind::Vtd = description.kind else { return Err(OTHER_FAMILY) };
        let bits = host_bits(around.firmware);
        Self::prepare(registers, MonotonicClock::new(), around.tables, bits)
    }

    fn take_over_unit(&mut self, tables: &mut HugeTables) -> Result<(), UnitError> {
        self.take_over(tables)
    }
}

/// The width of physical addresses in bits. If the table does not contain it, the widest: 255.
fn host_bits(firmware: &Firmware) -> u8 {
    firmware.host_address_width.unwrap_or(u8::MAX)
}

/// The AMD-Vi backend over this platform's registers and memory.
pub(super) type AmdVi = AmdUnit<Registers, MonotonicClock, HugeTables>;

impl Family for AmdVi {
    fn survey<S: ConfigSpace>(
        registers: Registers,
        _firmware: &Firmware,
        space: &mut S,
        description: &UnitDescription,
    ) -> Result<Survey, UnitError> {
        let block = block(space, description)?;
        Self::survey(registers, MonotonicClock::new(), description, block)
    }

    fn prepare_unit<S: ConfigSpace>(
        registers: Registers,
        around: &mut Surroundings<'_, S>,
        description: &UnitDescription,
    ) -> Result<Self, UnitError> {
        let block = block(around.space, description)?;
        Self::prepare(registers, MonotonicClock::new(), around.tables, description, block)
    }

    fn take_over_unit(&mut self, tables: &mut HugeTables) -> Result<(), UnitError> {
        self.take_over(tables)
    }
}

/// Reads the capability block of a unit's PCI function. `None` when the function does not answer.
fn block<S: ConfigSpace>(
    space: &mut S,
    description: &UnitDescription,
) -> Result<Option<Capability>, UnitError> {
    let UnitKind::AmdVi { function, capability, .. } = description.kind else {
        return Err(OTHER_FAMILY);
    };
    let address = PciAddress { segment: description.segment, requester: function };
    Ok(Capability::read(space, address, capability))
}

/// The error for a unit of another family. It does not occur: no table describes units of both families.
const OTHER_FAMILY: UnitError = UnitError::Unsupported { what: "a unit of another family" };

/// Brings one unit up until it accepts entries. A unit that translates goes on translating.
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
    let prepared = mapped.and_then(|registers| U::prepare_unit(registers, around, description));
    let (unit, error) = match prepared {
        Ok(mut unit) => match unit.take_over_unit(around.tables) {
            Ok(()) => {
                log::info!("unit {index}: parsed");
                return UnitStart::Ready(unit);
            }
            Err(error) => (Some(unit), error),
        },
        Err(error) => (None, error),
    };
    log::error!("unit {index}: failed({})", around.budget.reason(index, &error));
    match unit {
        Some(unit) => UnitStart::Stuck(unit, error),
        None => UnitStart::Failed(error),
    }
}

/// Brings units up while the server runs.
pub(super) struct LateUnits<S> {
    pub(super) firmware: Firmware,
    pub(super) space: S,
    pub(super) map: MapRegisters,
}

impl<S: ConfigSpace> LateUnits<S> {
    /// Lets the server retry failed units that are due. Brings up due units that were never brought up.
    pub(super) fn recover<U: Family, B: BufferMemory>(
        &mut self,
        server: &mut Server<U, B>,
        now: Nanos,
    ) {
        // Each unit is due once at most.
        for _ in 0..=self.firmware.units.len() {
            let Some(unit) = server.recover_units(now) else { return };
            self.bring_up(server, unit);
        }
    }

    fn bring_up<U: Family, B: BufferMemory>(&mut self, server: &mut Server<U, B>, unit: UnitIndex) {
        let Self { firmware, space, map } = self;
        let known = usize::try_from(unit.0).ok();
        let known = known.and_then(|index| Some((index, firmware.units.get(index)?)));
        let Some((index, description)) = known else { return };
        let budget = server.budget().clone();
        let (tables, map) = (server.bring_up_memory(unit), *map);
        let mut around = Surroundings { firmware, space, tables, map, budget: &budget };
        match bring_up::<U, _>(index, &mut around, description) {
            UnitStart::Ready(hardware) => server.unit_arrived(unit, hardware),
            UnitStart::Stuck(hardware, error) => server.unit_stuck(unit, hardware, &error),
            UnitStart::Failed(error) => server.unit_not_arrived(unit, &error),
            UnitStart::Unusable(_) | UnitStart::Off => {}
        }
    }
}
