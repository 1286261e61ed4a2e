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

#[cfg(test)]
mod tests {
    use super::super::testing::{Act, Fake, Ticks};
    use super::*;
    use crate::hw::testing::Bus;

    fn port(status: u32) -> (Fake, Port<Fake, Ticks>) {
        let fake = Fake::new(Bus::default());
        fake.0.borrow_mut().status = status;
        (fake.clone(), Port { registers: fake, clock: Ticks::default(), limit: LIMIT })
    }

    /// Section 11.4.4.1: a command repeats the bits that are on, without the one-shot bits that the status shows.
    #[test]
    fn commands_keep_what_is_on() {
        // TES, RTPS, QIES, IRES, IRTPS and CFIS are on; the bit of the command is on or off.
        let cases = [
            (0xc780_0000, 1 << 31, true, 0x8680_0000),
            (0xc780_0000, 1 << 26, true, 0x8680_0000),
            (0x4780_0000, 1 << 31, true, 0x8680_0000),
            (0xc780_0000, 1 << 30, true, 0xc680_0000),
            (0xc780_0000, 1 << 26, false, 0x8280_0000),
            (0xc380_0000, 1 << 26, false, 0x8280_0000),
        ];
        for (status, bit, on, expected) in cases {
            let (fake, mut port) = port(status);
            let done = match on {
                true => port.switch_on(bit, "a bit to be set"),
                false => port.switch_off(bit, "a bit to be clear"),
            };
            assert_eq!(done, Ok(()));
            assert_eq!(fake.acts(), [Act::W32(0x18, expected)], "{status:#x} {bit:#x} {on}");
        }
    }

    /// Section 11.4.8.1: EPM is bit 31, PRS is bit 0.
    #[test]
    fn only_protection_that_is_on_is_ended() {
        let cases =
            [(0, None), (0x8000_0000, Some(0)), (0x8000_0001, Some(1)), (0x0000_0001, Some(1))];
        for (value, expected) in cases {
            let (fake, mut port) = port(0);
            fake.0.borrow_mut().protected = value;
            assert_eq!(port.unprotect_memory(), Ok(()));
            let expected: Vec<Act> = expected.into_iter().map(|to| Act::W32(0x64, to)).collect();
            assert_eq!(fake.acts(), expected, "{value:#x}");
        }
    }
}
