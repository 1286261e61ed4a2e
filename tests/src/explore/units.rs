//! The ledger's state of units.

use super::ledger::{Ledger, Unit};
use super::scene::Scene;

impl Ledger {
    /// Starts over for another server: units translate for it once it reports so. A unit that stays down for lack of
    /// memory keeps its old state.
    pub fn begin_again(&mut self, without_memory: bool) {
        let off: Vec<bool> = self.units.iter().map(|unit| *unit == Unit::Down).collect();
        for ((unit, troubled), off) in self.units.iter_mut().zip(&mut self.troubled).zip(off) {
            *troubled |= without_memory && !off;
            *unit = Unit::Down;
        }
        self.enabled.fill(false);
        self.restarted = true;
    }

    /// Enters the reported states of units.
    pub fn note_units(&mut self, units: &[Unit]) {
        for (at, unit) in units.iter().enumerate() {
            if *unit == Unit::Failed && self.units[at] != Unit::Failed {
                self.units[at] = Unit::Failed;
            } else if *unit == Unit::Up && self.units[at] != Unit::Up {
                self.units[at] = Unit::Up;
                self.enabled[at] = true;
            }
        }
    }

    /// Cuts off devices behind a failed unit. They lose their drivers.
    pub fn note_cut_off(&mut self, scene: &Scene) {
        for at in 0..self.sessions.len() {
            let device = self.sessions[at].device;
            if self.unit(scene, device) == Some(Unit::Failed) {
                // Nothing has shown that the device is quiet.
                let driven = std::mem::take(&mut self.sessions[at].attached);
                self.functions[device].cut |= driven && !self.sessions[at].orphan;
            }
        }
    }
}
