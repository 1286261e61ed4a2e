//! Plans that fail at every step, over a unit that fails on command.

mod depth;
mod plans;
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

impl Engine<FakeUnit> {
    /// Runs a plan, and concludes it unless a step fails.
    fn complete(
        &mut self,
        orders: &Orders,
        buffers: &mut Buffers,
    ) -> Result<(), super::StepFailure> {
        self.run(orders, buffers)?;
        self.conclude(orders, buffers);
        Ok(())
    }
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
    assert!(engine.complete(&plan, &mut Buffers::default()).is_ok());
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
