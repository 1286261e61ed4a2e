//! Commands (48882 section 2.4): two words of 64 bits, the operation in bits 63:60 of the first.

use super::ADDRESS_BITS;
use crate::hw::fields::bits;

/// Bytes of a command.
pub(crate) const SIZE: u64 = 16;

const fn operation(code: u64) -> u64 {
    code << 60
}

/// S of COMPLETION_WAIT: the data is stored.
const STORE: u64 = 1 << 0;
/// S of INVALIDATE_IOMMU_PAGES: the size is encoded in the address.
const SIZED: u64 = 1 << 0;
/// PDE of INVALIDATE_IOMMU_PAGES: upper levels are dropped too.
const UPPER_LEVELS: u64 = 1 << 1;
/// GN of COMPLETE_PPR_REQUEST: the process number is valid.
const PROCESS_VALID: u64 = 1 << 2;

/// The address field that means all addresses (48882 section 2.2.3, page size encodings), with S set.
pub(crate) const EVERYTHING: u64 = 0x7fff_ffff_ffff_f000;

/// COMPLETION_WAIT: when all commands before are complete, `data` is stored at `address` (8-byte aligned).
pub(crate) const fn completion_wait(address: u64, data: u64) -> [u64; 2] {
    [operation(1) | address & (ADDRESS_BITS | 0xff8) | STORE, data]
}

/// INVALIDATE_DEVTAB_ENTRY.
pub(crate) const fn invalidate_device(source: u16) -> [u64; 2] {
    [operation(2) | source as u64, 0]
}

/// INVALIDATE_IOMMU_PAGES of a domain. `address` is a page's address, or with `sized` an address whose
/// lowest clear bit from bit 12 on says the size: clear bit n for 2^(n+1) bytes.
pub(crate) const fn invalidate_pages(
    domain: u16,
    address: u64,
    sized: bool,
    upper_levels: bool,
) -> [u64; 2] {
    let size = if sized { SIZED } else { 0 };
    let upper = if upper_levels { UPPER_LEVELS } else { 0 };
    [operation(3) | (domain as u64) << 32, address & !0xfff | upper | size]
}

/// INVALIDATE_IOTLB_PAGES: invalidates translations in the TLB of the device `source`. `outstanding` is the most
/// invalidations that the device takes at once, `queue` its queue (48882 section 2.4.4). Address as in
/// [`invalidate_pages`].
pub(crate) const fn invalidate_device_pages(
    source: u16,
    outstanding: u8,
    queue: u16,
    address: u64,
    sized: bool,
) -> [u64; 2] {
    let size = if sized { SIZED } else { 0 };
    [
        operation(4) | (queue as u64) << 32 | (outstanding as u64) << 24 | source as u64,
        address & !0xfff | size,
    ]
}

/// INVALIDATE_INTERRUPT_TABLE.
pub(crate) const fn invalidate_interrupts(source: u16) -> [u64; 2] {
    [operation(5) | source as u64, 0]
}

/// PREFETCH_IOMMU_PAGES: loads `count` translations for `source` from `address` on.
pub(crate) const fn prefetch(source: u16, count: u8, address: u64, sized: bool) -> [u64; 2] {
    let size = if sized { SIZED } else { 0 };
    [operation(6) | (count as u64) << 24 | source as u64, address & !0xfff | size]
}

/// COMPLETE_PPR_REQUEST: answers the page request of `source` with `tag`. `code` is the response code of
/// PCI Express Base 6.0 section 10.4.2.2: 1 is "invalid request".
pub(crate) const fn complete_request(
    source: u16,
    process: Option<u32>,
    tag: u16,
    code: u8,
) -> [u64; 2] {
    let answer = (code as u64 & 0xf) << 12 | bits(tag as u64, 0, 9);
    let (number, valid) = match process {
        Some(number) => (number as u64 & 0xf_ffff, PROCESS_VALID),
        None => (0, 0),
    };
    [operation(7) | number << 32 | source as u64, answer << 32 | valid]
}

