//! Maps files into this process: registers, and memory that hardware uses. Every access is checked against the bounds
//! of the mapping. All accesses are volatile, except stores to memory that hardware does not access at that time.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::atomic::Ordering;

use super::cache::CacheLines;
use super::order::fence;

/// Which memory a mapping refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// The file's memory. The system enters the pages at once, as far as it has memory for them.
    Populated,
    /// The file's memory.
    Shared,
    /// Memory of this process alone, of the kind that the file stands for (Redox).
    Private,
}

/// A writable mapping of a file. Dropping it unmaps the file.
#[derive(Debug)]
pub struct Mapping {
    base: NonNull<u8>,
    length: usize,
}

// SAFETY: the mapping belongs to the process, not to a thread. Only this value accesses it.
unsafe impl Send for Mapping {}

impl Mapping {
    /// Maps `length` bytes of `file` from `offset` on. `offset` is a multiple of the page size.
    ///
    /// # Errors
    /// The error of the system's mmap.
    pub fn new(
        file: BorrowedFd<'_>,
        offset: u64,
        length: usize,
        sharing: Sharing,
    ) -> io::Result<Self> {
        Ok(Self { base: system::map(file, offset, length, sharing)?, length })
    }

    /// The first byte.
    #[must_use]
    pub const fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// The virtual address of the first byte.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.base.as_ptr().addr() as u64
    }

    /// Length in bytes.
    #[must_use]
    pub const fn length(&self) -> usize {
        self.length
    }

    /// Reads 32 bits at `offset`, a multiple of 4. `None` if they are outside the mapping or not aligned.
    #[must_use]
    pub fn read32(&self, offset: usize) -> Option<u32> {
        let from = self.place::<u32>(offset)?;
        // SAFETY: `place` returns aligned addresses inside the mapping, which lives as long as `self`. Any bit
        // pattern is a `u32`. Hardware and clients may write at the same time, so the read is volatile.
        Some(unsafe { from.read_volatile() })
    }

    /// Reads 64 bits at `offset`, a multiple of 8. `None` if they are outside the mapping or not aligned.
    #[must_use]
    pub fn read64(&self, offset: usize) -> Option<u64> {
        let from = self.place::<u64>(offset)?;
        // SAFETY: `place` returns aligned addresses inside the mapping, which lives as long as `self`. Any bit
        // pattern is a `u64`. Hardware and clients may write at the same time, so the read is volatile.
        Some(unsafe { from.read_volatile() })
    }

    /// Writes 32 bits at `offset`, a multiple of 4. Does nothing if they are outside the mapping or not aligned.
    pub fn write32(&mut self, offset: usize, value: u32) {
        if let Some(to) = self.place(offset) {
            #[cfg(test)]
            super::order::note(super::order::Order::Store(offset));
            // SAFETY: `place` returns aligned addresses inside the mapping, which lives as long as `self`. The
            // mapping is writable and holds no Rust object.
            unsafe { to.write_volatile(value) }
        }
    }

    /// Writes 64 bits at `offset`, a multiple of 8, in one store. Does nothing if they are outside the mapping or not
    /// aligned.
    pub fn write64(&mut self, offset: usize, value: u64) {
        if let Some(to) = self.place(offset) {
            #[cfg(test)]
            super::order::note(super::order::Order::Store(offset));
            // SAFETY: `place` returns aligned addresses inside the mapping, which lives as long as `self`. The
            // mapping is writable and holds no Rust object.
            unsafe { to.write_volatile(value) }
        }
    }

    /// Calls `change` with the 64 bits at `offset`, a multiple of 8. Stores the value that it returns, if any, in
    /// their place. Outside the mapping, `change` gets 0, and nothing is written.
    #[inline(always)]
    pub fn change64<T>(
        &mut self,
        offset: usize,
        change: impl FnOnce(u64) -> (Option<u64>, T),
    ) -> T {
        let Some(place) = self.place::<u64>(offset) else { return change(0).1 };
        // SAFETY: `place` returned an aligned address inside the mapping, which lives as long as `self`. Any bit
        // pattern is a `u64`. Hardware and clients may write at the same time, so the read is volatile.
        let (new, told) = change(unsafe { place.read_volatile() });
        if let Some(new) = new {
            // SAFETY: `place` is aligned and inside the mapping. `change` cannot have ended the mapping, because
            // `self` is borrowed. The mapping is writable and holds no Rust object.
            unsafe { place.write_volatile(new) }
        }
        told
    }

    /// Does the same as [`Mapping::change64`] for each of `count` words from `offset` on, in order. `change` also
    /// gets the number of the word, from 0 on. Does nothing if some of the words are outside the mapping.
    #[inline(always)]
    pub fn change64_each(
        &mut self,
        offset: usize,
        count: usize,
        mut change: impl FnMut(usize, u64) -> Option<u64>,
    ) {
        let Some(first) = self.words(offset, count) else { return };
        for index in 0..count {
            // SAFETY: `words` checked that all `count` words lie inside the mapping and are aligned. The mapping
            // lives as long as `self`.
            let word = unsafe { first.add(index) };
            // SAFETY: `word` is aligned and inside the mapping. Any bit pattern is a `u64`. Hardware and clients may
            // write at the same time, so the read is volatile.
            if let Some(new) = change(index, unsafe { word.read_volatile() }) {
                // SAFETY: `word` is aligned and inside the mapping. `change` cannot have ended the mapping, because
                // `self` is borrowed. The mapping is writable and holds no Rust object.
                unsafe { word.write_volatile(new) }
            }
        }
    }

    /// Writes the next `count` values from `offset` on, a multiple of 8, in one store each. Does nothing if some of
    /// the words are outside the mapping.
    #[inline(always)]
    pub fn write64_each(
        &mut self,
        offset: usize,
        count: usize,
        values: &mut impl Iterator<Item = u64>,
    ) {
        let Some(first) = self.words(offset, count) else { return };
        for (index, value) in (0..count).zip(values) {
            // SAFETY: `words` checked that all `count` words lie inside the mapping and are aligned. The mapping is
            // writable and holds no Rust object.
            unsafe { first.add(index).write_volatile(value) }
        }
    }

    /// Writes `count` words of 64 bits from `offset` on, a multiple of 8, in one store each. The first word is
    /// `value`, and each next one is greater by `step`. Does nothing if some of the words are outside the mapping.
    pub fn fill64(&mut self, offset: usize, count: usize, value: u64, step: u64) {
        let Some(first) = self.words(offset, count) else { return };
        let mut next = value;
        for index in 0..count {
            // SAFETY: `words` checked that all `count` words lie inside the mapping and are aligned. The mapping is
            // writable and holds no Rust object.
            unsafe { first.add(index).write_volatile(next) }
            next = next.wrapping_add(step);
        }
    }

    /// Writes the same words as [`Mapping::fill64`], where hardware does not read yet. The stores may have any order
    /// and size, but all of them come before any later store of this thread.
    pub fn fill64_unseen(&mut self, offset: usize, count: usize, value: u64, step: u64) {
        let Some(first) = self.words(offset, count) else { return };
        let mut next = value;
        for index in 0..count {
            // SAFETY: `words` checked that all `count` words lie inside the mapping and are aligned. The mapping is
            // writable and holds no Rust object.
            unsafe { first.add(index).write(next) }
            next = next.wrapping_add(step);
        }
        fence(Ordering::Release);
    }

    /// Fills `length` bytes from `offset` on with zeros. Does nothing if some of them are outside the mapping.
    pub fn clear(&mut self, offset: usize, length: usize) {
        if let Some(to) = self.range(offset, length) {
            // SAFETY: the range lies inside the mapping, which is writable and holds no Rust object.
            unsafe { to.write_bytes(0, length) }
        }
    }

    /// Writes the cache lines of `length` bytes from `offset` on back to memory, and waits until they are there. Does
    /// nothing if some of the bytes are outside the mapping.
    pub fn clean(&self, lines: CacheLines, offset: usize, length: usize) {
        if let Some(from) = self.range(offset, length) {
            // SAFETY: the range lies inside the mapping, which is readable as long as `self` lives.
            unsafe { lines.write_back(from.as_ptr(), length) }
        }
    }

    /// Keeps the mapping as long as the process lives, and lends the records of eight words from `offset` on. None when
    /// `offset` is not a multiple of 8 or outside the mapping.
    ///
    /// Whoever maps the same memory once more leaves these records alone.
    #[must_use]
    pub fn leak_records(self, offset: usize) -> Option<&'static mut [[u64; 8]]> {
        let count = self.length.checked_sub(offset)? / size_of::<[u64; 8]>();
        let first = self.words(offset, 8 * count)?.cast();
        std::mem::forget(self);
        // SAFETY: `words` checked that the records lie inside the mapping and are aligned. The mapping is writable, is
        // never unmapped, and any bits are a valid record. `self` is gone, so this is the only reference to them.
        Some(unsafe { std::slice::from_raw_parts_mut(first.as_ptr(), count) })
    }

    fn range(&self, offset: usize, length: usize) -> Option<NonNull<u8>> {
        let end = offset.checked_add(length)?;
        if end > self.length {
            return None;
        }
        // SAFETY: `offset` is at most the length of the mapping, which is one allocation.
        Some(unsafe { self.base.add(offset) })
    }

    fn words(&self, offset: usize, count: usize) -> Option<NonNull<u64>> {
        let first = self.range(offset, count.checked_mul(size_of::<u64>())?)?.cast();
        first.is_aligned().then_some(first)
    }

    fn place<T>(&self, offset: usize) -> Option<NonNull<T>> {
        let place = self.range(offset, size_of::<T>())?.cast::<T>();
        place.is_aligned().then_some(place)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: this is exactly the range that `new` mapped. Nothing borrows from it, since every access copies.
        let ended = unsafe { system::unmap(self.base, self.length) };
        debug_assert!(ended.is_ok());
    }
}

