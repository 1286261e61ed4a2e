//! Volatile copies to and from memory that others use as well.
#![allow(unsafe_code)]

use std::mem::take;
use std::ptr::NonNull;

use crate::error::Error;

/// A range of mapped memory. It is accessed only by volatile copies, each inside the range.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    base: NonNull<u8>,
    length: usize,
}

impl Span {
    /// # Safety
    /// The bytes are mapped, readable and writable, whenever a method of this value or of a copy of it is called. No
    /// reference to any of them is used meanwhile.
    pub(super) const unsafe fn new(base: NonNull<u8>, length: usize) -> Self {
        Self { base, length }
    }

    /// Bytes from `offset` on; `None` when they do not all lie inside.
    #[inline]
    pub(super) fn range(self, offset: u64, length: usize) -> Option<NonNull<u8>> {
        let offset = usize::try_from(offset).ok()?;
        if offset.checked_add(length)? > self.length {
            return None;
        }
        // SAFETY: `offset` is at most the length of the range.
        Some(unsafe { self.base.add(offset) })
    }

    /// The place of a value at `offset`; `None` if it does not all lie inside, or is not aligned.
    #[inline]
    pub(super) fn aligned<T>(self, offset: u64) -> Option<NonNull<T>> {
        let place = self.range(offset, size_of::<T>())?.cast::<T>();
        place.is_aligned().then_some(place)
    }

    /// Copies bytes out.
    #[inline]
    pub(super) fn read(self, offset: u64, bytes: &mut [u8]) -> Result<(), Error> {
        let from = self.range(offset, bytes.len()).ok_or(Error::Outside)?;
        // SAFETY: `range` checks that as many bytes lie inside. The caller of `new` promised that they are readable.
        unsafe { load(from, bytes) }
        Ok(())
    }

    /// Copies bytes in.
    #[inline]
    pub(super) fn write(self, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        let to = self.range(offset, bytes.len()).ok_or(Error::Outside)?;
        // SAFETY: as in `read`. The caller of `new` promised that they are writable, too.
        unsafe { store(to, bytes) }
        Ok(())
    }

    /// Sets `length` bytes.
    pub(super) fn fill(self, offset: u64, length: usize, byte: u8) -> Result<(), Error> {
        let to = self.range(offset, length).ok_or(Error::Outside)?;
        let pattern = [byte; 64];
        for done in (0..length).step_by(pattern.len()) {
            let part = pattern.get(..(length - done).min(pattern.len())).unwrap_or_default();
            // SAFETY: as in `write`. `done` and the part behind it lie within `length`.
            unsafe { store(to.add(done), part) }
        }
        Ok(())
    }

    /// Reads a word in one load; `None` outside or when not aligned.
    #[inline]
    pub(super) fn read_word<W: Word>(self, offset: u64) -> Option<W> {
        // SAFETY: `aligned` gives an aligned address inside. The caller of `new` promised that it is readable. Any
        // bits are a valid word.
        self.aligned(offset).map(|from| unsafe { from.read_volatile() })
    }

    /// Writes a word in one store; `None` outside or when not aligned.
    #[inline]
    pub(super) fn write_word<W: Word>(self, offset: u64, value: W) -> Option<()> {
        // SAFETY: as in `read_word`. The caller of `new` promised that it is writable, too.
        self.aligned(offset).map(|to| unsafe { to.write_volatile(value) })
    }
}

/// A type that is read and written in one access.
pub(super) trait Word: Copy {}
impl Word for u32 {}
impl Word for u64 {}

/// Bytes of the next access: the largest power of two, up to 8, that the address is a multiple of and that is left.
#[inline]
fn access(place: NonNull<u8>, left: usize) -> usize {
    let aligned = 1 << (place.addr().get() | 8).trailing_zeros();
    aligned.min(left.checked_ilog2().map_or(0, |log| 1 << log))
}

/// Copies bytes out, each aligned word of 8, 4 or 2 bytes in one load.
///
/// # Safety
/// The `bytes.len()` bytes from `from` on are readable.
#[inline]
unsafe fn load(mut from: NonNull<u8>, mut bytes: &mut [u8]) {
    macro_rules! one {
        ($word:ty, $size:literal) => {
            if let Some((place, rest)) = take(&mut bytes).split_first_chunk_mut::<$size>() {
                // SAFETY: `access` checks that the address is a multiple of the word's size. The caller promised that
                // the bytes are readable. The next address is at most their end.
                unsafe {
                    *place = from.cast::<$word>().read_volatile().to_ne_bytes();
                    from = from.add($size);
                }
                bytes = rest;
            }
        };
    }
    loop {
        match access(from, bytes.len()) {
            0 => return,
            1 => one!(u8, 1),
            2 => one!(u16, 2),
            4 => one!(u32, 4),
            _ => {
                let (words, rest) = take(&mut bytes).as_chunks_mut::<8>();
                for place in words {
                    // SAFETY: as above. The next word is aligned, because this one is.
                    unsafe {
                        *place = from.cast::<u64>().read_volatile().to_ne_bytes();
                        from = from.add(8);
                    }
                }
                bytes = rest;
            }
        }
    }
}

