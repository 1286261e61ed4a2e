//! Tests which empty table of pages stays linked.

use super::tests::format;
use super::*;
use crate::hw::testing::TestMemory;
use crate::hw::vtd::SecondStage;

type Table = PageTable<SecondStage>;

const BOTH: Access = Access::all();
const TWO_M: u64 = 2 << 20;

/// A page table of four levels with one page mapped at 1 MiB: five frames would be in use with a second table of
/// pages.
fn table(memory: &mut TestMemory) -> Table {
    let mut table = Table::new(memory, format(4, PageSizes::all(), false)).unwrap();
    map(memory, &mut table, 0x10_0000);
    assert_eq!(memory.frames_in_use(), 4);
    table
}

fn page(at: u64) -> IovaRange {
    IovaRange::new(Iova(at), 0x1000).unwrap()
}

fn map(memory: &mut TestMemory, table: &mut Table, at: u64) {
    table.map(memory, page(at), PhysAddr(0x1234_5000), BOTH).unwrap();
}

/// Unmaps a page. Returns whether units invalidate more than leaves, and the range around it.
fn unmap(memory: &mut TestMemory, table: &mut Table, at: u64) -> (bool, u64, u64) {
    let mut detached = Detached::new();
    table.unmap(memory, page(at), &mut detached).unwrap();
    let around = detached.around(page(at));
    let told = (detached.tables_freed(), around.first().0, around.last().0);
    Table::release(memory, &mut detached);
    told
}

#[test]
fn it_is_there_for_the_next_map() {
    let mut memory = TestMemory::new();
    let mut table = table(&mut memory);
    for _ in 0..3 {
        map(&mut memory, &mut table, 5 * TWO_M);
        assert_eq!(memory.frames_in_use(), 5);
        let only_leaves = (false, 5 * TWO_M, 5 * TWO_M + 0xfff);
        assert_eq!(unmap(&mut memory, &mut table, 5 * TWO_M), only_leaves);
        assert_eq!(memory.frames_in_use(), 5);
        assert_eq!(table.lookup(&memory, Iova(5 * TWO_M)), None);
        memory.budget = 0;
    }
    // Mapping all of its 2 MiB needs no frame either; unmapping all of them removes the table.
    let all = IovaRange::new(Iova(5 * TWO_M), TWO_M).unwrap();
    table.map(&mut memory, all, PhysAddr(TWO_M), BOTH).unwrap();
    let mut detached = Detached::new();
    table.unmap(&mut memory, all, &mut detached).unwrap();
    assert!(detached.tables_freed());
    Table::release(&mut memory, &mut detached);
    assert_eq!(memory.frames_in_use(), 4);
}

#[test]
fn the_last_mapping_takes_it_along() {
    let mut memory = TestMemory::new();
    let mut table = table(&mut memory);
    map(&mut memory, &mut table, 5 * TWO_M);
    unmap(&mut memory, &mut table, 5 * TWO_M);
    // Units invalidate the path to it, too.
    assert_eq!(unmap(&mut memory, &mut table, 0x10_0000), (true, 0x10_0000, 6 * TWO_M - 1));
    assert_eq!(memory.frames_in_use(), 1);
    // The same when a whole region is unmapped: none stays alone.
    map(&mut memory, &mut table, 5 * TWO_M);
    let whole = IovaRange::new(Iova(0), TWO_M).unwrap();
    table.map(&mut memory, whole, PhysAddr(0), BOTH).unwrap();
    unmap(&mut memory, &mut table, 5 * TWO_M);
    assert_eq!(memory.frames_in_use(), 4);
    let mut detached = Detached::new();
    table.unmap(&mut memory, whole, &mut detached).unwrap();
    assert_eq!(detached.stale().map(|range| range.last().0), Some(6 * TWO_M - 1));
    Table::release(&mut memory, &mut detached);
    assert_eq!(memory.frames_in_use(), 1);
    map(&mut memory, &mut table, 7 * TWO_M);
    assert!(unmap(&mut memory, &mut table, 7 * TWO_M).0);
    assert_eq!(memory.frames_in_use(), 1);
}

