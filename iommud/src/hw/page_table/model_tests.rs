//! Random sequences against a map of single pages.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::format::*;
use super::*;
use crate::hw::amdvi::AmdFormat;
use crate::hw::testing::TestMemory;
use crate::hw::vtd::SecondStage;

#[derive(Clone, Debug)]
enum Action {
    Map { page: u64, pages: u64, phys: u64, access: Access },
    List { page: u64, pages: u64, phys: u64, access: Access },
    Unmap { page: u64, pages: u64, undo: bool },
}

/// The memory of page `number` of a list that begins at `phys`: every third pair follows each other.
fn scattered(phys: u64, number: u64) -> u64 {
    (phys + number * 0x1_3579 - number % 3 * 0x1_3578) % (1 << 40)
}

/// Pages where tables of each level begin and end, so that sequences meet.
fn page() -> impl Strategy<Value = u64> {
    let around = |centre: u64| (0u64..6).prop_map(move |n| (centre + n).saturating_sub(3));
    prop_oneof![
        around(0),
        around(512),
        around(1024),
        around(512 * 512),
        around(512 * 512 * 512),
        (0u64..4).prop_map(|n| n * 512),
        (0u64..3).prop_map(|n| n * 512 * 512),
    ]
}

fn pages() -> impl Strategy<Value = u64> {
    prop_oneof![6 => 1u64..8, 6 => 500u64..530, 4 => Just(512), 1 => Just(1024), 1 => Just(512 * 512)]
}

fn action() -> impl Strategy<Value = Action> {
    let access = prop_oneof![Just(Access::READ), Just(Access::WRITE), Just(Access::all())];
    let list =
        (page(), prop_oneof![4 => 1u64..8, 4 => 500u64..530, 1 => Just(512), 1 => Just(1030)]);
    prop_oneof![
        (list, page(), access.clone()).prop_map(|((page, pages), phys, access)| Action::List {
            page,
            pages,
            phys,
            access
        }),
        (page(), pages(), page(), access).prop_map(|(page, pages, phys, access)| Action::Map {
            page,
            pages,
            phys,
            access
        }),
        (page(), pages(), any::<bool>()).prop_map(|(page, pages, undo)| Action::Unmap {
            page,
            pages,
            undo
        }),
    ]
}

/// Mappings by first page: number of pages, first page of memory, access.
type Model = BTreeMap<u64, (u64, u64, Access)>;

/// Cuts the model so that no mapping crosses `page`.
fn cut(model: &mut Model, page: u64) {
    let Some((&first, &(pages, phys, access))) = model.range(..page).next_back() else { return };
    if first + pages > page {
        model.insert(first, (page - first, phys, access));
        model.insert(page, (first + pages - page, phys + (page - first), access));
    }
}

fn expected(model: &Model, page: u64) -> Option<(u64, Access)> {
    let (&first, &(pages, phys, access)) = model.range(..=page).next_back()?;
    (page < first + pages).then_some((phys + (page - first), access))
}

fn overlaps(model: &Model, page: u64, pages: u64) -> bool {
    model.range(..page + pages).next_back().is_some_and(|(first, held)| first + held.0 > page)
}

fn range(page: u64, pages: u64) -> IovaRange {
    IovaRange::new(Iova(page * PAGE_SIZE), pages * PAGE_SIZE).unwrap()
}

fn compare<F: PteFormat>(memory: &TestMemory, table: &PageTable<F>, model: &Model, probes: &[u64]) {
    let edges = model.iter().flat_map(|(first, held)| [*first, first + held.0]);
    for page in edges.chain(probes.iter().copied()) {
        for near in page.saturating_sub(1)..=page + 1 {
            let found = table.lookup(memory, Iova(near * PAGE_SIZE + 0x123));
            let found = found.map(|(phys, access)| ((phys.0 - 0x123) / PAGE_SIZE, access));
            assert_eq!(found, expected(model, near), "page {near:#x}");
        }
    }
}

/// Checks all tables. Every counter is the number of slots in use. No table but the root is empty, except one table
/// of pages beside another slot. No frame is lost, and pages over several slots are whole.
fn check_tables<F: PteFormat>(memory: &mut TestMemory, root: PhysAddr, levels: u8) {
    let (mut reached, mut empty) = (0, 0);
    let mut waiting = vec![(root, levels, 2)];
    while let Some((frame, level, beside)) = waiting.pop() {
        reached += 1;
        let words: Vec<u64> = memory.frames[&frame.0].words.clone();
        let used = words.iter().filter(|word| **word != 0).count();
        assert_eq!(usize::from(*memory.live(frame)), used);
        if used == 0 && frame != root {
            assert!(level == 1 && beside > 1, "an empty table is linked");
            empty += 1;
        }
        for (slot, word) in words.iter().enumerate() {
            let size = 1 << F::power(*word, level);
            let start = slot & !(size - 1);
            assert!(words[start..start + size].iter().all(|other| other == word), "half a page");
            if let PteSlot::Table(next) = F::decode(*word, level) {
                waiting.push((next, level - 1, used));
            }
        }
    }
    assert!(empty <= 1, "{empty} empty tables are linked");
    assert_eq!(reached, memory.frames_in_use());
}

