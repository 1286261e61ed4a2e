//! Page tables and their invalidation.

use iommu_protocol::wire::Access;
use iommud::addr::{Iova, IovaRange};
use iommud::hw::Unit;
use iommud::hw::page_table::{Detached, PageTable};
use iommud::topology::capabilities::PageSizes;

use super::{Bench, Domain, SOURCES, TARGET, UnderTest, depths, range, run};
use crate::machine::{Reach, join};

const PAGE: u64 = 4096;
const LARGE: u64 = 2 << 20;
const HUGE: u64 = 1 << 30;

/// Maps a page of each size at both ends of each depth's address range. Exactly the bytes of that page are reachable.
pub fn every_size_at_every_depth<T: UnderTest>(subject: &T) {
    let mut bench = Bench::start(subject);
    // Entries need table memory of their own, which is kept. Allocates it here so that it does not count below.
    let none = bench.domain(1);
    bench.attach(SOURCES[0], &none);
    bench.detach(SOURCES[0], &none);
    none.pages.destroy(&mut bench.tables);
    for (tag, levels) in (1..).zip(depths(bench.capabilities().levels)) {
        let width = 12 + 9 * u32::from(levels);
        for size in [PAGE, LARGE, HUGE] {
            if bench.capabilities().page_sizes & PageSizes::from_bits_retain(size)
                == PageSizes::empty()
            {
                continue;
            }
            let frames = bench.machine.table_frames();
            let mut domain = bench.domain_of(tag, levels);
            bench.attach(SOURCES[0], &domain);
            let end = if width < 64 { (1 << width) - size } else { 0_u64.wrapping_sub(size) };
            // One page at each end, and one between them without neighbours.
            let places = [(0, TARGET), (5 * HUGE, TARGET), (end, TARGET)];
            for (iova, physical) in places {
                bench.map(&mut domain, iova, physical, size);
            }
            let expected = places.map(|(iova, physical)| run(iova, physical, size));
            bench.expect(SOURCES[0], &expected);
            for (index, (iova, _)) in places.into_iter().enumerate() {
                bench.unmap(&mut domain, iova, size);
                bench.expect(SOURCES[0], &expected[index + 1..]);
            }
            bench.detach(SOURCES[0], &domain);
            domain.pages.destroy(&mut bench.tables);
            assert_eq!(bench.machine.table_frames(), frames, "tables are given back");
        }
    }
    bench.machine.assert_clean();
}

/// Granted permissions match the mapping's, including read only and write only.
pub fn permissions_are_what_was_mapped<T: UnderTest>(subject: &T) {
    let mut bench = Bench::start(subject);
    let mut domain = bench.domain(1);
    bench.attach(SOURCES[0], &domain);
    let cases = [(0x1000, Access::READ), (0x3000, Access::WRITE), (0x5000, Access::all())];
    for (iova, access) in cases {
        bench.map_as(&mut domain, iova, TARGET + iova, PAGE, access);
    }
    let expected = cases.map(|(iova, access)| Reach {
        read: access.contains(Access::READ),
        write: access.contains(Access::WRITE),
        ..run(iova, TARGET + iova, PAGE)
    });
    bench.expect(SOURCES[0], &expected);
}

/// Checks the test bed itself: without an invalidation the old translation stays. So other checks that find it gone
/// prove that it was invalidated.
pub fn without_invalidation_it_stays<T: UnderTest>(subject: &T) {
    let mut bench = Bench::start(subject);
    let mut domain = bench.domain(1);
    bench.map(&mut domain, LARGE, TARGET, PAGE);
    bench.attach(SOURCES[0], &domain);
    bench.touch(SOURCES[0], LARGE, PAGE);
    let mut detached = Detached::new();
    domain.pages.unmap(&mut bench.tables, range(LARGE, PAGE), &mut detached).expect("unmap");
    assert_eq!(bench.probe(SOURCES[0], LARGE, true), Some(TARGET), "cached");
    let freed = detached.tables_freed();
    bench
        .unit
        .invalidate_pages(&mut bench.tables, domain.tag, range(LARGE, PAGE), freed)
        .expect("invalidate");
    assert_eq!(bench.probe(SOURCES[0], LARGE, true), None);
    PageTable::<<T::Unit as Unit>::Format>::release(&mut bench.tables, &mut detached);
    bench.expect(SOURCES[0], &[]);
}

