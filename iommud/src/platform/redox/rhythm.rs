//! When units are asked for faults: soon after there were some, some day when it is calm.
//!
//! Two alarms, each of which is set again only when its event has come. Whether it has is told by the event, never by the
//! clock, which steps back (see `keeper/patience.rs`).

use std::io;
use std::time::Duration;

/// Which alarm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Alarm {
    /// A period after faults.
    Soon,
    /// While it is calm.
    SomeDay,
}

/// Which alarms are set, and after what time.
#[derive(Debug)]
pub(super) struct Rhythm {
    period: Duration,
    calm: Duration,
    soon: bool,
    some_day: bool,
}

impl Rhythm {
    /// No alarm is set. `period` is how often units are asked, whether there are faults or not.
    pub(super) const fn new(period: Duration) -> Self {
        Self { period, calm: period, soon: false, some_day: false }
    }

    /// How long units are left alone while they tell of faults themselves.
    pub(super) const fn rest(&mut self, calm: Duration) {
        self.calm = calm;
    }

    /// They do not tell of faults: they are asked every period.
    pub(super) const fn ask_always(&mut self) {
        self.calm = self.period;
    }

    /// The event of an alarm has come.
    pub(super) const fn passed(&mut self, alarm: Alarm) {
        match alarm {
            Alarm::Soon => self.soon = false,
            Alarm::SomeDay => self.some_day = false,
        }
    }

    /// Whether faults are awaited, and none came within a period.
    pub(super) const fn was_calm(&self) -> bool {
        !self.soon && self.calm.as_nanos() > self.period.as_nanos()
    }

    /// Sees to it that an event comes: a period from now when there were faults just now, some day when it is calm.
    ///
    /// # Errors
    /// What `set` says; the alarm is not set then.
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

    /// What is set when there were so many faults.
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

    /// Faults are asked for a period after the last ones, in any order of events: there is no clock to say otherwise.
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
