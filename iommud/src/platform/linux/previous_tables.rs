//! What the units were told by an earlier server.

use crate::addr::PhysAddr;
use crate::hw::{amdvi, vtd};
use crate::platform::Registers;
use crate::platform::units::{AmdVi, Family, MapRegisters, Vtd};
use crate::topology::firmware::Firmware;

/// A family of units whose registers tell where its tables are.
pub(super) trait Told: Family {
    /// Where a unit was told, by whoever drove it last, that tables, queues and logs are.
    fn addresses(registers: &mut Registers) -> Vec<PhysAddr>;
}

impl Told for Vtd {
    fn addresses(registers: &mut Registers) -> Vec<PhysAddr> {
        vtd::addresses_told(registers).into()
    }
}

impl Told for AmdVi {
    fn addresses(registers: &mut Registers) -> Vec<PhysAddr> {
        amdvi::addresses_told(registers).into()
    }
}

/// What every unit was told; `None` when the registers of one cannot be mapped.
pub(super) fn addresses_told<U: Told>(
    firmware: &Firmware,
    map: MapRegisters,
) -> Option<Vec<PhysAddr>> {
    let mut told = Vec::new();
    for unit in &firmware.units {
        let mut registers = map(unit.registers.ok()?).ok()?;
        told.extend(U::addresses(&mut registers));
    }
    Some(told)
}
