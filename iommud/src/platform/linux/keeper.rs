//! The keeper: a process that starts the server, and starts it again when it dies. It does nothing else.
//!
//! On Linux the keeper need not hold the server's memory: its files survive any death of the server (see
//! [`super::memory`]). So the death of the keeper loses nothing. The server ends with it, and the server of the next
//! keeper takes over.
//!
//! ```text
//! server exits with 0    after SIGTERM or SIGINT: the keeper ends
//!                   2    the command line is wrong: the keeper ends
//!                   1    it could not run: the next one starts after a pause; 10 in a row: the keeper ends
//! server is killed       or panics: the next one starts at once, or after a pause if this one lived for under 100 ms
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
use crate::platform::restart_backoff::{End, MOST_FAILURES, Pace};

/// How long a server may take to end after SIGTERM. Then the keeper kills it and starts no other. It leaves the same
/// state behind as any killed server.
const PATIENCE: Timespec = Timespec { tv_sec: 10, tv_nsec: 0 };

/// Makes the kernel send SIGTERM to this process when its keeper, the process `keeper`, dies.
///
/// # Errors
/// `NotFound` when the keeper is already dead, otherwise the error of prctl(2).
pub(super) fn follow(keeper: i32) -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::TERM))?;
    if getppid() == Pid::from_raw(keeper) { Ok(()) } else { Err(io::ErrorKind::NotFound.into()) }
}

/// Runs servers with these command-line words until one ends for good.
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

/// Waits until the server ends. Forwards a signal to end to the server. Leaves the signal pending, so that
/// [`stopped`] sees it.
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

/// Waits for a signal to end, at most for `time`. Returns whether one arrived.
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
