//! Small spaces, with the addresses and nodes that they must have, reckoned by hand.

use super::*;

const P: u64 = 4096;

fn high(length: u64) -> Wanted {
    Wanted { above_4g: true, ..wanted(length) }
}

/// The largest order under which the node of a page is listed.
fn bound(space: &Space, level: usize, page: Page) -> Option<u32> {
    space.node(space.find(level, page).unwrap()).unwrap().links.bound
}

#[test]
fn only_whole_pages_of_the_space_are_taken_or_freed() {
    let mut space = Space::new();
    assert_eq!((space.allocate(wanted(0)), space.allocate(wanted(100))), (None, None));
    // Counted modulo the space, the second range would be the GiB at 4 GiB.
    let end = 1 << 39;
    let outside = [range(end, P), range(end + 4 * GIB, GIB), range(end - P, 2 * P), range(0, 100)];
    for at in outside {
        assert!(!space.allocate_at(at), "{at:?}");
    }
    let taken = range(4 * GIB, GIB);
    assert!(space.allocate_at(taken));
    space.free(range(end + 4 * GIB, GIB));
    assert!(!space.allocate_at(taken));
    space.free(taken);
    assert_eq!(space.free_ranges(), [range(0, end)]);
}

#[test]
fn the_free_ranges_are_what_is_shown_and_compared() {
    let mut space = Space::new();
    assert!(space.allocate_at(range(MIB, MIB)));
    assert!(space.allocate_at(range(300 * GIB, 2 * P)));
    let free = [
        range(0, MIB),
        range(2 * MIB, 300 * GIB - 2 * MIB),
        range(300 * GIB + 2 * P, 212 * GIB - 2 * P),
    ];
    assert_eq!(space.free_ranges(), free);
    assert_ne!(space, Space::new());
    assert_eq!(format!("{space:?}"), format!("{free:?}"));
}

#[test]
fn a_range_inside_one_node_is_found_there() {
    let mut space = Space::new();
    assert_eq!(space.node_of(0, 1), None, "there is no node of pages");
    assert!(space.allocate_at(range(0, 9 * P)));
    for (first, count, slot) in [
        (0, 1, Some(0)),
        (0, 512, Some(0)),
        (1, 511, Some(1)),
        (511, 1, Some(511)),
        (1, 512, None),
        (511, 2, None),
        (0, 513, None),
        (512, 1, None),
    ] {
        // Five nodes were there before it.
        let expected = slot.map(|slot| (5, slot));
        assert_eq!(space.node_of(first, count), expected, "{first} {count}");
    }
    space.free(range(0, 9 * P));
    assert_eq!(space.node_of(0, 1), None, "it is kept empty");
    assert!(space.allocate_at(range(0, P)));
    let across = range(2 * MIB - 9 * P, 18 * P);
    assert!(space.allocate_at(across));
    space.free(across);
    space.free(range(0, P));
    assert_eq!(space, Space::new());
}

#[test]
fn the_rest_of_a_split_block_is_listed() {
    let mut space = Space::new();
    assert_eq!(start(&mut space, high(P)), Some(4 * GIB));
    assert_eq!([0, 1].map(|level| bound(&space, level, 0x10_0000)), [Some(8); 2]);
    assert_eq!(start(&mut space, high(P)), Some(4 * GIB + P));
    assert_eq!(start(&mut space, high(2 * MIB)), Some(4 * GIB + 2 * MIB));
    assert_eq!(start(&mut space, high(8 * MIB)), Some(4 * GIB + 8 * MIB));
    assert_eq!(start(&mut space, high(4 * MIB)), Some(4 * GIB + 4 * MIB));
    assert_eq!(start(&mut space, high(GIB)), Some(5 * GIB));

    let mut space = Space::new();
    for (length, first) in
        [(4 * MIB, 0), (2 * MIB, 4 * MIB), (3 * P, 6 * MIB), (P, 6 * MIB + 3 * P)]
    {
        assert_eq!(start(&mut space, high(length)), Some(4 * GIB + first));
    }
}

