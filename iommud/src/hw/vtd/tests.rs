//! Checks every register write and every descriptor that a unit gets. Numbers are those of the specification's
//! figures, written out; the constants of the code under test are not used.

mod bringup;
mod counts;
mod entries;
mod faults;
mod revive;
mod survey;

use super::VtdUnit;
use super::testing::{Act, Fake, Ticks};
use crate::addr::{Iova, IovaRange, PhysAddr};
use crate::hw::testing::TestMemory;
use crate::hw::{Entry, HardwareFault, TableMemory, Unit, UnitError};
use crate::topology::capabilities::{DomainTag, LevelSet, PageSizes};
use iommu_protocol::fault::FaultAccess;
use iommu_protocol::ids::RequesterId;

use Act::{Did, W32, W64};

type TestUnit = VtdUnit<Fake, Ticks, TestMemory>;

/// The first frames of a test memory, in the order in which bring-up takes them.
const ROOT: u64 = 0x7000_0000_0000;
const QUEUE: u64 = ROOT + 0x1000;
const STATUS: u64 = ROOT + 0x2000;
/// The next ones: context tables.
const CONTEXT: u64 = ROOT + 0x3000;

const TABLE: PhysAddr = PhysAddr(0x1_2345_6000);

fn source(bus: u8, device: u8, function: u8) -> RequesterId {
    RequesterId::new(bus, device, function).unwrap()
}

fn translate(tag: u16) -> Entry {
    Entry::Translate { tag: DomainTag(tag), root: TABLE, levels: 4 }
}

fn pages(first: u64, count: u64) -> IovaRange {
    IovaRange::new(Iova(first), count * 4096).unwrap()
}

fn bring_up(fake: &Fake, memory: &mut TestMemory) -> Result<TestUnit, UnitError> {
    VtdUnit::bring_up(fake.clone(), Ticks::default(), memory, 39)
}

/// A unit that translates, after `change` was applied to the fake. The record of earlier actions is cleared.
fn translating(change: impl Fn(&Fake)) -> (Fake, TestMemory, TestUnit) {
    let mut memory = TestMemory::new();
    let fake = Fake::new(memory.bus.clone());
    change(&fake);
    let mut unit = bring_up(&fake, &mut memory).unwrap();
    unit.enable(&mut memory).unwrap();
    fake.acts();
    (fake, memory, unit)
}

#[test]
fn capabilities_are_the_registers_in_words() {
    let (_, _, mut unit) = translating(|_| ());
    let found = unit.capabilities();
    assert_eq!(found.levels, LevelSet::THREE | LevelSet::FOUR);
    assert_eq!(found.page_sizes, PageSizes::all());
    assert_eq!((found.last_tag, found.iova_bits, found.physical_bits), (0xffff, 48, 39));
    assert!(found.coherent && found.pass_through && !found.caches_absent);
    let mut text = String::new();
    unit.describe(&mut text).unwrap();
    for line in ["translation on: yes", "page table levels: 3 4", "fault records: 1"] {
        assert!(text.lines().any(|found| found == line), "{text}");
    }
}

