//! Literal tables. Entries are those of VT-d 4.1 section 9.8: R 1, W 2, PS 0x80.

use super::format::*;
use super::*;
use crate::hw::hal::MemoryError;
use crate::hw::testing::TestMemory;
use crate::hw::vtd::SecondStage;

type Table = PageTable<SecondStage>;

const BOTH: Access = Access::all();

pub(super) fn range(first: u64, length: u64) -> IovaRange {
    IovaRange::new(Iova(first), length).unwrap()
}

/// A format whose leaves leave snooping to the device.
pub(super) const fn format(levels: u8, page_sizes: PageSizes, coherent: bool) -> TableFormat {
    TableFormat { levels, page_sizes, coherent, forces_snoop: false }
}

fn table(memory: &mut TestMemory, levels: u8) -> Table {
    Table::new(memory, format(levels, PageSizes::all(), false)).unwrap()
}

/// The entry of the path to `iova` at each level, from the top.
fn path(memory: &TestMemory, table: &Table, iova: u64) -> Vec<u64> {
    let (mut frame, mut entries) = (table.root(), Vec::new());
    for level in (1..=table.levels()).rev() {
        let entry = memory.load(frame, (iova >> (12 + 9 * (level - 1)) & 511) as usize);
        entries.push(entry);
        if entry & 3 == 0 || entry & 0x80 != 0 {
            break;
        }
        frame = PhysAddr(entry & !0xfff);
    }
    entries
}

#[test]
fn a_page_is_reached_through_one_table_a_level() {
    for levels in [3, 4, 5] {
        let mut memory = TestMemory::new();
        let mut table = table(&mut memory, levels);
        assert_eq!((table.root(), table.levels()), (PhysAddr(0x7000_0000_0000), levels));
        table.map(&mut memory, range(0x4030_2000, 0x1000), PhysAddr(0x1234_5000), BOTH).unwrap();
        // Frames are handed out in order, the topmost first; 0x40302000 is slot 1, 1, 0x102 from level 3 down.
        let links = (1..levels).map(|n| 0x7000_0000_0003 + 0x1000 * u64::from(n));
        let expected: Vec<u64> = links.chain([0x1234_5003]).collect();
        assert_eq!(path(&memory, &table, 0x4030_2000), expected);
        assert_eq!(
            memory.load(PhysAddr(0x7000_0000_0000 + 0x1000 * u64::from(levels - 1)), 0x102),
            0x1234_5003
        );
        assert_eq!(
            memory.load(PhysAddr(0x7000_0000_0000 + 0x1000 * u64::from(levels - 2)), 1),
            expected[usize::from(levels) - 2]
        );
    }
}

#[test]
fn superpages_need_both_sides_aligned_and_the_size_allowed() {
    let sizes = [
        (PageSizes::all(), 0x8000_0000, 3, 0x8000_0083),
        (PageSizes::SIZE_2M, 0x8000_0000, 2, 0x8000_0083),
        (PageSizes::SIZE_4K, 0x8000_0000, 1, 0x8000_0003),
        (PageSizes::all(), 0x8020_0000, 2, 0x8020_0083),
        (PageSizes::all(), 0x8000_1000, 1, 0x8000_1003),
    ];
    for (page_sizes, phys, level, entry) in sizes {
        let mut memory = TestMemory::new();
        let mut table = Table::new(&mut memory, format(4, page_sizes, true)).unwrap();
        table.map(&mut memory, range(0x4000_0000, 0x4000_0000), PhysAddr(phys), BOTH).unwrap();
        let found = path(&memory, &table, 0x4000_0000);
        assert_eq!((found.len(), found.last()), (5 - level, Some(&entry)), "{page_sizes:?}");
        assert!(memory.cleans.is_empty(), "coherent hardware needs no cleaning");
    }
}

#[test]
fn a_ragged_range_uses_each_size_where_it_fits() {
    let mut memory = TestMemory::new();
    let mut table = table(&mut memory, 3);
    // One 4 KiB page, one 2 MiB page, one 1 GiB page, one 2 MiB page, one 4 KiB page.
    let first = 0x4000_0000 - 0x20_1000;
    table.map(&mut memory, range(first, 0x4040_2000), PhysAddr(first), Access::READ).unwrap();
    let leaf = |iova| *path(&memory, &table, iova).last().unwrap();
    assert_eq!(leaf(0x3fdf_f000), 0x3fdf_f001);
    assert_eq!(leaf(0x3fe0_0000), 0x3fe0_0081);
    assert_eq!(leaf(0x4000_0000), 0x4000_0081);
    assert_eq!(leaf(0x8000_0000), 0x8000_0081);
    assert_eq!(leaf(0x8020_0000), 0x8020_0001);
    assert_eq!(leaf(0x8020_1000), 0);
    // Root, two tables of 2 MiB, two of 4 KiB.
    assert_eq!(memory.frames_in_use(), 5);
    assert_eq!(
        table.lookup(&memory, Iova(0x7fff_ffff)),
        Some((PhysAddr(0x7fff_ffff), Access::READ))
    );
}

