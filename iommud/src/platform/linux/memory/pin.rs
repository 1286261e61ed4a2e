//! Pins: references to pages beside those that their files hold.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Resource, getrlimit, setrlimit};

use crate::platform::mapping::Mapping;

/// A reference to the huge page behind a mapping. As long as it exists the kernel gives the page to nobody,
/// even when its file is cut to nothing, or a hole is punched into it, by a client that has a descriptor.
///
/// It is a pipe into which the page was spliced, and which nobody reads. The seals of memfd do not serve:
/// the one that forbids holes (`F_SEAL_FUTURE_WRITE`) forbids clients to map the memory for writing, too.
#[derive(Debug)]
pub struct Pin {
    reader: OwnedFd,
}

impl Pin {
    /// Pins the page that `mapping` begins with.
    ///
    /// # Errors
    /// What pipe(2) and vmsplice(2) report.
    pub fn new(mapping: &Mapping) -> io::Result<Self> {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        let first = libc::iovec { iov_base: mapping.base().as_ptr().cast(), iov_len: 1 };
        // SAFETY: one byte of a mapping that lives until after the call. The kernel takes a reference to its
        // page and never writes to it; nobody reads the pipe, so what is in the page does not matter.
        let spliced = unsafe { libc::vmsplice(writer.as_raw_fd(), &raw const first, 1, 0) };
        match spliced {
            1 => Ok(Self { reader }),
            0.. => Err(io::ErrorKind::WriteZero.into()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Gives the reference up, also for every process that has a descriptor of this pin.
    pub fn release(self) {
        // The pipe has one byte, or none if the reference was given up before.
        let _ = rustix::io::read(&self.reader, &mut [0; 1]);
    }
}

impl AsFd for Pin {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.reader.as_fd()
    }
}

/// Lets this process have as many descriptors as it may: a pin is one.
pub(in crate::platform::linux) fn allow_many() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        log::warn!("descriptors: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::mapping::Sharing;
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

    #[test]
    fn a_pin_needs_a_page() {
        let file = memfd_create("pin", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&file, 4096).unwrap();
        let mapping = Mapping::new(file.as_fd(), 0, 4096, Sharing::Populated).unwrap();
        assert!(Pin::new(&mapping).is_ok());
        ftruncate(&file, 0).unwrap();
        assert!(Pin::new(&mapping).is_err());
    }
}
