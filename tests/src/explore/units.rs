//! What is known of units.

use super::ledger::{Ledger, Unit};
use super::scene::Scene;

impl Ledger {
    /// The server is another one: units translate for it when it has said so. One that does not come up for want
    /// of memory goes on with what it has.
    pub fn begin_again(&mut self, without_memory: bool) {
        let off: Vec<bool> = self.units.iter().map(|unit| *unit == Unit::Down).collect();
        for ((unit, troubled), off) in self.units.iter_mut().zip(&mut self.troubled).zip(off) {
            *troubled |= without_memory && !off;
            *unit = Unit::Down;
        }
        self.enabled.fill(false);
        self.restarted = true;
    }

    /// Notes how units say they are.
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

    /// Devices behind a unit that failed are cut off: nobody drives them any longer.
    pub fn note_cut_off(&mut self, scene: &Scene) {
        for at in 0..self.sessions.len() {
            let device = self.sessions[at].device;
            if self.unit(scene, device) == Some(Unit::Failed) {
                // Nobody has said that it is quiet.
                let driven = std::mem::take(&mut self.sessions[at].attached);
                self.functions[device].cut |= driven && !self.sessions[at].orphan;
            }
        }
    }
}
