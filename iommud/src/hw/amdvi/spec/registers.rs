//! MMIO registers (48882 section 3.4). All are 64 bits wide and little-endian.

use bitflags::bitflags;

/// Device Table Base Address Register: bits 51:12 address, bits 8:0 size in units of 4 KiB, less one.
pub(crate) const DEVICE_TABLE_BASE: u32 = 0x0000;
/// Command Buffer Base Address Register: bits 51:12 address, bits 59:56 log2 of the number of entries.
pub(crate) const COMMAND_BASE: u32 = 0x0008;
/// Event Log Base Address Register, laid out as [`COMMAND_BASE`].
pub(crate) const EVENT_BASE: u32 = 0x0010;
/// IOMMU Control Register: [`Control`].
pub(crate) const CONTROL: u32 = 0x0018;
/// IOMMU Exclusion Base Register: bit 0 enables the range, bit 1 lets every device use it.
pub(crate) const EXCLUSION_BASE: u32 = 0x0020;
/// IOMMU Exclusion Range Limit Register.
pub(crate) const EXCLUSION_LIMIT: u32 = 0x0028;
/// IOMMU Extended Feature Register: [`super::capability::Features`].
pub(crate) const EXTENDED_FEATURES: u32 = 0x0030;
/// PPR Log Base Address Register, laid out as [`COMMAND_BASE`].
pub(crate) const PPR_BASE: u32 = 0x0038;
/// Command Buffer Head Pointer Register: byte offset in bits 18:4.
pub(crate) const COMMAND_HEAD: u32 = 0x2000;
/// Command Buffer Tail Pointer Register: byte offset in bits 18:4.
pub(crate) const COMMAND_TAIL: u32 = 0x2008;
/// Event Log Head Pointer Register: byte offset in bits 18:4, moved by software.
pub(crate) const EVENT_HEAD: u32 = 0x2010;
/// Event Log Tail Pointer Register: byte offset in bits 18:4, moved by the unit.
pub(crate) const EVENT_TAIL: u32 = 0x2018;
/// IOMMU Status Register: [`Status`].
pub(crate) const STATUS: u32 = 0x2020;
/// PPR Log Head Pointer Register: byte offset in bits 18:4, moved by software.
pub(crate) const PPR_HEAD: u32 = 0x2030;
/// PPR Log Tail Pointer Register: byte offset in bits 18:4, moved by the unit.
pub(crate) const PPR_TAIL: u32 = 0x2038;

/// Position of the length in a base register of a ring.
const LENGTH_SHIFT: u32 = 56;
/// Bits of a head or tail register that hold the byte offset.
const POINTER_BITS: u64 = 0x0007_fff0;

bitflags! {
    /// IOMMU Control Register (48882 section 3.4.1, MMIO offset 0018h). Bits without a name belong to
    /// features that are never turned on here.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) struct Control: u64 {
        /// IommuEn: requests are translated and commands executed.
        const ENABLE = 1 << 0;
        /// HtTunEn.
        const HT_TUNNEL = 1 << 1;
        /// EventLogEn.
        const EVENT_LOG = 1 << 2;
        /// EventIntEn.
        const EVENT_INTERRUPT = 1 << 3;
        /// ComWaitIntEn.
        const WAIT_INTERRUPT = 1 << 4;
        /// PassPW.
        const PASS_PW = 1 << 8;
        /// ResPassPW.
        const RESPONSE_PASS_PW = 1 << 9;
        /// Coherent: reads of the device table snoop caches.
        const COHERENT = 1 << 10;
        /// Isoc.
        const ISOCHRONOUS = 1 << 11;
        /// CmdBufEn.
        const COMMANDS = 1 << 12;
        /// PprLogEn.
        const PPR_LOG = 1 << 13;
        /// PprIntEn.
        const PPR_INTERRUPT = 1 << 14;
        /// PprEn.
        const PPR = 1 << 15;
        /// GAEn: entries of interrupt tables are 128 bits.
        const GUEST_APIC = 1 << 17;
        /// GAMEn, bits 27:25.
        const GUEST_APIC_MODE = 0b111 << 25;
        /// DevTblSegEn, bits 36:34: the device table is in several parts.
        const TABLE_SEGMENTS = 0b111 << 34;
        /// XTEn: interrupt tables hold 32-bit destinations.
        const X2APIC = 1 << 50;
        /// IntCapXTEn.
        const INTERRUPTS_X2APIC = 1 << 51;
        /// IRTCacheDis.
        const INTERRUPT_CACHE_OFF = 1 << 59;
    }
}

