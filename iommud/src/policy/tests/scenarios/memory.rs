//! Quotas (S30), batches, grants, and the memory of buffers.

use std::vec::Vec;

use iommu_protocol::ids::Slot;
use iommu_protocol::status::Refusal;
use iommu_protocol::wire::AllocateFlags;

use super::{PAGE, claim_event, kind, own_domain, two_units};
use crate::policy::tests::world::*;
use crate::policy::{Allocate, Batch, BatchRequest, Binding, Config, Event, MapList, UnitIndex};
use crate::topology::testing::{address, endpoint};

#[test]
fn s30_every_quota_is_a_refusal() {
    let mut config = Config::default();
    config.quotas.memory = 4 * PAGE;
    config.quotas.mappings = 3;
    config.quotas.sessions = 2;
    config.quotas.buffers = 2;
    config.quotas.domains = 1;
    config.quotas.regions = 4;
    let devices = [endpoint(0, 3, 0), endpoint(0, 4, 0), endpoint(0, 5, 0)];
    let mut bench = Bench::new(config, one_unit(), &devices);
    let session = bench.claim(1, address(0, 3, 0));
    assert_eq!(bench.refused(&claim_event(1, address(0, 4, 0), None)), Refusal::Quota);
    bench.claim_under(1, address(0, 4, 0), Some(session)).unwrap();
    let third = claim_event(1, address(0, 5, 0), Some(session));
    assert_eq!(bench.refused(&third), Refusal::Quota);
    assert_eq!(bench.registry.admit_buffer(session, 5 * PAGE), Err(Refusal::Quota));
    assert!(bench.registry.admit_buffer(session, 4 * PAGE).is_ok(), "all of it");
    let (slot, ..) = bench.buffer(session, 2);
    bench.buffer(session, 1);
    assert_eq!(bench.registry.admit_buffer(session, PAGE), Err(Refusal::Quota), "two buffers");
    let refused = bench.run(&Batch(session, &[map(slot, 0, 1), map(slot, 1, 1)])).unwrap_err();
    assert_eq!((refused.refusal, refused.item), (Refusal::Quota, 1));
    let left = bench.registry.session(session).unwrap().mappings_left;
    assert_eq!((bench.registry.memory_left(session), left), (Some(PAGE), 1));
    bench.batch(session, &[map(slot, 0, 1)]).unwrap();
    assert_eq!(bench.refused(&Batch(session, &[map(slot, 0, 1)])), Refusal::Quota);
    // Other clients have their own quota.
    bench.claim(2, address(0, 5, 0));
}

#[test]
fn s30_each_page_of_a_list_counts() {
    let mut config = Config::default();
    config.quotas.mappings = 6;
    let mut bench = Bench::new(config, one_unit(), &[endpoint(0, 3, 0)]);
    let session = bench.claim(1, address(0, 3, 0));
    let (slot, _, buffer) = bench.buffer(session, 4);
    let left = |bench: &Bench| bench.registry.session(session).unwrap().mappings_left;
    let map = |pages: &[u32]| list(slot, pages, 0);
    assert_eq!(left(&bench), 5);
    assert_eq!(bench.refused(&MapList(session, &map(&[0, 1, 2, 3, 0, 1]))), Refusal::Quota);
    let at = bench.run(&MapList(session, &map(&[3, 0, 2]))).unwrap();
    assert_eq!(left(&bench), 2);
    assert_eq!(bench.refused(&MapList(session, &map(&[0, 1, 2]))), Refusal::Quota);
    bench.batch(session, &[unmap(at.0, 3)]).unwrap();
    assert_eq!(left(&bench), 5);
    let outside = bench.run(&MapList(session, &map(&[0, 1, 4, 9]))).unwrap_err();
    assert_eq!((outside.refusal, outside.item), (Refusal::Range, 2));
    bench.run(&MapList(session, &map(&[1, 1]))).unwrap();
    // Releasing the slot of the buffer ends them.
    bench.run(&Event::Release(session, slot)).unwrap();
    assert_eq!(left(&bench), 6);
    assert_eq!(bench.world.released, [buffer]);
}

