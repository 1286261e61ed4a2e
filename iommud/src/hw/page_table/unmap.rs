//! Removes translations, and restores them.

use super::PageTable;
use super::detached::{Detached, Run, RunKind};
use super::format::{
    KEPT, Leaf, MapError, PteFormat, PteSlot, SLOTS, free_subtree, slot_count, slot_of, slot_size,
};
use super::recent::Recent;
use crate::addr::{Iova, IovaRange, PhysAddr};
use crate::hw::hal::TableMemory;

/// A superpage that a range covers only partly, and the table of smaller pages that will replace it.
#[derive(Clone, Copy)]
struct Split {
    /// First byte that the superpage translates.
    first: u64,
    /// Level of the table that holds the superpage.
    level: u8,
    table: PhysAddr,
}

impl Split {
    /// The addresses that the superpage translates.
    fn range(&self) -> Option<IovaRange> {
        IovaRange::new(Iova(self.first), slot_size(self.level))
    }
}

/// The working data of one `unmap`.
struct Removal<'a> {
    splits: [Option<Split>; 2],
    /// Tables that become empty stay linked.
    retains: bool,
    detached: &'a mut Detached,
}

impl Removal<'_> {
    /// The table that replaces the superpage at `level` around `iova`.
    fn split_at(&self, iova: u64, level: u8) -> Option<PhysAddr> {
        let first = iova & !(slot_size(level) - 1);
        let found = self.splits.iter().flatten().find(|s| s.level == level && s.first == first);
        found.map(|split| split.table)
    }
}

impl<F: PteFormat> PageTable<F> {
    /// Removes all translations of `range`; pages in it that are not mapped are no error. A table that the range
    /// covers is unlinked with all tables below it, by one store. A table that becomes empty is unlinked too, but one
    /// table of pages may stay for the next map ([`PageTable::retain_tables`]: all stay). A superpage that is covered
    /// partly is replaced by a table of smaller pages. Nothing is freed: `detached` gets everything that
    /// [`PageTable::release`] frees or [`PageTable::relink`] restores.
    ///
    /// # Errors
    /// `Unaligned`, `OutOfReach`, and `Memory` when there is none for a split. Nothing has changed then.
    #[inline(always)]
    pub fn unmap<M: TableMemory>(
        &mut self,
        memory: &mut M,
        range: IovaRange,
        detached: &mut Detached,
    ) -> Result<(), MapError> {
        self.take_out(memory, range, true, detached)
    }

    /// Like [`PageTable::unmap`], for a range that [`PageTable::map`] just inserted: no table stays that did not
    /// exist before.
    ///
    /// # Errors
    /// Those of [`PageTable::unmap`].
    pub fn undo_map<M: TableMemory>(
        &mut self,
        memory: &mut M,
        range: IovaRange,
        detached: &mut Detached,
    ) -> Result<(), MapError> {
        self.take_out(memory, range, false, detached)
    }

    /// With `new`, a table that becomes empty may be kept.
    #[inline(always)]
    fn take_out<M: TableMemory>(
        &mut self,
        memory: &mut M,
        range: IovaRange,
        new: bool,
        detached: &mut Detached,
    ) -> Result<(), MapError> {
        // No memory is checked: the range may be longer than physical addresses reach.
        self.check_range(range, PhysAddr(0))?;
        let (first, last) = (range.first().0, range.last().0);
        let start = detached.runs.len();
        // A table that the range covers is unlinked as a whole.
        let whole = last - first >= slot_size(2) - 1;
        match self.page_table(memory, range).filter(|_| !whole) {
            Some(found) => {
                detached.spoil(range);
                if self.remove_pages(memory, found.table, first, last, detached) == 0 {
                    self.emptied(memory, found, new, detached);
                }
            }
            None => self.take_out_tables(memory, range, new, detached)?,
        }
        self.begin_call(start, detached);
        Ok(())
    }

