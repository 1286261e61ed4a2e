//! The information from the previous loader (Multiboot 0.6.96 section 3.3).

/// Value of `eax` at the start.
pub(crate) const LOADED: u32 = 0x2bad_b002;

const HAS_COMMAND_LINE: u32 = 1 << 2;
const HAS_MODULES: u32 = 1 << 3;
const HAS_MEMORY: u32 = 1 << 6;

/// Physical memory, end excluded.
#[derive(Clone, Copy)]
pub(crate) struct Range {
    pub(crate) start: u64,
    pub(crate) end: u64,
}

impl Range {
    /// The bytes of the range.
    ///
    /// # Safety
    /// The range is readable memory that is never written.
    pub(crate) unsafe fn bytes(self) -> &'static [u8] {
        // SAFETY: the caller guarantees readable memory without writers; the first 4 GiB are identity mapped.
        unsafe {
            core::slice::from_raw_parts(self.start as *const u8, (self.end - self.start) as usize)
        }
    }
}

/// The Multiboot information structure.
pub(crate) struct Information {
    address: u64,
}

impl Information {
    /// Uses the structure at `address`.
    ///
    /// # Safety
    /// A Multiboot information structure lies at `address` and stays there unchanged.
    pub(crate) const unsafe fn at(address: u32) -> Self {
        Self { address: address as u64 }
    }

    fn word(&self, offset: u64) -> u32 {
        word(self.address + offset)
    }

    /// Returns the module with this number.
    pub(crate) fn module(&self, number: u32) -> Option<Range> {
        if self.word(0) & HAS_MODULES == 0 || number >= self.word(20) {
            return None;
        }
        let entry = u64::from(self.word(24)) + 16 * u64::from(number);
        let (start, end) = (u64::from(word(entry)), u64::from(word(entry + 4)));
        (start <= end).then_some(Range { start, end })
    }

    /// Returns the four bytes after `name` on the command line.
    pub(crate) fn word_after(&self, name: &[u8]) -> Option<[u8; 4]> {
        if self.word(0) & HAS_COMMAND_LINE == 0 {
            return None;
        }
        let start = u64::from(self.word(16));
        // SAFETY: the previous loader put a string there, below 4 GiB and shorter than 1024 bytes. The bytes after it
        // are memory too.
        let line = unsafe { Range { start, end: start + 1024 }.bytes() };
        let line = line.split(|byte| *byte == 0).next()?;
        let at = line.windows(name.len()).position(|part| part == name)?;
        line.get(at + name.len()..)?.first_chunk().copied()
    }

    /// Iterates over the memory map: ranges, and whether they are free. `None` without a memory map.
    pub(crate) fn memory(&self) -> Option<impl Iterator<Item = (Range, bool)>> {
        if self.word(0) & HAS_MEMORY == 0 {
            return None;
        }
        let mut at = u64::from(self.word(48));
        let end = at + u64::from(self.word(44));
        Some(core::iter::from_fn(move || {
            if at + 24 > end {
                return None;
            }
            let start = long(at + 4);
            let range = Range { start, end: start.saturating_add(long(at + 12)) };
            let free = word(at + 20) == 1;
            at += u64::from(word(at)) + 4;
            Some((range, free))
        }))
    }

    /// Returns the first free address from `from` on with `size` bytes after it, below 4 GiB. `from` is a multiple of
    /// a large page. In a later area the address is rounded up to such a multiple.
    pub(crate) fn room(&self, from: u64, size: u64) -> Option<u64> {
        self.memory()?.filter(|(_, free)| *free).find_map(|(range, _)| {
            let start = range.start.next_multiple_of(super::LARGE_PAGE).max(from);
            let end = start.checked_add(size)?;
            (end <= range.end && end <= 1 << 32).then_some(start)
        })
    }
}

fn word(address: u64) -> u32 {
    // SAFETY: called only for parts of the information structure, which lies below 4 GiB.
    unsafe { (address as *const u32).read_unaligned() }
}

fn long(address: u64) -> u64 {
    u64::from(word(address)) | u64::from(word(address + 4)) << 32
}
