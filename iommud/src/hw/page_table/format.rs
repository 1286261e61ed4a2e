//! Common parts of all formats of tables: the geometry of levels and slots, and the meaning of entries.

use core::fmt;

use iommu_protocol::wire::Access;

use crate::addr::{Iova, IovaRange, PhysAddr};
use crate::hw::hal::{MemoryError, TableMemory};

/// Bit in the counter of a table that is never unlinked. It was the root, and entries of units may point to it, or it
/// is retained empty (`retain_tables`).
pub(super) const KEPT: u16 = 1 << 15;

/// Slots of a table.
pub(super) const SLOTS: usize = 512;

/// Bits of a physical address that an entry of any supported format holds.
pub(super) const PHYSICAL_BITS: u32 = 52;

/// The meaning of one entry of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PteSlot {
    /// Not present.
    Empty,
    /// Points to the table of the next lower level.
    Table(PhysAddr),
    /// Maps a page.
    Leaf {
        /// First byte of the page.
        phys: PhysAddr,
        /// Access of devices.
        access: Access,
    },
}

/// The format of page table entries. Levels count from 1 (entries that map 4 KiB). An empty slot is 0.
pub trait PteFormat {
    /// The entry at `level` (1: 4 KiB, 2: 2 MiB, 3: 1 GiB) that maps the page at `phys`, aligned to its size. The
    /// address is stored unshifted: the entry of a page further on is greater by the distance.
    fn leaf(phys: PhysAddr, access: Access, level: u8) -> u64;

    /// The entry at `level` (2 and up) that points to the table at `next`.
    fn table(next: PhysAddr, level: u8) -> u64;

    /// The meaning of an entry at `level`. A page over several slots begins at `phys`: see [`PteFormat::decode_at`].
    fn decode(entry: u64, level: u8) -> PteSlot;

    /// The bits of a leaf that make every access snoop; 0 where [`PteFormat::leaf`] has them already.
    const SNOOP: u64 = 0;

    /// The most slots of one page, as a power of two (0 to 8). Each slot holds the same entry.
    const MOST: u32 = 0;

    /// The entry at `level` that maps a page of 2^`power` slots at `phys`, aligned to its size.
    fn group(phys: PhysAddr, access: Access, level: u8, _power: u32) -> u64 {
        Self::leaf(phys, access, level)
    }

    /// Number of slots, as a power of two, of the page that a leaf at `level` maps; 0 for entries of other kinds.
    fn power(_entry: u64, _level: u8) -> u32 {
        0
    }

    /// Like [`PteFormat::decode`], for the part of a page that lies in slot `slot` (0 to 511).
    fn decode_at(entry: u64, level: u8, _slot: usize) -> PteSlot {
        Self::decode(entry, level)
    }
}

/// The reason why a page table did not change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapError {
    /// The page table would have fewer than 3 or more than 6 levels.
    Levels(u8),
    /// The range or the memory does not begin or end at a multiple of 4096.
    Unaligned {
        /// The range.
        range: IovaRange,
        /// The memory of its first byte.
        phys: PhysAddr,
    },
    /// The range is beyond the reach of the levels, or the memory beyond that of an entry.
    OutOfReach {
        /// The range.
        range: IovaRange,
        /// The memory of its first byte.
        phys: PhysAddr,
    },
    /// Neither reading nor writing is allowed. Such an entry would be an absent one.
    NoAccess,
    /// This address is mapped already.
    Overlap(Iova),
    /// No memory for a table.
    Memory(MemoryError),
}

impl From<MemoryError> for MapError {
    fn from(error: MemoryError) -> Self {
        Self::Memory(error)
    }
}

impl fmt::Display for MapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Levels(levels) => write!(f, "a page table cannot have {levels} levels"),
            Self::Unaligned { range, phys } => {
                write!(f, "{range:?} at {phys:?} is not whole pages")
            }
            Self::OutOfReach { range, phys } => {
                write!(f, "{range:?} at {phys:?} is beyond what the page table can translate")
            }
            Self::NoAccess => f.write_str("a mapping must allow reading or writing"),
            Self::Overlap(iova) => write!(f, "{iova:?} is mapped already"),
            Self::Memory(MemoryError::Exhausted) => f.write_str("no memory for a page table"),
            Self::Memory(MemoryError::Constraints) => {
                f.write_str("no memory for a page table that meets the constraints")
            }
            Self::Memory(MemoryError::Share) => f.write_str("the share of page tables is used up"),
        }
    }
}

/// Bits of an address below the ones that index a table at `level` (1 to 6).
pub(super) const fn shift(level: u8) -> u32 {
    3 + 9 * level as u32
}

/// Bytes that one slot of a table at `level` (1 to 6) translates.
pub(super) const fn slot_size(level: u8) -> u64 {
    1 << shift(level)
}

/// The last address that `levels` levels (3 to 6) translate.
pub(super) const fn last_of(levels: u8) -> u64 {
    match levels {
        0..=3 => (1 << 39) - 1,
        4 => (1 << 48) - 1,
        5 => (1 << 57) - 1,
        _ => u64::MAX,
    }
}

/// Index of the slot that translates `iova` in a table at `level`.
pub(super) const fn slot_of(iova: u64, level: u8) -> usize {
    ((iova >> shift(level)) & 511) as usize
}

