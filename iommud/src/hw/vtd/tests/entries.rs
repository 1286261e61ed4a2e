//! The stores by which entries change, and what is invalidated for the tables they are in.

use super::*;

/// Stores since the last call.
fn stores(memory: &mut TestMemory) -> Vec<(PhysAddr, usize, u64)> {
    core::mem::take(&mut memory.written)
}

/// Section 6.6: the unit may fetch an entry between any two stores. So no present entry mixes an old word and a new
/// one.
#[test]
fn no_store_leaves_a_present_entry_that_is_neither_old_nor_new() {
    let (_, mut memory, mut unit) = translating(|_| ());
    let device = source(2, 3, 1);
    let (root, context) = (PhysAddr(ROOT), PhysAddr(CONTEXT));
    let passing = Entry::PassThrough { tag: DomainTag(0x34) };
    stores(&mut memory);
    unit.write_entry(&mut memory, device, translate(0x12)).unwrap();
    let link = (root, 4, CONTEXT | 1);
    let entry = [(context, 0x33, 0x1202), (context, 0x32, 0x1_2345_6001)];
    assert_eq!(stores(&mut memory), [&[link][..], &entry].concat(), "the word with P is the last");
    unit.write_entry(&mut memory, device, translate(0x12)).unwrap();
    assert_eq!(stores(&mut memory), [], "the entry stays present");
    unit.write_entry(&mut memory, device, passing).unwrap();
    let changed = [(context, 0x32, 0), (context, 0x33, 0x3402), (context, 0x32, 9)];
    assert_eq!(stores(&mut memory), changed);
    unit.write_entry(&mut memory, device, translate(0x12)).unwrap();
    assert_eq!(stores(&mut memory), [&[(context, 0x32, 0)][..], &entry].concat());
    unit.write_entry(&mut memory, device, Entry::Blocked).unwrap();
    let blocked = [(context, 0x32, 0), (context, 0x33, 0), (context, 0x32, 0)];
    assert_eq!(stores(&mut memory), blocked);
    unit.write_entry(&mut memory, device, passing).unwrap();
    assert_eq!(stores(&mut memory), changed[1..], "the entry was absent");
}

/// FPD is bit 1.
#[test]
fn faults_stay_suppressed_until_the_entry_is_written_anew() {
    let (_, mut memory, mut unit) = translating(|_| ());
    let device = source(2, 3, 1);
    let context = PhysAddr(CONTEXT);
    unit.write_entry(&mut memory, device, translate(0x12)).unwrap();
    stores(&mut memory);
    let silent = [(true, 0x1_2345_6003), (true, 0x1_2345_6003), (false, 0x1_2345_6001)];
    for (silent, expected) in [&silent[..], &[(false, 0x1_2345_6001)]].concat() {
        unit.suppress_faults(&mut memory, device, silent).unwrap();
        assert_eq!(stores(&mut memory), [(context, 0x32, expected)]);
    }
    unit.suppress_faults(&mut memory, device, true).unwrap();
    stores(&mut memory);
    unit.write_entry(&mut memory, device, translate(0x12)).unwrap();
    let anew = [(context, 0x32, 0), (context, 0x33, 0x1202), (context, 0x32, 0x1_2345_6001)];
    assert_eq!(stores(&mut memory), anew);
    // An entry that denies is suppressed as well; its low word is not 0 then.
    unit.write_entry(&mut memory, device, Entry::Blocked).unwrap();
    unit.suppress_faults(&mut memory, device, true).unwrap();
    stores(&mut memory);
    unit.write_entry(&mut memory, device, translate(0x12)).unwrap();
    assert_eq!(stores(&mut memory), anew[1..]);
}

#[test]
fn faults_of_a_bus_without_a_table_are_reported_without_memory() {
    let (_, mut memory, mut unit) = translating(|_| ());
    let before = memory.snapshot();
    for budget in [0, 9] {
        memory.budget = budget;
        unit.suppress_faults(&mut memory, source(9, 0, 0), false).unwrap();
        assert_eq!(memory.snapshot(), before);
    }
}

/// Tables that are complete before the unit is given them were never cached as absent.
#[test]
fn what_was_prepared_needs_no_invalidation_later() {
    let mut memory = TestMemory::new();
    let fake = Fake::new(memory.bus.clone());
    // CM and RWBF.
    fake.0.borrow_mut().capability |= 0x90;
    let mut unit = bring_up(&fake, &mut memory).unwrap();
    fake.acts();
    unit.write_entry(&mut memory, source(1, 0, 0), translate(3)).unwrap();
    unit.invalidate_entry(&mut memory, source(1, 0, 0), None).unwrap();
    unit.publish_pages(&mut memory, DomainTag(3), pages(0x1000, 1)).unwrap();
    assert_eq!(fake.acts(), [], "the unit does not know the tables");
    unit.enable(&mut memory).unwrap();
    fake.acts();
    unit.write_entry(&mut memory, source(1, 1, 0), translate(4)).unwrap();
    unit.invalidate_entry(&mut memory, source(1, 1, 0), None).unwrap();
    let entry_alone = [[0x0000_0108_0000_0031, 0], [0x0004_00e2, 0]];
    assert_eq!(fake.did(), entry_alone, "the root entry was present");
    unit.write_entry(&mut memory, source(2, 0, 0), translate(5)).unwrap();
    unit.invalidate_entry(&mut memory, source(2, 0, 0), None).unwrap();
    assert_eq!(fake.did(), [[0x11, 0], [0xd2, 0]], "the root entry was absent");
}

/// Without CM and with RWBF, a flush publishes what was absent, but only once the unit may walk the tables.
#[test]
fn nothing_is_flushed_for_a_unit_that_does_not_know_the_tables() {
    let mut memory = TestMemory::new();
    let fake = Fake::new(memory.bus.clone());
    fake.0.borrow_mut().capability |= 0x10;
    let mut unit = bring_up(&fake, &mut memory).unwrap();
    fake.acts();
    unit.publish_pages(&mut memory, DomainTag(3), pages(0x1000, 1)).unwrap();
    assert_eq!(fake.acts(), []);
    unit.enable(&mut memory).unwrap();
    assert_eq!(fake.acts()[..2], [W32(0x18, 0x0c00_0000), W64(0x20, ROOT)]);
}
