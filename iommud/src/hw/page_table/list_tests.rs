//! Lists of pages that cannot be mapped, and the counters of the tables that are built for one.

use super::format::MapError;
use super::tests::{format, range};
use super::*;
use crate::hw::testing::TestMemory;
use crate::hw::vtd::SecondStage;

type Table = PageTable<SecondStage>;

const BOTH: Access = Access::all();

#[test]
fn each_page_of_a_list_must_be_a_page() {
    let mut memory = TestMemory::new();
    let mut table = Table::new(&mut memory, format(3, PageSizes::SIZE_4K, true)).unwrap();
    let before = memory.snapshot();
    let two = range(0x1000, 0x2000);
    let (good, odd, far) = (PhysAddr(0x5000), PhysAddr(0x6800), PhysAddr(1 << 52));
    let unaligned = |phys| MapError::Unaligned { range: two, phys };
    let out_of_reach = |phys| MapError::OutOfReach { range: two, phys };
    for (pages, error) in [
        (&[good][..], unaligned(good)),
        (&[good, good, good], unaligned(good)),
        (&[good, odd], unaligned(good)),
        (&[odd, good], unaligned(odd)),
        // Their low or high bits are the same.
        (&[odd, odd], unaligned(odd)),
        (&[far, far], out_of_reach(far)),
        (&[good, far], out_of_reach(good)),
    ] {
        let result = table.map_list(&mut memory, two, pages, BOTH);
        assert_eq!(result, Err(error), "{pages:?}");
    }
    let denied = table.map_list(&mut memory, two, &[good, good], Access::empty());
    assert_eq!(denied, Err(MapError::NoAccess));
    assert_eq!(memory.snapshot(), before);
}

#[test]
fn the_counter_of_each_new_table_is_its_slots_in_use() {
    let mut memory = TestMemory::new();
    let mut table = Table::new(&mut memory, format(4, PageSizes::SIZE_4K, true)).unwrap();
    // The last page of 2 MiB and the first of the next one, in any memory.
    let pages = range(0x3f_f000, 0x2000);
    table.map_list(&mut memory, pages, &[PhysAddr(0x9000), PhysAddr(0x2000)], BOTH).unwrap();
    let live: Vec<u16> = memory.frames.values().map(|frame| frame.live).collect();
    // The root, the table below, the one with both links, and two of pages.
    assert_eq!(live, [1, 1, 2, 1, 1]);
    // A page of another GiB: the table of its links is new, and what leads there is not.
    table.map_list(&mut memory, range(0x8000_0000, 0x1000), &[PhysAddr(0x3000)], BOTH).unwrap();
    let live: Vec<u16> = memory.frames.values().map(|frame| frame.live).collect();
    assert_eq!(live, [1, 2, 2, 1, 1, 1, 1]);
    table.destroy(&mut memory);
    assert_eq!(memory.frames_in_use(), 0);
}