#[test]
fn what_cannot_be_mapped_is_refused() {
    let mut memory = TestMemory::new();
    assert_eq!(
        Table::new(&mut memory, format(2, PageSizes::all(), true)).err(),
        Some(MapError::Levels(2))
    );
    assert_eq!(
        Table::new(&mut memory, format(7, PageSizes::all(), true)).err(),
        Some(MapError::Levels(7))
    );
    let mut table = table(&mut memory, 3);
    let before = memory.snapshot();
    let page = PhysAddr(0x1000);
    let mut refused =
        |range, phys, access| table.map(&mut memory, range, phys, access).unwrap_err();
    let odd = range(0x1000, 0xfff);
    assert_eq!(refused(odd, page, BOTH), MapError::Unaligned { range: odd, phys: page });
    let good = range(0x1000, 0x1000);
    let phys = PhysAddr(0x1800);
    assert_eq!(refused(good, phys, BOTH), MapError::Unaligned { range: good, phys });
    let far = range(0x7f_ffff_f000, 0x2000);
    assert_eq!(refused(far, page, BOTH), MapError::OutOfReach { range: far, phys: page });
    let phys = PhysAddr(1 << 52);
    assert_eq!(refused(good, phys, BOTH), MapError::OutOfReach { range: good, phys });
    assert_eq!(refused(good, page, Access::empty()), MapError::NoAccess);
    assert_eq!(memory.snapshot(), before);
    assert_eq!(table.lookup(&memory, Iova(1 << 39)), None);
}

/// Each page of a list has its own memory: the first page may be the last that exists.
#[test]
fn a_list_may_begin_with_the_last_page_of_memory() {
    let mut memory = TestMemory::new();
    let mut table = table(&mut memory, 5);
    let last = PhysAddr((1 << 52) - 0x1000);
    table.map_list(&mut memory, range(0x1000, 0x2000), &[last, PhysAddr(0)], BOTH).unwrap();
    assert_eq!(table.lookup(&memory, Iova(0x1000)), Some((last, BOTH)));
    assert_eq!(table.lookup(&memory, Iova(0x2000)), Some((PhysAddr(0), BOTH)));
    let pages = [last, PhysAddr(1 << 52)];
    let refused = table.map_list(&mut memory, range(0x3000, 0x2000), &pages, BOTH).unwrap_err();
    assert_eq!(refused, MapError::OutOfReach { range: range(0x3000, 0x2000), phys: last });
}

#[test]
fn overlap_changes_nothing_and_frees_what_was_built() {
    let mut memory = TestMemory::new();
    let mut table = table(&mut memory, 4);
    table.map(&mut memory, range(0x4000_0000, 0x20_0000), PhysAddr(0x20_0000), BOTH).unwrap();
    for first in [0x8000_5000, 0x8000_7000] {
        table.map(&mut memory, range(first, 0x1000), PhysAddr(0x5000), BOTH).unwrap();
    }
    let (before, stores) = (memory.snapshot(), memory.stores);
    let tries = [
        (0x4010_0000, 0x1000, 0x4010_0000),
        (0x3fff_f000, 0x2000, 0x4000_0000),
        (0x8000_0000, 0x1_0000, 0x8000_5000),
    ];
    for (first, length, overlap) in tries {
        let result = table.map(&mut memory, range(first, length), PhysAddr(0x1_0000_0000), BOTH);
        assert_eq!(result, Err(MapError::Overlap(Iova(overlap))));
        assert_eq!(memory.snapshot(), before);
    }
    let live_stores = memory.stores - stores;
    assert!(live_stores < 8, "only the table that was built beside: {live_stores} stores");
}

#[test]
fn a_failed_allocation_leaves_every_word_and_links_nothing() {
    for budget in 0..12 {
        let mut memory = TestMemory::new();
        let mut table = table(&mut memory, 4);
        table.map(&mut memory, range(0x7f_c000_0000, 0x1000), PhysAddr(0x5000), BOTH).unwrap();
        let before = memory.snapshot();
        memory.budget = budget;
        // Crosses a 512 GiB boundary: needs tables on both sides.
        let wide = range(0x80_0000_0000 - 0x20_1000, 0x40_2000);
        let result = table.map(&mut memory, wide, PhysAddr(0x1000), BOTH);
        if result.is_ok() {
            assert!(budget > 3, "{budget} tables cannot hold it");
            return;
        }
        assert_eq!(result, Err(MapError::Memory(MemoryError::Exhausted)));
        assert_eq!(memory.snapshot(), before, "budget {budget}");
    }
    panic!("never succeeded");
}

