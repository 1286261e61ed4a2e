//! Waiting for others, with an end: a server that is killed or hangs in the middle of a word says no more.
#![allow(unsafe_code)]

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use event::{EventFlags, RawEventQueue};

use crate::platform::redox::events::{alarm, clock, number};
use crate::platform::redox::fork::Process;

/// How often a server that is waited for is looked after.
const SLICE: Duration = Duration::from_millis(20);

/// What a keeper waits with. Opened at start: later whoever looks names up may wait for a dead server himself.
pub(super) struct Patience {
    queue: RawEventQueue,
    clock: File,
    /// When the timer's event comes.
    armed: Option<Instant>,
}

impl Patience {
    /// Opens what waiting takes.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(super) fn new() -> io::Result<Self> {
        let (queue, clock) = (RawEventQueue::new()?, clock()?);
        queue.subscribe(number(&clock)?, 0, EventFlags::READ)?;
        Ok(Self { queue, clock, armed: None })
    }

    /// Makes a file one that [`Self::read`] can wait for.
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

    /// Reads what comes next, or nothing at the end of the file.
    ///
    /// # Errors
    /// `TimedOut`: nothing comes within `limit`; `BrokenPipe`: nothing has come, and `server` has ended; the file fails.
    pub(super) fn read(
        &mut self,
        mut file: &File,
        mut server: Option<&mut Process>,
        limit: Duration,
        out: &mut [u8],
    ) -> io::Result<usize> {
        let started = Instant::now();
        loop {
            // In this order: what a server had done before it ended has been said by then.
            let over = started.elapsed() >= limit;
            let ended = server.as_deref_mut().map_or(Ok(None), Process::ended)?.is_some();
            match file.read(out) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                answer => return answer,
            }
            if ended {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            if over {
                return Err(io::ErrorKind::TimedOut.into());
            }
            let now = Instant::now();
            if self.armed.is_none_or(|armed| armed <= now) {
                alarm(&self.clock, SLICE)?;
                self.armed = now.checked_add(SLICE);
            }
            self.queue.next_event()?;
        }
    }
}
