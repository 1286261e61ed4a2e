mod nodes;

use super::*;
use alloc::collections::BTreeMap;
use proptest::prelude::*;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

fn wanted(length: u64) -> Wanted {
    Wanted { length, alignment: 0, boundary: 0, above_4g: false }
}

fn range(first: u64, length: u64) -> IovaRange {
    IovaRange::new(Iova(first), length).unwrap()
}

fn start(space: &mut Space, wanted: Wanted) -> Option<u64> {
    space.allocate(wanted).map(|range| range.first().0)
}

#[test]
fn a_new_space_is_free_from_end_to_end() {
    assert_eq!(Space::new().free_ranges(), [range(0, 1 << SPACE_BITS)]);
}

#[test]
fn ranges_are_low_unless_asked_otherwise() {
    let mut space = Space::new();
    assert_eq!(start(&mut space, wanted(4096)), Some(0));
    let high = Wanted { above_4g: true, ..wanted(4096) };
    assert_eq!(start(&mut space, high), Some(4 * GIB));
    while space.allocate(wanted(512 * MIB)).is_some() {}
    assert_eq!(space.allocate(wanted(512 * MIB)), None, "never above 4 GiB without being asked");
    assert!(space.allocate(Wanted { above_4g: true, ..wanted(512 * MIB) }).is_some());
}

#[test]
fn lengths_are_exact_and_the_rest_stays_free() {
    let mut space = Space::new();
    assert_eq!(start(&mut space, wanted(5 * 4096)), Some(0));
    assert_eq!(start(&mut space, wanted(4096)), Some(5 * 4096));
    assert_eq!(start(&mut space, wanted(2 * 4096)), Some(6 * 4096));
    assert_eq!(start(&mut space, wanted(3 * MIB)), Some(4 * MIB));
    assert_eq!(start(&mut space, wanted(MIB)), Some(7 * MIB), "best fit");
    for (first, length) in
        [(0, 5 * 4096), (5 * 4096, 4096), (6 * 4096, 2 * 4096), (4 * MIB, 3 * MIB), (7 * MIB, MIB)]
    {
        space.free(range(first, length));
    }
    assert_eq!(space, Space::new());
}

#[test]
fn alignment_and_boundary_hold() {
    let mut space = Space::new();
    space.allocate(wanted(4096));
    let aligned = Wanted { alignment: 16 * MIB, ..wanted(4096) };
    assert_eq!(start(&mut space, aligned), Some(16 * MIB));
    let bounded = Wanted { boundary: 64 * 1024, ..wanted(40 * 1024) };
    for _ in 0..100 {
        let first = start(&mut space, bounded).unwrap();
        assert_eq!(first / 65536, (first + 40 * 1024 - 1) / 65536);
    }
    assert_eq!(start(&mut space, Wanted { alignment: 8 * GIB, ..wanted(4096) }), None);
}

#[test]
fn a_fixed_range_is_taken_once() {
    let mut space = Space::new();
    let across = range(2 * MIB - 4096, 4 * MIB);
    assert!(space.allocate_at(across));
    assert!(!space.allocate_at(range(2 * MIB, 4096)));
    assert!(!space.allocate_at(range(6 * MIB - 8192, 8192)));
    assert!(space.allocate_at(range(6 * MIB - 4096, 4096)));
    assert!(space.allocate_at(range(256 * GIB, 256 * GIB)));
    assert!(!space.allocate_at(range(300 * GIB, 4096)));
    assert!(!space.allocate_at(range(1 << SPACE_BITS, 4096)), "outside");
    space.free(across);
    space.free(range(6 * MIB - 4096, 4096));
    space.free(range(256 * GIB, 256 * GIB));
    assert_eq!(space, Space::new());
}

#[test]
fn a_hole_below_4g_does_not_keep_long_ranges_out() {
    let mut space = Space::new();
    assert!(space.allocate_at(range(0, 4096)));
    assert!(space.allocate_at(range(0xfee0_0000, MIB)));
    let long = space.allocate(wanted(2 * GIB + 4096)).unwrap();
    assert_eq!(long.first(), Iova(2 * MIB));
    assert_eq!(start(&mut space, Wanted { alignment: GIB, ..wanted(GIB) }), None);
    space.free(long);
    assert_eq!(start(&mut space, Wanted { alignment: 4096, ..wanted(3 * GIB) }), Some(2 * MIB));
}

#[test]
fn a_run_respects_alignment_and_boundary() {
    let mut space = Space::new();
    // Every even GiB has a page taken, so that 1 GiB and 512 MiB fit, aligned, only in the odd ones.
    for slot in [0, 2] {
        assert!(space.allocate_at(range(slot * GIB + 512 * MIB, 4096)));
    }
    let both = Wanted { alignment: 256 * MIB, boundary: 2 * GIB, ..wanted(GIB + 256 * MIB) };
    let first = start(&mut space, both).unwrap();
    assert_eq!(first, 768 * MIB);
    space.free(range(first, both.length));
    assert!(space.allocate_at(range(GIB, 4096)) && space.allocate_at(range(3 * GIB, 4096)));
    assert_eq!(start(&mut space, Wanted { boundary: GIB, ..wanted(GIB) }), None);
}

