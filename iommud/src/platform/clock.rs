//! CLOCK_MONOTONIC, and what is done about one that steps back.

use std::time::{Duration, Instant};

use crate::hw::{Clock, Nanos};

/// A reading that is lower than the highest by at most this is wrong, and the next ones are right. Redox's clock reads
/// up to 48 ms too low while a tick of its timer is pending. A lower reading means that the clock itself was set back.
const MOST_LOW: Duration = Duration::from_secs(1);

/// Time since the clock was created, by the system's monotonic clock.
///
/// The time never goes back, even if the system's clock does. It stands still for a second at most, and otherwise
/// goes on from where it was. So every wait for a time ends, at most that much late. If the system's clock jumps
/// forward, waits end early.
#[derive(Clone, Copy, Debug)]
pub struct MonotonicClock {
    /// The time at `highest`.
    time: Duration,
    /// The highest reading since the system's clock was last set back.
    highest: Instant,
}

impl MonotonicClock {
    /// A clock that starts now.
    #[must_use]
    pub fn new() -> Self {
        Self::starting_at(Instant::now())
    }

    const fn starting_at(reading: Instant) -> Self {
        Self { time: Duration::ZERO, highest: reading }
    }

    /// The time at the next reading of the system's clock.
    fn at(&mut self, reading: Instant) -> Nanos {
        match reading.checked_duration_since(self.highest) {
            Some(passed) => {
                self.time = self.time.saturating_add(passed);
                self.highest = reading;
            }
            None if self.highest.duration_since(reading) > MOST_LOW => self.highest = reading,
            None => {}
        }
        Nanos(u64::try_from(self.time.as_nanos()).unwrap_or(u64::MAX))
    }
}

impl Default for MonotonicClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for MonotonicClock {
    fn now(&mut self) -> Nanos {
        self.at(Instant::now())
    }

    fn relax(&mut self) {
        std::hint::spin_loop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// Readings of each clock. The true time between two is 10 ms.
    const READINGS: u32 = 60;

    /// Steps in ms: within one tick, at both sides of [`MOST_LOW`], and of hours.
    const STEPS: [u32; 9] = [1, 4, 48, 990, 1000, 1001, 2000, 60_000, 20_000_000];

    /// The clock's times, when the reading of each index is off by what `error` returns, in ms.
    fn times(error: impl Fn(u32) -> i64) -> Vec<Duration> {
        // Far from the lowest instant that the system can express.
        let start = Instant::now() + 100_000_000 * MS;
        let mut clock = MonotonicClock::starting_at(start);
        let mut times = Vec::new();
        for index in 1..=READINGS {
            let (reading, error) = (start + index * 10 * MS, error(index));
            let off = Duration::from_millis(error.unsigned_abs());
            let reading = if error < 0 { reading - off } else { reading + off };
            times.push(Duration::from_nanos(clock.at(reading).0));
        }
        times
    }

    fn assert_never_back(times: &[Duration], what: &str) {
        assert!(times.is_sorted(), "{what}: {times:?}");
    }

    #[test]
    fn a_clock_that_is_right_is_followed() {
        let expected: Vec<_> = (1..=READINGS).map(|index| index * 10 * MS).collect();
        assert_eq!(times(|_| 0), expected);
    }

    /// One reading is too low, by an amount that a pending tick explains: the others are not affected.
    #[test]
    fn one_low_reading_changes_no_other() {
        let right = times(|_| 0);
        for wrong in 1..=READINGS {
            for step in [1, 4, 48, 990] {
                let times = times(|index| if index == wrong { -i64::from(step) } else { 0 });
                assert_never_back(&times, &format!("{step} ms at {wrong}"));
                for (index, (time, right)) in (1..).zip(times.iter().zip(&right)) {
                    assert!(time == right || index == wrong, "{step} ms at {wrong}: {index}");
                }
            }
        }
    }

    /// The clock is set back for good, at each reading, by each amount. The time stands still for a second at most.
    #[test]
    fn a_clock_that_is_set_back_goes_on() {
        for first in 1..=READINGS {
            for step in STEPS {
                let back = |index| if index >= first { -i64::from(step) } else { 0 };
                let times = times(back);
                assert_never_back(&times, &format!("{step} ms from {first}"));
                let late = READINGS * 10 * MS - times[times.len() - 1];
                // The reading that shows the step counts as the last one before it.
                let most = if step * MS > MOST_LOW + 10 * MS { 10 * MS } else { MOST_LOW };
                assert!(late <= most, "{step} ms from {first}: {late:?} late");
            }
        }
    }

    /// A clock that jumps forward, and later back, holds no wait up for more than a second.
    #[test]
    fn a_jump_forward_and_back_makes_nothing_late() {
        for first in 1..READINGS {
            for last in first..READINGS {
                for step in STEPS {
                    let jumped = first..=last;
                    let times =
                        times(|index| if jumped.contains(&index) { i64::from(step) } else { 0 });
                    let what = format!("{step} ms from {first} to {last}");
                    assert_never_back(&times, &what);
                    // What passes after the jump, at most MOST_LOW of which is lost.
                    let right = READINGS * 10 * MS;
                    assert!(times[times.len() - 1] + 10 * MS >= right, "{what}: {times:?}");
                }
            }
        }
    }

    /// Two steps, at each pair of readings.
    #[test]
    fn steps_after_steps_do_not_add_up() {
        for first in 1..=READINGS {
            for second in first..=READINGS {
                let back = |index| -i64::from(index >= first) - i64::from(index >= second);
                let times = times(|index| 3_000_000 * back(index));
                assert_never_back(&times, &format!("{first}, {second}"));
                let late = READINGS * 10 * MS - times[times.len() - 1];
                assert!(late <= 20 * MS, "{first}, {second}: {late:?} late");
            }
        }
    }
}
