//! The index of mappings: the geometry of the page tables, level by level.

use alloc::boxed::Box;

use super::Mappings;
use super::leaf::Leaf;
use super::place::{NONE, Place};

impl Mappings {
    /// The pointer to a leaf, if the directory it is in exists.
    #[inline]
    fn pointer(&self, place: Place) -> Option<&u32> {
        match place.level {
            0 => self.pages.get(place.leaf as usize >> 9)?.as_ref()?.get(place.leaf as usize & 511),
            1 => self.blocks.as_ref()?.get(place.leaf as usize & 511),
            _ => Some(&self.whole),
        }
    }

    fn pointer_mut(&mut self, place: Place) -> Option<&mut u32> {
        match place.level {
            0 => {
                let at = place.leaf as usize >> 9;
                if self.pages.len() <= at {
                    self.pages.resize_with(at + 1, || None);
                }
                self.pages
                    .get_mut(at)?
                    .get_or_insert_with(|| Box::new([NONE; 512]))
                    .get_mut(place.leaf as usize & 511)
            }
            1 => self
                .blocks
                .get_or_insert_with(|| Box::new([NONE; 512]))
                .get_mut(place.leaf as usize & 511),
            2 => Some(&mut self.whole),
            _ => None,
        }
    }

    #[inline]
    pub(super) fn leaf_of(&mut self, place: Place) -> Option<u32> {
        if place.level == 0 && self.recent.0 == place.leaf {
            return Some(self.recent.1);
        }
        self.look_up(place)
    }

    #[inline(never)]
    fn look_up(&mut self, place: Place) -> Option<u32> {
        let leaf = self.pointer(place).copied().filter(|leaf| *leaf != NONE)?;
        if place.level == 0 {
            self.recent = (place.leaf, leaf);
        }
        Some(leaf)
    }

    /// Stores the number of a record in its place.
    #[inline]
    pub(super) fn link(&mut self, place: Place, record: u32) {
        let at = match self.leaf_of(place) {
            Some(leaf) => leaf,
            None => self.new_leaf(place),
        };
        if let Some(leaf) = self.leaves.get_mut(at as usize) {
            leaf.insert(place.slot, record);
        }
    }

    #[inline(never)]
    fn new_leaf(&mut self, place: Place) -> u32 {
        let leaf = self.free_leaves.pop().unwrap_or_else(|| {
            self.leaves.push(Leaf::default());
            u32::try_from(self.leaves.len() - 1).unwrap_or(NONE)
        });
        if let Some(pointer) = self.pointer_mut(place) {
            *pointer = leaf;
        }
        leaf
    }

    /// Removes a place from its leaf. A leaf that becomes empty is kept until another one does.
    #[inline]
    pub(super) fn unlink(&mut self, (at, place): (u32, Place)) {
        let Some(leaf) = self.leaves.get_mut(at as usize) else { return };
        leaf.remove(place.slot);
        if leaf.is_empty() && self.idle.0 != at {
            self.stand_by(at, place);
        }
    }

    /// Keeps a leaf that became empty. Frees the one kept before if it is still empty.
    #[inline(never)]
    fn stand_by(&mut self, at: u32, place: Place) {
        let (old, place) = core::mem::replace(&mut self.idle, (at, place));
        let Some(leaf) = self.leaves.get_mut(old as usize).filter(|leaf| leaf.is_empty()) else {
            return;
        };
        *leaf = Leaf::default();
        if let Some(pointer) = self.pointer_mut(place) {
            *pointer = NONE;
        }
        self.recent = (NONE, NONE);
        self.free_leaves.push(old);
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::mapping;
    use super::super::{Mapping, MappingList};
    use super::*;
    use crate::addr::Iova;
    use alloc::collections::BTreeSet;

    /// A mapping of one page, by its region of 2 MiB.
    fn at(region: u64, page: u64) -> Mapping {
        mapping(region * 0x20_0000 + page * 0x1000, 0x1000, 1)
    }

    #[test]
    fn empty_leaves_are_used_again() {
        let (mut table, mut list) = (Mappings::default(), MappingList::default());
        for region in 0..100 {
            let m = at(region, 0);
            let index = table.insert(m, &mut list);
            assert_eq!(table.find(m.range.first(), 0x1000), Some(index));
            table.remove(index, &mut list);
            assert_eq!(table.find(m.range.first(), 0x1000), None);
        }
        assert_eq!(table.leaves.len(), 2, "the empty one that is kept, and the next");
    }

    #[test]
    fn a_leaf_that_is_not_empty_does_not_stand_by() {
        let (mut table, mut list) = (Mappings::default(), MappingList::default());
        let two = [0, 1].map(|page| table.insert(at(0, page), &mut list));
        for index in two {
            table.remove(index, &mut list);
        }
        let other = table.insert(at(1, 0), &mut list);
        let last = table.insert(at(0, 2), &mut list);
        table.remove(other, &mut list);
        assert_eq!(table.find(Iova(0x2000), 0x1000), Some(last));
    }

    /// Fills and empties a few leaves by turns, and compares with a set of pages.
    #[test]
    fn a_mapping_is_found_from_its_insertion_to_its_removal() {
        let (mut table, mut list) = (Mappings::default(), MappingList::default());
        let mut pages = BTreeSet::new();
        let mut random = 1_u64;
        for step in 0..4000 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let page = (random >> 40) % 5 * 512 + (random >> 50) % 48 * 7;
            let more = step / 500 % 2 == 0;
            let first = Iova(page * 0x1000);
            if more && pages.insert(page) {
                table.insert(mapping(first.0, 0x1000, 1), &mut list);
            } else if !more && pages.remove(&page) {
                let index = table.find(first, 0x1000).unwrap();
                table.remove(index, &mut list);
            }
            assert_eq!(table.find(first, 0x1000).is_some(), pages.contains(&page), "{step}");
            assert_eq!(table.len() as usize, pages.len());
            if step % 100 == 99 {
                let found =
                    (0..5 * 512).filter(|at| table.find(Iova(at * 0x1000), 0x1000).is_some());
                assert!(found.eq(pages.iter().copied()), "{step}");
            }
        }
    }
}
