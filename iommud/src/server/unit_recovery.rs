//! Units that failed and are brought up again: after pauses that grow, and when an administrator asks for it.
//!
//! ```text
//! failed --a pause, or `reset`--> due --Revive, entries, Enable--> enabled
//!   ^                              |           one that never came up is the platform's to bring up first
//!   +-------the pause doubles------+
//! ```
//!
//! Until a unit is back everything behind it is as when it failed: clients' devices are denied as far as its tables
//! reach, and what it may still use stays in quarantine. That is given back when no unit with tables of this server
//! is failed any more: then nothing can reach it.

mod retry;

use iommu_protocol::Refusal;

use crate::hw::{BufferMemory, MemoryError, Nanos, Unit, UnitError};
use crate::policy::{Event, UnitIndex};
use crate::server::Server;
use crate::server::handles::Control;
use crate::server::unit_status::UnitState;

pub(super) use retry::Recovery;
pub use retry::{FIRST_PAUSE, LONGEST_PAUSE};

impl<U: Unit, B: BufferMemory> Server<U, B> {
    /// Tries units again that failed and are due, and gives back what is in quarantine if that is proved now. A
    /// platform calls this after each [`Server::tick`], with a time that never goes back. Returns a unit that was
    /// never brought up and is due: the platform tries that, says what came of it ([`Server::unit_arrived`],
    /// [`Server::unit_not_arrived`]), and calls this again.
    pub fn recover_units(&mut self, now: Nanos) -> Option<UnitIndex> {
        // It wraps around after 49 days, and ages are differences.
        let milliseconds = (now.0 / 1_000_000) & u64::from(u32::MAX);
        let milliseconds = u32::try_from(milliseconds).unwrap_or(0);
        self.registry.set_time(milliseconds);
        self.trace.set_time(milliseconds);
        for number in 0..u32::try_from(self.machine.units.len()).unwrap_or(u32::MAX) {
            let unit = UnitIndex(number);
            if !self.is_due(unit, now) {
                continue;
            }
            if self.engine.capabilities(unit).is_none() {
                if self.engine.set_aside(unit) {
                    return Some(unit);
                }
                // A try would take some of it, and fail.
                self.unit_not_arrived(unit, &UnitError::Memory(MemoryError::Exhausted));
                continue;
            }
            log::info!("unit {number}: tried again");
            self.enable(unit);
            self.try_waiting();
        }
        self.sweep_quarantine(now);
        None
    }

    /// Keeps the memory that bringing up each unit takes which may still come, as far as there is enough. A unit that
    /// found none is tried again once there is. To be called when there may be more memory than before.
    pub(super) fn set_aside(&mut self) {
        for (status, unit) in self.machine.units.iter().zip((0..).map(UnitIndex)) {
            // Without an address of its registers it never comes.
            let may_come = status.description.registers.is_ok() && self.recovery.may_come(unit);
            if may_come && self.engine.set_aside(unit) {
                self.recovery.memory_came(unit);
            }
        }
    }

    fn is_due(&mut self, unit: UnitIndex, now: Nanos) -> bool {
        match self.unit_state(unit) {
            Some(UnitState::Failed(_)) => self.recovery.units.entry(unit).or_default().is_due(now),
            state => {
                let enabled = state == Some(&UnitState::Enabled);
                let Some(retry) = self.recovery.units.get_mut(&unit) else { return false };
                if enabled {
                    retry.is_up(now);
                    return false;
                }
                core::mem::take(&mut retry.asked)
            }
        }
    }

    fn unit_state(&self, unit: UnitIndex) -> Option<&UnitState> {
        let status = usize::try_from(unit.0).ok().and_then(|at| self.machine.units.get(at));
        status.map(|status| &status.state)
    }

    /// Whether a unit that failed is tried again by itself.
    pub(super) fn may_come_back(&self, unit: UnitIndex) -> bool {
        let retry = self.recovery.units.get(&unit);
        self.machine.has_failed(unit) && retry.is_none_or(|retry| !retry.hopeless || retry.asked)
    }

