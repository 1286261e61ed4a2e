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

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use iommu_protocol::Refusal;

use crate::hw::{BufferMemory, Nanos, Unit, UnitError};
use crate::policy::{Event, UnitIndex};
use crate::server::handles::Control;
use crate::server::{Server, UnitStart, UnitState};

/// How long after its first failure a unit is tried again. Each failure doubles the next pause.
pub const FIRST_PAUSE: Nanos = Nanos(1_000_000_000);

/// No pause is longer. A unit that was up for so long has its failures forgiven.
pub const LONGEST_PAUSE: Nanos = Nanos(300_000_000_000);

/// What is known of a unit that failed, now or before.
#[derive(Clone, Default)]
struct Retry {
    /// How often it was tried again.
    tries: u32,
    /// When it is tried again, once that is known.
    due: Option<Nanos>,
    /// Since when it is up.
    up_since: Option<Nanos>,
    /// An administrator asked for it.
    asked: bool,
    /// What was wrong does not pass by itself: it is tried again only when asked for.
    hopeless: bool,
}

impl Retry {
    fn pause(&self) -> Nanos {
        let doubled = FIRST_PAUSE.0.checked_shl(self.tries).unwrap_or(u64::MAX);
        // A shift drops bits silently: more than 20 doublings are beyond the longest pause anyway.
        Nanos(if self.tries > 20 { LONGEST_PAUSE.0 } else { doubled.min(LONGEST_PAUSE.0) })
    }

    /// Notes that the unit is up.
    fn is_up(&mut self, now: Nanos) {
        self.due = None;
        self.asked = false;
        let since = *self.up_since.get_or_insert(now);
        if now.0.saturating_sub(since.0) >= LONGEST_PAUSE.0 {
            self.tries = 0;
        }
    }

    /// Whether the unit, which is failed, is to be tried now.
    fn is_due(&mut self, now: Nanos) -> bool {
        self.up_since = None;
        if core::mem::take(&mut self.asked) {
            self.due = None;
            self.tries = 1;
            return true;
        }
        if self.hopeless {
            return false;
        }
        let pause = self.pause();
        let due = *self.due.get_or_insert(Nanos(now.0.saturating_add(pause.0)));
        if due > now {
            return false;
        }
        self.due = None;
        self.tries = self.tries.saturating_add(1);
        true
    }
}

/// Units that failed, and what is to be done once they are back.
#[derive(Clone, Default)]
pub(super) struct Recovery {
    units: BTreeMap<UnitIndex, Retry>,
    /// How units tell of faults.
    interrupt: Option<(u64, u32)>,
    /// There may be something in quarantine that can be given back.
    sweep: bool,
    /// Something stayed in quarantine after the last time: a session still has it.
    held: bool,
    /// Not before this.
    next_sweep: Nanos,
}

impl Recovery {
    /// Units whose state at start does not change by itself.
    pub(super) fn hopeless<U>(units: &[UnitStart<U>]) -> Vec<UnitIndex> {
        let lost = |unit: &UnitStart<U>| match unit {
            UnitStart::Unusable(_) => true,
            UnitStart::Failed(error) => is_lasting(error),
            UnitStart::Ready(_) | UnitStart::Stuck(..) | UnitStart::Off => false,
        };
        let numbered = units.iter().zip((0..).map(UnitIndex));
        numbered.filter(|(unit, _)| lost(unit)).map(|(_, index)| index).collect()
    }

    pub(super) fn expect(&mut self, hopeless: Vec<UnitIndex>) {
        for unit in hopeless {
            self.units.entry(unit).or_default().hopeless = true;
        }
    }

    /// The platform could not bring a unit up.
    pub(super) fn not_arrived(&mut self, unit: UnitIndex, error: &UnitError) {
        self.units.entry(unit).or_default().hopeless = is_lasting(error);
    }

    /// How often a unit was tried again lately.
    pub(super) fn tries(&self, unit: UnitIndex) -> u32 {
        self.units.get(&unit).map_or(0, |retry| retry.tries)
    }

    pub(super) const fn tell_by(&mut self, message: (u64, u32)) {
        self.interrupt = Some(message);
    }

    /// What it held of the quarantine may be given back now.
    pub(super) const fn session_ended(&mut self) {
        self.sweep |= self.held;
    }
}

/// Whether trying again by itself would be of no use: no time mends it, or each try may cost memory.
const fn is_lasting(error: &UnitError) -> bool {
    matches!(error, UnitError::Unsupported { .. } | UnitError::Memory(_))
}

impl<U: Unit, B: BufferMemory> Server<U, B> {
    /// Tries units again that failed and are due, and gives back what is in quarantine if that is proved now. A
    /// platform calls this after each [`Server::tick`], with a time that never goes back. Returns a unit that was
    /// never brought up and is due: the platform tries that, says what came of it ([`Server::unit_arrived`],
    /// [`Server::unit_not_arrived`]), and calls this again.
    pub fn recover_units(&mut self, now: Nanos) -> Option<UnitIndex> {
        for number in 0..u32::try_from(self.machine.units.len()).unwrap_or(u32::MAX) {
            let unit = UnitIndex(number);
            if !self.is_due(unit, now) {
                continue;
            }
            if self.engine.capabilities(unit).is_none() {
                return Some(unit);
            }
            log::info!("unit {number}: tried again");
            self.enable(unit);
            self.try_waiting();
        }
        self.sweep_quarantine(now);
        None
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
            if let Err(refusal) = self.run(&Event::Proved) {
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

    const SECOND: u64 = 1_000_000_000;

    /// The times at which a unit that goes on failing is tried.
    fn tries(retry: &mut Retry, until: u64) -> Vec<u64> {
        (0..until).filter(|second| retry.is_due(Nanos(second * SECOND))).collect()
    }

    #[test]
    fn pauses_double_up_to_the_longest() {
        let mut retry = Retry::default();
        let times = tries(&mut retry, 1200);
        // One second is lost between a failure and the first look after it.
        assert_eq!(times, [1, 4, 9, 18, 35, 68, 133, 262, 519, 820, 1121]);
    }

    #[test]
    fn failures_are_forgiven_after_a_long_time_only() {
        let mut retry = Retry::default();
        tries(&mut retry, 10);
        assert_eq!(retry.tries, 3);
        retry.is_up(Nanos(10 * SECOND));
        retry.is_up(Nanos(309 * SECOND));
        assert_eq!(retry.pause(), Nanos(8 * SECOND));
        retry.is_up(Nanos(310 * SECOND));
        assert_eq!(retry.pause(), FIRST_PAUSE);
    }

    #[test]
    fn who_asks_need_not_wait_and_what_is_hopeless_is_tried_only_then() {
        let mut retry = Retry { hopeless: true, ..Retry::default() };
        assert!(tries(&mut retry, 1000).is_empty());
        retry.asked = true;
        assert_eq!(tries(&mut retry, 1000), [0]);
        let mut retry = Retry::default();
        tries(&mut retry, 300);
        retry.asked = true;
        assert!(retry.is_due(Nanos(300 * SECOND)));
        assert_eq!(retry.pause(), Nanos(2 * SECOND), "from the beginning");
    }
}
