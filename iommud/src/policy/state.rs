//! The objects of the registry.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use iommu_protocol::ids::{PciAddress, Slot};
use iommu_protocol::wire::Access;

use crate::addr::{IovaRange, PhysAddr, PhysRange};
use crate::policy::config::Mode;
use crate::policy::few::Few;
use crate::policy::ids::{BufferId, ClientId, DomainId, GroupId, SessionId, UnitIndex};
use crate::policy::mappings::{MappingList, Mappings};
use crate::policy::plan::Binding;
use crate::policy::ranges::{Piece, Ranges};
use crate::policy::space::Space;
use crate::topology::alias::Aliases;
use crate::topology::capabilities::{DomainTag, TableFormat, UnitCapabilities};
use crate::topology::table::FunctionIndex;

/// One unit.
#[derive(Clone, Debug)]
pub(super) enum Unit {
    /// Known from the table.
    Parsed,
    /// Translating.
    Enabled {
        capabilities: UnitCapabilities,
        /// Index of its class.
        class: usize,
    },
    /// Not to be relied on.
    Failed,
}

/// A domain of policy, for a class of units.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Shared {
    /// All memory that policy `compat` maps.
    Compat(usize),
    /// Just these pieces.
    Reserved(usize, Vec<Piece>),
}

impl Shared {
    /// The class.
    pub(super) const fn class(&self) -> usize {
        match self {
            Self::Compat(class) | Self::Reserved(class, _) => *class,
        }
    }
}

/// What policy knows of a function, beside what the walk found. A machine may have 65,536 and more.
#[derive(Clone, Debug)]
pub(super) struct Function {
    pub(super) group: GroupId,
    pub(super) unit: Option<UnitIndex>,
    pub(super) aliases: Aliases,
    pub(super) mode: Mode,
    pub(super) session: Option<SessionId>,
    pub(super) attached: bool,
    /// Added to a claimed group: blocked until the group is free, unless attached.
    pub(super) late: bool,
    /// Its session ended while it was attached: what it was told to do may be under way, with addresses of
    /// a domain that is gone. Its group is blocked until it was attached again and detached.
    pub(super) cut: bool,
}

/// The entry of one requester id in one unit.
#[derive(Clone, Debug)]
pub(super) struct Source {
    /// Functions whose requests may carry it. Members of one group.
    pub(super) users: Few<FunctionIndex>,
    pub(super) binding: Binding,
    /// Its faults are not reported.
    pub(super) silenced: bool,
}

/// One isolation group.
#[derive(Clone, Debug, Default)]
pub(super) struct Group {
    pub(super) members: Few<FunctionIndex>,
    pub(super) owner: Option<OwnerId>,
    /// Open sessions on members, those on members that are gone included.
    pub(super) sessions: u32,
    /// Members attached.
    pub(super) attached: u32,
    /// Members cut off.
    pub(super) cut: u32,
    /// A member was removed while the group was claimed: it may fall apart when it is free.
    pub(super) stale: bool,
}

/// Who holds groups: a first session and those opened under it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct OwnerId(pub(super) u32);

#[derive(Clone, Debug)]
pub(super) struct Owner {
    pub(super) client: u32,
    /// The domain of all its devices behind units.
    pub(super) domain: Option<DomainId>,
    pub(super) sessions: u32,
    pub(super) groups: Vec<GroupId>,
}

/// An open session.
#[derive(Clone, Debug)]
pub(super) struct Session {
    pub(super) address: PciAddress,
    pub(super) generation: u32,
    /// `None` when the device is gone.
    pub(super) function: Option<FunctionIndex>,
    pub(super) group: GroupId,
    pub(super) owner: OwnerId,
    /// Number of its client's account.
    pub(super) client: u32,
    pub(super) unit: Option<UnitIndex>,
    /// `None` when no unit confines the device.
    pub(super) domain: Option<DomainId>,
    /// Number of the slot record, by slot.
    pub(super) slots: Vec<Option<u32>>,
}

