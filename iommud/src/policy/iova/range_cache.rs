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

#[cfg(test)]
mod tests {
    use super::*;
    use Zone::{High, Low};

    /// The page at 4 GiB.
    const FOUR: Page = 0x10_0000;

    #[test]
    fn a_range_is_kept_for_its_own_length_and_zone() {
        let mut shelf = Shelf::default();
        for (first, count, zone) in [
            (0, 1, Low),
            (FOUR - 1, 1, Low),
            (FOUR, 1, High),
            (4, 3, Low),
            (FOUR - 8, 5, Low),
            (8, 8, Low),
            (FOUR + 16, 7, High),
            (FOUR, 8, High),
        ] {
            assert!(shelf.is_empty());
            assert!(shelf.put(first, count), "{first:#x} {count}");
            assert!(!shelf.is_empty());
            for (other, length) in (0..=17).flat_map(|length| [(Low, length), (High, length)]) {
                if (other, length) != (zone, count) {
                    assert_eq!(shelf.take(other, length), None, "{first:#x} {count}: {length}");
                }
            }
            assert_eq!(shelf.take(zone, count), Some(first));
            assert_eq!(shelf.take(zone, count), None);
        }
        assert!(shelf.is_empty());
    }

    #[test]
    fn a_long_or_misaligned_range_is_not_kept() {
        let mut shelf = Shelf::default();
        let odd = [(1, 2), (2, 3), (4, 5), (FOUR + 4, 8)];
        let long = [(16, 9), (FOUR + 16, 9), (0, 16), (0, 512), (0, 0)];
        for (first, count) in odd.into_iter().chain(long) {
            assert!(!shelf.put(first, count), "{first:#x} {count}");
            assert!(shelf.is_empty());
        }
    }

    #[test]
    fn the_last_of_64_is_taken_first() {
        let mut shelf = Shelf::default();
        assert!((0..64).all(|n| shelf.put(2 * n, 2)));
        assert!(!shelf.put(128, 2));
        assert!(shelf.put(128, 1), "there is room for another length");
        assert_eq!(shelf.take(Low, 1), Some(128));
        for n in (0..64).rev() {
            assert!(!shelf.is_empty());
            assert_eq!(shelf.take(Low, 2), Some(2 * n));
        }
        assert!(shelf.is_empty());
    }
}
