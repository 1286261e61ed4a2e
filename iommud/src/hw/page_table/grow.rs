//! Page tables that grow deeper while they are in use.
//!
//! ```text
//!                             new root   entry 0 -> old root
//! old root .. level n         old root .. level n            both roots translate everything as before;
//!                                                            only the new one reaches further
//! ```

use super::PageTable;
use super::format::{KEPT, MapError, PteFormat, PteSlot, last_of};
use crate::addr::PhysAddr;
use crate::hw::hal::TableMemory;

impl<F: PteFormat> PageTable<F> {
    /// Puts roots above the root until there are `levels` (at most 6); does nothing when there are. Hardware does not
    /// use a new root before an entry points to it. The old root translates as before.
    ///
    /// # Errors
    /// `Levels`; `Memory`. Nothing has changed then.
    pub fn grow<M: TableMemory>(&mut self, memory: &mut M, levels: u8) -> Result<(), MapError> {
        if levels > 6 {
            return Err(MapError::Levels(levels));
        }
        let before = self.levels;
        while self.levels < levels {
            let root = match memory.allocate() {
                Ok(root) => root,
                Err(error) => {
                    self.shrink(memory, before);
                    return Err(error.into());
                }
            };
            memory.store(root, 0, F::table(self.root, self.levels + 1));
            *memory.live(root) = 1;
            *memory.live(self.root) |= KEPT;
            self.clean(memory, root, 0, 1);
            self.set_root(root, self.levels + 1);
        }
        Ok(())
    }

    /// Removes and frees the roots above `levels` that translate nothing else. No entry points to them and every unit
    /// has invalidated them.
    pub fn shrink<M: TableMemory>(&mut self, memory: &mut M, levels: u8) {
        while self.levels > levels.max(3) {
            let PteSlot::Table(below) = F::decode(memory.load(self.root, 0), self.levels) else {
                return;
            };
            if *memory.live(self.root) & !KEPT != 1 {
                return;
            }
            *memory.live(self.root) = 0;
            memory.free(self.root, false);
            *memory.live(below) &= !KEPT;
            self.set_root(below, self.levels - 1);
        }
    }

    const fn set_root(&mut self, root: PhysAddr, levels: u8) {
        (self.root, self.levels, self.last) = (root, levels, last_of(levels));
    }

    /// The root that the table had with `levels` levels; `None` when it never had that many.
    pub fn root_at<M: TableMemory>(&self, memory: &M, levels: u8) -> Option<PhysAddr> {
        let mut root = self.root;
        for level in (levels + 1..=self.levels).rev() {
            match F::decode(memory.load(root, 0), level) {
                PteSlot::Table(below) => root = below,
                _ => return None,
            }
        }
        (levels <= self.levels).then_some(root)
    }
}