/// A number of slots, at most 512, as [`TableMemory::live`] counts them.
pub(super) fn slot_count(slots: usize) -> u16 {
    u16::try_from(slots).unwrap_or(u16::MAX)
}

/// A page, found in a table at `level`.
#[derive(Clone, Copy)]
pub(super) struct Leaf {
    pub(super) phys: PhysAddr,
    pub(super) access: Access,
    pub(super) level: u8,
}

/// Frees a table at `level` and all tables below it.
pub(super) fn free_subtree<F: PteFormat, M: TableMemory>(
    memory: &mut M,
    table: PhysAddr,
    level: u8,
) {
    let live = core::mem::take(memory.live(table)) & !KEPT;
    let mut left = if level > 1 { live } else { 0 };
    for index in 0..SLOTS {
        if left == 0 {
            break;
        }
        match F::decode(memory.load(table, index), level) {
            PteSlot::Empty => continue,
            PteSlot::Table(next) => free_subtree::<F, M>(memory, next, level - 1),
            PteSlot::Leaf { .. } => {}
        }
        left -= 1;
    }
    memory.free(table, live == 0);
}

#[cfg(test)]
mod tests {
    use std::string::ToString;

    use super::*;
    use crate::hw::page_table::PageTable;
    use crate::hw::page_table::tests::format;
    use crate::hw::testing::TestMemory;
    use crate::hw::vtd::SecondStage;
    use crate::topology::capabilities::PageSizes;

    type Table = PageTable<SecondStage>;

    fn page(first: u64) -> IovaRange {
        IovaRange::new(Iova(first), 0x1000).unwrap()
    }

    #[test]
    fn each_level_translates_nine_bits_more() {
        assert_eq!(last_of(3), 0x7f_ffff_ffff);
        assert_eq!(last_of(4), 0xffff_ffff_ffff);
        assert_eq!(last_of(5), 0x1ff_ffff_ffff_ffff);
        assert_eq!(last_of(6), 0xffff_ffff_ffff_ffff);
        assert_eq!((slot_size(1), slot_size(2), slot_size(3)), (0x1000, 0x20_0000, 0x4000_0000));
    }

    /// VT-d entries are those of section 9.8: R 1, W 2, PS 0x80.
    #[test]
    fn a_format_without_larger_pages_has_one_slot_for_each() {
        let entry = SecondStage::group(PhysAddr(0x12_4020_0000), Access::all(), 2, 0);
        assert_eq!(entry, 0x12_4020_0083);
        assert_eq!(SecondStage::power(entry, 2), 0);
        let leaf = PteSlot::Leaf { phys: PhysAddr(0x12_4020_0000), access: Access::all() };
        assert_eq!(SecondStage::decode_at(entry, 2, 5), leaf);
    }

    #[test]
    fn errors_say_what_was_wrong() {
        let (range, phys) = (page(0x7000), PhysAddr(0x1800));
        for (error, text) in [
            (MapError::Levels(7), "a page table cannot have 7 levels"),
            (
                MapError::Unaligned { range, phys },
                "iova:0x7000..=0x7fff at phys:0x1800 is not whole pages",
            ),
            (
                MapError::OutOfReach { range, phys },
                "iova:0x7000..=0x7fff at phys:0x1800 is beyond what the page table can translate",
            ),
            (MapError::NoAccess, "a mapping must allow reading or writing"),
            (MapError::Overlap(Iova(0x7000)), "iova:0x7000 is mapped already"),
            (MapError::Memory(MemoryError::Exhausted), "no memory for a page table"),
            (
                MapError::Memory(MemoryError::Constraints),
                "no memory for a page table that meets the constraints",
            ),
            (MapError::Memory(MemoryError::Share), "the share of page tables is used up"),
        ] {
            assert_eq!(error.to_string(), text);
        }
    }

    /// Memory clears every other frame before it hands it out again.
    #[test]
    fn an_empty_table_is_given_back_as_zeros() {
        let mut memory = TestMemory::new();
        Table::new(&mut memory, format(3, PageSizes::SIZE_4K, true)).unwrap().destroy(&mut memory);
        assert_eq!((memory.frames_in_use(), memory.zero_frees), (0, 1));
        let mut table =
            Table::new(&mut memory, format(3, PageSizes::SIZE_4K, true)).unwrap().retain_tables();
        table.map(&mut memory, page(0x1000), PhysAddr(0x9000), Access::all()).unwrap();
        let mut detached = super::super::Detached::new();
        table.unmap(&mut memory, page(0x1000), &mut detached).unwrap();
        Table::release(&mut memory, &mut detached);
        table.destroy(&mut memory);
        // Of the three tables, the one of pages is empty.
        assert_eq!((memory.frames_in_use(), memory.zero_frees), (0, 2));
    }

    /// A table is read up to its last link, and a table of pages has none.
    #[test]
    fn freeing_reads_no_more_than_the_links() {
        let mut memory = TestMemory::new();
        let mut table = Table::new(&mut memory, format(3, PageSizes::SIZE_4K, true)).unwrap();
        for first in [0x0000, 0x5000, 0x60_0000] {
            table.map(&mut memory, page(first), PhysAddr(0x9000), Access::all()).unwrap();
        }
        memory.loads.set(0);
        table.destroy(&mut memory);
        // Slot 0 of the root, slots 0 to 3 of the table below.
        assert_eq!((memory.loads.get(), memory.frames_in_use(), memory.zero_frees), (5, 0, 0));
    }
}
