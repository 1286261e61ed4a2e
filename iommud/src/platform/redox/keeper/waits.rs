//! What a keeper waits with on Redox.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::time::Duration;

use event::{EventFlags, RawEventQueue};

use super::bounded_read::{Waits, Woken};
use crate::platform::redox::events::{alarm, clock, number};

/// Opened at start: later whoever looks names up may wait for a dead server himself.
pub(super) struct Queue {
    queue: RawEventQueue,
    clock: File,
}

impl Queue {
    /// Opens what waiting takes.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(super) fn new() -> io::Result<Self> {
        let (queue, clock) = (RawEventQueue::new()?, clock()?);
        queue.subscribe(number(&clock)?, 0, EventFlags::READ)?;
        Ok(Self { queue, clock })
    }

    /// Makes a file one that wakes whoever waits, and whose reads do not block.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(super) fn watch(&self, file: &File) -> io::Result<()> {
        // SAFETY: changes a flag of a file that is open, and no memory.
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
