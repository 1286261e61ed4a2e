//! What is read from the registers of a unit before it is used, and what is shown of them.

use super::*;
use crate::hw::vtd::addresses_told;

fn fake_with(status: u32, root: u64) -> (Fake, TestMemory) {
    let memory = TestMemory::new();
    let fake = Fake::new(memory.bus.clone());
    fake.0.borrow_mut().status = status;
    fake.0.borrow_mut().root = root;
    (fake, memory)
}

/// RTADDR has TTM in bits 11:10 and SSIRWE in bit 7; IQA has DW in bit 11 and QS in bits 2:0.
#[test]
fn addresses_of_the_previous_owner_are_told_without_their_flags() {
    let (mut fake, _) = fake_with(0x8000_0000, 0x8_8888_8c80);
    fake.0.borrow_mut().queue = 0x9_9999_9807;
    assert_eq!(addresses_told(&mut fake), [PhysAddr(0x8_8888_8000), PhysAddr(0x9_9999_9000)]);
    assert_eq!(fake.acts(), []);
}

#[test]
fn each_register_of_ones_shows_that_the_unit_is_gone() {
    let gone: [fn(&Fake); 4] = [
        |fake| fake.0.borrow_mut().version = u32::MAX,
        |fake| fake.0.borrow_mut().capability = u64::MAX,
        |fake| fake.0.borrow_mut().extended = u64::MAX,
        |fake| fake.0.borrow_mut().status = u32::MAX,
    ];
    for (case, change) in gone.into_iter().enumerate() {
        let (fake, mut memory) = fake_with(0, 0);
        change(&fake);
        assert_eq!(bring_up(&fake, &mut memory).err(), Some(UnitError::Dead), "{case}");
        assert_eq!((fake.acts(), memory.frames_in_use()), (vec![], 0), "{case}");
    }
}

#[test]
fn a_unit_was_found_translating_if_te_was_on() {
    for (status, expected) in [(0, false), (0x4400_0000, false), (0x8000_0000, true)] {
        let (fake, mut memory) = fake_with(status, 0);
        let mut unit = bring_up(&fake, &mut memory).unwrap();
        assert_eq!(unit.found_translating(), expected, "{status:#x}");
        unit.enable(&mut memory).unwrap();
        assert_eq!(unit.found_translating(), expected, "{status:#x}");
    }
}

/// Section 11.4.5: the mode may change while translation is off, or with ESRTPS.
#[test]
fn other_table_modes_matter_only_to_a_unit_that_translates() {
    let what = "taking over from scalable mode (ESRTPS)";
    for mode in [1 << 7, 1 << 10, 2 << 10, 3 << 10] {
        let (fake, mut memory) = fake_with(0x8000_0000, 0x8_8888_8000 | mode);
        let refused = bring_up(&fake, &mut memory).err();
        assert_eq!(refused, Some(UnitError::Unsupported { what }), "{mode:#x}");
        let (fake, mut memory) = fake_with(0x8000_0000, 0x8_8888_8000 | mode);
        fake.0.borrow_mut().capability |= 1 << 63;
        bring_up(&fake, &mut memory).unwrap();
        let (fake, mut memory) = fake_with(0, 0x8_8888_8000 | mode);
        let mut unit = bring_up(&fake, &mut memory).unwrap();
        unit.enable(&mut memory).unwrap();
        assert_eq!(fake.0.borrow().root, ROOT, "{mode:#x}");
    }
}

/// Reads the ranges' control register only where there are ranges: PLMR is bit 5, PHMR bit 6.
#[test]
fn either_protected_range_is_opened() {
    for (capability, expected) in [(0, 0x8000_0001), (0x20, 0), (0x40, 0), (0x60, 0)] {
        let (fake, _, _) = translating(|fake| {
            fake.0.borrow_mut().capability |= capability;
            fake.0.borrow_mut().protected = 0x8000_0001;
        });
        assert_eq!(fake.0.borrow().protected, expected, "{capability:#x}");
    }
}

/// Bit 55 of the capability register is DRD, bit 54 is DWD; bits 7 and 6 of the descriptor ask for them.
#[test]
fn only_kinds_of_requests_that_the_unit_drains_are_waited_for() {
    for (kinds, expected) in [(0, 0x12), (1, 0x52), (2, 0x92), (3, 0xd2)] {
        let (fake, mut memory, mut unit) = translating(|fake| {
            let mut state = fake.0.borrow_mut();
            state.capability = state.capability & !(3 << 54) | kinds << 54;
        });
        unit.revive(&mut memory).unwrap();
        assert_eq!(fake.did(), [[0x11, 0], [expected, 0]]);
    }
}

fn described(unit: &mut TestUnit) -> String {
    let mut text = String::new();
    unit.describe(&mut text).unwrap();
    text
}

#[test]
fn a_unit_is_described_line_by_line() {
    let capabilities = "page table levels: 3 4\n\
        page sizes: 4 KiB, 2 MiB, 1 GiB\n\
        address width: 48 bits in, 39 out\n\
        domain tags: 1 to 65535\n\
        walks tables through caches: yes\n\
        makes devices snoop: no\n\
        caches absent entries: no\n\
        needs write buffer flushes: no\n\
        pass-through: yes\n\
        invalidates pages: up to 2^18\n\
        fault records: 1\n";
    let (fake, _, mut unit) = translating(|_| ());
    let on = "architecture version 1.0\n\
        translation on: yes\n\
        invalidation queue on: yes\n\
        interrupt remapping on: no\n";
    assert_eq!(described(&mut unit), [on, capabilities].concat());
    fake.0.borrow_mut().status = 1 << 25;
    let remapping = "architecture version 1.0\n\
        translation on: no\n\
        invalidation queue on: no\n\
        interrupt remapping on: yes\n";
    assert_eq!(described(&mut unit), [remapping, capabilities].concat());
    fake.0.borrow_mut().dead = true;
    let dead = "architecture version 1.0\nstatus: registers read all ones\n";
    assert_eq!(described(&mut unit), [dead, capabilities].concat());
}

/// ND 0, RWBF, CM, five levels, MGAW 56, 2 MiB pages, four records, no PSI; QI and SC; IRE is on.
#[test]
fn another_unit_is_described_as_well() {
    let (fake, mut memory) = fake_with(0x0200_0000, 0);
    {
        let mut state = fake.0.borrow_mut();
        state.version = 0x54;
        state.capability = 0x0000_0304_2238_0890;
        state.extended = 0x82;
        state.records = vec![[0; 2]; 4];
    }
    let mut unit = VtdUnit::bring_up(fake, Ticks::default(), &mut memory, 60).unwrap();
    let expected = "architecture version 5.4\n\
        translation on: no\n\
        invalidation queue on: yes\n\
        interrupt remapping on: yes\n\
        page table levels: 5\n\
        page sizes: 4 KiB, 2 MiB\n\
        address width: 57 bits in, 52 out\n\
        domain tags: 1 to 15\n\
        walks tables through caches: no\n\
        makes devices snoop: yes\n\
        caches absent entries: yes\n\
        needs write buffer flushes: yes\n\
        pass-through: no\n\
        invalidates pages: no, whole domains only\n\
        fault records: 4\n";
    assert_eq!(described(&mut unit), expected);
}
