//! Memory of buffers: its segments, its granted pages, and the buffer that has it.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use crate::addr::{IovaRange, PhysAddr, PhysRange};
use crate::policy::ids::BufferId;

/// The memory of a buffer, in order.
#[derive(Clone, Debug)]
pub(in crate::policy) enum Memory {
    One(PhysRange),
    /// Segments, each with the offset of its first byte.
    Many(Vec<(u64, PhysRange)>),
}

/// Addresses reserved for a buffer, and the pages of it that are granted.
#[derive(Clone, Debug)]
pub(in crate::policy) struct Grants {
    pub(in crate::policy) range: IovaRange,
    pages: Vec<u64>,
}

impl Memory {
    pub(in crate::policy) fn new(segments: &[PhysRange]) -> Option<Self> {
        if let [one] = segments {
            return Some(Self::One(*one));
        }
        let mut offset = 0_u64;
        let mut many = Vec::with_capacity(segments.len());
        for segment in segments {
            many.push((offset, *segment));
            offset = offset.checked_add(segment.length())?;
        }
        Some(Self::Many(many))
    }

    /// Passes the consecutive memory behind a part of the buffer to `sink`, piece by piece: offset in the part, first
    /// address, length.
    #[inline]
    pub(in crate::policy) fn pieces(
        &self,
        offset: u64,
        length: u64,
        mut sink: impl FnMut(u64, PhysAddr, u64),
    ) {
        match self {
            Self::One(range) => sink(0, PhysAddr(range.first().0 + offset), length),
            Self::Many(many) => {
                let end = offset + length;
                let from = many.partition_point(|(at, range)| at + range.length() <= offset);
                for (at, range) in many.get(from..).unwrap_or_default() {
                    if *at >= end {
                        break;
                    }
                    let first = offset.max(*at);
                    let last = end.min(at + range.length());
                    sink(first - offset, PhysAddr(range.first().0 + (first - at)), last - first);
                }
            }
        }
    }

    /// First address of the memory, if it is in one piece.
    pub(in crate::policy) const fn base(&self) -> Option<PhysAddr> {
        match self {
            Self::One(range) => Some(range.first()),
            Self::Many(_) => None,
        }
    }

    pub(in crate::policy) fn segments(&self) -> impl Iterator<Item = PhysRange> + '_ {
        let (one, many) = match self {
            Self::One(range) => (Some(*range), &[][..]),
            Self::Many(many) => (None, many.as_slice()),
        };
        one.into_iter().chain(many.iter().map(|(_, range)| *range))
    }
}

impl Grants {
    pub(in crate::policy) fn new(range: IovaRange) -> Self {
        let pages = usize::try_from((range.length() >> 12).div_ceil(64)).unwrap_or(0);
        Self { range, pages: alloc::vec![0; pages] }
    }

    /// The words in which a part of the buffer has bits, each with a mask of these bits.
    fn words(offset: u64, length: u64) -> impl Iterator<Item = (usize, u64)> {
        let (first, end) = (offset >> 12, (offset + length) >> 12);
        (first / 64..end.div_ceil(64)).filter_map(move |word| {
            let low = first.saturating_sub(word * 64).min(63);
            let high = (end - word * 64).min(64);
            let mask = (u64::MAX << low) & (u64::MAX >> (64 - high));
            Some((usize::try_from(word).ok()?, mask))
        })
    }

    /// Whether no page of a part is granted.
    pub(in crate::policy) fn is_free(&self, offset: u64, length: u64) -> bool {
        Self::words(offset, length)
            .all(|(word, mask)| self.pages.get(word).is_some_and(|bits| bits & mask == 0))
    }

    /// Marks the pages of a part as granted or not.
    pub(in crate::policy) fn set(&mut self, offset: u64, length: u64, granted: bool) {
        for (word, mask) in Self::words(offset, length) {
            if let Some(bits) = self.pages.get_mut(word) {
                *bits = if granted { *bits | mask } else { *bits & !mask };
            }
        }
    }
}

/// All ranges of memory, for quick checks of overlap.
#[derive(Clone, Debug, Default)]
pub(in crate::policy) struct MemoryMap {
    /// By first byte: last byte and buffer.
    ranges: BTreeMap<u64, (u64, BufferId)>,
}

