//! Memory that others use too: buffers shared with devices, and registers of devices.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::NonNull;

use rustix::fs::fstat;
use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};

use crate::error::{Breach, Error};

/// Alignment of every mapping: files of huge pages need it, others do not mind.
const ALIGNMENT: usize = 1 << 21;

/// Files mapped one behind the other; ends when dropped. Every access is volatile and checked.
#[derive(Debug)]
pub struct Memory {
    base: NonNull<u8>,
    length: usize,
}

// SAFETY: the mapping belongs to the process. Writes need `&mut`; reads are volatile copies of plain bytes,
// which other processes and devices may change at any time anyway.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    /// Maps the whole of each file, in order. Together they hold at least `length` bytes.
    ///
    /// # Errors
    /// [`Breach::Memory`] when they do not; what mmap(2) reports.
    pub fn map(files: &[impl AsFd], length: u64) -> Result<Self, Error> {
        let mut sizes = Vec::with_capacity(files.len());
        for file in files {
            let size = fstat(file).map_err(std::io::Error::from)?.st_size;
            sizes.push(usize::try_from(size).ok().filter(|size| *size > 0).ok_or(Breach::Memory)?);
        }
        let sum = sizes.iter().try_fold(0_usize, |sum, size| sum.checked_add(*size));
        let sum = sum.filter(|sum| *sum as u64 >= length).ok_or(Breach::Memory)?;
        let mut memory = Self::reserve(sum)?;
        let mut offset = 0;
        for (file, size) in files.iter().zip(sizes) {
            memory.place(file.as_fd(), offset, size)?;
            offset += size;
        }
        Ok(memory)
    }

    /// Address space of `length` bytes, aligned, that nobody can access yet.
    fn reserve(length: usize) -> Result<Self, Error> {
        let whole = length.checked_add(ALIGNMENT).ok_or(Breach::Memory)?;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice changes no memory that Rust knows.
        let start =
            unsafe { mmap_anonymous(std::ptr::null_mut(), whole, ProtFlags::empty(), flags) }
                .map_err(std::io::Error::from)?;
        let before = start.addr().next_multiple_of(ALIGNMENT) - start.addr();
        let base = start.wrapping_byte_add(before);
        // The rest of the reservation may stay when it cannot be ended: it holds no memory.
        end(start, before);
        end(base.wrapping_byte_add(length), whole - before - length);
        let base = NonNull::new(base.cast()).ok_or(Breach::Memory)?;
        Ok(Self { base, length })
    }

    /// Maps a file over a part of the reservation.
    fn place(&mut self, file: BorrowedFd<'_>, offset: usize, size: usize) -> Result<(), Error> {
        let inside = offset.checked_add(size).is_some_and(|end| end <= self.length);
        if !inside {
            return Err(Breach::Memory.into());
        }
        let at = self.base.as_ptr().wrapping_add(offset).cast();
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: the range lies inside this value's own reservation, to which no reference exists.
        unsafe { mmap(at, size, access, MapFlags::SHARED | MapFlags::FIXED, file, 0) }
            .map_err(std::io::Error::from)?;
        Ok(())
    }

    /// Length in bytes.
    #[must_use]
    pub const fn length(&self) -> usize {
        self.length
    }

    /// Copies bytes in.
    ///
    /// # Errors
    /// [`Error::Outside`]; nothing is copied then.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        let to = self.range(offset, bytes.len()).ok_or(Error::Outside)?;
        let skew = to.as_ptr().align_offset(8).min(bytes.len());
        let (head, rest) = bytes.split_at(skew);
        let (words, tail) = rest.as_chunks::<8>();
        // SAFETY: all addresses lie inside the range just checked; words are aligned since `skew` bytes
        // precede them.
        unsafe {
            put_bytes(to, head);
            let to = to.add(skew);
            for (index, word) in words.iter().enumerate() {
                to.cast::<u64>().add(index).write_volatile(u64::from_ne_bytes(*word));
            }
            put_bytes(to.add(words.len() * 8), tail);
        }
        Ok(())
    }

    /// Copies bytes out.
    ///
    /// # Errors
    /// [`Error::Outside`]; nothing is copied then.
    pub fn read(&self, offset: u64, bytes: &mut [u8]) -> Result<(), Error> {
        let from = self.range(offset, bytes.len()).ok_or(Error::Outside)?;
        let skew = from.as_ptr().align_offset(8).min(bytes.len());
        let (head, rest) = bytes.split_at_mut(skew);
        let (words, tail) = rest.as_chunks_mut::<8>();
        // SAFETY: as in `write`.
        unsafe {
            get_bytes(from, head);
            let from = from.add(skew);
            for (index, word) in words.iter_mut().enumerate() {
                *word = from.cast::<u64>().add(index).read_volatile().to_ne_bytes();
            }
            get_bytes(from.add(words.len() * 8), tail);
        }
        Ok(())
    }

    /// Reads 32 bits in one load; `None` outside or when not aligned.
    #[must_use]
    pub fn read_u32(&self, offset: u64) -> Option<u32> {
        // SAFETY: `aligned` gives addresses inside the mapping.
        self.aligned(offset).map(|from| unsafe { from.read_volatile() })
    }

    /// Reads 64 bits in one load; `None` outside or when not aligned.
    #[must_use]
    pub fn read_u64(&self, offset: u64) -> Option<u64> {
        // SAFETY: `aligned` gives addresses inside the mapping.
        self.aligned(offset).map(|from| unsafe { from.read_volatile() })
    }

    /// Writes 32 bits in one store; `None` outside or when not aligned.
    pub fn write_u32(&mut self, offset: u64, value: u32) -> Option<()> {
        // SAFETY: `aligned` gives addresses inside the mapping, which is writable.
        self.aligned(offset).map(|to| unsafe { to.write_volatile(value) })
    }

    /// Writes 64 bits in one store; `None` outside or when not aligned.
    pub fn write_u64(&mut self, offset: u64, value: u64) -> Option<()> {
        // SAFETY: `aligned` gives addresses inside the mapping, which is writable.
        self.aligned(offset).map(|to| unsafe { to.write_volatile(value) })
    }

    fn range(&self, offset: u64, length: usize) -> Option<NonNull<u8>> {
        let offset = usize::try_from(offset).ok()?;
        if offset.checked_add(length)? > self.length {
            return None;
        }
        // SAFETY: `offset` is at most the length of the mapping.
        Some(unsafe { self.base.add(offset) })
    }

    fn aligned<T>(&self, offset: u64) -> Option<NonNull<T>> {
        let place = self.range(offset, size_of::<T>())?.cast::<T>();
        place.is_aligned().then_some(place)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        end(self.base.as_ptr().cast(), self.length);
    }
}

/// Ends a mapping of this module's own making that nothing refers to. A piece that cannot be ended stays.
fn end(start: *mut c_void, length: usize) {
    if length > 0 {
        // SAFETY: the callers' obligation, all in this file: the range is theirs.
        let _ = unsafe { munmap(start, length) };
    }
}

/// # Safety
/// `to` and the bytes behind it are as many writable bytes as `bytes` has.
unsafe fn put_bytes(to: NonNull<u8>, bytes: &[u8]) {
    for (index, byte) in bytes.iter().enumerate() {
        // SAFETY: the caller's word.
        unsafe { to.add(index).write_volatile(*byte) }
    }
}

/// # Safety
/// `from` and the bytes behind it are as many readable bytes as `bytes` has.
unsafe fn get_bytes(from: NonNull<u8>, bytes: &mut [u8]) {
    for (index, byte) in bytes.iter_mut().enumerate() {
        // SAFETY: the caller's word.
        *byte = unsafe { from.add(index).read_volatile() };
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
            assert!(matches!(refused, Err(Error::Breach(Breach::Memory))));
        }
    }
}
