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
    let aligned = slot.trailing_zeros().min(page.trailing_zeros());
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

#[cfg(test)]
mod tests {
    use std::vec;
    use std::vec::Vec;

    use iommu_protocol::wire::Access;

    use super::*;
    use crate::hw::amdvi::AmdFormat;
    use crate::hw::page_table::tests::format;
    use crate::hw::testing::TestMemory;
    use crate::hw::vtd::SecondStage;
    use crate::topology::capabilities::PageSizes;

    type Table = PageTable<AmdFormat>;

    fn range(first: u64, length: u64) -> IovaRange {
        IovaRange::new(Iova(first), length).unwrap()
    }

    fn new(memory: &mut TestMemory, page_sizes: PageSizes) -> Table {
        Table::new(memory, format(3, page_sizes, false)).unwrap()
    }

    fn map(memory: &mut TestMemory, table: &mut Table, range: IovaRange, phys: u64) {
        table.map(memory, range, PhysAddr(phys), Access::all()).unwrap();
    }

    /// The words of the frame that was handed out after `before` others.
    fn words(memory: &TestMemory, before: u64) -> Vec<u64> {
        memory.frames[&(0x7000_0000_0000 + before * 0x1000)].words.clone()
    }

    /// The table of pages with 19 pages mapped from slot 16 on, memory 0x12340000: 64 KiB, 8 KiB and 4 KiB (48882
    /// section 2.2.3; bits 11:9 are 7, and the lowest clear bit from bit 12 on says the size).
    fn nineteen() -> Vec<u64> {
        let mut words = vec![0; 512];
        words[16..32].fill(0x7000_0000_1234_7e01);
        words[32..34].fill(0x7000_0000_1235_0e01);
        words[34] = 0x7000_0000_1235_2001;
        words
    }

    #[test]
    fn a_page_begins_where_slot_and_memory_are_aligned() {
        for (slot, left, page, power) in [
            (0, 512, 0, 8),
            (256, 256, 256, 8),
            (0, 255, 0, 7),
            (128, 384, 512, 7),
            (16, 19, 0x12340, 4),
            (32, 3, 0x12350, 1),
            (34, 1, 0x12352, 0),
            (6, 506, 8, 1),
            (8, 504, 6, 1),
            (1, 511, 1, 0),
        ] {
            assert_eq!(largest::<AmdFormat>(slot, left, page), power, "{slot} {left} {page:#x}");
            assert_eq!(largest::<SecondStage>(slot, left, page), 0);
        }
    }

    #[test]
    fn pages_are_as_large_as_alignment_allows() {
        let mut memory = TestMemory::new();
        let mut table = new(&mut memory, PageSizes::SIZE_4K);
        // In a table that units do not walk yet, then in one that they walk.
        map(&mut memory, &mut table, range(0x1_0000, 0x1_3000), 0x1234_0000);
        assert_eq!(words(&memory, 2), nineteen());
        map(&mut memory, &mut table, range(0x20_0000, 0x1000), 0x9000);
        map(&mut memory, &mut table, range(0x21_0000, 0x1_3000), 0x1234_0000);
        let mut expected = nineteen();
        expected[0] = 0x7000_0000_0000_9001;
        assert_eq!(words(&memory, 3), expected);
    }

    /// Three pages of 2 MiB, beside a table: 4 MiB and 2 MiB, cleaned together.
    #[test]
    fn leaves_that_follow_each_other_in_a_live_table_are_one_run() {
        let mut memory = TestMemory::new();
        let mut table = new(&mut memory, PageSizes::SIZE_2M);
        map(&mut memory, &mut table, range(0x1000, 0x1000), 0x9000);
        memory.cleans.clear();
        map(&mut memory, &mut table, range(0x40_0000, 0x60_0000), 0x1240_0000);
        let found = &words(&memory, 1)[1..6];
        let four = 0x7000_0000_125f_fe01;
        assert_eq!(found, [0, four, four, 0x7000_0000_1280_0001, 0]);
        assert_eq!(memory.cleans, [(PhysAddr(0x7000_0000_1000), 2, 3)]);
    }

    #[test]
    fn only_a_page_that_is_covered_partly_is_cut() {
        let mut memory = TestMemory::new();
        let mut table = new(&mut memory, PageSizes::SIZE_4K);
        map(&mut memory, &mut table, range(0x1_0000, 0x1_3000), 0x1234_0000);
        map(&mut memory, &mut table, range(0x6_4000, 0x1000), 0x9000);
        let before = memory.snapshot();
        let singles: [u64; 16] =
            core::array::from_fn(|n| 0x7000_0000_1234_0001 + 0x1000 * n as u64);
        // The first byte and length of a hole, and around what is stale.
        for (first, length, around) in [
            (0x1_4000, 0x4000, range(0x1_0000, 0x1_0000)),
            (0x1_8000, 0x1_b000, range(0x1_0000, 0x2_3000)),
            (0x0_f000, 0x2000, range(0x0_f000, 0x1_1000)),
        ] {
            let hole = range(first, length);
            let mut expected = words(&memory, 2);
            expected[16..32].copy_from_slice(&singles);
            expected[slot_of(first, 1)..slot_of(first + length, 1)].fill(0);
            let mut detached = Detached::new();
            table.unmap(&mut memory, hole, &mut detached).unwrap();
            assert_eq!(words(&memory, 2), expected, "{hole:?}");
            assert_eq!((detached.stale(), detached.tables_freed()), (Some(around), false));
            table.relink(&mut memory, &mut detached);
            assert_eq!(memory.snapshot(), before, "{hole:?}");
            Table::release(&mut memory, &mut detached);
        }
        // All 19 pages, and a hole around them: one store for each slot.
        for hole in [range(0x1_0000, 0x1_3000), range(0x0_8000, 0x2_0000)] {
            let stores = memory.stores;
            let mut detached = Detached::new();
            table.unmap(&mut memory, hole, &mut detached).unwrap();
            assert_eq!((memory.stores - stores, detached.stale()), (19, Some(hole)));
            table.relink(&mut memory, &mut detached);
            assert_eq!(memory.snapshot(), before, "{hole:?}");
        }
    }

    #[test]
    fn tables_that_are_covered_partly_are_not_stale_as_a_whole() {
        let mut memory = TestMemory::new();
        let mut table = new(&mut memory, PageSizes::SIZE_4K);
        let pages = range(0x1f_f000, 0x2000);
        map(&mut memory, &mut table, pages, 0x1001_f000);
        let mut detached = Detached::new();
        table.unmap(&mut memory, pages, &mut detached).unwrap();
        assert_eq!((detached.stale(), detached.tables_freed()), (Some(pages), true));
        Table::release(&mut memory, &mut detached);
        assert_eq!(memory.frames_in_use(), 1);
    }
}
