//! Reads with a time limit, because a server that is killed or hangs in the middle of a message sends no more.
//!
//! Time is counted in events of a timer, and never read from a clock. The kernel's monotonic clock steps back by up
//! to 50 ms (a reading with a tick pending is one period too low). A process that decides by the clock whether the
//! timer's event has come may decide that it has not. It may then wait for an event that never comes.

use std::io;
use std::time::Duration;

/// Time between two checks of whether the server still lives.
const SLICE: Duration = Duration::from_millis(20);

/// The reason why a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Woken {
    /// The event of an alarm arrived.
    Timer,
    /// A watched file has an event, or there is no particular reason.
    File,
}

/// The alarms and events of a keeper.
pub(super) trait Waits {
    /// Sets an alarm: one more event arrives, `after` from now or somewhat earlier.
    ///
    /// # Errors
    /// An error of the system. Then no event arrives.
    fn alarm(&mut self, after: Duration) -> io::Result<()>;

    /// Waits for the next event.
    ///
    /// # Errors
    /// An error of the system.
    fn next(&mut self) -> io::Result<Woken>;
}

/// Reads with a time limit. `armed` is true while an alarm is set whose event has not arrived.
pub(super) struct Patience<W> {
    waits: W,
    armed: bool,
}

impl<W: Waits> Patience<W> {
    /// No alarm is set.
    pub(super) const fn new(waits: W) -> Self {
        Self { waits, armed: false }
    }

    /// The alarms and events.
    pub(super) const fn waits(&self) -> &W {
        &self.waits
    }

    /// Calls `read` after each event, until it returns something other than `WouldBlock`.
    ///
    /// # Errors
    /// `TimedOut` when `read` had no result within `limit`. `BrokenPipe` when it had none, and `ended` returns true:
    /// no writer is left. Any error of `read` and `ended`.
    pub(super) fn read(
        &mut self,
        limit: Duration,
        mut ended: impl FnMut() -> io::Result<bool>,
        mut read: impl FnMut() -> io::Result<usize>,
    ) -> io::Result<usize> {
        // One event more, because the first may belong to an alarm that was set for an earlier read.
        let mut left = limit.as_nanos().div_ceil(SLICE.as_nanos()) + 1;
        loop {
            // Checks `ended` before `read`. If the server has ended, the read then finds everything that it wrote.
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
