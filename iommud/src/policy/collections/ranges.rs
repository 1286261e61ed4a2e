//! Sets of addresses as sorted, disjoint ranges.

use alloc::vec::Vec;

use iommu_protocol::wire::Access;

use crate::addr::{Iova, IovaRange, PhysAddr, PhysRange};
use crate::topology::firmware::ReservedRegion;

/// A set of addresses. Ranges that touch are one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::policy) struct Ranges {
    /// First and last byte.
    ranges: Vec<(u64, u64)>,
}

impl Ranges {
    /// Adds a range.
    pub(in crate::policy) fn insert(&mut self, first: u64, last: u64) {
        let from = self.ranges.partition_point(|r| r.1.saturating_add(1) < first);
        let to = self.ranges.partition_point(|r| r.0 <= last.saturating_add(1));
        // Without a range that touches it, the next one begins behind `first`, and the one before ends before `last`.
        let low = self.ranges.get(from).map_or(first, |r| r.0.min(first));
        let before = to.checked_sub(1).and_then(|at| self.ranges.get(at));
        let high = before.map_or(last, |r| r.1.max(last));
        self.ranges.splice(from..to.max(from), [(low, high)]);
    }

    /// Removes a range.
    pub(in crate::policy) fn remove(&mut self, first: u64, last: u64) {
        let from = self.ranges.partition_point(|r| r.1 < first);
        let to = self.ranges.partition_point(|r| r.0 <= last);
        if from >= to {
            return;
        }
        let left = self.ranges.get(from).filter(|r| r.0 < first).map(|r| (r.0, first - 1));
        let right = self.ranges.get(to - 1).filter(|r| r.1 > last).map(|r| (last + 1, r.1));
        self.ranges.splice(from..to, left.into_iter().chain(right));
    }

    /// The parts of a range that are in the set.
    pub(in crate::policy) fn within(
        &self,
        first: u64,
        last: u64,
    ) -> impl Iterator<Item = (u64, u64)> {
        let from = self.ranges.partition_point(|r| r.1 < first);
        let to = self.ranges.partition_point(|r| r.0 <= last);
        let found = self.ranges.get(from..to.max(from)).unwrap_or_default();
        found.iter().map(move |r| (r.0.max(first), r.1.min(last)))
    }

    /// All ranges, lowest first.
    pub(in crate::policy) fn iter(&self) -> impl Iterator<Item = (u64, u64)> {
        self.ranges.iter().copied()
    }
}

/// Inserts the whole pages around a range.
pub(in crate::policy) fn insert_pages(set: &mut Ranges, range: PhysRange) {
    let range = range.page_aligned();
    set.insert(range.first().0, range.last().0);
}

/// The parts of memory that firmware reserves for a device, in whole pages. Where regions overlap, once.
#[must_use]
pub fn reserved_parts(regions: &[ReservedRegion], memory: &[PhysRange]) -> Vec<PhysRange> {
    let mut reserved = Ranges::default();
    regions.iter().for_each(|region| insert_pages(&mut reserved, region.range));
    let mut parts = Ranges::default();
    for (first, last) in memory.iter().map(|range| bounds(range.page_aligned())) {
        reserved.within(first, last).for_each(|(first, last)| parts.insert(first, last));
    }
    let range = |(first, last)| PhysRange::inclusive(PhysAddr(first), PhysAddr(last));
    parts.iter().filter_map(range).collect()
}

/// First and last byte.
pub(in crate::policy) const fn bounds(range: PhysRange) -> (u64, u64) {
    (range.first().0, range.last().0)
}

/// A range, and the access of devices there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::policy) struct Piece {
    pub(in crate::policy) range: IovaRange,
    access: u32,
}

impl Piece {
    pub(in crate::policy) const fn new(range: IovaRange, access: Access) -> Self {
        Self { range, access: access.bits() }
    }

    /// A piece that is mapped to the same addresses.
    pub(in crate::policy) fn identity((first, last): (u64, u64), access: Access) -> Option<Self> {
        Some(Self::new(IovaRange::inclusive(Iova(first), Iova(last))?, access))
    }

    /// A piece of a region, with the access of the region; an excluded region allows all.
    pub(in crate::policy) fn of_region(
        (first, last): (u64, u64),
        region: &ReservedRegion,
    ) -> Option<Self> {
        let mut access = Access::empty();
        access.set(Access::READ, region.read || region.exclusion);
        access.set(Access::WRITE, region.write || region.exclusion);
        let range = IovaRange::inclusive(Iova(first), Iova(last))?;
        (!access.is_empty()).then(|| Self::new(range, access))
    }