#[test]
fn another_one_takes_its_place_after_a_while() {
    let mut memory = TestMemory::new();
    let mut table = table(&mut memory);
    map(&mut memory, &mut table, 5 * TWO_M);
    unmap(&mut memory, &mut table, 5 * TWO_M);
    for _ in 1..16 {
        map(&mut memory, &mut table, 9 * TWO_M);
        let alone = (true, 9 * TWO_M, 9 * TWO_M + 0xfff);
        assert_eq!(unmap(&mut memory, &mut table, 9 * TWO_M), alone);
        assert_eq!(memory.frames_in_use(), 5);
    }
    map(&mut memory, &mut table, 9 * TWO_M);
    let before = memory.snapshot();
    let mut detached = Detached::new();
    table.unmap(&mut memory, page(9 * TWO_M), &mut detached).unwrap();
    assert!(detached.tables_freed());
    assert_eq!(detached.stale().map(|range| range.first().0), Some(5 * TWO_M));
    // After undoing, the old table is the one that is kept.
    table.relink(&mut memory, &mut detached);
    Table::release(&mut memory, &mut detached);
    assert_eq!(memory.snapshot(), before);
    unmap(&mut memory, &mut table, 9 * TWO_M);
    assert_eq!(unmap(&mut memory, &mut table, 0x10_0000).1, 0x10_0000);
    assert_eq!(memory.frames_in_use(), 1);
}

#[test]
fn none_stays_of_a_map_that_is_undone() {
    let mut memory = TestMemory::new();
    let mut table = table(&mut memory);
    let undo = |memory: &mut TestMemory, table: &mut Table| {
        let before = memory.snapshot();
        map(memory, table, 5 * TWO_M);
        let mut detached = Detached::new();
        table.undo_map(memory, page(5 * TWO_M), &mut detached).unwrap();
        Table::release(memory, &mut detached);
        assert_eq!(memory.snapshot(), before);
    };
    undo(&mut memory, &mut table);
    // A table that was kept before is kept again.
    map(&mut memory, &mut table, 5 * TWO_M);
    unmap(&mut memory, &mut table, 5 * TWO_M);
    undo(&mut memory, &mut table);
    assert_eq!(memory.frames_in_use(), 5);
}

#[test]
fn a_map_of_all_its_pages_fills_it_and_the_next_one_has_a_large_leaf() {
    let mut memory = TestMemory::new();
    let mut table = table(&mut memory);
    map(&mut memory, &mut table, 5 * TWO_M);
    unmap(&mut memory, &mut table, 5 * TWO_M);
    let block = IovaRange::new(Iova(5 * TWO_M), TWO_M).unwrap();
    for frames in [5, 4] {
        table.map(&mut memory, block, PhysAddr(TWO_M), BOTH).unwrap();
        assert_eq!(memory.frames_in_use(), frames);
        for offset in [0, 0x1000, TWO_M - 0x1000] {
            let found = table.lookup(&memory, Iova(5 * TWO_M + offset));
            assert_eq!(found, Some((PhysAddr(TWO_M + offset), BOTH)));
        }
        let mut detached = Detached::new();
        table.unmap(&mut memory, block, &mut detached).unwrap();
        assert_eq!(detached.tables_freed(), frames == 5);
        Table::release(&mut memory, &mut detached);
        assert_eq!(memory.frames_in_use(), 4);
    }
}

/// It is kept beside another used slot only: here a large page, which is unmapped while the table is in use.
#[test]
fn it_goes_when_nothing_is_left_beside_it() {
    let mut memory = TestMemory::new();
    let mut table = Table::new(&mut memory, format(4, PageSizes::all(), false)).unwrap();
    let large = IovaRange::new(Iova(0), TWO_M).unwrap();
    table.map(&mut memory, large, PhysAddr(TWO_M), BOTH).unwrap();
    map(&mut memory, &mut table, 5 * TWO_M);
    let only_leaves = (false, 5 * TWO_M, 5 * TWO_M + 0xfff);
    assert_eq!(unmap(&mut memory, &mut table, 5 * TWO_M), only_leaves);
    map(&mut memory, &mut table, 5 * TWO_M);
    let mut detached = Detached::new();
    table.unmap(&mut memory, large, &mut detached).unwrap();
    assert_eq!((detached.stale(), detached.tables_freed()), (Some(large), false));
    Table::release(&mut memory, &mut detached);
    assert_eq!(memory.frames_in_use(), 4);
    assert_eq!(unmap(&mut memory, &mut table, 5 * TWO_M), (true, 5 * TWO_M, 5 * TWO_M + 0xfff));
    assert_eq!(memory.frames_in_use(), 1);
}

#[test]
fn nothing_above_it_is_read_again() {
    let mut memory = TestMemory::new();
    let mut table = table(&mut memory);
    map(&mut memory, &mut table, 5 * TWO_M);
    unmap(&mut memory, &mut table, 5 * TWO_M);
    for _ in 0..2 {
        memory.loads.set(0);
        map(&mut memory, &mut table, 5 * TWO_M);
        unmap(&mut memory, &mut table, 5 * TWO_M);
        assert_eq!(memory.loads.get(), 2, "the slot, twice");
    }
}
