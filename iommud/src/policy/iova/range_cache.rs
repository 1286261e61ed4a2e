//! Short ranges that were freed lately, kept for the next request of the same length.
//!
//! Drivers map and unmap the same few lengths over and over, so most requests never touch the tree. Ranges in the
//! cache are free. Code that needs them to be free in the tree moves them there first.

use alloc::vec::Vec;

use super::geometry::{LOW_SLOTS, PAGES_1G, Page, Zone};

/// Longest range kept, in pages.
const LONGEST: usize = 8;
/// Ranges kept of each length and zone.
const DEPTH: usize = 64;

/// First pages by zone, then by length minus one.
#[derive(Clone, Debug, Default)]
pub(super) struct Shelf {
    places: [Vec<Page>; 2 * LONGEST],
    count: usize,
}

impl Shelf {
    pub(super) const fn is_empty(&self) -> bool {
        self.count == 0
    }

    #[inline]
    fn place(&mut self, zone: Zone, count: Page) -> Option<&mut Vec<Page>> {
        let length = usize::try_from(count).ok()?.checked_sub(1).filter(|at| *at < LONGEST)?;
        self.places.get_mut(if zone == Zone::High { length + LONGEST } else { length })
    }

    /// Keeps a range if it is aligned like a new one and there is room.
    #[inline]
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

    /// Takes the range of this length that was kept last.
    #[inline]
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
