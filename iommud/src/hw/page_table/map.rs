//! Inserts translations.

use iommu_protocol::wire::Access;

use super::PageTable;
use super::detached::{Run, RunKind};
use super::format::{
    Leaf, MapError, PteFormat, PteSlot, SLOTS, free_subtree, slot_count, slot_of, slot_size,
};
use super::recent::Recent;
use crate::addr::{Iova, IovaRange, PhysAddr};
use crate::hw::hal::TableMemory;

/// Consecutive I/O virtual addresses over consecutive memory.
#[derive(Clone, Copy)]
struct Mapping {
    /// First byte.
    first: u64,
    /// Last byte.
    last: u64,
    /// Memory of the first byte.
    phys: u64,
    access: Access,
}

impl Mapping {
    #[inline(always)]
    const fn new(range: IovaRange, phys: PhysAddr, access: Access) -> Self {
        Self { first: range.first().0, last: range.last().0, phys: phys.0, access }
    }

    /// The page of its first byte, in a table at `level`.
    #[inline(always)]
    const fn leaf(self, level: u8) -> Leaf {
        Leaf { phys: PhysAddr(self.phys), access: self.access, level }
    }

    /// The part that the slot of `self.first` in a table at `level` translates, and the rest.
    fn split(self, level: u8) -> (Self, Option<Self>) {
        let slot_last = self.first | (slot_size(level) - 1);
        if slot_last >= self.last {
            return (self, None);
        }
        let rest = Self {
            first: slot_last + 1,
            phys: self.phys.wrapping_add(slot_last + 1 - self.first),
            ..self
        };
        (Self { last: slot_last, ..self }, Some(rest))
    }

    /// Number of leaves at `level`, from the first byte on, that fit in one table.
    fn leaves(self, level: u8) -> usize {
        let size = slot_size(level);
        if (self.first | self.phys) & (size - 1) != 0 {
            return 0;
        }
        let whole = (self.last - self.first).saturating_add(1) / size;
        let room = SLOTS - slot_of(self.first, level);
        usize::try_from(whole).map_or(room, |whole| whole.min(room))
    }

    /// The part behind the first `bytes`.
    fn after(self, bytes: u64) -> Option<Self> {
        if bytes > self.last - self.first {
            return None;
        }
        Some(Self { first: self.first + bytes, phys: self.phys.wrapping_add(bytes), ..self })
    }
}

impl<F: PteFormat> PageTable<F> {
    /// Inserts translations of `range` to the memory from `phys` on, with the largest leaves that alignment allows.
    /// Hardware sees none of them before all tables are built. So a failure leaves every table as it was, and no unit
    /// can have cached any of them.
    ///
    /// # Errors
    /// `Unaligned`, `OutOfReach`, `NoAccess`, `Overlap` with the first page that is mapped already,
    /// `Memory`. Nothing has changed then.
    #[inline(always)]
    pub fn map<M: TableMemory>(
        &mut self,
        memory: &mut M,
        range: IovaRange,
        phys: PhysAddr,
        access: Access,
    ) -> Result<(), MapError> {
        self.check(range, phys)?;
        if !access.intersects(Access::READ | Access::WRITE) {
            return Err(MapError::NoAccess);
        }
        let mapping = Mapping::new(range, phys, access);
        if let Some(Recent { table, .. }) = self.page_table(memory, range) {
            return self.enter_pages(memory, table, mapping);
        }
        self.map_anew(memory, range, phys, access)
    }

    /// Like `map`, where no single table of pages translates the range.
    #[inline(never)]
    fn map_anew<M: TableMemory>(
        &mut self,
        memory: &mut M,
        range: IovaRange,
        phys: PhysAddr,
        access: Access,
    ) -> Result<(), MapError> {
        let mapping = Mapping::new(range, phys, access);
        let prepared = self.prepare(memory, self.root, self.levels, mapping);
        self.enter_pending(memory, prepared)
    }