#[test]
fn a_subtree_is_cleaned_before_it_is_linked_and_each_run_once() {
    let mut memory = TestMemory::new();
    let mut table = table(&mut memory, 4);
    table.map(&mut memory, range(0x1000, 0x1f_f000), PhysAddr(0x4000_1000), BOTH).unwrap();
    assert_eq!((memory.dirty_links, memory.dirty.len()), (0, 0));
    let frame = |n: u64| PhysAddr(0x7000_0000_0000 + 0x1000 * n);
    // Leaves first, then the links upwards; frame 0 is the root, allocated first.
    assert_eq!(
        memory.cleans,
        [(frame(3), 0, 512), (frame(2), 0, 512), (frame(1), 0, 512), (frame(0), 0, 1)]
    );
    memory.cleans.clear();
    let mut detached = Detached::new();
    table.unmap(&mut memory, range(0x1000, 0x10_0000), &mut detached).unwrap();
    assert_eq!(memory.cleans, [(frame(3), 1, 256)]);
    assert!(!detached.tables_freed());
    assert_eq!(detached.around(range(0, 0x1000)), range(0, 0x10_1000));
    Table::release(&mut memory, &mut detached);
    table.map(&mut memory, range(0x1000, 0x10_0000), PhysAddr(0x1000), BOTH).unwrap();
    assert_eq!(memory.cleans[1..], [(frame(3), 1, 256)]);
}

#[test]
fn a_covered_subtree_goes_with_one_store() {
    let mut memory = TestMemory::new();
    let mut table = Table::new(&mut memory, format(4, PageSizes::SIZE_4K, true)).unwrap();
    table.map(&mut memory, range(0, 0x1000), PhysAddr(0x1000), BOTH).unwrap();
    let few = memory.frames_in_use();
    table.map(&mut memory, range(0x4000_0000, 0x4000_0000), PhysAddr(0), BOTH).unwrap();
    assert_eq!(memory.frames_in_use(), few + 513);
    let stores = memory.stores;
    let mut detached = Detached::new();
    table.unmap(&mut memory, range(0x4000_0000, 0x4000_0000), &mut detached).unwrap();
    assert_eq!(memory.stores - stores, 1);
    assert!(detached.tables_freed());
    assert_eq!(memory.frames_in_use(), few + 513, "nothing is freed before the invalidation");
    Table::release(&mut memory, &mut detached);
    assert_eq!(memory.frames_in_use(), few);
    assert!(detached.is_empty());
    table.destroy(&mut memory);
    assert_eq!(memory.frames_in_use(), 0);
}

#[test]
fn a_superpage_is_split_around_a_hole() {
    let mut memory = TestMemory::new();
    let mut table = table(&mut memory, 3);
    table.map(&mut memory, range(0, 0x8000_0000), PhysAddr(0x8000_0000), BOTH).unwrap();
    let before = memory.snapshot();
    let mut detached = Detached::new();
    let hole = range(0x3fff_f000, 0x2000);
    for budget in 0..4 {
        memory.budget = budget;
        let result = table.unmap(&mut memory, hole, &mut detached);
        assert_eq!(result, Err(MapError::Memory(MemoryError::Exhausted)));
        assert_eq!(memory.snapshot(), before);
        assert!(detached.is_empty());
    }
    memory.budget = 4;
    let stores = memory.stores;
    table.unmap(&mut memory, hole, &mut detached).unwrap();
    let live: Vec<_> =
        [0x3fff_e000, 0x3fff_f000, 0x4000_0000, 0x4000_1000, 0x4020_0000, 0x7fff_f000]
            .iter()
            .map(|iova| *path(&memory, &table, *iova).last().unwrap())
            .collect();
    assert_eq!(live, [0xbfff_e003, 0, 0, 0xc000_1003, 0xc020_0083, 0xffe0_0083]);
    // Two tables of 512 and two of 511 slots in use, two superpages replaced.
    assert_eq!(memory.stores - stores, 2 * 512 + 2 * 511 + 2);
    assert!(detached.tables_freed());
    assert_eq!(detached.around(hole), range(0, 0x8000_0000), "both superpages may be cached");
    table.relink(&mut memory, &mut detached);
    assert!(!detached.is_empty(), "a unit may have walked through the split tables");
    Table::release(&mut memory, &mut detached);
    assert_eq!(memory.snapshot(), before);
}

