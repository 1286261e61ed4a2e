//! Reads and writes of registers (48882 section 3.4). All have 64 bits.

use super::{Amdvi, bits};
use crate::machine::Bus;
use bits::{control, register, status};

/// Bytes of the registers.
const LENGTH: u32 = 0x4000;

impl Amdvi {
    fn check_access(bus: &mut Bus<'_>, offset: u32, width: u8, value: u64) -> bool {
        if offset >= LENGTH {
            return false;
        }
        if width != 8 || !offset.is_multiple_of(8) {
            bus.misused(offset, value, "an access of other than 64 aligned bits");
            return false;
        }
        true
    }

    pub(super) fn read_register(&mut self, bus: &mut Bus<'_>, offset: u32, width: u8) -> u64 {
        if self.dead || !Self::check_access(bus, offset, width, 0) {
            return if width == 8 { u64::MAX } else { u64::from(u32::MAX) };
        }
        match offset {
            register::DEVICE_TABLE => self.table,
            register::COMMAND_BASE => self.ring.base,
            register::EVENT_BASE => self.events.base,
            register::CONTROL => self.control,
            register::EXCLUSION_BASE => self.exclusion.0,
            register::EXCLUSION_LIMIT => self.exclusion.1,
            register::FEATURES if self.config.extended => self.config.features(),
            register::PPR_BASE => self.requests.base,
            register::COMMAND_HEAD => self.ring.head,
            register::COMMAND_TAIL => self.ring.tail,
            register::EVENT_HEAD => self.events.head,
            register::EVENT_TAIL => self.events.tail,
            register::STATUS => self.status(),
            register::PPR_HEAD => self.requests.head,
            register::PPR_TAIL => self.requests.tail,
            _ => 0,
        }
    }

    fn status(&self) -> u64 {
        let bit = |set: bool, bit: u64| if set { bit } else { 0 };
        bit(self.events.overflow, status::EVENT_OVERFLOW)
            | bit(self.events.running, status::EVENT_RUN)
            | bit(self.ring.running, status::COMMAND_RUN)
            | bit(self.requests.overflow, status::PPR_OVERFLOW)
            | bit(self.requests.running, status::PPR_RUN)
    }

    pub(super) fn write_register(&mut self, bus: &mut Bus<'_>, offset: u32, width: u8, value: u64) {
        if self.dead || !Self::check_access(bus, offset, width, value) {
            return;
        }
        match offset {
            register::DEVICE_TABLE => {
                if value & 0xe00 != 0 || value & !bits::below(self.config.host_width) != 0 {
                    bus.misused(offset, value, "reserved bits of a base");
                }
                self.table = value;
            }
            register::CONTROL => self.write_control(bus, value),
            register::EXCLUSION_BASE => self.exclusion.0 = value,
            register::EXCLUSION_LIMIT => self.exclusion.1 = value,
            register::COMMAND_TAIL => self.write_tail(bus, value),
            register::STATUS => {
                self.events.overflow &= value & status::EVENT_OVERFLOW == 0;
                self.requests.overflow &= value & status::PPR_OVERFLOW == 0;
                if value & !status::CLEARABLE != 0 {
                    bus.misused(offset, value, "a write to bits that are read-only");
                }
            }
            register::EVENT_HEAD if self.events.running => {
                self.events.head = Self::pointer(bus, offset, value, self.events.size());
            }
            register::PPR_HEAD if self.requests.running => {
                self.requests.head = Self::pointer(bus, offset, value, self.requests.size());
            }
            _ => self.write_stopped(bus, offset, value),
        }
    }

    /// Checks a head or tail of a ring of `size` bytes.
    fn pointer(bus: &mut Bus<'_>, offset: u32, value: u64, size: u64) -> u64 {
        if value & !bits::POINTER != 0 || value >= size {
            bus.misused(offset, value, "misaligned or outside the ring");
        }
        value & bits::POINTER
    }

    /// Writes a register that may be written only while its ring is stopped.
    fn write_stopped(&mut self, bus: &mut Bus<'_>, offset: u32, value: u64) {
        let (ring, events, requests) = (&mut self.ring, &mut self.events, &mut self.requests);
        let (running, place) = match offset {
            register::COMMAND_BASE => (ring.running, &mut ring.base),
            register::COMMAND_HEAD => (ring.running, &mut ring.head),
            register::EVENT_BASE => (events.running, &mut events.base),
            // An overflowed log has stopped. Software reads it before starting it again.
            register::EVENT_HEAD => (false, &mut events.head),
            register::EVENT_TAIL => (events.running, &mut events.tail),
            register::PPR_BASE if self.config.page_requests => {
                (requests.running, &mut requests.base)
            }
            register::PPR_HEAD if self.config.page_requests => (false, &mut requests.head),
            register::PPR_TAIL if self.config.page_requests => {
                (requests.running, &mut requests.tail)
            }
            _ => {
                bus.misused(offset, value, "a write to a register that takes none");
                return;
            }
        };
        *place = value;
        if running {
            bus.misused(offset, value, "a ring changes while it runs");
        }
        let base =
            matches!(offset, register::COMMAND_BASE | register::EVENT_BASE | register::PPR_BASE);
        if base && !(8..=15).contains(&(value >> 56)) {
            bus.misused(offset, value, "a length below 256 entries, or reserved bits");
        }
    }

    fn write_control(&mut self, bus: &mut Bus<'_>, value: u64) {
        let old = self.control;
        let mut value = value;
        if !self.config.coherent {
            value &= !control::COHERENT;
        }
        if value & !(control::KNOWN | control::SEGMENTS) != 0 {
            bus.misused(register::CONTROL, value, "a feature that the unit does not have");
        }
        if !self.config.page_requests && value & (control::PPR | control::PPR_LOG) != 0 {
            bus.misused(register::CONTROL, value, "page requests, which the unit does not have");
        }
        if old & !value & control::ENABLE != 0 {
            let rule = "translation is turned off: everything passes";
            bus.misused(register::CONTROL, value, rule);
        }
        let value = if self.stays_off { value & !control::ENABLE } else { value };
        self.control = value;
        self.switch_due = Some(bus.now + self.config.switch_time);
        let rises = |bit: u64| {
            let on = |control: u64| control & control::ENABLE != 0 && control & bit != 0;
            on(value) && !on(old)
        };
        // After an error a ring restarts only when it is turned off and on.
        self.starts |= [control::COMMANDS, control::EVENT_LOG, control::PPR_LOG]
            .into_iter()
            .filter(|bit| rises(*bit))
            .fold(0, |bits, bit| bits | bit);
    }

    /// Starts and stops rings by the control register, after the switch time. False when nothing is due.
    pub(super) fn step_switch(&mut self, bus: &mut Bus<'_>) -> bool {
        if self.switches_stall || self.switch_due.take_if(|due| *due <= bus.now).is_none() {
            return false;
        }
        let starts = std::mem::take(&mut self.starts);
        let on = |bit: u64| self.control & control::ENABLE != 0 && self.control & bit != 0;
        let (ring, events, requests) =
            (on(control::COMMANDS), on(control::EVENT_LOG), on(control::PPR_LOG));
        if !ring {
            self.ring.switch(false);
        } else if starts & control::COMMANDS != 0 {
            self.ring.switch(true);
        }
        for (log, on, bit) in [
            (&mut self.events, events, control::EVENT_LOG),
            (&mut self.requests, requests, control::PPR_LOG),
        ] {
            if !on {
                log.running = false;
            } else if starts & bit != 0 && !log.overflow {
                log.running = true;
            }
        }
        self.schedule(bus.now);
        true
    }
}