/// What a domain is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// All memory, for a class of units.
    Compat,
    /// Regions that firmware reserves, for devices of policy `strict`.
    Reserved,
    /// An owner's.
    Client,
}

/// One I/O address space.
#[derive(Clone, Debug)]
pub(super) struct Domain {
    pub(super) purpose: Purpose,
    pub(super) tag: DomainTag,
    pub(super) shape: Shape,
    pub(super) space: Space,
    pub(super) mappings: Mappings,
    /// What is mapped one to one for firmware, without overlap.
    pub(super) reserved: Vec<Piece>,
    /// Units with entries that point here, and how many.
    pub(super) active: Vec<(UnitIndex, u32)>,
    /// A unit failed that may still use it: nothing it maps or mapped can be proved unreachable.
    pub(super) tainted: bool,
}

/// DMA memory.
#[derive(Clone, Debug)]
pub(super) struct Buffer {
    pub(super) client: u32,
    pub(super) length: u64,
    pub(super) memory: Memory,
    /// Parts that policy `compat` mapped before, to be given back to it.
    pub(super) taken: Vec<(u64, u64)>,
    /// Sessions that know it.
    pub(super) slots: u32,
    /// Open handles.
    pub(super) holds: u32,
    /// A unit that failed may still reach it: never freed.
    pub(super) unproved: bool,
}

/// The memory of a buffer, in order.
#[derive(Clone, Debug)]
pub(super) enum Memory {
    One(PhysRange),
    /// Each with the offset of its first byte.
    Many(Vec<(u64, PhysRange)>),
}

/// A buffer as one session knows it.
#[derive(Clone, Debug)]
pub(super) struct SlotRecord {
    pub(super) session: SessionId,
    pub(super) number: Slot,
    pub(super) buffer: BufferId,
    /// Length of the buffer, and where its memory begins if it is in one piece: neither ever changes.
    pub(super) length: u64,
    pub(super) base: Option<PhysAddr>,
    pub(super) mappings: MappingList,
    /// The addresses reserved for grants.
    pub(super) granted: Option<Grants>,
    /// Without a unit: what is in use, by first byte and length, and how many times.
    pub(super) direct: BTreeMap<(u64, u64), u32>,
}

/// Addresses reserved for a buffer, and which of its pages are granted.
#[derive(Clone, Debug)]
pub(super) struct Grants {
    pub(super) range: IovaRange,
    pages: Vec<u64>,
}

/// What a client uses.
#[derive(Clone, Debug)]
pub(super) struct Account {
    pub(super) client: ClientId,
    pub(super) memory: u64,
    pub(super) mappings: u32,
    pub(super) sessions: u32,
    pub(super) buffers: u32,
    pub(super) domains: u32,
}

/// Domain tags in use.
#[derive(Clone, Debug)]
pub(super) struct Tags {
    used: Vec<u64>,
}

impl Memory {
    pub(super) fn new(segments: &[PhysRange]) -> Option<Self> {
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

    /// Tells `sink` the consecutive memory behind a part of the buffer, piece by piece: offset in the part, first
    /// address, length.
    #[inline(always)]
    pub(super) fn pieces(
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

    /// Where all of it begins, if it is in one piece.
    pub(super) const fn base(&self) -> Option<PhysAddr> {
        match self {
            Self::One(range) => Some(range.first()),
            Self::Many(_) => None,
        }
    }

    /// Where `length` bytes from `offset` on begin, if they follow each other. They are the buffer's.
    #[inline(never)]
    pub(super) fn contiguous(&self, offset: u64, length: u64) -> Option<PhysAddr> {
        let mut found = None;
        self.pieces(offset, length, |at, phys, piece| {
            if at == 0 && piece == length {
                found = Some(phys);
            }
        });
        found
    }

    pub(super) fn segments(&self) -> impl Iterator<Item = PhysRange> + '_ {
        let (one, many) = match self {
            Self::One(range) => (Some(*range), &[][..]),
            Self::Many(many) => (None, many.as_slice()),
        };
        one.into_iter().chain(many.iter().map(|(_, range)| *range))
    }
}

impl Grants {
    pub(super) fn new(range: IovaRange) -> Self {
        let pages = usize::try_from((range.length() >> 12).div_ceil(64)).unwrap_or(0);
        Self { range, pages: alloc::vec![0; pages] }
    }

