//! Bit layouts of AMD-Vi, and nothing else: "AMD I/O Virtualization Technology (IOMMU) Specification",
//! 48882, revision 3.10. Names are the specification's.

#![allow(dead_code, reason = "the layouts are complete; what is used of them is not")]

pub(super) mod capability;
pub(super) mod command;
pub(super) mod device;
pub(super) mod event;
pub(super) mod page;
pub(super) mod registers;

/// Bits 51:12 of a word: every table address of AMD-Vi.
pub(super) const ADDRESS_BITS: u64 = 0x000f_ffff_ffff_f000;
