//! The server's side of the keeper protocol. A second process maps all memory that hardware may reach, before any
//! unit can use it. So the kernel gives the frames to no other process when this process ends, in whatever way.
//!
//! ```text
//! server -> keeper   a second descriptor of the scheme's socket, then one of the memory       through the pipe
//! keeper -> server   fstat, mmap of every piece, then a call: "held"                          through the scheme
//!                    units are brought up, translation is on
//! server -> keeper   the scheme's root                                                        through the pipe
//! keeper -> server   a call: "may the memory of earlier servers go?"                          through the scheme
//! ```

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};

use libredox::call::{call_wo, dup, write};
use redox_scheme::Socket;
use syscall::error::{EBADF, Error, Result};
use syscall::flag::CallFlags;

use super::scheme::MEMORY;

/// The connection to the keeper.
pub(super) struct Keeper {
    pipe: File,
}

impl Keeper {
    /// Wraps the server's end of a pipe to the keeper.
    pub(super) fn over(pipe: OwnedFd) -> Self {
        Self { pipe: File::from(pipe) }
    }

    /// Returns the server's end of the pipe.
    pub(super) fn into_pipe(self) -> OwnedFd {
        self.pipe.into()
    }

    /// Moves a descriptor to the keeper, and writes one byte, for which the keeper can wait.
    ///
    /// # Errors
    /// The keeper is gone.
    pub(super) fn give(&self, descriptor: usize) -> Result<()> {
        let pipe = usize::try_from(self.pipe.as_raw_fd()).map_err(|_| Error::new(EBADF))?;
        call_wo(pipe, &descriptor.to_ne_bytes(), CallFlags::FD, &[])?;
        write(pipe, b"d")?;
        Ok(())
    }

    /// Gives the keeper a descriptor of the memory, so that the memory can be held. Gives it a second descriptor of
    /// the socket too, so that it can answer requests after the death of this process.
    ///
    /// # Errors
    /// The keeper is gone.
    pub(super) fn give_socket_and_memory(&self, socket: &Socket) -> Result<()> {
        self.give(dup(socket.inner().raw(), b"")?)?;
        self.give(socket.create_this_scheme_fd(0, MEMORY, 0, 0)?)
    }
}
