//! Firmware with an unreadable table: `damage=DMAR` on the command line (or another signature).

use crate::multiboot::Range;

/// Offset of the length of the first structure, in a DMAR and in an IVRS alike. The structure follows the header and
/// 12 more bytes (VT-d 4.1 section 8.1, AMD 48882 3.10 section 5.2.1). Both have its length in bytes 2 and 3.
const FIRST_LENGTH: u64 = 48 + 2;

/// Sets the length of the table's first structure to 0. The checksum stays right, so that a reader finds no earlier
/// error. Returns whether the table exists.
pub(crate) fn apply(hardware: Range, signature: [u8; 4]) -> bool {
    let Some(table) = find(hardware, signature) else { return false };
    let (length, sum) = ((table + FIRST_LENGTH) as *mut u8, (table + 9) as *mut u8);
    // SAFETY: the firmware's tables lie in identity mapped memory that no other code uses yet. A table with this
    // signature is longer than 50 bytes.
    unsafe {
        let removed = length.read().wrapping_add(length.add(1).read());
        length.write(0);
        length.add(1).write(0);
        sum.write(sum.read().wrapping_add(removed));
    }
    true
}

/// Finds the table with this signature, from the RSDT or the XSDT (ACPI 6.5 sections 5.2.5.3, 5.2.7, 5.2.8).
fn find(hardware: Range, signature: [u8; 4]) -> Option<u64> {
    let revision_two = hardware.end - hardware.start > 20;
    let (root, width) = if revision_two {
        (u64::from(word(hardware.start + 24)), 8)
    } else {
        (u64::from(word(hardware.start + 16)), 4)
    };
    let length = u64::from(word(root + 4));
    (36..length.min(1 << 16)).step_by(width).find_map(|offset| {
        // Tables lie below 4 GiB here, and on every machine that could start a kernel in this way.
        let table = u64::from(word(root + offset));
        (word(table).to_le_bytes() == signature).then_some(table)
    })
}

fn word(address: u64) -> u32 {
    // SAFETY: addresses below 4 GiB are identity mapped, and the firmware supplies these addresses.
    unsafe { (address as *const u32).read_unaligned() }
}
