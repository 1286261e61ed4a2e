//! Gives memory back while some mappings stay.

use alloc::vec::Vec;

use super::Mappings;
use super::leaf::Leaf;
use super::place::NONE;
use super::record::{MappingList, threshold};

/// With this few records, a table is rebuilt only when it is empty.
const FEW: usize = 128;

impl Mappings {
    /// Whether less than a quarter of the records are in use. Never in a table that has not yet had more than 256.
    #[inline]
    pub(in crate::policy) const fn is_sparse(&self) -> bool {
        self.count < self.sparse_below
    }

    /// Number of records, free ones included.
    pub(in crate::policy) const fn capacity(&self) -> usize {
        self.fresh as usize
    }

    /// Moves all mappings into a new table, in the order of their lists. `with_list` runs the given function on the
    /// list of a slot. No plan may be under way, because mappings change their numbers here.
    pub(in crate::policy) fn rebuild(
        &mut self,
        mut with_list: impl FnMut(u32, &mut dyn FnMut(&mut MappingList)),
    ) {
        let live = self.leaves.iter().flat_map(Leaf::iter).filter_map(|index| self.record(index));
        let first = live.filter(|record| record.previous == NONE).map(|record| record.slot);
        let lists: Vec<u32> = first.collect();
        let mut new = Self::default();
        for number in lists {
            with_list(number, &mut |list| {
                let old = core::mem::take(list);
                for (index, mapping) in self.list(&old) {
                    let moved = new.insert(mapping, list);
                    if let Some(cell) = self.cell(index) {
                        new.set_cell(moved, cell);
                    }
                }
            });
        }
        let records = new.capacity();
        // A small table is given back when its last mapping goes.
        new.sparse_below = if records > FEW { threshold(records) } else { u32::from(records > 0) };
        *self = new;
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::mapping;
    use super::*;

    /// A table that had this many mappings of one slot, and has so many left; `stride` bytes lie between two.
    fn table(had: u32, left: u32, stride: u64) -> (Mappings, MappingList) {
        let (mut table, mut list) = (Mappings::default(), MappingList::default());
        for n in 0..u64::from(had) {
            table.insert(mapping(n * stride, 0x1000, 1), &mut list);
        }
        leave(&mut table, &mut list, left);
        (table, list)
    }

    /// Removes all mappings but so many.
    fn leave(table: &mut Mappings, list: &mut MappingList, left: u32) {
        let all: Vec<_> = table.list(list).skip(left as usize).collect();
        for (index, _) in all {
            table.remove(index, list);
        }
        assert_eq!((table.len(), list.count), (left, left));
    }

    #[test]
    fn a_table_is_sparse_below_a_quarter_of_its_full_chunks() {
        for (had, left, sparse) in [
            (0, 0, false),
            (1, 0, false),
            (256, 1, false),
            (256, 0, false),
            (257, 64, false),
            (257, 63, true),
            (257, 0, true),
            (512, 64, false),
            (512, 63, true),
            (513, 128, false),
            (513, 127, true),
        ] {
            assert_eq!(table(had, left, 0x1000).0.is_sparse(), sparse, "{left} of {had}");
        }
    }

    #[test]
    fn a_rebuilt_table_is_sparse_below_a_quarter_of_what_it_took_over() {
        for (taken, left, sparse) in [
            (0, 0, false),
            (1, 1, false),
            (1, 0, true),
            (128, 1, false),
            (128, 0, true),
            (129, 32, false),
            (129, 31, true),
        ] {
            let (mut table, mut list) = table(300, taken, 0x1000);
            let before: Vec<_> = table.list(&list).map(|(_, mapping)| mapping).collect();
            table.rebuild(|slot, change| {
                assert_eq!(slot, 1);
                change(&mut list);
            });
            let after: Vec<_> = table.list(&list).map(|(_, mapping)| mapping).collect();
            assert_eq!((after, table.capacity(), table.len()), (before, taken as usize, taken));
            leave(&mut table, &mut list, left);
            assert_eq!(table.is_sparse(), sparse, "{left} of {taken}");
        }
    }

    #[test]
    fn an_empty_table_keeps_one_chunk_of_records_and_64_leaves() {
        for (had, left, stride, chunks, leaves) in [
            (0, 0, 0x1000, 0, 0),
            (1, 0, 0x1000, 1, 1),
            (256, 0, 0x1000, 1, 1),
            (257, 1, 0x1000, 2, 1),
            (257, 0, 0x1000, 0, 0),
            (64, 0, 0x20_0000, 1, 64),
            (65, 1, 0x20_0000, 1, 65),
            (65, 0, 0x20_0000, 0, 0),
        ] {
            let (mut table, _) = table(had, left, stride);
            table.tidy();
            let kept = (table.records.len(), table.leaves.len());
            assert_eq!(kept, (chunks, leaves), "{left} of {had}");
            assert_eq!(table.len(), left);
        }
    }
}
