//! I/O virtual addresses that no client is ever given.
//!
//! Below 4 GiB an address that is not memory may be a register of some device. A request to it between two
//! functions behind one bridge or switch that does not redirect such requests (ACS) never meets a unit, and
//! a device takes its own for itself. So below 4 GiB only addresses are handed out that are memory, as
//! physical ones: no register has them.

use crate::addr::{INTERRUPT_WINDOW, PAGE_SIZE, PhysRange};
use crate::policy::collections::ranges::Ranges;

/// Registers below this have addresses that firmware keeps free of memory.
const FOUR_GIB: u64 = 1 << 32;

/// What is excluded on a machine with this memory. One whose memory below 4 GiB is not known has no more than
/// the first page and the interrupt window.
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

/// Where registers may be, of what is excluded.
pub(in crate::policy) fn windows(excluded: &Ranges) -> Ranges {
    let mut windows = excluded.clone();
    windows.remove(0, PAGE_SIZE - 1);
    windows.remove(INTERRUPT_WINDOW.first().0, INTERRUPT_WINDOW.last().0);
    windows
}
