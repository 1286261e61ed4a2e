//! The time at which a failed unit is tried again.

use alloc::collections::BTreeMap;

use crate::hw::{Nanos, UnitError};
use crate::policy::UnitIndex;
use crate::server::unit_status::UnitStart;

/// The pause between the first failure of a unit and the next try. Each failure doubles the next pause.
pub const FIRST_PAUSE: Nanos = Nanos(1_000_000_000);

/// The longest pause. A unit that was up for this long has its failures forgiven.
pub const LONGEST_PAUSE: Nanos = Nanos(300_000_000_000);

/// The history of a unit that failed, now or before.
#[derive(Clone, Default)]
pub(super) struct Retry {
    /// Number of tries.
    tries: u32,
    /// The time of the next try, once it is known.
    due: Option<Nanos>,
    /// The time since which it is up.
    up_since: Option<Nanos>,
    /// The time of the last try.
    last: Option<Nanos>,
    /// An administrator requested a try.
    pub(super) asked: bool,
    /// The fault does not pass by itself: the unit is tried again only on request.
    pub(super) hopeless: bool,
    /// There was no memory: the unit is tried again when there may be more. Each try may cost some.
    starved: bool,
}

impl Retry {
    /// Of a unit that could not be brought up.
    fn after(error: &UnitError) -> Self {
        let starved = matches!(error, UnitError::Memory(_));
        // No time mends the first, and the second costs memory at each try.
        let hopeless = starved || matches!(error, UnitError::Unsupported { .. });
        Self { hopeless, starved, ..Self::default() }
    }

    fn pause(&self) -> Nanos {
        let doubled = FIRST_PAUSE.0.checked_shl(self.tries).unwrap_or(u64::MAX);
        // A shift drops bits silently: more than 20 doublings are beyond the longest pause anyway.
        Nanos(if self.tries > 20 { LONGEST_PAUSE.0 } else { doubled.min(LONGEST_PAUSE.0) })
    }

    /// Records that the unit is up.
    pub(super) fn is_up(&mut self, now: Nanos) {
        self.due = None;
        self.asked = false;
        let since = *self.up_since.get_or_insert(now);
        if now.0.saturating_sub(since.0) >= LONGEST_PAUSE.0 {
            self.tries = 0;
        }
    }

    /// Whether the failed unit is to be tried now. However often it is asked for, there is a pause between two tries:
    /// each keeps everybody waiting for as long as the unit may take to answer.
    pub(super) fn is_due(&mut self, now: Nanos) -> bool {
        self.up_since = None;
        let just_tried =
            |last: Nanos| (last.0..last.0.saturating_add(FIRST_PAUSE.0)).contains(&now.0);
        if self.last.is_some_and(just_tried) {
            return false;
        }
        let due = self.has_come(now);
        if due {
            self.last = Some(now);
        }
        due
    }

