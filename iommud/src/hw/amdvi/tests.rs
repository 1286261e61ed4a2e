mod revive;
mod survey;
mod waits;

use std::vec::Vec;

use iommu_protocol::fault::FaultAccess;
use iommu_protocol::ids::RequesterId;

use super::testing::*;
use crate::addr::{Iova, IovaRange, PhysAddr};
use crate::hw::hal::MemoryError;
use crate::hw::unit::{Entry, Unit, UnitError};
use crate::topology::capabilities::{DomainTag, LevelSet};
use crate::topology::firmware::EntryRange;

const SOURCE: RequesterId = RequesterId(0x00a8);
const INVALIDATE_ALL: [u64; 2] = [0x8000_0000_0000_0000, 0];
const WHOLE: u64 = 0x7fff_ffff_ffff_f003;

fn device(source: u16) -> [u64; 2] {
    [0x2000_0000_0000_0000 | u64::from(source), 0]
}

fn domain(tag: u16) -> u64 {
    0x3000_0000_0000_0000 | u64::from(tag) << 32
}

fn translate(tag: u16, root: u64) -> Entry {
    Entry::Translate { tag: DomainTag(tag), root: PhysAddr(root), levels: 4 }
}

fn page(number: u64) -> IovaRange {
    IovaRange::new(Iova(number << 12), 4096).unwrap()
}

fn running() -> (Shared, TestUnit) {
    let mut shared = Shared::new();
    let mut unit = bring_up(&mut shared).unwrap();
    unit.enable(&mut shared).unwrap();
    let mut machine = shared.machine.borrow_mut();
    machine.commands.clear();
    machine.writes.clear();
    machine.waits = 0;
    drop(machine);
    (shared, unit)
}

#[test]
fn a_unit_that_is_off_is_prepared_and_stays_off() {
    let mut shared = Shared::new();
    // Firmware left rings on.
    shared.machine.borrow_mut().set(CONTROL, 0x1004);
    bring_up(&mut shared).unwrap();
    let machine = shared.machine.borrow();
    let base = |register| machine.get(register) & 0x000f_ffff_ffff_f000;
    let (table, commands, events, requests) = (base(0), base(8), base(0x10), base(0x38));
    let writes: Vec<_> = machine.writes.clone();
    assert_eq!(
        writes,
        [
            (0x18, 0x400),           // Coherent, to see whether it stays
            (0x18, 0),               // everything off
            (0x18, 0x400),           // flag bits
            (0, table | 0x1ff),      // 512 pages of device table
            (8, commands | 8 << 56), // 256 commands
            (0x2000, 0),
            (0x2008, 0),
            (0x10, events | 12 << 56), // 4096 events
            (0x2010, 0),
            (0x2018, 0),
            (0x38, requests | 12 << 56),
            (0x2030, 0),
            (0x2038, 0),
            (0x2020, 0x67),
            (0x20, 0),
            (0x28, 0),
            (0x18, 0xb404), // Coherent, command ring, event log, PPR log, PPR
        ]
    );
    assert!(machine.commands.is_empty() && machine.get(STATUS) & 0x10 == 0);
}

#[test]
fn every_entry_denies_from_the_first_instant() {
    let mut shared = Shared::new();
    bring_up(&mut shared).unwrap();
    let machine = shared.machine.borrow();
    let deny = machine.entry(0);
    // V, TV, mode 3, no IR, no IW, and a page table without a page.
    assert_eq!(deny[0] & 0xfff0_0000_0000_0fff, 0x603);
    let nothing = deny[0] & 0x000f_ffff_ffff_f000;
    assert!((0..512).all(|index| machine.word(nothing + index * 8) == 0));
    assert!((0..=u16::MAX).all(|source| machine.entry(source) == [deny[0], 0, 0, 0]));
}

