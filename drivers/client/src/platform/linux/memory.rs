//! Files mapped one behind the other.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::NonNull;

use rustix::fs::fstat;
use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous};

use super::unmap::end;
use crate::error::{Error, ProtocolError};
use crate::platform::Memory;

/// Alignment of every mapping. Files of huge pages need it; it does no harm to others.
const ALIGNMENT: usize = 1 << 21;

impl Memory {
    /// Maps the whole of each file, in order. Together they hold at least `length` bytes.
    ///
    /// # Errors
    /// [`ProtocolError::Memory`] if they hold less; errors of mmap(2).
    pub fn map(files: &[impl AsFd], length: u64) -> Result<Self, Error> {
        let mut sizes = Vec::with_capacity(files.len());
        for file in files {
            let size = fstat(file).map_err(std::io::Error::from)?.st_size;
            sizes.push(
                usize::try_from(size).ok().filter(|size| *size > 0).ok_or(ProtocolError::Memory)?,
            );
        }
        let sum = sizes.iter().try_fold(0_usize, |sum, size| sum.checked_add(*size));
        let sum = sum.filter(|sum| *sum as u64 >= length).ok_or(ProtocolError::Memory)?;
        let mut memory = Self::reserve(sum)?;
        let mut offset = 0;
        for (file, size) in files.iter().zip(sizes) {
            memory.place(file.as_fd(), offset, size)?;
            offset += size;
        }
        Ok(memory)
    }

    /// Reserves address space of `length` bytes, aligned and not accessible yet.
    fn reserve(length: usize) -> Result<Self, Error> {
        let whole = length.checked_add(ALIGNMENT).ok_or(ProtocolError::Memory)?;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice changes no memory that Rust knows.
        let start =
            unsafe { mmap_anonymous(std::ptr::null_mut(), whole, ProtFlags::empty(), flags) }
                .map_err(std::io::Error::from)?;
        let before = start.addr().next_multiple_of(ALIGNMENT) - start.addr();
        let base = start.wrapping_byte_add(before);
        // The rest of the reservation may stay if it cannot be unmapped: it holds no memory.
        trim(start, before);
        trim(base.wrapping_byte_add(length), whole - before - length);
        let base = NonNull::new(base.cast()).ok_or(ProtocolError::Memory)?;
        Ok(Self { base, length })
    }

    /// Maps a file over a part of the reservation.
    fn place(&mut self, file: BorrowedFd<'_>, offset: usize, size: usize) -> Result<(), Error> {
        let inside = offset.checked_add(size).is_some_and(|end| end <= self.length);
        if !inside {
            return Err(ProtocolError::Memory.into());
        }
        let at = self.base.as_ptr().wrapping_add(offset).cast();
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: the range lies inside this value's own reservation, to which no reference exists.
        unsafe { mmap(at, size, access, MapFlags::SHARED | MapFlags::FIXED, file, 0) }
            .map_err(std::io::Error::from)?;
        Ok(())
    }
}

/// Unmaps a part of a reservation that nothing references. A part that cannot be unmapped stays.
fn trim(start: *mut c_void, length: usize) {
    if let Some(start) = NonNull::new(start.cast()) {
        // SAFETY: all callers are in this file. The range is theirs, and nothing references it.
        unsafe { end(start, length) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::unix::fs::FileExt;

    fn file(size: u64) -> File {
        let file = rustix::fs::memfd_create("memory", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&file, size).unwrap();
        File::from(file)
    }

    #[test]
    fn files_follow_each_other() {
        let files = [file(8192), file(4096)];
        let mut memory = Memory::map(&files, 12288).unwrap();
        let bytes: Vec<u8> = (0..=250).cycle().take(600).collect();
        memory.write(7900, &bytes).unwrap();
        let mut back = vec![0; 600];
        memory.read(7900, &mut back).unwrap();
        assert_eq!(back, bytes);
        let (mut first, mut second) = ([0; 292], [0; 308]);
        files[0].read_exact_at(&mut first, 7900).unwrap();
        files[1].read_exact_at(&mut second, 0).unwrap();
        assert_eq!([&first[..], &second[..]].concat(), bytes);
    }

    #[test]
    fn every_alignment_and_length_copies_exactly() {
        let mut memory = Memory::map(&[file(4096)], 4096).unwrap();
        for start in 0..9_u64 {
            for length in 0..20_u8 {
                let bytes: Vec<u8> = (1..=length).collect();
                memory.write(0, &[0xee; 64]).unwrap();
                memory.write(start, &bytes).unwrap();
                let mut all = [0; 64];
                memory.read(0, &mut all).unwrap();
                let mut expected = [0xee; 64];
                let from = usize::try_from(start).unwrap();
                expected[from..from + bytes.len()].copy_from_slice(&bytes);
                assert_eq!(all, expected);
                let mut part = vec![0; bytes.len()];
                memory.read(start, &mut part).unwrap();
                assert_eq!(part, bytes);
            }
        }
    }

    #[test]
    fn nothing_is_accessed_outside() {
        let mut memory = Memory::map(&[file(4096)], 100).unwrap();
        assert_eq!(memory.length(), 4096);
        for offset in [4093, 4096, u64::MAX] {
            assert!(matches!(memory.write(offset, &[1; 4]), Err(Error::Outside)));
            assert!(matches!(memory.read(offset, &mut [0; 4]), Err(Error::Outside)));
            assert_eq!(memory.write_u32(offset, 1), None);
            assert_eq!(memory.read_u32(offset), None);
        }
        assert_eq!((memory.read_u32(2), memory.read_u64(4)), (None, None));
        assert_eq!(memory.write_u64(8, 0x0102_0304_0506_0708), Some(()));
        assert_eq!(
            (memory.read_u32(8), memory.read_u64(8)),
            (Some(0x0506_0708), Some(0x0102_0304_0506_0708))
        );
        assert!((0..8).chain(16..4096).all(|at| {
            let mut byte = [1];
            memory.read(at, &mut byte).is_ok() && byte == [0]
        }));
    }

    #[test]
    fn files_that_are_too_small_are_a_breach() {
        for files in [vec![], vec![file(0)], vec![file(4096)]] {
            let refused = Memory::map(&files, 4097);
            assert!(matches!(refused, Err(Error::ProtocolError(ProtocolError::Memory))));
        }
    }
}