/// The parameters of a sequence.
#[derive(Clone, Debug)]
struct Run {
    actions: Vec<Action>,
    levels: u8,
    sizes: (bool, bool),
    failing: Option<usize>,
}

fn sequence() -> impl Strategy<Value = Run> {
    let actions = proptest::collection::vec(action(), 1..40);
    let sizes = (any::<bool>(), any::<bool>());
    (actions, 3u8..=5, sizes, proptest::option::of(0usize..8))
        .prop_map(|(actions, levels, sizes, failing)| Run { actions, levels, sizes, failing })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn behaves_like_a_map_of_pages(run in sequence()) {
        play::<SecondStage>(&run)?;
    }

    /// The same with pages over several slots.
    #[test]
    fn behaves_like_a_map_of_pages_in_groups(run in sequence()) {
        play::<AmdFormat>(&run)?;
    }
}

fn play<F: PteFormat>(run: &Run) -> Result<(), TestCaseError> {
    let Run { actions, levels, sizes: (two_m, one_g), failing } = run;
    let (levels, two_m, one_g, failing) = (*levels, *two_m, *one_g, *failing);
    let mut sizes = PageSizes::SIZE_4K;
    sizes.set(PageSizes::SIZE_2M, two_m);
    sizes.set(PageSizes::SIZE_1G, one_g && two_m);
    let mut memory = TestMemory::new();
    let forces_snoop = levels % 2 == 0;
    let format = TableFormat { levels, page_sizes: sizes, coherent: false, forces_snoop };
    let mut table = PageTable::<F>::new(&mut memory, format).unwrap();
    let mut model = Model::new();
    for (n, action) in actions.iter().enumerate() {
        memory.budget = match failing {
            Some(k) if n % 3 == 0 => k,
            _ => usize::MAX,
        };
        let before = memory.snapshot();
        match *action {
            Action::List { page, pages, phys, access } => {
                let memories: Vec<PhysAddr> =
                    (0..pages).map(|n| PhysAddr(scattered(phys, n) * PAGE_SIZE)).collect();
                let result = table.map_list(&mut memory, range(page, pages), &memories, access);
                match result {
                    Ok(()) => {
                        prop_assert!(!overlaps(&model, page, pages));
                        (0..pages).for_each(|n| {
                            model.insert(page + n, (1, scattered(phys, n), access));
                        });
                    }
                    Err(error) => {
                        prop_assert_eq!(memory.snapshot(), before);
                        match error {
                            MapError::OutOfReach { .. } => {
                                prop_assert!(page + pages > 1u64 << (9 * levels));
                            }
                            MapError::Overlap(iova) => {
                                let there = expected(&model, iova.0 / PAGE_SIZE);
                                prop_assert!(there.is_some());
                            }
                            MapError::Memory(_) => prop_assert!(memory.budget == 0),
                            other => prop_assert!(false, "{:?}", other),
                        }
                    }
                }
                compare(&memory, &table, &model, &[page, page + pages]);
            }
            Action::Map { page, pages, phys, access } => {
                let limit = 1u64 << (9 * levels);
                let phys_address = PhysAddr(phys * PAGE_SIZE);
                let result = table.map(&mut memory, range(page, pages), phys_address, access);
                let reachable = page + pages <= limit;
                match result {
                    Ok(()) => {
                        prop_assert!(reachable && !overlaps(&model, page, pages));
                        model.insert(page, (pages, phys, access));
                    }
                    Err(error) => {
                        prop_assert_eq!(memory.snapshot(), before);
                        match error {
                            MapError::OutOfReach { .. } => prop_assert!(!reachable),
                            MapError::Overlap(iova) => {
                                let there = expected(&model, iova.0 / PAGE_SIZE);
                                prop_assert!(there.is_some());
                            }
                            MapError::Memory(_) => prop_assert!(memory.budget == 0),
                            other => prop_assert!(false, "{:?}", other),
                        }
                    }
                }
                compare(&memory, &table, &model, &[page, page + pages]);
            }
            Action::Unmap { page, pages, undo } => {
                let mut detached = Detached::new();
                let result = table.unmap(&mut memory, range(page, pages), &mut detached);
                if result.is_err() {
                    prop_assert_eq!(memory.snapshot(), before);
                    prop_assert!(detached.is_empty());
                    continue;
                }
                if undo {
                    table.relink(&mut memory, &mut detached);
                } else {
                    cut(&mut model, page);
                    cut(&mut model, page + pages);
                    model.retain(|first, _| *first < page || *first >= page + pages);
                }
                compare(&memory, &table, &model, &[page, page + pages]);
                PageTable::<F>::release(&mut memory, &mut detached);
                if undo {
                    prop_assert_eq!(memory.snapshot(), before);
                }
            }
        }
        prop_assert_eq!((memory.dirty_links, memory.dirty.len()), (0, 0));
        check_tables::<F>(&mut memory, table.root(), levels);
    }
    table.destroy(&mut memory);
    prop_assert_eq!(memory.frames_in_use(), 0);
    Ok(())
}