    /// Marks the first run of a call. A call that found nothing adds an empty run, so that `relink` undoes it too.
    #[inline(always)]
    pub(super) fn begin_call(&self, start: usize, detached: &mut Detached) {
        match detached.runs.get_mut(start) {
            Some(run) => run.first = true,
            None => detached.runs.push(Run {
                first: true,
                ..Run::new(self.root, 0, 0, self.levels, 0, RunKind::Leaves)
            }),
        }
    }

    /// Like `take_out`, for a range that is not part of one table of pages.
    #[inline(never)]
    fn take_out_tables<M: TableMemory>(
        &mut self,
        memory: &mut M,
        range: IovaRange,
        new: bool,
        detached: &mut Detached,
    ) -> Result<(), MapError> {
        let splits = self.prepare_splits(memory, range)?;
        detached.spoil(range);
        let wholes = splits.iter().flatten().filter_map(Split::range);
        wholes.for_each(|whole| detached.spoil(whole));
        let mut removal = Removal { splits, retains: new && self.retains, detached };
        let (first, last) = (range.first().0, range.last().0);
        self.remove(memory, self.root, self.levels, first, last, &mut removal);
        self.recent = Recent::NOTHING;
        self.leave_none_alone(memory, super::recent::NONE, detached);
        Ok(())
    }

    /// Undoes the last [`PageTable::unmap`] that put something into `detached`. The page table must be as that call
    /// left it; each word of each table is then as before the call. Tables of a split stay in `detached` until they
    /// are released after an invalidation, because a unit may have walked them. When `detached` is empty, no
    /// invalidation is needed.
    pub fn relink<M: TableMemory>(&mut self, memory: &mut M, detached: &mut Detached) {
        self.recent = Recent::NOTHING;
        self.stand_by_again(detached);
        while let Some(run) = detached.runs.pop() {
            let index = usize::from(run.index);
            match run.kind {
                RunKind::Leaves | RunKind::Table if run.count > 0 => self.enter(memory, run),
                RunKind::Leaves | RunKind::Table => {}
                RunKind::Words => self.enter_again(memory, run, detached),
                RunKind::Group => self.uncut(memory, run),
                RunKind::Split => {
                    let entry = memory.load(run.table, index);
                    if let PteSlot::Table(table) = F::decode(entry, run.level) {
                        detached.tables.push((table, run.level - 1));
                    }
                    memory.store(run.table, index, run.entry);
                    self.clean(memory, run.table, index, 1);
                }
            }
            if run.first {
                break;
            }
        }
    }

    /// Frees the tables in `detached`. Every unit that walks this page table has invalidated the unmapped addresses.
    pub fn release<M: TableMemory>(memory: &mut M, detached: &mut Detached) {
        detached.release::<F, M>(memory);
    }

    /// Removes `first` to `last` from `table`, which translates them. Unlinks tables below it that the range covers
    /// or that become empty.
    fn remove<M: TableMemory>(
        &self,
        memory: &mut M,
        table: PhysAddr,
        level: u8,
        first: u64,
        last: u64,
        removal: &mut Removal<'_>,
    ) {
        if level == 1 {
            self.remove_pages(memory, table, first, last, removal.detached);
            return;
        }
        self.cut_ends(memory, table, level, (first, last), removal.detached);
        let size = slot_size(level);
        let mut changed = Changed::default();
        let mut at = first;
        loop {
            let part_last = last.min(at | (size - 1));
            let covered = part_last - at == size - 1;
            let index = slot_of(at, level);
            let entry = memory.load(table, index);
            let mut replacement = 0;
            let kind = match F::decode(entry, level) {
                PteSlot::Empty => None,
                PteSlot::Leaf { .. } if covered => Some(RunKind::Leaves),
                // This occurs only at the ends of the range, so `prepare_splits` has found it.
                PteSlot::Leaf { .. } => removal.split_at(at, level).map(|smaller| {
                    replacement = F::table(smaller, level);
                    RunKind::Split
                }),
                PteSlot::Table(next)
                    if covered && !removal.retains && *memory.live(next) & KEPT == 0 =>
                {
                    Some(RunKind::Table)
                }
                PteSlot::Table(next) => {
                    self.remove(memory, next, level - 1, at, part_last, removal);
                    if removal.retains {
                        retain(memory.live(next));
                    }
                    (*memory.live(next) == 0).then_some(RunKind::Table)
                }
            };
            if let Some(kind) = kind {
                memory.store(table, index, replacement);
                removal.detached.note(Run::new(table, index, 1, level, entry, kind));
                changed.add(index, kind);
            }
            if part_last == last {
                break;
            }
            at = part_last + 1;
        }
        *memory.live(table) -= changed.gone;
        self.clean(memory, table, changed.first, changed.end - changed.first);
    }

