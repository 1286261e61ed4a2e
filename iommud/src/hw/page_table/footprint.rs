//! Counts the leaves of a page table: the entries that a unit's IOTLB needs to hold all of its translations.

use super::PageTable;
use super::format::{PteFormat, PteSlot, slot_of, slot_size};
use crate::addr::{IovaRange, PhysAddr};
use crate::hw::hal::TableMemory;

/// Logarithm of the smallest page's bytes.
const SMALLEST: u32 = 12;

/// Sizes of pages, each a power of two: 4 KiB to 256 GiB, the largest that any format has.
const SIZES: usize = 27;

/// Leaves by the size of their page. A page over several slots is one leaf.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Footprint {
    counts: [u32; SIZES],
}

impl Footprint {
    /// Number of leaves.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.counts.iter().map(|count| u64::from(*count)).sum()
    }

    /// The sizes of pages that there are, in bytes, smallest first, each with the number of its leaves.
    pub fn sizes(&self) -> impl Iterator<Item = (u64, u32)> + '_ {
        let sizes = self.counts.iter().zip(SMALLEST..);
        sizes.filter(|(count, _)| **count > 0).map(|(count, power)| (1 << power, *count))
    }

    fn add(&mut self, bytes: u64) {
        let index = usize::try_from(bytes.trailing_zeros().saturating_sub(SMALLEST));
        if let Some(count) = index.ok().and_then(|index| self.counts.get_mut(index)) {
            *count = count.saturating_add(1);
        }
    }
}

impl<F: PteFormat> PageTable<F> {
    /// Adds the leaves that translate addresses of `range` to `found`. Reads at most `tables` tables, and takes those
    /// that it has read off. Returns whether that was enough to count all.
    pub fn footprint<M: TableMemory>(
        &self,
        memory: &M,
        range: IovaRange,
        tables: &mut u32,
        found: &mut Footprint,
    ) -> bool {
        let (first, last) = (range.first().0, range.last().0.min(self.last));
        first > last
            || self.count(memory, (self.root, self.levels), (first, last), &mut (tables, found))
    }

    fn count<M: TableMemory>(
        &self,
        memory: &M,
        (table, level): (PhysAddr, u8),
        (first, last): (u64, u64),
        to: &mut (&mut u32, &mut Footprint),
    ) -> bool {
        let Some(left) = to.0.checked_sub(1) else { return false };
        *to.0 = left;
        let mut at = first;
        loop {
            let entry = memory.load(table, slot_of(at, level));
            let mut size = slot_size(level);
            match F::decode(entry, level) {
                PteSlot::Empty => {}
                PteSlot::Leaf { .. } => {
                    size <<= F::power(entry, level);
                    to.1.add(size);
                }
                PteSlot::Table(next) => {
                    let part = (at, last.min(at | (size - 1)));
                    if !self.count(memory, (next, level - 1), part, to) {
                        return false;
                    }
                }
            }
            let end = at | (size - 1);
            if end >= last {
                return true;
            }
            at = end + 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use iommu_protocol::wire::Access;

    use super::*;
    use crate::addr::Iova;
    use crate::hw::amdvi::AmdFormat;
    use crate::hw::page_table::tests::format;
    use crate::hw::testing::TestMemory;
    use crate::hw::vtd::SecondStage;
    use crate::topology::capabilities::PageSizes;

    const KIB: u64 = 1 << 10;
    const MIB: u64 = 1 << 20;

    fn range(first: u64, length: u64) -> IovaRange {
        IovaRange::new(Iova(first), length).unwrap()
    }

    fn table<F: PteFormat>(memory: &mut TestMemory) -> PageTable<F> {
        let sizes = PageSizes::SIZE_2M | PageSizes::SIZE_1G;
        PageTable::new(memory, format(3, sizes, true)).unwrap()
    }

    /// Maps 1 GiB, 6 MiB and 76 KiB behind each other, and 4 KiB elsewhere. Returns the sizes in the whole table, and
    /// those of the 6 MiB and 12 KiB alone.
    fn counted<F: PteFormat>() -> [Vec<(u64, u32)>; 2] {
        let mut memory = TestMemory::new();
        let mut table = table::<F>(&mut memory);
        let length = 1030 * MIB + 76 * KIB;
        let memory = &mut memory;
        table
            .map(memory, range(0x4000_0000, length), PhysAddr(0x8000_0000), Access::all())
            .unwrap();
        table.map(memory, range(0x1000, 0x1000), PhysAddr(0x1000), Access::READ).unwrap();
        let parts = [range(0, 1 << 39), range(0x8000_0000, 6 * MIB + 12 * KIB)];
        parts.map(|part| {
            let mut found = Footprint::default();
            assert!(table.footprint(memory, part, &mut 100, &mut found));
            let total = found.sizes().map(|(_, count)| u64::from(count)).sum::<u64>();
            assert_eq!(found.total(), total);
            found.sizes().collect()
        })
    }

    #[test]
    fn every_leaf_is_counted_once_by_its_size() {
        let (pages, large, huge) = (4 * KIB, 2 * MIB, 1024 * MIB);
        let [all, part] = counted::<SecondStage>();
        assert_eq!(all, [(pages, 20), (large, 3), (huge, 1)]);
        assert_eq!(part, [(pages, 3), (large, 3)]);
        // AMD-Vi has pages over several slots: 6 MiB are 4 and 2, 76 KiB are 64, 8 and 4 (48882 section 2.2.3).
        let [all, part] = counted::<AmdFormat>();
        let small = [(pages, 2), (8 * KIB, 1), (64 * KIB, 1)];
        let large = [(large, 1), (4 * MIB, 1), (huge, 1)];
        assert_eq!(all, [small.as_slice(), large.as_slice()].concat());
        assert_eq!(part, [(64 * KIB, 1), (2 * MIB, 1), (4 * MIB, 1)]);
    }

    #[test]
    fn a_count_reads_no_more_tables_than_it_may() {
        let mut memory = TestMemory::new();
        let mut table = table::<SecondStage>(&mut memory);
        for region in 0..4_u64 {
            let range = range(region * 2 * MIB, 0x1000);
            table.map(&mut memory, range, PhysAddr(0x1000), Access::READ).unwrap();
        }
        // The root, one table below it, and one for each 2 MiB.
        for (most, all, counted) in [(0, false, 0), (5, false, 3), (6, true, 4), (9, true, 4)] {
            let (mut tables, mut found) = (most, Footprint::default());
            let whole = range(0, 1 << 39);
            assert_eq!(table.footprint(&memory, whole, &mut tables, &mut found), all);
            assert_eq!((found.total(), tables), (counted, most.saturating_sub(6)));
        }
        let (mut tables, mut found) = (1, Footprint::default());
        assert!(table.footprint(&memory, range(1 << 40, 0x1000), &mut tables, &mut found));
        assert_eq!((found.total(), tables), (0, 1), "beyond what the table translates");
    }
}
