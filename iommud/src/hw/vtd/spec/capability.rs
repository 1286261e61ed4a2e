//! Capability registers (sections 11.4.2 and 11.4.3).

use crate::hw::fields::byte;

/// CAP_REG.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Capability(pub(crate) u64);

impl Capability {
    const fn bit(self, at: u32) -> bool {
        self.0 >> at & 1 != 0
    }

    /// ND, bits 2:0: width of domain ids in bits, 4 to 16. The encoding 7 is reserved.
    pub(crate) const fn domain_bits(self) -> u32 {
        let encoded = (self.0 & 7) as u32;
        if encoded > 6 { 4 } else { 4 + 2 * encoded }
    }

    /// RWBF, bit 4: stores to tables need a command to become visible.
    pub(crate) const fn write_buffer(self) -> bool {
        self.bit(4)
    }

    /// PLMR or PHMR, bits 5 and 6: there are protected memory ranges.
    pub(crate) const fn protected_memory(self) -> bool {
        self.bit(5) || self.bit(6)
    }

    /// CM, bit 7: absent entries are cached, under domain id 0 where there is no other.
    pub(crate) const fn caching_mode(self) -> bool {
        self.bit(7)
    }

    /// SAGAW, bits 12:8: bit n stands for n + 2 levels.
    pub(crate) const fn widths(self) -> u8 {
        byte(self.0, 8) & 0x1f
    }

    /// MGAW + 1, bits 21:16: width of the addresses that are translated, in bits.
    pub(crate) const fn address_bits(self) -> u8 {
        (byte(self.0, 16) & 0x3f) + 1
    }

    /// FRO, bits 33:24, in bytes: where the fault records are.
    pub(crate) const fn fault_records(self) -> u32 {
        16 * ((self.0 >> 24) & 0x3ff) as u32
    }

    /// SSLPS, bits 35:34: leaves of 2 MiB (bit 0) and 1 GiB (bit 1).
    pub(crate) const fn large_pages(self) -> u8 {
        byte(self.0, 34) & 3
    }

    /// PSI, bit 39: pages can be invalidated selectively.
    pub(crate) const fn page_selective(self) -> bool {
        self.bit(39)
    }

    /// NFR + 1, bits 47:40: number of fault records, 1 to 256.
    pub(crate) const fn fault_count(self) -> usize {
        byte(self.0, 40) as usize + 1
    }

    /// MAMV, bits 53:48: log2 of the most pages of one invalidation.
    pub(crate) const fn max_mask(self) -> u8 {
        byte(self.0, 48) & 0x3f
    }

    /// DWD, bit 54: an invalidation can wait for writes on their way.
    pub(crate) const fn drains_writes(self) -> bool {
        self.bit(54)
    }

    /// DRD, bit 55: an invalidation can wait for reads on their way.
    pub(crate) const fn drains_reads(self) -> bool {
        self.bit(55)
    }

    /// ESRTPS, bit 63: setting the root pointer invalidates everything.
    pub(crate) const fn enhanced_root(self) -> bool {
        self.bit(63)
    }
}

/// ECAP_REG.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ExtendedCapability(pub(crate) u64);

impl ExtendedCapability {
    const fn bit(self, at: u32) -> bool {
        self.0 >> at & 1 != 0
    }

    /// C, bit 0: tables are read through the caches. The queue and its status words always are.
    pub(crate) const fn coherent(self) -> bool {
        self.bit(0)
    }

    /// QI, bit 1.
    pub(crate) const fn queued_invalidation(self) -> bool {
        self.bit(1)
    }

    /// DT, bit 2: devices may have TLBs.
    pub(crate) const fn device_tlbs(self) -> bool {
        self.bit(2)
    }

    /// IR, bit 3.
    pub(crate) const fn interrupt_remapping(self) -> bool {
        self.bit(3)
    }

    /// PT, bit 6.
    pub(crate) const fn pass_through(self) -> bool {
        self.bit(6)
    }

    /// SC, bit 7.
    pub(crate) const fn snoop_control(self) -> bool {
        self.bit(7)
    }