#[test]
fn relink_undoes_calls_last_first() {
    let mut memory = TestMemory::new();
    let mut table = table(&mut memory, 4);
    // Scattered memory, so that runs break, and a neighbour in another table.
    for (n, phys) in [(0, 0x9000), (1, 0xa000), (2, 0x4000), (3, 0xb000), (600, 0x1_0000)] {
        table.map(&mut memory, range(n * 0x1000, 0x1000), PhysAddr(phys), BOTH).unwrap();
    }
    let first = memory.snapshot();
    let mut detached = Detached::new();
    table.unmap(&mut memory, range(0x1000, 0x2000), &mut detached).unwrap();
    let second = memory.snapshot();
    table.unmap(&mut memory, range(0x10_0000, 0x3000), &mut detached).unwrap();
    assert_eq!(memory.snapshot(), second, "nothing is mapped there");
    table.unmap(&mut memory, range(0, 0x40_0000), &mut detached).unwrap();
    assert_eq!(table.lookup(&memory, Iova(0)), None);
    for expected in [&second, &second, &first] {
        table.relink(&mut memory, &mut detached);
        assert_eq!(&memory.snapshot(), expected);
    }
    assert!(detached.is_empty() && detached.words.is_empty());
    // The content of the pages is kept until the release, even when no table is removed.
    let mut detached = Detached::new();
    table.unmap(&mut memory, range(0x1000, 0x2000), &mut detached).unwrap();
    assert_eq!(detached.words, [0xa003, 0x4003]);
    Table::release(&mut memory, &mut detached);
    assert!(detached.is_empty() && detached.words.is_empty());
}

#[test]
fn a_root_put_above_points_to_the_old_one() {
    let mut memory = TestMemory::new();
    let mut table = table(&mut memory, 3);
    table.map(&mut memory, range(0x4030_2000, 0x1000), PhysAddr(0x1234_5000), BOTH).unwrap();
    let (before, old) = (memory.snapshot(), table.root());
    assert_eq!(old, PhysAddr(0x7000_0000_0000));
    memory.cleans.clear();
    table.grow(&mut memory, 5).unwrap();
    // Root, two tables and now two roots: frames 3 and 4, each with the one below in entry 0, cleaned.
    assert_eq!((table.root(), table.levels()), (PhysAddr(0x7000_0000_4000), 5));
    assert_eq!(memory.load(PhysAddr(0x7000_0000_3000), 0), 0x7000_0000_0003);
    assert_eq!(memory.load(PhysAddr(0x7000_0000_4000), 0), 0x7000_0000_3003);
    assert_eq!(memory.cleans.len(), 2);
    let found: Vec<_> = [3, 4, 5, 6].map(|levels| table.root_at(&memory, levels)).into();
    assert_eq!(found, [Some(old), Some(PhysAddr(0x7000_0000_3000)), Some(table.root()), None]);
    assert_eq!(table.lookup(&memory, Iova(0x4030_2000)), Some((PhysAddr(0x1234_5000), BOTH)));
    // The same number of levels changes nothing. More than the maximum are refused.
    table.grow(&mut memory, 4).unwrap();
    assert_eq!(table.grow(&mut memory, 7), Err(MapError::Levels(7)));
    table.map(&mut memory, range(1 << 39, 0x1000), PhysAddr(0x1000), BOTH).unwrap();
    let mut detached = Detached::new();
    table.unmap(&mut memory, range(1 << 39, 0x1000), &mut detached).unwrap();
    Table::release(&mut memory, &mut detached);
    table.shrink(&mut memory, 3);
    assert_eq!((table.root(), table.levels()), (old, 3));
    assert_eq!(memory.snapshot(), before);
    table.destroy(&mut memory);
    assert_eq!(memory.frames_in_use(), 0);
}

/// Entries of units may point to a root below a newer one: it stays, empty or not.
#[test]
fn a_root_is_never_unlinked() {
    let mut memory = TestMemory::new();
    let mut table = table(&mut memory, 3);
    let old = table.root();
    table.grow(&mut memory, 4).unwrap();
    let all = range(0, 1 << 39);
    for part in [range(0x1000, 0x1000), range(0, 0x4000_0000), all] {
        table.map(&mut memory, part, PhysAddr(0), BOTH).unwrap();
        let mut detached = Detached::new();
        table.unmap(&mut memory, part, &mut detached).unwrap();
        Table::release(&mut memory, &mut detached);
        assert_eq!(table.root_at(&memory, 3), Some(old), "{part:?}");
        assert_eq!(memory.frames_in_use(), 2);
    }
    // A root with a translation of its own stays too.
    table.map(&mut memory, range(1 << 39, 0x1000), PhysAddr(0), BOTH).unwrap();
    table.shrink(&mut memory, 3);
    assert_eq!(table.levels(), 4);
    table.destroy(&mut memory);
    assert_eq!(memory.frames_in_use(), 0);
}
