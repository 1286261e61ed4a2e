//! Root and context entries: 128 bits, two words each (sections 9.1 and 9.3).

use super::ADDRESS;
use crate::addr::PhysAddr;
use crate::hw::fields::half;

/// P of either entry, in the low word.
pub(crate) const PRESENT: u64 = 1 << 0;

/// FPD: faults are not reported. Valid whether the entry is present or not.
pub(crate) const FAULTS_SILENT: u64 = 1 << 1;

/// TT 10: requests pass untranslated.
const PASS_THROUGH: u64 = 2 << 2;

/// The low word of a root entry that points to a context table; the high word is 0.
pub(crate) const fn root(context_table: PhysAddr) -> u64 {
    context_table.0 & ADDRESS | PRESENT
}

/// The context table of a root entry's low word.
pub(crate) const fn context_table(low: u64) -> Option<PhysAddr> {
    if low & PRESENT == 0 { None } else { Some(PhysAddr(low & ADDRESS)) }
}

/// AW for a page table of `levels` levels (3, 4, 5): 1, 2, 3.
const fn width(levels: u8) -> u64 {
    (levels as u64).saturating_sub(2)
}

/// A context entry that translates: TT 00, SSPTPTR; DID in bits 23:8 of the high word, AW in 2:0.
pub(crate) const fn translating(table: PhysAddr, levels: u8, domain: u16) -> [u64; 2] {
    [table.0 & ADDRESS | PRESENT, (domain as u64) << 8 | width(levels)]
}

/// A context entry that lets requests pass. AW must be the largest that the unit supports.
pub(crate) const fn passing(largest_levels: u8, domain: u16) -> [u64; 2] {
    [PASS_THROUGH | PRESENT, (domain as u64) << 8 | width(largest_levels)]
}

/// The domain id of a context entry that is present.
pub(crate) const fn domain(entry: [u64; 2]) -> Option<u16> {
    if entry[0] & PRESENT == 0 { None } else { Some(half(entry[1], 8)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Section 9.1; QEMU: `VTD_ROOT_ENTRY_P` 1, `VTD_ROOT_ENTRY_CTP` ~0xfff.
    #[test]
    fn root_entries() {
        assert_eq!(root(PhysAddr(0x12_3456_7000)), 0x12_3456_7001);
        assert_eq!(context_table(0x12_3456_7001), Some(PhysAddr(0x12_3456_7000)));
        assert_eq!(context_table(0x12_3456_7000), None);
    }

    /// Section 9.3. The same in QEMU: P 1, FPD 2, TT 3 << 2 with pass-through 2 << 2, AW in bits 2:0 and the
    /// domain id at `(hi >> 8) & 0xffff`; Linux: `context_set_address_width`, `context_set_domain_id`.
    #[test]
    fn context_entries() {
        let table = PhysAddr(0x0000_000a_bcde_f000);
        assert_eq!(translating(table, 3, 0x0001), [0xa_bcde_f001, 0x0000_0101]);
        assert_eq!(translating(table, 4, 0x1234), [0xa_bcde_f001, 0x0012_3402]);
        assert_eq!(translating(table, 5, 0xffff), [0xa_bcde_f001, 0x00ff_ff03]);
        assert_eq!(passing(4, 7), [0x9, 0x0702]);
        assert_eq!(FAULTS_SILENT, 2);
        assert_eq!(domain([0xa_bcde_f001, 0x0012_3402]), Some(0x1234));
        assert_eq!(domain([0x2, 0x0012_3402]), None);
    }
}
