//! Tables and entries that were removed from a page table.

use alloc::vec::Vec;

use super::format::{PteFormat, PteSlot, SLOTS, free_subtree, slot_count, slot_size};
use crate::addr::{Iova, IovaRange, PhysAddr};
use crate::hw::hal::TableMemory;

/// The content of a run of slots, now or before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RunKind {
    /// Leaves of one size that map consecutive memory with the same access. A removed run is one leaf.
    Leaves,
    /// The former content of slots of a table of pages, in use or not: see [`Detached::words`].
    Words,
    /// One link to a table.
    Table,
    /// One leaf that was replaced by a link to a table of smaller leaves.
    Split,
    /// A page over several slots that became one page for each slot.
    Group,
}

/// Consecutive slots of one table.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    pub(super) table: PhysAddr,
    /// The entry of the first slot. For words, the number of those that map a page.
    pub(super) entry: u64,
    /// The first slot.
    pub(super) index: u16,
    /// Number of slots.
    pub(super) count: u16,
    /// Level of the table.
    pub(super) level: u8,
    pub(super) kind: RunKind,
    /// Whether it is the first run of a call.
    pub(super) first: bool,
}

impl Run {
    pub(super) fn new(
        table: PhysAddr,
        index: usize,
        count: usize,
        level: u8,
        entry: u64,
        kind: RunKind,
    ) -> Self {
        let (index, count) = (slot_count(index), slot_count(count));
        Self { table, entry, index, count, level, kind, first: false }
    }

    /// Whether `next`, one leaf, is the next page of the same table with the same access.
    pub(super) fn continues<F: PteFormat>(&self, next: &Self) -> bool {
        let adjoins = self.kind == RunKind::Leaves
            && next.kind == RunKind::Leaves
            && self.table == next.table
            && self.index + self.count == next.index;
        match F::decode(self.entry, self.level) {
            PteSlot::Leaf { phys, access } if adjoins => {
                let bytes = slot_size(self.level) * u64::from(self.count);
                let leaf = F::leaf(PhysAddr(phys.0.wrapping_add(bytes)), access, self.level);
                leaf | self.entry & F::SNOOP == next.entry
            }
            _ => false,
        }
    }
}

/// Tables and entries that `PageTable::unmap` removed. Units may still walk the tables, and the entries allow
/// everything to be restored. It belongs to the page table it came from.
///
/// It must be emptied by `PageTable::release`, after every unit has invalidated the translations, or by
/// `PageTable::relink`. If it is dropped before, its tables are lost.
#[derive(Clone, Debug)]
#[must_use]
pub struct Detached {
    pub(super) runs: Vec<Run>,
    /// The former content of the slots of all runs of [`RunKind::Words`], that of the last run last.
    pub(super) words: Vec<u64>,
    /// Tables of splits that were undone, with their level.
    pub(super) tables: Vec<(PhysAddr, u8)>,
    /// First and last byte that units may have cached. The first is above the last when there are none.
    stale: (Iova, Iova),
    /// Whether tables were unlinked or replaced, until the release.
    structure: bool,
    /// The region whose empty table was kept before that of another region.
    idle_before: Option<u64>,
}

/// No address.
const NOTHING: (Iova, Iova) = (Iova(u64::MAX), Iova(0));

impl Default for Detached {
    fn default() -> Self {
        Self::new()
    }
}

impl Detached {
    /// Creates it without content.
    pub const fn new() -> Self {
        Self {
            runs: Vec::new(),
            words: Vec::new(),
            tables: Vec::new(),
            stale: NOTHING,
            structure: false,
            idle_before: None,
        }
    }

    /// Whether there is nothing to release.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty() && self.tables.is_empty()
    }

    /// Whether every unmap in it was undone, and only tables of splits are left to be released.
    #[must_use]
    pub fn is_undone(&self) -> bool {
        self.runs.is_empty()
    }

    /// Whether tables, not only leaves, were unlinked or replaced: caches of upper levels are stale too.
    #[must_use]
    pub const fn tables_freed(&self) -> bool {
        self.structure
    }

    /// The addresses to invalidate before the release: a range around everything that was unmapped, and around each
    /// superpage that was split. A unit may hold such a superpage as one translation.
    #[must_use]
    pub fn stale(&self) -> Option<IovaRange> {
        IovaRange::inclusive(self.stale.0, self.stale.1)
    }

    /// A range around `range` and all other addresses to invalidate: see [`Detached::stale`].
    #[must_use]
    pub fn around(&self, range: IovaRange) -> IovaRange {
        let (first, last) = self.stale;
        IovaRange::inclusive(first.min(range.first()), last.max(range.last())).unwrap_or(range)
    }

    /// Adds a range that units may have cached.
    pub(super) fn spoil(&mut self, range: IovaRange) {
        let (first, last) = self.stale;
        self.stale = (first.min(range.first()), last.max(range.last()));
    }

    /// Records that the empty table of a region is no longer the one that is kept.
    pub(super) fn stood_by(&mut self, region: u64) {
        self.idle_before.get_or_insert(region);
    }

    /// The first region given to [`Detached::stood_by`].
    pub(super) const fn idle_before(&self) -> Option<u64> {
        self.idle_before
    }

    /// Records slots that changed.
    #[inline(always)]
    pub(super) fn note(&mut self, run: Run) {
        self.structure |= matches!(run.kind, RunKind::Table | RunKind::Split);
        self.runs.push(run);
    }

    /// Frees all tables in it.
    #[inline]
    pub(super) fn release<F: PteFormat, M: TableMemory>(&mut self, memory: &mut M) {
        if self.structure || !self.words.is_empty() {
            self.free_tables::<F, M>(memory);
        }
        self.runs.clear();
        (self.stale, self.structure) = (NOTHING, false);
        self.idle_before = None;
    }

    #[inline(never)]
    fn free_tables<F: PteFormat, M: TableMemory>(&mut self, memory: &mut M) {
        for run in self.runs.drain(..) {
            if run.kind != RunKind::Table {
                continue;
            }
            if let PteSlot::Table(table) = F::decode(run.entry, run.level) {
                free_subtree::<F, M>(memory, table, run.level - 1);
            }
        }
        for (table, level) in self.tables.drain(..) {
            free_subtree::<F, M>(memory, table, level);
        }
        self.words.clear();
        self.words.shrink_to(SLOTS);
    }
}

