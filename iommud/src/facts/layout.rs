//! Where the parts of a store are, and the words of its first cell.

use super::cell::MOST_CELLS;

/// The first word of a store: the name of the format, and its version in the last byte.
pub(super) const FORMAT: u64 = u64::from_le_bytes(*b"iommufc1");

/// Words of the first cell.
pub(super) const PLACES: usize = 1;
pub(super) const MARK: usize = 2;
pub(super) const STATE: usize = 3;

/// State: a commit that is too large for a record is under way. The bits below count facts without room.
pub(super) const VOID: u64 = 1 << 63;

/// Most places of a record: no batch of requests in one frame changes more cells.
const MOST_PLACES: u32 = 4096;

/// Bits of the mark that say how many places the record uses. The bits above are the number of the commit.
const COUNT_BITS: u32 = 16;

/// Where the parts of a store are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    /// Places of each record.
    pub(super) places: u32,
    /// The first cell for facts, and the first number that is no cell.
    pub(super) first: u32,
    pub(super) end: u32,
}

impl Layout {
    /// The layout of a store of so many cells. A record takes at most a sixteenth of them.
    pub(super) fn of(count: u32) -> Self {
        let end = count.min(MOST_CELLS);
        let places = (end / 16).min(MOST_PLACES);
        Self { places, first: 1 + 2 * places, end }
    }

    /// The first place of the record of a commit.
    pub(super) const fn record_of(self, commit: u64) -> u32 {
        if commit.is_multiple_of(2) { 1 } else { 1 + self.places }
    }
}

/// The mark of a commit.
pub(super) const fn mark(commit: u64, count: u64) -> u64 {
    commit << COUNT_BITS | count
}

/// The number of a commit and of the places of its record.
pub(super) const fn unmark(mark: u64) -> (u64, u64) {
    (mark >> COUNT_BITS, mark & ((1 << COUNT_BITS) - 1))
}