    /// Removes the pages from `first` to `last` from a table of pages, which translates them. Returns the number of
    /// slots that stay in use.
    #[inline(always)]
    fn remove_pages<M: TableMemory>(
        &self,
        memory: &mut M,
        table: PhysAddr,
        first: u64,
        last: u64,
        detached: &mut Detached,
    ) -> u16 {
        self.cut_ends(memory, table, 1, (first, last), detached);
        let (start, end) = (slot_of(first, 1), slot_of(last, 1) + 1);
        if end - start == 1 {
            return self.remove_page(memory, table, start, detached);
        }
        let gone = Self::remove_many(memory, table, start, end, detached);
        if gone > 0 {
            self.clean(memory, table, start, end - start);
        }
        let live = memory.live(table);
        *live -= gone;
        *live
    }

    /// Like `remove_pages`, for one page.
    #[inline(always)]
    fn remove_page<M: TableMemory>(
        &self,
        memory: &mut M,
        table: PhysAddr,
        slot: usize,
        detached: &mut Detached,
    ) -> u16 {
        let (entry, left) = memory.change(table, slot, |entry, live| {
            if !matches!(F::decode(entry, 1), PteSlot::Leaf { .. }) {
                return (None, (0, *live));
            }
            *live -= 1;
            (Some(0), (entry, *live))
        });
        if entry != 0 {
            self.clean(memory, table, slot, 1);
            detached.note(Run::new(table, slot, 1, 1, entry, RunKind::Leaves));
        }
        left
    }

    /// Removes all pages of these slots and records the content of the slots; returns the number of pages.
    fn remove_many<M: TableMemory>(
        memory: &mut M,
        table: PhysAddr,
        start: usize,
        end: usize,
        detached: &mut Detached,
    ) -> u16 {
        let words = &mut detached.words;
        let before = words.len();
        words.reserve(end - start);
        let mut gone = 0;
        memory.change_each(table, start, end - start, |_, entry| {
            words.push(entry);
            let is_page = matches!(F::decode(entry, 1), PteSlot::Leaf { .. });
            gone += u16::from(is_page);
            is_page.then_some(0)
        });
        if gone == 0 {
            words.truncate(before);
        } else {
            let count = words.len() - before;
            detached.note(Run::new(table, start, count, 1, u64::from(gone), RunKind::Words));
        }
        gone
    }

    /// Restores the slots that `remove_many` removed last.
    fn enter_again<M: TableMemory>(&self, memory: &mut M, run: Run, detached: &mut Detached) {
        let (index, count) = (usize::from(run.index), usize::from(run.count));
        let words = detached.words.drain(detached.words.len().saturating_sub(count)..);
        memory.write(run.table, index, count, &mut words.into_iter());
        *memory.live(run.table) += slot_count(usize::try_from(run.entry).unwrap_or(0));
        self.clean(memory, run.table, index, count);
    }

    /// Unlinks the tables on the path to `iova` that have become empty, from the lowest up.
    pub(super) fn prune<M: TableMemory>(
        &self,
        memory: &mut M,
        table: PhysAddr,
        level: u8,
        iova: u64,
        detached: &mut Detached,
    ) {
        let index = slot_of(iova, level);
        let entry = memory.load(table, index);
        let PteSlot::Table(next) = F::decode(entry, level) else { return };
        if level > 2 {
            self.prune(memory, next, level - 1, iova, detached);
        }
        if *memory.live(next) == 0 {
            memory.store(table, index, 0);
            detached.note(Run::new(table, index, 1, level, entry, RunKind::Table));
            *memory.live(table) -= 1;
            self.clean(memory, table, index, 1);
        }
    }