impl MemoryMap {
    pub(in crate::policy) fn insert(&mut self, range: PhysRange, buffer: BufferId) {
        self.ranges.insert(range.first().0, (range.last().0, buffer));
    }

    pub(in crate::policy) fn remove(&mut self, range: PhysRange) {
        self.ranges.remove(&range.first().0);
    }

    /// All buffers with memory from `first` to `last` (inclusive).
    pub(in crate::policy) fn within(
        &self,
        first: u64,
        last: u64,
    ) -> impl Iterator<Item = BufferId> {
        let before = self.ranges.range(..first).next_back().filter(|(_, (end, _))| *end >= first);
        before.into_iter().chain(self.ranges.range(first..=last)).map(|(_, (_, buffer))| *buffer)
    }

    /// A buffer with memory from `first` to `last` (inclusive).
    pub(in crate::policy) fn overlapping(&self, first: u64, last: u64) -> Option<BufferId> {
        let (_, (end, buffer)) = self.ranges.range(..=last).next_back()?;
        (*end >= first).then_some(*buffer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::Iova;

    fn phys(first: u64, length: u64) -> PhysRange {
        PhysRange::new(PhysAddr(first), length).unwrap()
    }

    #[test]
    fn memory_is_cut_where_segments_end() {
        let memory = Memory::new(&[phys(0x10000, 0x2000), phys(0x50000, 0x1000), phys(0, 0x1000)]);
        let pieces = |offset, length| {
            let mut all = Vec::new();
            memory.as_ref().unwrap().pieces(offset, length, |at, phys, length| {
                all.push((at, phys.0, length));
            });
            all
        };
        assert_eq!(
            pieces(0, 0x4000),
            [(0, 0x10000, 0x2000), (0x2000, 0x50000, 0x1000), (0x3000, 0, 0x1000)]
        );
        assert_eq!(pieces(0x1000, 0x2000), [(0, 0x11000, 0x1000), (0x1000, 0x50000, 0x1000)]);
        assert_eq!(pieces(0x3000, 0x1000), [(0, 0, 0x1000)]);
    }

    #[test]
    fn memory_in_one_piece_is_never_cut() {
        let memory = Memory::new(&[phys(0x10000, 0x4000)]).unwrap();
        let pieces = |offset, length| {
            let mut all = Vec::new();
            memory.pieces(offset, length, |at, phys, length| all.push((at, phys.0, length)));
            all
        };
        assert_eq!(pieces(0, 0x4000), [(0, 0x10000, 0x4000)]);
        assert_eq!(pieces(0x1000, 0x2000), [(0, 0x11000, 0x2000)]);
        assert_eq!(memory.base(), Some(PhysAddr(0x10000)));
        let two = Memory::new(&[phys(0x10000, 0x1000), phys(0x20000, 0x1000)]).unwrap();
        assert_eq!(two.base(), None);
        let segments = |memory: &Memory| memory.segments().collect::<Vec<_>>();
        assert_eq!(segments(&memory), [phys(0x10000, 0x4000)]);
        assert_eq!(segments(&two), [phys(0x10000, 0x1000), phys(0x20000, 0x1000)]);
    }

    #[test]
    fn grants_do_not_overlap() {
        let mut grants = Grants::new(IovaRange::new(Iova(0x1000), 200 << 12).unwrap());
        grants.set(60 << 12, 10 << 12, true);
        assert!(!grants.is_free(69 << 12, 1 << 12) && grants.is_free(70 << 12, 130 << 12));
        assert!(grants.is_free(0, 60 << 12) && !grants.is_free(0, 200 << 12));
        grants.set(69 << 12, 2 << 12, true);
        assert!(!grants.is_free(69 << 12, 1 << 12) && !grants.is_free(70 << 12, 1 << 12));
        grants.set(70 << 12, 1 << 12, false);
        grants.set(60 << 12, 10 << 12, false);
        assert!(grants.is_free(0, 200 << 12));
    }

    #[test]
    fn overlapping_memory_is_noticed() {
        let mut map = MemoryMap::default();
        map.insert(phys(0x2000, 0x2000), BufferId(1));
        assert_eq!(map.overlapping(0, 0x1fff), None);
        assert_eq!(map.overlapping(0, 0x2000), Some(BufferId(1)));
        assert_eq!(map.overlapping(0x3fff, 0x9000), Some(BufferId(1)));
        assert_eq!(map.overlapping(0x4000, 0x9000), None);
    }
}
