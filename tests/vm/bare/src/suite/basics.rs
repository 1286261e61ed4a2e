//! The machine itself, before the unit is used.

use alloc::format;

use iommud::acpi;
use iommud::topology::firmware::{DeviceScope, ScopeKind, UnitKind};

use super::lab::ARENA;
use super::{Outcome, ensure};
use crate::edu::{Edu, MAX_COUNT};
use crate::firmware::{Dmar, StartInfo, table as find_table};
use crate::{cpu, pci, phys};

pub fn processor() -> Outcome {
    let (a, b) = (cpu::instructions(), cpu::instructions());
    ensure!(b > a && b - a < 20, "from {a} to {b}: start QEMU with -icount shift=10");
    Ok(format!("{} instructions between two looks", b - a))
}

pub fn copy() -> Outcome {
    let mut count = 0;
    for edu in Edu::all() {
        ensure!(edu.identification() & 0xffff == 0xed, "{:?}: {:#x}", edu.id, edu.identification());
        phys::fill(ARENA + 4096, 4096, 0);
        edu.load(ARENA, 0x0123_4567_89ab_cdef);
        edu.write_memory(ARENA + 4096, MAX_COUNT);
        ensure!(phys::is_filled(ARENA + 4096, MAX_COUNT, 0x0123_4567_89ab_cdef), "{:?}", edu.id);
        ensure!(phys::read64(ARENA + 4096 + MAX_COUNT) == 0, "{:?} wrote too far", edu.id);
        count += 1;
    }
    ensure!(count == 3, "{count} edu devices");
    Ok(format!("{count} devices"))
}

pub fn interrupt() -> Outcome {
    let edu = Edu::all().next().ok_or("no edu device")?;
    let vector = cpu::FIRST_VECTOR + 1;
    pci::enable_msi(edu.id, cpu::MSI_ADDRESS, cpu::msi_data(vector));
    edu.raise_interrupt();
    let count = cpu::interrupts(vector);
    ensure!(count == 1, "{count} interrupts");
    Ok(format!("vector {vector:#x}"))
}

pub fn table(info: &StartInfo, base: &mut u64) -> Outcome {
    let bytes = find_table::<Dmar>(info.rsdp).ok_or("no DMAR")?;
    let firmware = acpi::parse_dmar(&bytes).map_err(|error| format!("{error:?}"))?;
    ensure!(firmware.anomalies.is_empty(), "{:?}", firmware.anomalies);
    let [unit] = firmware.units.as_slice() else {
        return Err(format!("{} units", firmware.units.len()));
    };
    let registers = unit.registers.map_err(|defect| format!("{defect:?}"))?;
    *base = registers.first().0;
    ensure!(unit.kind == UnitKind::Vtd && unit.segment == 0, "{unit:?}");
    // QEMU names every device on the root bus. Ports are described by the scopes of the devices behind them.
    for slot in [4, 5, 7] {
        let named =
            |scope: &DeviceScope| (scope.start_bus, scope.path.as_slice()) == (0, &[(slot, 0)]);
        ensure!(unit.include_all || unit.scopes.iter().any(named), "00:{slot:02x}.0 is missing");
    }
    let bridge = |scope: &DeviceScope| scope.kind == ScopeKind::Bridge && scope.path == [(6, 0)];
    ensure!(unit.include_all || unit.scopes.iter().any(bridge), "the root port is missing");
    // QEMU hw/i386/intel_iommu_internal.h: Q35_HOST_BRIDGE_IOMMU_ADDR.
    ensure!(*base == 0xfed9_0000, "the unit is at {base:#x}");
    Ok(format!("{registers:?}, host address width {:?}", firmware.host_address_width))
}