#[test]
fn entries_are_written_whole_or_absent() {
    let (_, mut memory, mut unit) = translating(|fake| fake.0.borrow_mut().extended &= !1);
    let device = source(2, 3, 1);
    let words = |memory: &TestMemory| {
        [memory.load(PhysAddr(CONTEXT), 0x32), memory.load(PhysAddr(CONTEXT), 0x33)]
    };
    unit.write_entry(&mut memory, device, translate(0x12)).unwrap();
    assert_eq!(memory.load(PhysAddr(ROOT), 4), CONTEXT | 1);
    assert_eq!(words(&memory), [0x1_2345_6001, 0x1202]);
    // Every unit reads the queue through the caches.
    assert!(memory.dirty.iter().all(|line| line & !0xfff == QUEUE));
    memory.cleans.clear();
    let stores = memory.stores;
    unit.write_entry(&mut memory, device, Entry::PassThrough { tag: DomainTag(0x34) }).unwrap();
    assert_eq!(words(&memory), [0x9, 0x3402]);
    // P cleared and cleaned, then the high word, then the low one. `entries` checks the values.
    assert_eq!(memory.stores - stores, 3);
    let context = PhysAddr(CONTEXT);
    assert_eq!(memory.cleans, [(context, 0x32, 1), (context, 0x32, 2)]);
    Unit::suppress_faults(&mut unit, &mut memory, device, true).unwrap();
    assert_eq!(words(&memory), [0xb, 0x3402]);
    unit.write_entry(&mut memory, device, Entry::Blocked).unwrap();
    assert_eq!(words(&memory), [0, 0]);
    let stores = memory.stores;
    unit.write_entry(&mut memory, device, Entry::Blocked).unwrap();
    assert_eq!(memory.stores, stores);
}

#[test]
fn entries_that_the_unit_cannot_hold_change_nothing() {
    let (_, mut memory, mut unit) = translating(|fake| {
        fake.0.borrow_mut().capability = 0x00d2_008c_222f_0400;
        fake.0.borrow_mut().extended &= !0x40;
    });
    let device = source(0, 1, 0);
    unit.write_entry(&mut memory, device, Entry::Blocked).unwrap();
    let before = memory.snapshot();
    let entry = |tag, root, levels| Entry::Translate { tag: DomainTag(tag), root, levels };
    let bad = [
        entry(0, TABLE, 4),
        entry(16, TABLE, 4),
        entry(1, TABLE, 3),
        entry(1, TABLE, 5),
        entry(1, TABLE, 0),
        entry(1, TABLE, 200),
        entry(1, PhysAddr(0x1_2345_6800), 4),
        entry(1, PhysAddr(1 << 39), 4),
        Entry::PassThrough { tag: DomainTag(1) },
    ];
    for entry in bad {
        let result = unit.write_entry(&mut memory, device, entry);
        assert!(matches!(result, Err(UnitError::Unsupported { .. })), "{entry:?}");
    }
    assert_eq!(memory.snapshot(), before);
    unit.write_entry(&mut memory, device, entry(15, TABLE, 4)).unwrap();
}

#[test]
fn blocking_needs_no_memory_and_letting_through_does() {
    let (_, mut memory, mut unit) = translating(|_| ());
    memory.budget = 0;
    let before = memory.snapshot();
    unit.write_entry(&mut memory, source(9, 0, 0), Entry::Blocked).unwrap();
    let translating = unit.write_entry(&mut memory, source(9, 0, 0), translate(1));
    let silenced = Unit::suppress_faults(&mut unit, &mut memory, source(9, 0, 0), true);
    for result in [translating, silenced] {
        assert!(matches!(result, Err(UnitError::Memory(_))));
    }
    assert_eq!(memory.snapshot(), before);
}

#[test]
fn changed_entries_are_forgotten_with_their_domain() {
    let (fake, mut memory, mut unit) = translating(|_| ());
    let device = source(0x12, 0x1f, 7);
    unit.write_entry(&mut memory, device, translate(0x55)).unwrap();
    unit.invalidate_entry(&mut memory, device, None).unwrap();
    assert_eq!(fake.acts(), [], "absent entries are not cached");
    unit.write_entry(&mut memory, device, Entry::Blocked).unwrap();
    unit.invalidate_entry(&mut memory, device, Some(DomainTag(0x55))).unwrap();
    assert_eq!(fake.did(), [[0x0000_12ff_0055_0031, 0], [0x0055_00e2, 0]]);
}