    /// The words that a part of the buffer touches, each with the bits in it.
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
    pub(super) fn is_free(&self, offset: u64, length: u64) -> bool {
        Self::words(offset, length)
            .all(|(word, mask)| self.pages.get(word).is_some_and(|bits| bits & mask == 0))
    }

    /// Marks the pages of a part as granted or not.
    pub(super) fn set(&mut self, offset: u64, length: u64, granted: bool) {
        for (word, mask) in Self::words(offset, length) {
            if let Some(bits) = self.pages.get_mut(word) {
                *bits = if granted { *bits | mask } else { *bits & !mask };
            }
        }
    }
}

impl Domain {
    /// Gives memory back that records of mappings and addresses no longer need.
    #[inline]
    pub(super) fn shrink(&mut self) {
        if self.mappings.len() == 0 {
            self.mappings.tidy();
            self.space.shrink();
        }
    }

    /// Notes one entry more or less of a unit.
    pub(super) fn count_entry(&mut self, unit: UnitIndex, more: bool) {
        let at = self.active.iter().position(|(known, _)| *known == unit);
        match at {
            None if more => self.active.push((unit, 1)),
            Some(at) => {
                if let Some((_, count)) = self.active.get_mut(at) {
                    *count = if more { *count + 1 } else { *count - 1 };
                    if *count == 0 {
                        self.active.remove(at);
                    }
                }
            }
            None => {}
        }
    }
}

/// What a domain is made of, and the addresses it can hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) format: TableFormat,
    /// Bits of memory addresses.
    pub(super) physical_bits: u8,
    /// Bits of I/O virtual addresses that every unit lets through.
    pub(super) iova_bits: u8,
}

impl Shape {
    /// Last I/O virtual address.
    pub(super) fn last_iova(&self) -> u64 {
        last_of(self.iova_bits.min(12 + 9 * self.format.levels))
    }

    /// Last address of memory.
    pub(super) const fn last_memory(&self) -> u64 {
        last_of(self.physical_bits)
    }

    /// Last address that can be mapped to itself.
    pub(super) fn reach(&self) -> u64 {
        self.last_iova().min(self.last_memory())
    }
}

/// Last address of so many bits.
const fn last_of(bits: u8) -> u64 {
    if bits >= 64 { u64::MAX } else { (1 << bits) - 1 }
}

impl Account {
    pub(super) const fn new(client: ClientId) -> Self {
        Self { client, memory: 0, mappings: 0, sessions: 0, buffers: 0, domains: 0 }
    }

    /// Nothing is charged to it.
    pub(super) const fn is_idle(&self) -> bool {
        self.sessions == 0 && self.buffers == 0 && self.memory == 0
    }
}

impl Tags {
    /// All free but 0, which is never used, and the one for requests that go through untranslated.
    pub(super) fn new() -> Self {
        Self { used: alloc::vec![0b11] }
    }

    /// The lowest free tag after `after`, not above `last`.
    pub(super) fn next(&self, after: Option<DomainTag>, last: u16) -> Option<DomainTag> {
        let mut tag = after.map_or(0, |tag| u32::from(tag.0) + 1);
        while tag <= u32::from(last) {
            let word = self.used.get(tag as usize / 64).copied().unwrap_or(0) >> (tag % 64);
            if word & 1 == 0 {
                return u16::try_from(tag).ok().map(DomainTag);
            }
            tag += word.trailing_ones();
        }
        None
    }

