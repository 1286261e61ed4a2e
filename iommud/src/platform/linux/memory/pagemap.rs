//! Physical addresses of this process's pages.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::addr::{PAGE_SIZE, PhysAddr};
use crate::platform::frame_allocator::HUGE_PAGE;
use crate::platform::mapping::Mapping;

/// Small pages of a huge page.
const ENTRIES: usize = 512;

/// Why the physical address of a huge page is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PagemapError {
    /// The file cannot be read.
    Unreadable(io::ErrorKind),
    /// Small page `index` is not in memory.
    Absent {
        /// Which of the 512.
        index: usize,
    },
    /// Page frame numbers are hidden from this process (it lacks CAP_SYS_ADMIN).
    Hidden,
    /// The 512 small pages do not follow each other from a multiple of 2 MiB on.
    Scattered {
        /// The first one that is out of place.
        index: usize,
        /// Its entry.
        entry: u64,
    },
}

impl std::fmt::Display for PagemapError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unreadable(error) => write!(f, "/proc/self/pagemap: {error}"),
            Self::Absent { index } => write!(f, "page {index} of a huge page is not in memory"),
            Self::Hidden => f.write_str("/proc/self/pagemap hides page frames: not privileged"),
            Self::Scattered { index, entry } => {
                write!(f, "page {index} of a huge page is out of place (entry {entry:#x})")
            }
        }
    }
}

/// The physical address of the huge page that `mapping` consists of.
///
/// # Errors
/// The page is not in memory as one piece, or its address is hidden.
pub(super) fn physical_address(mapping: &Mapping) -> Result<PhysAddr, PagemapError> {
    let mut bytes = [0; ENTRIES * 8];
    File::open("/proc/self/pagemap")
        .and_then(|file| file.read_exact_at(&mut bytes, mapping.address() / PAGE_SIZE * 8))
        .map_err(|error| PagemapError::Unreadable(error.kind()))?;
    let (entries, _) = bytes.as_chunks();
    first_address(entries.iter().copied().map(u64::from_le_bytes))
}

/// Checks the entries of one huge page: bit 63 says present, bits 54:0 are the page frame number, 0 when
/// hidden (Linux Documentation/admin-guide/mm/pagemap.rst).
fn first_address(entries: impl Iterator<Item = u64>) -> Result<PhysAddr, PagemapError> {
    let mut first = 0;
    for (index, entry) in entries.enumerate() {
        let frame = entry & ((1 << 55) - 1);
        if entry >> 63 == 0 {
            return Err(PagemapError::Absent { index });
        }
        if frame == 0 {
            return Err(PagemapError::Hidden);
        }
        let address =
            frame.checked_mul(PAGE_SIZE).ok_or(PagemapError::Scattered { index, entry })?;
        if index == 0 {
            first = address;
        }
        if first & (HUGE_PAGE - 1) != 0 || address != first + index as u64 * PAGE_SIZE {
            return Err(PagemapError::Scattered { index, entry });
        }
    }
    Ok(PhysAddr(first))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An entry as the kernel gives it for a mapped file page: present, file-mapped (bit 61).
    fn entry(frame: u64) -> u64 {
        0xa000_0000_0000_0000 | frame
    }

    #[test]
    fn a_whole_huge_page_has_the_address_of_its_first_frame() {
        assert_eq!(
            first_address((0..512).map(|n| entry(0x12_3400 + n))),
            Ok(PhysAddr(0x1_2340_0000))
        );
    }

    #[test]
    fn anything_else_is_an_error() {
        let with = |index: u64, value: u64| {
            first_address((0..512).map(|n| if n == index { value } else { entry(0x12_3400 + n) }))
        };
        assert_eq!(with(7, 0), Err(PagemapError::Absent { index: 7 }));
        assert_eq!(with(0, 0x2000_0000_0012_3400), Err(PagemapError::Absent { index: 0 }));
        assert_eq!(with(0, entry(0)), Err(PagemapError::Hidden));
        let odd = entry(0x12_3500);
        assert_eq!(with(9, odd), Err(PagemapError::Scattered { index: 9, entry: odd }));
        assert_eq!(
            first_address((0..512).map(|n| entry(0x12_3401 + n))),
            Err(PagemapError::Scattered { index: 0, entry: entry(0x12_3401) })
        );
        let high = entry((1 << 55) - 512);
        assert_eq!(with(0, high), Err(PagemapError::Scattered { index: 0, entry: high }));
    }
}
