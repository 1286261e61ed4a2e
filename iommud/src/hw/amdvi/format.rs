//! The format of AMD-Vi's own page tables, for the shared walker.
//!
//! A leaf covers one slot of its table's level (Next Level 0: 4 KiB, 2 MiB, 1 GiB), or a size between two levels. A
//! leaf of a size between takes up to 256 equal entries (Next Level 7). Permissions are ANDed over all levels, so
//! links allow everything and leaves decide.

use iommu_protocol::wire::Access;

use super::spec::page;
use crate::addr::PhysAddr;
use crate::hw::page_table::{PteFormat, PteSlot};

/// Version 1 page tables of AMD-Vi (48882 section 2.2.3).
#[derive(Clone, Copy, Debug)]
pub struct AmdFormat;

/// The bits of a leaf with `access`. Every leaf has FC.
fn permissions(access: Access) -> u64 {
    let mut permissions = page::FORCE_COHERENT;
    if access.contains(Access::READ) {
        permissions |= page::READ;
    }
    if access.contains(Access::WRITE) {
        permissions |= page::WRITE;
    }
    permissions
}

/// Bytes that an entry at `level` covers, as a power of two.
const fn slot_bits(level: u8) -> u32 {
    3 + 9 * level as u32
}

impl PteFormat for AmdFormat {
    const MOST: u32 = 8;

    fn leaf(phys: PhysAddr, access: Access, _level: u8) -> u64 {
        page::entry(phys.0, page::LEAF, permissions(access))
    }

    fn group(phys: PhysAddr, access: Access, level: u8, power: u32) -> u64 {
        if power == 0 {
            return Self::leaf(phys, access, level);
        }
        let address = page::sized(phys.0, slot_bits(level) + power);
        page::entry(address, page::SIZED_LEAF, permissions(access))
    }

    fn table(next: PhysAddr, level: u8) -> u64 {
        page::entry(next.0, level.saturating_sub(1), page::READ | page::WRITE)
    }

    fn power(entry: u64, level: u8) -> u32 {
        if entry & page::PRESENT == 0 || page::next_level(entry) != page::SIZED_LEAF {
            return 0;
        }
        page::size_of(entry).0.saturating_sub(slot_bits(level)).min(Self::MOST)
    }

    fn decode(entry: u64, level: u8) -> PteSlot {
        if entry & page::PRESENT == 0 {
            return PteSlot::Empty;
        }
        let mut access = Access::empty();
        access.set(Access::READ, entry & page::READ != 0);
        access.set(Access::WRITE, entry & page::WRITE != 0);
        match page::next_level(entry) {
            page::LEAF => PteSlot::Leaf { phys: PhysAddr(page::address(entry)), access },
            page::SIZED_LEAF => match page::size_of(entry) {
                // Larger than one slot, smaller than the next level's.
                (bits, start) if (1..9).contains(&bits.wrapping_sub(slot_bits(level))) => {
                    PteSlot::Leaf { phys: PhysAddr(start), access }
                }
                _ => PteSlot::Empty,
            },
            next if next < level => PteSlot::Table(PhysAddr(page::address(entry))),
            _ => PteSlot::Empty,
        }
    }