#[test]
fn enabling_forgets_everything_and_names_what_was_entered() {
    let mut shared = Shared::new();
    let mut unit = bring_up(&mut shared).unwrap();
    unit.write_entry(&mut shared, SOURCE, translate(5, 0x1234_5000)).unwrap();
    unit.invalidate_entry(&mut shared, SOURCE, None).unwrap();
    unit.write_entry(&mut shared, RequesterId(1), Entry::Blocked).unwrap();
    shared.machine.borrow_mut().writes.clear();
    unit.enable(&mut shared).unwrap();
    {
        let machine = shared.machine.borrow();
        assert_eq!(machine.writes[..3], [(0x18, 0xb405), (0x20, 0), (0x28, 0)]);
        assert_eq!(machine.commands, [device(1), device(0xa8), INVALIDATE_ALL]);
        assert_eq!(machine.waits, 2);
    }
    let writes = shared.machine.borrow().writes.len();
    unit.enable(&mut shared).unwrap();
    assert_eq!(shared.machine.borrow().writes.len(), writes, "enabling twice does nothing");
}

#[test]
fn without_invalidate_all_every_entry_and_domain_is_named() {
    let mut shared = Shared::new();
    shared.machine.borrow_mut().set(0x30, FEATURES & !0x40);
    let mut unit = bring_up(&mut shared).unwrap();
    unit.enable(&mut shared).unwrap();
    let machine = shared.machine.borrow();
    assert_eq!(machine.commands.len(), 2 * 65536);
    assert!((0..=u16::MAX).all(|id| machine.commands[usize::from(id)] == device(id)));
    let domains = &machine.commands[65536..];
    assert!((0..=u16::MAX).all(|id| domains[usize::from(id)] == [domain(id), WHOLE]));
}

#[test]
fn a_unit_that_dies_while_it_is_taken_over_names_no_table() {
    let mut shared = Shared::new();
    {
        let mut machine = shared.machine.borrow_mut();
        machine.set(CONTROL, 0x1_541d);
        machine.set(STATUS, 0x18);
        machine.set(0, u64::MAX);
    }
    assert!(matches!(bring_up(&mut shared), Err(UnitError::Dead)));
}

#[test]
fn a_unit_that_is_on_is_taken_over_without_being_off() {
    let mut shared = Shared::new();
    let old_table = 0x1_0000_01ff;
    {
        let mut machine = shared.machine.borrow_mut();
        // On, with rings, interrupts, guest translation and an exclusion range, as a previous owner left it.
        machine.set(CONTROL, 0x1_541d);
        machine.set(STATUS, 0x18);
        machine.set(0, old_table);
        machine.set(0x20, 0x5000_0001);
        // An interrupt table of device 0xa8.
        machine.put(0x1_0000_0000 + 0xa8 * 32 + 16, 0x2000_0012_3456_7013);
    }
    let mut unit = bring_up(&mut shared).unwrap();
    {
        let machine = shared.machine.borrow();
        assert_eq!(machine.get(0), old_table, "the old table rules until the switch");
        assert_eq!(machine.get(CONTROL), 0x1_b405);
        assert_eq!(machine.get(STATUS) & 0x18, 0x18);
    }
    unit.write_entry(&mut shared, SOURCE, translate(5, 0x1234_5000)).unwrap();
    unit.enable(&mut shared).unwrap();
    let machine = shared.machine.borrow();
    let controls = machine.writes.iter().filter(|(register, _)| *register == CONTROL);
    assert!(controls.clone().all(|(_, value)| value & 1 == 1), "IommuEn was cleared");
    assert!(controls.count() >= 3);
    // Guest translation is off, interrupt remapping as it was.
    assert_eq!((machine.get(CONTROL), machine.get(0x20)), (0xb405, 0));
    assert_eq!(machine.commands, [device(0xa8), INVALIDATE_ALL]);
    assert_eq!(machine.entry(0xa8), [0x6000_0000_1234_5803, 5, 0x2000_0012_3456_7013, 0,]);
    let swap = machine.writes.iter().position(|(register, _)| *register == 0).unwrap();
    let off = machine.writes.iter().rposition(|(register, _)| *register == 0x20).unwrap();
    assert!(swap < off, "the exclusion range goes when its replacement is in place");
}