#[cfg(target_os = "linux")]
mod system {
    use super::{BorrowedFd, NonNull, Sharing, io};
    use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

    pub(super) fn map(
        file: BorrowedFd<'_>,
        offset: u64,
        length: usize,
        sharing: Sharing,
    ) -> io::Result<NonNull<u8>> {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        let flags = match sharing {
            Sharing::Populated => MapFlags::SHARED | MapFlags::POPULATE,
            Sharing::Shared => MapFlags::SHARED,
            Sharing::Private => MapFlags::PRIVATE,
        };
        // SAFETY: a new mapping at an address of the kernel's choice changes no memory that Rust knows.
        let base = unsafe { mmap(std::ptr::null_mut(), length, access, flags, file, offset) }?;
        NonNull::new(base.cast()).ok_or(io::ErrorKind::InvalidData.into())
    }

    /// # Safety
    /// The range is a mapping of [`map`], and nothing refers to it any more.
    pub(super) unsafe fn unmap(base: NonNull<u8>, length: usize) -> io::Result<()> {
        // SAFETY: the caller upholds the contract of this function.
        unsafe { munmap(base.as_ptr().cast(), length) }?;
        Ok(())
    }
}

#[cfg(target_os = "redox")]
mod system {
    use super::{BorrowedFd, NonNull, Sharing, io};
    use libredox::call::{MmapArgs, mmap, munmap};
    use libredox::flag::{MAP_PRIVATE, MAP_SHARED, PROT_READ, PROT_WRITE};
    use std::os::fd::AsRawFd;