    pub(in crate::policy) const fn access(self) -> Access {
        Access::from_bits_truncate(self.access)
    }
}

/// The pieces to enter (in `to`, and not the same in `from`), and those to remove (in `from`, and not the same in
/// `to`). Pieces may overlap: their accesses add up.
///
/// The result is cut wherever a piece begins or ends. Nothing is joined, so that leaves end at the cuts.
pub(in crate::policy) fn difference(from: &[Piece], to: &[Piece]) -> (Vec<Piece>, Vec<Piece>) {
    let mut cuts: Vec<u64> = Vec::new();
    for piece in from.iter().chain(to) {
        cuts.push(piece.range.first().0);
        cuts.extend(piece.range.last().0.checked_add(1));
    }
    cuts.sort_unstable();
    cuts.dedup();
    let (mut enter, mut remove) = (Vec::new(), Vec::new());
    for (at, &first) in cuts.iter().enumerate() {
        let last = cuts.get(at + 1).map_or(u64::MAX, |next| next - 1);
        let (before, after) = (access_at(from, first), access_at(to, first));
        if before == after {
            continue;
        }
        push(&mut remove, first, last, before);
        push(&mut enter, first, last, after);
    }
    (enter, remove)
}

/// The same addresses and accesses, without overlap, lowest first.
pub(in crate::policy) fn normal(pieces: &[Piece]) -> Vec<Piece> {
    difference(&[], pieces).0
}

fn access_at(pieces: &[Piece], address: u64) -> u32 {
    let here = |piece: &&Piece| piece.range.first().0 <= address && address <= piece.range.last().0;
    pieces.iter().filter(here).fold(0, |access, piece| access | piece.access)
}

/// Adds a piece behind the others.
fn push(pieces: &mut Vec<Piece>, first: u64, last: u64, access: u32) {
    if access != 0
        && let Some(range) = IovaRange::inclusive(Iova(first), Iova(last))
    {
        pieces.push(Piece { range, access });
    }
}

/// The last address of some pieces.
pub(in crate::policy) fn top_of(pieces: &[Piece]) -> u64 {
    pieces.iter().map(|piece| piece.range.last().0).max().unwrap_or(0)
}

/// The smallest range around two.
#[inline]
pub(in crate::policy) fn hull(a: Option<IovaRange>, b: IovaRange) -> IovaRange {
    let Some(a) = a else { return b };
    IovaRange::inclusive(a.first().min(b.first()), a.last().max(b.last())).unwrap_or(b)
}

/// The smallest range around some pieces.
pub(in crate::policy) fn hull_of(pieces: &[Piece]) -> Option<IovaRange> {
    pieces.iter().fold(None, |all, piece| Some(hull(all, piece.range)))
}

/// Pieces that map the ranges one to one with all access, as far as a table reaches.
pub(in crate::policy) fn identity(
    ranges: impl Iterator<Item = (u64, u64)>,
    reach: u64,
) -> Vec<Piece> {
    let mut all = Ranges::default();
    ranges.for_each(|(first, last)| all.insert(first, last));
    let access = Access::READ | Access::WRITE;
    all.within(0, reach).filter_map(|part| Piece::identity(part, access)).collect()
}

