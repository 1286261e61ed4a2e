//! Interrupts of a function through its interrupt line, which uio_pci_generic listens to: it masks the line
//! in the function's command register when there was an interrupt, and it is for the driver to unmask it.

use std::fs::File;
use std::io::{self, Read};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::config::unmask;

/// Where interrupts of a function arrive.
#[derive(Debug)]
pub struct Interrupt {
    /// Readable when there was an interrupt: a count of 4 bytes.
    file: File,
    config: File,
}

impl Interrupt {
    pub(super) const fn new(file: File, config: File) -> Self {
        Self { file, config }
    }

    /// Waits until there was an interrupt since the last call, at most `timeout`, less when a signal comes; whether
    /// there was. The line
    /// stays masked between calls, and is asserted as long as the device has something to tell: nothing is
    /// missed, and there may be one interrupt with nothing to tell any more.
    ///
    /// # Errors
    /// The operating system's.
    pub fn wait(&mut self, timeout: Duration) -> io::Result<bool> {
        unmask(&self.config)?;
        let timeout = Timespec {
            tv_sec: timeout.as_secs().try_into().unwrap_or(i64::MAX),
            tv_nsec: timeout.subsec_nanos().into(),
        };
        let mut files = [PollFd::new(&self.file, PollFlags::IN)];
        match poll(&mut files, Some(&timeout)) {
            Ok(0) | Err(rustix::io::Errno::INTR) => return Ok(false),
            Ok(_) => {}
            Err(error) => return Err(error.into()),
        }
        self.file.read_exact(&mut [0; 4])?;
        Ok(true)
    }
}
