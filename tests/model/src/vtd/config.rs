//! Capabilities of a software VT-d unit, and its capability registers.

/// Capabilities of a unit, field by field (VT-d 4.1 sections 10.4.2 and 10.4.3).
#[derive(Clone, Debug)]
pub struct Config {
    /// Depths of page tables: 3, 4, 5 (SAGAW).
    pub levels: Vec<u8>,
    /// Width of guest addresses in bits (MGAW).
    pub guest_width: u32,
    /// Width of host physical addresses in bits.
    pub host_width: u32,
    /// Leaves of 2 MiB exist (SLLPS bit 0).
    pub large_2m: bool,
    /// Leaves of 1 GiB exist (SLLPS bit 1).
    pub large_1g: bool,
    /// Absent entries are cached too (CM).
    pub caching_mode: bool,
    /// Stores wait in a buffer until flushed (RWBF).
    pub write_buffer: bool,
    /// Walks snoop caches (C).
    pub coherent: bool,
    /// Page-selective invalidation exists (PSI).
    pub page_selective: bool,
    /// Largest address mask of a page-selective invalidation (MAMV).
    pub max_mask: u8,
    /// Width of domain ids: 4, 6, 8, 10, 12, 14 or 16 bits (ND).
    pub domain_bits: u8,
    /// Fault recording registers, 1 to 256 (NFR).
    pub fault_records: u16,
    /// A second fault of a source with a pending record is dropped (allowed by section 7.2.1).
    pub collapse_faults: bool,
    /// Queued invalidation exists (QI).
    pub queue: bool,
    /// Context entries may let requests pass untranslated (PT).
    pub pass_through: bool,
    /// Device TLBs (DT).
    pub device_tlb: bool,
    /// Snoop control (SC).
    pub snoop_control: bool,
    /// Setting the root pointer empties the caches (ESRTPS).
    pub root_flush: bool,
    /// Protected memory regions exist (PLMR, PHMR).
    pub protected: bool,
    /// Offset of the IOTLB registers in bytes, a multiple of 16 (IRO).
    pub iotlb_offset: u32,
    /// Offset of the fault recording registers in bytes, a multiple of 16 (FRO).
    pub fault_offset: u32,
    /// Nanoseconds until a global command is done.
    pub command_time: u64,
    /// Nanoseconds that a descriptor takes.
    pub descriptor_time: u64,
}

impl Default for Config {
    /// The unit of a present-day server: coherent, 48 and 57 bits.
    fn default() -> Self {
        Self {
            levels: vec![4, 5],
            guest_width: 57,
            host_width: 46,
            large_2m: true,
            large_1g: true,
            caching_mode: false,
            write_buffer: false,
            coherent: true,
            page_selective: true,
            max_mask: 9,
            domain_bits: 16,
            fault_records: 8,
            collapse_faults: false,
            queue: true,
            pass_through: true,
            device_tlb: true,
            snoop_control: true,
            root_flush: false,
            protected: true,
            iotlb_offset: 0x500,
            fault_offset: 0x400,
            command_time: 2_000,
            descriptor_time: 500,
        }
    }
}

impl Config {
    /// QEMU 7.2 with `-device intel-iommu,aw-bits=48`: not coherent, one fault record.
    #[must_use]
    pub fn qemu() -> Self {
        Self {
            levels: vec![3, 4],
            guest_width: 48,
            host_width: 48,
            coherent: false,
            max_mask: 18,
            fault_records: 1,
            collapse_faults: true,
            device_tlb: false,
            snoop_control: false,
            protected: false,
            iotlb_offset: 0xf0,
            fault_offset: 0x220,
            ..Self::default()
        }
    }

    /// An early unit: 3 levels, 4 KiB leaves, write buffer, no page-selective invalidation, 64 domains.
    #[must_use]
    pub fn early() -> Self {
        Self {
            levels: vec![3],
            guest_width: 39,
            host_width: 36,
            large_2m: false,
            large_1g: false,
            write_buffer: true,
            coherent: false,
            page_selective: false,
            max_mask: 0,
            domain_bits: 6,
            fault_records: 1,
            pass_through: false,
            device_tlb: false,
            snoop_control: false,
            iotlb_offset: 0x28 * 16,
            fault_offset: 0x20 * 16,
            ..Self::default()
        }
    }

    /// The capability register.
    #[must_use]
    pub fn capability(&self) -> u64 {
        let bit = |set: bool, at: u32| u64::from(set) << at;
        let depths = self.levels.iter().fold(0, |bits, level| bits | 1_u64 << (level - 2));
        u64::from((self.domain_bits - 4) / 2)
            | bit(self.write_buffer, 4)
            | bit(self.protected, 5)
            | bit(self.protected, 6)
            | bit(self.caching_mode, 7)
            | depths << 8
            | u64::from(self.guest_width - 1) << 16
            | bit(true, 22)
            | u64::from(self.fault_offset / 16) << 24
            | bit(self.large_2m, 34)
            | bit(self.large_1g, 35)
            | bit(self.page_selective, 39)
            | u64::from(self.fault_records - 1) << 40
            | u64::from(self.max_mask) << 48
            | bit(true, 54)
            | bit(true, 55)
            | bit(self.root_flush, 63)
    }

    /// The extended capability register.
    #[must_use]
    pub fn extended(&self) -> u64 {
        let bit = |set: bool, at: u32| u64::from(set) << at;
        bit(self.coherent, 0)
            | bit(self.queue, 1)
            | bit(self.device_tlb, 2)
            | bit(self.pass_through, 6)
            | bit(self.snoop_control, 7)
            | u64::from(self.iotlb_offset / 16) << 8
    }
}
