//! Registers: offsets in bytes from the unit's base, and their bits (section 11.4).

/// VER_REG, 32 bits: major version 7:4, minor 3:0 (11.4.1).
pub(crate) const VERSION: u32 = 0x00;
/// CAP_REG, 64 bits (11.4.2).
pub(crate) const CAPABILITY: u32 = 0x08;
/// ECAP_REG, 64 bits (11.4.3).
pub(crate) const EXTENDED_CAPABILITY: u32 = 0x10;
/// GCMD_REG, 32 bits, write only (11.4.4.1).
pub(crate) const COMMAND: u32 = 0x18;
/// GSTS_REG, 32 bits, read only (11.4.4.2).
pub(crate) const STATUS: u32 = 0x1c;
/// RTADDR_REG, 64 bits (11.4.5).
pub(crate) const ROOT_TABLE: u32 = 0x20;
/// CCMD_REG, 64 bits: invalidation by register, unusable while the queue is on (11.4.6.1).
pub(crate) const CONTEXT_COMMAND: u32 = 0x28;
/// FSTS_REG, 32 bits (11.4.7.1).
pub(crate) const FAULT_STATUS: u32 = 0x34;
/// FECTL_REG, 32 bits (11.4.7.2).
pub(crate) const FAULT_CONTROL: u32 = 0x38;
/// FEDATA_REG, 32 bits (11.4.7.3).
pub(crate) const FAULT_DATA: u32 = 0x3c;
/// FEADDR_REG, 32 bits (11.4.7.4).
pub(crate) const FAULT_ADDRESS: u32 = 0x40;
/// FEUADDR_REG, 32 bits (11.4.7.5).
pub(crate) const FAULT_UPPER_ADDRESS: u32 = 0x44;
/// PMEN_REG, 32 bits (11.4.8.1).
pub(crate) const PROTECTED_MEMORY: u32 = 0x64;
/// IQH_REG, 64 bits: byte offset of the descriptor the unit fetches next, bits 18:4 (11.4.9.1).
pub(crate) const QUEUE_HEAD: u32 = 0x80;
/// IQT_REG, 64 bits: byte offset of the descriptor software writes next, bits 18:4 (11.4.9.2).
pub(crate) const QUEUE_TAIL: u32 = 0x88;
/// IQA_REG, 64 bits: address 63:12, DW 11 (256-bit descriptors), QS 2:0 (2^QS frames) (11.4.9.3).
pub(crate) const QUEUE_ADDRESS: u32 = 0x90;
/// ICS_REG, 32 bits (11.4.9.4).
pub(crate) const COMPLETION_STATUS: u32 = 0x9c;
/// IECTL_REG, 32 bits (11.4.9.5).
pub(crate) const COMPLETION_CONTROL: u32 = 0xa0;
/// IEDATA_REG, IEADDR_REG, IEUADDR_REG, 32 bits each (11.4.9.6 to 11.4.9.8).
pub(crate) const COMPLETION_DATA: u32 = 0xa4;
/// See [`COMPLETION_DATA`].
pub(crate) const COMPLETION_ADDRESS: u32 = 0xa8;
/// See [`COMPLETION_DATA`].
pub(crate) const COMPLETION_UPPER_ADDRESS: u32 = 0xac;

/// GCMD.TE and GSTS.TES: requests are translated.
pub(crate) const TRANSLATION: u32 = 1 << 31;
/// GCMD.SRTP, one shot, and GSTS.RTPS, cleared by the command and set when done: takes RTADDR_REG.
pub(crate) const SET_ROOT: u32 = 1 << 30;
/// GCMD.SFL and GSTS.FLS, one shot: takes AFLOG_REG (revision 4 and before).
pub(crate) const SET_FAULT_LOG: u32 = 1 << 29;
/// GCMD.EAFL and GSTS.AFLS: faults go to a log in memory, not to records (revision 4 and before).
pub(crate) const FAULT_LOG: u32 = 1 << 28;
/// GCMD.WBF, one shot, and GSTS.WBFS, set by the command and cleared when done.
pub(crate) const FLUSH_WRITE_BUFFER: u32 = 1 << 27;
/// GCMD.QIE and GSTS.QIES: invalidations come from the queue.
pub(crate) const QUEUE: u32 = 1 << 26;
/// GCMD.IRE and GSTS.IRES: interrupts are remapped.
pub(crate) const INTERRUPT_REMAPPING: u32 = 1 << 25;
/// GCMD.SIRTP, one shot, and GSTS.IRTPS: takes IRTA_REG.
pub(crate) const SET_INTERRUPT_TABLE: u32 = 1 << 24;
/// GCMD.CFI and GSTS.CFIS: interrupts in compatibility format pass.
pub(crate) const COMPATIBILITY_INTERRUPTS: u32 = 1 << 23;
/// Status bits that a command keeps: all but the one-shot bits (11.4.4.1, step 2).
pub(crate) const PERSISTENT: u32 = 0x96ff_ffff;

/// RTADDR.TTM: 00 legacy, 01 scalable, 11 abort.
pub(crate) const TABLE_MODE: u64 = 3 << 10;
/// RTADDR.SSIRWE: rights of second-stage entries are in bits 61 and 62.
pub(crate) const IO_RIGHTS: u64 = 1 << 7;

/// FSTS.PFO, write 1 to clear: faults were lost.
pub(crate) const OVERFLOW: u32 = 1 << 0;
/// FSTS.PPF, read only: some record has F set.
pub(crate) const PENDING: u32 = 1 << 1;
/// FSTS.AFO and APF, write 1 to clear (revision 4 and before).
pub(crate) const LOG_FAULTS: u32 = 3 << 2;
/// FSTS.IQE, write 1 to clear: the descriptor at the head is invalid; the queue stands still.
pub(crate) const QUEUE_ERROR: u32 = 1 << 4;
/// FSTS.ICE, write 1 to clear: an invalid answer of a device TLB; the queue goes on.
pub(crate) const COMPLETION_ERROR: u32 = 1 << 5;
/// FSTS.ITE, write 1 to clear: a device TLB did not answer; waits were aborted, the queue stands still.
pub(crate) const TIMEOUT_ERROR: u32 = 1 << 6;

/// FECTL.IM and IECTL.IM: no interrupt is sent.
pub(crate) const INTERRUPT_MASK: u32 = 1 << 31;

/// PMEN.EPM: devices are kept from the protected ranges.
pub(crate) const PROTECT: u32 = 1 << 31;
/// PMEN.PRS, read only: the protection is in force.
pub(crate) const PROTECTED: u32 = 1 << 0;

/// FSTS.FRI: the first record with a fault, valid while PPF is set.
pub(crate) const fn first_record(fault_status: u32) -> usize {
    ((fault_status >> 8) & 0xff) as usize
}