#[cfg(test)]
mod tests {
    use iommu_protocol::wire::Access;

    use super::*;
    use crate::hw::amdvi::AmdFormat;
    use crate::hw::page_table::PageTable;
    use crate::hw::page_table::tests::format;
    use crate::hw::testing::TestMemory;
    use crate::hw::vtd::SecondStage;
    use crate::topology::capabilities::PageSizes;

    const HERE: PhysAddr = PhysAddr(0x5000);

    /// A run in a table of 2 MiB pages, and whether a leaf in slot 6 with entry 0x80400083 continues it.
    #[test]
    fn a_leaf_continues_a_run_that_ends_before_it() {
        use RunKind::{Leaves, Split, Table, Words};
        let next = |entry, kind| Run::new(HERE, 6, 1, 2, entry, kind);
        let run = |index, count, entry, kind| Run::new(HERE, index, count, 2, entry, kind);
        for (run, next, expected) in [
            (run(4, 2, 0x8000_0083, Leaves), next(0x8040_0083, Leaves), true),
            (run(5, 1, 0x8020_0083, Leaves), next(0x8040_0083, Leaves), true),
            (run(3, 3, 0x8000_0881, Leaves), next(0x8060_0881, Leaves), true),
            // Another kind, with the same words.
            (run(4, 2, 0x8000_0083, Words), next(0x8040_0083, Leaves), false),
            (run(4, 2, 0x8000_0083, Leaves), next(0x8040_0083, Split), false),
            (run(4, 2, 0x8000_0083, Split), next(0x8040_0083, Split), false),
            // Another slot: one before, one behind, and the product of both numbers.
            (run(3, 2, 0x8000_0083, Leaves), next(0x8040_0083, Leaves), false),
            (run(5, 2, 0x8000_0083, Leaves), next(0x8040_0083, Leaves), false),
            (run(3, 2, 0x8000_0083, Words), next(0x8040_0083, Leaves), false),
            // Other memory: the first page again, one page too far, twice as far.
            (run(4, 2, 0x8000_0083, Leaves), next(0x8000_0083, Leaves), false),
            (run(4, 2, 0x8000_0083, Leaves), next(0x8060_0083, Leaves), false),
            (run(4, 2, 0x8000_0083, Leaves), next(0x8080_0083, Leaves), false),
            // Another access, and snooping in one of them only.
            (run(4, 2, 0x8000_0083, Leaves), next(0x8040_0081, Leaves), false),
            (run(4, 2, 0x8000_0083, Leaves), next(0x8040_0883, Leaves), false),
            (run(4, 2, 0x8000_0883, Leaves), next(0x8040_0083, Leaves), false),
            // Links to tables.
            (run(5, 1, 0x8000_0003, Table), next(0x8020_0003, Table), false),
        ] {
            assert_eq!(run.continues::<SecondStage>(&next), expected, "{run:?} {next:?}");
            let elsewhere = Run { table: PhysAddr(0x6000), ..run };
            assert!(!elsewhere.continues::<SecondStage>(&next), "{run:?} {next:?}");
        }
        // AMD-Vi: PR, FC, IR and IW.
        let run = Run::new(HERE, 4, 2, 2, 0x7000_0000_8000_0001, Leaves);
        assert!(run.continues::<AmdFormat>(&next(0x7000_0000_8040_0001, Leaves)));
        assert!(!run.continues::<AmdFormat>(&next(0x3000_0000_8040_0001, Leaves)));
    }

    #[test]
    fn an_undone_split_leaves_its_table_to_be_released() {
        let mut memory = TestMemory::new();
        let mut table =
            PageTable::<SecondStage>::new(&mut memory, format(3, PageSizes::SIZE_2M, false))
                .unwrap();
        let large = IovaRange::new(Iova(0x20_0000), 0x20_0000).unwrap();
        table.map(&mut memory, large, PhysAddr(0x4000_0000), Access::all()).unwrap();
        let mut detached = Detached::new();
        assert!(detached.is_empty() && detached.is_undone());
        let hole = IovaRange::new(Iova(0x2f_1000), 0x1000).unwrap();
        table.unmap(&mut memory, hole, &mut detached).unwrap();
        assert!(!detached.is_empty() && !detached.is_undone());
        assert_eq!(memory.frames_in_use(), 3);
        table.relink(&mut memory, &mut detached);
        assert!(!detached.is_empty() && detached.is_undone() && detached.tables_freed());
        assert_eq!((detached.stale(), memory.frames_in_use()), (Some(large), 3));
        PageTable::<SecondStage>::release(&mut memory, &mut detached);
        assert!(detached.is_empty() && detached.is_undone() && !detached.tables_freed());
        assert_eq!((detached.stale(), memory.frames_in_use()), (None, 2));
    }
}