#[test]
fn a_table_in_parts_is_one_again() {
    let mut shared = Shared::new();
    shared.machine.borrow_mut().set(CONTROL, 0x04_0000_1405);
    shared.machine.borrow_mut().set(STATUS, 0x18);
    let mut unit = bring_up(&mut shared).unwrap();
    shared.machine.borrow_mut().writes.clear();
    unit.enable(&mut shared).unwrap();
    let machine = shared.machine.borrow();
    let first: Vec<_> = machine.writes.iter().map(|(register, _)| *register).take(3).collect();
    assert_eq!(first, [CONTROL, 0, CONTROL]);
    assert!(machine.writes.iter().all(|(at, value)| *at != CONTROL || value & 0x1c_0000_0001 == 1));
}

#[test]
fn an_owner_whose_rings_do_not_stop_is_left_alone() {
    let mut shared = Shared::new();
    {
        let mut machine = shared.machine.borrow_mut();
        machine.set(CONTROL, 0x1405);
        machine.set(STATUS, 0x18);
        machine.set(0, 0x7000);
        machine.logs_hang = true;
    }
    let what = "rings of the previous owner to stop";
    assert_eq!(bring_up(&mut shared).err(), Some(UnitError::Timeout { what }));
    let machine = shared.machine.borrow();
    assert_eq!((machine.get(0), machine.get(CONTROL) & 1), (0x7000, 1));
}

#[test]
fn an_entry_changes_by_way_of_one_that_denies() {
    let (mut shared, mut unit) = running();
    let deny = shared.machine.borrow().entry(SOURCE.0)[0];
    let at = (shared.machine.borrow().get(0) & !0xfff) + 32 * 0xa8;
    let stores = |shared: &Shared| core::mem::take(&mut shared.machine.borrow_mut().stores);
    stores(&shared);

    unit.write_entry(&mut shared, SOURCE, translate(0x1234, 0x000f_edcb_a987_6000)).unwrap();
    let word = 0x600f_edcb_a987_6803;
    assert_eq!(stores(&shared), [(at, deny), (at + 8, 0x1234), (at, word)]);
    unit.write_entry(&mut shared, SOURCE, translate(7, 0x5000)).unwrap();
    assert_eq!(stores(&shared), [(at, deny), (at + 8, 7), (at, 0x6000_0000_0000_5803)]);
    unit.write_entry(&mut shared, SOURCE, Entry::PassThrough { tag: DomainTag(9) }).unwrap();
    assert_eq!(stores(&shared), [(at, deny), (at + 8, 9), (at, 0x6000_0000_0000_0003)]);
    unit.suppress_faults(&mut shared, SOURCE, true).unwrap();
    assert_eq!(stores(&shared), [(at + 8, 0x6_0000_0009)]);
    unit.write_entry(&mut shared, SOURCE, Entry::Blocked).unwrap();
    assert_eq!(stores(&shared), [(at, deny), (at + 8, 0), (at, deny)]);
}

#[test]
fn an_entry_that_deepens_changes_by_one_store() {
    let (mut shared, mut unit) = running();
    let deny = shared.machine.borrow().entry(SOURCE.0)[0];
    let at = (shared.machine.borrow().get(0) & !0xfff) + 32 * 0xa8;
    let stores = |shared: &Shared| core::mem::take(&mut shared.machine.borrow_mut().stores);
    let five = Entry::Translate { tag: DomainTag(9), root: PhysAddr(0x6000), levels: 5 };
    unit.write_entry(&mut shared, SOURCE, translate(9, 0x5000)).unwrap();
    stores(&shared);

    unit.write_entry(&mut shared, SOURCE, five).unwrap();
    assert_eq!(stores(&shared), [(at, 0x6000_0000_0000_6a03)]);
    // Faults that are suppressed stay so.
    unit.suppress_faults(&mut shared, SOURCE, true).unwrap();
    stores(&shared);
    unit.write_entry(&mut shared, SOURCE, translate(9, 0x5000)).unwrap();
    assert_eq!(stores(&shared), [(at, 0x6000_0000_0000_5803)]);
    assert_eq!(shared.machine.borrow().word(at + 8), 0x6_0000_0009);

    // To and from pass-through is no deepening, nor is a first translation with domain 0.
    let through = Entry::PassThrough { tag: DomainTag(9) };
    unit.write_entry(&mut shared, SOURCE, through).unwrap();
    assert_eq!(stores(&shared), [(at, deny), (at + 8, 9), (at, 0x6000_0000_0000_0003)]);
    unit.write_entry(&mut shared, SOURCE, through).unwrap();
    assert_eq!(stores(&shared), [(at, deny), (at + 8, 9), (at, 0x6000_0000_0000_0003)]);
    unit.write_entry(&mut shared, SOURCE, translate(9, 0x5000)).unwrap();
    assert_eq!(stores(&shared), [(at, deny), (at + 8, 9), (at, 0x6000_0000_0000_5803)]);
    unit.write_entry(&mut shared, SOURCE, Entry::Blocked).unwrap();
    assert_eq!(stores(&shared), [(at, deny), (at + 8, 0), (at, deny)]);
    unit.write_entry(&mut shared, SOURCE, translate(0, 0x5000)).unwrap();
    assert_eq!(stores(&shared), [(at, deny), (at + 8, 0), (at, 0x6000_0000_0000_5803)]);
}

