//! Mapped memory: device registers, huge pages, files of the server. It contains the only `unsafe` of this program.
#![allow(unsafe_code)]

use std::fs::File;
use std::os::fd::AsFd;
use std::ptr::NonNull;

use anyhow::{Context, Result, ensure};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// A shared mapping of a file. Every access is volatile and checked against the length.
pub(crate) struct Mapping {
    base: NonNull<u8>,
    length: usize,
}

// SAFETY: the mapping belongs to the process, not to a thread. Every access is volatile, and devices and other
// processes may change the memory at any time anyway.
unsafe impl Send for Mapping {}
// SAFETY: concurrent accesses are volatile, and other writers may change the memory at any time anyway.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `length` bytes of `file` from `offset` (a multiple of the page size) for reading and, if `write`, for
    /// writing.
    pub(crate) fn new(file: &File, offset: u64, length: usize, write: bool) -> Result<Self> {
        let protection = if write { ProtFlags::READ | ProtFlags::WRITE } else { ProtFlags::READ };
        Self::with(file, offset, length, protection, MapFlags::SHARED)
    }

    /// Maps the first `length` bytes of `file`. Enters its existing pages into this process's page table without
    /// accessing them.
    pub(crate) fn of_pages(file: &File, length: usize) -> Result<Self> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        Self::with(file, 0, length, protection, MapFlags::SHARED | MapFlags::POPULATE)
    }

    fn with(
        file: &File,
        offset: u64,
        length: usize,
        protection: ProtFlags,
        flags: MapFlags,
    ) -> Result<Self> {
        // SAFETY: a new mapping at an address that the kernel chooses overlaps nothing of this process.
        let base =
            unsafe { mmap(std::ptr::null_mut(), length, protection, flags, file.as_fd(), offset) }
                .with_context(|| format!("mmap of {length:#x} bytes at {offset:#x}"))?;
        let base = NonNull::new(base.cast()).context("mmap gave a null pointer")?;
        Ok(Self { base, length })
    }

    /// Returns the mapping's address in this process.
    pub(crate) fn address(&self) -> usize {
        self.base.as_ptr().addr()
    }

    fn pointer<T>(&self, offset: usize) -> Result<*mut T> {
        let size = size_of::<T>();
        let end = offset.checked_add(size).context("offset overflows")?;
        ensure!(end <= self.length, "offset {offset:#x} lies outside of {:#x} bytes", self.length);
        ensure!(offset.is_multiple_of(size), "offset {offset:#x} is not a multiple of {size}");
        // SAFETY: `offset + size` lies inside the mapping, checked above.
        Ok(unsafe { self.base.as_ptr().add(offset) }.cast())
    }

    /// Reads 32 bits.
    pub(crate) fn read32(&self, offset: usize) -> Result<u32> {
        let pointer = self.pointer::<u32>(offset)?;
        // SAFETY: inside the mapping and aligned (`pointer`); any bit pattern is a u32.
        Ok(unsafe { pointer.read_volatile() })
    }

    /// Writes 32 bits.
    pub(crate) fn write32(&self, offset: usize, value: u32) -> Result<()> {
        let pointer = self.pointer::<u32>(offset)?;
        // SAFETY: inside the mapping and aligned (`pointer`); no reference into it exists.
        unsafe { pointer.write_volatile(value) };
        Ok(())
    }

    /// Reads 64 bits.
    pub(crate) fn read64(&self, offset: usize) -> Result<u64> {
        let pointer = self.pointer::<u64>(offset)?;
        // SAFETY: inside the mapping and aligned (`pointer`); any bit pattern is a u64.
        Ok(unsafe { pointer.read_volatile() })
    }

    /// Writes 64 bits.
    pub(crate) fn write64(&self, offset: usize, value: u64) -> Result<()> {
        let pointer = self.pointer::<u64>(offset)?;
        // SAFETY: inside the mapping and aligned (`pointer`); no reference into it exists.
        unsafe { pointer.write_volatile(value) };
        Ok(())
    }

    /// Copies `length` bytes out; `offset` and `length` are multiples of 8.
    pub(crate) fn bytes(&self, offset: usize, length: usize) -> Result<Vec<u8>> {
        let mut out = Vec::with_capacity(length);
        for at in (offset..offset.saturating_add(length)).step_by(8) {
            out.extend_from_slice(&self.read64(at)?.to_le_bytes());
        }
        Ok(out)
    }

    /// Writes the 64-bit word `word(index)` to each 8 bytes of a range.
    pub(crate) fn fill(
        &self,
        offset: usize,
        length: usize,
        word: impl Fn(u64) -> u64,
    ) -> Result<()> {
        for (index, at) in (0..).zip((offset..offset.saturating_add(length)).step_by(8)) {
            self.write64(at, word(index))?;
        }
        Ok(())
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // Unmapping fails only for a range that was not mapped.
        // SAFETY: the mapping belongs to this value, and no pointer into it outlives a method call.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), self.length) };
    }
}