#[test]
fn fragments_follow_what_is_partly_free() {
    let mut space = Space::new();
    assert_eq!(space.fragments(), 0);
    space.allocate_at(range(300 * GIB, 4096));
    assert_eq!(space.fragments(), 2);
    space.free(range(300 * GIB, 4096));
    space.tidy();
    space.allocate(wanted(2 * MIB));
    assert_eq!(space.fragments(), 0);
}

/// The same rules over sorted ranges, by a search of every place.
#[derive(Default)]
struct Naive {
    taken: BTreeMap<u64, u64>,
}

impl Naive {
    fn is_free(&self, first: u64, length: u64) -> bool {
        self.taken.range(..first + length).next_back().is_none_or(|(at, len)| at + len <= first)
    }

    fn has_block(&self, from: u64, to: u64, block: u64) -> bool {
        (from.next_multiple_of(block)..to)
            .step_by(usize::try_from(block).unwrap())
            .any(|at| at + block <= to && self.is_free(at, block))
    }

    fn has_run(&self, wanted: Wanted, alignment: u64) -> bool {
        let step = alignment.max(2 * MIB);
        let length = wanted.length.next_multiple_of(2 * MIB);
        wanted.length > 2 * MIB
            && (0..4 * GIB).step_by(usize::try_from(step).unwrap()).any(|at| {
                let last = at + length - 1;
                let limit = wanted.boundary;
                at + length <= 4 * GIB
                    && self.is_free(at, length)
                    && (limit == 0 || at / limit == last / limit)
            })
    }

    fn expects(&self, wanted: Wanted) -> bool {
        let alignment = wanted.alignment.max(4096);
        let block = wanted.length.next_power_of_two().max(alignment);
        (wanted.above_4g && self.has_block(4 * GIB, 1 << SPACE_BITS, block))
            || self.has_block(0, 4 * GIB, block)
            || self.has_run(wanted, alignment)
    }
}

#[derive(Clone, Debug)]
enum Action {
    Allocate(Wanted),
    At(u64, u64),
    Free(usize),
    FreePart(usize),
    Compact,
}