#[test]
fn caching_mode_forgets_absent_entries_too() {
    let (fake, mut memory, mut unit) = translating(|fake| fake.0.borrow_mut().capability |= 0x80);
    let device = source(1, 0, 0);
    unit.write_entry(&mut memory, device, translate(3)).unwrap();
    unit.invalidate_entry(&mut memory, device, None).unwrap();
    assert_eq!(fake.did(), [[0x11, 0], [0xd2, 0]], "the root entry was absent");
    unit.write_entry(&mut memory, device, Entry::Blocked).unwrap();
    unit.invalidate_entry(&mut memory, device, Some(DomainTag(3))).unwrap();
    // The entry was absent while it was being replaced, and the unit may have cached that.
    let both = [[0x0000_0100_0003_0031, 0], [0x0000_0100_0000_0031, 0], [0x0003_00e2, 0]];
    assert_eq!(fake.did(), both);
    unit.write_entry(&mut memory, device, translate(4)).unwrap();
    unit.invalidate_entry(&mut memory, device, None).unwrap();
    assert_eq!(fake.did(), [[0x0000_0100_0000_0031, 0], [0x0004_00e2, 0]]);
    unit.publish_pages(&mut memory, DomainTag(4), pages(0x20_0000, 512)).unwrap();
    assert_eq!(fake.did(), [[0x0004_00f2, 0x20_0009]], "non-leaf entries may be new");
}

#[test]
fn one_invalidation_covers_any_range() {
    let cases = [
        (pages(0x5000, 1), true, [0x0009_00f2, 0x5000]),
        (pages(0x5000, 1), false, [0x0009_00f2, 0x5040]),
        (pages(0x4000, 4), false, [0x0009_00f2, 0x4042]),
        (pages(0x5000, 4), false, [0x0009_00f2, 0x0044]),
        (pages(0x1f_f000, 2), false, [0x0009_00f2, 0x004a]),
        (pages(0x4000_0000, 512 * 512), true, [0x0009_00f2, 0x4000_0012]),
        (pages(0x4000_0000, 512 * 512 + 1), true, [0x0009_00e2, 0]),
    ];
    let (fake, mut memory, mut unit) = translating(|_| ());
    for (range, tables, expected) in cases {
        unit.invalidate_pages(&mut memory, DomainTag(9), range, tables).unwrap();
        let acts = fake.acts();
        assert_eq!(acts[1], Did(expected), "{range:?}");
        assert_eq!(acts.len(), 3, "one doorbell, one invalidation, one wait");
    }
    unit.publish_pages(&mut memory, DomainTag(9), pages(0x5000, 1)).unwrap();
    assert_eq!(fake.acts(), []);
    // Without PSI, and with MAMV 0.
    let (fake, mut memory, mut unit) =
        translating(|fake| fake.0.borrow_mut().capability &= !(1 << 39));
    unit.invalidate_pages(&mut memory, DomainTag(9), pages(0x5000, 1), false).unwrap();
    assert_eq!(fake.did(), [[0x0009_00e2, 0]]);
    let (fake, mut memory, mut unit) =
        translating(|fake| fake.0.borrow_mut().capability &= !(0x3f << 48));
    unit.invalidate_pages(&mut memory, DomainTag(9), pages(0x6000, 2), false).unwrap();
    assert_eq!(fake.did(), [[0x0009_00e2, 0]]);
    unit.invalidate_pages(&mut memory, DomainTag(9), pages(0x6000, 1), false).unwrap();
    assert_eq!(fake.did(), [[0x0009_00f2, 0x6040]]);
}

#[test]
fn write_buffers_are_flushed_where_nothing_is_invalidated() {
    let (fake, mut memory, mut unit) = translating(|fake| fake.0.borrow_mut().capability |= 0x10);
    unit.publish_pages(&mut memory, DomainTag(1), pages(0x1000, 1)).unwrap();
    // TE and QIE kept, WBF set.
    assert_eq!(fake.acts(), [W32(0x18, 0x8c00_0000)]);
    unit.write_entry(&mut memory, source(0, 1, 0), translate(1)).unwrap();
    unit.invalidate_entry(&mut memory, source(0, 1, 0), None).unwrap();
    assert_eq!(fake.acts(), [W32(0x18, 0x8c00_0000)]);
}