/// Memory in two pieces: each page is mapped to its place in the buffer.
#[test]
fn a_list_follows_the_pieces_of_a_buffer() {
    let mut bench = Bench::compat(&[endpoint(0, 3, 0)]);
    let session = bench.claim(1, address(0, 3, 0));
    let pieces = [phys(OWN + 8 * PAGE, 2 * PAGE), phys(OWN, 3 * PAGE)];
    let event = bench.allocation(session, &pieces, AllocateFlags::UNMAPPED);
    let (slot, ..) = bench.allocated(&event).unwrap();
    let at = 4 << 30;
    bench.run(&MapList(session, &list(slot, &[4, 0, 1, 2], at))).unwrap();
    let pages = [2, 8, 9, 0].map(|page| OWN + page * PAGE);
    let wanted: Vec<_> =
        (0..).zip(pages).map(|(n, phys)| (at + n * PAGE, at + n * PAGE + PAGE - 1, phys)).collect();
    let Binding::Domain(domain) = own_domain(&bench, session) else { panic!() };
    assert_eq!(bench.world.mapped(domain), wanted);
    assert_eq!(bench.refused(&Batch(session, &[unmap(at, 1)])), Refusal::NotMapped);
    bench.batch(session, &[unmap(at, 4)]).unwrap();
    assert!(bench.world.mapped(domain).is_empty());
}

#[test]
fn s30_page_tables_are_limited_too() {
    let mut config = Config::default();
    config.quotas.regions = 8;
    let mut bench = Bench::new(config, one_unit(), &[endpoint(0, 3, 0)]);
    let session = bench.claim(1, address(0, 3, 0));
    let (slot, ..) = bench.buffer(session, 1);
    let mut made = 0;
    while bench.batch(session, &[fixed(slot, 0, 1, (made + 5) << 30)]).is_ok() {
        made += 1;
        assert!(made < 8);
    }
    let next = fixed(slot, 0, 1, (made + 5) << 30);
    assert_eq!(bench.refused(&Batch(session, &[next])), Refusal::Quota);
    assert!(made > 1);
}

/// The tables of policy stay linked, so that memory that comes back needs no room and no new table.
#[test]
fn memory_comes_back_to_compat_into_the_tables_that_stayed() {
    let mut bench = Bench::compat(&[endpoint(0, 3, 0)]);
    let mut kinds = |event| {
        let from = bench.world.steps.len();
        bench.run(&event).unwrap();
        bench.world.steps[from..].iter().map(kind).collect::<Vec<_>>()
    };
    for part in [4 * MIB, 5 * MIB, 6 * MIB] {
        let taken = kinds(Event::MemoryTaken(phys(part, MIB)));
        assert_eq!(taken, ["Unmap", "Invalidate", "ReleaseTables"]);
    }
    assert_eq!(kinds(Event::MemoryReturned(phys(6 * MIB, MIB))), ["Map", "Publish"], "none fits");
    let back = kinds(Event::MemoryReturned(phys(4 * MIB, 2 * MIB)));
    assert_eq!(back, ["Map", "Publish"]);
}

/// A failed unit gets no invalidations: memory comes back into the existing table.
#[test]
fn no_room_is_made_where_a_unit_that_failed_may_still_walk() {
    let mut bench =
        Bench::new(Config::default(), two_units(), &[endpoint(0, 3, 0), endpoint(0, 4, 0)]);
    for part in [4 * MIB, 5 * MIB] {
        bench.run(&Event::MemoryTaken(phys(part, MIB))).unwrap();
    }
    bench.run(&Event::UnitFailed(UnitIndex(0))).unwrap();
    let from = bench.world.steps.len();
    bench.run(&Event::MemoryReturned(phys(4 * MIB, 2 * MIB))).unwrap();
    let kinds: Vec<_> = bench.world.steps[from..].iter().map(kind).collect();
    assert_eq!(kinds, ["Map", "Publish"]);
}

