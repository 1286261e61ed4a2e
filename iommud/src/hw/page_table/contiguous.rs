//! Pages over several slots, all with the same entry, for formats that have them ([`PteFormat::MOST`]). To the rest
//! of the walker each slot is a page of its own, as [`PteFormat::decode_at`] decodes it.
//!
//! Such a page is inserted and removed as a whole. A page to be cut is first rewritten as one page for each slot.
//! These translate the same, but the old page is stale as a whole. Undoing restores it.

use super::PageTable;
use super::detached::{Detached, Run, RunKind};
use super::format::{Leaf, PteFormat, PteSlot, shift, slot_of, slot_size};
use crate::addr::{Iova, IovaRange, PhysAddr};
use crate::hw::hal::TableMemory;

/// The largest page, as a power of two of slots, that may begin in `slot` with `left` slots left. `page` is the
/// address of the memory in pages of one slot.
fn largest<F: PteFormat>(slot: usize, left: usize, page: u64) -> u32 {
    let aligned = (slot | 1 << F::MOST).trailing_zeros().min(page.trailing_zeros());
    aligned.min(left.checked_ilog2().unwrap_or(0)).min(F::MOST)
}

impl<F: PteFormat> PageTable<F> {
    /// Stores `count` leaves from slot `index` on. They map memory from the page of `leaf` on, in pages as large as
    /// alignment allows.
    #[inline(always)]
    pub(super) fn fill<M: TableMemory>(
        &self,
        memory: &mut M,
        table: PhysAddr,
        index: usize,
        count: usize,
        leaf: Leaf,
    ) {
        let Leaf { phys, access, level } = leaf;
        if F::MOST == 0 {
            let entry = self.leaf(phys, access, level);
            return memory.fill(table, index, count, entry, slot_size(level));
        }
        let (mut slot, mut next) = (index, phys.0);
        let end = index + count;
        while slot < end {
            let power = largest::<F>(slot, end - slot, next >> shift(level));
            let entry = F::group(PhysAddr(next), access, level, power) | self.marks;
            memory.fill(table, slot, 1 << power, entry, 0);
            slot += 1 << power;
            next = next.wrapping_add(slot_size(level) << power);
        }
    }

    /// Like `fill`, in a table that no other table points to.
    pub(super) fn fill_new<M: TableMemory>(
        &self,
        memory: &mut M,
        table: PhysAddr,
        index: usize,
        count: usize,
        leaf: Leaf,
    ) {
        if F::MOST == 0 {
            let Leaf { phys, access, level } = leaf;
            let entry = self.leaf(phys, access, level);
            return memory.fill_new(table, index, count, entry, slot_size(level));
        }
        self.fill(memory, table, index, count, leaf);
    }

    /// Rewrites pages over several slots that the addresses from `first` to `last` cover only partly: each slot
    /// becomes a page. They are at either end. `table` translates these addresses.
    pub(super) fn cut_ends<M: TableMemory>(
        &self,
        memory: &mut M,
        table: PhysAddr,
        level: u8,
        (first, last): (u64, u64),
        detached: &mut Detached,
    ) {
        if F::MOST == 0 {
            return;
        }
        for iova in [first, last] {
            let slot = slot_of(iova, level);
            let entry = memory.load(table, slot);
            let power = F::power(entry, level);
            let size = slot_size(level) << power;
            let start = iova & !(size - 1);
            let whole = first <= start && start | (size - 1) <= last;
            if power > 0 && !whole {
                let run = Run::new(
                    table,
                    slot_of(start, level),
                    1 << power,
                    level,
                    entry,
                    RunKind::Group,
                );
                self.cut(memory, run);
                detached.note(run);
                if let Some(stale) = IovaRange::new(Iova(start), size) {
                    detached.spoil(stale);
                }
            }
        }
    }

    /// Rewrites one page over several slots as one page for each slot.
    fn cut<M: TableMemory>(&self, memory: &mut M, run: Run) {
        let (index, count) = (usize::from(run.index), usize::from(run.count));
        for slot in index..index + count {
            if let PteSlot::Leaf { phys, access } = F::decode_at(run.entry, run.level, slot) {
                memory.store(run.table, slot, self.leaf(phys, access, run.level));
            }
        }
        self.clean(memory, run.table, index, count);
    }

    /// Restores one page over several slots.
    pub(super) fn uncut<M: TableMemory>(&self, memory: &mut M, run: Run) {
        let (index, count) = (usize::from(run.index), usize::from(run.count));
        memory.fill(run.table, index, count, run.entry, 0);
        self.clean(memory, run.table, index, count);
    }
}
