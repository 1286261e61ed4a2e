//! Encodings of VT-d, from Intel's "Virtualization Technology for Directed I/O, Architecture Specification" revision
//! 4.1. Checked against the constants that QEMU (hw/i386/intel_iommu_internal.h) and Linux
//! (drivers/iommu/intel/iommu.h) publish. Nothing here comes from the code under test.

#![allow(missing_docs, reason = "the names are the specification's fields in words")]

/// Offsets of registers in bytes (section 10.4).
pub mod register {
    pub const VER: u32 = 0x00;
    pub const CAP: u32 = 0x08;
    pub const ECAP: u32 = 0x10;
    pub const GCMD: u32 = 0x18;
    pub const GSTS: u32 = 0x1c;
    pub const RTADDR: u32 = 0x20;
    pub const CCMD: u32 = 0x28;
    pub const FSTS: u32 = 0x34;
    pub const FECTL: u32 = 0x38;
    pub const FEDATA: u32 = 0x3c;
    pub const FEADDR: u32 = 0x40;
    pub const FEUADDR: u32 = 0x44;
    pub const PMEN: u32 = 0x64;
    pub const PLMBASE: u32 = 0x68;
    pub const PLMLIMIT: u32 = 0x6c;
    pub const PHMBASE: u32 = 0x70;
    pub const PHMLIMIT: u32 = 0x78;
    pub const IQH: u32 = 0x80;
    pub const IQT: u32 = 0x88;
    pub const IQA: u32 = 0x90;
    pub const ICS: u32 = 0x9c;
    pub const IECTL: u32 = 0xa0;
    pub const IEDATA: u32 = 0xa4;
    pub const IEADDR: u32 = 0xa8;
    pub const IEUADDR: u32 = 0xac;
    pub const IQERCD: u32 = 0xb0;
    pub const IRTA: u32 = 0xb8;
}

/// Bits of the global command and status registers (sections 10.4.4 and 10.4.5).
pub mod global {
    pub const TRANSLATION: u32 = 1 << 31;
    pub const ROOT_POINTER: u32 = 1 << 30;
    pub const FAULT_LOG_POINTER: u32 = 1 << 29;
    pub const ADVANCED_FAULT_LOG: u32 = 1 << 28;
    pub const WRITE_BUFFER: u32 = 1 << 27;
    pub const QUEUE: u32 = 1 << 26;
    pub const INTERRUPT_REMAPPING: u32 = 1 << 25;
    pub const INTERRUPT_POINTER: u32 = 1 << 24;
    pub const COMPATIBILITY_FORMAT: u32 = 1 << 23;
    /// Bits that keep their value until changed; the others are commands.
    pub const STANDING: u32 =
        TRANSLATION | ADVANCED_FAULT_LOG | QUEUE | INTERRUPT_REMAPPING | COMPATIBILITY_FORMAT;
}

/// Bits of the fault status register (section 10.4.9).
pub mod fault_status {
    pub const OVERFLOW: u32 = 1;
    pub const PENDING: u32 = 1 << 1;
    pub const QUEUE_ERROR: u32 = 1 << 4;
    pub const COMPLETION_ERROR: u32 = 1 << 5;
    pub const TIMEOUT_ERROR: u32 = 1 << 6;
    /// Bits that are cleared by writing 1.
    pub const CLEARABLE: u32 = OVERFLOW | QUEUE_ERROR | COMPLETION_ERROR | TIMEOUT_ERROR;
    pub const INDEX_SHIFT: u32 = 8;
}

/// Mask and pending bits of the event control registers (sections 10.4.10 and 10.4.26).
pub const EVENT_MASK: u32 = 1 << 31;
/// See [`EVENT_MASK`].
pub const EVENT_PENDING: u32 = 1 << 30;

/// Protected memory enable: EPM and PRS (section 10.4.16).
pub const PROTECTED_ENABLE: u32 = 1 << 31;
/// See [`PROTECTED_ENABLE`].
pub const PROTECTED_STATUS: u32 = 1;

/// Types of descriptors (section 6.5.2): bits 3:0 of the first word, with bits 11:9 as the high part.
pub mod descriptor {
    pub const TYPE: u64 = 0xf | 7 << 9;
    pub const CONTEXT: u64 = 1;
    pub const IOTLB: u64 = 2;
    pub const DEVICE_TLB: u64 = 3;
    pub const INTERRUPT_ENTRY: u64 = 4;
    pub const WAIT: u64 = 5;
    /// Reserved bits, first and second word, of each type.
    pub const CONTEXT_RESERVED: [u64; 2] = [0xfffc_0000_0000_f1c0, u64::MAX];
    pub const IOTLB_RESERVED: [u64; 2] = [0xffff_ffff_0000_f100, 0xf80];
    pub const DEVICE_TLB_RESERVED: [u64; 2] = [0x000f_0000_ffe0_01f0, 0xffe];
    pub const WAIT_RESERVED: [u64; 2] = [0xffff_f100, 3];
    pub const WAIT_INTERRUPT: u64 = 1 << 4;
    pub const WAIT_STATUS: u64 = 1 << 5;
}

/// Codes of the invalidation queue error record (section 10.4.28, IQEI).
pub mod queue_error {
    pub const FETCH: u64 = 1;
    pub const TYPE: u64 = 2;
    pub const RESERVED: u64 = 3;
    pub const WIDTH: u64 = 4;
    pub const TAIL: u64 = 5;
}

/// Fault reasons of legacy mode (chapter 7; QEMU's VTDFaultReason).
pub mod reason {
    pub const ROOT_ABSENT: u16 = 0x1;
    pub const CONTEXT_ABSENT: u16 = 0x2;
    pub const CONTEXT_INVALID: u16 = 0x3;
    pub const ADDRESS_WIDTH: u16 = 0x4;
    pub const WRITE: u16 = 0x5;
    pub const READ: u16 = 0x6;
    pub const PAGE_TABLE_ACCESS: u16 = 0x7;
    pub const ROOT_TABLE_ACCESS: u16 = 0x8;
    pub const CONTEXT_TABLE_ACCESS: u16 = 0x9;
    pub const ROOT_RESERVED: u16 = 0xa;
    pub const CONTEXT_RESERVED: u16 = 0xb;
    pub const PAGE_RESERVED: u16 = 0xc;
}

/// Granularities of an invalidation: bits 5:4 of a descriptor, IIRG, CIRG (section 6.5).
pub mod granularity {
    pub const GLOBAL: u64 = 1;
    pub const DOMAIN: u64 = 2;
    pub const SELECTIVE: u64 = 3;
}

/// Present bit of root and context entries (sections 9.1 and 9.3).
pub const PRESENT: u64 = 1;
/// Fault processing disable of a context entry.
pub const NO_FAULTS: u64 = 1 << 1;
/// Address field of root, context and page table entries, before the host address width is applied.
pub const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// Second-level entry: read, write (section 9.8).
pub const READ: u64 = 1;
/// See [`READ`].
pub const WRITE: u64 = 1 << 1;
/// Second-level entry that maps a page of 2 MiB or 1 GiB; reserved in the others.
pub const LARGE: u64 = 1 << 7;
/// Second-level leaf: snoop behaviour; reserved without ECAP.SC.
pub const SNOOP: u64 = 1 << 11;
/// Second-level leaf: transient mapping; reserved without ECAP.DT.
pub const TRANSIENT: u64 = 1 << 62;

pub use crate::paging::below;