/// Every plan is aborted first, and the state compared, the order of mappings included.
#[test]
fn a_batch_ends_mappings_in_any_order_also_those_it_makes() {
    let mut bench = Bench::compat(&[endpoint(0, 4, 0)]);
    let session = bench.claim(1, address(0, 4, 0));
    bench.run(&Event::Attach(session)).unwrap();
    let (slot, ..) = bench.buffer(session, 8);
    let at = |page: u64| (4 << 30) + page * PAGE;
    let fixed = |page| fixed(slot, page, 1, at(page));
    let left = |bench: &Bench| bench.registry.session(session).unwrap().mappings_left;
    let before = left(&bench);
    bench.batch(session, &[fixed(0), fixed(1), fixed(2), fixed(3)]).unwrap();
    let end = |page| unmap(at(page), 1);
    bench.batch(session, &[end(2), fixed(5), end(1), end(5), fixed(6), end(3)]).unwrap();
    assert_eq!(left(&bench), before - 2);
    bench.batch(session, &[end(0), end(6)]).unwrap();
    let again = bench.run(&Batch(session, &[end(0)])).unwrap_err();
    assert_eq!((again.refusal, left(&bench)), (Refusal::NotMapped, before));
    let half = bench.run(&Batch(session, &[fixed(0), end(0), end(1)])).unwrap_err();
    assert_eq!((half.refusal, half.item, left(&bench)), (Refusal::NotMapped, 2, before));
}

#[test]
fn a_batch_is_all_or_nothing_and_names_the_item() {
    let mut bench = Bench::compat(&[endpoint(0, 4, 0)]);
    let session = bench.claim(1, address(0, 4, 0));
    bench.run(&Event::Attach(session)).unwrap();
    let (slot, iova, _) = bench.buffer(session, 8);
    let bad = |bench: &mut Bench, items: Vec<BatchRequest>| {
        let refused = bench.run(&Batch(session, &items)).unwrap_err();
        (refused.refusal, refused.item)
    };
    let ok = map(slot, 0, 1);
    assert_eq!(bad(&mut bench, vec![ok, ok, map(slot, 0, 9)]), (Refusal::Range, 2));
    assert_eq!(bad(&mut bench, vec![ok, map(Slot(3), 0, 1)]), (Refusal::BadHandle, 1));
    assert_eq!(bad(&mut bench, vec![unmap(iova, 8), unmap(iova, 8)]), (Refusal::NotMapped, 1));
    assert_eq!(bad(&mut bench, vec![unmap(iova, 4)]), (Refusal::NotMapped, 0));
    assert_eq!(bad(&mut bench, vec![unmap(iova, 0)]), (Refusal::Range, 0));
    let over = vec![unmap(iova, 8), fixed(slot, 0, 1, iova)];
    assert_eq!(bad(&mut bench, over), (Refusal::Mapped, 1), "free only when the batch is done");
    let at = 4 << 30;
    let twice = vec![fixed(slot, 0, 2, at), fixed(slot, 0, 1, at + PAGE)];
    assert_eq!(bad(&mut bench, twice), (Refusal::Mapped, 1));
    assert_eq!(bad(&mut bench, vec![fixed(slot, 0, 1, at + 1)]), (Refusal::Alignment, 0));
    assert_eq!(bad(&mut bench, vec![fixed(slot, 0, 1, 0)]), (Refusal::Range, 0));
    assert_eq!(bad(&mut bench, vec![fixed(slot, 0, 1, 1 << 39)]), (Refusal::Range, 0));
    assert_eq!(bad(&mut bench, vec![fixed(slot, 0, 1, u64::MAX - 4095)]), (Refusal::Range, 0));
    let mut asked = request(slot, 0, 1);
    asked.access = iommu_protocol::wire::Access::empty();
    assert_eq!(bad(&mut bench, vec![BatchRequest::Map(asked)]), (Refusal::BadAccess, 0));
    asked = request(slot, 0, 1);
    asked.offset = 1;
    assert_eq!(bad(&mut bench, vec![BatchRequest::Map(asked)]), (Refusal::Alignment, 0));
    asked.offset = !(PAGE - 1);
    assert_eq!(bad(&mut bench, vec![BatchRequest::Map(asked)]), (Refusal::Range, 0));
    let from = bench.world.steps.len();
    let made = bench.batch(session, &[ok, unmap(iova, 8), map(slot, 4, 4)]).unwrap();
    assert_eq!(made[1], 0);
    let kinds: Vec<_> = bench.world.steps[from..].iter().map(kind).collect();
    assert_eq!(kinds, ["Map", "Unmap", "Map", "Invalidate", "Publish", "ReleaseTables"]);
}

