//! Access to registers. Only one command is under way at a time, and every wait has a deadline. A unit that reads all
//! ones is dead, not ready.

use super::spec::register::{
    COMMAND, FAULT_STATUS, FLUSH_WRITE_BUFFER, PERSISTENT, PROTECT, PROTECTED, PROTECTED_MEMORY,
    STATUS,
};
use crate::hw::hal::{Clock, Nanos, RegisterIo};
use crate::hw::poll;
use crate::hw::unit::UnitError;

/// Deadline of any wait for a unit. Commands take microseconds, but drains wait for devices.
pub(super) const LIMIT: Nanos = Nanos(1_000_000_000);

/// Deadline of any wait while a failed unit is brought back. It is short, because the whole server waits meanwhile
/// and will try again.
pub(super) const SHORT_LIMIT: Nanos = Nanos(20_000_000);

/// The registers of a unit, and the clock for deadlines.
#[derive(Clone, Debug)]
pub(super) struct Port<R, C> {
    pub(super) registers: R,
    pub(super) clock: C,
    /// How long any wait may take.
    pub(super) limit: Nanos,
}

impl<R: RegisterIo, C: Clock> Port<R, C> {
    /// The global status. Its bits 22:0 are reserved and zero.
    pub(super) fn status(&mut self) -> Result<u32, UnitError> {
        alive(self.registers.read32(STATUS))
    }

    /// The fault status. Its bits 31:16 are reserved and zero.
    pub(super) fn fault_status(&mut self) -> Result<u32, UnitError> {
        alive(self.registers.read32(FAULT_STATUS))
    }

    /// Reads a register until `done` holds for its value, and returns that value.
    pub(super) fn wait_for(
        &mut self,
        offset: u32,
        what: &'static str,
        done: impl Fn(u32) -> bool,
    ) -> Result<u32, UnitError> {
        let Self { registers, clock, limit } = self;
        let seen = poll::until(clock, *limit, || match alive(registers.read32(offset)) {
            Ok(value) if done(value) => Some(Ok(value)),
            Ok(_) => None,
            Err(dead) => Some(Err(dead)),
        });
        seen.unwrap_or(Err(UnitError::Timeout { what }))
    }

    /// Changes one bit of the global command register (section 11.4.4.1), and nothing else.
    fn command(&mut self, bit: u32, on: bool) -> Result<(), UnitError> {
        let kept = self.status()? & PERSISTENT;
        let value = if on { kept | bit } else { kept & !bit };
        self.registers.write32(COMMAND, value);
        Ok(())
    }

    /// Sets a bit and waits until the status shows it: an enable bit, or a one-shot bit that takes a table pointer.
    pub(super) fn switch_on(&mut self, bit: u32, what: &'static str) -> Result<(), UnitError> {
        self.command(bit, true)?;
        self.wait_for(STATUS, what, |status| status & bit != 0).map(drop)
    }

    /// Clears an enable bit and waits until the status shows it clear.
    pub(super) fn switch_off(&mut self, bit: u32, what: &'static str) -> Result<(), UnitError> {
        self.command(bit, false)?;
        self.wait_for(STATUS, what, |status| status & bit == 0).map(drop)
    }

    /// Makes stores visible that a write buffer between processor and memory may hold (section 6.8).
    pub(super) fn flush_write_buffer(&mut self) -> Result<(), UnitError> {
        self.command(FLUSH_WRITE_BUFFER, true)?;
        let done = |status| status & FLUSH_WRITE_BUFFER == 0;
        self.wait_for(STATUS, "the write buffer to be flushed", done).map(drop)
    }

    /// Ends the protection of fixed memory ranges that firmware set up (section 11.4.8.1).
    pub(super) fn unprotect_memory(&mut self) -> Result<(), UnitError> {
        let value = alive(self.registers.read32(PROTECTED_MEMORY))?;
        if value & (PROTECT | PROTECTED) == 0 {
            return Ok(());
        }
        self.registers.write32(PROTECTED_MEMORY, value & !PROTECT);
        let done = |value| value & PROTECTED == 0;
        self.wait_for(PROTECTED_MEMORY, "memory protection to end", done).map(drop)
    }
}

/// `Dead` for a value of all ones. A register with reserved bits never reads so on a unit that is present.
fn alive(value: u32) -> Result<u32, UnitError> {
    if value == u32::MAX { Err(UnitError::Dead) } else { Ok(value) }
}
