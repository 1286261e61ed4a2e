//! Receives descriptors through pipes.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use libredox::call::call_ro;
use syscall::flag::CallFlags;

use crate::platform::redox::events::number;

/// Receives the next descriptor from a pipe. `None` when the other end is closed.
pub(super) fn next(pipe: &impl AsRawFd) -> io::Result<Option<OwnedFd>> {
    let mut word = [0; 8];
    match call_ro(number(pipe)?, &mut word, CallFlags::FD | CallFlags::FD_CLOEXEC, &[])? {
        1 => {
            let number = i32::try_from(usize::from_ne_bytes(word));
            let number = number.map_err(|_| io::ErrorKind::InvalidData)?;
            // SAFETY: the kernel has just created the descriptor in this process, and nothing else owns it.
            Ok(Some(unsafe { OwnedFd::from_raw_fd(number) }))
        }
        _ => Ok(None),
    }
}