#[test]
fn grants_are_within_the_buffers_own_addresses() {
    let mut bench = Bench::compat(&[endpoint(0, 4, 0)]);
    let session = bench.claim(1, address(0, 4, 0));
    bench.run(&Event::Attach(session)).unwrap();
    let (slot, iova, _) = bench.allocate(session, 16 * PAGE, AllocateFlags::UNMAPPED).unwrap();
    let Binding::Domain(own) = own_domain(&bench, session) else { panic!() };
    assert_eq!(bench.world.mapped(own), []);
    let grant = |page, pages| BatchRequest::Grant(request(slot, page, pages));
    let revoke = |page: u64, pages: u64| BatchRequest::Revoke {
        slot,
        offset: page * PAGE,
        length: pages * PAGE,
    };
    assert_eq!(bench.batch(session, &[grant(4, 2)]).unwrap(), [iova + 4 * PAGE]);
    for overlapping in [grant(4, 2), grant(5, 1), grant(0, 16)] {
        let refused = bench.refused(&Batch(session, &[overlapping]));
        assert_eq!(refused, Refusal::Mapped);
    }
    let twice = vec![grant(0, 1), grant(0, 1)];
    assert_eq!(bench.refused(&Batch(session, &twice)), Refusal::Mapped);
    let as_mapping = Batch(session, &[unmap(iova + 4 * PAGE, 2)]);
    assert_eq!(bench.refused(&as_mapping), Refusal::NotMapped, "a grant is revoked");
    assert_eq!(bench.refused(&Batch(session, &[revoke(4, 1)])), Refusal::NotMapped);
    let elsewhere = fixed(slot, 0, 1, iova);
    assert_eq!(bench.refused(&Batch(session, &[elsewhere])), Refusal::Mapped);
    bench.batch(session, &[revoke(4, 2)]).unwrap();
    bench.batch(session, &[grant(0, 16)]).unwrap();
    bench.run(&Event::Release(session, slot)).unwrap();
    assert_eq!(bench.world.mapped(own), []);
    let (mapped, ..) = bench.buffer(session, 1);
    let no_grants = BatchRequest::Grant(request(mapped, 0, 1));
    assert_eq!(bench.refused(&Batch(session, &[no_grants])), Refusal::BadOperation);
}

#[test]
fn scattered_memory_is_mapped_piece_by_piece_at_consecutive_addresses() {
    let mut bench = Bench::compat(&[endpoint(0, 4, 0)]);
    let session = bench.claim(1, address(0, 4, 0));
    bench.run(&Event::Attach(session)).unwrap();
    let segments = [phys(OWN + 8 * PAGE, 2 * PAGE), phys(OWN, PAGE), phys(OWN + 4 * PAGE, PAGE)];
    let event = bench.allocation(session, &segments, AllocateFlags::empty());
    let (slot, iova, _) = bench.allocated(&event).unwrap();
    let Binding::Domain(own) = own_domain(&bench, session) else { panic!() };
    let ends = |at: u64, pages: u64| (iova + at * PAGE, iova + (at + pages) * PAGE - 1);
    let expected: Vec<_> = [(0, 2, 8), (2, 1, 0), (3, 1, 4)]
        .map(|(at, pages, memory)| (ends(at, pages).0, ends(at, pages).1, OWN + memory * PAGE))
        .into();
    assert_eq!(bench.world.mapped(own), expected);
    let part = bench.batch(session, &[map(slot, 1, 2)]).unwrap()[0];
    bench.batch(session, &[unmap(part, 2), unmap(iova, 4)]).unwrap();
    assert_eq!(bench.world.mapped(own), []);
}

