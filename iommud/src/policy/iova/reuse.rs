//! Reuses ranges that were freed lately, takes parts of blocks, and gives memory back.

use super::Space;
use super::geometry::{CHUNK, Page, Wanted, Zone};
use super::range_cache::Shelf;
use crate::addr::{Iova, IovaRange, PAGE_SIZE};

impl Space {
    /// Whether there are more [`fragments`](Self::fragments) than `limit`.
    #[inline]
    pub fn exceeds(&mut self, limit: u32) -> bool {
        self.fragments() > limit && self.still_exceeds(limit)
    }

    #[cold]
    fn still_exceeds(&mut self, limit: u32) -> bool {
        self.tidy();
        self.settle();
        self.fragments() > limit
    }

    /// Takes a range of this length that was freed lately, unless a larger alignment is wanted.
    #[inline]
    pub(super) fn allocate_again(&mut self, wanted: Wanted) -> Option<IovaRange> {
        let Wanted { length, alignment, boundary: _, above_4g } = wanted;
        if alignment > PAGE_SIZE || !length.is_multiple_of(PAGE_SIZE) {
            return None;
        }
        let zone = if above_4g { Zone::High } else { Zone::Low };
        // It is aligned to its length, rounded up to a power of two. So it crosses no boundary that the length
        // allows.
        let first = self.shelf.take(zone, Page::try_from(length / PAGE_SIZE).ok()?)?;
        IovaRange::new(Iova(u64::from(first) * PAGE_SIZE), length)
    }

    /// Moves the ranges freed lately to the tree, where they can become part of longer ones.
    pub fn tidy(&mut self) {
        while let Some((first, count)) = self.shelf.take_any() {
            self.vacate(first, count);
        }
    }

    /// Takes `pages` at the start of a block of `2^order`.
    pub(super) fn take_in(&mut self, zone: Zone, pages: Page, order: u32) -> Option<Page> {
        let block: Page = 1_u32.checked_shl(order)?;
        if block / 2 < pages
            && let Some(first) = self.shelf.take(zone, pages)
        {
            return Some(first);
        }
        let first = self.take(zone, order).or_else(|| {
            if self.shelf.is_empty() {
                return None;
            }
            self.tidy();
            self.take(zone, order)
        })?;
        if pages < block {
            self.vacate(first + pages, block - pages);
        }
        Some(first)
    }

    /// Gives back the memory of nodes that are not needed, even while ranges are taken.
    pub fn shrink(&mut self) {
        if self.nodes.len() <= 1 {
            return;
        }
        self.tidy();
        self.settle();
        if self.free_nodes.len() >= CHUNK {
            self.compact();
            self.shelf = Shelf::default();
        }
    }
}
