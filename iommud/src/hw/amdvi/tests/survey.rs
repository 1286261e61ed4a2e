//! What a unit says of itself, and what its previous owner left, before and while it is brought up.

use super::*;
use crate::hw::amdvi::{Capability, addresses_told};

fn bring_up_with(shared: &mut Shared, block: Capability) -> Result<TestUnit, UnitError> {
    let (registers, clock) = (shared.clone(), shared.clone());
    TestUnit::bring_up(registers, clock, shared, &description(Vec::new()), Some(block))
}

/// A unit that is on, with this device table register.
fn translating(table: u64) -> Shared {
    let shared = Shared::new();
    let mut machine = shared.machine.borrow_mut();
    machine.set(CONTROL, 0x1405);
    machine.set(STATUS, 0x18);
    machine.set(0, table);
    drop(machine);
    shared
}

/// 48882 section 3.4.1: bits 51:12 of each base register.
#[test]
fn addresses_of_the_previous_owner() {
    let mut shared = Shared::new();
    for (register, value) in [
        (0, 0x000f_edcb_a987_61ff),
        (8, 0x0900_0000_1234_5000),
        (0x10, 0xffff_ffff_ffff_ffff),
        (0x38, 0x0c00_0000_0000_0000),
    ] {
        shared.machine.borrow_mut().set(register, value);
    }
    let told = [0x000f_edcb_a987_6000, 0x1234_5000, 0x000f_ffff_ffff_f000, 0].map(PhysAddr);
    assert_eq!(addresses_told(&mut shared), told);
    assert!(shared.machine.borrow().writes.is_empty());
}

#[test]
fn registers_that_firmware_did_not_enable() {
    let mut dead = Shared::new();
    dead.machine.borrow_mut().set(CONTROL, u64::MAX);
    let off = Capability::new(0x1b0b_000f, 0xfed8_0000, 0, 48 << 15 | 40 << 8);
    let what = "firmware did not enable the unit's registers";
    assert_eq!(bring_up_with(&mut dead, off).err(), Some(UnitError::Unsupported { what }));
    assert_eq!(bring_up_with(&mut dead, capability(false)).err(), Some(UnitError::Dead));
    // QEMU's registers answer all the same.
    assert!(bring_up_with(&mut Shared::new(), off).is_ok());
}

#[test]
fn registers_that_firmware_puts_elsewhere() {
    for (low, high) in [(0xfed9_0001, 0), (0xfed8_0001, 1), (1, 0)] {
        let mut shared = Shared::new();
        let block = Capability::new(0x1b0b_000f, low, high, 48 << 15 | 40 << 8);
        let what = "firmware table and unit disagree on its registers";
        let error = bring_up_with(&mut shared, block).err();
        assert_eq!(error, Some(UnitError::Unsupported { what }), "{high:#x} {low:#x}");
        let machine = shared.machine.borrow();
        assert!(machine.writes.is_empty() && machine.reads == 0);
    }
}

#[test]
fn features_are_read_where_the_block_says_that_they_exist() {
    // Bit 27 of the header is EFRSup. FEATURES has 6 levels.
    for (header, levels) in
        [(0x1b0b_000f, LevelSet::all()), (0x130b_000f, LevelSet::THREE | LevelSet::FOUR)]
    {
        let block = Capability::new(header, 0xfed8_0001, 0, 48 << 15 | 40 << 8);
        let unit = bring_up_with(&mut Shared::new(), block).unwrap();
        assert_eq!(unit.capabilities().levels, levels);
    }
}

#[test]
fn sizes_that_the_block_does_not_state() {
    // Bit 28 of the header is CapExt. Any unit with four levels: 52 bits of memory, 48 of I/O virtual addresses.
    for (header, sizes, expected) in [
        (0x1b0b_000f, 47 << 15 | 39 << 8, (39, 47)),
        (0x0b0b_000f, 47 << 15 | 39 << 8, (52, 48)),
        (0x1b0b_000f, 0, (52, 48)),
    ] {
        let block = Capability::new(header, 0xfed8_0001, 0, sizes);
        let capabilities = bring_up_with(&mut Shared::new(), block).unwrap().capabilities();
        assert_eq!((capabilities.physical_bits, capabilities.iova_bits), expected);
    }
}

#[test]
fn whether_it_was_found_translating() {
    assert!(!bring_up(&mut Shared::new()).unwrap().found_translating());
    let mut shared = translating(0x1_0000_01ff);
    let mut unit = bring_up(&mut shared).unwrap();
    assert!(unit.found_translating());
    unit.enable(&mut shared).unwrap();
    assert!(unit.found_translating());
}

#[test]
fn interrupt_tables_behind_the_end_of_a_table_are_not_adopted() {
    // 128 entries. The memory behind them belongs to something else.
    let mut shared = translating(0x1_0000_0000);
    const INTERRUPTS: u64 = 0x2000_0012_3456_7013;
    for source in [127, 128, 129, 300] {
        shared.machine.borrow_mut().put(0x1_0000_0000 + source * 32 + 16, INTERRUPTS);
    }
    let mut unit = bring_up(&mut shared).unwrap();
    unit.enable(&mut shared).unwrap();
    let machine = shared.machine.borrow();
    let adopted = (0..=u16::MAX).filter(|source| machine.entry(*source)[2] != 0);
    assert_eq!(adopted.collect::<Vec<_>>(), [127]);
    assert_eq!(machine.entry(127)[2], INTERRUPTS);
}

#[test]
fn interrupt_tables_are_adopted_as_often_as_the_unit_is_taken_over() {
    let mut shared = translating(0x1_0000_01ff);
    shared.machine.borrow_mut().put(0x1_0000_0000 + 0xa8 * 32 + 16, 0x2000_0012_3456_7013);
    let mut unit = bring_up(&mut shared).unwrap();
    unit.revive(&mut shared).unwrap();
    assert_eq!(shared.machine.borrow().get(0), 0x1_0000_01ff, "still the previous owner's");
    unit.enable(&mut shared).unwrap();
    assert_eq!(shared.machine.borrow().entry(0xa8)[2], 0x2000_0012_3456_7013);
}
