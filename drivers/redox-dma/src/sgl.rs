//! Memory in pieces: adjacent for this process, each piece adjacent for the device.

use std::num::NonZeroUsize;

use crate::platform::{EINVAL, Error, Result};
use crate::region::{Region, whole_pages};

/// The longest piece in bytes: what the kernel of Redox allocates at once.
const LONGEST: usize = 4 << 20;

/// Memory in pieces, filled with zeros. Lengths of pieces are powers of two of at least a page and at most 4 MiB.
///
/// ```
/// let list = redox_dma::sgl::Sgl::new(3 * 4096 - 100)?;
/// let lengths: Vec<usize> = list.chunks().iter().map(|chunk| chunk.length).collect();
/// assert_eq!(lengths, [2 * 4096, 4096 - 100]);
/// # Ok::<(), redox_dma::Error>(())
/// ```
#[derive(Debug)]
pub struct Sgl {
    region: Region,
    length: NonZeroUsize,
    chunks: Vec<Chunk>,
}

/// A piece.
#[derive(Debug)]
pub struct Chunk {
    /// Bytes of the list before it.
    pub offset: usize,
    /// Address of its first byte for the device.
    pub phys: usize,
    /// Address of its first byte in this process.
    pub virt: *mut u8,
    /// Length in bytes. The last piece ends where the list does, which need not be the end of a page.
    pub length: usize,
}

impl Sgl {
    /// Allocates `unaligned_length` bytes, rounded up to whole pages.
    ///
    /// # Errors
    /// `EINVAL` for no bytes; the errors of an allocation.
    pub fn new(unaligned_length: usize) -> Result<Self> {
        let length = NonZeroUsize::new(unaligned_length).ok_or(Error::new(EINVAL))?;
        let lengths = split(whole_pages(length.get())?);
        let (region, addresses) = Region::scattered(&lengths)?;
        let mut chunks = Vec::with_capacity(lengths.len());
        let mut offset = 0;
        for (whole, phys) in lengths.into_iter().zip(addresses) {
            let virt = region.start().as_ptr().wrapping_add(offset);
            let length = whole.min(length.get() - offset);
            chunks.push(Chunk { offset, phys, virt, length });
            offset += whole;
        }
        Ok(Self { region, length, chunks })
    }

    /// The pieces, in order.
    #[must_use]
    pub fn chunks(&self) -> &[Chunk] {
        &self.chunks
    }

    /// Address of the first byte in this process.
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        self.region.start().as_ptr()
    }

    /// Length in bytes, as it was asked for.
    #[expect(clippy::len_without_is_empty, reason = "a list is never empty")]
    #[must_use]
    pub fn len(&self) -> usize {
        self.length.get()
    }
}

/// The largest pieces first, so that none is larger than what is left.
fn split(mut left: usize) -> Vec<usize> {
    let mut lengths = Vec::new();
    while let Some(bits) = left.min(LONGEST).checked_ilog2() {
        let length = 1 << bits;
        lengths.push(length);
        left -= length;
    }
    lengths
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_powers_of_two_up_to_the_kernels_longest() {
        const K: usize = 1024;
        assert_eq!(split(4 * K), [4 * K]);
        assert_eq!(split(28 * K), [16 * K, 8 * K, 4 * K]);
        assert_eq!(split(4096 * K), [4096 * K]);
        assert_eq!(split(9 * 1024 * K), [4096 * K, 4096 * K, 1024 * K]);
        assert_eq!(split(0), []);
    }
}
