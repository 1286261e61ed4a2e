//! What a map stores, counts and cleans, in few words.

use super::format::MapError;
use super::tests::{format, range};
use super::*;
use crate::hw::hal::MemoryError;
use crate::hw::testing::TestMemory;
use crate::hw::vtd::SecondStage;

type Table = PageTable<SecondStage>;

const BOTH: Access = Access::all();

/// The frame that was handed out after `before` others.
fn frame(before: u64) -> PhysAddr {
    PhysAddr(0x7000_0000_0000 + 0x1000 * before)
}

fn table(memory: &mut TestMemory, page_sizes: PageSizes) -> Table {
    Table::new(memory, format(3, page_sizes, false)).unwrap()
}

/// 2 MiB of memory that is a multiple of 4 KiB only.
#[test]
fn a_large_leaf_needs_aligned_memory() {
    let mut memory = TestMemory::new();
    let mut table = table(&mut memory, PageSizes::SIZE_2M);
    let large = range(0x20_0000, 0x20_0000);
    table.map(&mut memory, large, PhysAddr(0x40_1000), BOTH).unwrap();
    assert_eq!(memory.load(frame(1), 1), 0x7000_0000_2003);
    assert_eq!([0, 511].map(|slot| memory.load(frame(2), slot)), [0x40_1003, 0x60_0003]);
    table.map(&mut memory, range(0x40_0000, 0x20_0000), PhysAddr(0x80_0000), BOTH).unwrap();
    assert_eq!(memory.load(frame(1), 2), 0x80_0083);
}

#[test]
fn leaves_that_follow_each_other_are_cleaned_together() {
    let mut memory = TestMemory::new();
    let mut table = table(&mut memory, PageSizes::SIZE_2M);
    table.map(&mut memory, range(0x1000, 0x1000), PhysAddr(0x9000), BOTH).unwrap();
    memory.cleans.clear();
    table.map(&mut memory, range(0x60_0000, 0x60_0000), PhysAddr(0x4000_0000), BOTH).unwrap();
    let found = [2, 3, 4, 5, 6].map(|slot| memory.load(frame(1), slot));
    assert_eq!(found, [0, 0x4000_0083, 0x4020_0083, 0x4040_0083, 0]);
    assert_eq!((&memory.cleans[..], memory.frames_in_use()), (&[(frame(1), 3, 3)][..], 3));
    assert_eq!(*memory.live(frame(1)), 4);
}

#[test]
fn the_counter_of_a_new_table_is_its_slots_in_use() {
    let mut memory = TestMemory::new();
    let mut table = table(&mut memory, PageSizes::SIZE_4K);
    table.map(&mut memory, range(0x3f_d000, 0x5000), PhysAddr(0x9000), BOTH).unwrap();
    let live: Vec<u16> = memory.frames.values().map(|frame| frame.live).collect();
    // The root, two links, slots 509 to 511 and slots 0 and 1.
    assert_eq!(live, [1, 2, 3, 2]);
    let mut detached = Detached::new();
    table.unmap(&mut memory, range(0x3f_d000, 0x5000), &mut detached).unwrap();
    Table::release(&mut memory, &mut detached);
    assert_eq!(memory.frames_in_use(), 1);
}

/// The second table is missing. What was built so far is given back, as zeros if nothing was stored.
#[test]
fn a_map_that_runs_out_of_memory_gives_back_what_it_took() {
    let mut memory = TestMemory::new();
    let mut table = table(&mut memory, PageSizes::SIZE_4K);
    let before = memory.snapshot();
    for (first, length, budget, zeros) in [
        (0x60_1000, 0x1000, 1, 1),
        (0x7f_f000, 0x2000, 1, 1),
        (0x7f_f000, 0x2000, 2, 0),
        (0x60_1000, 0x1000, 0, 0),
    ] {
        (memory.budget, memory.zero_frees) = (budget, 0);
        let result = table.map(&mut memory, range(first, length), PhysAddr(0x9000), BOTH);
        assert_eq!(result, Err(MapError::Memory(MemoryError::Exhausted)));
        assert_eq!(memory.zero_frees, zeros, "{first:#x}, {budget} frames");
        assert!(memory.snapshot() == before);
    }
}

#[test]
fn an_overlap_names_the_first_page_that_is_mapped() {
    let mut memory = TestMemory::new();
    let mut table = table(&mut memory, PageSizes::SIZE_4K);
    for page in [0x20_9000, 0x20_c000] {
        table.map(&mut memory, range(page, 0x1000), PhysAddr(0x9000), BOTH).unwrap();
    }
    for (first, length, taken) in [
        (0x20_5000, 0x8000, 0x20_9000),
        (0x20_9000, 0x1000, 0x20_9000),
        (0x20_a000, 0x3000, 0x20_c000),
        (0x1f_f000, 0x1_0000, 0x20_9000),
    ] {
        let pages = vec![PhysAddr(0x5000); usize::try_from(length / 0x1000).unwrap()];
        let overlap = Err(MapError::Overlap(Iova(taken)));
        assert_eq!(table.map_list(&mut memory, range(first, length), &pages, BOTH), overlap);
        assert_eq!(table.map(&mut memory, range(first, length), pages[0], BOTH), overlap);
    }
    assert_eq!(memory.frames_in_use(), 3);
}

/// Both ends of the range and the memory: two that are wrong by the same number of bytes are wrong too.
#[test]
fn part_of_a_page_is_refused() {
    let mut memory = TestMemory::new();
    let mut table = table(&mut memory, PageSizes::SIZE_4K);
    for (first, length, phys) in [
        (0x1000, 0x1000, 0x9800),
        (0x1000, 0x1800, 0x9000),
        (0x1800, 0x0800, 0x9000),
        (0x1800, 0x1000, 0x9000),
        (0x1000, 0x1800, 0x9800),
        (0x1800, 0x0800, 0x9800),
        (0x1800, 0x1000, 0x9800),
    ] {
        let (range, phys) = (range(first, length), PhysAddr(phys));
        let refused = Err(MapError::Unaligned { range, phys });
        assert_eq!(table.map(&mut memory, range, phys, BOTH), refused);
        let mut detached = Detached::new();
        let refused = Err(MapError::Unaligned { range, phys: PhysAddr(0) });
        let ends = (first | length) & 0xfff != 0;
        assert_eq!(table.unmap(&mut memory, range, &mut detached) == refused, ends, "{range:?}");
    }
}
