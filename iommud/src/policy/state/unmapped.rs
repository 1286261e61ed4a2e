//! The ranges that a domain unmapped last. Nothing is decided by them: they explain faults.

use alloc::vec::Vec;

use crate::addr::IovaRange;

/// How many ranges a domain remembers.
const LAST: usize = 64;

/// A range, and when it was unmapped: milliseconds of [`crate::policy::Registry::set_time`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::policy) struct Unmapped {
    /// The addresses.
    pub(in crate::policy) range: IovaRange,
    /// When.
    pub(in crate::policy) at: u32,
}

/// The last [`LAST`] ranges.
#[derive(Clone, Debug)]
pub(in crate::policy) struct UnmappedRanges {
    ranges: Vec<Unmapped>,
    /// The place of the next one.
    next: usize,
}

impl UnmappedRanges {
    /// None, with room for all, so that an unmap allocates nothing.
    pub(in crate::policy) fn new() -> Self {
        Self { ranges: Vec::with_capacity(LAST), next: 0 }
    }

    /// Records that a range was unmapped.
    #[inline]
    pub(in crate::policy) fn note(&mut self, range: IovaRange, at: u32) {
        let now = Unmapped { range, at };
        match self.ranges.get_mut(self.next) {
            Some(oldest) => *oldest = now,
            None => self.ranges.push(now),
        }
        self.next = if self.next + 1 < LAST { self.next + 1 } else { 0 };
    }

    /// All of them, the last one first.
    pub(in crate::policy) fn iter(&self) -> impl Iterator<Item = Unmapped> + '_ {
        let (newer, older) = self.ranges.split_at(self.next.min(self.ranges.len()));
        newer.iter().rev().chain(older.iter().rev()).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::Iova;

    fn page(number: u64) -> IovaRange {
        IovaRange::new(Iova(number << 12), 4096).unwrap()
    }

    #[test]
    fn the_last_ranges_are_there_and_the_newest_is_first() {
        let mut ranges = UnmappedRanges::new();
        assert_eq!(ranges.iter().next(), None);
        for number in 0..64 {
            ranges.note(page(number), 7);
        }
        let all: Vec<_> = ranges.iter().map(|unmapped| unmapped.range).collect();
        assert_eq!(all, (0..64).rev().map(page).collect::<Vec<_>>());
        ranges.note(page(64), 8);
        ranges.note(page(65), 9);
        let all: Vec<_> = ranges.iter().map(|unmapped| unmapped.range).collect();
        assert_eq!(all, (2..66).rev().map(page).collect::<Vec<_>>());
        assert_eq!(ranges.iter().next(), Some(Unmapped { range: page(65), at: 9 }));
    }
}