    /// Stores the prepared runs into live tables, or discards them.
    pub(super) fn enter_pending<M: TableMemory>(
        &mut self,
        memory: &mut M,
        prepared: Result<(), MapError>,
    ) -> Result<(), MapError> {
        // Taken out to keep its capacity, so that a call that changes one table never allocates.
        let mut pending = core::mem::take(&mut self.pending);
        for run in pending.drain(..) {
            match prepared {
                Ok(()) => self.enter_new(memory, run),
                Err(_) => discard::<F, M>(memory, run),
            }
        }
        self.pending = pending;
        prepared
    }

    /// Prepares, in `self.pending`, the stores into `table`, which is live, and into the tables below it.
    fn prepare<M: TableMemory>(
        &mut self,
        memory: &mut M,
        table: PhysAddr,
        level: u8,
        mapping: Mapping,
    ) -> Result<(), MapError> {
        if level == 1 {
            return self.prepare_pages(memory, table, mapping);
        }
        let mut rest = Some(mapping);
        while let Some(next) = rest {
            let (part, after) = next.split(level);
            rest = after;
            let index = slot_of(part.first, level);
            match F::decode(memory.load(table, index), level) {
                PteSlot::Leaf { .. } => return Err(MapError::Overlap(Iova(part.first))),
                PteSlot::Table(child) => self.prepare(memory, child, level - 1, part)?,
                PteSlot::Empty if self.leaf_allowed(level) && part.leaves(level) > 0 => {
                    let entry = self.leaf(PhysAddr(part.phys), part.access, level);
                    self.add(table, index, level, entry, RunKind::Leaves);
                }
                PteSlot::Empty => {
                    let child = self.build(memory, level - 1, part)?;
                    self.add(table, index, level, F::table(child, level), RunKind::Table);
                }
            }
        }
        Ok(())
    }

    /// Like `prepare`, for a table of 4 KiB pages.
    fn prepare_pages<M: TableMemory>(
        &mut self,
        memory: &mut M,
        table: PhysAddr,
        mapping: Mapping,
    ) -> Result<(), MapError> {
        let (index, count) = free_pages::<F, M>(memory, table, mapping)?;
        let entry = self.leaf(PhysAddr(mapping.phys), mapping.access, 1);
        self.pending.push(Run::new(table, index, count, 1, entry, RunKind::Leaves));
        Ok(())
    }

    /// Like `enter`, with leaves as large as alignment allows.
    fn enter_new<M: TableMemory>(&self, memory: &mut M, run: Run) {
        match F::decode(run.entry, run.level) {
            PteSlot::Leaf { phys, access } => {
                let (index, count) = (usize::from(run.index), usize::from(run.count));
                let leaf = Leaf { phys, access, level: run.level };
                self.fill(memory, run.table, index, count, leaf);
                *memory.live(run.table) += run.count;
                self.clean(memory, run.table, index, count);
            }
            _ => self.enter(memory, run),
        }
    }

    /// Maps pages of one table, which is live.
    #[inline(always)]
    fn enter_pages<M: TableMemory>(
        &self,
        memory: &mut M,
        table: PhysAddr,
        mapping: Mapping,
    ) -> Result<(), MapError> {
        if mapping.last - mapping.first < slot_size(1) {
            return self.enter_page(memory, table, mapping);
        }
        self.enter_many(memory, table, mapping)
    }

    /// Like `enter_pages`, for more than one.
    #[inline(never)]
    fn enter_many<M: TableMemory>(
        &self,
        memory: &mut M,
        table: PhysAddr,
        mapping: Mapping,
    ) -> Result<(), MapError> {
        let (index, count) = free_pages::<F, M>(memory, table, mapping)?;
        self.fill(memory, table, index, count, mapping.leaf(1));
        *memory.live(table) += slot_count(count);
        self.clean(memory, table, index, count);
        Ok(())
    }

