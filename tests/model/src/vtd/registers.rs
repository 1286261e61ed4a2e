//! Reads and writes of registers (VT-d 4.1 section 10.4).

use super::{Vtd, bits};
use crate::machine::Bus;
use bits::{fault_status, register};

/// Bytes of the register page.
const PAGE: u32 = 4096;

/// Registers of 64 bits at fixed offsets; all others at fixed offsets have 32.
const WIDE: [u32; 12] = [
    register::CAP,
    register::ECAP,
    register::RTADDR,
    register::CCMD,
    0x58,
    register::PHMBASE,
    register::PHMLIMIT,
    register::IQH,
    register::IQT,
    register::IQA,
    register::IQERCD,
    register::IRTA,
];

impl Vtd {
    fn fault_index(&self, offset: u32) -> Option<usize> {
        let index = offset.checked_sub(self.config.fault_offset)? / 16;
        (index < u32::from(self.config.fault_records)).then(|| usize::try_from(index).unwrap())
    }

    fn is_wide(&self, offset: u32) -> bool {
        WIDE.contains(&offset)
            || offset == self.config.iotlb_offset
            || offset == self.config.iotlb_offset + 8
            || self.fault_index(offset).is_some()
    }

    /// Checks width and alignment of an access. A 32-bit access may touch half of a 64-bit register.
    fn check_access(&self, bus: &mut Bus<'_>, offset: u32, width: u8, value: u64) -> bool {
        if offset >= PAGE {
            return false;
        }
        if !offset.is_multiple_of(u32::from(width)) {
            bus.misused(offset, value, "a misaligned access");
            return false;
        }
        if width == 8 && !self.is_wide(offset) {
            bus.misused(offset, value, "a 64-bit access to a 32-bit register");
        }
        true
    }

    pub(super) fn read_register(&mut self, bus: &mut Bus<'_>, offset: u32, width: u8) -> u64 {
        let ones = if width == 8 { u64::MAX } else { u64::from(u32::MAX) };
        if self.dead || !self.check_access(bus, offset, width, 0) {
            return ones;
        }
        let pair = self.pair(offset & !7);
        if width == 8 {
            pair
        } else if offset & 4 == 0 {
            pair & u64::from(u32::MAX)
        } else {
            pair >> 32
        }
    }

    /// Returns the eight bytes at an offset that is a multiple of 8.
    fn pair(&self, offset: u32) -> u64 {
        let two = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
        let log = &self.faults;
        if let Some(index) = self.fault_index(offset) {
            return log.records[index][usize::from(offset & 8 != 0)];
        }
        match offset {
            // Version 6.0.
            register::VER => two(0x60, 0),
            register::CAP => self.config.capability(),
            register::ECAP => self.config.extended(),
            register::GCMD => two(0, self.status),
            register::RTADDR => self.root_register,
            register::CCMD => self.invalidation.context,
            0x30 => two(0, log.status_register()),
            register::FECTL => two(log.control, log.data),
            register::FEADDR => two(log.address, log.upper_address),
            0x60 => two(0, self.protection.enable),
            register::PLMBASE => two(self.protection.low.0, self.protection.low.1),
            register::PHMBASE => self.protection.high.0,
            register::PHMLIMIT => self.protection.high.1,
            register::IQH => self.queue.head,
            register::IQT => self.queue.tail,
            register::IQA => self.queue.address,
            0x98 => two(0, self.queue.completed),
            register::IECTL => two(bits::EVENT_MASK, 0),
            register::IQERCD => self.queue.error_record,
            at if at == self.config.iotlb_offset + 8 => self.invalidation.iotlb,
            _ => 0,
        }
    }

    pub(super) fn write_register(&mut self, bus: &mut Bus<'_>, offset: u32, width: u8, value: u64) {
        if self.dead || !self.check_access(bus, offset, width, value) {
            return;
        }
        let narrow = |value: u64| u32::try_from(value & u64::from(u32::MAX)).unwrap();
        if self.is_wide(offset & !7) {
            let (low, high) = match (width, offset & 4) {
                (8, _) => (true, true),
                (_, 0) => (true, false),
                _ => (false, true),
            };
            let old = self.pair(offset & !7);
            let value = match (low, high) {
                (true, true) => value,
                (true, false) => old & !u64::from(u32::MAX) | value,
                _ => old & u64::from(u32::MAX) | value << 32,
            };
            self.write_wide(bus, offset & !7, value, high);
        } else if width == 8 {
            self.write_narrow(bus, offset, narrow(value));
            self.write_narrow(bus, offset + 4, narrow(value >> 32));
        } else {
            self.write_narrow(bus, offset, narrow(value));
        }
    }

    /// Writes a 64-bit register. `high`: the access included the upper half.
    fn write_wide(&mut self, bus: &mut Bus<'_>, offset: u32, value: u64, high: bool) {
        if let Some(index) = self.fault_index(offset) {
            if offset & 8 != 0 && high {
                self.faults.write_high(index, value);
            }
            return;
        }
        match offset {
            register::RTADDR => self.write_root(bus, value),
            register::CCMD if high => self.write_context_command(bus, value),
            register::CCMD => self.invalidation.context = value,
            register::PHMBASE if self.config.protected => self.protection.high.0 = value,
            register::PHMLIMIT if self.config.protected => self.protection.high.1 = value,
            register::IQT if self.config.queue => self.write_tail(bus, value),
            register::IQA if self.config.queue => self.write_queue_address(bus, value),
            at if at == self.config.iotlb_offset => self.invalidation.address = value,
            at if at == self.config.iotlb_offset + 8 => {
                if high {
                    self.write_iotlb_command(bus, value);
                } else {
                    self.invalidation.iotlb = value;
                }
            }
            _ => bus.misused(offset, value, "a write to a register that takes none"),
        }
    }

    fn write_narrow(&mut self, bus: &mut Bus<'_>, offset: u32, value: u32) {
        let log = &mut self.faults;
        match offset {
            register::GCMD => self.write_command(bus, value),
            register::FSTS => {
                log.status &= !(value & fault_status::CLEARABLE);
                self.schedule(bus.now);
            }
            register::FECTL => log.write_control(value),
            register::FEDATA => log.data = value,
            register::FEADDR => log.address = value,
            register::FEUADDR => log.upper_address = value,
            register::PMEN if self.config.protected => self.write_protection(bus, value),
            register::PLMBASE if self.config.protected => self.protection.low.0 = value,
            register::PLMLIMIT if self.config.protected => self.protection.low.1 = value,
            register::ICS => self.queue.completed &= !(value & 1),
            register::IECTL | register::IEDATA | register::IEADDR | register::IEUADDR => {}
            _ => bus.misused(offset, u64::from(value), "a write to a register that takes none"),
        }
    }
}