/// Ranges that no single address mask covers well: odd starts, odd lengths, across table boundaries, and longer than
/// one invalidation can cover.
pub fn ranges_of_any_shape_are_forgotten<T: UnderTest>(subject: &T) {
    let mut bench = Bench::start(subject);
    let mut domain = bench.domain(1);
    bench.attach(SOURCES[0], &domain);
    let shapes = [
        (0, PAGE),
        (PAGE, PAGE),
        (PAGE, 2 * PAGE),
        (7 * PAGE, 9 * PAGE),
        (LARGE - PAGE, 2 * PAGE),
        (LARGE - PAGE, LARGE + 2 * PAGE),
        (3 * PAGE, 511 * PAGE),
        (HUGE - 3 * PAGE, 6 * PAGE),
        (HUGE - LARGE, 2 * LARGE),
        (64 * LARGE, 5 * LARGE),
    ];
    // Pages around each range stay mapped and reachable.
    for (iova, length) in shapes {
        let base = 4 * HUGE + iova;
        for at in [base - PAGE, base + length] {
            bench.map(&mut domain, at, TARGET + 0x100_0000, PAGE);
        }
        bench.map(&mut domain, base, TARGET + 0x200_0000, length);
        bench.touch(SOURCES[0], base - PAGE, length + 2 * PAGE);
        bench.unmap(&mut domain, base, length);
        let neighbours = [base - PAGE, base + length].map(|at| run(at, TARGET + 0x100_0000, PAGE));
        bench.expect(SOURCES[0], &neighbours);
        for at in [base - PAGE, base + length] {
            bench.unmap(&mut domain, at, PAGE);
        }
        bench.expect(SOURCES[0], &[]);
    }
}

/// A range of I/O virtual addresses may be longer than physical memory can be (52 bits). Both ends of a table of 5 or
/// 6 levels are unmapped in one call.
pub fn the_whole_of_a_deep_table_is_unmapped<T: UnderTest>(subject: &T) {
    let mut bench = Bench::start(subject);
    for (tag, levels) in (1..).zip(depths(bench.capabilities().levels)) {
        let width = 12 + 9 * u32::from(levels);
        let last = if width < 64 { (1 << width) - 1 } else { u64::MAX };
        let mut domain = bench.domain_of(tag, levels);
        bench.attach(SOURCES[0], &domain);
        for first in [0, PAGE] {
            let (low, high) = (LARGE + PAGE, last - (PAGE - 1));
            bench.map(&mut domain, low, TARGET, PAGE);
            bench.map(&mut domain, high, TARGET + PAGE, PAGE);
            bench.expect(SOURCES[0], &[run(low, TARGET, PAGE), run(high, TARGET + PAGE, PAGE)]);
            let whole = IovaRange::inclusive(Iova(first), Iova(last)).expect("a range");
            bench.unmap_range(&mut domain, whole);
            bench.expect(SOURCES[0], &[]);
        }
        bench.detach(SOURCES[0], &domain);
        domain.pages.destroy(&mut bench.tables);
    }
}

/// Invalidating one domain does not affect another's translations, for the lowest and the highest tag of the unit.
pub fn tags_keep_domains_apart<T: UnderTest>(subject: &T) {
    let mut bench = Bench::start(subject);
    let last = bench.capabilities().last_tag;
    assert!(last >= 15, "{last}");
    let (mut low, mut high) = (bench.domain(1), bench.domain(last));
    bench.map(&mut low, LARGE, TARGET, PAGE);
    bench.map(&mut high, LARGE, TARGET + PAGE, PAGE);
    bench.attach(SOURCES[0], &low);
    bench.attach(SOURCES[1], &high);
    bench.expect(SOURCES[0], &[run(LARGE, TARGET, PAGE)]);
    bench.expect(SOURCES[1], &[run(LARGE, TARGET + PAGE, PAGE)]);
    bench.unmap(&mut high, LARGE, PAGE);
    bench.expect(SOURCES[0], &[run(LARGE, TARGET, PAGE)]);
    bench.expect(SOURCES[1], &[]);
    bench.detach(SOURCES[1], &high);
    bench.detach(SOURCES[0], &low);
    bench.expect(SOURCES[0], &[]);
}

