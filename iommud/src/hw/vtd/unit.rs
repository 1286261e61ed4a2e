//! A VT-d unit: its context entries, and the invalidations that a change of them needs.
//!
//! A blocked device has a context entry with P clear. Such an entry denies with fault reason 2. Where a bus has no
//! context table yet, its absence denies with reason 1; so blocking never needs memory. The unit honours FPD in an
//! entry with P clear: it then reports no faults of the source.
//!
//! Between `bring_up` and `enable` the hardware does not use these tables. It translates nothing, or it walks the
//! tables of its previous owner. So it can cache nothing that is written here. Invalidations would only slow the
//! previous owner's devices down; they are left out, and `enable` ends with global ones.

use core::marker::PhantomData;

use iommu_protocol::ids::RequesterId;

use super::port::Port;
use super::queue::Queue;
use super::spec::SecondStage;
use super::spec::capability::{Capability, ExtendedCapability};
use super::spec::descriptor::{self, Descriptor, Drain};
use super::spec::entry;
use super::survey;
use crate::addr::{Iova, IovaRange, PAGE_SIZE, PhysAddr};
use crate::hw::hal::{Clock, RegisterIo, TableMemory};
use crate::hw::unit::{Entry, HardwareFault, Unit, UnitError};
use crate::hw::waits::Invalidations;
use crate::topology::capabilities::{DomainTag, LevelSet, UnitCapabilities};

/// Whether the hardware walks this object's tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// The hardware does not know the tables yet: see the description of the module.
    Preparing,
    /// The hardware was given the root table, but `enable` has not finished: it may walk the tables or not.
    Told,
    /// The hardware walks the tables.
    Translating,
}

/// A VT-d unit whose queue runs. Made by [`VtdUnit::bring_up`].
///
/// A copy is a checkpoint of the software state, for tests over a `hal` that can be copied. The `hal` of a real
/// machine cannot be.
///
/// Device TLBs stay off: context entries have TT 00, which blocks translation requests and translated requests. A
/// change that turns them on must add a device TLB invalidation after each IOTLB invalidation here.
#[derive(Clone, Debug)]
pub struct VtdUnit<R, C, M> {
    pub(super) port: Port<R, C>,
    pub(super) queue: Queue,
    pub(super) version: u32,
    pub(super) capability: Capability,
    pub(super) extended: ExtendedCapability,
    /// Width of physical addresses in bits.
    pub(super) host_bits: u8,
    /// The root table's frame.
    pub(super) root: PhysAddr,
    pub(super) phase: Phase,
    /// The unit was translating when it was brought up.
    pub(super) found_translating: bool,
    /// A root entry became present and the unit may have cached its absence (caching mode).
    pub(super) root_changed: bool,
    /// The fault record to continue at, when the last call left some.
    pub(super) next_fault: Option<usize>,
    pub(super) memory: PhantomData<fn(&mut M)>,
}

impl<R: RegisterIo, C: Clock, M: TableMemory> VtdUnit<R, C, M> {
    /// The requests in flight that IOTLB invalidations wait for: all kinds that the unit supports.
    pub(super) const fn drain(&self) -> Drain {
        Drain { reads: self.capability.drains_reads(), writes: self.capability.drains_writes() }
    }

    fn highest_tag(&self) -> u16 {
        survey::highest_tag(self.capability)
    }

    fn levels(&self) -> LevelSet {
        survey::levels(self.capability)
    }

    /// The words of a context entry.
    fn encode(&self, entry: Entry) -> Result<[u64; 2], UnitError> {
        let tag_fits = |tag: DomainTag| tag.0 != 0 && tag.0 <= self.highest_tag();
        match entry {
            Entry::Blocked => Ok([0, 0]),
            Entry::Translate { tag, .. } | Entry::PassThrough { tag } if !tag_fits(tag) => {
                Err(UnitError::Unsupported { what: "domain tag" })
            }
            Entry::Translate { tag, root, levels } => {
                let set = 1u8.checked_shl(levels.into()).unwrap_or(0);
                if !self.levels().intersects(LevelSet::from_bits_retain(set)) {
                    return Err(UnitError::Unsupported { what: "number of page table levels" });
                }
                if !root.is_aligned(PAGE_SIZE) || root.0 >> self.host_bits != 0 {
                    return Err(UnitError::Unsupported { what: "address of a page table" });
                }
                Ok(entry::translating(root, levels, tag.0))
            }
            Entry::PassThrough { .. } if !self.extended.pass_through() => {
                Err(UnitError::Unsupported { what: "pass-through" })
            }
            Entry::PassThrough { tag } => Ok(entry::passing(self.most_levels(), tag.0)),
        }
    }

