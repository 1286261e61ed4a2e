//! Memory that others use as well: buffers shared with devices, and registers of devices.
#![allow(unsafe_code)]

use std::ptr::NonNull;

use super::span::Span;
use super::system::end;
use crate::error::Error;

/// Memory mapped into this process; the mapping ends when this is dropped. Every access is volatile and
/// checked; each aligned word of 8, 4 or 2 bytes is one access.
#[derive(Debug)]
pub struct Memory {
    pub(super) base: NonNull<u8>,
    pub(super) length: usize,
}

// SAFETY: the mapping belongs to the process. Writes need `&mut`; reads are volatile copies of plain bytes,
// which other processes and devices may change at any time anyway.
unsafe impl Send for Memory {}
// SAFETY: through `&` there are only reads, and those are volatile copies of plain bytes, as said above.
unsafe impl Sync for Memory {}

impl Memory {
    /// Length in bytes.
    #[must_use]
    pub const fn length(&self) -> usize {
        self.length
    }

    /// Address of the first byte.
    #[must_use]
    pub const fn as_ptr(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    /// Copies bytes in.
    ///
    /// # Errors
    /// [`Error::Outside`]; nothing is copied then.
    #[inline]
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        self.span().write(offset, bytes)
    }

    /// Copies bytes out.
    ///
    /// # Errors
    /// [`Error::Outside`]; nothing is copied then.
    #[inline]
    pub fn read(&self, offset: u64, bytes: &mut [u8]) -> Result<(), Error> {
        self.span().read(offset, bytes)
    }

    /// Sets `length` bytes.
    ///
    /// # Errors
    /// [`Error::Outside`]; nothing is set then.
    pub fn fill(&mut self, offset: u64, length: usize, byte: u8) -> Result<(), Error> {
        self.span().fill(offset, length, byte)
    }

    /// Reads 32 bits in one load; `None` outside or when not aligned.
    #[must_use]
    pub fn read_u32(&self, offset: u64) -> Option<u32> {
        self.span().read_word(offset)
    }

    /// Reads 64 bits in one load; `None` outside or when not aligned.
    #[must_use]
    pub fn read_u64(&self, offset: u64) -> Option<u64> {
        self.span().read_word(offset)
    }

    /// Writes 32 bits in one store; `None` outside or when not aligned.
    pub fn write_u32(&mut self, offset: u64, value: u32) -> Option<()> {
        self.span().write_word(offset, value)
    }

    /// Writes 64 bits in one store; `None` outside or when not aligned.
    pub fn write_u64(&mut self, offset: u64, value: u64) -> Option<()> {
        self.span().write_word(offset, value)
    }

    #[inline]
    pub(super) const fn span(&self) -> Span {
        // SAFETY: the mapping lives as long as this value, and there are no references into it: accesses copy.
        unsafe { Span::new(self.base, self.length) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the mapping belongs to this value alone, and there are no references into it: accesses copy.
        unsafe { end(self.base, self.length) }
    }
}
