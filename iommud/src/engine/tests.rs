//! Plans that fail at every step, over a unit that fails on command.

mod depth;
mod undone;
mod units;

use std::collections::{BTreeMap, BTreeSet};
use std::vec::Vec;

use iommu_protocol::ids::RequesterId;
use iommu_protocol::wire::Access;

use super::Engine;
use crate::addr::{Iova, IovaRange, PhysAddr, PhysRange};
use crate::hw::page_table::{PteFormat, PteSlot};
use crate::hw::testing::TestMemory;
use crate::hw::{
    BufferMemory, BufferPool, Constraints, Entry, HardwareFault, MemoryError, TableMemory, Unit,
    UnitError,
};
use crate::policy::{Binding, BufferId, DomainId, Orders, Payer, Step, UnitIndex};
use crate::topology::capabilities::{
    DomainTag, LevelSet, PageSizes, TableFormat, UnitCapabilities,
};

const UNIT: UnitIndex = UnitIndex(0);
const OTHER: UnitIndex = UnitIndex(1);
const OLD: DomainId = DomainId(0);
const NEW: DomainId = DomainId(1);
const SOURCE: RequesterId = RequesterId(0x20);
const ALL: Access = Access::all();

pub(super) enum Format {}

impl PteFormat for Format {
    fn leaf(phys: PhysAddr, access: Access, _: u8) -> u64 {
        phys.0 | 4 | u64::from(access.bits())
    }

    fn table(next: PhysAddr, _: u8) -> u64 {
        next.0 | 8
    }

    fn decode(entry: u64, _: u8) -> PteSlot {
        let phys = PhysAddr(entry & !0xfff);
        match entry & 0xc {
            0 => PteSlot::Empty,
            8 => PteSlot::Table(phys),
            _ => PteSlot::Leaf { phys, access: Access::from_bits_truncate((entry & 3) as u32) },
        }
    }
}

/// A unit whose `budget`-th hardware operation, and all after it, time out.
pub(super) struct FakeUnit {
    entries: BTreeMap<u16, Entry>,
    silent: BTreeSet<u16>,
    /// Frames in use at each invalidation of translations; `invalidated` has the ranges.
    frames_at_invalidation: Vec<usize>,
    invalidated: Vec<IovaRange>,
    /// Every entry written, in order.
    written: Vec<Entry>,
    /// Entries that were to be invalidated, answered or not.
    forgotten: Vec<RequesterId>,
    /// Entries are not written, with this error; it works otherwise.
    refuses: Option<UnitError>,
    /// Address and data of its fault interrupt.
    interrupt: Option<(u64, u32)>,
    budget: usize,
}

impl FakeUnit {
    fn new(budget: usize) -> Self {
        Self {
            entries: BTreeMap::new(),
            silent: BTreeSet::new(),
            frames_at_invalidation: Vec::new(),
            invalidated: Vec::new(),
            written: Vec::new(),
            forgotten: Vec::new(),
            refuses: None,
            interrupt: None,
            budget,
        }
    }

    fn spend(&mut self) -> Result<(), UnitError> {
        self.budget = self.budget.checked_sub(1).ok_or(UnitError::Timeout { what: "test" })?;
        Ok(())
    }
}

impl Unit for FakeUnit {
    type Memory = TestMemory;
    type Format = Format;

    const RUNS: &'static [usize] = &[4, 1];

    fn capabilities(&self) -> UnitCapabilities {
        UnitCapabilities {
            levels: LevelSet::FOUR,
            page_sizes: PageSizes::SIZE_4K,
            coherent: true,
            forces_snoop: true,
            caches_absent: true,
            publishes: true,
            last_tag: 9,
            pass_through: true,
            physical_bits: 52,
            iova_bits: 48,
            deepens: true,
        }
    }

    fn write_entry(
        &mut self,
        _: &mut TestMemory,
        source: RequesterId,
        entry: Entry,
    ) -> Result<(), UnitError> {
        if let Some(error) = self.refuses {
            return Err(error);
        }
        let old = self.entries.insert(source.0, entry);
        let moves = match (old, entry) {
            (Some(Entry::Translate { tag: old, .. }), Entry::Translate { tag, .. }) => old == tag,
            _ => old.is_none() || old == Some(Entry::Blocked),
        };
        assert!(entry == Entry::Blocked || moves, "{old:?} to {entry:?}");
        self.written.push(entry);
        Ok(())
    }

    fn suppress_faults(
        &mut self,
        _: &mut TestMemory,
        source: RequesterId,
        silent: bool,
    ) -> Result<(), UnitError> {
        let changed =
            if silent { self.silent.insert(source.0) } else { self.silent.remove(&source.0) };
        assert!(changed, "{source:?}");
        Ok(())
    }

