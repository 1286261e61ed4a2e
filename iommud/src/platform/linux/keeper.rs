//! The keeper: a process that does nothing but start the server, and start it again when it dies.
//!
//! The server's memory needs no keeping on Linux: its files stay when it dies, in whatever way (see
//! [`super::memory`]). So the keeper holds nothing that could be lost with it, and its own death loses
//! nothing: the server ends with it, and the next keeper's server takes over from that one.
//!
//! ```text
//! server ends 0    SIGTERM or SIGINT: the keeper ends
//!             2    the command line is wrong: the keeper ends
//!             1    could not run: started again after a pause, a number of times
//!        is killed, or panics: started again at once; after a pause when it does not live for long
//! ```

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{
    Pid, PidfdFlags, Signal, getppid, pidfd_open, pidfd_send_signal,
    set_parent_process_death_signal,
};

use super::signals;

/// A server that lives for less has not got to serving.
const SHORT: Duration = Duration::from_millis(100);

/// The first pause and the longest.
const PAUSES: [Duration; 2] = [Duration::from_millis(10), Duration::from_secs(1)];

/// How long a server that was told to end may take. One that is killed then is followed by none; what it leaves is
/// what any server leaves that is killed.
const PATIENCE: Timespec = Timespec { tv_sec: 10, tv_nsec: 0 };

/// The keeper gives up after this many servers in a row that said that they could not run.
const MOST_FAILURES: u32 = 10;

/// Ends this process by SIGTERM when its keeper, the process `keeper`, dies.
///
/// # Errors
/// `NotFound` when it is dead already; what prctl(2) reports.
pub(super) fn follow(keeper: i32) -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::TERM))?;
    if getppid() == Pid::from_raw(keeper) { Ok(()) } else { Err(io::ErrorKind::NotFound.into()) }
}

/// How a server ended, as far as it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// As it was asked to, or because of what every other one would find too.
    Final(u8),
    /// It could not run.
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

/// When the next server is started.
#[derive(Debug, Default)]
struct Pace {
    pause: Duration,
    failures: u32,
}

impl Pace {
    /// The pause before the next server; `None` when there is to be none.
    fn after(&mut self, end: End, lived: Duration) -> Option<Duration> {
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

/// Runs servers with these words until one ends for good.
pub(super) fn keep(words: &[OsString]) -> ExitCode {
    match keep_on(words) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            log::error!("keeper: {error}");
            ExitCode::FAILURE
        }
    }
}

fn keep_on(words: &[OsString]) -> io::Result<u8> {
    let stop = signals::block()?;
    let mut pace = Pace::default();
    loop {
        let started = Instant::now();
        let mut child = start(words)?;
        let status = watch(&mut child, &stop)?;
        let (end, lived) = (End::from(status), started.elapsed());
        if let End::Final(code) = end {
            return Ok(code);
        }
        let Some(pause) = pace.after(end, lived) else {
            log::error!("keeper: {MOST_FAILURES} servers in a row could not run: giving up");
            return Ok(1);
        };
        log::error!("keeper: the server ended ({status}) after {lived:.1?}: starting the next one");
        if stopped(&stop, pause)? {
            return Ok(0);
        }
    }
}

fn start(words: &[OsString]) -> io::Result<Child> {
    Command::new("/proc/self/exe")
        .args(words)
        .args(["--kept-by".into(), std::process::id().to_string()])
        .stdin(Stdio::null())
        .spawn()
}

/// Waits until the server ends, and passes a signal to end on to it. The signal is not taken: [`stopped`] sees it.
fn watch(child: &mut Child, stop: &OwnedFd) -> io::Result<ExitStatus> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let process = pidfd_open(pid.ok_or(io::ErrorKind::InvalidData)?, PidfdFlags::empty())?;
    let mut both = [PollFd::new(&process, PollFlags::IN), PollFd::new(stop, PollFlags::IN)];
    retry(|| poll(&mut both, None))?;
    let [ended, _] = both.map(|each| !each.revents().is_empty());
    if !ended {
        pidfd_send_signal(&process, Signal::TERM)?;
        let mut one = [PollFd::new(&process, PollFlags::IN)];
        if retry(|| poll(&mut one, Some(&PATIENCE)))? == 0 {
            log::error!("keeper: the server does not end: killed");
            child.kill()?;
        }
    }
    child.wait()
}

/// Whether a signal to end comes within `time`.
fn stopped(stop: &OwnedFd, time: Duration) -> io::Result<bool> {
    let time = Timespec::try_from(time).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut one = [PollFd::new(stop, PollFlags::IN)];
    Ok(retry(|| poll(&mut one, Some(&time)))? > 0)
}

fn retry<T>(mut call: impl FnMut() -> Result<T, rustix::io::Errno>) -> io::Result<T> {
    loop {
        match call() {
            Err(rustix::io::Errno::INTR) => {}
            other => return Ok(other?),
        }
    }
}

#[cfg(test)]
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
