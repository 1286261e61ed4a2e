//! Maps the registers of a unit through `/dev/mem`.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;

use rustix::fs::OFlags;

use crate::addr::PhysRange;
use crate::platform::registers::Registers;

impl Registers {
    /// Maps `range` of physical memory.
    ///
    /// # Errors
    /// The error of open(2) or mmap(2) on `/dev/mem`: no permission, or the range is memory.
    pub fn map(range: PhysRange) -> io::Result<Self> {
        let sync = i32::try_from(OFlags::SYNC.bits()).unwrap_or(0);
        let memory =
            OpenOptions::new().read(true).write(true).custom_flags(sync).open("/dev/mem")?;
        Self::over(memory.as_fd(), range)
    }
}
