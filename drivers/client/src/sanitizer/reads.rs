//! The bytes that a driver has read while the device could write them.

use std::collections::BTreeMap;
use std::ops::Range;

use super::report::Place;

/// Ranges that are remembered. Beyond that all are forgotten, so that memory is bounded.
const RANGES: usize = 4096;

/// Ranges of bytes that were read, by their first address. No two overlap.
#[derive(Default)]
pub(super) struct Reads {
    ranges: BTreeMap<u64, (u64, Place)>,
}

impl Reads {
    /// The place that has read some of these bytes.
    pub(super) fn find(&self, bytes: &Range<u64>) -> Option<Place> {
        let (_, (end, place)) = self.ranges.range(..bytes.end).next_back()?;
        (*end > bytes.start).then_some(*place)
    }

    pub(super) fn note(&mut self, bytes: Range<u64>, place: Place) {
        self.forget(&bytes);
        if self.ranges.len() >= RANGES {
            self.ranges.clear();
        }
        self.ranges.insert(bytes.start, (bytes.end, place));
    }

    /// Forgets bytes, and keeps the rest of the ranges that they are part of.
    pub(super) fn forget(&mut self, bytes: &Range<u64>) {
        while let Some((start, (end, place))) =
            self.ranges.range(..bytes.end).next_back().map(|(start, rest)| (*start, *rest))
        {
            if end <= bytes.start {
                return;
            }
            self.ranges.remove(&start);
            if end > bytes.end {
                self.ranges.insert(bytes.end, (end, place));
            }
            if start < bytes.start {
                self.ranges.insert(start, (bytes.start, place));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::panic::Location;

    use super::*;

    fn held(reads: &Reads) -> Vec<(u64, u64)> {
        reads.ranges.iter().map(|(start, (end, _))| (*start, *end)).collect()
    }

    #[test]
    fn ranges_are_cut_where_bytes_are_forgotten() {
        let place = Location::caller();
        let mut reads = Reads::default();
        for range in [10..20, 30..40, 40..50] {
            reads.note(range, place);
        }
        assert!(reads.find(&(20..30)).is_none() && reads.find(&(0..10)).is_none());
        assert!(reads.find(&(19..20)).is_some() && reads.find(&(0..100)).is_some());
        reads.forget(&(15..35));
        assert_eq!(held(&reads), [(10, 15), (35, 40), (40, 50)]);
        reads.forget(&(42..44));
        assert_eq!(held(&reads), [(10, 15), (35, 40), (40, 42), (44, 50)]);
        reads.note(0..100, place);
        assert_eq!(held(&reads), [(0, 100)]);
        for start in 0..5000 {
            reads.note(200 + 2 * start..201 + 2 * start, place);
        }
        assert!(reads.ranges.len() <= RANGES);
    }
}
