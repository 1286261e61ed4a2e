//! Primary fault logging (VT-d 4.1 section 7.2.1).

use super::{Vtd, bits};
use crate::machine::Request;
use bits::fault_status;

/// The fault recording registers, the fault status register and the fault event registers.
#[derive(Clone)]
pub(super) struct Log {
    /// Low and high half of each record.
    pub(super) records: Vec<[u64; 2]>,
    next: usize,
    /// The fault status register without PPF. PPF is computed from the records.
    pub(super) status: u32,
    pub(super) control: u32,
    pub(super) data: u32,
    pub(super) address: u32,
    pub(super) upper_address: u32,
    interrupts: u64,
    dropped: u64,
}

/// F of the high half (bit 127 of the record).
const FAULT: u64 = 1 << 63;
/// T1 of the high half (bit 126): a read.
const READ: u64 = 1 << 62;

impl Log {
    pub(super) fn new(records: usize) -> Self {
        Self {
            records: vec![[0; 2]; records],
            next: 0,
            status: 0,
            control: bits::EVENT_MASK,
            data: 0,
            address: 0,
            upper_address: 0,
            interrupts: 0,
            dropped: 0,
        }
    }

    fn pending(&self) -> bool {
        self.records.iter().any(|record| record[1] & FAULT != 0)
    }

    /// The fault status register.
    pub(super) fn status_register(&self) -> u32 {
        self.status | if self.pending() { fault_status::PENDING } else { 0 }
    }

    /// Handles a write to the high half of a record. Writing 1 clears F.
    pub(super) fn write_high(&mut self, index: usize, value: u64) {
        if value & FAULT != 0
            && let Some(record) = self.records.get_mut(index)
        {
            record[1] &= !FAULT;
        }
    }

    pub(super) fn event(&mut self) {
        if self.control & bits::EVENT_MASK != 0 {
            self.control |= bits::EVENT_PENDING;
        } else {
            self.interrupts += 1;
        }
    }

    /// Handles a write to the fault event control register. Unmasking delivers a pending event at once.
    pub(super) fn write_control(&mut self, value: u32) {
        let pending = self.control & bits::EVENT_PENDING;
        self.control = value & bits::EVENT_MASK | pending;
        if self.control == bits::EVENT_PENDING {
            self.control = 0;
            self.interrupts += 1;
        }
    }
}

impl Vtd {
    /// Fault interrupts sent so far.
    #[must_use]
    pub fn fault_interrupts(&self) -> u64 {
        self.faults.interrupts
    }

    /// Faults dropped because no record was free or an overflow was not cleared.
    #[must_use]
    pub fn faults_dropped(&self) -> u64 {
        self.faults.dropped
    }

    /// The raw records, low and high half.
    #[must_use]
    pub fn fault_records(&self) -> Vec<[u64; 2]> {
        self.faults.records.clone()
    }

    /// Sets a bit of the fault status register, with its event.
    pub(super) fn raise(&mut self, bit: u32) {
        self.faults.status |= bit;
        self.faults.event();
    }

    pub(super) fn record_fault(&mut self, request: Request, reason: u16) {
        let log = &mut self.faults;
        if log.status & fault_status::OVERFLOW != 0 {
            log.dropped += 1;
            return;
        }
        let source = u64::from(request.source);
        let same = |record: &[u64; 2]| record[1] & FAULT != 0 && record[1] & 0xffff == source;
        if self.config.collapse_faults && log.records.iter().any(same) {
            log.dropped += 1;
            return;
        }
        let index = log.next;
        if log.records[index][1] & FAULT != 0 {
            log.dropped += 1;
            log.status |= fault_status::OVERFLOW;
            return;
        }
        let first = !log.pending();
        let kind = if request.write { 0 } else { READ };
        log.records[index] =
            [request.iova & !0xfff, FAULT | kind | u64::from(reason) << 32 | source];
        log.next = (index + 1) % log.records.len();
        if first {
            let field = u32::try_from(index).unwrap() << fault_status::INDEX_SHIFT;
            log.status = log.status & !(0xff << fault_status::INDEX_SHIFT) | field;
            log.event();
        }
    }
}