#[test]
fn suppressing_faults_twice_suppresses_them() {
    let (mut shared, mut unit) = running();
    let at = (shared.machine.borrow().get(0) & !0xfff) + 32 * 0xa8 + 8;
    let expected = [(true, 0x6_0000_0000), (true, 0x6_0000_0000), (false, 0), (false, 0)];
    for (silent, word) in expected {
        unit.suppress_faults(&mut shared, SOURCE, silent).unwrap();
        assert_eq!(shared.machine.borrow().word(at), word, "{silent}");
    }
}

#[test]
fn settings_of_firmware_stay() {
    let mut shared = Shared::new();
    let range = |first, last, alias: Option<u16>, settings| EntryRange {
        first: RequesterId(first),
        last: RequesterId(last),
        alias: alias.map(RequesterId),
        settings,
    };
    // Everything passes for 0xa0..=0xaf and its alias. Nothing passes for 0xa9, which a second range names again.
    let entries = vec![range(0xa0, 0xaf, Some(0x300), 0xf7), range(0xa9, 0xa9, None, 0)];
    let (registers, clock) = (shared.clone(), shared.clone());
    let description = description(entries);
    let block = Some(capability(false));
    let mut unit = TestUnit::bring_up(registers, clock, &mut shared, &description, block).unwrap();
    unit.write_entry(&mut shared, SOURCE, translate(5, 0x1234_5000)).unwrap();
    unit.write_entry(&mut shared, RequesterId(0x300), Entry::Blocked).unwrap();
    let machine = shared.machine.borrow();
    let deny = machine.entry(0)[0];
    let (management, passes) = (0x300_0000_0000, 0xc700_0000_0000_0000);
    assert_eq!(machine.entry(0xa8), [0x6000_0000_1234_5803, management | 5, passes, 0]);
    assert_eq!(machine.entry(0x300), [deny, management, passes, 0]);
    assert_eq!(machine.entry(0xaf), [deny, management, passes, 0]);
    assert_eq!(machine.entry(0xa9), [deny, 0, 0, 0]);
}

#[test]
fn invalidations_are_one_command_and_one_wait() {
    let (mut shared, mut unit) = running();
    unit.invalidate_pages(&mut shared, DomainTag(5), page(0x10), false).unwrap();
    let big = IovaRange::new(Iova(0x4000_0000), 0x4000_0000).unwrap();
    unit.invalidate_pages(&mut shared, DomainTag(5), big, true).unwrap();
    unit.publish_pages(&mut shared, DomainTag(5), page(0x10)).unwrap();
    unit.invalidate_entry(&mut shared, SOURCE, None).unwrap();
    {
        let machine = shared.machine.borrow();
        let expected = [[domain(5), 0x1_0000], [domain(5), 0x5fff_f003], device(0xa8)];
        assert_eq!((&machine.commands[..], machine.waits), (&expected[..], 3));
        assert!(machine.writes.iter().all(|(register, _)| *register == COMMAND_TAIL));
    }
    // With an old domain, its pages are invalidated after the entry.
    unit.invalidate_entry(&mut shared, SOURCE, Some(DomainTag(5))).unwrap();
    let machine = shared.machine.borrow();
    assert_eq!(machine.commands[3..], [device(0xa8), [domain(5), WHOLE]]);
    assert_eq!(machine.waits, 5);
}