/// Each call costs one invalidation and one wait. New pages cost none where the unit shows them at once.
pub fn a_call_costs_one_invalidation<T: UnderTest>(subject: &T) {
    let mut bench = Bench::start(subject);
    let mut domain = bench.domain(1);
    bench.attach(SOURCES[0], &domain);
    let cost = |bench: &mut Bench<T>, act: &mut dyn FnMut(&mut Bench<T>)| {
        let before = subject.counts(&bench.machine, bench.number);
        act(bench);
        let after = subject.counts(&bench.machine, bench.number);
        (after.0 - before.0, after.1 - before.1, after.2 - before.2)
    };
    for length in [PAGE, 2 * PAGE, 33 * PAGE, LARGE, 3 * LARGE + PAGE] {
        let mapped = cost(&mut bench, &mut |bench| bench.map(&mut domain, LARGE, TARGET, length));
        if subject.shows_new_at_once() {
            assert_eq!(mapped, (0, 0, 0), "mapping {length:#x} bytes");
        }
        assert!(mapped.0 <= 1 && mapped.1 == 0 && mapped.2 <= 1, "{mapped:?}");
        let unmapped = cost(&mut bench, &mut |bench| bench.unmap(&mut domain, LARGE, length));
        assert_eq!(unmapped, (1, 0, 1), "unmapping {length:#x} bytes");
    }
    bench.machine.assert_clean();
}

/// A page that was found absent is found after it was mapped and published.
pub fn new_pages_show_after_publishing<T: UnderTest>(subject: &T) {
    let mut bench = Bench::start(subject);
    let mut domain = bench.domain(1);
    bench.attach(SOURCES[0], &domain);
    for (iova, length) in [(0, PAGE), (LARGE, 3 * PAGE), (HUGE, LARGE), (5 * HUGE, 2 * LARGE)] {
        bench.touch(SOURCES[0], iova, length);
        bench.map(&mut domain, iova, TARGET, length);
        let all = run(iova, TARGET, length);
        bench.expect(SOURCES[0], &[all]);
        bench.unmap(&mut domain, iova, length);
        bench.expect(SOURCES[0], &[]);
    }
}

/// Cutting a hole into a large page keeps the rest mapped and invalidates the hole.
pub fn a_large_page_can_be_cut<T: UnderTest>(subject: &T) {
    let mut bench = Bench::start(subject);
    let mut domain = bench.domain(1);
    bench.map(&mut domain, HUGE, TARGET, HUGE);
    bench.attach(SOURCES[0], &domain);
    bench.expect(SOURCES[0], &[run(HUGE, TARGET, HUGE)]);
    bench.machine.set_audit(false);
    let hole = HUGE + 7 * LARGE + 3 * PAGE;
    bench.unmap(&mut domain, hole, PAGE);
    let (below, above) = (hole - HUGE, hole + PAGE - HUGE);
    bench.expect(
        SOURCES[0],
        &[run(HUGE, TARGET, below), run(HUGE + above, TARGET + above, HUGE - above)],
    );
    bench.unmap(&mut domain, HUGE, HUGE);
    bench.expect(SOURCES[0], &[]);
}

/// Checks the test bed itself: invalidating a part of a large page leaves the whole page cached. So when the next
/// check finds it gone, the whole page was invalidated.
pub fn a_large_page_is_forgotten_only_as_a_whole<T: UnderTest>(subject: &T) {
    let mut bench = Bench::start(subject);
    if !bench.capabilities().page_sizes.contains(PageSizes::SIZE_2M) {
        return;
    }
    bench.machine.set_audit(false);
    let mut domain = bench.domain(1);
    bench.map(&mut domain, LARGE, TARGET, LARGE);
    bench.attach(SOURCES[0], &domain);
    bench.touch(SOURCES[0], LARGE, PAGE);
    let mut detached = Detached::new();
    let hole = range(LARGE + 5 * PAGE, PAGE);
    domain.pages.unmap(&mut bench.tables, hole, &mut detached).expect("unmap");
    assert_eq!(
        detached.around(hole),
        range(LARGE, LARGE),
        "what a unit may hold as one translation"
    );
    let selective = subject.invalidates_pages();
    bench.unit.invalidate_pages(&mut bench.tables, domain.tag, hole, true).expect("invalidate");
    let left = bench.probe(SOURCES[0], LARGE + 5 * PAGE, true);
    assert_eq!(left, selective.then_some(TARGET + 5 * PAGE), "a mask that covers one page");
    let whole = detached.around(hole);
    bench.unit.invalidate_pages(&mut bench.tables, domain.tag, whole, true).expect("invalidate");
    assert_eq!(bench.probe(SOURCES[0], LARGE + 5 * PAGE, true), None);
    PageTable::<<T::Unit as Unit>::Format>::release(&mut bench.tables, &mut detached);
}

