//! Processes that go on in this program. Starting it anew would copy the whole program, page by page, and its first
//! steps with it: most of what a process costs a boot.
#![allow(unsafe_code)]

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

/// Between two attempts to kill a process.
const AGAIN: Duration = Duration::from_millis(5);

/// What a process gets to end in once it is killed.
const DYING: Duration = Duration::from_secs(10);

/// A child process.
pub(super) struct Process {
    id: libc::pid_t,
    ended: Option<ExitStatus>,
}

impl Process {
    /// Runs `child` in a process of its own, which ends with 0 if it says true, else with 1. It has every descriptor
    /// of this one.
    ///
    /// # Errors
    /// There is no process to be had.
    pub(super) fn new(child: impl FnOnce() -> bool) -> io::Result<Self> {
        // SAFETY: this program never has a second thread, so no lock is held by one that the child lacks.
        match unsafe { libc::fork() } {
            -1 => Err(io::Error::last_os_error()),
            0 => std::process::exit(i32::from(!child())),
            id => Ok(Self { id, ended: None }),
        }
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// The system refuses.
    pub(super) fn wait(&mut self) -> io::Result<ExitStatus> {
        loop {
            if let Some(status) = self.look(0)? {
                return Ok(status);
            }
        }
    }

    /// How it ended, if it has.
    ///
    /// # Errors
    /// The system refuses.
    pub(super) fn ended(&mut self) -> io::Result<Option<ExitStatus>> {
        self.look(libc::WNOHANG)
    }

    fn look(&mut self, options: libc::c_int) -> io::Result<Option<ExitStatus>> {
        if self.ended.is_some() {
            return Ok(self.ended);
        }
        let mut status = 0;
        // SAFETY: `status` is writable for the time of the call.
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

    /// Kills it, or has it ended before.
    ///
    /// # Errors
    /// The system refuses to say how it ended; `TimedOut`: it lives 10 s later.
    pub(super) fn kill(&mut self) -> io::Result<ExitStatus> {
        let end = Instant::now() + DYING;
        loop {
            if let Some(status) = self.ended()? {
                return Ok(status);
            }
            if Instant::now() >= end {
                return Err(io::ErrorKind::TimedOut.into());
            }
            // One that is stopped does not always hear it the first time.
            // SAFETY: no memory is concerned; the child is this process's own, and its number nobody else's.
            let _ = unsafe { libc::kill(self.id, libc::SIGKILL) };
            std::thread::sleep(AGAIN);
        }
    }
}
