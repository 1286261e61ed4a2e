//! Counts of what units were told, and of the time that they took to do it.

use super::hal::Nanos;

/// Number of ranges of time.
pub const RANGES: usize = 7;

/// The ends of all ranges but the last, in nanoseconds. A range does not include its end. They are those that Linux
/// has in `dmar_perf_latency`.
const RANGE_ENDS: [u64; RANGES - 1] = [100, 1_000, 10_000, 100_000, 1_000_000, 10_000_000];

/// Invalidations that a unit was given. The counts only grow, and wrap around.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Invalidations {
    /// Commands, their waits not included.
    pub commands: u64,
    /// Waits that were done when they were first looked at. The clock was not read for them.
    pub at_once: u64,
    /// The other waits that were done, by the time that they took. It is taken once they were looked at in vain, so
    /// that a wait which is done at once costs no reading of the clock.
    pub times: [u64; RANGES],
    /// The sum of these times.
    pub nanos: u64,
    /// Waits that were not done: their time ran out, or the unit gave them up.
    pub unanswered: u64,
}

impl Invalidations {
    /// All waits.
    #[must_use]
    pub fn waits(&self) -> u64 {
        let done = self.times.iter().fold(self.at_once, |sum, count| sum.wrapping_add(*count));
        done.wrapping_add(self.unanswered)
    }

    /// Counts commands.
    #[inline]
    pub(super) const fn given(&mut self, commands: usize) {
        self.commands = self.commands.wrapping_add(commands as u64);
    }

    /// Counts a wait that was done when it was first looked at.
    #[inline]
    pub(super) const fn done_at_once(&mut self) {
        self.at_once = self.at_once.wrapping_add(1);
    }

    /// Counts a wait that was done; `None` when it was at the first look.
    pub(super) fn done(&mut self, took: Option<Nanos>) {
        let Some(Nanos(nanos)) = took else { return self.done_at_once() };
        let range = RANGE_ENDS.iter().filter(|end| nanos >= **end).count();
        if let Some(count) = self.times.get_mut(range) {
            *count = count.wrapping_add(1);
        }
        self.nanos = self.nanos.wrapping_add(nanos);
    }

    /// Counts a wait that was not done.
    pub(super) const fn not_done(&mut self) {
        self.unanswered = self.unanswered.wrapping_add(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The ranges of Linux's `dmar_perf_latency`: below 0.1 us, 0.1 to 1, 1 to 10, 10 to 100 us, 0.1 to 1 ms, 1 to
    /// 10 ms, and above.
    #[test]
    fn a_time_falls_into_one_range() {
        let table: [(u64, usize); 16] = [
            (0, 0),
            (99, 0),
            (100, 1),
            (999, 1),
            (1_000, 2),
            (9_999, 2),
            (10_000, 3),
            (99_999, 3),
            (100_000, 4),
            (999_999, 4),
            (1_000_000, 5),
            (9_999_999, 5),
            (10_000_000, 6),
            (99_999_999, 6),
            (1_000_000_000, 6),
            (u64::MAX, 6),
        ];
        for (nanos, range) in table {
            let mut told = Invalidations::default();
            told.done(Some(Nanos(nanos)));
            let mut expected = Invalidations { nanos, ..Invalidations::default() };
            expected.times[range] = 1;
            assert_eq!(told, expected, "{nanos} ns");
        }
    }

    #[test]
    fn waits_are_counted_however_they_end() {
        let mut told = Invalidations::default();
        told.given(3);
        told.done(None);
        told.done(Some(Nanos(40)));
        told.done(Some(Nanos(60)));
        told.not_done();
        let expected = Invalidations {
            commands: 3,
            at_once: 1,
            times: [2, 0, 0, 0, 0, 0, 0],
            nanos: 100,
            unanswered: 1,
        };
        assert_eq!((told, told.waits()), (expected, 4));
    }
}
