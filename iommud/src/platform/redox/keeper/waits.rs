//! The event queue of a keeper on Redox.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::time::Duration;

use event::{EventFlags, RawEventQueue};

use super::bounded_read::{Waits, Woken};
use crate::platform::redox::events::{alarm, clock, number};

/// The event queue and its timer. Both are opened at start, because later the manager of name spaces may itself wait
/// for a dead server.
pub(super) struct Queue {
    queue: RawEventQueue,
    clock: File,
}

impl Queue {
    /// Opens the queue and the timer.
    ///
    /// # Errors
    /// An error of the kernel.
    pub(super) fn new() -> io::Result<Self> {
        let (queue, clock) = (RawEventQueue::new()?, clock()?);
        queue.subscribe(number(&clock)?, 0, EventFlags::READ)?;
        Ok(Self { queue, clock })
    }

    /// Makes a file wake [`Waits::next`], and makes reads of the file nonblocking.
    ///
    /// # Errors
    /// An error of the kernel.
    pub(super) fn watch(&self, file: &File) -> io::Result<()> {
        // SAFETY: the call changes a flag of an open file and accesses no memory.
        if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(self.queue.subscribe(number(file)?, 0, EventFlags::READ)?)
    }
}

impl Waits for Queue {
    fn alarm(&mut self, after: Duration) -> io::Result<()> {
        alarm(&self.clock, after)
    }

    fn next(&mut self) -> io::Result<Woken> {
        let woken = self.queue.next_event()?;
        Ok(if woken.fd == number(&self.clock)? { Woken::Timer } else { Woken::File })
    }
}