#[test]
fn the_queue_goes_round() {
    let (fake, mut memory, mut unit) = translating(|_| ());
    for n in 0..600u32 {
        let page = 0x1000 * u64::from(n);
        unit.invalidate_pages(&mut memory, DomainTag(1), pages(page, 1), false).unwrap();
        let acts = fake.acts();
        // Four descriptors were used for bring-up, two are used each time.
        let tail = (0x40 + 0x20 * (n + 1)) % 0x1000;
        let value = u64::from(n + 3) << 32;
        let expected =
            [W32(0x88, tail), Did([0x0001_00f2, page | 0x40]), Did([value | 0x25, STATUS])];
        assert_eq!(acts, expected);
    }
}

#[test]
fn a_refused_descriptor_is_replaced_and_reported() {
    let (fake, mut memory, mut unit) = translating(|fake| fake.0.borrow_mut().capability |= 0x80);
    fake.0.borrow_mut().refused = Some(1);
    let error =
        unit.invalidate_entry(&mut memory, source(0, 1, 0), Some(DomainTag(5))).unwrap_err();
    let what = "the unit refused an invalidation";
    assert_eq!(error, UnitError::Queue { what, status: 0x0000_0008_0005_0031 });
    // The queue ran on: the descriptor was replaced by a write to a word beside the status word.
    let expected = [
        W32(0x88, 0x80),
        W32(0x34, 0x10),
        Did([0x25, STATUS + 8]),
        W32(0x34, 0x10),
        Did([0x25, STATUS + 8]),
        Did([0x0005_00e2, 0]),
        Did([0x0000_0003_0000_0025, STATUS]),
    ];
    assert_eq!(fake.acts(), expected);
    fake.0.borrow_mut().refused = None;
    unit.invalidate_entry(&mut memory, source(0, 1, 0), Some(DomainTag(5))).unwrap();
}

#[test]
fn a_request_that_timed_out_is_submitted_once_more() {
    let (fake, mut memory, mut unit) = translating(|_| ());
    fake.0.borrow_mut().timeouts = 1;
    unit.invalidate_pages(&mut memory, DomainTag(1), pages(0x1000, 1), false).unwrap();
    let page = Did([0x0001_00f2, 0x1040]);
    let again = [W32(0x88, 0x80), page, Did([0x0000_0004_0000_0025, STATUS])];
    assert_eq!(fake.acts(), [&[W32(0x88, 0x60), page, W32(0x34, 0x40)], &again[..]].concat());
    fake.0.borrow_mut().timeouts = 2;
    let error =
        unit.invalidate_pages(&mut memory, DomainTag(1), pages(0x1000, 1), false).unwrap_err();
    let what = "a device did not answer an invalidation";
    assert_eq!(error, UnitError::Queue { what, status: 0x40 });
}

#[test]
fn a_queue_that_stands_still_or_a_unit_that_is_gone_is_noticed() {
    let (fake, mut memory, mut unit) = translating(|_| ());
    fake.0.borrow_mut().stalled = true;
    fake.0.borrow_mut().fault_status = 0x20;
    let range = pages(0x1000, 1);
    let result = unit.invalidate_pages(&mut memory, DomainTag(1), range, false);
    assert_eq!(result, Err(UnitError::Timeout { what: "an invalidation" }));
    assert_eq!(fake.0.borrow().fault_status, 0, "a completion error does not stop the queue");
    fake.0.borrow_mut().dead = true;
    let result = unit.invalidate_pages(&mut memory, DomainTag(1), range, false);
    assert_eq!(result, Err(UnitError::Dead));
    assert_eq!(unit.take_faults(&mut memory, 9, &mut |_| ()), Err(UnitError::Dead));
}
