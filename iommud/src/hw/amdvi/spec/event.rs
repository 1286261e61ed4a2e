//! Entries of the event log (48882 section 2.5) and of the PPR log (section 2.6): two words of 64 bits.

use crate::hw::fields::{bits, byte, half};

/// Bytes of an entry of either log.
pub(crate) const SIZE: u64 = 16;

/// Event codes, bits 63:60 of the first word.
pub(crate) mod code {
    /// ILLEGAL_DEV_TABLE_ENTRY.
    pub(crate) const ILLEGAL_ENTRY: u8 = 0x1;
    /// IO_PAGE_FAULT.
    pub(crate) const PAGE_FAULT: u8 = 0x2;
    /// DEV_TAB_HARDWARE_ERROR.
    pub(crate) const DEVICE_TABLE_ERROR: u8 = 0x3;
    /// PAGE_TAB_HARDWARE_ERROR.
    pub(crate) const PAGE_TABLE_ERROR: u8 = 0x4;
    /// ILLEGAL_COMMAND_ERROR.
    pub(crate) const ILLEGAL_COMMAND: u8 = 0x5;
    /// COMMAND_HARDWARE_ERROR.
    pub(crate) const COMMAND_ERROR: u8 = 0x6;
    /// IOTLB_INV_TIMEOUT.
    pub(crate) const DEVICE_TIMEOUT: u8 = 0x7;
    /// INVALID_DEVICE_REQUEST.
    pub(crate) const INVALID_REQUEST: u8 = 0x8;
    /// INVALID_PPR_REQUEST.
    pub(crate) const INVALID_PAGE_REQUEST: u8 = 0x9;
    /// EVENT_COUNTER_ZERO.
    pub(crate) const COUNTER_ZERO: u8 = 0xa;
    /// GUEST_EVENT_FAULT.
    pub(crate) const GUEST_EVENT: u8 = 0xb;
    /// VIOMMU_HARDWARE_ERROR.
    pub(crate) const VIRTUAL_ERROR: u8 = 0xc;
    /// RMP_PAGE_FAULT.
    pub(crate) const OWNERSHIP_FAULT: u8 = 0xd;
    /// RMP_HARDWARE_ERROR.
    pub(crate) const OWNERSHIP_ERROR: u8 = 0xe;
}

/// GN, first word: the number in bits 47:32 is a process, not a domain.
pub(crate) const GUEST: u64 = 1 << 48;
/// I: the request was an interrupt.
pub(crate) const INTERRUPT: u64 = 1 << 51;
/// PR: the page was present (IO_PAGE_FAULT).
pub(crate) const PRESENT: u64 = 1 << 52;
/// RW: the request was a write.
pub(crate) const WRITE: u64 = 1 << 53;
/// PE: the entry did not allow it (IO_PAGE_FAULT).
pub(crate) const PERMISSION: u64 = 1 << 54;
/// RZ: a reserved bit was set or a level was invalid.
pub(crate) const RESERVED: u64 = 1 << 55;
/// TR: a request for a translation, not for memory.
pub(crate) const TRANSLATION: u64 = 1 << 56;

/// The event code, or the code of a PPR log entry.
pub(crate) const fn code_of(first: u64) -> u8 {
    byte(bits(first, 60, 4), 0)
}

/// DeviceID: the requester.
pub(crate) const fn source(first: u64) -> u16 {
    half(first, 0)
}

/// Type of INVALID_DEVICE_REQUEST: bits 59:57.
pub(crate) const fn request_type(first: u64) -> u8 {
    byte(bits(first, 57, 3), 0)
}

/// The entry of the PPR log that asks for a page, bits 63:60 of the first word (PAGE_SERVICE_REQUEST).
pub(crate) const PAGE_REQUEST: u8 = 0x1;

/// Tag of a page request, which the answer repeats: bits 41:32.
pub(crate) const fn request_tag(first: u64) -> u16 {
    half(bits(first, 32, 10), 0)
}

/// Process of a page request, where GN (bit 56) says there is one: bits 31:16 and 45:42.
pub(crate) fn request_process(first: u64) -> Option<u32> {
    let [low, high] = [half(first, 16), half(bits(first, 42, 4), 0)];
    (first & 1 << 56 != 0).then(|| u32::from(high) << 16 | u32::from(low))
}