#[test]
fn a_node_kept_empty_is_forgotten_only_when_it_is_used() {
    let mut space = Space::new();
    assert!(space.allocate_at(range(0, 9 * P)) && space.allocate_at(range(2 * MIB, 9 * P)));
    space.free(range(0, 9 * P));
    assert_eq!(start(&mut space, wanted(9 * P)), Some(2 * MIB + 16 * P));
    assert_eq!(space.fragments(), 2);
    assert!(!space.exceeds(1), "the empty one does not count");
    assert_eq!(space.fragments(), 1);
}

#[test]
fn a_part_is_whole_again_only_when_all_of_it_is_free() {
    let mut space = Space::new();
    let two = [range(300 * GIB, 2 * MIB), range(300 * GIB + 2 * MIB, 2 * MIB)];
    assert!(two.iter().all(|range| space.allocate_at(*range)));
    space.free(two[0]);
    assert!(!space.allocate_at(two[1]));
    let free = [range(0, 300 * GIB + 2 * MIB), range(300 * GIB + 4 * MIB, 212 * GIB - 4 * MIB)];
    assert_eq!(space.free_ranges(), free);
    space.free(two[1]);
    assert_eq!((space.fragments(), space), (0, Space::new()));
}

#[test]
fn more_fragments_than_the_limit_exceed_it() {
    let mut space = Space::new();
    assert!(space.allocate_at(range(300 * GIB, 9 * P)));
    assert_eq!([0, 1, 2, 3].map(|limit| space.exceeds(limit)), [true, true, false, false]);
    space.free(range(300 * GIB, 9 * P));
    assert!(space.allocate_at(range(300 * GIB, P)));
    space.free(range(300 * GIB, P));
    assert_eq!(space.fragments(), 2);
    assert!(!space.exceeds(2) && !space.shelf.is_empty(), "at the limit, nothing is moved");
    assert!(!space.exceeds(0) && space.shelf.is_empty(), "free ranges are moved, then counted");
}

#[test]
fn what_was_freed_lately_is_reused_for_the_alignment_it_has() {
    let mut space = Space::new();
    let aligned = |length, alignment| Wanted { alignment, ..wanted(length) };
    for page in 0..4 {
        assert_eq!(start(&mut space, wanted(P)), Some(page * P));
    }
    space.free(range(P, P));
    for alignment in [2 * P, 4 * P, MIB] {
        assert_eq!(space.allocate_again(aligned(P, alignment)), None);
    }
    assert_eq!(space.allocate_again(wanted(P + 1)), None);
    assert_eq!(start(&mut space, aligned(P, 2 * P)), Some(4 * P));
    assert_eq!(start(&mut space, aligned(P, 8 * P)), Some(8 * P));
    assert_eq!(space.allocate_again(aligned(P, P)), Some(range(P, P)));
    assert_eq!(space.allocate_again(aligned(P, P)), None);
    assert_eq!(start(&mut space, wanted(2 * P)), Some(6 * P));
    assert_eq!(start(&mut space, wanted(2 * P)), Some(10 * P));
    space.free(range(6 * P, 2 * P));
    assert_eq!(start(&mut space, aligned(2 * P, 2 * P)), Some(6 * P), "before new ones");
}