#[test]
fn mapping_is_published_only_where_absence_is_cached() {
    for (block, expected) in [(Some(capability(true)), 1), (Some(capability(false)), 0), (None, 1)]
    {
        let mut shared = Shared::new();
        let (registers, clock) = (shared.clone(), shared.clone());
        let description = description(Vec::new());
        let mut unit =
            TestUnit::bring_up(registers, clock, &mut shared, &description, block).unwrap();
        unit.enable(&mut shared).unwrap();
        assert_eq!(unit.capabilities().caches_absent, expected == 1);
        shared.machine.borrow_mut().commands.clear();
        unit.publish_pages(&mut shared, DomainTag(5), page(0x10)).unwrap();
        assert_eq!(shared.machine.borrow().commands.len(), expected);
    }
}

#[test]
fn the_ring_wraps() {
    let (mut shared, mut unit) = running();
    for number in 0..1000 {
        unit.invalidate_pages(&mut shared, DomainTag(5), page(number), false).unwrap();
    }
    let machine = shared.machine.borrow();
    assert_eq!((machine.commands.len(), machine.waits), (1000, 1000));
    let expected: Vec<_> = (0..1000).map(|number| [domain(5), number << 12]).collect();
    assert_eq!(machine.commands, expected);
    // Tail pointers stay inside the ring, on whole entries.
    assert!(machine.writes.iter().all(|(_, tail)| *tail < 4096 && tail % 16 == 0));
}

#[test]
fn a_stopped_ring_is_started_and_given_the_commands_again() {
    let (mut shared, mut unit) = running();
    shared.machine.borrow_mut().stop_after = Some(0);
    unit.invalidate_pages(&mut shared, DomainTag(5), page(1), false).unwrap();
    {
        let machine = shared.machine.borrow();
        assert_eq!(machine.commands, [[domain(5), 0x1000]]);
        assert_eq!(machine.waits, 1);
        assert_eq!(
            machine.writes[1..5],
            [(0x18, 0xa405), (0x2000, 0), (0x2008, 0), (0x18, 0xb405)]
        );
    }
    // Twice over the same commands is an error, not a loop.
    shared.machine.borrow_mut().stop_after = Some(0);
    shared.machine.borrow_mut().stop_again = 1;
    let error = unit.invalidate_pages(&mut shared, DomainTag(5), page(1), false).unwrap_err();
    assert!(matches!(error, UnitError::Queue { status: 0x88, .. }), "{error:?}");
    // And the unit can be used again if it recovers.
    unit.invalidate_pages(&mut shared, DomainTag(5), page(2), false).unwrap();
    assert_eq!(shared.machine.borrow().commands.last(), Some(&[domain(5), 0x2000]));
}

#[test]
fn enabling_that_fails_can_be_tried_again_and_hides_nothing() {
    let mut shared = Shared::new();
    let mut unit = bring_up(&mut shared).unwrap();
    unit.write_entry(&mut shared, SOURCE, Entry::Blocked).unwrap();
    shared.machine.borrow_mut().hangs = true;
    unit.enable(&mut shared).unwrap_err();
    assert_eq!(shared.machine.borrow().get(CONTROL) & 1, 1, "on, and what is denied is denied");
    unit.invalidate_entry(&mut shared, SOURCE, None).unwrap_err();
    unit.invalidate_pages(&mut shared, DomainTag(5), page(1), false).unwrap_err();
    unit.enable(&mut shared).unwrap_err();
    {
        let mut machine = shared.machine.borrow_mut();
        machine.hangs = false;
        machine.run_commands();
        machine.commands.clear();
    }
    unit.enable(&mut shared).unwrap();
    assert_eq!(shared.machine.borrow().commands, [device(0xa8), INVALIDATE_ALL]);
}

