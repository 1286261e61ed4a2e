//! What an unmap stores, cleans and keeps, in few words.

use super::tests::{format, range};
use super::*;
use crate::hw::testing::TestMemory;
use crate::hw::vtd::SecondStage;

type Table = PageTable<SecondStage>;

const BOTH: Access = Access::all();

/// The counter of a table that is kept empty.
const KEPT: u16 = 0x8000;

fn table(memory: &mut TestMemory, page_sizes: PageSizes) -> Table {
    Table::new(memory, format(3, page_sizes, false)).unwrap()
}

fn map(memory: &mut TestMemory, table: &mut Table, range: IovaRange) {
    table.map(memory, range, PhysAddr(0x4000_0000), BOTH).unwrap();
}

/// Unmaps a range for good. Returns the number of stores, and whether tables were unlinked.
fn unmap(memory: &mut TestMemory, table: &mut Table, range: IovaRange) -> (usize, bool) {
    let (mut detached, stores) = (Detached::new(), memory.stores);
    table.unmap(memory, range, &mut detached).unwrap();
    let done = (memory.stores - stores, detached.tables_freed());
    Table::release(memory, &mut detached);
    done
}

/// The counters of all tables, in the order in which they were allocated.
fn live(memory: &TestMemory) -> Vec<u16> {
    memory.frames.values().map(|frame| frame.live).collect()
}

#[test]
fn a_table_that_is_covered_goes_with_one_store() {
    let mut memory = TestMemory::new();
    let mut table = table(&mut memory, PageSizes::SIZE_4K);
    map(&mut memory, &mut table, range(0x1000, 0x1000));
    map(&mut memory, &mut table, range(0x20_3000, 0x4000));
    assert_eq!(live(&memory), [1, 2, 1, 4]);
    assert_eq!(unmap(&mut memory, &mut table, range(0x20_0000, 0x20_0000)), (1, true));
    assert_eq!(live(&memory), [1, 1, 1]);
}

#[test]
fn one_page_is_kept_as_one_entry_and_several_as_their_words() {
    let mut memory = TestMemory::new();
    let mut table = table(&mut memory, PageSizes::SIZE_4K);
    map(&mut memory, &mut table, range(0, 0x8000));
    let mut detached = Detached::new();
    table.unmap(&mut memory, range(0x5000, 0x1000), &mut detached).unwrap();
    assert_eq!((detached.words.len(), detached.runs[0].entry), (0, 0x4000_5003));
    table.unmap(&mut memory, range(0x4000, 0x4000), &mut detached).unwrap();
    assert_eq!(detached.words, [0x4000_4003, 0, 0x4000_6003, 0x4000_7003]);
    Table::release(&mut memory, &mut detached);
}

#[test]
fn nothing_is_cleaned_where_nothing_was_mapped() {
    let mut memory = TestMemory::new();
    let mut table = table(&mut memory, PageSizes::SIZE_4K);
    map(&mut memory, &mut table, range(0x1000, 0x1000));
    memory.cleans.clear();
    // One page and several of the same table, of an absent one, and of both.
    for (first, length) in
        [(0x2000, 0x1000), (0x2000, 0x3000), (0x40_0000, 0x3000), (0x1f_e000, 0x4000)]
    {
        assert_eq!(unmap(&mut memory, &mut table, range(first, length)), (0, false));
        assert_eq!(memory.cleans, []);
    }
}

