//! The scheme that a server serves before its name is known. Through it, the process that holds the server's memory
//! maps that memory.

use redox_scheme::scheme::SchemeSync;
use redox_scheme::{CallerCtx, OpenResult};
use syscall::error::{EBADF, EINVAL, Error, Result};
use syscall::flag::{MapFlags, MunmapFlags};

use super::scheme::{HELD, MEMORY};

/// A piece of the server's memory: one range of virtual addresses.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    /// Virtual address of the first byte.
    pub(super) address: usize,
    /// Length in bytes.
    pub(super) length: usize,
}

/// The scheme while only the keeper knows it. It has one file, the memory, which consists of the pieces in order.
pub(super) struct Memory {
    pieces: Vec<Piece>,
    /// The keeper reported that it maps everything.
    pub(super) held: bool,
    /// The keeper is gone.
    pub(super) lost: bool,
}

impl Memory {
    /// Serves these pieces. The length of each is a multiple of 4096 bytes.
    pub(super) const fn new(pieces: Vec<Piece>) -> Self {
        Self { pieces, held: false, lost: false }
    }

    /// The address of `size` bytes at `offset` of the file. `None` when they are not all in one piece.
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Makes a caller from a request, because the crate has no other way.
    fn caller() -> CallerCtx {
        match redox_scheme::Request::default().kind() {
            redox_scheme::RequestKind::Call(call) => call.caller(),
            _ => panic!("an empty request is a call"),
        }
    }

    fn memory() -> Memory {
        let piece = |address, length| Piece { address, length };
        Memory::new(vec![piece(0x10_0000, 0x2000), piece(0x80_0000, 0x4000), piece(0x4000, 0x1000)])
    }

    #[test]
    fn pieces_follow_one_another_and_no_mapping_leaves_its_piece() {
        let mut memory = memory();
        let mut stat = syscall::Stat::default();
        memory.fstat(MEMORY, &mut stat, &caller()).unwrap();
        assert_eq!(stat.st_size, 0x7000);
        let shared = MapFlags::MAP_SHARED | MapFlags::PROT_READ;
        let mut map = |offset, size| {
            memory.mmap_prep(MEMORY, offset, size, shared, &caller()).map_err(|error| error.errno)
        };
        assert_eq!(map(0, 0x2000), Ok(0x10_0000));
        assert_eq!(map(0x1000, 0x1000), Ok(0x10_1000));
        assert_eq!(map(0x2000, 0x4000), Ok(0x80_0000));
        assert_eq!(map(0x6000, 0x1000), Ok(0x4000));
        for (offset, size) in
            [(0, 0x2001), (0x1000, 0x2000), (0x6000, 0x1001), (0x7000, 1), (0, 0), (u64::MAX, 1)]
        {
            assert_eq!(map(offset, size), Err(EINVAL), "{offset:#x} {size:#x}");
        }
        let private = MapFlags::MAP_PRIVATE | MapFlags::PROT_READ;
        assert!(memory.mmap_prep(MEMORY, 0, 1, private, &caller()).is_err());
        assert!(memory.mmap_prep(7, 0, 1, shared, &caller()).is_err());
        assert!(memory.fstat(7, &mut stat, &caller()).is_err());
    }

    #[test]
    fn only_the_keepers_word_says_that_it_is_held() {
        let mut memory = memory();
        let say = |memory: &mut Memory, id, words: &[u64]| {
            let said = memory.call(id, &mut [0; 8], words, &caller());
            (said.is_ok(), memory.held)
        };
        assert_eq!(say(&mut memory, MEMORY, &[]), (false, false));
        assert_eq!(say(&mut memory, MEMORY, &[HELD + 1]), (false, false));
        assert_eq!(say(&mut memory, 7, &[HELD]), (false, false));
        assert_eq!(say(&mut memory, MEMORY, &[HELD]), (true, true));
        assert!(!memory.lost);
        memory.on_close(MEMORY);
        assert!(memory.lost, "the keeper is gone");
    }
}