    fn invalidate_entry(
        &mut self,
        _: &mut TestMemory,
        source: RequesterId,
        _: Option<DomainTag>,
    ) -> Result<(), UnitError> {
        self.forgotten.push(source);
        self.spend()
    }

    fn publish_pages(
        &mut self,
        _: &mut TestMemory,
        _: DomainTag,
        _: IovaRange,
    ) -> Result<(), UnitError> {
        self.spend()
    }

    fn invalidate_pages(
        &mut self,
        memory: &mut TestMemory,
        _: DomainTag,
        range: IovaRange,
        _: bool,
    ) -> Result<(), UnitError> {
        self.invalidated.push(range);
        self.frames_at_invalidation.push(memory.frames_in_use());
        self.spend()
    }

    fn enable(&mut self, _: &mut TestMemory) -> Result<(), UnitError> {
        self.spend()
    }

    fn take_faults(
        &mut self,
        _: &mut TestMemory,
        _: usize,
        _: &mut dyn FnMut(HardwareFault),
    ) -> Result<u32, UnitError> {
        Ok(0)
    }

    fn revive(&mut self, _: &mut TestMemory) -> Result<(), UnitError> {
        self.spend()
    }

    fn enable_fault_interrupt(&mut self, address: u64, data: u32) -> Result<(), UnitError> {
        self.interrupt = Some((address, data));
        Ok(())
    }

    fn describe(&mut self, out: &mut dyn core::fmt::Write) -> core::fmt::Result {
        write!(out, "{} entries written", self.written.len())
    }
}

#[derive(Default)]
struct Buffers(Vec<u32>);

impl BufferMemory for Buffers {
    type Share = ();

    fn allocate(&mut self, _: u32, _: u64, _: Constraints) -> Result<Vec<PhysRange>, MemoryError> {
        Err(MemoryError::Exhausted)
    }

    fn release(&mut self, id: u32) {
        self.0.push(id);
    }

    fn pool(&self) -> BufferPool {
        BufferPool::UNLIMITED
    }

    fn share(&mut self, _: u32) -> Option<()> {
        None
    }
}

fn range(iova: u64, length: u64) -> IovaRange {
    IovaRange::new(Iova(iova), length).unwrap()
}

fn create(domain: DomainId, tag: u16) -> Step {
    let page_sizes = PageSizes::all();
    let format = TableFormat { levels: 4, page_sizes, coherent: true, forces_snoop: true };
    Step::CreateTable { domain, tag: DomainTag(tag), format, payer: Payer::Account(0) }
}

fn map(domain: DomainId, iova: u64, length: u64) -> Step {
    Step::Map { domain, range: range(iova, length), phys: PhysAddr(iova), access: ALL }
}

fn unmap(domain: DomainId, iova: u64, length: u64) -> Step {
    Step::Unmap { domain, range: range(iova, length) }
}

fn publish(unit: UnitIndex, domain: DomainId, iova: u64, length: u64) -> Step {
    Step::Publish { unit, domain, range: range(iova, length) }
}

fn invalidate(unit: UnitIndex, domain: DomainId, iova: u64, length: u64) -> Step {
    Step::Invalidate { unit, domain, range: range(iova, length) }
}

fn set(from: Binding, to: Binding) -> Step {
    Step::SetEntry { unit: UNIT, source: SOURCE, from, to }
}

/// Two units; the source is in domain `OLD`, which maps 2 MiB, and a page alone in its tables.
fn machine() -> Engine<FakeUnit> {
    let mut engine = Engine::new(TestMemory::new());
    engine.install(UNIT, FakeUnit::new(usize::MAX));
    engine.install(OTHER, FakeUnit::new(usize::MAX));
    let plan = Orders::of(&[
        create(OLD, 2),
        map(OLD, 0x20_0000, 0x20_0000),
        map(OLD, 0x8000_0000, 0x1000),
        set(Binding::Blocked, Binding::Domain(OLD)),
        Step::SetEntry {
            unit: OTHER,
            source: SOURCE,
            from: Binding::Blocked,
            to: Binding::Domain(OLD),
        },
    ]);
    assert!(engine.run(&plan, &mut Buffers::default()).is_ok());
    engine
}

fn unit(engine: &mut Engine<FakeUnit>, index: usize) -> &mut FakeUnit {
    engine.units[index].as_mut().unwrap()
}

