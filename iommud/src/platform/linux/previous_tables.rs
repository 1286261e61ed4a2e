//! Addresses of tables that an earlier server set in the units' registers.

use crate::addr::PhysAddr;
use crate::hw::{amdvi, vtd};
use crate::platform::Registers;
use crate::platform::units::{AmdVi, Family, MapRegisters, Vtd};
use crate::topology::firmware::Firmware;

/// A family of units whose registers hold the addresses of its tables.
pub(super) trait Told: Family {
    /// Reads the addresses of tables, queues and logs that the unit's previous owner set.
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

/// Reads the addresses set in the registers of every unit. `None` when the registers of a unit cannot be mapped.
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
