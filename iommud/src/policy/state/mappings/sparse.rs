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
                for (_, mapping) in self.list(&old) {
                    new.insert(mapping, list);
                }
            });
        }
        let records = new.capacity();
        // A small table is given back when its last mapping goes.
        new.sparse_below = if records > FEW { threshold(records) } else { u32::from(records > 0) };
        *self = new;
    }
}
