//! The blocks of pools: where each was taken, and which hold the poison of their end.

use std::collections::BTreeMap;
use std::ops::Range;

use super::report::Place;

/// The byte that fills a block which nobody has. As an address in a descriptor it is outside of every device's reach.
pub(crate) const POISON: u8 = 0xdb;

/// The blocks of a session's pools that were ever taken, by their I/O virtual address.
#[derive(Default)]
pub(super) struct Blocks {
    blocks: BTreeMap<u64, Block>,
}

#[derive(Clone, Copy)]
struct Block {
    /// The place that took it last.
    taken: Place,
    /// It was given back, and filled with poison.
    poisoned: bool,
}

impl Blocks {
    /// Notes that a block was taken with these bytes in it. Returns the place that had it before and the offset of the
    /// first byte that was changed since, if there is one.
    pub(super) fn taken(&mut self, iova: u64, bytes: &[u8], place: Place) -> Option<(Place, u64)> {
        let before = self.blocks.insert(iova, Block { taken: place, poisoned: false })?;
        let changed = bytes.iter().position(|byte| *byte != POISON);
        let changed = changed.filter(|_| before.poisoned).and_then(|at| u64::try_from(at).ok())?;
        Some((before.taken, changed))
    }

    pub(super) fn poisoned(&mut self, iova: u64) {
        if let Some(block) = self.blocks.get_mut(&iova) {
            block.poisoned = true;
        }
    }

    /// The place that has taken a block.
    pub(super) fn place(&self, iova: u64) -> Option<Place> {
        self.blocks.get(&iova).map(|block| block.taken)
    }

    /// Forgets the blocks of a buffer that ends.
    pub(super) fn forget(&mut self, addresses: Range<u64>) {
        self.blocks.retain(|iova, _| !addresses.contains(iova));
    }
}
