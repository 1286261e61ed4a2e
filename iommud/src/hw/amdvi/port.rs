//! The registers of a unit. Every wait has a deadline.

use super::spec::registers::{self, Control, Status};
use crate::hw::hal::{Clock, Nanos, RegisterIo};
use crate::hw::poll;
use crate::hw::unit::UnitError;

/// How long a unit may take to start or stop a ring.
const SWITCH_LIMIT: Nanos = Nanos(100_000_000);

/// Registers, clock, and the value of the control register.
#[derive(Clone)]
pub(super) struct Port<R, C> {
    pub(super) registers: R,
    pub(super) clock: C,
    pub(super) control: Control,
}

impl<R: RegisterIo, C: Clock> Port<R, C> {
    /// Takes the registers; `Dead` when they read all ones.
    pub(super) fn open(mut registers: R, clock: C) -> Result<Self, UnitError> {
        let control = registers.read64(registers::CONTROL);
        if control == u64::MAX {
            return Err(UnitError::Dead);
        }
        Ok(Self { registers, clock, control: Control::from_bits_retain(control) })
    }

    pub(super) fn read(&mut self, register: u32) -> u64 {
        self.registers.read64(register)
    }

    pub(super) fn write(&mut self, register: u32, value: u64) {
        self.registers.write64(register, value);
    }

    /// Writes the control register.
    pub(super) fn set_control(&mut self, control: Control) {
        self.control = control;
        self.write(registers::CONTROL, control.bits());
    }

    /// The status register; `Dead` when it reads all ones.
    pub(super) fn status(&mut self) -> Result<Status, UnitError> {
        match self.read(registers::STATUS) {
            u64::MAX => Err(UnitError::Dead),
            status => Ok(Status::from_bits_retain(status)),
        }
    }

    /// Waits until none of `bits` is set in the status register.
    pub(super) fn wait_clear(&mut self, bits: Status, what: &'static str) -> Result<(), UnitError> {
        self.wait(what, |status| !status.intersects(bits))
    }

    /// Waits until all of `bits` are set in the status register.
    pub(super) fn wait_set(&mut self, bits: Status, what: &'static str) -> Result<(), UnitError> {
        self.wait(what, |status| status.contains(bits))
    }

    fn wait(&mut self, what: &'static str, done: impl Fn(Status) -> bool) -> Result<(), UnitError> {
        let Self { registers, clock, .. } = self;
        poll::until(clock, SWITCH_LIMIT, || match registers.read64(registers::STATUS) {
            u64::MAX => Some(Err(UnitError::Dead)),
            status => done(Status::from_bits_retain(status)).then_some(Ok(())),
        })
        .unwrap_or(Err(UnitError::Timeout { what }))
    }
}