    pub(super) fn map(
        file: BorrowedFd<'_>,
        offset: u64,
        length: usize,
        sharing: Sharing,
    ) -> io::Result<NonNull<u8>> {
        let flags = if sharing == Sharing::Private { MAP_PRIVATE } else { MAP_SHARED };
        let fd = usize::try_from(file.as_raw_fd())
            .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        let prot = PROT_READ | PROT_WRITE;
        let request = MmapArgs { addr: std::ptr::null_mut(), length, prot, flags, fd, offset };
        // SAFETY: a new mapping at an address of the kernel's choice changes no memory that Rust knows.
        let base = unsafe { mmap(request) }?;
        NonNull::new(base.cast()).ok_or(io::ErrorKind::InvalidData.into())
    }

    /// # Safety
    /// The range is a mapping of [`map`], and nothing refers to it any more.
    pub(super) unsafe fn unmap(base: NonNull<u8>, length: usize) -> io::Result<()> {
        // SAFETY: the caller upholds the contract of this function.
        unsafe { munmap(base.as_ptr().cast(), length) }?;
        Ok(())
    }
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    fn page() -> Mapping {
        let file = rustix::fs::memfd_create("mapping", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&file, 4096).unwrap();
        Mapping::new(file.as_fd(), 0, 4096, Sharing::Populated).unwrap()
    }

