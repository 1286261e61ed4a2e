//! The event log and the log of page requests (48882 sections 2.5 and 2.6).

use super::{Amdvi, bits};
use crate::machine::{Bus, Request, Use, Violation};

/// A log in memory.
#[derive(Clone, Default)]
pub(super) struct Log {
    /// The base register: address, and log2 of the number of entries in bits 59:56.
    pub(super) base: u64,
    /// Byte offsets.
    pub(super) head: u64,
    pub(super) tail: u64,
    pub(super) running: bool,
    pub(super) overflow: bool,
    /// Entries announced but not yet in memory: time, address, content.
    late: Vec<(u64, u64, [u64; 2])>,
    lost: u64,
}

impl Log {
    /// Size in bytes. Values of the length field below 8 are reserved.
    pub(super) fn size(&self) -> u64 {
        16 << (self.base >> 56 & 0xf)
    }

    /// Adds an entry that reaches memory at `due`.
    fn add(&mut self, due: u64, entry: [u64; 2]) {
        let next = (self.tail + 16) % self.size();
        if !self.running || self.overflow {
            self.lost += 1;
        } else if next == self.head {
            self.lost += 1;
            // Section 2.5.1: logging stops until software has restarted the log.
            self.overflow = true;
            self.running = false;
        } else {
            self.late.push((due, (self.base & bits::ADDRESS) + self.tail, entry));
            self.tail = next;
        }
    }

    /// Writes one entry that is due; false when none is due.
    fn step(&mut self, bus: &mut Bus<'_>) -> bool {
        if self.late.first().is_none_or(|(due, ..)| *due > bus.now) {
            return false;
        }
        let (_, address, entry) = self.late.remove(0);
        if !matches!(bus.memory.purpose(address), Some(Use::Table | Use::Firmware)) {
            bus.report(Violation::StatusForeign { unit: bus.unit, address });
        }
        // The first word marks the entry as present, so it is written last.
        bus.memory.snooped_store(address + 8, entry[1]);
        bus.memory.snooped_store(address, entry[0]);
        true
    }
}

impl Amdvi {
    /// Entries of the event log that were dropped.
    #[must_use]
    pub fn events_lost(&self) -> u64 {
        self.events.lost
    }

    /// Logs an event unchanged.
    pub fn log_event(&mut self, now: u64, entry: [u64; 2]) {
        self.events.add(now + self.config.entry_time, entry);
    }

    /// A device requests a page (PAGE_SERVICE_REQUEST), for reading, without a process number.
    pub fn request_page(&mut self, now: u64, source: u16, tag: u16, iova: u64) {
        if self.control & bits::control::PPR == 0 {
            return;
        }
        let first = bits::PAGE_REQUEST << 60 | u64::from(tag & 0x1ff) << 32 | u64::from(source);
        self.requests.add(now + self.config.entry_time, [first, iova & !0xfff]);
    }

    pub(super) fn step_logs(&mut self, bus: &mut Bus<'_>) -> bool {
        self.events.step(bus) || self.requests.step(bus)
    }

    /// Logs a fault of a device.
    pub(super) fn record(
        &mut self,
        now: u64,
        request: Request,
        code: u16,
        domain: u16,
        flags: u64,
    ) {
        let write = if request.write { bits::event::WRITE } else { 0 };
        let first = u64::from(code) << 60
            | flags
            | write
            | u64::from(domain) << 32
            | u64::from(request.source);
        self.log_event(now, [first, request.iova]);
    }
}
