//! Global commands, protected memory, register-based invalidation.

use super::{Vtd, bits};
use crate::machine::{Bus, Violation};
use crate::paging::Pages;
use bits::{global, granularity, register};

/// A global command under way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pending {
    due: u64,
    bit: u32,
    set: bool,
}

/// The protected memory registers (section 10.4.16 on).
#[derive(Clone, Default)]
pub(super) struct Protection {
    pub(super) enable: u32,
    pub(super) low: (u32, u32),
    pub(super) high: (u64, u64),
    due: Option<u64>,
}

impl Protection {
    /// Whether an address lies in memory that is protected now. Limits are inclusive, 2 MiB granular.
    pub(super) fn covers(&self, address: u64) -> bool {
        let low = (u64::from(self.low.0), u64::from(self.low.1) | 0x1f_ffff);
        let high = (self.high.0, self.high.1 | 0x1f_ffff);
        let inside = |(base, limit): (u64, u64)| (base..=limit).contains(&address);
        self.enable & bits::PROTECTED_STATUS != 0
            && (inside(low) || self.high.1 != 0 && inside(high))
    }
}

/// The context command and IOTLB invalidate registers (sections 10.4.7 and 10.4.8).
#[derive(Clone, Default)]
pub(super) struct RegisterInvalidation {
    pub(super) context: u64,
    pub(super) address: u64,
    pub(super) iotlb: u64,
    context_due: Option<u64>,
    iotlb_due: Option<u64>,
}

impl Vtd {
    /// A write to the global command register.
    pub(super) fn write_command(&mut self, bus: &mut Bus<'_>, value: u32) {
        let changed = (value ^ self.status) & global::STANDING | value & !global::STANDING;
        if changed == 0 {
            return;
        }
        if changed.count_ones() > 1 {
            bus.misused(register::GCMD, u64::from(value), "one bit may change at a time");
        }
        if self.command.is_some() {
            bus.misused(register::GCMD, u64::from(value), "a command is still under way");
        }
        for bit in (0..32).map(|at| 1_u32 << at).filter(|bit| changed & bit != 0) {
            self.start(bus, bit, value & bit != 0);
        }
    }

    fn start(&mut self, bus: &mut Bus<'_>, bit: u32, set: bool) {
        let due = bus.now + self.config.command_time;
        let value = u64::from(bit);
        match (bit, set) {
            (global::TRANSLATION, true) if self.status & global::ROOT_POINTER == 0 => {
                bus.misused(register::GCMD, value, "translation without a root table");
            }
            (global::TRANSLATION, false) => {
                bus.misused(register::GCMD, value, "translation is turned off: everything passes");
            }
            (global::ROOT_POINTER, _) => self.status &= !global::ROOT_POINTER,
            (global::WRITE_BUFFER, _) if self.config.write_buffer => self.status |= bit,
            (global::QUEUE, _) if self.config.queue => self.check_queue_switch(bus, set),
            (global::TRANSLATION, true) => {}
            _ => {
                bus.misused(register::GCMD, value, "the unit has no such command");
                return;
            }
        }
        self.command = Some(Pending { due, bit, set });
    }

    /// Completes one command that is due; false when none is due.
    pub(super) fn step_command(&mut self, bus: &mut Bus<'_>) -> bool {
        if self.protection.due.is_some_and(|due| due <= bus.now) {
            self.protection.due = None;
            self.protection.enable &= !bits::PROTECTED_STATUS;
            if self.protection.enable & bits::PROTECTED_ENABLE != 0 {
                self.protection.enable |= bits::PROTECTED_STATUS;
            }
            return true;
        }
        if self.step_invalidation(bus) {
            return true;
        }
        let Some(Pending { bit, set, .. }) =
            self.command.take_if(|pending| pending.due <= bus.now && !self.commands_stall)
        else {
            return false;
        };
        if self.stays_off && set && bit == global::TRANSLATION {
            return true;
        }
        self.status = if set { self.status | bit } else { self.status & !bit };
        match bit {
            global::ROOT_POINTER => {
                self.root = self.root_register & bits::ADDRESS;
                if self.config.root_flush {
                    self.contexts.clear();
                    self.caches.drop_pages(Pages::Global);
                }
            }
            global::WRITE_BUFFER => {
                self.status &= !global::WRITE_BUFFER;
                bus.memory.flush_write_buffer(bus.unit);
            }
            global::QUEUE => self.queue.switch(set),
            _ => {}
        }
        true
    }

    /// A write to the root table address register.
    pub(super) fn write_root(&mut self, bus: &mut Bus<'_>, value: u64) {
        if self.command.is_some_and(|pending| pending.bit == global::ROOT_POINTER) {
            bus.misused(register::RTADDR, value, "a root table is being set");
        }
        if value & 0xfff != 0 {
            bus.misused(register::RTADDR, value, "reserved bits or a mode other than legacy");
        }
        if value & !bits::below(self.config.host_width) != 0 {
            bus.misused(register::RTADDR, value, "the address is wider than the host's");
        }
        self.root_register = value;
    }

