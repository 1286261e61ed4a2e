//! The server's side of a keeper: what hardware may reach is mapped by a second process before any unit is told of
//! it, so that the frames are nobody else's when this process ends, in whatever way.
//!
//! ```text
//! server -> keeper   a second descriptor of the scheme's socket, then one of the memory       through the pipe
//! keeper -> server   fstat, mmap of every piece, then a call: "held"                          through the scheme
//!                    units are brought up, translation is on
//! server -> keeper   the scheme's root                                                        through the pipe
//! keeper -> server   a call: "may the memory of the one before go?"                           through the scheme
//! ```

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};

use libredox::call::{call_wo, dup, write};
use redox_scheme::Socket;
use syscall::error::{EBADF, Error, Result};
use syscall::flag::CallFlags;

use super::scheme::MEMORY;

/// The way to the keeper.
pub(super) struct Keeper {
    pipe: File,
}

impl Keeper {
    /// The server's end of a pipe to the keeper.
    pub(super) fn over(pipe: OwnedFd) -> Self {
        Self { pipe: File::from(pipe) }
    }

    /// That end itself.
    pub(super) fn into_pipe(self) -> OwnedFd {
        self.pipe.into()
    }

    /// Gives the keeper a descriptor, which this process loses, and a byte, which can be waited for.
    ///
    /// # Errors
    /// The keeper is gone.
    pub(super) fn give(&self, descriptor: usize) -> Result<()> {
        let pipe = usize::try_from(self.pipe.as_raw_fd()).map_err(|_| Error::new(EBADF))?;
        call_wo(pipe, &descriptor.to_ne_bytes(), CallFlags::FD, &[])?;
        write(pipe, b"d")?;
        Ok(())
    }

    /// Gives the keeper what it needs to hold the memory, and to answer for this process when it is dead.
    ///
    /// # Errors
    /// The keeper is gone.
    pub(super) fn give_socket_and_memory(&self, socket: &Socket) -> Result<()> {
        self.give(dup(socket.inner().raw(), b"")?)?;
        self.give(socket.create_this_scheme_fd(0, MEMORY, 0, 0)?)
    }
}