#[test]
fn nodes_fill_one_chunk_after_the_other_and_move_down() {
    let mut space = Space::new();
    let places: Vec<_> = (0..20).map(|n| range(n * 2 * MIB + P, 9 * P)).collect();
    assert!(places.iter().all(|place| space.allocate_at(*place)));
    assert_eq!(space.nodes.iter().map(Vec::len).collect::<Vec<_>>(), [16, 9]);
    for n in 0..20 {
        assert_eq!(space.find(0, n * 512), Some(5 + n));
        let node = space.node(5 + n).unwrap();
        assert_eq!((node.position, node.children.is_some()), (n, false));
    }
    assert!((0..5).all(|at| space.node(at).unwrap().children.is_some()));
    let between = (0..19).map(|n| range(n * 2 * MIB + 10 * P, 2 * MIB - 9 * P));
    let last = 38 * MIB + 10 * P;
    let free: Vec<_> =
        [range(0, P)].into_iter().chain(between).chain([range(last, (1 << 39) - last)]).collect();
    assert_eq!(space.free_ranges(), free);

    for n in (0..20).filter(|n| ![3, 19].contains(n)) {
        space.free(places[n]);
    }
    space.shrink();
    assert_eq!(space.nodes.iter().map(Vec::len).collect::<Vec<_>>(), [7]);
    assert_eq!(space.fragments(), 2);
    let last = 38 * MIB + 10 * P;
    let free = [
        range(0, 6 * MIB + P),
        range(6 * MIB + 10 * P, 32 * MIB - 9 * P),
        range(last, (1 << 39) - last),
    ];
    assert_eq!(space.free_ranges(), free);
    space.free(places[3]);
    space.free(places[19]);
    assert_eq!(space, Space::new());
}

/// A node is listed anew when a block that became free is larger than all it had, and only then.
#[test]
fn a_freed_block_is_found_by_its_order() {
    let mut space = Space::new();
    assert_eq!(start(&mut space, wanted(9 * P)), Some(0));
    assert_eq!(start(&mut space, wanted(128 * P)), Some(128 * P));
    space.free(range(128 * P, 128 * P));
    assert_eq!(start(&mut space, wanted(256 * P)), Some(256 * P), "larger than the freed one");

    let mut space = Space::new();
    for (pages, first) in [(256, 0), (128, 256), (64, 384), (64, 448), (9, 512)] {
        assert_eq!(start(&mut space, wanted(pages * P)), Some(first * P), "{pages}");
    }
    assert_eq!(bound(&space, 0, 0), None);
    space.free(range(448 * P, 64 * P));
    assert_eq!(bound(&space, 0, 0), Some(6));
    space.free(range(256 * P, 128 * P));
    assert_eq!(bound(&space, 0, 0), Some(7));
    assert_eq!(start(&mut space, wanted(128 * P)), Some(256 * P));
    space.free(range(384 * P, 64 * P));
    assert_eq!(bound(&space, 0, 0), Some(7), "with the 64 pages after it");
    space.free(range(256 * P, 128 * P));
    assert_eq!(bound(&space, 0, 0), Some(8));
}

#[test]
fn a_node_above_4g_is_not_for_ranges_below() {
    let mut space = Space::new();
    assert!(space.allocate_at(range(4 * GIB, 9 * P)));
    assert_eq!(start(&mut space, wanted(9 * P)), Some(0));
    let mut space = Space::new();
    assert!(space.allocate_at(range(4 * GIB, 2 * MIB)));
    assert_eq!(start(&mut space, wanted(2 * MIB)), Some(0));
    space.free(range(4 * GIB, 2 * MIB));
    assert_eq!(space.fragments(), 0);
    assert_eq!(start(&mut space, high(GIB)), Some(4 * GIB));
    // The last nodes below 4 GiB.
    for first in [2 * GIB, 4 * GIB - 2 * MIB] {
        let mut space = Space::new();
        assert!(space.allocate_at(range(first, 9 * P)));
        assert_eq!(start(&mut space, high(9 * P)), Some(4 * GIB));
        assert_eq!(start(&mut space, wanted(9 * P)), Some(first + 16 * P));
    }
}

#[test]
fn a_slot_that_is_whole_again_is_found_in_its_node() {
    let mut space = Space::new();
    let last = 5 * GIB - 2 * MIB;
    assert!(space.allocate_at(range(4 * GIB, GIB - 2 * MIB)));
    assert_eq!(start(&mut space, high(9 * P)), Some(last));
    assert_eq!(start(&mut space, high(2 * MIB)), Some(5 * GIB));
    assert_eq!(bound(&space, 1, 0x10_0000), None);
    space.free(range(last, 9 * P));
    assert_eq!(start(&mut space, high(2 * MIB)), Some(last));
}
