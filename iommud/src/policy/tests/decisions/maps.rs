//! Maps of lists and parts of buffers, with a unit and without.

use std::vec::Vec;

use iommu_protocol::ids::Slot;
use iommu_protocol::status::Refusal;
use iommu_protocol::wire::{Access, AllocateFlags};

use crate::addr::PhysRange;
use crate::policy::tests::scenarios::{PAGE, own_domain};
use crate::policy::tests::world::*;
use crate::policy::{Batch, BatchRequest, Binding, Config, MapList, SessionId};
use crate::topology::firmware::Firmware;
use crate::topology::testing::{address, endpoint};

fn machine(config: Config, firmware: Firmware) -> (Bench, SessionId) {
    let mut bench = Bench::new(config, firmware, &[endpoint(0, 3, 0)]);
    let session = bench.claim(1, address(0, 3, 0));
    (bench, session)
}

fn unmapped(bench: &mut Bench, session: SessionId, segments: &[PhysRange]) -> (Slot, u64) {
    let event = bench.allocation(session, segments, AllocateFlags::UNMAPPED);
    let (slot, iova, _) = bench.allocated(&event).unwrap();
    (slot, iova)
}

/// What is mapped in the domain of a session: first byte and memory of each range.
fn mapped(bench: &Bench, session: SessionId) -> Vec<(u64, u64)> {
    let Binding::Domain(own) = own_domain(bench, session) else { panic!("no domain") };
    bench.world.mapped(own).iter().map(|(first, _, phys)| (*first, *phys)).collect()
}

/// An offset may lead out of the buffer's own addresses, to a mapping that is no grant of it.
#[test]
fn a_grant_of_another_buffer_or_a_map_is_not_revoked() {
    let (mut bench, session) = machine(Config::default(), one_unit());
    let mut both = [phys(OWN, 4 * PAGE), phys(OWN + MIB, 4 * PAGE)]
        .map(|memory| unmapped(&mut bench, session, &[memory]));
    both.sort_by_key(|(_, iova)| *iova);
    let [(low, from), (high, to)] = both;
    let far = 64 << 30;
    let grant = BatchRequest::Grant(request(high, 1, 1));
    bench.batch(session, &[grant, fixed(low, 0, 1, far)]).unwrap();
    let revoke = |slot, offset| BatchRequest::Revoke { slot, offset, length: PAGE };
    let before = mapped(&bench, session);
    for offset in [to + PAGE - from, far - from, 0] {
        let refused = bench.refused(&Batch(session, &[revoke(low, offset)]));
        assert_eq!(refused, Refusal::NotMapped, "{offset:#x}");
    }
    assert_eq!(mapped(&bench, session), before);
    bench.batch(session, &[revoke(high, PAGE), unmap(far, 1)]).unwrap();
    assert_eq!(mapped(&bench, session), []);
}

#[test]
fn map_list_needs_an_access_and_pages_of_the_buffer() {
    let (mut bench, session) = machine(Config::default(), one_unit());
    let (slot, _) = unmapped(&mut bench, session, &[phys(OWN, 4 * PAGE)]);
    let mut tried = |pages: &[u32], access| {
        let mut list = list(slot, pages, 0);
        list.access = Access::from_bits_retain(access);
        let refused = bench.run(&MapList(session, &list)).err();
        refused.map(|refused| (refused.refusal, refused.item))
    };
    for access in [0, 4, 5] {
        assert_eq!(tried(&[0], access), Some((Refusal::BadAccess, 0)), "{access}");
    }
    for (pages, item) in [(&[][..], 0), (&[4], 0), (&[0, 1, 4], 2), (&[3, u32::MAX, 9], 1)] {
        assert_eq!(tried(pages, 3), Some((Refusal::Range, item)), "{pages:?}");
    }
    for access in [1, 2, 3] {
        assert_eq!(tried(&[3, 0], access), None);
    }
}