/// INVALIDATE_IOMMU_ALL.
pub(crate) const fn invalidate_all() -> [u64; 2] {
    [operation(8), 0]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(command: [u64; 2]) -> [u8; 16] {
        let mut out = [0; 16];
        out[..8].copy_from_slice(&command[0].to_le_bytes());
        out[8..].copy_from_slice(&command[1].to_le_bytes());
        out
    }

    // Field positions: FreeBSD amd_reg.h struct amdiommu_cmd_* and VirtualBox CMD_*_T, which agree; the
    // words of Linux's build_completion_wait, build_inv_dte, build_inv_iommu_pages, build_inv_iotlb_pages,
    // build_inv_irt, build_complete_ppr and build_inv_all are the same (operation in bits 31:28 of the
    // second 32-bit word).

    #[test]
    fn waits() {
        let command = completion_wait(0x000a_bcde_f128, 0x1122_3344_5566_7788);
        assert_eq!(
            bytes(command),
            [
                0x29, 0xf1, 0xde, 0xbc, 0x0a, 0x00, 0x00, 0x10, 0x88, 0x77, 0x66, 0x55, 0x44, 0x33,
                0x22, 0x11,
            ]
        );
        // Bits 59:52 are reserved and the low three of the address hold S, I and F.
        assert_eq!(completion_wait(u64::MAX, 0)[0], 0x100f_ffff_ffff_fff9);
    }

    #[test]
    fn device_entries() {
        assert_eq!(
            bytes(invalidate_device(0xbead)),
            [0xad, 0xbe, 0, 0, 0, 0, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0,]
        );
        assert_eq!(
            bytes(invalidate_interrupts(0xbead)),
            [0xad, 0xbe, 0, 0, 0, 0, 0, 0x50, 0, 0, 0, 0, 0, 0, 0, 0,]
        );
    }

    #[test]
    fn pages() {
        // One page: S = 0.
        assert_eq!(
            bytes(invalidate_pages(0x1234, 0xfedc_ba98_7000, false, false)),
            [0, 0, 0, 0, 0x34, 0x12, 0, 0x30, 0x00, 0x70, 0x98, 0xba, 0xdc, 0xfe, 0, 0,]
        );
        // S = 1 in bit 0, PDE = 1 in bit 1 of the third 32-bit word.
        assert_eq!(
            bytes(invalidate_pages(0x1234, 0x001f_f000, true, false)),
            [0, 0, 0, 0, 0x34, 0x12, 0, 0x30, 0x01, 0xf0, 0x1f, 0, 0, 0, 0, 0,]
        );
        assert_eq!(
            bytes(invalidate_pages(0x1234, 0x001f_f000, false, true)),
            [0, 0, 0, 0, 0x34, 0x12, 0, 0x30, 0x02, 0xf0, 0x1f, 0, 0, 0, 0, 0,]
        );
        // Linux CMD_INV_IOMMU_ALL_PAGES_ADDRESS 0x7fffffffffffffff without its low 12 bits.
        assert_eq!(
            bytes(invalidate_pages(1, EVERYTHING, true, true)),
            [0, 0, 0, 0, 0x01, 0x00, 0, 0x30, 0x03, 0xf0, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f,]
        );
    }

    #[test]
    fn device_pages() {
        // Linux: data[0] = devid | (qdep & 0xff) << 24, data[1] = queue, data[2] = address | S.
        assert_eq!(
            bytes(invalidate_device_pages(0xbead, 0x20, 0x5678, 0x7000, true)),
            [0xad, 0xbe, 0, 0x20, 0x78, 0x56, 0, 0x40, 0x01, 0x70, 0, 0, 0, 0, 0, 0,]
        );
        // FreeBSD amdiommu_cmd_prefetch_iommu_pages: pfcount in bits 31:24.
        assert_eq!(
            bytes(prefetch(0xbead, 3, 0x7000, false)),
            [0xad, 0xbe, 0, 0x03, 0, 0, 0, 0x60, 0x00, 0x70, 0, 0, 0, 0, 0, 0,]
        );
    }

    #[test]
    fn page_requests() {
        // Linux: data[1] = pasid, data[2] = GN, data[3] = tag & 0x1ff | status << 12.
        assert_eq!(
            bytes(complete_request(0xbead, Some(0xf_4321), 0x3ff, 1)),
            [0xad, 0xbe, 0, 0, 0x21, 0x43, 0x0f, 0x70, 0x04, 0, 0, 0, 0xff, 0x11, 0, 0,]
        );
        assert_eq!(
            bytes(complete_request(0xbead, None, 2, 0xf)),
            [0xad, 0xbe, 0, 0, 0, 0, 0, 0x70, 0, 0, 0, 0, 0x02, 0xf0, 0, 0,]
        );
    }

    #[test]
    fn everything() {
        assert_eq!(bytes(invalidate_all()), [0, 0, 0, 0, 0, 0, 0, 0x80, 0, 0, 0, 0, 0, 0, 0, 0]);
    }
}
