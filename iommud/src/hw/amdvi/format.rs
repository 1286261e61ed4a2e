//! The format of AMD-Vi's own page tables, for the shared walker.
//!
//! Leaves have the size of their table's level (Next Level 0): 4 KiB, 2 MiB, 1 GiB. The sizes between, which
//! take several equal entries that must change together (Next Level 7), are not used: a unit may merge
//! neighbouring 4 KiB translations by itself, and the walker would have to rewrite up to 256 entries to split
//! one. Permissions are ANDed over all levels, so links allow everything and leaves decide.

use iommu_protocol::wire::Access;

use super::spec::page;
use crate::addr::PhysAddr;
use crate::hw::radix::{PteFormat, PteSlot};

/// Version 1 page tables of AMD-Vi (48882 section 2.2.3).
#[derive(Clone, Copy, Debug)]
pub struct AmdFormat;

impl PteFormat for AmdFormat {
    fn leaf(phys: PhysAddr, access: Access, _level: u8) -> u64 {
        let mut permissions = page::FORCE_COHERENT;
        if access.contains(Access::READ) {
            permissions |= page::READ;
        }
        if access.contains(Access::WRITE) {
            permissions |= page::WRITE;
        }
        page::entry(phys.0, page::LEAF, permissions)
    }

    fn table(next: PhysAddr, level: u8) -> u64 {
        page::entry(next.0, level.saturating_sub(1), page::READ | page::WRITE)
    }

    fn decode(entry: u64, level: u8) -> PteSlot {
        if entry & page::PRESENT == 0 {
            return PteSlot::Empty;
        }
        match page::next_level(entry) {
            page::LEAF => {
                let mut access = Access::empty();
                access.set(Access::READ, entry & page::READ != 0);
                access.set(Access::WRITE, entry & page::WRITE != 0);
                PteSlot::Leaf { phys: PhysAddr(page::address(entry)), access }
            }
            next if next < level => PteSlot::Table(PhysAddr(page::address(entry))),
            _ => PteSlot::Empty,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Access = Access::READ.union(Access::WRITE);

    // Linux amd_iommu_types.h: IOMMU_PTE_PR bit 0, PM_LEVEL_ENC bits 11:9, IOMMU_PTE_FC bit 60, IOMMU_PTE_IR
    // bit 61, IOMMU_PTE_IW bit 62; FreeBSD AMDIOMMU_PTE_* agree. A leaf of a table at level n has Next Level
    // 0, a link in a table at level n has Next Level n - 1 (PM_LEVEL_PDE).

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
        // A link that does not lead down is none, nor is a leaf of an encoded size.
        assert_eq!(decode([0x01, 0x0e, 0x34, 0x12, 0, 0, 0, 0x60], 1), PteSlot::Empty);
        assert_eq!(decode([0x01, 0x54, 0x34, 0x12, 0, 0, 0, 0x60], 2), PteSlot::Empty);
    }
}
