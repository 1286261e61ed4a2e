//! Page tables of 512 entries a level, the same walker for every format.

use iommu_protocol::wire::Access;

use crate::addr::PhysAddr;

/// What one entry of a table means.
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
        /// What a device may do.
        access: Access,
    },
}

/// The format of page table entries. Levels count from 1 (entries that map 4 KiB).
pub trait PteFormat {
    /// The entry at `level` (1: 4 KiB, 2: 2 MiB, 3: 1 GiB) that maps the page at `phys`, aligned to its size.
    fn leaf(phys: PhysAddr, access: Access, level: u8) -> u64;

    /// The entry at `level` (2 and up) that points to the table at `next`.
    fn table(next: PhysAddr, level: u8) -> u64;

    /// What an entry found at `level` means.
    fn decode(entry: u64, level: u8) -> PteSlot;
}
