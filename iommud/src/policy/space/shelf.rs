//! Short ranges given back lately, kept for the next request of the same length.
//!
//! Drivers map and unmap the same few lengths over and over: most of them never touch the tree. What lies here is
//! free; whoever needs the tree to say so calls [`Space::tidy`] first.

use alloc::vec::Vec;

use super::{LOW_SLOTS, PAGES_1G, Page, Space, Zone};

/// Longest range kept, in pages.
const LONGEST: usize = 8;
/// Ranges kept of each length and zone.
const DEPTH: usize = 64;

/// First pages by zone, then by length less one.
#[derive(Clone, Debug, Default)]
pub(super) struct Shelf {
    places: [[Vec<Page>; LONGEST]; 2],
    count: usize,
}

impl Shelf {
    pub(super) const fn is_empty(&self) -> bool {
        self.count == 0
    }

    fn place(&mut self, zone: Zone, count: Page) -> Option<&mut Vec<Page>> {
        let length = usize::try_from(count).ok()?.checked_sub(1)?;
        self.places.get_mut(usize::from(zone == Zone::High))?.get_mut(length)
    }

    /// Keeps a range, if it is aligned as a new one would be and there is room.
    pub(super) fn put(&mut self, first: Page, count: Page) -> bool {
        let zone = if first < LOW_SLOTS * PAGES_1G { Zone::Low } else { Zone::High };
        let Some(place) = self.place(zone, count) else { return false };
        if place.len() >= DEPTH || !first.is_multiple_of(count.next_power_of_two()) {
            return false;
        }
        place.push(first);
        self.count += 1;
        true
    }

    /// The range of this length that was kept last.
    pub(super) fn take(&mut self, zone: Zone, count: Page) -> Option<Page> {
        let first = self.place(zone, count)?.pop()?;
        self.count -= 1;
        Some(first)
    }

    /// Takes any range: its first page and length.
    pub(super) fn take_any(&mut self) -> Option<(Page, Page)> {
        for zone in [Zone::Low, Zone::High] {
            for count in 1..=8 {
                if let Some(first) = self.take(zone, count) {
                    return Some((first, count));
                }
            }
        }
        None
    }
}

impl Space {
    /// Whether there are more [`fragments`](Self::fragments) than `limit`.
    pub fn exceeds(&mut self, limit: u32) -> bool {
        if self.fragments() > limit {
            self.tidy();
            self.settle();
        }
        self.fragments() > limit
    }

    /// Puts ranges given back lately where they can become part of longer ones.
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
}