/// The addresses of pieces.
pub(in crate::policy) fn addresses(pieces: &[Piece]) -> Ranges {
    let mut all = Ranges::default();
    for piece in pieces {
        all.insert(piece.range.first().0, piece.range.last().0);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bits(set: &Ranges) -> u64 {
        set.iter().flat_map(|(first, last)| first..=last).fold(0, |bits, n| bits | 1 << n)
    }

    fn span(first: u64, last: u64) -> u64 {
        (first..=last).fold(0, |bits, n| bits | 1 << n)
    }

    #[test]
    fn the_whole_space_is_a_range() {
        let mut set = Ranges::default();
        set.insert(0, u64::MAX);
        set.remove(5, u64::MAX);
        set.insert(u64::MAX, u64::MAX);
        assert_eq!(set.iter().collect::<Vec<_>>(), [(0, 4), (u64::MAX, u64::MAX)]);
    }

    #[test]
    fn parts_that_firmware_reserves_are_whole_pages_and_counted_once() {
        let range = |first, length| PhysRange::new(PhysAddr(first), length).unwrap();
        let region = |first, length| ReservedRegion {
            segment: 0,
            range: range(first, length),
            read: true,
            write: true,
            exclusion: false,
            scopes: Vec::new(),
            entries: Vec::new(),
        };
        // One byte is a page. The second and third overlap, the last adjoins.
        let regions = [
            region(0x2800, 1),
            region(0x8000, 0x4000),
            region(0xb000, 0x3000),
            region(0x1_4000, 0x1000),
        ];
        let parts = |memory: &[PhysRange]| reserved_parts(&regions, memory);
        assert_eq!(parts(&[range(0, 0x2000), range(0x3000, 0x5000)]), []);
        assert_eq!(parts(&[range(0, 0x1_0000)]), [range(0x2000, 0x1000), range(0x8000, 0x6000)]);
        let two = [range(0x9000, 0x1000), range(0xa000, 0x2000), range(0xf000, 0x5000)];
        assert_eq!(parts(&two), [range(0x9000, 0x3000)]);
        assert_eq!(parts(&[]), []);
        assert_eq!(reserved_parts(&[], &two), []);
    }

    #[test]
    fn pieces_have_a_top_and_addresses() {
        let piece = |first, last| Piece::identity((first, last), Access::READ).unwrap();
        assert_eq!((top_of(&[]), top_of(&[piece(0, 4095)])), (0, 4095));
        let some = [piece(4096, 8191), piece(0x5000, 0x8fff), piece(8192, 12287)];
        assert_eq!(top_of(&some), 0x8fff);
        let all = addresses(&some);
        assert_eq!(all.iter().collect::<Vec<_>>(), [(4096, 12287), (0x5000, 0x8fff)]);
        let mapped = identity([(0, 99), (50, 199), (500, 900)].into_iter(), 599);
        let shown = |piece: &Piece| (piece.range.first().0, piece.range.last().0, piece.access);
        assert_eq!(mapped.iter().map(shown).collect::<Vec<_>>(), [(0, 199, 3), (500, 599, 3)]);
    }

    proptest! {
        #[test]
        fn a_set_behaves_as_a_bitmap(actions in proptest::collection::vec((any::<bool>(), 0_u64..64, 0_u64..20), 1..40)) {
            let mut set = Ranges::default();
            let mut model = 0_u64;
            for (insert, first, length) in actions {
                let last = (first + length).min(63);
                let within: u64 = set.within(first, last).map(|(a, b)| span(a, b)).fold(0, |a, b| a | b);
                prop_assert_eq!(within, model & span(first, last));
                if insert {
                    set.insert(first, last);
                    model |= span(first, last);
                } else {
                    set.remove(first, last);
                    model &= !span(first, last);
                }
                prop_assert_eq!(bits(&set), model);
                let all: Vec<_> = set.iter().collect();
                prop_assert!(all.windows(2).all(|w| w[0].1 + 1 < w[1].0), "{:?}", all);
            }
        }

        #[test]
        fn differences_lead_from_one_to_the_other(
            from in proptest::collection::vec((0_u64..30, 0_u64..9, 1_u32..4), 0..6),
            to in proptest::collection::vec((0_u64..30, 0_u64..9, 1_u32..4), 0..6),
        ) {
            let pieces = |raw: &[(u64, u64, u32)]| -> Vec<Piece> {
                raw.iter().map(|(first, length, access)| Piece {
                    range: IovaRange::inclusive(Iova(*first), Iova(first + length)).unwrap(),
                    access: *access,
                }).collect()
            };
            let (from, to) = (pieces(&from), pieces(&to));
            let (enter, remove) = difference(&from, &to);
            for at in 0..40 {
                let (before, after) = (access_at(&from, at), access_at(&to, at));
                let (removed, entered) = (access_at(&remove, at), access_at(&enter, at));
                prop_assert_eq!(removed, if before == after { 0 } else { before });
                prop_assert_eq!(entered, if before == after { 0 } else { after });
            }
            let normal = normal(&to);
            prop_assert!(normal.windows(2).all(|w| w[0].range.last() < w[1].range.first()));
            prop_assert_eq!(difference(&normal, &to), (Vec::new(), Vec::new()));
        }
    }
}
