//! Memory that others use too: buffers shared with devices, and registers of devices.
#![allow(unsafe_code)]

use std::ptr::NonNull;

use super::system::end;
use crate::error::Error;

/// Memory mapped into this process; the mapping ends when this is dropped. Every access is volatile and
/// checked.
#[derive(Debug)]
pub struct Memory {
    pub(super) base: NonNull<u8>,
    pub(super) length: usize,
}

// SAFETY: the mapping belongs to the process. Writes need `&mut`; reads are volatile copies of plain bytes,
// which other processes and devices may change at any time anyway.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
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

    pub(super) fn range(&self, offset: u64, length: usize) -> Option<NonNull<u8>> {
        let offset = usize::try_from(offset).ok()?;
        if offset.checked_add(length)? > self.length {
            return None;
        }
        // SAFETY: `offset` is at most the length of the mapping.
        Some(unsafe { self.base.add(offset) })
    }

    pub(super) fn aligned<T>(&self, offset: u64) -> Option<NonNull<T>> {
        let place = self.range(offset, size_of::<T>())?.cast::<T>();
        place.is_aligned().then_some(place)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own, and nothing refers to it: accesses copy.
        unsafe { end(self.base, self.length) }
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
