//! Counts the tables of a page table.

use crate::topology::capabilities::PageSizes;

/// Bits of an address that one level translates.
const LEVEL_BITS: u32 = 9;

/// Bits of a page offset.
const PAGE_BITS: u32 = 12;

/// Number of tables of a page table of `levels` levels with leaves of `sizes`, the root included. Each of `ranges` is
/// mapped one to one by the largest leaves that fit. A range is a first and last byte; ranges are sorted, without
/// overlap, and of whole pages.
pub(super) fn count(levels: u8, sizes: PageSizes, ranges: &[(u64, u64)]) -> u64 {
    // The root translates all addresses.
    1 + (1..levels).map(|level| at_level(level, sizes, ranges)).sum::<u64>()
}

/// Number of leaves of `size` (2 MiB or 1 GiB) that map parts of the ranges.
pub(super) fn leaves(size: PageSizes, sizes: PageSizes, ranges: &[(u64, u64)]) -> u64 {
    if !sizes.contains(size) {
        return 0;
    }
    let whole = |range: &(u64, u64)| {
        let (first, end) = aligned(*range, size.bits());
        u64::try_from(end.saturating_sub(first) / u128::from(size.bits())).unwrap_or(u64::MAX)
    };
    ranges.iter().map(whole).sum()
}

/// Number of tables at a level below the root: blocks of addresses that are mapped, but not by larger leaves alone.
fn at_level(level: u8, sizes: PageSizes, ranges: &[(u64, u64)]) -> u64 {
    let bits = PAGE_BITS + LEVEL_BITS * u32::from(level);
    let leaf = smallest_leaf(bits, sizes);
    let (mut tables, mut next) = (0, 0);
    for range in ranges {
        for (first, last) in without_leaves(*range, leaf).into_iter().flatten() {
            let (first, last) = ((first >> bits).max(next), last >> bits);
            if first <= last {
                tables += last - first + 1;
                next = last + 1;
            }
        }
    }
    tables
}

/// The smallest leaf that can replace a table which translates 2^`bits` bytes.
fn smallest_leaf(bits: u32, sizes: PageSizes) -> Option<u64> {
    let large = [PageSizes::SIZE_2M, PageSizes::SIZE_1G];
    let fits = |size: &PageSizes| sizes.contains(*size) && size.bits() >> bits != 0;
    large.into_iter().find(fits).map(|size| size.bits())
}

/// The parts of a range that leaves of a size do not map: before the first leaf, and behind the last.
fn without_leaves(range: (u64, u64), leaf: Option<u64>) -> [Option<(u64, u64)>; 2] {
    let Some(leaf) = leaf else { return [Some(range), None] };
    let (first, end) = aligned(range, leaf);
    if first >= end {
        return [Some(range), None];
    }
    let before = u64::try_from(first).ok().filter(|first| *first > range.0);
    let behind = u64::try_from(end).ok().filter(|end| *end <= range.1);
    [before.map(|first| (range.0, first - 1)), behind.map(|end| (end, range.1))]
}

/// First byte and end of the whole blocks of `size` in a range.
fn aligned((first, last): (u64, u64), size: u64) -> (u128, u128) {
    let size = u128::from(size);
    (u128::from(first).next_multiple_of(size), (u128::from(last) + 1) / size * size)
}

/// The number of frames for this many things, one each.
pub(super) fn frames(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}