#[test]
fn a_unit_that_hangs_or_dies_ends_the_wait() {
    let (mut shared, mut unit) = running();
    shared.machine.borrow_mut().hangs = true;
    let error = unit.invalidate_pages(&mut shared, DomainTag(5), page(1), false).unwrap_err();
    assert_eq!(error, UnitError::Timeout { what: "completion of commands" });
    // The ring is not written while an old wait is pending.
    let writes = shared.machine.borrow().writes.len();
    unit.invalidate_pages(&mut shared, DomainTag(5), page(2), false).unwrap_err();
    assert_eq!(shared.machine.borrow().writes.len(), writes);
    shared.machine.borrow_mut().set(STATUS, u64::MAX);
    let error = unit.invalidate_pages(&mut shared, DomainTag(5), page(2), false).unwrap_err();
    assert_eq!(error, UnitError::Dead);
}

#[test]
fn failing_to_bring_up() {
    let mut dead = Shared::new();
    dead.machine.borrow_mut().set(CONTROL, u64::MAX);
    assert_eq!(bring_up(&mut dead).err(), Some(UnitError::Dead));
    assert!(dead.machine.borrow().writes.is_empty());
    // No memory at any allocation: the unit is untouched, except for the test of Coherent.
    for budget in 0..7 {
        let mut shared = Shared::new();
        shared.machine.borrow_mut().budget = Some(budget);
        let error = bring_up(&mut shared).err();
        match budget {
            6 => assert_eq!(error, None),
            _ => assert_eq!(error, Some(UnitError::Memory(MemoryError::Exhausted))),
        }
        assert!(budget == 6 || shared.machine.borrow().writes.len() == 1);
    }
    let mut guest_only = Shared::new();
    guest_only.machine.borrow_mut().set(0x30, FEATURES | 0xc00);
    assert!(matches!(bring_up(&mut guest_only).err(), Some(UnitError::Unsupported { .. })));
}

#[test]
fn capabilities_follow_the_registers() {
    for (hats, levels) in [
        (0, LevelSet::THREE | LevelSet::FOUR),
        (0x400, LevelSet::THREE | LevelSet::FOUR | LevelSet::FIVE),
        (0x800, LevelSet::all()),
    ] {
        let mut shared = Shared::new();
        shared.machine.borrow_mut().set(0x30, FEATURES & !0xc00 | hats);
        let mut unit = bring_up(&mut shared).unwrap();
        let capabilities = unit.capabilities();
        assert_eq!((capabilities.levels, capabilities.coherent), (levels, true));
        assert_eq!((capabilities.physical_bits, capabilities.iova_bits), (40, 48));
        let deep = Entry::Translate { tag: DomainTag(1), root: PhysAddr(0x1000), levels: 6 };
        let refused = unit.write_entry(&mut shared, SOURCE, deep).is_err();
        assert_eq!(refused, hats != 0x800);
        for levels in [0, 1, 2, 7, 8, 255] {
            let odd = Entry::Translate { tag: DomainTag(1), root: PhysAddr(0x1000), levels };
            unit.write_entry(&mut shared, SOURCE, odd).unwrap_err();
        }
        let odd = Entry::Translate { tag: DomainTag(1), root: PhysAddr(0x1004), levels: 4 };
        unit.write_entry(&mut shared, SOURCE, odd).unwrap_err();
    }
}

#[test]
fn a_unit_that_does_not_snoop_finds_everything_in_memory() {
    let mut shared = Shared::new();
    shared.machine.borrow_mut().incoherent = true;
    let mut unit = bring_up(&mut shared).unwrap();
    assert!(!unit.capabilities().coherent);
    unit.write_entry(&mut shared, SOURCE, translate(5, 0x1234_5000)).unwrap();
    unit.enable(&mut shared).unwrap();
    unit.invalidate_pages(&mut shared, DomainTag(5), page(3), false).unwrap();
    let machine = shared.machine.borrow();
    assert_eq!(machine.commands, [device(0xa8), INVALIDATE_ALL, [domain(5), 0x3000]]);
    assert_eq!(machine.entry(0xa8), [0x6000_0000_1234_5803, 5, 0, 0]);
    assert!((0..=u16::MAX).all(|source| machine.entry(source)[0] & 3 == 3));
}