    /// Builds the tables that replace superpages at either end of `range` that it covers only partly. Nothing points
    /// to them yet.
    fn prepare_splits<M: TableMemory>(
        &self,
        memory: &mut M,
        range: IovaRange,
    ) -> Result<[Option<Split>; 2], MapError> {
        let left = self.prepare_split(memory, range.first(), range)?;
        let same = |split: Split| split.first | (slot_size(split.level) - 1) >= range.last().0;
        if left.is_some_and(same) {
            return Ok([left, None]);
        }
        match self.prepare_split(memory, range.last(), range) {
            Ok(right) => Ok([left, right]),
            Err(error) => {
                if let Some(split) = left {
                    free_subtree::<F, M>(memory, split.table, split.level - 1);
                }
                Err(error)
            }
        }
    }

    /// Like `prepare_splits`, for the superpage around `iova`, if there is one.
    fn prepare_split<M: TableMemory>(
        &self,
        memory: &mut M,
        iova: Iova,
        range: IovaRange,
    ) -> Result<Option<Split>, MapError> {
        let Some(leaf) = self.leaf_at(memory, iova) else { return Ok(None) };
        let size = slot_size(leaf.level);
        let first = iova.0 & !(size - 1);
        if range.first().0 <= first && first | (size - 1) <= range.last().0 {
            return Ok(None);
        }
        let smaller = Leaf { level: leaf.level - 1, ..leaf };
        let table = self.build_split(memory, smaller, first, range)?;
        Ok(Some(Split { first, level: leaf.level, table }))
    }

    /// Builds a table at `page.level` for the addresses from `first` on. It maps them to the memory from `page.phys`
    /// on, except those in `hole`. It is cleaned.
    fn build_split<M: TableMemory>(
        &self,
        memory: &mut M,
        page: Leaf,
        first: u64,
        hole: IovaRange,
    ) -> Result<PhysAddr, MapError> {
        let table = memory.allocate_unclean()?;
        let size = slot_size(page.level);
        let (mut at, mut phys) = (first, page.phys);
        for index in 0..SLOTS {
            let (below, above) = (at | (size - 1) < hole.first().0, at > hole.last().0);
            let covered = hole.first().0 <= at && at | (size - 1) <= hole.last().0;
            if (below || above) && self.leaf_allowed(page.level) {
                self.fill(memory, table, index, 1, Leaf { phys, ..page });
                *memory.live(table) += 1;
            } else if !covered {
                let smaller = Leaf { phys, level: page.level - 1, ..page };
                match self.build_split(memory, smaller, at, hole) {
                    Ok(child) => memory.store(table, index, F::table(child, page.level)),
                    Err(error) => {
                        self.clean(memory, table, 0, SLOTS);
                        free_subtree::<F, M>(memory, table, page.level);
                        return Err(error);
                    }
                }
                *memory.live(table) += 1;
            }
            at = at.wrapping_add(size);
            phys = PhysAddr(phys.0.wrapping_add(size));
        }
        self.clean(memory, table, 0, SLOTS);
        Ok(table)
    }
}

/// Keeps a table linked if it is empty.
pub(super) const fn retain(live: &mut u16) {
    if *live == 0 {
        *live = KEPT;
    }
}

/// Slots of one table that changed.
#[derive(Default)]
struct Changed {
    first: usize,
    end: usize,
    /// Number of slots that became empty.
    gone: u16,
}

impl Changed {
    fn add(&mut self, index: usize, kind: RunKind) {
        if self.end == 0 {
            self.first = index;
        }
        self.end = index + 1;
        self.gone += u16::from(kind != RunKind::Split);
    }
}
