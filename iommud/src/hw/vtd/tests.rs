//! Checks every register write and every descriptor that a unit gets. Numbers are those of the specification's
//! figures, written out; the constants of the code under test are not used.

mod counts;
mod entries;
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
fn a_fresh_unit_is_brought_up_in_order() {
    let mut memory = TestMemory::new();
    let fake = Fake::new(memory.bus.clone());
    fake.0.borrow_mut().capability |= 0x60;
    fake.0.borrow_mut().protected = 0x8000_0001;
    let mut unit = bring_up(&fake, &mut memory).unwrap();
    let expected = [
        W32(0x38, 0x8000_0000),
        W32(0xa0, 0x8000_0000),
        W32(0x22c, 0x8000_0000),
        W32(0x34, 0x7d),
        W32(0x88, 0),
        W64(0x90, QUEUE),
        W32(0x18, 0x0400_0000),
        W32(0x88, 0x10),
        Did([0x0000_0001_0000_0025, STATUS]),
    ];
    assert_eq!(fake.acts(), expected);
    unit.enable(&mut memory).unwrap();
    let expected = [
        W64(0x20, ROOT),
        W32(0x18, 0x4400_0000),
        W32(0x88, 0x40),
        Did([0x11, 0]),
        Did([0xd2, 0]),
        Did([0x0000_0002_0000_0025, STATUS]),
        W32(0x18, 0x8400_0000),
        W32(0x64, 0x0000_0001),
    ];
    assert_eq!(fake.acts(), expected);
    unit.enable(&mut memory).unwrap();
    assert_eq!(fake.acts(), []);
}

#[test]
fn a_unit_that_translates_goes_on_translating() {
    let mut memory = TestMemory::new();
    let fake = Fake::new(memory.bus.clone());
    {
        let mut state = fake.0.borrow_mut();
        // TES, RTPS, AFLS, QIES, IRES, IRTPS, CFIS; a queue that is empty; a fault and all error bits.
        state.status = 0xd780_0000;
        state.root = 0x8_8888_8000;
        (state.head, state.tail) = (0x230, 0x230);
        state.records[0] = [0x5000, 0x8000_0005_0000_0008];
        state.fault_status = 0x71;
    }
    let mut unit = bring_up(&fake, &mut memory).unwrap();
    let first = fake.acts();
    assert_eq!(fake.0.borrow().root, 0x8_8888_8000, "the old tables translate");
    assert_eq!(fake.0.borrow().fault_status, 0);
    unit.write_entry(&mut memory, source(0, 1, 0), translate(1)).unwrap();
    unit.invalidate_entry(&mut memory, source(0, 1, 0), Some(DomainTag(7))).unwrap();
    unit.publish_pages(&mut memory, DomainTag(1), pages(0x1000, 1)).unwrap();
    unit.invalidate_pages(&mut memory, DomainTag(1), pages(0x1000, 1), true).unwrap();
    assert_eq!(fake.acts(), [], "hardware knows none of this yet");
    unit.enable(&mut memory).unwrap();
    let second = fake.acts();
    let commands: Vec<u32> = [first, second.clone()]
        .concat()
        .into_iter()
        .filter_map(|act| if let W32(0x18, value) = act { Some(value) } else { None })
        .collect();
    // EAFL off, QIE off, QIE on, SRTP. TE, IRE and CFI are never touched, one-shot bits never repeated.
    assert_eq!(commands, [0x8680_0000, 0x8280_0000, 0x8680_0000, 0xc680_0000]);
    let wait = Did([0x0000_0002_0000_0025, STATUS]);
    let swap = [W64(0x20, ROOT), W32(0x18, 0xc680_0000), W32(0x88, 0x40)];
    assert_eq!(second, [&swap[..], &[Did([0x11, 0]), Did([0xd2, 0]), wait]].concat());
}

