//! The capability block in configuration space (48882 section 3.2) and the extended features.

use bitflags::bitflags;

use crate::hw::fields::{bits, byte};

/// Offset of the Base Address Low Register in the capability block; bit 0 enables the registers.
pub(crate) const BASE_LOW: u16 = 0x04;
/// Offset of the Base Address High Register in the capability block.
pub(crate) const BASE_HIGH: u16 = 0x08;
/// Offset of Miscellaneous Information Register 0 in the capability block.
pub(crate) const MISCELLANEOUS: u16 = 0x10;

/// Bits of Base Address Low that hold an address (16 KiB aligned).
pub(crate) const BASE_BITS: u32 = 0xffff_c000;
/// Enable bit of Base Address Low.
pub(crate) const BASE_ENABLE: u32 = 1;

bitflags! {
    /// IOMMU Capability Header (48882 section 3.2.1, capability block offset 00h).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) struct Header: u32 {
        /// IotlbSup.
        const IOTLB = 1 << 24;
        /// HtTunnel.
        const HT_TUNNEL = 1 << 25;
        /// NpCache: entries that are not present are cached too.
        const CACHES_ABSENT = 1 << 26;
        /// EFRSup: the extended feature register exists.
        const EXTENDED = 1 << 27;
        /// CapExt: the second miscellaneous information register exists.
        const MORE = 1 << 28;
    }
}

bitflags! {
    /// IOMMU Extended Feature Register (48882 section 3.4.9, MMIO offset 0030h), the bits that matter here.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) struct Features: u64 {
        /// PPRSup: page requests are logged.
        const PPR = 1 << 1;
        /// IASup: INVALIDATE_IOMMU_ALL exists.
        const INVALIDATE_ALL = 1 << 6;
        /// HATS, bits 11:10: levels of host page tables.
        const HOST_LEVELS = 0b11 << 10;
        const _ = !0;
    }
}

/// The HATS field: 0 means 4 levels, 1 means 5, 2 means 6, 3 none.
pub(crate) const fn host_levels(features: u64) -> u8 {
    byte(bits(features, 10, 2), 0)
}

/// PASize of Miscellaneous Information Register 0: bits 14:8.
pub(crate) const fn physical_bits(miscellaneous: u32) -> u8 {
    let [_, second, ..] = miscellaneous.to_le_bytes();
    second & 0x7f
}

/// VASize of Miscellaneous Information Register 0: bits 21:15.
pub(crate) const fn virtual_bits(miscellaneous: u32) -> u8 {
    let [first, ..] = (miscellaneous >> 15).to_le_bytes();
    first & 0x7f
}

bitflags! {
    /// Flags of an IVHD (48882 section 5.2.2.1) as they concern the control register.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) struct HeaderFlags: u8 {
        /// HtTunEn.
        const HT_TUNNEL = 1 << 0;
        /// PassPW.
        const PASS_PW = 1 << 1;
        /// ResPassPW.
        const RESPONSE_PASS_PW = 1 << 2;
        /// Isoc.
        const ISOCHRONOUS = 1 << 3;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// QEMU amd_iommu.h AMDVI_CAPAB_FLAG_* and AMDVI_CAPAB_EFR_SUP; Xen PCI_CAP_*_MASK agree.
    #[test]
    fn header_bits() {
        let names: Vec<u32> = Header::all().iter().map(|bit| bit.bits()).collect();
        assert_eq!(names, [0x100_0000, 0x200_0000, 0x400_0000, 0x800_0000, 0x1000_0000]);
        assert_eq!((BASE_LOW, BASE_HIGH, MISCELLANEOUS, BASE_BITS), (4, 8, 0x10, 0xffff_c000));
    }

    /// FreeBSD AMDIOMMU_EFR_HATS_4LVL, _5LVL, _6LVL are 0, 0x400, 0x800; Linux FEATURE_PPR is bit 1 and
    /// FEATURE_IA bit 6.
    #[test]
    fn features() {
        assert_eq!([0, 0x400, 0x800, 0xc00].map(host_levels), [0, 1, 2, 3]);
        assert_eq!((Features::PPR.bits(), Features::INVALIDATE_ALL.bits()), (0x2, 0x40));
        assert_eq!(Features::HOST_LEVELS.bits(), 0xc00);
    }

    /// VirtualBox iommu-amd.h IOMMU_BF_MISCINFO_0_PA_SIZE_MASK is 0x7f00, VA_SIZE_MASK 0x3f8000. QEMU's register
    /// reads as 46. It has 40 physical bits, but its virtual size is too wide for its field and runs into this one.
    #[test]
    fn sizes() {
        assert_eq!(physical_bits(40 << 8), 40);
        assert_eq!(physical_bits(48 << 15 | 40 << 8 | 48 << 5), 46);
        assert_eq!(physical_bits(0xffff_80ff), 0);
        assert_eq!(virtual_bits(48 << 15 | 40 << 8 | 48 << 5), 48);
        assert_eq!((virtual_bits(64 << 15), virtual_bits(0xffc0_7fff)), (64, 0));
    }

    /// Linux amd_iommu/init.c IVHD_FLAG_HT_TUN_EN_MASK, _PASSPW_, _RESPASSPW_, _ISOC_: 1, 2, 4, 8.
    #[test]
    fn flags() {
        let names: Vec<u8> = HeaderFlags::all().iter().map(|bit| bit.bits()).collect();
        assert_eq!(names, [1, 2, 4, 8]);
    }
}