    /// Like `enter_pages`, for one page.
    #[inline(always)]
    fn enter_page<M: TableMemory>(
        &self,
        memory: &mut M,
        table: PhysAddr,
        mapping: Mapping,
    ) -> Result<(), MapError> {
        let slot = slot_of(mapping.first, 1);
        let leaf = self.leaf(PhysAddr(mapping.phys), mapping.access, 1);
        let entered = memory.change(table, slot, |old, live| {
            if F::decode(old, 1) != PteSlot::Empty {
                return (None, false);
            }
            *live += 1;
            (Some(leaf), true)
        });
        if !entered {
            return Err(MapError::Overlap(Iova(mapping.first)));
        }
        self.clean(memory, table, slot, 1);
        Ok(())
    }

    /// Adds one slot to the pending stores; a leaf that continues the last run extends it.
    fn add(&mut self, table: PhysAddr, index: usize, level: u8, entry: u64, kind: RunKind) {
        let run = Run::new(table, index, 1, level, entry, kind);
        match self.pending.last_mut() {
            Some(last) if last.continues::<F>(&run) => last.count += 1,
            _ => self.pending.push(run),
        }
    }

    /// Builds a table at `level` and all tables below it. No other table points to it yet. It is cleaned.
    fn build<M: TableMemory>(
        &self,
        memory: &mut M,
        level: u8,
        mapping: Mapping,
    ) -> Result<PhysAddr, MapError> {
        let table = memory.allocate_unclean()?;
        let start = slot_of(mapping.first, level);
        let mut index = start;
        let mut rest = Some(mapping);
        while let Some(next) = rest {
            let leaves = if self.leaf_allowed(level) { next.leaves(level) } else { 0 };
            if leaves > 0 {
                self.fill_new(memory, table, index, leaves, next.leaf(level));
                index += leaves;
                rest = next.after(slot_size(level) * leaves as u64);
                continue;
            }
            let (part, after) = next.split(level);
            match self.build(memory, level - 1, part) {
                Ok(child) => memory.store(table, index, F::table(child, level)),
                Err(error) => {
                    *memory.live(table) = slot_count(index - start);
                    self.clean(memory, table, 0, SLOTS);
                    free_subtree::<F, M>(memory, table, level);
                    return Err(error);
                }
            }
            index += 1;
            rest = after;
        }
        *memory.live(table) = slot_count(index - start);
        self.clean(memory, table, 0, SLOTS);
        Ok(table)
    }
}

/// The slots of a table of pages that a mapping takes: the first and their number. All are empty.
fn free_pages<F: PteFormat, M: TableMemory>(
    memory: &mut M,
    table: PhysAddr,
    mapping: Mapping,
) -> Result<(usize, usize), MapError> {
    let count = mapping.leaves(1);
    check_empty::<F, M>(memory, table, Iova(mapping.first), count)?;
    Ok((slot_of(mapping.first, 1), count))
}

/// Refuses unless `count` slots of a table of pages are empty, from the one of `at` on.
pub(super) fn check_empty<F: PteFormat, M: TableMemory>(
    memory: &mut M,
    table: PhysAddr,
    at: Iova,
    count: usize,
) -> Result<(), MapError> {
    let first = slot_of(at.0, 1);
    let mut taken = None;
    memory.change_each(table, first, count, |slot, entry| {
        if F::decode(entry, 1) != PteSlot::Empty {
            taken.get_or_insert(slot);
        }
        None
    });
    match taken {
        Some(slot) => Err(MapError::Overlap(Iova(at.0 + slot_size(1) * (slot - first) as u64))),
        None => Ok(()),
    }
}

/// Frees the tables of a run that was never stored.
fn discard<F: PteFormat, M: TableMemory>(memory: &mut M, run: Run) {
    if let PteSlot::Table(table) = F::decode(run.entry, run.level)
        && run.kind == RunKind::Table
    {
        free_subtree::<F, M>(memory, table, run.level - 1);
    }
}
