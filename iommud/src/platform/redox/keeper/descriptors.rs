//! Receives descriptors through pipes.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use libredox::call::{call_ro, close, dup};
use syscall::flag::CallFlags;

use crate::platform::redox::events::number;

/// Receives the next descriptor from a pipe. `None` when the other end is closed.
pub(super) fn next(pipe: &impl AsRawFd) -> io::Result<Option<OwnedFd>> {
    // The C library reads the wanted number from the payload. Pipes give descriptors only to the upper table, whose
    // numbers no `OwnedFd` can have.
    let mut word = usize::MAX.to_ne_bytes();
    let flags = CallFlags::FD | CallFlags::FD_UPPER | CallFlags::FD_CLOEXEC;
    match call_ro(number(pipe)?, &mut word, flags, &[])? {
        1 => {
            let upper = usize::from_ne_bytes(word);
            let lower = dup(upper, b"");
            let _ = close(upper);
            let number = i32::try_from(lower?).map_err(|_| io::ErrorKind::InvalidData)?;
            // SAFETY: the kernel has just created the descriptor in this process, and nothing else owns it.
            Ok(Some(unsafe { OwnedFd::from_raw_fd(number) }))
        }
        _ => {
            // The C library keeps the number that it chose. Nothing is open there.
            let _ = close(usize::from_ne_bytes(word));
            Ok(None)
        }
    }
}
