//! What an unmapped page table still owns.

use alloc::vec::Vec;

use super::format::{PteFormat, PteSlot, SLOTS, free_subtree, slot_count, slot_size};
use crate::addr::{Iova, IovaRange, PhysAddr};
use crate::hw::hal::TableMemory;

/// What a run of slots holds, or held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RunKind {
    /// Leaves of one size that map consecutive memory with the same access; taken out, it is one.
    Leaves,
    /// Slots of a table of pages as they were, in use or not: see [`Detached::words`].
    Words,
    /// One link to a table.
    Table,
    /// One leaf that was replaced by a link to a table of smaller leaves.
    Split,
    /// A page over several slots that became a page a slot.
    Group,
}

/// Consecutive slots of one table.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    pub(super) table: PhysAddr,
    /// The entry of the first slot; of words, how many of them map a page.
    pub(super) entry: u64,
    /// The first slot.
    pub(super) index: u16,
    /// Number of slots.
    pub(super) count: u16,
    /// Level of the table.
    pub(super) level: u8,
    pub(super) kind: RunKind,
    /// The first run of a call.
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

/// What `PageTable::unmap` took out of a page table: tables that units may still walk through, and what is
/// needed to put everything back. It belongs to the page table it came from.
///
/// It ends empty, by `PageTable::release` after every unit has forgotten the translations, or by
/// `PageTable::relink`; dropped before, the tables in it are lost.
#[derive(Clone, Debug)]
#[must_use]
pub struct Detached {
    pub(super) runs: Vec<Run>,
    /// What the slots of all runs of [`RunKind::Words`] held, the last run's last.
    pub(super) words: Vec<u64>,
    /// Tables of splits that were undone, with their level.
    pub(super) tables: Vec<(PhysAddr, u8)>,
    /// First and last byte of what units may have cached; the first is above the last when there is nothing.
    stale: (Iova, Iova),
    /// Tables were unlinked or replaced.
    structure: bool,
    /// The region whose empty table stayed linked before another one's did.
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
    /// Nothing.
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

    /// What units have to forget before the release: a range around all that was unmapped, and around all
    /// of each superpage that was split, which a unit may hold as one translation.
    #[must_use]
    pub fn stale(&self) -> Option<IovaRange> {
        IovaRange::inclusive(self.stale.0, self.stale.1)
    }

    /// `range` and what else units have to forget: see [`Detached::stale`].
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

    /// Notes that the empty table of a region gives up its place to another one.
    pub(super) fn stood_by(&mut self, region: u64) {
        self.idle_before.get_or_insert(region);
    }

    /// What [`Detached::stood_by`] was told first.
    pub(super) const fn idle_before(&self) -> Option<u64> {
        self.idle_before
    }

    /// Notes slots that changed.
    #[inline(always)]
    pub(super) fn note(&mut self, run: Run) {
        self.structure |= matches!(run.kind, RunKind::Table | RunKind::Split);
        self.runs.push(run);
    }

    /// Frees all tables in it.
    #[inline]
    pub(super) fn release<F: PteFormat, M: TableMemory>(&mut self, memory: &mut M) {
        if self.structure || !self.tables.is_empty() || !self.words.is_empty() {
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
