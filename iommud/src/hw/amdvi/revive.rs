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
        if !self.port.control.contains(Control::ENABLE) {
            self.state = State::Off { entered: self.take_entered() };
            self.arm()?;
            self.commands.give_up_wait(memory);
            return Ok(());
        }
        let table = self.port.read(registers::DEVICE_TABLE_BASE);
        if table == u64::MAX {
            return Err(UnitError::Dead);
        }
        let reads_ours = table == self.devices.register();
        if reads_ours || !matches!(self.state, State::Off { .. }) {
            // Until its rings are replaced, the unit may use and cache our tables. So it confirms no invalidation
            // that it does not carry out.
            self.state = State::Stale { entered: self.take_entered() };
        }
        self.replace_rings(memory)?;
        self.commands.give_up_wait(memory);
        if !reads_ours {
            self.state = State::Off { entered: self.take_entered() };
        }
        self.forget_stale(memory)
    }

    /// Takes the requesters whose entries were written and not named since.
    fn take_entered(&mut self) -> BTreeSet<u16> {
        match &mut self.state {
            State::Off { entered } | State::Stale { entered } => core::mem::take(entered),
            State::On => BTreeSet::new(),
        }
    }
}