/// A move into a new domain: all steps of an attach.
fn moving() -> Orders {
    Orders::of(&[
        create(NEW, 3),
        map(NEW, 0x1000, 0x3000),
        map(OLD, 0x4000_0000, 0x1000),
        publish(UNIT, OLD, 0x4000_0000, 0x1000),
        set(Binding::Domain(OLD), Binding::Blocked),
        Step::InvalidateEntry { unit: UNIT, source: SOURCE, was: Binding::Domain(OLD) },
        set(Binding::Blocked, Binding::Domain(NEW)),
        Step::InvalidateEntry { unit: UNIT, source: SOURCE, was: Binding::Blocked },
        invalidate(OTHER, OLD, 0x4000_0000, 0x1000),
    ])
}

#[test]
fn without_memory_everything_is_as_before_at_every_allocation() {
    let mut refused = 0;
    for budget in 0.. {
        let mut engine = machine();
        let before = engine.memory.snapshot();
        let entries = unit(&mut engine, 0).entries.clone();
        engine.memory.budget = budget;
        match engine.run(&moving(), &mut Buffers::default()) {
            Ok(()) => break,
            Err(failure) => {
                refused += 1;
                assert!(failure.lost.is_empty() && !failure.unproved, "{failure:?}");
                assert_eq!(engine.memory.snapshot(), before);
                assert_eq!(unit(&mut engine, 0).entries, entries);
            }
        }
    }
    assert!(refused >= 6, "{refused} allocations were refused");
}

#[test]
fn a_unit_that_stops_answering_reaches_nothing_new_and_nothing_is_freed() {
    for budget in 0..3 {
        let mut engine = machine();
        let frames = engine.memory.frames_in_use();
        unit(&mut engine, 0).budget = budget;
        let failure = engine.run(&moving(), &mut Buffers::default()).unwrap_err();
        assert_eq!(failure.lost, [UNIT], "{budget}");
        assert!(failure.unproved, "{budget}");
        assert!(engine.memory.frames_in_use() > frames, "{budget}: freed what it may walk");
        let entry = unit(&mut engine, 0).entries[&SOURCE.0];
        let old = Entry::Translate { tag: DomainTag(2), root: engine_root(&engine), levels: 4 };
        assert!(entry == Entry::Blocked || (budget == 0 && entry == old), "{budget}: {entry:?}");
    }
}

fn engine_root(engine: &Engine<FakeUnit>) -> PhysAddr {
    engine.tables[0].as_ref().unwrap().pages.root()
}

#[test]
fn the_other_unit_is_told_and_goes_on() {
    let mut engine = machine();
    let before = engine.memory.snapshot();
    let entries = unit(&mut engine, 0).entries.clone();
    unit(&mut engine, 1).budget = 0;
    let failure = engine.run(&moving(), &mut Buffers::default()).unwrap_err();
    assert_eq!((failure.unit, &failure.lost[..]), (Some(OTHER), &[OTHER][..]));
    assert_eq!(unit(&mut engine, 0).entries, entries);
    for (frame, content) in before {
        assert_eq!(engine.memory.snapshot().get(&frame), Some(&content));
    }
}

#[test]
fn an_unmap_that_fails_is_bit_identical_whichever_unit_fails() {
    for index in 0..2 {
        let mut engine = machine();
        let before = engine.memory.snapshot();
        unit(&mut engine, index).budget = 0;
        let plan = Orders::of(&[
            unmap(OLD, 0x20_0000, 0x20_0000),
            unmap(OLD, 0x8000_0000, 0x1000),
            invalidate(UNIT, OLD, 0x20_0000, 0x7fe0_1000),
            invalidate(OTHER, OLD, 0x20_0000, 0x7fe0_1000),
            Step::ReleaseTables { domain: OLD },
            Step::ReleaseBuffer { buffer: BufferId(7) },
        ]);
        let mut buffers = Buffers::default();
        let failure = engine.run(&plan, &mut buffers).unwrap_err();
        assert_eq!(failure.step, 2 + index);
        assert!(!failure.unproved);
        assert_eq!(engine.memory.snapshot(), before);
        assert!(buffers.0.is_empty());
    }
}

#[test]
fn tables_and_buffers_are_freed_after_the_invalidation() {
    let mut engine = machine();
    let frames = engine.memory.frames_in_use();
    let plan = Orders::of(&[
        unmap(OLD, 0x8000_0000, 0x1000),
        invalidate(UNIT, OLD, 0x8000_0000, 0x1000),
        Step::ReleaseTables { domain: OLD },
        Step::ReleaseBuffer { buffer: BufferId(7) },
    ]);
    let mut buffers = Buffers::default();
    assert!(engine.run(&plan, &mut buffers).is_ok());
    assert_eq!(unit(&mut engine, 0).frames_at_invalidation, [frames]);
    assert_eq!(engine.memory.frames_in_use(), frames - 2);
    assert_eq!(buffers.0, [7]);
}

