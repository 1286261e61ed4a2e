//! Capabilities of units, as plain data: the properties of hardware that policy needs.

use bitflags::bitflags;

/// The number under which hardware caches a domain's translations (VT-d domain-id, AMD-Vi DomainID).
/// 0 is never used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DomainTag(pub u16);

bitflags! {
    /// Depths of page tables that a unit walks.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct LevelSet: u8 {
        /// 3 levels, 39 bits.
        const THREE = 1 << 3;
        /// 4 levels, 48 bits.
        const FOUR = 1 << 4;
        /// 5 levels, 57 bits.
        const FIVE = 1 << 5;
        /// 6 levels, 64 bits (AMD-Vi).
        const SIX = 1 << 6;
    }
}

bitflags! {
    /// Sizes of leaves. The bit's value is the size in bytes.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct PageSizes: u64 {
        /// 4 KiB.
        const SIZE_4K = 1 << 12;
        /// 2 MiB.
        const SIZE_2M = 1 << 21;
        /// 1 GiB.
        const SIZE_1G = 1 << 30;
    }
}

/// Capabilities of a unit. A domain over several units uses the intersection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnitCapabilities {
    /// Depths of page tables. Never empty.
    pub levels: LevelSet,
    /// Sizes of leaves. Contains 4 KiB.
    pub page_sizes: PageSizes,
    /// The unit snoops caches when it walks tables; else stores must be cleaned.
    pub coherent: bool,
    /// Leaves can make every access of a device snoop caches, even one that asks not to (VT-d ECAP.SC; AMD-Vi leaves
    /// always do, by FC). Without this, a No-Snoop access bypasses the caches.
    pub forces_snoop: bool,
    /// The unit caches non-present entries too: making an entry present needs an invalidation
    /// (VT-d CAP.CM, AMD-Vi NpCache).
    pub caches_absent: bool,
    /// Making an entry of a page table present takes more than the store: the unit caches absent entries, or its
    /// write buffer must be flushed (VT-d CAP.RWBF).
    pub publishes: bool,
    /// Highest domain tag.
    pub last_tag: u16,
    /// Entries may let requests through untranslated.
    pub pass_through: bool,
    /// Bits of a physical address that tables can hold.
    pub physical_bits: u8,
    /// Bits of the I/O virtual addresses that the unit lets through (VT-d CAP.MGAW, AMD-Vi VASize); may be
    /// fewer than the levels translate.
    pub iova_bits: u8,
    /// One store can point an entry to a deeper page table of the same domain, while its requester keeps running
    /// (AMD-Vi: root and depth are in one word; VT-d: they are not).
    pub deepens: bool,
}

/// Format of a domain's page table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableFormat {
    /// Levels, 3 to 6.
    pub levels: u8,
    /// Sizes of leaves that may be used. Contains 4 KiB.
    pub page_sizes: PageSizes,
    /// Every unit snoops; else every store is cleaned.
    pub coherent: bool,
    /// Leaves make every access of a device snoop, which every unit can do.
    pub forces_snoop: bool,
}