#[test]
fn many_entries_are_named_in_rounds_that_fit_the_ring() {
    // A round is at most 253 commands and its wait: 2 of 256 entries stay free. Then one for INVALIDATE_IOMMU_ALL.
    for (entries, waits) in [(252, 2), (253, 2), (254, 3), (300, 3), (506, 3), (507, 4)] {
        let mut shared = Shared::new();
        let mut unit = bring_up(&mut shared).unwrap();
        for source in 0..entries {
            unit.write_entry(&mut shared, RequesterId(source), Entry::Blocked).unwrap();
        }
        unit.enable(&mut shared).unwrap();
        let machine = shared.machine.borrow();
        let named = (0..entries).map(device);
        assert_eq!(machine.commands, named.chain([INVALIDATE_ALL]).collect::<Vec<_>>());
        assert_eq!(machine.waits, waits, "{entries}");
    }
}

fn fault_entry(number: u64) -> [u64; 2] {
    [0x2020_0005_0000_00a8, number << 12]
}

fn take(shared: &mut Shared, unit: &mut TestUnit, limit: usize) -> (Vec<u64>, u32) {
    let mut seen = Vec::new();
    let lost = unit
        .take_faults(shared, limit, &mut |fault| {
            assert_eq!((fault.source, fault.access), (SOURCE, FaultAccess::Write));
            seen.push(fault.address.unwrap().0 >> 12);
        })
        .unwrap();
    (seen, lost)
}

#[test]
fn faults_come_in_order_around_the_end_of_the_log() {
    let (mut shared, mut unit) = running();
    let reads = shared.machine.borrow().reads;
    assert_eq!(take(&mut shared, &mut unit, 100), (Vec::new(), 0));
    assert_eq!(shared.machine.borrow().reads - reads, 2, "one look at each log");
    let mut next = 0;
    for round in 0..5u64 {
        for number in 0..1500 {
            shared.machine.borrow_mut().log(0x10, EVENT_TAIL, fault_entry(round * 1500 + number));
        }
        let (seen, lost) = take(&mut shared, &mut unit, 1000);
        assert_eq!((seen.len(), lost), (1000, 0));
        let (rest, lost) = take(&mut shared, &mut unit, 1000);
        assert_eq!((rest.len(), lost), (500, 0));
        for number in seen.into_iter().chain(rest) {
            assert_eq!(number, next);
            next += 1;
        }
        let machine = shared.machine.borrow();
        assert_eq!(machine.get(0x2010), machine.get(EVENT_TAIL));
    }
}

#[test]
fn events_of_one_page_in_a_row_are_one_fault() {
    let (mut shared, mut unit) = running();
    let log = |number: u64, offset: u64| {
        let [first, second] = fault_entry(number);
        shared.machine.borrow_mut().log(0x10, EVENT_TAIL, [first, second + offset]);
    };
    for (page, events) in [(1, 1000), (2, 3), (1, 2), (3, 1)] {
        for event in 0..events {
            log(page, event * 4);
        }
    }
    // Repetitions of the last fault go with it, even beyond the limit. The rest stays.
    assert_eq!(take(&mut shared, &mut unit, 2), (vec![1, 2], 0));
    assert_eq!(take(&mut shared, &mut unit, 2), (vec![1, 3], 0));
    assert_eq!(take(&mut shared, &mut unit, 2), (vec![], 0));
    // Another source, or another kind of access, is another fault.
    shared.machine.borrow_mut().log(0x10, EVENT_TAIL, [0x2020_0005_0000_00a8, 0x1000]);
    shared.machine.borrow_mut().log(0x10, EVENT_TAIL, [0x2000_0005_0000_00a8, 0x1000]);
    shared.machine.borrow_mut().log(0x10, EVENT_TAIL, [0x2000_0005_0000_00a9, 0x1000]);
    let mut seen = 0;
    unit.take_faults(&mut shared, 10, &mut |_| seen += 1).unwrap();
    assert_eq!(seen, 3);
}

