//! Brings a failed unit back until it accepts entries, with its existing tables and rings.
//!
//! ```text
//! unit on    rings and logs are stopped, emptied and started; IommuEn stays
//!            it reads our device table:  entries of an unfinished `enable`, then INVALIDATE_IOMMU_ALL, wait
//!            it does not:                nothing of ours is cached; `enable` swaps the table
//! unit off   as in bring-up (it lost power): all off, flags, bases and pointers; `enable` turns it on
//! ```

use alloc::collections::BTreeSet;

use super::spec::registers::{self, Control};
use super::unit::{AmdUnit, State};
use crate::hw::hal::{Clock, RegisterIo, TableMemory};
use crate::hw::unit::UnitError;

impl<R: RegisterIo, C: Clock, M: TableMemory> AmdUnit<R, C, M> {
    /// See [`crate::hw::Unit::revive`].
    pub(super) fn start_anew(&mut self, memory: &mut M) -> Result<(), UnitError> {
        let control = self.port.read(registers::CONTROL);
        if control == u64::MAX {
            return Err(UnitError::Dead);
        }
        // A unit that lost power no longer has the value that was written.
        self.port.control = Control::from_bits_retain(control);
        let entered = match &mut self.state {
            State::Off { entered } | State::Stale { entered } => core::mem::take(entered),
            State::On => BTreeSet::new(),
        };
        self.state = State::Off { entered };
        if !self.port.control.contains(Control::ENABLE) {
            return self.arm();
        }
        self.replace_rings(memory)?;
        self.commands.give_up_wait(memory);
        if self.port.read(registers::DEVICE_TABLE_BASE) != self.devices.register() {
            return Ok(());
        }
        if let State::Off { entered } = &mut self.state {
            self.state = State::Stale { entered: core::mem::take(entered) };
        }
        self.forget_stale(memory)
    }
}
