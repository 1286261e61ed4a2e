//! Brings a failed unit back until it accepts entries, with its existing tables and queue.
//!
//! ```text
//! faults masked and cleared -> queue off, whatever it holds -> queue on, from its start
//!  -> the unit translates with our root table:  context cache and IOTLB are invalidated
//!     it does not:                              nothing of ours is cached; `enable` gives it the tables
//! ```
//!
//! Translation is never turned off. The unit walks our tables meanwhile, as they stand. Entries of clients' devices
//! have denied since the unit failed; all others are as policy left them.

use super::port::{LIMIT, SHORT_LIMIT};
use super::spec::descriptor;
use super::spec::register::{QUEUE, QUEUE_HEAD, QUEUE_TAIL, ROOT_TABLE, TRANSLATION, VERSION};
use super::unit::{Phase, VtdUnit};
use crate::hw::hal::{Clock, RegisterIo, TableMemory};
use crate::hw::unit::UnitError;

impl<R: RegisterIo, C: Clock, M: TableMemory> VtdUnit<R, C, M> {
    /// See [`crate::hw::Unit::revive`].
    pub(super) fn start_anew(&mut self, memory: &mut M) -> Result<(), UnitError> {
        self.port.limit = SHORT_LIMIT;
        let result = self.restart(memory);
        self.port.limit = LIMIT;
        result
    }

    fn restart(&mut self, memory: &mut M) -> Result<(), UnitError> {
        if self.port.registers.read32(VERSION) == u32::MAX {
            return Err(UnitError::Dead);
        }
        self.next_fault = None;
        self.mask_interrupts()?;
        self.drop_queue()?;
        self.queue.restart();
        self.start_queue()?;
        let on = self.port.status()? & TRANSLATION != 0;
        if !on || self.port.registers.read64(ROOT_TABLE) != self.root.0 {
            self.phase = Phase::Preparing;
            return Ok(());
        }
        if self.capability.write_buffer() {
            self.port.flush_write_buffer()?;
        }
        let drain = self.drain();
        self.invalidate(memory, &[descriptor::context_global(), descriptor::iotlb_global(drain)])?;
        self.root_changed = false;
        // Not `Translating`, so that `enable` goes through all of its steps again.
        self.phase = Phase::Told;
        Ok(())
    }

    /// Stops the queue without waiting for its content, which the unit did not finish in time before. The unit may
    /// stop only when head and tail are equal (section 6.5.2), so the tail is set back to the head.
    fn drop_queue(&mut self) -> Result<(), UnitError> {
        if self.port.status()? & QUEUE == 0 {
            return Ok(());
        }
        let head = self.port.registers.read32(QUEUE_HEAD);
        self.port.registers.write32(QUEUE_TAIL, head);
        self.port.switch_off(QUEUE, "the invalidation queue to stop")?;
        self.forget_errors()
    }
}
