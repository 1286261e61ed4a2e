//! Decides when the loop polls units for faults: soon after it found some, rarely when there are none.
//!
//! There are two alarms. Each is set again only after its event arrived. Only the event shows that the alarm is over,
//! never the clock, which steps back (see `keeper/bounded_read.rs`).

use std::io;
use std::time::Duration;

/// An alarm of the loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Alarm {
    /// One period after faults.
    Soon,
    /// While units report no faults.
    SomeDay,
}

/// The alarms that are set, and their times.
#[derive(Debug)]
pub(super) struct Rhythm {
    period: Duration,
    calm: Duration,
    soon: bool,
    some_day: bool,
}

impl Rhythm {
    /// No alarm is set. The loop polls units every `period`, with or without faults.
    pub(super) const fn new(period: Duration) -> Self {
        Self { period, calm: period, soon: false, some_day: false }
    }

    /// Sets the time between polls while units report faults by interrupt.
    pub(super) const fn rest(&mut self, calm: Duration) {
        self.calm = calm;
    }

    /// Polls units every period: they do not report faults by interrupt.
    pub(super) const fn ask_always(&mut self) {
        self.calm = self.period;
    }

    /// Notes that the event of an alarm arrived.
    pub(super) const fn passed(&mut self, alarm: Alarm) {
        match alarm {
            Alarm::Soon => self.soon = false,
            Alarm::SomeDay => self.some_day = false,
        }
    }

    /// Whether polls are rare, and no faults were found within the last period.
    pub(super) const fn was_calm(&self) -> bool {
        !self.soon && self.calm.as_nanos() > self.period.as_nanos()
    }

    /// Ensures that an alarm is set: one period from now if there were `faults`, otherwise after the calm time.
    ///
    /// # Errors
    /// The error of `set`. Then the alarm is not set.
    pub(super) fn arm(
        &mut self,
        faults: u64,
        mut set: impl FnMut(Alarm, Duration) -> io::Result<()>,
    ) -> io::Result<()> {
        if faults > 0 && !self.soon {
            set(Alarm::Soon, self.period)?;
            self.soon = true;
        } else if !self.soon && !self.some_day {
            set(Alarm::SomeDay, self.calm)?;
            self.some_day = true;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PERIOD: Duration = Duration::from_millis(10);
    const CALM: Duration = Duration::from_secs(1);

    /// Arms the alarms after `faults` faults, and returns the ones that this sets.
    fn set(rhythm: &mut Rhythm, faults: u64) -> Vec<(Alarm, Duration)> {
        let mut all = Vec::new();
        let armed = rhythm.arm(faults, |alarm, after| {
            all.push((alarm, after));
            Ok(())
        });
        armed.unwrap();
        all
    }

    #[test]
    fn an_alarm_is_always_set_and_each_once() {
        let mut rhythm = Rhythm::new(PERIOD);
        rhythm.rest(CALM);
        assert_eq!(set(&mut rhythm, 0), [(Alarm::SomeDay, CALM)]);
        assert_eq!(set(&mut rhythm, 0), []);
        assert_eq!(set(&mut rhythm, 3), [(Alarm::Soon, PERIOD)]);
        assert_eq!(set(&mut rhythm, 3), [], "the event has not come, whatever the clock says");
        rhythm.passed(Alarm::Soon);
        assert_eq!(set(&mut rhythm, 0), [], "some day is left");
        rhythm.passed(Alarm::SomeDay);
        assert_eq!(set(&mut rhythm, 0), [(Alarm::SomeDay, CALM)]);
        rhythm.passed(Alarm::SomeDay);
        assert_eq!(set(&mut rhythm, 1), [(Alarm::Soon, PERIOD)]);
        assert_eq!(set(&mut rhythm, 0), [], "an event comes soon anyway");
        rhythm.passed(Alarm::Soon);
        assert_eq!(set(&mut rhythm, 1), [(Alarm::Soon, PERIOD)], "the storm goes on");
    }

    /// The loop polls one period after the last faults, in any order of events. The clock plays no part.
    #[test]
    fn faults_are_looked_for_a_period_later() {
        let mut rhythm = Rhythm::new(PERIOD);
        rhythm.rest(CALM);
        set(&mut rhythm, 0);
        for _ in 0..100 {
            assert_eq!(set(&mut rhythm, 1), [(Alarm::Soon, PERIOD)]);
            assert_eq!(set(&mut rhythm, 1), []);
            rhythm.passed(Alarm::Soon);
        }
    }

    #[test]
    fn calm_is_when_no_period_after_faults_runs() {
        let mut rhythm = Rhythm::new(PERIOD);
        assert!(!rhythm.was_calm(), "units are asked anyway");
        rhythm.rest(CALM);
        assert!(rhythm.was_calm());
        set(&mut rhythm, 1);
        assert!(!rhythm.was_calm());
        rhythm.passed(Alarm::Soon);
        assert!(rhythm.was_calm());
        rhythm.ask_always();
        assert!(!rhythm.was_calm());
        assert_eq!(set(&mut rhythm, 0), [(Alarm::SomeDay, PERIOD)]);
    }

    #[test]
    fn an_alarm_that_was_refused_is_not_set() {
        let mut rhythm = Rhythm::new(PERIOD);
        let refuse = |_, _| Err(io::ErrorKind::OutOfMemory.into());
        assert!(rhythm.arm(1, refuse).is_err());
        assert!(rhythm.arm(0, refuse).is_err());
        assert_eq!(set(&mut rhythm, 0), [(Alarm::SomeDay, PERIOD)]);
    }
}
