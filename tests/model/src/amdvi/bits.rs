//! Encodings of AMD-Vi, from AMD's "I/O Virtualization Technology (IOMMU) Specification", publication 48882, revision
//! 3.10. Checked against the constants that FreeBSD (sys/x86/iommu/amd_reg.h), Linux
//! (drivers/iommu/amd/amd_iommu_types.h) and VirtualBox (iommu-amd.h) publish. Nothing here comes from the code under
//! test.

#![allow(missing_docs, reason = "the names are the specification's fields in words")]

/// Offsets of registers in bytes (section 3.4).
pub mod register {
    pub const DEVICE_TABLE: u32 = 0x0;
    pub const COMMAND_BASE: u32 = 0x8;
    pub const EVENT_BASE: u32 = 0x10;
    pub const CONTROL: u32 = 0x18;
    pub const EXCLUSION_BASE: u32 = 0x20;
    pub const EXCLUSION_LIMIT: u32 = 0x28;
    pub const FEATURES: u32 = 0x30;
    pub const PPR_BASE: u32 = 0x38;
    pub const COMMAND_HEAD: u32 = 0x2000;
    pub const COMMAND_TAIL: u32 = 0x2008;
    pub const EVENT_HEAD: u32 = 0x2010;
    pub const EVENT_TAIL: u32 = 0x2018;
    pub const STATUS: u32 = 0x2020;
    pub const PPR_HEAD: u32 = 0x2030;
    pub const PPR_TAIL: u32 = 0x2038;
}

/// Bits of the control register (section 3.4.1, offset 18h).
pub mod control {
    pub const ENABLE: u64 = 1;
    pub const EVENT_LOG: u64 = 1 << 2;
    pub const COHERENT: u64 = 1 << 10;
    pub const COMMANDS: u64 = 1 << 12;
    pub const PPR_LOG: u64 = 1 << 13;
    pub const PPR: u64 = 1 << 15;
    pub const SEGMENTS: u64 = 7 << 34;
    /// Bits that units without guest features, segments and interrupt modes implement: 0 to 5, 7 to 15.
    pub const KNOWN: u64 = 0xffbf;
}

/// Bits of the status register (section 3.4.11, offset 2020h).
pub mod status {
    pub const EVENT_OVERFLOW: u64 = 1;
    pub const EVENT_INTERRUPT: u64 = 1 << 1;
    pub const WAIT_INTERRUPT: u64 = 1 << 2;
    pub const EVENT_RUN: u64 = 1 << 3;
    pub const COMMAND_RUN: u64 = 1 << 4;
    pub const PPR_OVERFLOW: u64 = 1 << 5;
    pub const PPR_INTERRUPT: u64 = 1 << 6;
    pub const PPR_RUN: u64 = 1 << 7;
    /// Bits that are cleared by writing 1.
    pub const CLEARABLE: u64 =
        EVENT_OVERFLOW | EVENT_INTERRUPT | WAIT_INTERRUPT | PPR_OVERFLOW | PPR_INTERRUPT;
}

/// Bits of the exclusion base register (section 3.4.1, offset 20h).
pub mod exclusion {
    pub const ENABLE: u64 = 1;
    pub const ALL_DEVICES: u64 = 2;
}

/// Operations, bits 63:60 of a command's first word (section 2.4).
pub mod command {
    pub const WAIT: u64 = 1;
    pub const DEVICE: u64 = 2;
    pub const PAGES: u64 = 3;
    pub const DEVICE_PAGES: u64 = 4;
    pub const INTERRUPTS: u64 = 5;
    pub const PREFETCH: u64 = 6;
    pub const COMPLETE_PPR: u64 = 7;
    pub const ALL: u64 = 8;
    /// Reserved bits of each command, first and second word. Guest fields are reserved without guest translation.
    pub const WAIT_RESERVED: [u64; 2] = [0x0ff0_0000_0000_0000, 0];
    pub const DEVICE_RESERVED: [u64; 2] = [0x0fff_ffff_ffff_0000, u64::MAX];
    pub const PAGES_RESERVED: [u64; 2] = [0x0fff_0000_ffff_ffff, 0xffc];
    pub const COMPLETE_PPR_RESERVED: [u64; 2] = [0x0ff0_0000_ffff_0000, 0xffff_0c00_ffff_fff8];
    pub const ALL_RESERVED: [u64; 2] = [0x0fff_ffff_ffff_ffff, u64::MAX];
    /// S of a wait: store the data.
    pub const STORE: u64 = 1;
    /// S of an invalidation: the size is in the address.
    pub const SIZED: u64 = 1;
    /// PDE of an invalidation: entries of all levels.
    pub const ALL_LEVELS: u64 = 2;
}

/// Codes of events, bits 63:60 of an entry's first word (section 2.5), and its flags.
pub mod event {
    pub const ILLEGAL_ENTRY: u16 = 1;
    pub const PAGE_FAULT: u16 = 2;
    pub const DEVICE_TABLE_ERROR: u16 = 3;
    pub const PAGE_TABLE_ERROR: u16 = 4;
    pub const ILLEGAL_COMMAND: u16 = 5;
    pub const COMMAND_ERROR: u16 = 6;
    pub const INVALID_REQUEST: u16 = 8;
    pub const PRESENT: u64 = 1 << 52;
    pub const WRITE: u64 = 1 << 53;
    pub const PERMISSION: u64 = 1 << 54;
    pub const RESERVED: u64 = 1 << 55;
}

/// Code of a page request in the PPR log (section 2.6).
pub const PAGE_REQUEST: u64 = 1;

/// Device table entries, by word (section 2.2.2.1).
pub mod device {
    pub const VALID: u64 = 1;
    pub const TRANSLATION_VALID: u64 = 1 << 1;
    pub const MODE_SHIFT: u32 = 9;
    pub const READ: u64 = 1 << 61;
    pub const WRITE: u64 = 1 << 62;
    /// PPR, word 0: reserved on units without page requests.
    pub const PPR: u64 = 1 << 52;
    /// SA, word 1: no page fault is logged.
    pub const SILENT: u64 = 1 << 34;
    /// SD, word 1: walks do not snoop.
    pub const NO_SNOOP: u64 = 1 << 38;
    /// EX, word 1: the exclusion range applies to the device.
    pub const EXCLUDED: u64 = 1 << 39;
    /// Bits reserved without guest translation, host access and dirty bits, and device TLBs.
    pub const RESERVED: [u64; 4] =
        [0x9fe0_0000_0000_01fc, 0xffff_fc01_ffff_0000, 0x08f0_0000_0000_0000, u64::MAX];
}

/// Entries of page tables (section 2.2.3).
pub mod page {
    pub const PRESENT: u64 = 1;
    /// FC: every access snoops.
    pub const FORCE_COHERENT: u64 = 1 << 60;
    pub const NEXT_SHIFT: u32 = 9;
    pub const READ: u64 = 1 << 61;
    pub const WRITE: u64 = 1 << 62;
    /// Bits 58:52 of a leaf, 60:52 of a link.
    pub const LEAF_RESERVED: u64 = 0x07f0_0000_0000_0000;
    pub const LINK_RESERVED: u64 = 0x1ff0_0000_0000_0000;
}

/// Address field of base registers, device table entries and page table entries.
pub const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// Byte offset in a head or tail register.
pub const POINTER: u64 = 0x7_fff0;
/// HyperTransport's own addresses, which are not memory (table "Special address controls").
pub const HYPERTRANSPORT: std::ops::RangeInclusive<u64> = 0xfd_0000_0000..=0xff_ffff_ffff;

pub use crate::paging::below;
