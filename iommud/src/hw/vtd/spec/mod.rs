//! Bit layouts, and nothing else. Names in the comments are the specification's.

#![allow(dead_code, reason = "the layouts are complete; what is used of them is not")]

pub(super) mod capability;
pub(super) mod descriptor;
pub(super) mod entry;
pub(super) mod fault;
mod page;
pub(super) mod register;

pub use page::SecondStage;

/// Bits 51:12 of a word: every table address of VT-d. Bits from the host address width on are reserved.
pub(super) const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