#[test]
fn a_stuck_queue_of_the_previous_owner_is_given_up() {
    let mut memory = TestMemory::new();
    let fake = Fake::new(memory.bus.clone());
    {
        let mut state = fake.0.borrow_mut();
        state.status = 0xc400_0000;
        (state.head, state.tail) = (0x40, 0x90);
        state.stalled = true;
    }
    let result = bring_up(&fake, &mut memory);
    // The fake stays stalled, so our own queue does not run either. The test checks only how the old one was stopped.
    assert_eq!(result.err(), Some(UnitError::Timeout { what: "an invalidation" }));
    let acts = fake.acts();
    let stop = acts.iter().position(|act| *act == W32(0x88, 0x40)).unwrap();
    assert_eq!(acts[stop + 1], W32(0x18, 0x8000_0000));
    assert_eq!(fake.0.borrow().status & 0x8000_0000, 0x8000_0000);
}

#[test]
fn a_bad_descriptor_of_the_previous_owner_is_not_ours() {
    let mut memory = TestMemory::new();
    let fake = Fake::new(memory.bus.clone());
    {
        let mut state = fake.0.borrow_mut();
        state.status = 0xc400_0000;
        // At its head, a descriptor of the reserved type 0.
        state.queue = memory.allocate_run(1).unwrap().0;
        state.refused = Some(0);
        (state.head, state.tail) = (0x40, 0x90);
        state.fault_status = 0x10;
    }
    let mut unit = bring_up(&fake, &mut memory).unwrap();
    assert_eq!(fake.0.borrow().fault_status, 0);
    unit.enable(&mut memory).unwrap();
}

#[test]
fn what_cannot_be_driven_is_refused_before_it_is_touched() {
    let refused = |change: &dyn Fn(&Fake)| {
        let mut memory = TestMemory::new();
        let fake = Fake::new(memory.bus.clone());
        change(&fake);
        let error = bring_up(&fake, &mut memory).err();
        assert_eq!((fake.acts(), memory.frames_in_use()), (vec![], 0));
        error.unwrap()
    };
    let unsupported = |error| matches!(error, UnitError::Unsupported { .. });
    assert_eq!(refused(&|fake| fake.0.borrow_mut().dead = true), UnitError::Dead);
    assert!(unsupported(refused(&|fake| fake.0.borrow_mut().extended &= !2)));
    assert!(unsupported(refused(&|fake| fake.0.borrow_mut().capability &= !0x0e00)));
    assert!(unsupported(refused(&|fake| {
        fake.0.borrow_mut().status = 0x8000_0000;
        fake.0.borrow_mut().root = 0x8_8888_8400;
    })));
    let mut memory = TestMemory::new();
    let fake = Fake::new(memory.bus.clone());
    fake.0.borrow_mut().status = 0x8000_0000;
    fake.0.borrow_mut().root = 0x8_8888_8400;
    fake.0.borrow_mut().capability |= 1 << 63;
    bring_up(&fake, &mut memory).unwrap();
    assert!(
        !fake.acts().iter().any(|act| matches!(act, Did(_))),
        "narrow descriptors in scalable mode"
    );
}

#[test]
fn commands_that_never_finish_end_with_their_deadline() {
    for (bit, what) in [(26, "the invalidation queue to start"), (30, "the root table to be taken")]
    {
        let mut memory = TestMemory::new();
        let fake = Fake::new(memory.bus.clone());
        fake.0.borrow_mut().stuck = 1 << bit;
        let result = bring_up(&fake, &mut memory).and_then(|mut unit| unit.enable(&mut memory));
        assert_eq!(result, Err(UnitError::Timeout { what }));
        assert_eq!(fake.0.borrow().status >> 31, 0, "translation must not start");
    }
}