    /// The deepest page table that the unit walks.
    fn most_levels(&self) -> u8 {
        match self.levels() {
            levels if levels.contains(LevelSet::FIVE) => 5,
            levels if levels.contains(LevelSet::FOUR) => 4,
            _ => 3,
        }
    }

    fn clean(&self, memory: &mut M, frame: PhysAddr, first: usize, count: usize) {
        if !self.extended.coherent() {
            memory.clean(frame, first, count);
        }
    }

    /// The context table of a bus, if there is one.
    fn context_table(&self, memory: &M, bus: u8) -> Option<PhysAddr> {
        entry::context_table(memory.load(self.root, 2 * usize::from(bus)))
    }

    /// Returns the context table of a bus, and makes one if there is none. A new table is empty: it denies, as its
    /// absence did.
    fn make_context_table(&mut self, memory: &mut M, bus: u8) -> Result<PhysAddr, UnitError> {
        if let Some(table) = self.context_table(memory, bus) {
            return Ok(table);
        }
        let table = memory.allocate()?;
        let word = 2 * usize::from(bus);
        memory.store(self.root, word, entry::root(table));
        self.clean(memory, self.root, word, 1);
        self.root_changed |= self.capability.caching_mode() && self.phase != Phase::Preparing;
        Ok(table)
    }

    /// The context entry of a source as it is in memory.
    fn context_entry(&self, memory: &M, source: RequesterId) -> [u64; 2] {
        let Some(table) = self.context_table(memory, source.bus()) else { return [0, 0] };
        let word = 2 * usize::from(source.devfn());
        [memory.load(table, word), memory.load(table, word + 1)]
    }

    /// Replaces a context entry. Words of the old and the new entry are never mixed in a present entry: it is made
    /// absent first, and the word with P is written last.
    fn replace_entry(&self, memory: &mut M, table: PhysAddr, devfn: u8, new: [u64; 2]) {
        let word = 2 * usize::from(devfn);
        let old = [memory.load(table, word), memory.load(table, word + 1)];
        if old == new {
            return;
        }
        if old[0] & entry::PRESENT != 0 {
            memory.store(table, word, 0);
            self.clean(memory, table, word, 1);
        }
        memory.store(table, word + 1, new[1]);
        memory.store(table, word, new[0]);
        self.clean(memory, table, word, 2);
    }

    /// Submits invalidations and waits until the unit has done them.
    pub(super) fn invalidate(
        &mut self,
        memory: &mut M,
        request: &[Descriptor],
    ) -> Result<(), UnitError> {
        self.queue.submit(&mut self.port, memory, request)
    }

    /// Builds the one invalidation that covers `range`. It names the smallest aligned power of two of pages around
    /// the range, or the whole domain where the unit cannot invalidate that many pages.
    fn range_invalidation(
        &self,
        tag: DomainTag,
        range: IovaRange,
        leaves_only: bool,
    ) -> Descriptor {
        let (first, last) = (range.first().0 / PAGE_SIZE, range.last().0 / PAGE_SIZE);
        // The mask is the number of low bits in which the page numbers of both ends differ.
        let mask = u64::BITS - (first ^ last).leading_zeros();
        let mask = u8::try_from(mask).unwrap_or(u8::MAX);
        if !self.capability.page_selective() || mask > self.capability.max_mask() {
            return descriptor::iotlb_domain(tag.0, self.drain());
        }
        let start = Iova((first >> mask << mask) * PAGE_SIZE);
        descriptor::iotlb_pages(tag.0, start, mask, leaves_only, self.drain())
    }

    /// Makes an entry visible that was absent before.
    fn publish_entry(&mut self, memory: &mut M, source: RequesterId) -> Result<(), UnitError> {
        if !self.capability.caching_mode() {
            return self.publish_stores();
        }
        if core::mem::take(&mut self.root_changed) {
            let drain = self.drain();
            let request = [descriptor::context_global(), descriptor::iotlb_global(drain)];
            return self.invalidate(memory, &request);
        }
        // In caching mode the unit caches absent entries under domain 0 (section 6.2.2.1).
        let domain = entry::domain(self.context_entry(memory, source)).unwrap_or(0);
        let request = [
            descriptor::context_device(0, source.0),
            descriptor::iotlb_domain(domain, self.drain()),
        ];
        self.invalidate(memory, &request)
    }

