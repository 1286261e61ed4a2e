//! Processes that go on in this program. Starting it anew would copy the whole program, page by page, and its first
//! steps with it: most of what a process costs a boot.
#![allow(unsafe_code)]

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

/// A child process.
pub(super) struct Process {
    id: libc::pid_t,
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
            id => Ok(Self { id }),
        }
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// The system refuses.
    pub(super) fn wait(self) -> io::Result<ExitStatus> {
        let mut status = 0;
        loop {
            // SAFETY: `status` is writable for the time of the call.
            if unsafe { libc::waitpid(self.id, &raw mut status, 0) } == self.id {
                return Ok(ExitStatus::from_raw(status));
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
    }
}
