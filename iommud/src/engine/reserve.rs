//! Memory for units that are not up.
//!
//! ```text
//! start --set_aside--> kept --open_reserve--> the unit is brought up --(it did not come)--> set_aside
//! ```
//!
//! A unit takes long runs of frames when it is brought up. Clients have tables by the time that a late unit comes, and no
//! long run may be left between them. So its runs are kept from everybody, and given back right before it is tried.

use super::Engine;
use crate::hw::{SetAside, Unit};
use crate::policy::UnitIndex;

impl<U: Unit> Engine<U> {
    /// Keeps the memory that bringing a unit up takes. True when it is kept now, or the unit has its memory.
    pub fn set_aside(&mut self, unit: UnitIndex) -> bool {
        if self.capabilities(unit).is_some() || self.reserve.contains_key(&unit) {
            return true;
        }
        let taken = SetAside::take(&mut self.memory, U::RUNS);
        let enough = taken.is_some();
        self.reserve.extend(taken.map(|taken| (unit, taken)));
        enough
    }

    /// The memory of tables, with what is kept for a unit given back to it: the unit is to be brought up in it before
    /// anything else is done.
    pub fn open_reserve(&mut self, unit: UnitIndex) -> &mut U::Memory {
        if let Some(kept) = self.reserve.remove(&unit) {
            kept.give_back(&mut self.memory);
        }
        &mut self.memory
    }

    /// Frames that are kept for units.
    #[must_use]
    pub fn frames_set_aside(&self) -> usize {
        self.reserve.values().map(SetAside::frames).sum()
    }
}