#[test]
fn nothing_is_taken_for_forgotten_once_hardware_was_told_of_the_tables() {
    let mut memory = TestMemory::new();
    let fake = Fake::new(memory.bus.clone());
    let mut unit = bring_up(&fake, &mut memory).unwrap();
    fake.0.borrow_mut().stuck = 1 << 31;
    let what = "translation to start";
    assert_eq!(unit.enable(&mut memory), Err(UnitError::Timeout { what }));
    fake.acts();
    unit.invalidate_entry(&mut memory, source(0, 1, 0), Some(DomainTag(5))).unwrap();
    unit.invalidate_pages(&mut memory, DomainTag(5), pages(0x1000, 1), false).unwrap();
    assert_eq!(fake.did().len(), 3);
    fake.0.borrow_mut().stuck = 0;
    unit.enable(&mut memory).unwrap();
    assert_eq!(fake.did(), [[0x11, 0], [0xd2, 0]]);
    assert_eq!(fake.0.borrow().status >> 31, 1);
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

/// Faults of the sources 0, 1, 2 and 3. The first one is in record `first` of `count`.
fn with_faults(first: u8, count: u8) -> (Fake, TestMemory, TestUnit) {
    let many = u64::from(count - 1) << 40;
    let (fake, memory, unit) = translating(|fake| {
        fake.0.borrow_mut().capability |= many;
        fake.0.borrow_mut().records = vec![[0; 2]; count.into()];
    });
    for n in 0..4 {
        let record = [0x1000 * u64::from(n), 0xc000_0006_0000_0000 | u64::from(n)];
        fake.0.borrow_mut().records[usize::from((first + n) % count)] = record;
    }
    fake.0.borrow_mut().fault_status = u32::from(first) << 8;
    (fake, memory, unit)
}

fn take(unit: &mut TestUnit, memory: &mut TestMemory, limit: usize) -> (Vec<HardwareFault>, u32) {
    let mut faults = Vec::new();
    let lost = unit.take_faults(memory, limit, &mut |fault| faults.push(fault)).unwrap();
    (faults, lost)
}

#[test]
fn faults_are_taken_oldest_first_around_the_end() {
    let (fake, mut memory, mut unit) = with_faults(6, 8);
    fake.0.borrow_mut().fault_status |= 1;
    let (faults, lost) = take(&mut unit, &mut memory, 100);
    assert_eq!(lost, 1, "the overflow");
    assert_eq!(faults.len(), 4);
    for (n, fault) in (0u16..).zip(&faults) {
        let address = Iova(0x1000 * u64::from(n));
        assert_eq!((fault.source.0, fault.address), (n, Some(address)));
        assert_eq!((fault.access, fault.reason), (FaultAccess::Read, 6));
    }
    let writes: Vec<_> = fake.acts();
    let freed = [0x28c, 0x29c, 0x22c, 0x23c].map(|offset| W32(offset, 0x8000_0000));
    assert_eq!(writes, [&freed[..], &[W32(0x34, 1)]].concat(), "records first, then the overflow");
    assert_eq!(take(&mut unit, &mut memory, 100), (vec![], 0));
}

#[test]
fn a_limit_leaves_the_rest_for_the_next_call() {
    let (fake, mut memory, mut unit) = with_faults(6, 8);
    fake.0.borrow_mut().fault_status |= 1;
    let taken = |result: &(Vec<HardwareFault>, u32)| {
        (result.0.iter().map(|fault| fault.source.0).collect::<Vec<_>>(), result.1)
    };
    assert_eq!(taken(&take(&mut unit, &mut memory, 0)), (vec![], 0));
    assert_eq!(taken(&take(&mut unit, &mut memory, 3)), (vec![0, 1, 2], 0));
    assert_eq!(fake.0.borrow().fault_status & 1, 1, "recording resumes when all are free");
    // FRI is still 6, although that record is free by now.
    assert_eq!(taken(&take(&mut unit, &mut memory, 3)), (vec![3], 1));
    assert_eq!(taken(&take(&mut unit, &mut memory, 3)), (vec![], 0));
}

#[test]
fn one_record_takes_one_fault_a_call() {
    let (fake, mut memory, mut unit) = translating(|_| ());
    for n in 0..3u16 {
        let high = 0x8000_0005_0000_0000 | u64::from(n);
        fake.0.borrow_mut().records[0] = [0x9000, high];
        let (faults, lost) = take(&mut unit, &mut memory, 8);
        assert_eq!((faults.len(), faults[0].source.0, lost), (1, n, 0));
        assert_eq!(faults[0].access, FaultAccess::Write);
    }
}

#[test]
fn an_answer_nobody_waits_for_is_cleared_with_the_faults() {
    let (fake, mut memory, mut unit) = translating(|_| ());
    fake.0.borrow_mut().fault_status = 0x20;
    assert_eq!(take(&mut unit, &mut memory, 8), (vec![], 0));
    assert_eq!(fake.acts(), [W32(0x34, 0x20)]);
}

#[test]
fn a_record_of_ones_is_no_fault() {
    let (fake, mut memory, mut unit) = translating(|_| ());
    fake.0.borrow_mut().records[0] = [u64::MAX; 2];
    let result = unit.take_faults(&mut memory, 8, &mut |_| panic!("a fault"));
    assert_eq!(result, Err(UnitError::Dead));
}

#[test]
fn the_fault_interrupt_is_programmed_while_masked() {
    let (fake, _, mut unit) = translating(|_| ());
    unit.program_fault_interrupt(0x1_fee0_1000, 0x41);
    let expected =
        [W32(0x38, 1 << 31), W32(0x3c, 0x41), W32(0x40, 0xfee0_1000), W32(0x44, 1), W32(0x38, 0)];
    assert_eq!(fake.acts(), expected);
    unit.mask_fault_interrupt(true);
    assert_eq!(fake.acts(), [W32(0x38, 1 << 31)]);
    Unit::enable_fault_interrupt(&mut unit, 0x1_fee0_1000, 0x41).unwrap();
    assert_eq!(fake.acts(), expected);
}

#[test]
fn a_wrong_index_of_the_first_fault_hides_none() {
    let (fake, mut memory, mut unit) = with_faults(3, 8);
    fake.0.borrow_mut().fault_status = 0x0600;
    let sources = |taken: (Vec<HardwareFault>, u32)| -> Vec<u16> {
        taken.0.iter().map(|fault| fault.source.0).collect()
    };
    assert_eq!(sources(take(&mut unit, &mut memory, 100)), [3], "record 6, then an empty one");
    assert_eq!(sources(take(&mut unit, &mut memory, 100)), [0, 1, 2], "the others are still there");
    let (fake, mut memory, mut unit) = with_faults(3, 8);
    fake.0.borrow_mut().fault_status = 0x0100;
    let all = sources(take(&mut unit, &mut memory, 100));
    assert_eq!(all, [0, 1, 2, 3], "two empty records come first");
}

/// Section 7.2.1: the unit drops faults until PFO is cleared.
#[test]
fn an_overflow_ends_in_the_call_that_takes_the_last_fault() {
    let (fake, mut memory, mut unit) = translating(|_| ());
    fake.0.borrow_mut().records[0] = [0x9000, 0x8000_0005_0000_0008];
    fake.0.borrow_mut().fault_status = 1;
    let (faults, lost) = take(&mut unit, &mut memory, 8);
    assert_eq!((faults.len(), lost), (1, 1));
    assert_eq!(fake.acts(), [W32(0x22c, 1 << 31), W32(0x34, 1)]);
}

/// In a virtual machine, each read of a register is an exit.
#[test]
fn no_register_is_read_in_vain() {
    let (fake, mut memory, mut unit) = with_faults(6, 8);
    fake.reads();
    take(&mut unit, &mut memory, 100);
    // The status; each record, from the word with F on; the empty record behind them.
    let expected = [0x34, 0x288, 0x280, 0x298, 0x290, 0x228, 0x220, 0x238, 0x230, 0x248];
    assert_eq!(fake.reads(), expected);
    take(&mut unit, &mut memory, 100);
    assert_eq!(fake.reads(), [0x34]);
}

#[test]
fn error_bits_are_read_once_the_memory_was_looked_at_in_vain() {
    let (fake, mut memory, mut unit) = translating(|_| ());
    unit.invalidate_pages(&mut memory, DomainTag(1), pages(0x1000, 1), false).unwrap();
    fake.0.borrow_mut().stalled = true;
    fake.reads();
    let result = unit.invalidate_pages(&mut memory, DomainTag(1), pages(0x1000, 1), false);
    assert_eq!(result, Err(UnitError::Timeout { what: "an invalidation" }));
    // The clock moves by 10 ms at each wait, up to one second: the memory is looked at once, a hundred times, and once
    // after the deadline. The first seven looks read no register.
    assert_eq!(fake.reads(), [0x34; 95]);
}
