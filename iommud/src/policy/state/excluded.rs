//! I/O virtual addresses that no client is ever given.
//!
//! Below 4 GiB an address that is not memory may be a register of some device. A request between two functions behind
//! one bridge or switch never reaches a unit, unless that redirects such requests (ACS). A device handles requests to
//! its own registers itself. So below 4 GiB only addresses are handed out at which there is physical memory: no
//! register has them.

use crate::addr::{INTERRUPT_WINDOW, PAGE_SIZE, PhysRange};
use crate::policy::collections::ranges::Ranges;

/// Below this, firmware keeps the addresses of registers free of memory.
const FOUR_GIB: u64 = 1 << 32;

/// The excluded addresses of a machine with this memory. When no memory below 4 GiB is known, these are only the
/// first page and the interrupt window.
pub(in crate::policy) fn addresses(ram: &[PhysRange]) -> Ranges {
    let mut excluded = Ranges::default();
    let low = |range: &&PhysRange| range.first().0 < FOUR_GIB;
    if ram.iter().any(|range| low(&range)) {
        excluded.insert(0, FOUR_GIB - 1);
    }
    for range in ram.iter().filter(low) {
        // Whole pages of memory.
        let first = range.first().0.next_multiple_of(PAGE_SIZE);
        let end = range.last().0.saturating_add(1).min(FOUR_GIB) / PAGE_SIZE * PAGE_SIZE;
        if first < end {
            excluded.remove(first, end - 1);
        }
    }
    excluded.insert(0, PAGE_SIZE - 1);
    excluded.insert(INTERRUPT_WINDOW.first().0, INTERRUPT_WINDOW.last().0);
    excluded
}

/// The excluded addresses at which registers may be.
pub(in crate::policy) fn windows(excluded: &Ranges) -> Ranges {
    let mut windows = excluded.clone();
    windows.remove(0, PAGE_SIZE - 1);
    windows.remove(INTERRUPT_WINDOW.first().0, INTERRUPT_WINDOW.last().0);
    windows
}
