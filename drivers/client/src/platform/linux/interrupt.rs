//! Interrupts of a function through its interrupt line. uio_pci_generic handles the line: after an interrupt it masks
//! the line in the function's command register, and the driver unmasks it.

use std::fs::File;
use std::io::{self, Read};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::config::unmask;

/// The interrupts of a function.
#[derive(Debug)]
pub struct Interrupt {
    /// Readable after an interrupt: a count of 4 bytes.
    file: File,
    config: File,
}

impl Interrupt {
    pub(super) const fn new(file: File, config: File) -> Self {
        Self { file, config }
    }

    /// Waits for an interrupt since the last call: at most `timeout`, or less if a signal arrives. Returns whether
    /// there was one. The line stays masked between calls. The device asserts it as long as it has something to
    /// report. So no interrupt is missed, but there may be one after everything was handled.
    ///
    /// # Errors
    /// Errors of the operating system.
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