    /// A write to the protected memory enable register.
    pub(super) fn write_protection(&mut self, bus: &mut Bus<'_>, value: u32) {
        let status = self.protection.enable & bits::PROTECTED_STATUS;
        self.protection.enable = value & bits::PROTECTED_ENABLE | status;
        self.protection.due = Some(bus.now + self.config.command_time);
    }

    /// A write to the context command register.
    pub(super) fn write_context_command(&mut self, bus: &mut Bus<'_>, value: u64) {
        self.invalidation.context = value;
        if value >> 63 != 0 {
            self.invalidation.context_due = self.register_due(bus, register::CCMD, value);
        }
    }

    /// A write to the IOTLB invalidate register.
    pub(super) fn write_iotlb_command(&mut self, bus: &mut Bus<'_>, value: u64) {
        self.invalidation.iotlb = value;
        if value >> 63 != 0 {
            let offset = self.config.iotlb_offset + 8;
            self.invalidation.iotlb_due = self.register_due(bus, offset, value);
        }
    }

    /// Returns when an invalidation by register is done: never while the queue is on (section 6.5.1).
    fn register_due(&self, bus: &mut Bus<'_>, offset: u32, value: u64) -> Option<u64> {
        if self.queue.on {
            bus.misused(offset, value, "invalidation by register while the queue is on");
            return None;
        }
        Some(bus.now + self.config.descriptor_time)
    }

    fn step_invalidation(&mut self, bus: &mut Bus<'_>) -> bool {
        if self.commands_stall {
            return false;
        }
        if self.invalidation.context_due.take_if(|due| *due <= bus.now).is_some() {
            let value = self.invalidation.context;
            let kind = value >> 61 & 3;
            let part = |at: u32| u16::try_from(value >> at & 0xffff).unwrap();
            self.invalidate_contexts(bus, kind, part(0), part(16), value >> 32 & 3);
            self.invalidation.context = value & !(1 << 63 | 3 << 59) | kind << 59;
            return true;
        }
        if self.invalidation.iotlb_due.take_if(|due| *due <= bus.now).is_some() {
            let value = self.invalidation.iotlb;
            let kind = value >> 60 & 3;
            let domain = u16::try_from(value >> 32 & 0xffff).unwrap();
            self.invalidate_pages(bus, kind, domain, self.invalidation.address);
            self.invalidation.iotlb = value & !(1 << 63 | 3 << 57) | kind << 57;
            return true;
        }
        false
    }

    /// Drops cached context entries (section 6.5.1.1). Flushes the write buffer first, like every invalidation
    /// (section 6.8).
    pub(super) fn invalidate_contexts(
        &mut self,
        bus: &mut Bus<'_>,
        kind: u64,
        domain: u16,
        source: u16,
        function_mask: u64,
    ) {
        bus.memory.flush_write_buffer(bus.unit);
        // The mask hides the low bits of the function number: bit 2, bits 2:1, bits 2:0.
        let mask = [0, 0b100, 0b110, 0b111][usize::try_from(function_mask).unwrap()];
        match kind {
            granularity::GLOBAL => self.contexts.clear(),
            granularity::DOMAIN => self.contexts.retain(|_, cached| cached.tag != domain),
            granularity::SELECTIVE => self
                .contexts
                .retain(|of, cached| cached.tag != domain || (of ^ source) & !mask != 0),
            _ => {
                let rule = "a context invalidation without granularity";
                bus.report(Violation::Queue { unit: bus.unit, value: kind, rule });
            }
        }
    }

    /// Drops cached translations (section 6.5.1.2). `address`: bits 63:12 page, 6 IH, 5:0 AM.
    pub(super) fn invalidate_pages(
        &mut self,
        bus: &mut Bus<'_>,
        kind: u64,
        domain: u16,
        address: u64,
    ) {
        let unit = bus.unit;
        bus.memory.flush_write_buffer(unit);
        let pages = match kind {
            granularity::GLOBAL => Pages::Global,
            granularity::DOMAIN => Pages::Domain(domain),
            granularity::SELECTIVE if self.config.page_selective => {
                let bytes = bits::below(12 + u32::try_from(address & 0x3f).unwrap());
                if address & !0xfff & bytes != 0 {
                    let rule = "the address is not aligned to the mask";
                    bus.report(Violation::Queue { unit, value: address, rule });
                }
                let first = address & !0xfff & !bytes;
                let leaves_only = address & 1 << 6 != 0;
                Pages::Selective { domain, first, last: first | bytes, leaves_only }
            }
            _ => {
                let rule = "an IOTLB invalidation of a granularity that the unit lacks";
                bus.report(Violation::Queue { unit, value: kind, rule });
                return;
            }
        };
        self.caches.drop_pages(pages);
    }
}