    /// Makes stores visible that need no invalidation.
    fn publish_stores(&mut self) -> Result<(), UnitError> {
        if self.capability.write_buffer() { self.port.flush_write_buffer() } else { Ok(()) }
    }
}

impl<R: RegisterIo, C: Clock, M: TableMemory> Unit for VtdUnit<R, C, M> {
    type Memory = M;
    type Format = SecondStage;

    const RUNS: &'static [usize] = survey::RUNS;

    fn capabilities(&self) -> UnitCapabilities {
        survey::capabilities(self.capability, self.extended, self.host_bits)
    }

    fn found_translating(&self) -> bool {
        self.found_translating
    }

    fn write_entry(
        &mut self,
        memory: &mut M,
        source: RequesterId,
        entry: Entry,
    ) -> Result<(), UnitError> {
        let new = self.encode(entry)?;
        let table = match self.make_context_table(memory, source.bus()) {
            Ok(table) => table,
            // The bus has no context table, which denies: a block never fails.
            Err(_) if entry == Entry::Blocked => return Ok(()),
            Err(error) => return Err(error),
        };
        self.replace_entry(memory, table, source.devfn(), new);
        Ok(())
    }

    /// Changes FPD, one bit of the word with P. It is one store, so the unit sees the entry either before or after
    /// it.
    fn suppress_faults(
        &mut self,
        memory: &mut M,
        source: RequesterId,
        silent: bool,
    ) -> Result<(), UnitError> {
        let table = match self.context_table(memory, source.bus()) {
            Some(table) => table,
            None if silent => self.make_context_table(memory, source.bus())?,
            None => return Ok(()),
        };
        let word = 2 * usize::from(source.devfn());
        let old = memory.load(table, word);
        let new = if silent { old | entry::FAULTS_SILENT } else { old & !entry::FAULTS_SILENT };
        memory.store(table, word, new);
        self.clean(memory, table, word, 1);
        Ok(())
    }

    fn invalidate_entry(
        &mut self,
        memory: &mut M,
        source: RequesterId,
        old: Option<DomainTag>,
    ) -> Result<(), UnitError> {
        match (self.phase, old) {
            (Phase::Preparing, _) => Ok(()),
            (_, None) => self.publish_entry(memory, source),
            (_, Some(tag)) => {
                let context = descriptor::context_device(tag.0, source.0);
                let pages = descriptor::iotlb_domain(tag.0, self.drain());
                if !self.capability.caching_mode() {
                    return self.invalidate(memory, &[context, pages]);
                }
                // The entry was absent while it was being replaced, and the unit may have cached that.
                let absent = descriptor::context_device(0, source.0);
                self.invalidate(memory, &[context, absent, pages])
            }
        }
    }

    fn publish_pages(
        &mut self,
        memory: &mut M,
        tag: DomainTag,
        range: IovaRange,
    ) -> Result<(), UnitError> {
        match self.phase {
            Phase::Preparing => Ok(()),
            _ if self.capability.caching_mode() => {
                self.invalidate(memory, &[self.range_invalidation(tag, range, false)])
            }
            _ => self.publish_stores(),
        }
    }

    fn invalidate_pages(
        &mut self,
        memory: &mut M,
        tag: DomainTag,
        range: IovaRange,
        tables_freed: bool,
    ) -> Result<(), UnitError> {
        match self.phase {
            Phase::Preparing => Ok(()),
            Phase::Told | Phase::Translating => {
                self.invalidate(memory, &[self.range_invalidation(tag, range, !tables_freed)])
            }
        }
    }

    fn enable(&mut self, memory: &mut M) -> Result<(), UnitError> {
        self.start_translation(memory)
    }

    fn revive(&mut self, memory: &mut M) -> Result<(), UnitError> {
        self.start_anew(memory)
    }

    fn take_faults(
        &mut self,
        _memory: &mut M,
        limit: usize,
        sink: &mut dyn FnMut(HardwareFault),
    ) -> Result<u32, UnitError> {
        self.drain_faults(limit, sink)
    }

    fn enable_fault_interrupt(&mut self, address: u64, data: u32) -> Result<(), UnitError> {
        self.program_fault_interrupt(address, data);
        Ok(())
    }

    fn invalidations(&self) -> Invalidations {
        self.queue.told
    }

    fn describe(&mut self, out: &mut dyn core::fmt::Write) -> core::fmt::Result {
        self.write_description(out)
    }
}