#[test]
fn a_split_that_is_undone_is_bit_identical() {
    let mut engine = machine();
    let before = engine.memory.snapshot();
    unit(&mut engine, 1).budget = 0;
    let plan = Orders::of(&[
        unmap(OLD, 0x21_0000, 0x1000),
        invalidate(UNIT, OLD, 0x21_0000, 0x1000),
        invalidate(OTHER, OLD, 0x21_0000, 0x1000),
    ]);
    let failure = engine.run(&plan, &mut Buffers::default()).unwrap_err();
    assert!(!failure.unproved);
    // A unit may hold the superpage as one translation, so all of it is invalidated.
    assert_eq!(unit(&mut engine, 0).invalidated[0], range(0x20_0000, 0x20_0000));
    for (frame, content) in &before {
        assert_eq!(engine.memory.snapshot().get(frame), Some(content));
    }
}

#[test]
fn what_does_not_exist_is_an_error_and_changes_nothing() {
    let mut engine = machine();
    let before = engine.memory.snapshot();
    for step in [
        map(DomainId(9), 0x1000, 0x1000),
        map(OLD, 0x20_0000, 0x1000),
        Step::Enable { unit: UnitIndex(9) },
        set(Binding::Blocked, Binding::Domain(DomainId(u32::MAX))),
    ] {
        let failure = engine.run(&Orders::of(&[step]), &mut Buffers::default()).unwrap_err();
        assert!(failure.lost.is_empty(), "{step:?}");
        assert_eq!(engine.memory.snapshot(), before, "{step:?}");
    }
}

/// Pages of a list across two tables, one of them live.
fn list(budget: usize) -> (Engine<FakeUnit>, Orders) {
    let mut engine = machine();
    unit(&mut engine, 1).budget = budget;
    let pages: Vec<PhysAddr> = (0..600_u64).map(|n| PhysAddr(n * 0x7000)).collect();
    let (first, length) = (0x8000_1000, 600 * 0x1000);
    let steps = [
        Step::MapList { domain: OLD, range: range(first, length), access: ALL },
        publish(UNIT, OLD, first, length),
        publish(OTHER, OLD, first, length),
    ];
    (engine, Orders::with_pages(&steps, &pages))
}

#[test]
fn a_list_is_entered_whole_or_not_at_all() {
    let (mut engine, plan) = list(usize::MAX);
    let before = engine.memory.snapshot();
    assert!(engine.run(&plan, &mut Buffers::default()).is_ok());
    let table = &engine.tables[OLD.0 as usize].as_ref().unwrap().pages;
    for (number, page) in (0..).zip(plan.pages()) {
        let found = table.lookup(&engine.memory, Iova(0x8000_1000 + number * 0x1000));
        assert_eq!(found, Some((*page, ALL)), "page {number}");
    }
    assert_ne!(engine.memory.snapshot(), before);

    let (mut engine, plan) = list(0);
    let before = engine.memory.snapshot();
    let failure = engine.run(&plan, &mut Buffers::default()).unwrap_err();
    assert_eq!((failure.step, failure.unproved), (2, true), "the unit may have seen it");
    for (frame, content) in &before {
        assert_eq!(engine.memory.snapshot().get(frame), Some(content));
    }

    let (mut engine, plan) = list(usize::MAX);
    engine.memory.budget = 0;
    let failure = engine.run(&plan, &mut Buffers::default()).unwrap_err();
    assert_eq!((failure.step, failure.refusal()), (0, iommu_protocol::Refusal::NoMemory));
    assert_eq!(engine.memory.snapshot(), before);
}

#[test]
fn a_storm_that_cannot_be_told_of_is_reported_as_before() {
    let was = Binding::Domain(OLD);
    let silence = |silent| {
        Orders::of(&[
            Step::SuppressFaults { unit: UNIT, source: SOURCE, silent, was },
            Step::InvalidateEntry { unit: UNIT, source: SOURCE, was },
        ])
    };
    let mut engine = machine();
    let entries = unit(&mut engine, 0).entries.clone();
    unit(&mut engine, 0).budget = 0;
    let failure = engine.run(&silence(true), &mut Buffers::default()).unwrap_err();
    assert_eq!((failure.step, failure.unproved), (1, false));
    assert!(unit(&mut engine, 0).silent.is_empty());
    unit(&mut engine, 0).budget = usize::MAX;
    assert!(engine.run(&silence(true), &mut Buffers::default()).is_ok());
    assert!(unit(&mut engine, 0).silent.contains(&SOURCE.0));
    unit(&mut engine, 0).budget = 0;
    assert!(engine.run(&silence(false), &mut Buffers::default()).is_err());
    assert!(unit(&mut engine, 0).silent.contains(&SOURCE.0));
    assert_eq!(unit(&mut engine, 0).entries, entries);
}