/// Cuts a page, a run and an end from each larger size while the unit has the large page cached.
pub fn what_is_cut_from_a_large_page_is_forgotten<T: UnderTest>(subject: &T) {
    let mut bench = Bench::start(subject);
    let mut domain = bench.domain(1);
    bench.attach(SOURCES[0], &domain);
    for size in [LARGE, HUGE] {
        for (at, length) in [(5 * PAGE, PAGE), (0, 3 * PAGE), (size - PAGE, PAGE), (PAGE, size / 2)]
        {
            bench.map(&mut domain, HUGE, TARGET, size);
            for iova in [HUGE, HUGE + at, HUGE + size - PAGE] {
                assert_eq!(bench.probe(SOURCES[0], iova, true), Some(TARGET + (iova - HUGE)));
            }
            bench.unmap(&mut domain, HUGE + at, length);
            for iova in [HUGE + at, HUGE + at + length - PAGE] {
                assert_eq!(bench.probe(SOURCES[0], iova, true), None, "{at:#x} of {size:#x}");
            }
            bench.unmap(&mut domain, HUGE, size);
            bench.expect(SOURCES[0], &[]);
        }
    }
}

/// Unmaps, one by one in any order, pages that were mapped together. A format may have merged them into one page.
pub fn a_run_of_pages_can_be_cut<T: UnderTest>(subject: &T) {
    let mut bench = Bench::start(subject);
    let mut domain = bench.domain(1);
    bench.attach(SOURCES[0], &domain);
    for order in [[0, 1, 2, 3, 4, 5, 6, 7], [7, 3, 5, 1, 6, 2, 4, 0], [4, 5, 2, 3, 6, 7, 0, 1]] {
        bench.map(&mut domain, LARGE, TARGET, 8 * PAGE);
        let mut left: Vec<u64> = (0..8).collect();
        for page in order {
            bench.touch(SOURCES[0], LARGE, 8 * PAGE);
            bench.unmap(&mut domain, LARGE + page * PAGE, PAGE);
            left.retain(|other| *other != page);
            let mut runs = Vec::new();
            for page in &left {
                join(&mut runs, run(LARGE + page * PAGE, TARGET + page * PAGE, PAGE));
            }
            bench.expect(SOURCES[0], &runs);
        }
    }
    bench.machine.assert_clean();
}

/// Queues more invalidations than any ring holds, so that the ring wraps while it is in use.
pub fn rings_wrap<T: UnderTest>(subject: &T) {
    let mut bench = Bench::start(subject);
    let mut domain = bench.domain(1);
    bench.attach(SOURCES[0], &domain);
    for round in 0..1500_u64 {
        bench.machine.set_audit(round < 50);
        let iova = LARGE + (round % 7) * PAGE;
        bench.map(&mut domain, iova, TARGET + round * PAGE, PAGE);
        assert_eq!(bench.probe(SOURCES[0], iova, true), Some(TARGET + round * PAGE));
        bench.unmap(&mut domain, iova, PAGE);
        assert_eq!(bench.probe(SOURCES[0], iova, true), None, "round {round}");
    }
    bench.machine.assert_clean();
}

/// A change to a domain that two requesters share reaches both at once.
pub fn sharers_see_the_same<T: UnderTest>(subject: &T) {
    let mut bench = Bench::start(subject);
    let mut domain: Domain<T> = bench.domain(4);
    bench.attach(SOURCES[0], &domain);
    bench.attach(SOURCES[2], &domain);
    bench.map(&mut domain, LARGE, TARGET, 2 * PAGE);
    let both = [run(LARGE, TARGET, 2 * PAGE)];
    bench.expect(SOURCES[0], &both);
    bench.expect(SOURCES[2], &both);
    bench.unmap(&mut domain, LARGE, 2 * PAGE);
    bench.expect(SOURCES[0], &[]);
    bench.expect(SOURCES[2], &[]);
}