    /// SMTS, bit 43.
    pub(crate) const fn scalable_mode(self) -> bool {
        self.bit(43)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sections 11.4.2 and 11.4.3; the same in Linux (`cap_rwbf`, `cap_plmr`, `cap_phmr`, `cap_caching_mode`,
    /// `cap_pgsel_inv`, `ecap_coherent`, `ecap_qis`, `ecap_dev_iotlb_support`, `ecap_ir_support`,
    /// `ecap_pass_through`, `ecap_sc_support`, `ecap_smts`).
    #[test]
    fn each_flag_is_its_own_bits() {
        type Flag<T> = (fn(T) -> bool, u64);
        let flags: [Flag<Capability>; 7] = [
            (Capability::write_buffer, 1 << 4),
            (Capability::protected_memory, 1 << 5 | 1 << 6),
            (Capability::caching_mode, 1 << 7),
            (Capability::page_selective, 1 << 39),
            (Capability::drains_writes, 1 << 54),
            (Capability::drains_reads, 1 << 55),
            (Capability::enhanced_root, 1 << 63),
        ];
        let extended_flags: [Flag<ExtendedCapability>; 7] = [
            (ExtendedCapability::coherent, 1 << 0),
            (ExtendedCapability::queued_invalidation, 1 << 1),
            (ExtendedCapability::device_tlbs, 1 << 2),
            (ExtendedCapability::interrupt_remapping, 1 << 3),
            (ExtendedCapability::pass_through, 1 << 6),
            (ExtendedCapability::snoop_control, 1 << 7),
            (ExtendedCapability::scalable_mode, 1 << 43),
        ];
        for bit in 0..64 {
            for (flag, bits) in flags {
                let own = bits >> bit & 1 != 0;
                assert_eq!(flag(Capability(1 << bit)), own, "{bits:#x}, bit {bit}");
            }
            for (flag, bits) in extended_flags {
                let own = bits >> bit & 1 != 0;
                assert_eq!(flag(ExtendedCapability(1 << bit)), own, "{bits:#x}, bit {bit}");
            }
        }
    }

    /// Registers of `-device intel-iommu,aw-bits=48,caching-mode=on` of QEMU 7.2 at fed90008h and fed90010h, decoded
    /// by hand with the tables of sections 11.4.2 and 11.4.3.
    #[test]
    fn qemu_s_unit() {
        let capability = Capability(0x00d2_008c_222f_0686);
        assert_eq!(capability.domain_bits(), 16);
        assert!(!capability.write_buffer() && !capability.protected_memory());
        assert!(capability.caching_mode());
        assert_eq!((capability.widths(), capability.address_bits()), (0b110, 48));
        assert_eq!((capability.fault_records(), capability.fault_count()), (0x220, 1));
        assert_eq!((capability.large_pages(), capability.max_mask()), (3, 18));
        assert!(
            capability.page_selective() && capability.drains_writes() && capability.drains_reads()
        );
        assert!(!capability.enhanced_root());
        let extended = ExtendedCapability(0xf00f4a);
        assert!(!extended.coherent() && extended.queued_invalidation());
        assert!(extended.pass_through() && extended.interrupt_remapping());
        assert!(!extended.device_tlbs() && !extended.snoop_control() && !extended.scalable_mode());
    }

    /// The values Linux prints for two machines ("DMAR: dmar0: reg_base_addr fed90000 ver 1:0 cap
    /// 1c0000c40660462 ecap 19e2ff0505e" and "ver 1:0 cap d2008c40660462 ecap f050da"): Skylake's graphics
    /// unit and its other one.
    #[test]
    fn units_of_a_real_machine() {
        let graphics = Capability(0x01c0_000c_4066_0462);
        assert_eq!(
            (graphics.domain_bits(), graphics.widths(), graphics.address_bits()),
            (8, 4, 39)
        );
        assert!(
            graphics.protected_memory() && !graphics.caching_mode() && !graphics.write_buffer()
        );
        assert_eq!((graphics.fault_records(), graphics.fault_count()), (0x400, 1));
        assert!(!graphics.page_selective());
        assert!(!ExtendedCapability(0x19e_2ff0_505e).coherent());
        let other = Capability(0x00d2_008c_4066_0462);
        assert!(other.page_selective() && other.drains_reads() && other.drains_writes());
        assert_eq!((other.max_mask(), other.large_pages()), (18, 3));
        let extended = ExtendedCapability(0xf0_50da);
        assert!(!extended.coherent() && extended.queued_invalidation() && extended.pass_through());
        assert!(extended.snoop_control() && extended.interrupt_remapping());
    }
}
