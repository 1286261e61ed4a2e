//! The kernel's ELF image (System V ABI, "Object Files").

use crate::Failure;

/// A checked 64-bit executable.
pub(crate) struct Image {
    file: &'static [u8],
    offset: u64,
    size: u64,
}

struct Segment {
    file_offset: u64,
    address: u64,
    file_size: u64,
    memory_size: u64,
}

impl Image {
    /// Checks the headers: every loadable segment lies in `file` and at or after `offset`.
    pub(crate) fn parse(file: &'static [u8], offset: u64) -> Result<Self, Failure> {
        let wrong = Failure::NotAKernel;
        if !file.starts_with(b"\x7fELF\x02\x01") || short(file, 18) != Some(62) {
            return Err(wrong("no ELF header for x86-64"));
        }
        let mut image = Self { file, offset, size: 0 };
        let mut size = 0;
        for segment in image.segments() {
            let end = segment.file_offset.checked_add(segment.file_size);
            if end.is_none_or(|end| end > file.len() as u64)
                || segment.file_size > segment.memory_size
            {
                return Err(wrong("a segment is cut off"));
            }
            let place =
                segment.address.checked_sub(offset).ok_or(wrong("a segment lies too low"))?;
            let end = place.checked_add(segment.memory_size).ok_or(wrong("a segment wraps"))?;
            size = end.max(size);
        }
        if size == 0 || size > 1 << 30 {
            return Err(wrong("nothing to load, or more than 1 GiB"));
        }
        image.size = size.max(file.len() as u64).next_multiple_of(4096);
        Ok(image)
    }

    /// Bytes of memory from the link address to the end of segments and file, in whole pages.
    pub(crate) const fn size(&self) -> u64 {
        self.size
    }

    /// Virtual address of the first instruction.
    pub(crate) fn entry(&self) -> u64 {
        long(self.file, 24).unwrap_or(0)
    }

    /// Copies the file and its segments to physical memory and zeroes the rest. The kernel finds its own symbols by
    /// file offsets from its link address, so the whole file is needed. Its segments lie at the same offsets.
    ///
    /// # Safety
    /// `base` is the start of [`Self::size`] bytes of free, identity mapped memory.
    pub(crate) unsafe fn place(&self, base: u64) {
        // SAFETY: the caller guarantees that these bytes are free and identity mapped.
        let memory =
            unsafe { core::slice::from_raw_parts_mut(base as *mut u8, self.size as usize) };
        memory.fill(0);
        for (to, from) in memory.iter_mut().zip(self.file) {
            *to = *from;
        }
        for segment in self.segments() {
            let place = (segment.address - self.offset) as usize;
            let from = segment.file_offset as usize;
            let bytes = self.file.get(from..from + segment.file_size as usize).unwrap_or_default();
            if let Some(to) = memory.get_mut(place..place + bytes.len()) {
                to.copy_from_slice(bytes);
            }
        }
    }

    fn segments(&self) -> impl Iterator<Item = Segment> {
        let file = self.file;
        let start = long(file, 32).unwrap_or(0) as usize;
        let count = short(file, 56).unwrap_or(0);
        (0..usize::from(count)).filter_map(move |number| {
            let header = file.get(start.checked_add(number * 56)?..)?;
            let loadable = short(header, 0) == Some(1) && short(header, 2) == Some(0);
            loadable.then_some(())?;
            Some(Segment {
                file_offset: long(header, 8)?,
                address: long(header, 16)?,
                file_size: long(header, 32)?,
                memory_size: long(header, 40)?,
            })
        })
    }
}

fn short(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|part| u16::from_le_bytes(*part))
}

fn long(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|part| u64::from_le_bytes(*part))
}