    fn has_come(&mut self, now: Nanos) -> bool {
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

/// Units that failed, and the work that remains once they are back.
#[derive(Clone, Default)]
pub(in crate::server) struct Recovery {
    pub(super) units: BTreeMap<UnitIndex, Retry>,
    /// The interrupt message by which units report faults: address and data.
    pub(super) interrupt: Option<(u64, u32)>,
    /// The quarantine may have something that can be released.
    pub(super) sweep: bool,
    /// Something stayed in quarantine the last time, because a session still has it.
    pub(super) held: bool,
    /// No release is tried before this time.
    pub(super) next_sweep: Nanos,
}

impl Recovery {
    /// What is known of units whose state at start does not change by itself.
    pub(in crate::server) fn hopeless<U>(units: &[UnitStart<U>]) -> Self {
        let lasting = |unit: &UnitStart<U>| match unit {
            UnitStart::Unusable(_) => Some(Retry { hopeless: true, ..Retry::default() }),
            UnitStart::Failed(error) => Some(Retry::after(error)).filter(|retry| retry.hopeless),
            UnitStart::Ready(_) | UnitStart::Stuck(..) | UnitStart::Off => None,
        };
        let numbered = units.iter().zip((0..).map(UnitIndex));
        let units = numbered.filter_map(|(unit, index)| Some((index, lasting(unit)?))).collect();
        Self { units, ..Self::default() }
    }

    /// Records that the platform could not bring a unit up.
    pub(in crate::server) fn not_arrived(&mut self, unit: UnitIndex, error: &UnitError) {
        let Retry { hopeless, starved, .. } = Retry::after(error);
        let retry = self.units.entry(unit).or_default();
        (retry.hopeless, retry.starved) = (hopeless, starved);
    }

    /// Whether a unit may come by itself. One that is hopeless comes only if memory was all that it lacked.
    pub(super) fn may_come(&self, unit: UnitIndex) -> bool {
        self.units.get(&unit).is_none_or(|retry| !retry.hopeless || retry.starved)
    }

    /// Records that there is memory for a unit: one that found none is tried once more.
    pub(super) fn memory_came(&mut self, unit: UnitIndex) {
        if let Some(retry) = self.units.get_mut(&unit).filter(|retry| retry.starved) {
            (retry.hopeless, retry.starved) = (false, false);
        }
    }

    /// Number of recent tries of a unit.
    pub(in crate::server) fn tries(&self, unit: UnitIndex) -> u32 {
        self.units.get(&unit).map_or(0, |retry| retry.tries)
    }

    pub(in crate::server) const fn tell_by(&mut self, message: (u64, u32)) {
        self.interrupt = Some(message);
    }

    /// Records that a session ended: its part of the quarantine may be released now.
    pub(in crate::server) fn session_ended(&mut self) {
        self.sweep |= self.held;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hw::MemoryError;
    use crate::topology::firmware::UnitDefect;

    #[test]
    fn a_hopeless_unit_comes_only_if_it_lacked_memory() {
        let (unit, mut recovery) = (UnitIndex(0), Recovery::default());
        assert!(recovery.may_come(unit));
        recovery.not_arrived(unit, &UnitError::Unsupported { what: "a page table" });
        assert!(!recovery.may_come(unit));
        recovery.not_arrived(unit, &UnitError::Memory(MemoryError::Exhausted));
        assert!(recovery.may_come(unit));
    }

    const SECOND: u64 = 1_000_000_000;

    /// The times at which a unit that keeps failing is tried.
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

    /// An administrator, or anybody who may ask, asks all the time.
    #[test]
    fn there_is_a_pause_between_two_tries_however_often_they_are_asked_for() {
        let mut retry = Retry::default();
        let milliseconds = (0..3500).step_by(10).filter(|milliseconds| {
            retry.asked = true;
            retry.is_due(Nanos(milliseconds * 1_000_000))
        });
        assert_eq!(milliseconds.collect::<Vec<u64>>(), [0, 1000, 2000, 3000]);
        // The request is not forgotten, and a clock that went back does not keep it waiting.
        assert!(!retry.is_due(Nanos(3 * SECOND + 1)) && retry.is_due(Nanos(4 * SECOND)));
        retry.asked = true;
        assert!(retry.is_due(Nanos(SECOND)));
    }

    /// However often a unit was tried: bits that a shift drops do not shorten the pause.
    #[test]
    fn the_pause_stays_the_longest() {
        let pause = |tries| Retry { tries, ..Retry::default() }.pause();
        assert_eq!([0, 1, 8].map(pause), [1, 2, 256].map(|seconds| Nanos(seconds * SECOND)));
        for tries in (9..100).chain([1000, u32::MAX]) {
            assert_eq!(pause(tries), Nanos(300 * SECOND), "after {tries} tries");
        }
    }

    #[test]
    fn what_no_time_mends_is_known_at_start() {
        let failed = |error| UnitStart::Failed(error);
        let units: [UnitStart<()>; 7] = [
            UnitStart::Unusable(UnitDefect::BadAddress { address: 0 }),
            failed(UnitError::Unsupported { what: "a page table" }),
            failed(UnitError::Memory(MemoryError::Exhausted)),
            failed(UnitError::Dead),
            UnitStart::Stuck((), UnitError::Dead),
            UnitStart::Ready(()),
            UnitStart::Off,
        ];
        let mut recovery = Recovery::hopeless(&units);
        let mut known = |index| {
            let retry = recovery.units.entry(UnitIndex(index)).or_default();
            (retry.hopeless, retry.starved, !tries(retry, 10).is_empty())
        };
        let (lasting, passing) = ((true, false, false), (false, false, true));
        assert_eq!([0, 1].map(&mut known), [lasting; 2]);
        assert_eq!(known(2), (true, true, false));
        assert_eq!([3, 4, 5, 6].map(&mut known), [passing; 4]);
        let may_come: Vec<bool> = (0..7).map(|index| recovery.may_come(UnitIndex(index))).collect();
        assert_eq!(may_come, [false, false, true, true, true, true, true]);
    }

    #[test]
    fn a_unit_that_lacked_memory_is_tried_once_there_is_some() {
        let (starved, broken) = (UnitIndex(0), UnitIndex(1));
        let mut recovery = Recovery::default();
        recovery.not_arrived(starved, &UnitError::Memory(MemoryError::Exhausted));
        recovery.not_arrived(broken, &UnitError::Unsupported { what: "a page table" });
        let due = |recovery: &mut Recovery, unit| tries(recovery.units.get_mut(&unit).unwrap(), 4);
        assert_eq!([starved, broken].map(|unit| due(&mut recovery, unit)), [vec![], vec![]]);
        for unit in [starved, broken] {
            recovery.memory_came(unit);
        }
        assert_eq!([starved, broken].map(|unit| due(&mut recovery, unit)), [vec![1], vec![]]);
    }

    #[test]
    fn the_end_of_a_session_counts_only_if_some_quarantine_was_held() {
        for (held, sweep, after) in
            [(false, false, false), (true, false, true), (false, true, true), (true, true, true)]
        {
            let mut recovery = Recovery { held, sweep, ..Recovery::default() };
            recovery.session_ended();
            assert_eq!((recovery.held, recovery.sweep), (held, after));
        }
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