bitflags! {
    /// IOMMU Status Register (48882 section 3.4.11, MMIO offset 2020h). Overflow and interrupt bits are
    /// cleared by writing 1, run bits are read-only.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) struct Status: u64 {
        /// EventOverflow.
        const EVENT_OVERFLOW = 1 << 0;
        /// EventLogInt.
        const EVENT_INTERRUPT = 1 << 1;
        /// ComWaitInt.
        const WAIT_INTERRUPT = 1 << 2;
        /// EventLogRun.
        const EVENTS_RUN = 1 << 3;
        /// CmdBufRun.
        const COMMANDS_RUN = 1 << 4;
        /// PprOverflow.
        const PPR_OVERFLOW = 1 << 5;
        /// PprInt.
        const PPR_INTERRUPT = 1 << 6;
        /// PprLogRun.
        const PPR_RUN = 1 << 7;
    }
}

/// The base register of a ring of `1 << log2` entries at `address` (a multiple of 4096).
pub(crate) const fn ring_base(address: u64, log2: u8) -> u64 {
    address & super::ADDRESS_BITS | (log2 as u64 & 0xf) << LENGTH_SHIFT
}

/// The device table register for `pages` pages of table (1 to 512) at `address`.
pub(crate) const fn table_base(address: u64, pages: u64) -> u64 {
    address & super::ADDRESS_BITS | pages.wrapping_sub(1) & 0x1ff
}

/// The byte offset in a head or tail register.
pub(crate) const fn pointer(register: u64) -> u64 {
    register & POINTER_BITS
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Linux amd_iommu_types.h MMIO_*_OFFSET, FreeBSD amd_reg.h AMDIOMMU_*, QEMU amd_iommu.h AMDVI_MMIO_*.
    #[test]
    fn offsets() {
        let here = [
            DEVICE_TABLE_BASE,
            COMMAND_BASE,
            EVENT_BASE,
            CONTROL,
            EXCLUSION_BASE,
            EXCLUSION_LIMIT,
            EXTENDED_FEATURES,
            PPR_BASE,
            COMMAND_HEAD,
            COMMAND_TAIL,
            EVENT_HEAD,
            EVENT_TAIL,
            STATUS,
            PPR_HEAD,
            PPR_TAIL,
        ];
        assert_eq!(
            here,
            [
                0, 8, 0x10, 0x18, 0x20, 0x28, 0x30, 0x38, 0x2000, 0x2008, 0x2010, 0x2018, 0x2020,
                0x2030, 0x2038,
            ]
        );
    }

    /// FreeBSD amd_reg.h AMDIOMMU_CTRL_* (EN, HTTUN_EN, EVNTLOG_EN, EVENTINT_EN, COMWINT_EN, PASSPW, REPASSPW,
    /// COHERENT, ISOC, CMDBUF_EN, PPRLOG_EN, PPRINT_EN, PPR_EN, GA_EN, GAM_EN_MASK, DEVTABSEG_MASK, XT_EN,
    /// INTCAPXT_EN, IRTCACHE_DIS); Linux CONTROL_* agree.
    #[test]
    fn control_bits() {
        let names: Vec<u64> = Control::all().iter().map(|bit| bit.bits()).collect();
        assert_eq!(
            names,
            [
                0x1,
                0x2,
                0x4,
                0x8,
                0x10,
                0x100,
                0x200,
                0x400,
                0x800,
                0x1000,
                0x2000,
                0x4000,
                0x8000,
                0x2_0000,
                0x0e00_0000,
                0x1c_0000_0000,
                0x4_0000_0000_0000,
                0x8_0000_0000_0000,
                0x800_0000_0000_0000,
            ]
        );
    }

    /// FreeBSD amd_reg.h AMDIOMMU_CMDEVS_*; Xen IOMMU_STATUS_* agree.
    #[test]
    fn status_bits() {
        let names: Vec<u64> = Status::all().iter().map(|bit| bit.bits()).collect();
        assert_eq!(names, [1, 2, 4, 8, 0x10, 0x20, 0x40, 0x80]);
    }

    /// Linux MMIO_CMD_SIZE_512 is 0x9 << 56 for 512 entries; the device table size field of Linux is
    /// (bytes / 4096) - 1, so 2 MiB give 0x1ff.
    #[test]
    fn bases() {
        assert_eq!(ring_base(0x1234_5000, 9), 0x0900_0000_1234_5000);
        assert_eq!(ring_base(0x1234_5000, 8), 0x0800_0000_1234_5000);
        assert_eq!(table_base(0x8020_0000, 512), 0x8020_01ff);
        assert_eq!(table_base(0x8020_0000, 1), 0x8020_0000);
        assert_eq!(pointer(0xffff_ffff_fff8_1ff8), 0x1ff0);
    }
}
