//! The invalidation queue (VT-d 4.1 section 6.5.2).

use super::{Vtd, bits};
use crate::machine::{Bus, Use, Violation};
use bits::{descriptor, fault_status, granularity, queue_error, register};

/// State of the queue.
#[derive(Clone, Default)]
pub(super) struct Queue {
    pub(super) on: bool,
    /// The address register: base, and the size as a power of two of frames in bits 2:0.
    pub(super) address: u64,
    /// Byte offsets.
    pub(super) head: u64,
    pub(super) tail: u64,
    pub(super) error_record: u64,
    /// Wait completed (ICS.IWC).
    pub(super) completed: u32,
    /// Descriptors until the queue stalls.
    pub(super) left: Option<u64>,
    due: Option<u64>,
    executed: u64,
    counts: Counts,
    /// The device that left a device-TLB invalidation uncompleted. The next wait is aborted.
    unanswered: Option<u16>,
    abort_waits: u64,
    break_after: Option<u64>,
}

/// Descriptors executed, by type.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Context-cache invalidations.
    pub contexts: u64,
    /// IOTLB invalidations of all kinds.
    pub pages: u64,
    /// Device-TLB invalidations.
    pub device_pages: u64,
    /// Waits.
    pub waits: u64,
}

/// A descriptor that hardware rejects, with the code for the error record.
struct Malformed(u64);

impl Queue {
    pub(super) fn size(&self) -> u64 {
        4096 << (self.address & 7)
    }

    pub(super) fn switch(&mut self, on: bool) {
        self.on = on;
        self.due = None;
        self.head = 0;
        if !on {
            self.unanswered = None;
        }
    }
}