#[test]
fn memory_of_the_system_leaves_policy_before_it_is_used_and_returns_after() {
    let mut bench = Bench::compat(&[endpoint(0, 3, 0), endpoint(0, 4, 0)]);
    let Binding::Domain(compat) = bench.world.entry(0, address(0, 3, 0)) else { panic!() };
    let all = bench.world.mapped(compat);
    let session = bench.claim(1, address(0, 4, 0));
    bench.run(&Event::Attach(session)).unwrap();
    let from = bench.world.steps.len();
    let event = bench.allocation(session, &[phys(MIB, 4 * PAGE)], AllocateFlags::empty());
    let (slot, ..) = bench.allocated(&event).unwrap();
    let kinds: Vec<_> = bench.world.steps[from..].iter().map(kind).collect();
    assert_eq!(kinds, ["Unmap", "Invalidate", "Map", "Publish", "ReleaseTables"]);
    let covers = |bench: &Bench| {
        bench.world.mapped(compat).iter().any(|(first, last, _)| *first <= MIB && MIB <= *last)
    };
    assert!(!covers(&bench));
    assert_eq!(
        bench.refused(&Event::MemoryReturned(phys(MIB, PAGE))),
        Refusal::Busy,
        "a buffer's memory is not given to policy"
    );
    let from = bench.world.steps.len();
    bench.run(&Event::Release(session, slot)).unwrap();
    let kinds: Vec<_> = bench.world.steps[from..].iter().map(kind).collect();
    assert_eq!(kinds, ["Unmap", "Invalidate", "Map", "Publish", "ReleaseTables", "ReleaseBuffer"]);
    assert!(covers(&bench));
    bench.run(&Event::MemoryTaken(phys(2 * MIB, MIB))).unwrap();
    bench.run(&Event::MemoryTaken(phys(2 * MIB, MIB))).unwrap();
    assert!(!bench.world.reachable(2 * MIB, 3 * MIB - 1));
    bench.run(&Event::MemoryReturned(phys(2 * MIB, MIB))).unwrap();
    assert!(bench.world.reachable(2 * MIB, 2 * MIB));
    bench.run(&Event::MemoryReturned(phys(OWN, MIB))).unwrap();
    let total = |ranges: &[(u64, u64, u64)]| -> u64 { ranges.iter().map(|r| r.1 - r.0 + 1).sum() };
    assert_eq!(total(&bench.world.mapped(compat)), total(&all), "never the server's own");
}

#[test]
fn memory_that_a_failed_unit_may_reach_is_not_taken() {
    let mut bench =
        Bench::new(Config::default(), two_units(), &[endpoint(0, 3, 0), endpoint(0, 4, 0)]);
    let session = bench.claim(1, address(0, 4, 0));
    bench.run(&Event::UnitFailed(UnitIndex(0))).unwrap();
    let event = bench.allocation(session, &[phys(MIB, PAGE)], AllocateFlags::empty());
    assert_eq!(bench.refused(&event), Refusal::UnitFailed);
    bench.buffer(session, 1);
}