/// Copies bytes in, each aligned word of 8, 4 or 2 bytes in one store.
///
/// # Safety
/// The `bytes.len()` bytes from `to` on are writable.
#[inline]
unsafe fn store(mut to: NonNull<u8>, mut bytes: &[u8]) {
    macro_rules! one {
        ($word:ty, $size:literal) => {
            if let Some((place, rest)) = bytes.split_first_chunk::<$size>() {
                // SAFETY: as in `load`, with bytes that the caller promised to be writable.
                unsafe {
                    to.cast::<$word>().write_volatile(<$word>::from_ne_bytes(*place));
                    to = to.add($size);
                }
                bytes = rest;
            }
        };
    }
    loop {
        match access(to, bytes.len()) {
            0 => return,
            1 => one!(u8, 1),
            2 => one!(u16, 2),
            4 => one!(u32, 4),
            _ => {
                let (words, rest) = bytes.as_chunks::<8>();
                for word in words {
                    // SAFETY: as in `load`, with bytes that the caller promised to be writable.
                    unsafe {
                        to.cast::<u64>().write_volatile(u64::from_ne_bytes(*word));
                        to = to.add(8);
                    }
                }
                bytes = rest;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Aligned memory to copy from and to.
    #[repr(align(8))]
    struct Words([u8; 64]);

    /// The sizes of accesses to bytes that begin at `offset` of an aligned word.
    fn accesses(offset: usize, mut left: usize) -> Vec<usize> {
        let mut words = Words([0; 64]);
        let mut place = NonNull::from(&mut words.0).cast::<u8>();
        let mut sizes = Vec::new();
        // SAFETY: inside of `words`.
        place = unsafe { place.add(offset) };
        while left > 0 {
            let size = access(place, left);
            sizes.push(size);
            // SAFETY: the tests stay inside of `words`.
            place = unsafe { place.add(size) };
            left -= size;
        }
        sizes
    }

    /// A word that a device writes at once is never read in two halves.
    #[test]
    fn an_aligned_word_is_one_access() {
        assert_eq!(accesses(0, 8), [8]);
        assert_eq!(accesses(4, 4), [4]);
        assert_eq!(accesses(6, 2), [2]);
        assert_eq!(accesses(4, 12), [4, 8]);
        assert_eq!(accesses(1, 20), [1, 2, 4, 8, 4, 1]);
        assert_eq!(accesses(8, 7), [4, 2, 1]);
        assert_eq!(accesses(2, 1), [1]);
        assert_eq!(accesses(4, 3), [2, 1]);
        assert_eq!(accesses(3, 0), []);
    }

    #[test]
    fn every_alignment_and_length_is_copied_exactly() {
        let mut words = Words([0xee; 64]);
        let base = NonNull::from(&mut words.0).cast::<u8>();
        // SAFETY: `words` outlives it and is reached through it alone until the end.
        let span = unsafe { Span::new(base, 64) };
        for start in 0..9_u64 {
            for length in 0..30_u8 {
                let bytes: Vec<u8> = (1..=length).collect();
                span.fill(0, 64, 0xee).unwrap();
                span.write(start, &bytes).unwrap();
                let mut all = [0; 64];
                span.read(0, &mut all).unwrap();
                let mut expected = [0xee; 64];
                let from = usize::try_from(start).unwrap();
                expected[from..from + bytes.len()].copy_from_slice(&bytes);
                assert_eq!(all, expected);
                let mut part = vec![0; bytes.len()];
                span.read(start, &mut part).unwrap();
                assert_eq!(part, bytes);
                span.fill(start, bytes.len(), 0xee).unwrap();
                span.read(0, &mut all).unwrap();
                assert_eq!(all, [0xee; 64]);
            }
        }
        assert!(span.read(60, &mut [0; 5]).is_err() && span.write(u64::MAX, &[1]).is_err());
        assert!(span.fill(1, 64, 0).is_err() && span.read(64, &mut []).is_ok());
    }
}
