//! Decides when a keeper starts the next server.

use std::process::ExitStatus;
use std::time::Duration;

/// A server that lived for a shorter time did not get as far as serving.
const SHORT: Duration = Duration::from_millis(100);

/// The shortest pause and the longest.
const PAUSES: [Duration; 2] = [Duration::from_millis(10), Duration::from_secs(1)];

/// The keeper gives up after this many servers in a row that exited because they could not run.
pub(super) const MOST_FAILURES: u32 = 10;

/// How a server ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// It exited on request, or for a reason that every later server would meet too.
    Final(u8),
    /// It exited because it could not run.
    Failed,
    /// It was killed, or panicked.
    Died,
}

impl From<ExitStatus> for End {
    fn from(status: ExitStatus) -> Self {
        match status.code() {
            Some(0) => Self::Final(0),
            Some(2) => Self::Final(2),
            Some(1) => Self::Failed,
            _ => Self::Died,
        }
    }
}

/// The pauses between servers, and the failures in a row.
#[derive(Debug, Default)]
pub(super) struct Pace {
    pause: Duration,
    failures: u32,
}

impl Pace {
    /// The pause before the next server. `None` when the keeper must not start another.
    pub(super) fn after(&mut self, end: End, lived: Duration) -> Option<Duration> {
        let again = match end {
            End::Final(_) => return None,
            End::Failed => {
                self.failures += 1;
                self.failures < MOST_FAILURES
            }
            End::Died => {
                self.failures = 0;
                true
            }
        };
        self.pause = match end {
            End::Died if lived >= SHORT => Duration::ZERO,
            _ => (self.pause * 2).clamp(PAUSES[0], PAUSES[1]),
        };
        again.then_some(self.pause)
    }
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn only_what_was_asked_for_ends_for_good() {
        let end = |raw: i32| End::from(ExitStatus::from_raw(raw));
        assert_eq!(end(0), End::Final(0));
        assert_eq!(end(2 << 8), End::Final(2));
        assert_eq!(end(1 << 8), End::Failed);
        assert_eq!(end(101 << 8), End::Died, "a panic");
        assert_eq!(end(9), End::Died, "SIGKILL");
        assert_eq!(end(15), End::Died, "SIGTERM before it was blocked");
    }

    #[test]
    fn one_that_lived_is_followed_at_once_and_one_that_did_not_after_a_pause() {
        let mut pace = Pace::default();
        assert_eq!(pace.after(End::Died, SHORT), Some(Duration::ZERO));
        let quick: Vec<_> = (0..9).map(|_| pace.after(End::Died, MS).unwrap()).collect();
        assert_eq!(quick[..3], [10 * MS, 20 * MS, 40 * MS]);
        assert_eq!(quick[8], 1000 * MS);
        assert_eq!(pace.after(End::Died, 1000 * MS), Some(Duration::ZERO));
        assert_eq!(pace.after(End::Died, MS), Some(10 * MS));
    }

    #[test]
    fn ten_that_cannot_run_are_enough() {
        let mut pace = Pace::default();
        for _ in 0..9 {
            assert!(pace.after(End::Failed, MS).is_some());
        }
        assert_eq!(pace.after(End::Failed, MS), None);
        let mut pace = Pace { failures: 9, ..Pace::default() };
        assert!(pace.after(End::Died, MS).is_some());
        assert!(pace.after(End::Failed, MS).is_some());
        assert_eq!(pace.after(End::Final(0), MS), None);
    }
}