fn action() -> impl Strategy<Value = Action> {
    // Coarse lengths and places, so that the naive search is quick and ranges meet.
    let length = prop_oneof![
        4 => (1_u64..=6).prop_map(|n| n * 64 * MIB),
        2 => (1_u64..=9).prop_map(|n| n * 256 * MIB),
        2 => (1_u64..=40).prop_map(|n| n * 64 * MIB + 4096),
    ];
    let align = prop_oneof![Just(0_u64), Just(256 * MIB), Just(GIB)];
    let wanted = (length.clone(), align, any::<bool>(), any::<bool>()).prop_map(
        |(length, alignment, bounded, above_4g)| {
            let boundary = if bounded { length.next_power_of_two() } else { 0 };
            Wanted { length, alignment, boundary, above_4g }
        },
    );
    let place = prop_oneof![0_u64..70, 4090_u64..4100].prop_map(|n| n * 61 * MIB);
    prop_oneof![
        5 => wanted.prop_map(Action::Allocate),
        2 => (place, length).prop_map(|(at, length)| Action::At(at, length)),
        4 => any::<usize>().prop_map(Action::Free),
        1 => any::<usize>().prop_map(Action::FreePart),
        1 => Just(Action::Compact),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn behaves_as_the_naive_model(actions in proptest::collection::vec(action(), 1..60)) {
        let mut space = Space::new();
        let mut naive = Naive::default();
        for action in actions {
            match action {
                Action::Allocate(wanted) => {
                    let expected = naive.expects(wanted);
                    let got = space.allocate(wanted);
                    prop_assert_eq!(got.is_some(), expected, "{:?}", wanted);
                    if let Some(range) = got {
                        let (first, length) = (range.first().0, range.length());
                        prop_assert_eq!(length, wanted.length);
                        prop_assert!(naive.is_free(first, length), "handed out twice");
                        prop_assert!(first.is_multiple_of(wanted.alignment.max(4096)));
                        let limit = wanted.boundary;
                        prop_assert!(limit == 0 || first / limit == (first + length - 1) / limit);
                        prop_assert!(wanted.above_4g || first + length <= 4 * GIB);
                        naive.taken.insert(first, length);
                    }
                }
                Action::At(at, length) => {
                    let expected = at + length <= 1 << SPACE_BITS && naive.is_free(at, length);
                    prop_assert_eq!(space.allocate_at(range(at, length)), expected);
                    if expected {
                        naive.taken.insert(at, length);
                    }
                }
                Action::Free(n) if !naive.taken.is_empty() => {
                    let (at, length) = naive.taken.iter().nth(n % naive.taken.len()).map(|(a, l)| (*a, *l)).unwrap();
                    naive.taken.remove(&at);
                    space.free(range(at, length));
                }
                Action::FreePart(n) if !naive.taken.is_empty() => {
                    let (at, length) = naive.taken.iter().nth(n % naive.taken.len()).map(|(a, l)| (*a, *l)).unwrap();
                    let kept = (length / 2) & !4095;
                    if kept > 0 {
                        naive.taken.insert(at, kept);
                        space.free(range(at + kept, length - kept));
                    }
                }
                Action::Compact => {
                    let free = space.free_ranges();
                    space.settle();
                    space.compact();
                    prop_assert!(space.free_nodes.is_empty());
                    prop_assert_eq!(space.nodes.iter().map(Vec::len).sum::<usize>(), space.count as usize);
                    prop_assert_eq!(space.free_ranges(), free);
                }
                Action::Free(_) | Action::FreePart(_) => {}
            }
        }
        for (at, length) in naive.taken {
            space.free(range(at, length));
        }
        space.tidy();
        space.settle();
        prop_assert_eq!(space.fragments(), 0);
        prop_assert_eq!(space, Space::new());
    }

    #[test]
    fn small_ranges_behave_as_a_bitmap(actions in proptest::collection::vec((0_u64..8, 1_u64..=20, any::<usize>()), 1..400)) {
        let mut space = Space::new();
        let window = range(0, 4 * MIB);
        prop_assert!(space.allocate_at(range(4 * MIB, 4 * GIB - 4 * MIB)));
        let mut taken: Vec<IovaRange> = Vec::new();
        for (kind, pages, n) in actions {
            if kind < 5 {
                if let Some(got) = space.allocate(wanted(pages * 4096)) {
                    prop_assert!(window.contains(got));
                    prop_assert!(taken.iter().all(|other| !other.overlaps(got)));
                    prop_assert!(got.first().is_aligned((pages * 4096).next_power_of_two()));
                    taken.push(got);
                } else {
                    let block = (pages * 4096).next_power_of_two();
                    prop_assert!((0..4 * MIB / block).all(|i| taken.iter().any(|t| t.overlaps(range(i * block, block)))));
                }
            } else if kind == 5 {
                let at = range(n as u64 % 1000 * 4096, pages * 4096);
                let expected = window.contains(at) && taken.iter().all(|other| !other.overlaps(at));
                prop_assert_eq!(space.allocate_at(at), expected);
                if expected {
                    taken.push(at);
                }
            } else if !taken.is_empty() {
                space.free(taken.swap_remove(n % taken.len()));
            }
            let free: u64 = space.free_ranges().iter().map(|r| r.length()).sum();
            let used: u64 = taken.iter().map(|r| r.length()).sum();
            prop_assert_eq!(free, (1 << SPACE_BITS) - 4 * GIB + 4 * MIB - used);
        }
    }
}

#[test]
fn what_was_given_back_lately_is_free_for_everyone() {
    let mut space = Space::new();
    let taken: Vec<_> = (0..40).map(|_| space.allocate(wanted(2 * 4096)).unwrap()).collect();
    for range in &taken {
        space.free(*range);
    }
    assert_eq!(space.allocate(wanted(2 * 4096)), taken.last().copied(), "the last one first");
    assert!(space.allocate_at(range(4096, 4096)), "part of one that is kept");
    assert!(!space.allocate_at(range(0, 8192)));
    space.free(range(4096, 4096));
    space.free(taken[39]);
    assert_eq!(space, Space::new());
    space.allocate_at(range(300 * GIB, 4096));
    space.free(range(300 * GIB, 4096));
    assert!(!space.exceeds(0), "what is kept for later counts for nothing");
    let all = Wanted { above_4g: true, ..wanted(256 * GIB) };
    assert_eq!(start(&mut space, all), Some(256 * GIB), "nor is it in the way");
    space.free(range(256 * GIB, all.length));
    let many: Vec<_> = (0..40 * 512).map(|_| space.allocate(wanted(4096)).unwrap()).collect();
    many.iter().for_each(|range| space.free(*range));
    space.shrink();
    assert_eq!((space.nodes.len(), space.fragments()), (1, 0));
    assert_eq!(space, Space::new());
    assert_eq!(start(&mut space, wanted(4096)), start(&mut Space::new(), wanted(4096)));
}

#[test]
fn what_is_still_taken_does_not_keep_the_memory_of_what_was() {
    let mut space = Space::new();
    assert!(space.allocate_at(range(0xfee0_0000, MIB)));
    let high = Wanted { above_4g: true, ..wanted(4096) };
    let mut many: Vec<_> = (0..100 * 512).map(|_| space.allocate(high).unwrap()).collect();
    // One range in the last node, one in a node in between.
    let kept = [many.pop().unwrap(), many.swap_remove(50 * 512)];
    many.iter().for_each(|range| space.free(*range));
    let free = space.free_ranges();
    space.shrink();
    assert_eq!((space.nodes.len(), space.free_nodes.capacity()), (1, 0));
    assert_eq!(space.free_ranges(), free);
    for at in kept {
        assert!(!space.allocate_at(at));
        space.free(at);
    }
    space.free(range(0xfee0_0000, MIB));
    assert_eq!(space, Space::new());
}
