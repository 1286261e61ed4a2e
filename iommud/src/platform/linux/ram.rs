//! The memory of the machine, as the kernel lists it in `/proc/iomem`.

use std::fs;
use std::io;

use crate::addr::{PhysAddr, PhysRange};

/// Why the memory map cannot be read.
#[derive(Debug)]
pub(super) enum RamError {
    /// The list cannot be read.
    Unreadable(io::Error),
    /// The kernel hides addresses from this process (it lacks CAP_SYS_ADMIN), or the list contains no memory.
    Hidden,
}

impl std::fmt::Display for RamError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unreadable(error) => write!(f, "/proc/iomem: {error}"),
            Self::Hidden => f.write_str("/proc/iomem shows no memory: not privileged"),
        }
    }
}

/// The ranges of `System RAM` in `/proc/iomem`, in the list's order.
///
/// # Errors
/// The list cannot be read, or shows no addresses.
pub(super) fn system_ram() -> Result<Vec<PhysRange>, RamError> {
    let text = fs::read_to_string("/proc/iomem").map_err(RamError::Unreadable)?;
    let ranges: Vec<PhysRange> = text.lines().filter_map(parse_line).collect();
    // The kernel shows hidden addresses as 0-0.
    if ranges.iter().all(|range| range.last().0 == 0) { Err(RamError::Hidden) } else { Ok(ranges) }
}

/// Parses `FIRST-LAST : System RAM` in hexadecimal, without indentation. An indented line describes a part of another
/// line's range.
fn parse_line(line: &str) -> Option<PhysRange> {
    let (range, name) = line.split_once(" : ")?;
    let (first, last) = range.split_once('-')?;
    if name != "System RAM" {
        return None;
    }
    let number = |text| u64::from_str_radix(text, 16).ok().map(PhysAddr);
    PhysRange::inclusive(number(first)?, number(last)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_top_level_memory_counts() {
        let text = "00000000-00000fff : Reserved\n\
                    00001000-0009fbff : System RAM\n\
                    000a0000-000bffff : PCI Bus 0000:00\n\
                    00100000-7ffdbfff : System RAM\n\
                    \u{20} 2e000000-2f0025f7 : Kernel code\n\
                    \u{20} 30000000-30001000 : System RAM\n\
                    fed90000-fed90fff : dmar0\n\
                    100000000-17fffffff : System RAM\n\
                    junk\n\
                    zz-1 : System RAM\n\
                    9-1 : System RAM\n";
        let found: Vec<_> = text.lines().filter_map(parse_line).collect();
        let range = |first, last| PhysRange::inclusive(PhysAddr(first), PhysAddr(last)).unwrap();
        assert_eq!(
            found,
            [
                range(0x1000, 0x9_fbff),
                range(0x10_0000, 0x7ffd_bfff),
                range(0x1_0000_0000, 0x1_7fff_ffff)
            ]
        );
    }
}