    #[test]
    fn accesses_outside_or_unaligned_do_nothing() {
        let mut page = page();
        for offset in [4093, 4096, usize::MAX, 2] {
            page.write32(offset, 1);
            assert_eq!(page.read32(offset), None, "{offset}");
        }
        for offset in [4092, 4096, usize::MAX - 7, 4] {
            page.write64(offset, 1);
            assert_eq!(page.read64(offset), None, "{offset}");
        }
        page.fill64(4088, 2, 1, 1);
        page.fill64(4, 1, 1, 1);
        page.fill64(0, usize::MAX, 1, 1);
        page.fill64_unseen(4088, 2, 1, 1);
        page.fill64_unseen(4, 1, 1, 1);
        page.fill64_unseen(0, usize::MAX, 1, 1);
        for (offset, count) in [(4088, 2), (4, 1), (0, usize::MAX)] {
            page.write64_each(offset, count, &mut std::iter::repeat(1));
            page.change64_each(offset, count, |_, _| panic!("a word outside"));
        }
        page.clear(4095, 2);
        assert!((0..512).all(|word| page.read64(word * 8) == Some(0)));
    }

    /// The compiler may reorder plain stores. It must not move them behind a later volatile store.
    #[test]
    fn what_nobody_sees_yet_is_stored_before_what_shows_it() {
        use crate::platform::order::{Order, record};

        let mut page = page();
        let order = record(|| {
            page.fill64_unseen(0, 512, 1, 4096);
            page.write64(8, 0);
        });
        assert_eq!(order, [Order::Fence(Ordering::Release), Order::Store(8)]);
    }

    #[test]
    fn words_are_changed_one_by_one() {
        let mut page = page();
        page.write64_each(4064, 3, &mut [5, 6, 7, 8].into_iter());
        page.write64_each(0, 4, &mut [9].into_iter());
        let mut seen = Vec::new();
        page.change64_each(4064, 4, |index, word| {
            seen.push((index, word));
            (index != 1).then_some(word + 100)
        });
        assert_eq!(seen, [(0, 5), (1, 6), (2, 7), (3, 0)]);
        let words = [4056, 4064, 4072, 4080, 4088, 0, 8].map(|at| page.read64(at).unwrap());
        assert_eq!(words, [0, 105, 6, 107, 100, 9, 0]);
    }

    #[test]
    fn words_are_little_endian_bytes_of_the_file() {
        let mut page = page();
        page.write64(4088, 0x0102_0304_0506_0708);
        assert_eq!(page.read32(4088), Some(0x0506_0708));
        page.write32(4092, 0);
        assert_eq!(page.read64(4088), Some(0x0506_0708));
        page.clear(4088, 8);
        assert_eq!(page.read64(4088), Some(0));
        page.fill64(4080, 2, 7, 4096);
        assert_eq!(
            (page.read64(4072), page.read64(4080), page.read64(4088)),
            (Some(0), Some(7), Some(4103))
        );
        page.fill64_unseen(8, 509, 7, 4096);
        let words: Vec<u64> = (0..512).filter_map(|word| page.read64(word * 8)).collect();
        let expected = (0..509).map(|word| 7 + 4096 * word);
        assert_eq!(words, [0].into_iter().chain(expected).chain([7, 4103]).collect::<Vec<u64>>());
    }
}
