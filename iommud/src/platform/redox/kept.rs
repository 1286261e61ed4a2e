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
use redox_scheme::scheme::SchemeSync;
use redox_scheme::{CallerCtx, OpenResult};
use syscall::error::{EBADF, EINVAL, Error, Result};
use syscall::flag::{CallFlags, MapFlags, MunmapFlags};

use super::scheme::{HELD, MEMORY};

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

/// A piece of the server's memory: one range of virtual addresses.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    /// Of the first byte.
    pub(super) address: usize,
    /// In bytes.
    pub(super) length: usize,
}

/// The scheme while nobody but the keeper knows it: one file, the memory, piece after piece.
pub(super) struct Memory {
    pieces: Vec<Piece>,
    /// The keeper has said that it has everything.
    pub(super) held: bool,
    /// The keeper is gone.
    pub(super) lost: bool,
}

impl Memory {
    /// Of these pieces, each a multiple of 4096 bytes long.
    pub(super) const fn new(pieces: Vec<Piece>) -> Self {
        Self { pieces, held: false, lost: false }
    }

    /// The address of `size` bytes at `offset`, all in one piece.
    fn find(&self, offset: u64, size: usize) -> Option<usize> {
        let mut offset = usize::try_from(offset).ok()?;
        for piece in &self.pieces {
            if offset < piece.length {
                let inside = size > 0 && size <= piece.length - offset;
                return inside.then_some(piece.address + offset);
            }
            offset -= piece.length;
        }
        None
    }
}

impl SchemeSync for Memory {
    fn scheme_root(&mut self) -> Result<usize> {
        Err(Error::new(EBADF))
    }

    fn dup(&mut self, _id: usize, _buf: &[u8], _ctx: &CallerCtx) -> Result<OpenResult> {
        Err(Error::new(EBADF))
    }

    fn fstat(&mut self, id: usize, stat: &mut syscall::Stat, _ctx: &CallerCtx) -> Result<()> {
        if id != MEMORY {
            return Err(Error::new(EBADF));
        }
        let length: usize = self.pieces.iter().map(|piece| piece.length).sum();
        stat.st_size = u64::try_from(length).map_err(|_| Error::new(EINVAL))?;
        Ok(())
    }

    fn mmap_prep(
        &mut self,
        id: usize,
        offset: u64,
        size: usize,
        flags: MapFlags,
        _ctx: &CallerCtx,
    ) -> Result<usize> {
        if id != MEMORY || !flags.contains(MapFlags::MAP_SHARED) {
            return Err(Error::new(EINVAL));
        }
        self.find(offset, size).ok_or(Error::new(EINVAL))
    }

    fn munmap(
        &mut self,
        _id: usize,
        _offset: u64,
        _size: usize,
        _flags: MunmapFlags,
        _ctx: &CallerCtx,
    ) -> Result<()> {
        Ok(())
    }

    fn call(
        &mut self,
        id: usize,
        _payload: &mut [u8],
        metadata: &[u64],
        _ctx: &CallerCtx,
    ) -> Result<usize> {
        if id != MEMORY || metadata.first() != Some(&HELD) {
            return Err(Error::new(EINVAL));
        }
        self.held = true;
        Ok(0)
    }

    fn on_close(&mut self, _id: usize) {
        self.lost = true;
    }
}
