//! Maps pages that lie anywhere in memory to consecutive addresses.
//!
//! New tables are built and filled beside the live ones, as in [`PageTable::map`]. Stores into live tables wait in
//! `pending` until everything else is done.

use iommu_protocol::wire::Access;

use super::PageTable;
use super::detached::{Run, RunKind};
use super::format::{MapError, PHYSICAL_BITS, PteFormat, PteSlot, SLOTS, slot_count, slot_of};
use super::map::check_empty;
use super::recent::Recent;
use crate::addr::{Iova, IovaRange, PAGE_SIZE, PhysAddr};
use crate::hw::hal::TableMemory;

/// A table of pages.
struct Table {
    frame: PhysAddr,
    /// Hardware may walk it. Otherwise only `pending` leads to it.
    live: bool,
}

impl<F: PteFormat> PageTable<F> {
    /// Inserts a translation for each page of `range`, whose memory is `pages`, in order. Each page is a leaf of 4
    /// KiB. A failure leaves every table as it was, and no unit can have cached any of the translations.
    ///
    /// # Errors
    /// `Unaligned`, `OutOfReach`, `NoAccess`, `Overlap` with a page that is mapped already, `Memory`. Nothing
    /// has changed then.
    pub fn map_list<M: TableMemory>(
        &mut self,
        memory: &mut M,
        range: IovaRange,
        pages: &[PhysAddr],
        access: Access,
    ) -> Result<(), MapError> {
        self.check_list(range, pages, access)?;
        if let Some(Recent { table, .. }) = self.page_table(memory, range) {
            let first = slot_of(range.first().0, 1);
            check_empty::<F, M>(memory, table, range.first(), pages.len())?;
            self.store_list(memory, table, first, pages, access);
            return Ok(());
        }
        let mut prepared = Ok(());
        let (mut at, mut rest) = (range.first(), pages);
        while !rest.is_empty() && prepared.is_ok() {
            let first = slot_of(at.0, 1);
            let (now, later) = rest.split_at(rest.len().min(SLOTS - first));
            prepared = self.prepare_list(memory, at, now, access);
            (at, rest) = (Iova(at.0.wrapping_add(now.len() as u64 * PAGE_SIZE)), later);
        }
        self.enter_pending(memory, prepared)
    }

    fn check_list(
        &self,
        range: IovaRange,
        pages: &[PhysAddr],
        access: Access,
    ) -> Result<(), MapError> {
        let phys = pages.first().copied().unwrap_or(PhysAddr(0));
        self.check_range(range, phys)?;
        if !access.intersects(Access::READ | Access::WRITE) {
            return Err(MapError::NoAccess);
        }
        let all = pages.iter().fold(0, |all, page| all | page.0);
        if range.length() != pages.len() as u64 * PAGE_SIZE || all & (PAGE_SIZE - 1) != 0 {
            return Err(MapError::Unaligned { range, phys });
        }
        if all >> PHYSICAL_BITS != 0 {
            return Err(MapError::OutOfReach { range, phys });
        }
        Ok(())
    }

    /// Prepares pages that one table of pages translates: at once if it is new, otherwise in `pending`.
    fn prepare_list<M: TableMemory>(
        &mut self,
        memory: &mut M,
        at: Iova,
        pages: &[PhysAddr],
        access: Access,
    ) -> Result<(), MapError> {
        let Table { frame, live } = self.table_for(memory, at)?;
        let first = slot_of(at.0, 1);
        if !live {
            self.store_list(memory, frame, first, pages, access);
            return Ok(());
        }
        check_empty::<F, M>(memory, frame, at, pages.len())?;
        for (slot, page) in (first..).zip(pages) {
            let entry = self.leaf(*page, access, 1);
            self.pending.push(Run::new(frame, slot, 1, 1, entry, RunKind::Leaves));
        }
        Ok(())
    }

    /// The table of pages for `at`. It is created when there is none, with the tables that lead to it.
    fn table_for<M: TableMemory>(&mut self, memory: &mut M, at: Iova) -> Result<Table, MapError> {
        let mut table = Table { frame: self.root, live: true };
        for level in (2..=self.levels).rev() {
            let slot = slot_of(at.0, level);
            let found = F::decode(memory.load(table.frame, slot), level);
            let waiting = |run: &&Run| run.table == table.frame && usize::from(run.index) == slot;
            let entry = match (found, self.pending.iter().find(waiting)) {
                (PteSlot::Leaf { .. }, _) => return Err(MapError::Overlap(at)),
                (PteSlot::Table(frame), _) => {
                    table.frame = frame;
                    continue;
                }
                (PteSlot::Empty, Some(run)) => run.entry,
                (PteSlot::Empty, None) => {
                    let new =
                        if self.coherent { memory.allocate_unclean() } else { memory.allocate() };
                    let entry = F::table(new?, level);
                    if table.live {
                        let run = Run::new(table.frame, slot, 1, level, entry, RunKind::Table);
                        self.pending.push(run);
                    } else {
                        memory.store(table.frame, slot, entry);
                        *memory.live(table.frame) += 1;
                        self.clean(memory, table.frame, slot, 1);
                    }
                    entry
                }
            };
            if let PteSlot::Table(frame) = F::decode(entry, level) {
                table = Table { frame, live: false };
            }
        }
        Ok(table)
    }

    /// Stores leaves into empty slots from `first` on; counts and cleans them.
    fn store_list<M: TableMemory>(
        &self,
        memory: &mut M,
        table: PhysAddr,
        first: usize,
        pages: &[PhysAddr],
        access: Access,
    ) {
        // A leaf has the address unshifted. Its other bits are the same for all pages.
        let bits = self.leaf(PhysAddr(0), access, 1);
        memory.write(table, first, pages.len(), &mut pages.iter().map(|page| bits + page.0));
        *memory.live(table) += slot_count(pages.len());
        self.clean(memory, table, first, pages.len());
    }
}