    fn decode_at(entry: u64, level: u8, slot: usize) -> PteSlot {
        match Self::decode(entry, level) {
            PteSlot::Leaf { phys, access } => {
                let part = slot as u64 & ((1 << Self::power(entry, level)) - 1);
                PteSlot::Leaf { phys: PhysAddr(phys.0 | part << slot_bits(level)), access }
            }
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Access = Access::READ.union(Access::WRITE);

    // Linux amd_iommu_types.h: IOMMU_PTE_PR bit 0, PM_LEVEL_ENC bits 11:9, IOMMU_PTE_FC bit 60, IOMMU_PTE_IR bit 61,
    // IOMMU_PTE_IW bit 62; FreeBSD AMDIOMMU_PTE_PR, _NLVL_MASK 0xe00, _PA_MASK, _FC, _IR, _IW agree. A leaf of a
    // table at level n has Next Level 0, a link in a table at level n has Next Level n - 1 (PM_LEVEL_PDE).

    #[test]
    fn leaves() {
        let page = AmdFormat::leaf(PhysAddr(0x000f_edcb_a987_6000), ALL, 1);
        assert_eq!(page.to_le_bytes(), [0x01, 0x60, 0x87, 0xa9, 0xcb, 0xed, 0x0f, 0x70]);
        let read = AmdFormat::leaf(PhysAddr(0x2000_0000), Access::READ, 2);
        assert_eq!(read.to_le_bytes(), [0x01, 0, 0, 0x20, 0, 0, 0, 0x30]);
        let write = AmdFormat::leaf(PhysAddr(0x4000_0000), Access::WRITE, 3);
        assert_eq!(write.to_le_bytes(), [0x01, 0, 0, 0x40, 0, 0, 0, 0x50]);
    }

    #[test]
    fn links() {
        let expected = [
            (2, [0x01, 0x52, 0x34, 0x12, 0, 0, 0, 0x60]),
            (3, [0x01, 0x54, 0x34, 0x12, 0, 0, 0, 0x60]),
            (4, [0x01, 0x56, 0x34, 0x12, 0, 0, 0, 0x60]),
            (5, [0x01, 0x58, 0x34, 0x12, 0, 0, 0, 0x60]),
            (6, [0x01, 0x5a, 0x34, 0x12, 0, 0, 0, 0x60]),
        ];
        for (level, bytes) in expected {
            assert_eq!(AmdFormat::table(PhysAddr(0x1234_5000), level).to_le_bytes(), bytes);
        }
    }

    #[test]
    fn decoding() {
        let decode = |bytes: [u8; 8], level| AmdFormat::decode(u64::from_le_bytes(bytes), level);
        assert_eq!(decode([0; 8], 1), PteSlot::Empty);
        assert_eq!(decode([0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], 1), PteSlot::Empty);
        let leaf = |access| PteSlot::Leaf { phys: PhysAddr(0x2000_0000), access };
        assert_eq!(decode([0x01, 0, 0, 0x20, 0, 0, 0, 0x70], 1), leaf(ALL));
        // The unit's accessed and dirty bits do not matter.
        assert_eq!(decode([0x61, 0, 0, 0x20, 0, 0, 0, 0x30], 2), leaf(Access::READ));
        assert_eq!(decode([0x01, 0, 0, 0x20, 0, 0, 0, 0x40], 3), leaf(Access::WRITE));
        let link = PteSlot::Table(PhysAddr(0x1234_5000));
        assert_eq!(decode([0x01, 0x52, 0x34, 0x12, 0, 0, 0, 0x60], 2), link);
        assert_eq!(decode([0x01, 0x5a, 0x34, 0x12, 0, 0, 0, 0x60], 6), link);
        // A link that does not lead to a lower level is empty. So is a leaf of a size that its level does not have: 4
        // MiB, 8 KiB.
        assert_eq!(decode([0x01, 0xfe, 0x1f, 0x12, 0, 0, 0, 0x60], 1), PteSlot::Empty);
        assert_eq!(decode([0x01, 0x0e, 0x34, 0x12, 0, 0, 0, 0x60], 2), PteSlot::Empty);
        assert_eq!(decode([0x01, 0x54, 0x34, 0x12, 0, 0, 0, 0x60], 2), PteSlot::Empty);
    }

    /// 48882 table "Example Page Size Encodings", as for INVALIDATE_IOMMU_PAGES; Linux PAGE_SIZE_PTE and
    /// PAGE_SIZE_LEVEL, QEMU pte_override_page_mask: the lowest clear bit from bit 12 on, bit n, gives 2^(n+1)
    /// bytes. Next Level is 7: bits 11:9.
    #[test]
    fn sizes_between_levels() {
        let at =
            |phys, level, power| AmdFormat::group(PhysAddr(phys), ALL, level, power).to_le_bytes();
        // 8 KiB: bit 12 clear. 64 KiB: bits 14:12 set. 1 MiB: bits 18:12 set.
        assert_eq!(at(0x1234_4000, 1, 1), [0x01, 0x4e, 0x34, 0x12, 0, 0, 0, 0x70]);
        assert_eq!(at(0x1234_0000, 1, 4), [0x01, 0x7e, 0x34, 0x12, 0, 0, 0, 0x70]);
        assert_eq!(at(0x1230_0000, 1, 8), [0x01, 0xfe, 0x37, 0x12, 0, 0, 0, 0x70]);
        // 4 MiB: bits 20:12 set. 512 MiB: bits 27:12 set. 2 GiB: bits 29:12 set.
        assert_eq!(at(0x1240_0000, 2, 1), [0x01, 0xfe, 0x5f, 0x12, 0, 0, 0, 0x70]);
        assert_eq!(at(0x2000_0000, 2, 8), [0x01, 0xfe, 0xff, 0x2f, 0, 0, 0, 0x70]);
        assert_eq!(at(0x1_8000_0000, 3, 1), [0x01, 0xfe, 0xff, 0xbf, 0x01, 0, 0, 0x70]);
        // Slot 0x25 of a table of 4 KiB pages is the sixth slot of a 64 KiB page.
        let entry = u64::from_le_bytes([0x01, 0x7e, 0x34, 0x12, 0, 0, 0, 0x30]);
        let part = PteSlot::Leaf { phys: PhysAddr(0x1234_5000), access: Access::READ };
        assert_eq!(AmdFormat::decode_at(entry, 1, 0x25), part);
        assert_eq!((AmdFormat::power(entry, 1), AmdFormat::power(entry, 2)), (4, 0));
        // An entry that is not present maps nothing, whatever its other bits say.
        assert_eq!(AmdFormat::power(entry & !1, 1), 0);
        assert_eq!(AmdFormat::decode_at(entry & !1, 1, 0x25), PteSlot::Empty);
        // A leaf of one slot begins at its own address, whatever its slot.
        let one = u64::from_le_bytes([0x01, 0x00, 0x34, 0x12, 0, 0, 0, 0x30]);
        let page = PteSlot::Leaf { phys: PhysAddr(0x1234_0000), access: Access::READ };
        assert_eq!((AmdFormat::decode_at(one, 1, 0x1ff), AmdFormat::power(one, 1)), (page, 0));
        let link = u64::from_le_bytes([0x01, 0x52, 0x34, 0x12, 0, 0, 0, 0x60]);
        assert_eq!(AmdFormat::decode_at(link, 2, 7), PteSlot::Table(PhysAddr(0x1234_5000)));
    }
}
