//! Descriptors of the invalidation queue, 128 bits wide (section 6.5.2). The type is in bits 3:0.

use crate::addr::{Iova, PhysAddr};

/// Low and high word.
pub(crate) type Descriptor = [u64; 2];

const CONTEXT: u64 = 1;
const IOTLB: u64 = 2;
const DEVICE_TLB: u64 = 3;
const INTERRUPT: u64 = 4;
const WAIT: u64 = 5;

/// G, bits 5:4.
const GLOBAL: u64 = 1 << 4;
const DOMAIN: u64 = 2 << 4;
/// Device for the context cache, pages for the IOTLB.
const SELECTIVE: u64 = 3 << 4;

/// SW of a wait: write the status data when everything before is done.
const STATUS_WRITE: u64 = 1 << 5;

/// IH of a page-selective invalidation, in the high word: only leaves changed.
const LEAVES_ONLY: u64 = 1 << 6;

/// Which requests on their way an IOTLB invalidation waits for.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Drain {
    /// DR, bit 7.
    pub(crate) reads: bool,
    /// DW, bit 6.
    pub(crate) writes: bool,
}

impl Drain {
    const fn bits(self) -> u64 {
        (self.reads as u64) << 7 | (self.writes as u64) << 6
    }
}

/// Context cache, everything (6.5.2.1).
pub(crate) const fn context_global() -> Descriptor {
    [CONTEXT | GLOBAL, 0]
}

/// Context cache, all sources of a domain (6.5.2.1).
pub(crate) const fn context_domain(domain: u16) -> Descriptor {
    [CONTEXT | DOMAIN | (domain as u64) << 16, 0]
}

/// Context cache, one source whose entry had `domain` (6.5.2.1). FM is 0: no phantom functions.
pub(crate) const fn context_device(domain: u16, source: u16) -> Descriptor {
    [CONTEXT | SELECTIVE | (domain as u64) << 16 | (source as u64) << 32, 0]
}

/// IOTLB and paging-structure caches, everything (6.5.2.3).
pub(crate) const fn iotlb_global(drain: Drain) -> Descriptor {
    [IOTLB | GLOBAL | drain.bits(), 0]
}

/// IOTLB and paging-structure caches, one domain (6.5.2.3).
pub(crate) const fn iotlb_domain(domain: u16, drain: Drain) -> Descriptor {
    [IOTLB | DOMAIN | drain.bits() | (domain as u64) << 16, 0]
}

/// IOTLB, `2^mask` pages of a domain from `first` on, which is aligned to their size; the paging-structure
/// caches of that range too unless `leaves_only` (6.5.2.3).
pub(crate) const fn iotlb_pages(
    domain: u16,
    first: Iova,
    mask: u8,
    leaves_only: bool,
    drain: Drain,
) -> Descriptor {
    let hint = if leaves_only { LEAVES_ONLY } else { 0 };
    let low = IOTLB | SELECTIVE | drain.bits() | (domain as u64) << 16;
    [low, first.0 & !0xfff | hint | (mask & 0x3f) as u64]
}

/// TLB of a device, everything it holds without PASID: S set and all address bits but 63 (6.5.2.5). MIP and
/// PFSID are 0.
pub(crate) const fn device_tlb_all(source: u16) -> Descriptor {
    [DEVICE_TLB | (source as u64) << 32, 0x7fff_ffff_ffff_f001]
}

/// Interrupt entry cache, everything: G is 0 (6.5.2.8).
pub(crate) const fn interrupt_global() -> Descriptor {
    [INTERRUPT, 0]
}

/// Writes `value` to the 32 bits at `status`, a multiple of 4, when everything before is done (6.5.2.9). IF stays 0:
/// QEMU before 10.1 does not support a wait that asks for both a write and an interrupt.
pub(crate) const fn wait(status: PhysAddr, value: u32) -> Descriptor {
    [WAIT | STATUS_WRITE | (value as u64) << 32, status.0 & !3]
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Drain = Drain { reads: true, writes: true };
    const NONE: Drain = Drain { reads: false, writes: false };

    /// Figures 6-1, 6-3, 6-5, 6-8, 6-9. Linux builds the same from `QI_CC_*`, `QI_IOTLB_*`, `QI_IWD_*`
    /// (granularity at bit 4, did at 16, sid at 32, DW 6, DR 7, IH 6, status write 5, data at 32); QEMU
    /// reads them back with `VTD_INV_DESC_*`.
    #[test]
    fn literal_descriptors() {
        assert_eq!(context_global(), [0x11, 0]);
        assert_eq!(context_domain(0x1234), [0x1234_0021, 0]);
        assert_eq!(context_device(0x1234, 0x00f8), [0x0000_00f8_1234_0031, 0]);
        assert_eq!(iotlb_global(ALL), [0xd2, 0]);
        assert_eq!(iotlb_global(NONE), [0x12, 0]);
        assert_eq!(iotlb_domain(0x00ff, ALL), [0x00ff_00e2, 0]);
        let pages = iotlb_pages(0x1234, Iova(0x7_4020_0000), 9, false, ALL);
        assert_eq!(pages, [0x1234_00f2, 0x7_4020_0009]);
        let leaf = iotlb_pages(1, Iova(0x1000), 0, true, NONE);
        assert_eq!(leaf, [0x0001_0032, 0x1040]);
        assert_eq!(device_tlb_all(0x0100), [0x0000_0100_0000_0003, 0x7fff_ffff_ffff_f001]);
        assert_eq!(interrupt_global(), [0x4, 0]);
        assert_eq!(
            wait(PhysAddr(0x1_2345_6008), 0xdead_beef),
            [0xdead_beef_0000_0025, 0x1_2345_6008]
        );
    }

    /// Reserved fields as QEMU checks them (`VTD_INV_DESC_CC_RSVD`, `_IOTLB_RSVD_LO/HI`, `_WAIT_RSVD_*`).
    #[test]
    fn reserved_bits_are_zero() {
        assert_eq!(context_device(0xffff, 0xffff)[0] & 0xfffc_0000_0000_ffc0, 0);
        let pages = iotlb_pages(0xffff, Iova(u64::MAX), 0xff, true, ALL);
        assert_eq!((pages[0] & 0xffff_ffff_0000_ff00, pages[1] & 0xf80), (0, 0));
        let wait = wait(PhysAddr(u64::MAX), u32::MAX);
        assert_eq!((wait[0] & 0xffff_ff80, wait[1] & 3), (0, 0));
        assert_eq!(wait[0] & 0x10, 0, "a status write and an interrupt");
    }
}