    pub(super) fn set(&mut self, tag: DomainTag, used: bool) {
        let at = usize::from(tag.0) / 64;
        if self.used.len() <= at {
            self.used.resize(at + 1, 0);
        }
        if let Some(word) = self.used.get_mut(at) {
            let bit = 1 << (tag.0 % 64);
            *word = if used { *word | bit } else { *word & !bit };
        }
    }
}

/// All ranges of memory, for quick checks of overlap.
#[derive(Clone, Debug, Default)]
pub(super) struct MemoryMap {
    /// By first byte: last byte and buffer.
    ranges: BTreeMap<u64, (u64, BufferId)>,
}

impl MemoryMap {
    pub(super) fn insert(&mut self, range: PhysRange, buffer: BufferId) {
        self.ranges.insert(range.first().0, (range.last().0, buffer));
    }

    pub(super) fn remove(&mut self, range: PhysRange) {
        self.ranges.remove(&range.first().0);
    }

    /// A buffer that has a byte between these two.
    pub(super) fn overlapping(&self, first: u64, last: u64) -> Option<BufferId> {
        let (_, (end, buffer)) = self.ranges.range(..=last).next_back()?;
        (*end >= first).then_some(*buffer)
    }
}

/// A set of addresses with one access.
pub(super) fn read_write() -> Access {
    Access::READ | Access::WRITE
}

/// Whole pages around a range.
pub(super) fn insert_pages(set: &mut Ranges, range: PhysRange) {
    let range = range.page_aligned();
    set.insert(range.first().0, range.last().0);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::Iova;
    use crate::topology::capabilities::PageSizes;

    fn phys(first: u64, length: u64) -> PhysRange {
        PhysRange::new(PhysAddr(first), length).unwrap()
    }

    #[test]
    fn what_there_is_of_every_function_is_small() {
        let sizes = [size_of::<Option<Function>>(), size_of::<Source>(), size_of::<Group>()];
        assert_eq!(sizes, [32, 32, 40]);
        assert_eq!(size_of::<Option<Source>>() + size_of::<Option<Group>>(), 32 + 40);
    }

    #[test]
    fn tags_begin_after_the_ones_that_are_never_given() {
        let mut tags = Tags::new();
        assert_eq!(tags.next(None, 255), Some(DomainTag(2)));
        for tag in 2..130 {
            tags.set(DomainTag(tag), true);
        }
        assert_eq!(tags.next(None, 255), Some(DomainTag(130)));
        assert_eq!(tags.next(Some(DomainTag(130)), 255), Some(DomainTag(131)));
        assert_eq!(tags.next(None, 129), None);
        tags.set(DomainTag(64), false);
        assert_eq!(tags.next(None, 129), Some(DomainTag(64)));
        assert_eq!(tags.next(Some(DomainTag(u16::MAX)), u16::MAX), None);
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
    fn grants_do_not_overlap() {
        let mut grants = Grants::new(IovaRange::new(Iova(0x1000), 200 << 12).unwrap());
        grants.set(60 << 12, 10 << 12, true);
        assert!(!grants.is_free(69 << 12, 1 << 12) && grants.is_free(70 << 12, 130 << 12));
        assert!(grants.is_free(0, 60 << 12) && !grants.is_free(0, 200 << 12));
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

    #[test]
    fn reach_is_what_levels_and_memory_allow() {
        let shape = |levels, physical_bits, iova_bits| Shape {
            format: TableFormat { levels, page_sizes: PageSizes::SIZE_4K, coherent: true },
            physical_bits,
            iova_bits,
        };
        assert_eq!(shape(3, 46, 48).reach(), (1 << 39) - 1);
        assert_eq!(shape(4, 39, 48).reach(), (1 << 39) - 1);
        assert_eq!(shape(4, 46, 36).reach(), (1 << 36) - 1);
        assert_eq!(shape(6, 64, 64).reach(), u64::MAX);
        assert_eq!(shape(3, 46, 48).last_memory(), (1 << 46) - 1);
    }
}
