//! Forks processes that continue in this program. Executing the program anew would copy it page by page, and repeat
//! its first steps. That is most of the time that a process adds to the boot.
#![allow(unsafe_code)]

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Duration;

use crate::hw::{Clock, Nanos};
use crate::platform::MonotonicClock;

/// Time between two attempts to kill a process.
const AGAIN: Duration = Duration::from_millis(5);

/// How long a killed process may take to end.
const DYING: Nanos = Nanos(10_000_000_000);

/// A child process.
pub(super) struct Process {
    id: libc::pid_t,
    ended: Option<ExitStatus>,
}

impl Process {
    /// Runs `child` in a child process, which exits with 0 if `child` returns true, else with 1. The child inherits
    /// every descriptor.
    ///
    /// # Errors
    /// The system gives no process.
    pub(super) fn new(child: impl FnOnce() -> bool) -> io::Result<Self> {
        // SAFETY: this program never has a second thread. So no lock is held by a thread that the child lacks.
        match unsafe { libc::fork() } {
            -1 => Err(io::Error::last_os_error()),
            0 => std::process::exit(i32::from(!child())),
            id => Ok(Self { id, ended: None }),
        }
    }

    /// Waits until the process ends, and returns its exit status.
    ///
    /// # Errors
    /// The error of waitpid(2).
    pub(super) fn wait(&mut self) -> io::Result<ExitStatus> {
        loop {
            if let Some(status) = self.look(0)? {
                return Ok(status);
            }
        }
    }

    /// The exit status, if the process has ended.
    ///
    /// # Errors
    /// The error of waitpid(2).
    pub(super) fn ended(&mut self) -> io::Result<Option<ExitStatus>> {
        self.look(libc::WNOHANG)
    }

    fn look(&mut self, options: libc::c_int) -> io::Result<Option<ExitStatus>> {
        if self.ended.is_some() {
            return Ok(self.ended);
        }
        let mut status = 0;
        // SAFETY: `status` is writable during the call.
        match unsafe { libc::waitpid(self.id, &raw mut status, options) } {
            0 => Ok(None),
            -1 => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => Ok(None),
                error => Err(error),
            },
            _ => {
                self.ended = Some(ExitStatus::from_raw(status));
                Ok(self.ended)
            }
        }
    }

    /// Kills the process, unless it has already ended. Returns its exit status.
    ///
    /// # Errors
    /// The error of waitpid(2). `TimedOut` when the process still lives after 10 s.
    pub(super) fn kill(&mut self) -> io::Result<ExitStatus> {
        let mut clock = MonotonicClock::new();
        loop {
            if let Some(status) = self.ended()? {
                return Ok(status);
            }
            if clock.now() >= DYING {
                return Err(io::ErrorKind::TimedOut.into());
            }
            // The loop repeats the signal, because a stopped process does not always get the first one.
            // SAFETY: the call accesses no memory. The process is this process's child and was not reaped, so no
            // other process has its number.
            let _ = unsafe { libc::kill(self.id, libc::SIGKILL) };
            std::thread::sleep(AGAIN);
        }
    }
}
