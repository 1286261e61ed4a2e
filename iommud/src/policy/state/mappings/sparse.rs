//! Giving memory back while some mappings stay.

use alloc::vec::Vec;

use super::Mappings;
use super::leaf::Leaf;
use super::place::NONE;
use super::record::{MappingList, threshold};

/// So few records are not worth a look.
const FEW: usize = 128;

impl Mappings {
    /// Whether less than a quarter of the records are in use: of more than 256, or of what is left of as many.
    #[inline]
    pub(in crate::policy) const fn is_sparse(&self) -> bool {
        self.count < self.sparse_below
    }

    /// Records, those that are free included.
    pub(in crate::policy) const fn capacity(&self) -> usize {
        self.fresh as usize
    }

    /// Enters all mappings into a new table, in the order of their lists, and drops this one. `with_list` calls what it
    /// is given with the list of a slot. No plan may be under way: it would know mappings by numbers that are others'
    /// now.
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
        // The last one to go takes the rest along.
        new.sparse_below = if records > FEW { threshold(records) } else { u32::from(records > 0) };
        *self = new;
    }
}