#[test]
fn allocations_are_checked() {
    let mut bench = Bench::compat(&[endpoint(0, 4, 0)]);
    let session = bench.claim(1, address(0, 4, 0));
    assert_eq!(bench.registry.admit_buffer(session, 0), Err(Refusal::Range));
    assert_eq!(bench.registry.admit_buffer(session, 100), Err(Refusal::Alignment));
    assert_eq!(bench.registry.admit_buffer(session, !4095), Err(Refusal::Quota));
    assert!(bench.registry.admit_buffer(session, PAGE).unwrap().confined);
    let change = |bench: &mut Bench, edit: &dyn Fn(&mut crate::policy::AllocateRequest)| {
        let Allocate(session, mut request) =
            bench.allocation(session, &[phys(OWN, 2 * PAGE)], AllocateFlags::empty());
        edit(&mut request);
        bench.refused(&Allocate(session, request))
    };
    assert_eq!(change(&mut bench, &|r| r.alignment = 3 * PAGE), Refusal::Alignment);
    assert_eq!(change(&mut bench, &|r| r.alignment = 512), Refusal::Alignment);
    assert_eq!(change(&mut bench, &|r| r.boundary = PAGE), Refusal::Range);
    assert_eq!(change(&mut bench, &|r| r.boundary = 3 * PAGE), Refusal::Range);
    assert_eq!(change(&mut bench, &|r| r.length = PAGE), Refusal::Range);
    assert_eq!(change(&mut bench, &|r| r.buffer.0 += 1), Refusal::BadHandle);
    assert_eq!(change(&mut bench, &|r| r.segments.push(phys(OWN, PAGE))), Refusal::Busy);
    assert_eq!(change(&mut bench, &|r| r.alignment = 1 << 40), Refusal::NoSpace);
    let high = phys(1 << 46, 2 * PAGE);
    assert_eq!(change(&mut bench, &|r| r.segments = vec![high]), Refusal::NoMemory);
    let empty = iommu_protocol::wire::Access::empty();
    assert_eq!(change(&mut bench, &|r| r.access = empty), Refusal::BadAccess);
    bench.buffer(session, 2);
    assert_eq!(change(&mut bench, &|_| ()), Refusal::Busy, "another buffer's memory");
}

/// The memory of ended mappings is given back while others stay, and those do not change.
#[test]
fn mappings_that_stay_do_not_keep_the_memory_of_those_that_went() {
    const EACH: u64 = 1000;
    let mut bench = Bench::compat(&[endpoint(0, 3, 0)]);
    let session = bench.claim(1, address(0, 3, 0));
    let (first, own, _) = bench.buffer(session, 4);
    let slots = [first, bench.buffer(session, 4).0];
    let at = |buffer: u64, page: u64| (4 << 30) + (buffer * EACH + page) * 2 * PAGE;
    for (buffer, slot) in (0..).zip(slots) {
        for part in 0..4 {
            let pages = part * 250..(part + 1) * 250;
            let maps = pages.map(|page| fixed(slot, page % 4, 1, at(buffer, page)));
            bench.batch(session, &maps.collect::<Vec<_>>()).unwrap();
        }
    }
    let capacities = |bench: &Bench| {
        let domains = bench.registry.state.domains.iter();
        domains.map(|(_, domain)| domain.mappings.capacity()).max().unwrap()
    };
    assert!(capacities(&bench) >= 2000);
    // Pages 0, 100, 200 and so on of each buffer stay.
    for buffer in 0..2 {
        for part in 0..4 {
            let pages = part * 250..(part + 1) * 250;
            let gone = pages.filter(|page| page % 100 != 0).map(|page| unmap(at(buffer, page), 1));
            bench.batch(session, &gone.collect::<Vec<_>>()).unwrap();
        }
    }
    assert!(capacities(&bench) <= 128, "{} records", capacities(&bench));
    let gone = bench.run(&Batch(session, &[unmap(at(0, 1), 1)])).unwrap_err();
    assert_eq!(gone.refusal, Refusal::NotMapped);
    for page in [900, 0, 500] {
        bench.batch(session, &[unmap(at(1, page), 1)]).unwrap();
        bench.batch(session, &[fixed(slots[1], 0, 1, at(1, page))]).unwrap();
    }
    let left = |bench: &Bench| bench.registry.session(session).unwrap().mappings_left;
    let before = left(&bench);
    bench.run(&Event::Release(session, slots[1])).unwrap();
    assert_eq!(left(&bench) - before, 11, "10 pages and the buffer's own mapping");
    let rest = (0..10).map(|hundred| unmap(at(0, 100 * hundred), 1)).chain([unmap(own, 4)]);
    bench.batch(session, &rest.collect::<Vec<_>>()).unwrap();
    assert_eq!(capacities(&bench), 0);
    bench.check();
}
