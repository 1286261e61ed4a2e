//! The RSDP in the BIOS area (ACPI 6.5 section 5.2.5.1).

use crate::multiboot::Range;

const AREA: core::ops::Range<u64> = 0xe_0000..0x10_0000;

/// Where the RSDP is.
pub(crate) fn find() -> Option<Range> {
    AREA.step_by(16).find_map(|start| {
        // SAFETY: the area is identity mapped and below 1 MiB there is always something to read.
        let bytes = unsafe { &*(start as *const [u8; 36]) };
        let (version_one, _) = bytes.split_at(20);
        let sum = version_one.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
        if !bytes.starts_with(b"RSD PTR ") || sum != 0 {
            return None;
        }
        // Revision 2 has 36 bytes.
        let length = if bytes.get(15).is_some_and(|revision| *revision >= 2) { 36 } else { 20 };
        Some(Range { start, end: start + length })
    })
}
