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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::PhysAddr;
    use alloc::vec::Vec;

    /// The excluded addresses, and those of them at which registers may be, for memory by its first and last byte.
    fn excluded(ram: &[(u64, u64)]) -> [Vec<(u64, u64)>; 2] {
        let range = |(first, last)| PhysRange::inclusive(PhysAddr(first), PhysAddr(last)).unwrap();
        let ram: Vec<_> = ram.iter().copied().map(range).collect();
        let excluded = addresses(&ram);
        [excluded.iter().collect(), windows(&excluded).iter().collect()]
    }

    const ZERO: (u64, u64) = (0, 0xfff);
    const INTERRUPTS: (u64, u64) = (0xfee0_0000, 0xfeef_ffff);

    #[test]
    fn without_memory_below_4_gib_two_ranges_are_excluded() {
        for ram in [&[][..], &[(0x1_0000_0000, 0x2_ffff_ffff)]] {
            assert_eq!(excluded(ram), [vec![ZERO, INTERRUPTS], vec![]]);
        }
    }

    #[test]
    fn below_4_gib_all_but_memory_is_excluded() {
        let ram = [(0, 0x7fff_ffff), (0x1_0000_0000, 0x2_7fff_ffff)];
        let registers = vec![(0x8000_0000, 0xfedf_ffff), (0xfef0_0000, 0xffff_ffff)];
        assert_eq!(excluded(&ram), [vec![ZERO, (0x8000_0000, 0xffff_ffff)], registers]);
        // Memory that goes on beyond 4 GiB.
        let ram = [(0xc000_0000, 0x1_3fff_ffff)];
        let low = (0, 0xbfff_ffff);
        assert_eq!(excluded(&ram), [vec![low, INTERRUPTS], vec![(0x1000, 0xbfff_ffff)]]);
        assert_eq!(excluded(&[(0, u64::MAX)]), [vec![ZERO, INTERRUPTS], vec![]]);
    }

    /// A page is memory if all of it is.
    #[test]
    fn only_whole_pages_of_memory_are_free() {
        let of = |first, last| {
            let [excluded, _] = excluded(&[(first, last)]);
            excluded
        };
        assert_eq!(of(0x1800, 0x47ff), [(0, 0x1fff), (0x4000, 0xffff_ffff)]);
        assert_eq!(of(0x2000, 0x3fff), [(0, 0x1fff), (0x4000, 0xffff_ffff)]);
        assert_eq!(of(0x2000, 0x3ffe), [(0, 0x1fff), (0x3000, 0xffff_ffff)]);
        assert_eq!(of(0x1800, 0x27ff), [(0, 0xffff_ffff)], "the ends of two pages");
        assert_eq!(of(0x1800, 0x18ff), [(0, 0xffff_ffff)], "the middle of one");
    }
}