/// One table takes the place of a large leaf, also when both ends of the hole are in it. Its address is an odd
/// multiple of its size.
#[test]
fn a_large_leaf_is_split_once() {
    let mut memory = TestMemory::new();
    let mut table = table(&mut memory, PageSizes::SIZE_2M);
    map(&mut memory, &mut table, range(0x20_0000, 0x60_0000));
    let before = memory.snapshot();
    for (hole, tables) in [
        (range(0x21_0000, 0x1000), 1),
        (range(0x21_0000, 0x3000), 1),
        (range(0x20_0000, 0x1000), 1),
        (range(0x3f_f000, 0x1000), 1),
        (range(0x41_0000, 0x3000), 1),
        (range(0x3f_f000, 0x2000), 2),
        (range(0x3f_f000, 0x20_2000), 2),
        (range(0x20_0000, 0x20_0000), 0),
    ] {
        let mut detached = Detached::new();
        table.unmap(&mut memory, hole, &mut detached).unwrap();
        assert_eq!(memory.frames_in_use(), 2 + tables, "{hole:?}");
        let mapped = [
            (hole.first().0.wrapping_sub(1), hole.first().0 != 0x20_0000),
            (hole.first().0, false),
            (hole.last().0, false),
            (hole.last().0 + 1, true),
        ];
        for (iova, is_mapped) in mapped {
            let phys = PhysAddr(0x3fe0_0000 + iova);
            assert_eq!(table.lookup(&memory, Iova(iova)), is_mapped.then_some((phys, BOTH)));
        }
        table.relink(&mut memory, &mut detached);
        Table::release(&mut memory, &mut detached);
        assert_eq!(memory.snapshot(), before, "{hole:?}");
    }
}

/// What a table that keeps empty tables needs once, it never needs again.
#[test]
fn retained_tables_stay_linked_when_they_are_empty() {
    let mut memory = TestMemory::new();
    let mut table = table(&mut memory, PageSizes::SIZE_4K).retain_tables();
    for first in [0x1000, 0x20_1000] {
        map(&mut memory, &mut table, range(first, 0x2000));
    }
    assert_eq!(live(&memory), [1, 2, 2, 2]);
    // One page stays in each of two tables.
    assert_eq!(unmap(&mut memory, &mut table, range(0x2000, 0x20_0000)), (2, false));
    assert_eq!(live(&memory), [1, 2, 1, 1]);
    assert_eq!(unmap(&mut memory, &mut table, range(0x1000, 0x20_2000)), (2, false));
    assert_eq!(live(&memory), [1, 2, KEPT, KEPT]);
    assert_eq!(table.lookup(&memory, Iova(0x1000)), None);
    memory.budget = 0;
    // The same without memory: one page, and all of 2 MiB.
    map(&mut memory, &mut table, range(0x1000, 0x1000));
    assert_eq!(live(&memory), [1, 2, KEPT | 1, KEPT]);
    assert_eq!(unmap(&mut memory, &mut table, range(0x1000, 0x1000)), (1, false));
    map(&mut memory, &mut table, range(0x20_0000, 0x20_0000));
    assert_eq!(live(&memory), [1, 2, KEPT, KEPT | 512]);
    assert_eq!(unmap(&mut memory, &mut table, range(0x20_0000, 0x20_0000)), (512, false));
    assert_eq!(live(&memory), [1, 2, KEPT, KEPT]);
    // No table stays of a map that is undone.
    memory.budget = 1;
    map(&mut memory, &mut table, range(0x40_1000, 0x1000));
    let mut detached = Detached::new();
    table.undo_map(&mut memory, range(0x40_1000, 0x1000), &mut detached).unwrap();
    assert!(detached.tables_freed());
    Table::release(&mut memory, &mut detached);
    assert_eq!(live(&memory), [1, 2, KEPT, KEPT]);
    table.destroy(&mut memory);
    assert_eq!(memory.frames_in_use(), 0);
}

/// The only page of a table, and of all tables.
#[test]
fn a_retained_table_stays_without_its_only_page() {
    for (retained, expected) in [(true, &[1, 1, KEPT][..]), (false, &[0])] {
        let mut memory = TestMemory::new();
        let mut table = table(&mut memory, PageSizes::SIZE_4K);
        if retained {
            table = table.retain_tables();
        }
        map(&mut memory, &mut table, range(0x1000, 0x1000));
        let done = unmap(&mut memory, &mut table, range(0x1000, 0x1000));
        assert_eq!((done.1, &live(&memory)[..]), (!retained, expected));
    }
}