impl Vtd {
    /// Descriptors executed so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.queue.counts
    }

    /// Byte offset of the queue's head, and the queue's size in bytes.
    #[must_use]
    pub fn queue_position(&self) -> (u64, u64) {
        (self.queue.head, self.queue.size())
    }

    /// Aborts the next `count` waits with a time-out error. Hardware does so when a device does not complete an
    /// invalidation of its TLB (section 6.5.2.11).
    pub fn abort_waits(&mut self, count: u64) {
        self.queue.abort_waits = count;
    }

    /// Reports a queue error (fetch failed) once, after the next `after` descriptors.
    pub fn break_descriptor(&mut self, after: u64) {
        self.queue.break_after = Some(after);
    }

    /// Reports that a device completed an invalidation that was never requested (ICE).
    pub fn completion_error(&mut self) {
        self.raise(fault_status::COMPLETION_ERROR);
    }

    /// Makes a device leave device-TLB invalidations uncompleted.
    pub fn silence_device(&mut self, source: u16) {
        self.silent_devices.insert(source);
    }

    pub(super) fn check_queue_switch(&mut self, bus: &mut Bus<'_>, on: bool) {
        let queue = &self.queue;
        if on && queue.tail != 0 {
            bus.misused(register::GCMD, queue.tail, "the queue starts with a tail other than 0");
        }
        if !on && queue.head != queue.tail && !self.queue_broken() && queue.left != Some(0) {
            bus.misused(register::GCMD, queue.head, "the queue is turned off while it works");
        }
    }

    pub(super) fn write_queue_address(&mut self, bus: &mut Bus<'_>, value: u64) {
        if self.queue.on {
            bus.misused(register::IQA, value, "the queue's address changes while it is on");
        }
        if value & 0xff8 != 0 || value & !bits::below(self.config.host_width) != 0 {
            bus.misused(register::IQA, value, "reserved bits or descriptors of 256 bits");
        }
        self.queue.address = value;
    }

    pub(super) fn write_tail(&mut self, bus: &mut Bus<'_>, value: u64) {
        if value & !0x7_fff0 != 0 || value >= self.queue.size() {
            bus.misused(register::IQT, value, "the tail is misaligned or outside the queue");
            self.reject(queue_error::TAIL);
            return;
        }
        self.queue.tail = value;
        self.schedule(bus.now);
    }

    /// Resumes the queue after an error was cleared or a tail written.
    pub(super) fn schedule(&mut self, now: u64) {
        if self.queue.on && self.queue.due.is_none() && self.queue.head != self.queue.tail {
            self.queue.due = Some(now + self.config.descriptor_time);
        }
    }

    fn queue_broken(&self) -> bool {
        self.faults.status & (fault_status::QUEUE_ERROR | fault_status::TIMEOUT_ERROR) != 0
    }

    fn reject(&mut self, code: u64) {
        self.queue.error_record = self.queue.error_record & !0xf | code;
        self.raise(fault_status::QUEUE_ERROR);
    }

    /// Checks that no descriptor waiting in the queue changes, except a rejected one.
    pub(super) fn check_overwrite(&mut self, bus: &mut Bus<'_>, address: u64) {
        let queue = &self.queue;
        let base = queue.address & bits::ADDRESS;
        if !queue.on || address < base || address - base >= queue.size() || self.dead {
            return;
        }
        let slot = (address - base) & !15;
        let waiting = slot.wrapping_sub(queue.head) & (queue.size() - 1)
            < queue.tail.wrapping_sub(queue.head) & (queue.size() - 1);
        if waiting && !self.queue_broken() {
            let rule = "a descriptor is overwritten that was not executed yet";
            bus.report(Violation::Queue { unit: bus.unit, value: slot, rule });
        }
    }

    /// Executes the next descriptor if it is due; false when it is not.
    pub(super) fn step_queue(&mut self, bus: &mut Bus<'_>) -> bool {
        let due = self.queue.due.is_some_and(|due| due <= bus.now);
        if !due || self.queue_broken() || self.queue.left == Some(0) {
            return false;
        }
        self.queue.due = None;
        let head = self.queue.head;
        match self.execute(bus) {
            Ok(()) => {
                self.queue.head = (head + 16) % self.queue.size();
                self.queue.executed += 1;
                if let Some(left) = &mut self.queue.left {
                    *left -= 1;
                }
            }
            Err(Malformed(code)) => self.reject(code),
        }
        if !self.queue_broken() {
            self.schedule(bus.now);
        }
        true
    }

    fn execute(&mut self, bus: &mut Bus<'_>) -> Result<(), Malformed> {
        let address = (self.queue.address & bits::ADDRESS) + self.queue.head;
        if !matches!(bus.memory.purpose(address), Some(Use::Table | Use::Firmware)) {
            bus.report(Violation::WalkedForeign { unit: bus.unit, address });
            return Err(Malformed(queue_error::FETCH));
        }
        match &mut self.queue.break_after {
            Some(0) => {
                self.queue.break_after = None;
                return Err(Malformed(queue_error::FETCH));
            }
            Some(after) => *after -= 1,
            None => {}
        }
        // Reads of the queue always snoop, also when ECAP.C is clear (section 10.4.3).
        let words = [bus.memory.cpu_load(address), bus.memory.cpu_load(address + 8)];
        let reserved = |mask: [u64; 2]| {
            let set = words[0] & mask[0] | words[1] & mask[1];
            if set == 0 { Ok(()) } else { Err(Malformed(queue_error::RESERVED)) }
        };
        let part = |at: u32| u16::try_from(words[0] >> at & 0xffff).unwrap();
        let kind = words[0] >> 4 & 3;
        match words[0] & descriptor::TYPE {
            descriptor::CONTEXT => {
                reserved(descriptor::CONTEXT_RESERVED)?;
                if kind == 0 {
                    return Err(Malformed(queue_error::RESERVED));
                }
                self.queue.counts.contexts += 1;
                self.invalidate_contexts(bus, kind, part(16), part(32), words[0] >> 48 & 3);
            }
            descriptor::IOTLB => {
                reserved(descriptor::IOTLB_RESERVED)?;
                let mask = words[1] & 0x3f;
                let wide = kind == granularity::SELECTIVE && mask > u64::from(self.config.max_mask);
                if kind == 0 || wide {
                    return Err(Malformed(queue_error::RESERVED));
                }
                self.queue.counts.pages += 1;
                self.invalidate_pages(bus, kind, part(16), words[1]);
            }
            descriptor::DEVICE_TLB if self.config.device_tlb => {
                reserved(descriptor::DEVICE_TLB_RESERVED)?;
                self.queue.counts.device_pages += 1;
                if self.silent_devices.contains(&part(32)) {
                    self.queue.unanswered = Some(part(32));
                }
            }
            descriptor::WAIT => {
                reserved(descriptor::WAIT_RESERVED)?;
                self.queue.counts.waits += 1;
                self.wait(bus, words);
            }
            _ => return Err(Malformed(queue_error::TYPE)),
        }
        Ok(())
    }

    fn wait(&mut self, bus: &mut Bus<'_>, [low, high]: [u64; 2]) {
        let unit = bus.unit;
        if self.queue.abort_waits > 0 || self.queue.unanswered.is_some() {
            self.queue.abort_waits = self.queue.abort_waits.saturating_sub(1);
            let source = u64::from(self.queue.unanswered.take().unwrap_or(0));
            self.queue.error_record = self.queue.error_record & !(0xffff << 32) | source << 32;
            self.raise(fault_status::TIMEOUT_ERROR);
            return;
        }
        let (status, interrupt) =
            (low & descriptor::WAIT_STATUS != 0, low & descriptor::WAIT_INTERRUPT != 0);
        if status == interrupt {
            let rule = "a wait needs a status write or an interrupt, one of the two";
            bus.report(Violation::Queue { unit, value: low, rule });
        }
        if interrupt {
            self.queue.completed = 1;
        }
        if status {
            if bus.memory.purpose(high) != Some(Use::Table) {
                bus.report(Violation::StatusForeign { unit, address: high });
            }
            let data = u32::try_from(low >> 32).unwrap();
            bus.memory.write_bytes(high, &data.to_le_bytes());
        }
    }
}