    /// A unit that failed is up again.
    pub(super) fn came_back(&mut self, unit: UnitIndex) {
        self.counts.units_recovered += 1;
        self.recovery.sweep = true;
        self.recovery.next_sweep = Nanos(0);
        let Some((address, data)) = self.recovery.interrupt else { return };
        let told = self.engine.enable_fault_interrupt(unit, address, data);
        let status = usize::try_from(unit.0).ok().and_then(|at| self.machine.units.get_mut(at));
        if let Some(status) = status {
            status.tells = told.is_ok();
        }
    }

    /// What opening `units/N` for writing gives.
    ///
    /// # Errors
    /// `NotFound`.
    pub(super) fn control_of(&self, unit: u32) -> Result<Control, Refusal> {
        let unit = UnitIndex(unit);
        self.unit_state(unit).map(|_| Control::Reset(unit)).ok_or(Refusal::NotFound)
    }

    /// Has a unit tried again at the next [`Server::recover_units`]. Pauses begin with the shortest again.
    ///
    /// # Errors
    /// `NotFound`; `Busy` when it is up; `Unsupported` when firmware does not say where its registers are.
    pub(super) fn reset_unit(&mut self, unit: UnitIndex) -> Result<(), Refusal> {
        let at = usize::try_from(unit.0).map_err(|_| Refusal::NotFound)?;
        let status = self.machine.units.get(at).ok_or(Refusal::NotFound)?;
        if status.state == UnitState::Enabled {
            return Err(Refusal::Busy);
        }
        if status.description.registers.is_err() {
            return Err(Refusal::Unsupported);
        }
        log::info!("unit {at}: reset asked for");
        self.recovery.units.entry(unit).or_default().asked = true;
        Ok(())
    }

    /// Gives back what is in quarantine, if every unit that may have used it was revived since.
    fn sweep_quarantine(&mut self, now: Nanos) {
        if !self.recovery.sweep || now < self.recovery.next_sweep || self.has_suspects() {
            return;
        }
        self.recovery.sweep = false;
        if self.registry.has_quarantine() {
            let before = self.registry.counts().quarantined_bytes;
            if let Err(refusal) = self.run_event(&Event::Proved) {
                log::warn!("quarantine stays for now: {refusal}");
                self.recovery.sweep = true;
                self.recovery.next_sweep = Nanos(now.0.saturating_add(FIRST_PAUSE.0));
                return;
            }
            let returned = before.saturating_sub(self.registry.counts().quarantined_bytes);
            self.counts.quarantine_returned_bytes += returned;
            log::info!("quarantine: {returned} bytes given back");
        }
        self.recovery.held = self.registry.has_quarantine();
    }

    /// Whether a unit is failed that may have been told of this server's tables.
    fn has_suspects(&self) -> bool {
        let units = self.machine.units.iter().zip((0..).map(UnitIndex));
        units.into_iter().any(|(status, unit)| {
            matches!(status.state, UnitState::Failed(_)) && self.engine.capabilities(unit).is_some()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::tests::{FakeUnit, Tested, machine};
    use crate::server::unit_status::UnitStart;

    /// Quarantine is looked at when there is a reason, from the set time on, and only while no unit is suspect.
    #[test]
    fn a_sweep_is_made_once_when_it_is_time() {
        let unit = FakeUnit::default();
        let mut server = Tested::start(machine([UnitStart::Ready(unit.clone())]));
        let swept = |server: &mut Tested, (sweep, next), now| {
            (server.recovery.sweep, server.recovery.held) = (sweep, true);
            server.recovery.next_sweep = Nanos(next);
            assert_eq!(server.recover_units(Nanos(now)), None);
            let Recovery { sweep, held, .. } = server.recovery;
            (sweep, held)
        };
        let (waits, done) = ((true, true), (false, false));
        assert_eq!(swept(&mut server, (true, 5), 4), waits);
        assert_eq!(swept(&mut server, (true, 5), 5), done);
        assert_eq!(swept(&mut server, (true, 5), 6), done);
        assert_eq!(swept(&mut server, (false, 5), 4), (false, true), "there is no reason");
        assert_eq!(swept(&mut server, (false, 5), 6), (false, true), "there is no reason");
        unit.change(|unit| unit.dead = true);
        server.tick();
        assert_eq!(swept(&mut server, (true, 5), 6), waits, "a unit is failed");
    }
}
