//! Faults: the ring of recording registers (section 7.2.1) and the fault interrupt.

use super::spec::fault::{CLEAR, FAULT, RECORD, decode};
use super::spec::register::{
    COMPLETION_ERROR, FAULT_ADDRESS, FAULT_CONTROL, FAULT_DATA, FAULT_STATUS, FAULT_UPPER_ADDRESS,
    INTERRUPT_MASK, LOG_FAULTS, OVERFLOW, PENDING, QUEUE_ERROR, TIMEOUT_ERROR, first_record,
};
use super::unit::VtdUnit;
use crate::hw::hal::{Clock, RegisterIo, TableMemory};
use crate::hw::unit::{HardwareFault, UnitError};

impl<R: RegisterIo, C: Clock, M: TableMemory> VtdUnit<R, C, M> {
    /// Makes the unit send the message `data` to `address` when it records a fault while none is pending, and unmasks
    /// this interrupt. If a fault was recorded while the interrupt was masked, the unit sends the message at once.
    pub fn program_fault_interrupt(&mut self, address: u64, data: u32) {
        let (high, low) = (address >> 32, address & u64::from(u32::MAX));
        let registers = &mut self.port.registers;
        registers.write32(FAULT_CONTROL, INTERRUPT_MASK);
        registers.write32(FAULT_DATA, data);
        registers.write32(FAULT_ADDRESS, u32::try_from(low).unwrap_or(0));
        registers.write32(FAULT_UPPER_ADDRESS, u32::try_from(high).unwrap_or(0));
        self.mask_fault_interrupt(false);
    }

    /// Masks or unmasks the fault interrupt. It is masked after bring-up.
    pub fn mask_fault_interrupt(&mut self, masked: bool) {
        let value = if masked { INTERRUPT_MASK } else { 0 };
        self.port.registers.write32(FAULT_CONTROL, value);
        // The read returns only after the write, and any interrupt in flight, has arrived.
        self.port.registers.read32(FAULT_CONTROL);
    }

    /// The offset of a fault record.
    fn record(&self, index: usize) -> u32 {
        self.capability.fault_records() + RECORD * u32::try_from(index).unwrap_or(0)
    }

    /// See [`crate::hw::Unit::take_faults`]. Records are read in the order they were written: from FRI on, around the
    /// end, until one is empty. FRI is updated only when the first fault becomes pending. So a call that leaves
    /// records behind keeps the index of the next one.
    pub(super) fn drain_faults(
        &mut self,
        limit: usize,
        sink: &mut dyn FnMut(HardwareFault),
    ) -> Result<u32, UnitError> {
        let status = self.port.fault_status()?;
        if status & COMPLETION_ERROR != 0 {
            // A device TLB sent an invalid completion. Nothing waits for it, and the queue goes on.
            self.port.registers.write32(FAULT_STATUS, COMPLETION_ERROR);
        }
        let count = self.capability.fault_count();
        let mut index = self.next_fault.take().unwrap_or_else(|| first_record(status)) % count;
        let mut taken = 0;
        if status & PENDING == 0 {
            return self.end_overflow(status);
        }
        for _ in 0..count {
            if taken == limit {
                break;
            }
            match self.take_record(index)? {
                Some(fault) => {
                    sink(fault);
                    taken += 1;
                }
                None if taken > 0 => return self.end_overflow(status),
                // The first record must hold a fault. If a unit reports a wrong index, all records are searched.
                None => {}
            }
            index = (index + 1) % count;
        }
        if self.port.fault_status()? & PENDING == 0 {
            return self.end_overflow(status);
        }
        self.next_fault = Some(index);
        Ok(0)
    }

    /// Takes the fault out of a record, and frees the record. The word with F is read first: the unit writes it last.
    fn take_record(&mut self, index: usize) -> Result<Option<HardwareFault>, UnitError> {
        let offset = self.record(index);
        let high = self.port.registers.read64(offset + 8);
        if high & FAULT == 0 {
            return Ok(None);
        }
        let low = self.port.registers.read64(offset);
        if (low, high) == (u64::MAX, u64::MAX) {
            return Err(UnitError::Dead);
        }
        self.port.registers.write32(offset + 12, CLEAR);
        Ok(Some(decode(low, high)))
    }

    /// Makes the unit record again after an overflow. Returns the number of dropped faults: at least 1, the exact
    /// number is unknown.
    fn end_overflow(&mut self, status: u32) -> Result<u32, UnitError> {
        if status & OVERFLOW == 0 {
            return Ok(0);
        }
        self.port.registers.write32(FAULT_STATUS, OVERFLOW);
        Ok(1)
    }

    /// Clears all fault records and error bits, such as those of a previous owner.
    pub(super) fn forget_faults(&mut self) -> Result<(), UnitError> {
        for index in 0..self.capability.fault_count() {
            let offset = self.record(index);
            self.port.registers.write32(offset + 12, CLEAR);
        }
        self.forget_errors()
    }

    /// Clears the error bits of the fault status. A queue that stands at a bad descriptor sets its error bit again at
    /// once.
    pub(super) fn forget_errors(&mut self) -> Result<(), UnitError> {
        let errors = QUEUE_ERROR | COMPLETION_ERROR | TIMEOUT_ERROR | LOG_FAULTS | OVERFLOW;
        self.port.registers.write32(FAULT_STATUS, errors);
        self.port.fault_status().map(drop)
    }
}
