//! Second-stage paging entries (section 9.8).

use iommu_protocol::wire::Access;

use super::ADDRESS;
use crate::addr::PhysAddr;
use crate::hw::page_table::{PteFormat, PteSlot};

/// R: reads are allowed. An entry with R and W clear is not present.
const READ: u64 = 1 << 0;
/// W: writes are allowed.
const WRITE: u64 = 1 << 1;
/// PS: the entry maps a page, at levels 2 and 3. At level 1 the bit is ignored; it stays 0.
const PAGE_SIZE: u64 = 1 << 7;
/// SNP: accesses snoop caches, also those that ask not to. Reserved without ECAP.SC, and in entries that point to
/// tables.
const SNOOP: u64 = 1 << 11;
/// The format of second-stage entries in legacy mode. XD and the memory type fields stay 0.
#[derive(Debug)]
pub enum SecondStage {}

impl PteFormat for SecondStage {
    const SNOOP: u64 = SNOOP;

    fn leaf(phys: PhysAddr, access: Access, level: u8) -> u64 {
        let size = if level > 1 { PAGE_SIZE } else { 0 };
        let read = if access.contains(Access::READ) { READ } else { 0 };
        let write = if access.contains(Access::WRITE) { WRITE } else { 0 };
        phys.0 & ADDRESS | size | read | write
    }

    fn table(next: PhysAddr, _level: u8) -> u64 {
        // The rights of all levels are ANDed, so the leaf decides.
        next.0 & ADDRESS | READ | WRITE
    }

    fn decode(entry: u64, level: u8) -> PteSlot {
        let phys = PhysAddr(entry & ADDRESS);
        if entry & (READ | WRITE) == 0 {
            return PteSlot::Empty;
        }
        if level > 1 && entry & PAGE_SIZE == 0 {
            return PteSlot::Table(phys);
        }
        let mut access = Access::empty();
        access.set(Access::READ, entry & READ != 0);
        access.set(Access::WRITE, entry & WRITE != 0);
        PteSlot::Leaf { phys, access }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: PhysAddr = PhysAddr(0x0000_0012_4000_0000);

    /// VT-d 5.1 tables 43 to 47; the same bits in Linux (`DMA_PTE_READ` 1, `DMA_PTE_WRITE` 2,
    /// `DMA_PTE_LARGE_PAGE` 1 << 7) and QEMU (`VTD_SL_R` 1, `VTD_SL_W` 2, `VTD_SL_PT_PAGE_SIZE_MASK` 1 << 7).
    #[test]
    fn entries_are_the_specification_s() {
        let both = Access::READ | Access::WRITE;
        assert_eq!(SecondStage::leaf(PAGE, both, 1), 0x12_4000_0003);
        assert_eq!(SecondStage::leaf(PAGE, Access::READ, 1), 0x12_4000_0001);
        assert_eq!(SecondStage::leaf(PAGE, Access::WRITE, 1), 0x12_4000_0002);
        assert_eq!(SecondStage::leaf(PAGE, both, 2), 0x12_4000_0083);
        assert_eq!(SecondStage::leaf(PAGE, Access::READ, 3), 0x12_4000_0081);
        for level in 2..=5 {
            assert_eq!(SecondStage::table(PAGE, level), 0x12_4000_0003);
        }
        // SNP, which the page table adds to leaves (Linux `DMA_PTE_SNP` is 1 << 11, QEMU `VTD_SPTE_SNP` 0x800).
        assert_eq!(SecondStage::SNOOP, 0x800);
        let top = PhysAddr(0x000f_ffff_ffff_f000);
        assert_eq!(SecondStage::leaf(top, both, 1), 0x000f_ffff_ffff_f003);
    }

    #[test]
    fn entries_of_others_are_understood() {
        let leaf = |access| PteSlot::Leaf { phys: PAGE, access };
        // Ignored bits set as another owner may have left them: bit 7 at level 1, bits 63:52, 11:8.
        assert_eq!(SecondStage::decode(0xfff0_0012_4000_0f83, 1), leaf(Access::all()));
        assert_eq!(SecondStage::decode(0x12_4000_0082, 2), leaf(Access::WRITE));
        assert_eq!(SecondStage::decode(0x12_4000_0001, 4), PteSlot::Table(PAGE));
        assert_eq!(SecondStage::decode(0x12_4000_00fc, 1), PteSlot::Empty);
    }
}
