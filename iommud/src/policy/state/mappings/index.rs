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
