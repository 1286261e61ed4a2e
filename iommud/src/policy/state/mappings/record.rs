//! Records: mappings in packed form, linked into the list of their slot.

use iommu_protocol::wire::Access;

use super::place::{NONE, PAGE_MASK, Place};
use crate::addr::{Iova, IovaRange, PAGE_SIZE};

/// Records that are allocated together, so that growing never moves one.
pub(super) const CHUNK: usize = 256;
pub(super) const GRANT: u32 = 1 << 30;
pub(super) const ACCESS_SHIFT: u32 = 28;
pub(super) const LIST: u32 = 1 << 27;

/// Number of a mapping in its table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::policy) struct MappingIndex(pub(super) u32);

/// A mapping, unpacked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::policy) struct Mapping {
    /// The addresses that devices use.
    pub(in crate::policy) range: IovaRange,
    /// Index of the slot of the buffer it maps.
    pub(in crate::policy) slot: u32,
    /// First byte in the buffer.
    pub(in crate::policy) offset: u64,
    /// Access of devices.
    pub(in crate::policy) access: Access,
    /// Made by a grant: ended by a revoke.
    pub(in crate::policy) grant: bool,
    /// Its pages lie anywhere in the buffer, so `offset` means nothing.
    pub(in crate::policy) list: bool,
}

impl Mapping {
    /// Number of mappings that it is charged as.
    pub(in crate::policy) fn charge(&self) -> u32 {
        if self.list { page_number(self.range.length()) } else { 1 }
    }
}

/// A number of bytes, at most 2^43, in pages.
#[inline]
pub(super) fn page_number(bytes: u64) -> u32 {
    u32::try_from((bytes / PAGE_SIZE) & u64::from(u32::MAX)).unwrap_or(PAGE_MASK)
}

/// The mappings of one slot, oldest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::policy) struct MappingList {
    pub(super) first: u32,
    pub(super) last: u32,
    /// Number of mappings.
    pub(in crate::policy) count: u32,
    /// Number of mappings that they are charged as.
    pub(in crate::policy) charged: u32,
}

impl Default for MappingList {
    fn default() -> Self {
        Self { first: NONE, last: NONE, count: 0, charged: 0 }
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Record {
    /// First page, and flags in the upper bits.
    pub(super) page: u32,
    pub(super) pages: u32,
    pub(super) slot: u32,
    pub(super) offset: u32,
    pub(super) previous: u32,
    /// The next of the list; in a free record, the next free one.
    pub(super) next: u32,
}

const _: () = assert!(size_of::<Record>() == 24);

/// A record that was never used.
pub(super) const UNUSED: Record =
    Record { page: 0, pages: 0, slot: NONE, offset: 0, previous: NONE, next: NONE };

impl Record {
    /// Like [`Mapping::charge`].
    pub(super) const fn charge(&self) -> u32 {
        if self.page & LIST != 0 { self.pages } else { 1 }
    }

    /// The place in the index that has its number.
    pub(super) fn place(&self) -> Place {
        Place::new(self.page & PAGE_MASK, self.pages)
    }

    #[inline]
    pub(super) fn unpack(&self) -> Option<Mapping> {
        let first = Iova(u64::from(self.page & PAGE_MASK) * PAGE_SIZE);
        Some(Mapping {
            range: IovaRange::new(first, u64::from(self.pages) * PAGE_SIZE)?,
            slot: self.slot,
            offset: u64::from(self.offset) * PAGE_SIZE,
            access: Access::from_bits_truncate(self.page >> ACCESS_SHIFT & 3),
            grant: self.page & GRANT != 0,
            list: self.page & LIST != 0,
        })
    }
}

/// A quarter of this many records.
pub(super) fn threshold(records: usize) -> u32 {
    u32::try_from(records / 4).unwrap_or(0)
}
