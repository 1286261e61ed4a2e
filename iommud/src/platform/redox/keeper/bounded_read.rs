//! Waiting for others, with an end: a server that is killed or hangs in the middle of a word says no more.
//!
//! Time is counted in events of a timer, never read from a clock. The kernel's monotonic clock steps back by up to 50 ms
//! (a reading with a tick pending is one period too low): who asks it whether the timer's event has come may find that
//! it has not, and then wait for an event that nothing will send.

use std::io;
use std::time::Duration;

/// How often a server that is waited for is looked after.
const SLICE: Duration = Duration::from_millis(20);

/// What wakes who waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Woken {
    /// The event of an alarm.
    Timer,
    /// A file that is watched, or nothing in particular.
    File,
}

/// What a keeper waits with.
pub(super) trait Waits {
    /// Sends one event more, `after` this time or somewhat earlier.
    ///
    /// # Errors
    /// The system refuses; no event comes.
    fn alarm(&mut self, after: Duration) -> io::Result<()>;

    /// Waits for the next event.
    ///
    /// # Errors
    /// The system refuses.
    fn next(&mut self) -> io::Result<Woken>;
}

/// Waits, and whether an alarm is set whose event has not come.
pub(super) struct Patience<W> {
    waits: W,
    armed: bool,
}

impl<W: Waits> Patience<W> {
    /// No alarm is set.
    pub(super) const fn new(waits: W) -> Self {
        Self { waits, armed: false }
    }

    /// What it waits with.
    pub(super) const fn waits(&self) -> &W {
        &self.waits
    }

    /// Has `read` try, whenever something woke this process, until it does not say `WouldBlock`.
    ///
    /// # Errors
    /// `TimedOut`: nothing comes within `limit`; `BrokenPipe`: nothing has come, and `ended` says that nobody is left who
    /// could write; what `read` and `ended` say.
    pub(super) fn read(
        &mut self,
        limit: Duration,
        mut ended: impl FnMut() -> io::Result<bool>,
        mut read: impl FnMut() -> io::Result<usize>,
    ) -> io::Result<usize> {
        // One more: the first event may be of an alarm that was set for an earlier read.
        let mut left = limit.as_nanos().div_ceil(SLICE.as_nanos()) + 1;
        loop {
            // In this order: what a server had done before it ended has been said by then.
            let ended = ended()?;
            match read() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                answer => return answer,
            }
            if ended {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            if left == 0 {
                return Err(io::ErrorKind::TimedOut.into());
            }
            if !self.armed {
                self.waits.alarm(SLICE)?;
                self.armed = true;
            }
            if self.waits.next()? == Woken::Timer {
                self.armed = false;
                left -= 1;
            }
        }
    }
}

#[cfg(test)]
mod tests;