/// As many pages as the client may still map, and not one more.
#[test]
fn map_list_may_use_up_the_quota() {
    let mut config = Config::default();
    config.quotas.mappings = 6;
    let (mut bench, session) = machine(config, one_unit());
    let (slot, _) = unmapped(&mut bench, session, &[phys(OWN, 4 * PAGE)]);
    let many = |pages| MapList(session, pages);
    let seven = list(slot, &[0, 1, 2, 3, 0, 1, 2], 0);
    assert_eq!(bench.refused(&many(&seven)), Refusal::Quota);
    let six = list(slot, &[0, 1, 2, 3, 0, 1], 0);
    let iova = bench.run(&many(&six)).unwrap().0;
    assert_eq!(bench.registry.session(session).unwrap().mappings_left, 0);
    assert_eq!(bench.refused(&many(&list(slot, &[0], 0))), Refusal::Quota);
    bench.batch(session, &[unmap(iova, 6)]).unwrap();
    assert_eq!(bench.registry.session(session).unwrap().mappings_left, 6);
}

#[test]
fn map_list_finds_each_page_in_its_segment() {
    let page = |number: u64| OWN + number * PAGE;
    let at = 4 << 30;
    for (segments, pages, expected) in [
        (&[(0, 4)][..], &[2, 0, 3][..], &[2, 0, 3][..]),
        (&[(16, 1), (8, 1), (0, 1)], &[1, 2], &[8, 0]),
        (&[(16, 1), (8, 1), (0, 1)], &[2, 1, 0, 1, 2], &[0, 8, 16, 8, 0]),
        (&[(16, 2), (8, 3), (0, 1)], &[3, 4, 5, 1, 0, 2, 5], &[9, 10, 0, 17, 16, 8, 0]),
    ] {
        let (mut bench, session) = machine(Config::default(), one_unit());
        let memory: Vec<_> =
            segments.iter().map(|(first, pages)| phys(page(*first), pages * PAGE)).collect();
        let (slot, _) = unmapped(&mut bench, session, &memory);
        bench.run(&MapList(session, &list(slot, pages, at))).unwrap();
        let expected: Vec<_> =
            (0..).zip(expected).map(|(n, number)| (at + n * PAGE, page(*number))).collect();
        assert_eq!(mapped(&bench, session), expected, "{segments:?}, {pages:?}");
    }
}

/// Without a unit a list is one use of a range of the buffer, at its own address.
#[test]
fn map_list_without_a_unit_is_one_range() {
    let (mut bench, session) = machine(Config::default(), Firmware::default());
    let (slot, iova) = unmapped(&mut bench, session, &[phys(OWN, 4 * PAGE)]);
    assert_eq!(iova, OWN);
    let mut tried = |pages: &[u32], iova| {
        let list = list(slot, pages, iova);
        bench.run(&MapList(session, &list)).map_err(|refused| refused.refusal)
    };
    for (pages, iova, refusal) in [
        (&[][..], 0, Refusal::Range),
        (&[1, 3], 0, Refusal::Unsupported),
        (&[2, 1], 0, Refusal::Unsupported),
        (&[1, 1], 0, Refusal::Unsupported),
        (&[3, 4], 0, Refusal::Range),
        (&[4], 0, Refusal::Range),
        (&[1, 2], OWN, Refusal::Unsupported),
    ] {
        assert_eq!(tried(pages, iova), Err(refusal), "{pages:?} at {iova:#x}");
    }
    for (pages, iova, expected) in
        [(&[1, 2][..], 0, 1), (&[1, 2], OWN + PAGE, 1), (&[0], 0, 0), (&[3], 0, 3)]
    {
        let found = tried(pages, iova).map(|iova| iova.0);
        assert_eq!(found, Ok(OWN + expected * PAGE), "{pages:?}");
    }
    assert_eq!(bench.registry.counts().mappings, 4);
    let ends =
        [unmap(OWN + PAGE, 2), unmap(OWN, 1), unmap(OWN + PAGE, 2), unmap(OWN + 3 * PAGE, 1)];
    bench.batch(session, &ends).unwrap();
    assert_eq!(bench.registry.counts().mappings, 0);
}