#[test]
fn an_overflowing_log_is_started_again() {
    let (mut shared, mut unit) = running();
    for number in 0..4095 {
        shared.machine.borrow_mut().log(0x10, EVENT_TAIL, fault_entry(number));
    }
    let status = shared.machine.borrow().get(STATUS);
    shared.machine.borrow_mut().set(STATUS, status | 1);
    shared.machine.borrow_mut().writes.clear();
    let (seen, lost) = take(&mut shared, &mut unit, usize::MAX);
    assert_eq!((seen.len(), lost), (4095, 1));
    let head = 4095 * 16;
    let machine = shared.machine.borrow();
    assert_eq!(machine.writes, [(0x2010, head), (0x18, 0xb401), (0x2020, 1), (0x18, 0xb405)]);
    assert_eq!(machine.get(STATUS) & 9, 8);
    drop(machine);
    shared.machine.borrow_mut().log(0x10, EVENT_TAIL, fault_entry(7));
    assert_eq!(take(&mut shared, &mut unit, 10), (vec![7], 0));
}

#[test]
fn what_a_log_lost_is_counted_once() {
    let overflow = |shared: &Shared, bits: u64| {
        let status = shared.machine.borrow().get(STATUS);
        shared.machine.borrow_mut().set(STATUS, status | bits);
    };
    // A log is full with 4095 of its 4096 entries, and an overflow is reported in bit 0 of the status.
    for (entries, bits, expected) in
        [(4094, 0, 0), (4095, 0, 1), (4095, 1, 1), (3, 1, 1), (3, 0, 0)]
    {
        let (mut shared, mut unit) = running();
        for number in 0..entries {
            shared.machine.borrow_mut().log(0x10, EVENT_TAIL, fault_entry(number));
        }
        overflow(&shared, bits);
        let (seen, lost) = take(&mut shared, &mut unit, usize::MAX);
        assert_eq!((seen.len() as u64, lost), (entries, expected), "{entries} {bits}");
    }
    // Both logs overflowed: bits 0 and 5.
    let (mut shared, mut unit) = running();
    shared.machine.borrow_mut().log(0x10, EVENT_TAIL, fault_entry(7));
    shared.machine.borrow_mut().log(0x38, PPR_TAIL, [0x1100_0042_4321_00a8, 0x7000]);
    overflow(&shared, 0x21);
    let mut reasons = Vec::new();
    let lost = unit.take_faults(&mut shared, 10, &mut |fault| reasons.push(fault.reason)).unwrap();
    assert_eq!((reasons, lost), (vec![2, 0x101], 2));
}

#[test]
fn an_entry_announced_but_not_written_is_not_made_up() {
    let (mut shared, mut unit) = running();
    shared.machine.borrow_mut().log(0x10, EVENT_TAIL, [0, 0]);
    shared.machine.borrow_mut().log(0x10, EVENT_TAIL, fault_entry(7));
    assert_eq!(take(&mut shared, &mut unit, 10), (vec![7], 1));
}

#[test]
fn a_log_whose_registers_are_gone_is_an_error() {
    let (mut shared, mut unit) = running();
    shared.machine.borrow_mut().set(EVENT_TAIL, u64::MAX);
    let error = unit.take_faults(&mut shared, 10, &mut |_| {}).unwrap_err();
    assert_eq!(error, UnitError::Dead);
}

#[test]
fn page_requests_are_refused() {
    let (mut shared, mut unit) = running();
    // PAGE_SERVICE_REQUEST of 0xa8 for process 0x4321, tag 0x42.
    shared.machine.borrow_mut().log(0x38, PPR_TAIL, [0x1100_0042_4321_00a8, 0x7000]);
    let mut reasons = Vec::new();
    let lost = unit.take_faults(&mut shared, 10, &mut |fault| reasons.push(fault.reason)).unwrap();
    assert_eq!((reasons, lost), (vec![0x101], 0));
    let machine = shared.machine.borrow();
    assert_eq!(machine.commands, [[0x7000_4321_0000_00a8, 0x1042_0000_0004]]);
    assert_eq!(machine.get(0x2030), 16);
}

#[test]
fn description_in_words() {
    let (_, mut unit) = running();
    let mut text = std::string::String::new();
    unit.describe(&mut text).unwrap();
    assert!(text.contains("translation on\ncommand ring on\nevent log on\n"), "{text}");
    assert!(text.contains("extended features 0x0000000000000843"), "{text}");
}
