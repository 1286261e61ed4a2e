//! Groups: their owners, and their members: S18 to S21, S23, S25.

use std::vec::Vec;

use iommu_protocol::ids::RequesterId;
use iommu_protocol::status::Refusal;

use super::{PAGE, claim_event, own_domain, pair, partition, permutations, strict, tree};
use crate::policy::tests::world::*;
use crate::policy::{Batch, Binding, Config, Event, Hold, Import, MapList, UnitIndex};
use crate::topology::pci::{Buses, FunctionKind};
use crate::topology::testing::{address, bridge, endpoint, function, with_acs};

#[test]
fn s18_members_share_one_domain() {
    let [d1, d2] = pair();
    let mut bench = Bench::compat(&[d1, d2]);
    let first = bench.claim(1, d1.address);
    let second = bench.claim_under(1, d2.address, Some(first)).unwrap();
    assert_eq!(own_domain(&bench, first), own_domain(&bench, second));
    bench.run(&Event::Attach(first)).unwrap();
    assert_eq!(bench.world.entry(0, d2.address), Binding::Blocked, "never left to policy");
    bench.run(&Event::Attach(second)).unwrap();
    assert_eq!(bench.world.entry(0, d2.address), bench.world.entry(0, d1.address));
    // Another owner's session on another device cannot bring a member into its own domain.
    let mut bench = Bench::compat(&[d1, d2, endpoint(0, 5, 0)]);
    bench.claim(1, d1.address);
    let other = bench.claim(2, address(0, 5, 0));
    assert_eq!(bench.refused(&claim_event(2, d2.address, Some(other))), Refusal::NotOwner);
    assert_eq!(bench.refused(&claim_event(1, d2.address, Some(other))), Refusal::BadHandle);
}

#[test]
fn s19_a_member_of_a_claimed_group_is_not_anybody_elses() {
    let [d1, d2] = pair();
    let mut bench = Bench::compat(&[d1, d2]);
    bench.claim(1, d1.address);
    assert_eq!(bench.refused(&claim_event(2, d2.address, None)), Refusal::NotOwner);
    assert_eq!(bench.refused(&claim_event(1, d2.address, None)), Refusal::NotOwner, "by session");
}

#[test]
fn s20_one_owner_claims_both() {
    let [d1, d2] = pair();
    let mut bench = Bench::compat(&[d1, d2]);
    let first = bench.claim(1, d1.address);
    let second = bench.claim_under(1, d2.address, Some(first)).unwrap();
    assert_eq!(bench.refused(&claim_event(1, d2.address, Some(first))), Refusal::Busy);
    // The first session may end; the second keeps the group.
    bench.run(&Event::Close(first)).unwrap();
    assert_eq!(bench.refused(&claim_event(2, d1.address, None)), Refusal::NotOwner);
    bench.claim_under(1, d1.address, Some(second)).unwrap();
}

/// Two sessions of one owner have one domain, and each its own mappings in it.
#[test]
fn s21_a_mapping_is_ended_by_the_session_that_made_it() {
    let [d1, d2] = pair();
    let mut bench = Bench::compat(&[d1, d2]);
    let first = bench.claim(1, d1.address);
    let second = bench.claim_under(1, d2.address, Some(first)).unwrap();
    bench.run(&Event::Attach(first)).unwrap();
    bench.run(&Event::Attach(second)).unwrap();
    let (slot, iova, _) = bench.buffer(second, 2);
    let at = 4 << 30;
    bench.batch(second, &[fixed(slot, 0, 1, at)]).unwrap();
    bench.run(&MapList(second, &list(slot, &[1, 0], at + 16 * PAGE))).unwrap();
    let (own, mine, _) = bench.buffer(first, 1);
    let Binding::Domain(domain) = own_domain(&bench, first) else { panic!("no domain") };
    let before = bench.world.mapped(domain);
    let others = [(iova, 2), (at, 1), (at + 16 * PAGE, 2)];
    for (iova, pages) in others {
        let theirs = unmap(iova, pages);
        assert_eq!(bench.refused(&Batch(first, &[theirs])), Refusal::NotMapped);
        let both = vec![map(own, 0, 1), theirs];
        assert_eq!(bench.refused(&Batch(first, &both)), Refusal::NotMapped);
    }
    assert_eq!(bench.refused(&Batch(second, &[unmap(mine, 1)])), Refusal::NotMapped);
    assert_eq!(bench.world.mapped(domain), before);
    for (iova, pages) in others {
        bench.batch(second, &[unmap(iova, pages)]).unwrap();
    }
}

#[test]
fn s21_what_belongs_to_another_session_is_not_there() {
    let mut bench = Bench::compat(&[endpoint(0, 3, 0), endpoint(0, 4, 0)]);
    let mine = bench.claim(1, address(0, 3, 0));
    let other = bench.claim(2, address(0, 4, 0));
    let (slot, iova, buffer) = bench.buffer(mine, 1);
    assert_eq!(bench.refused(&Event::Release(other, slot)), Refusal::BadHandle);
    assert_eq!(bench.refused(&Batch(other, &[map(slot, 0, 1)])), Refusal::BadHandle);
    assert_eq!(bench.refused(&Batch(other, &[unmap(iova, 1)])), Refusal::NotMapped);
    assert_eq!(bench.refused(&Hold(other, slot)), Refusal::BadHandle);
    assert_eq!(bench.refused(&Import(other, buffer)), Refusal::Permission);
}

#[test]
fn s23_the_partition_does_not_depend_on_the_order_with_units_down_or_up() {
    let functions = tree();
    let expected = partition(&Bench::compat(&functions));
    assert_eq!(expected.len(), 3);
    for (count, order) in permutations(functions.len()).into_iter().enumerate() {
        let ordered: Vec<_> = order.iter().map(|at| functions[*at]).collect();
        let mut cold = Bench::cold(Config::default(), one_unit());
        cold.thorough = false;
        for function in &ordered {
            cold.run(&Event::FunctionAdded(*function)).unwrap();
        }
        cold.run(&ready(0)).unwrap();
        assert_eq!(partition(&cold), expected, "{order:?}");
        // The first part before the unit is up, the rest by hot-plug.
        let (before, after) = ordered.split_at(count % 6);
        let mut hot = Bench::cold(Config::default(), one_unit());
        hot.thorough = count % 16 == 0;
        for function in before {
            hot.run(&Event::FunctionAdded(*function)).unwrap();
        }
        hot.run(&ready(0)).unwrap();
        for function in after {
            hot.run(&Event::FunctionAdded(*function)).unwrap();
        }
        assert_eq!(partition(&hot), expected, "{order:?}");
        assert_eq!(hot.world.units, cold.world.units, "the same entries: {order:?}");
    }
}

#[test]
fn s23_a_bridge_does_not_merge_a_claimed_group() {
    let functions = tree();
    let conventional = functions[3];
    let mut bench = Bench::compat(&[functions[0], functions[2], conventional]);
    let session = bench.claim(1, conventional.address);
    bench.run(&Event::Attach(session)).unwrap();
    assert_eq!(bench.refused(&Event::FunctionAdded(functions[1])), Refusal::Busy);
    bench.run(&Event::Close(session)).unwrap();
    bench.run(&Event::FunctionAdded(functions[1])).unwrap();
    assert_eq!(bench.registry.groups().count(), 2);
}

#[test]
fn s25_the_domain_stays_until_the_last_member_is_detached() {
    let [d1, d2] = pair();
    let mut bench = Bench::compat(&[d1, d2]);
    let compat = bench.world.entry(0, d1.address);
    let first = bench.claim(1, d1.address);
    let second = bench.claim_under(1, d2.address, Some(first)).unwrap();
    bench.run(&Event::Attach(first)).unwrap();
    bench.run(&Event::Attach(second)).unwrap();
    bench.run(&Event::Detach(first)).unwrap();
    assert_eq!(bench.world.entry(0, d1.address), Binding::Blocked);
    assert_eq!(bench.world.entry(0, d2.address), own_domain(&bench, second));
    bench.run(&Event::Detach(second)).unwrap();
    assert_eq!(bench.world.entry(0, d1.address), compat);
    assert_eq!(bench.world.entry(0, d2.address), compat);
}

#[test]
fn behind_a_bridge_the_shared_requester_id_goes_with_the_attached_device() {
    let buses = Buses { secondary: 2, subordinate: 2 };
    let functions = [
        with_acs(bridge(0, 1, 0, 1, 2)),
        function(address(1, 0, 0), FunctionKind::ExpressToConventional(buses)),
        function(address(2, 3, 0), FunctionKind::Conventional),
        function(address(2, 4, 0), FunctionKind::Conventional),
    ];
    let mut bench = Bench::compat(&functions);
    let session = bench.claim(1, address(2, 3, 0));
    bench.run(&Event::Attach(session)).unwrap();
    let own = own_domain(&bench, session);
    assert_eq!(bench.world.entry(0, address(2, 3, 0)), own);
    assert_eq!(bench.world.entry(0, address(2, 0, 0)), own, "the alias");
    assert_eq!(bench.world.entry(0, address(2, 4, 0)), Binding::Blocked);
    assert_eq!(bench.world.entry(0, address(1, 0, 0)), Binding::Blocked);
    assert!(matches!(bench.world.entry(0, address(0, 1, 0)), Binding::Domain(_)), "another group");
    let alias = RequesterId::new(2, 0, 0).unwrap();
    assert_eq!(bench.registry.session_of(UnitIndex(0), alias), Some(session));
}

/// A member without a driver is blocked beside an attached one. It is named before and as long as that lasts.
#[test]
fn a_member_without_a_driver_is_named_while_another_is_attached() {
    let [d1, d2] = pair();
    let mut bench = Bench::compat(&[d1, d2]);
    let first = bench.claim(1, d1.address);
    let named = |bench: &Bench| {
        let all: Vec<_> = bench.registry.left_out().collect();
        let of_view = bench.registry.function(d2.address).unwrap().left_out;
        assert_eq!(of_view, all.contains(&d2.address));
        all
    };
    assert_eq!(bench.registry.left_out_by(first), [d2.address]);
    assert_eq!(named(&bench), [], "policy applies until one is attached");
    bench.run(&Event::Attach(first)).unwrap();
    assert_eq!(bench.world.entry(0, d2.address), Binding::Blocked);
    assert_eq!(named(&bench), [d2.address]);
    assert_eq!(bench.registry.left_out_by(first), [], "it is attached already");
    let second = bench.claim_under(1, d2.address, Some(first)).unwrap();
    assert_eq!(named(&bench), [], "it has a driver");
    bench.run(&Event::Close(second)).unwrap();
    assert_eq!(named(&bench), [d2.address]);
    bench.run(&Event::Detach(first)).unwrap();
    assert_eq!(named(&bench), []);
    assert_eq!(bench.registry.left_out_by(first), [d2.address]);
}

/// Under policy `strict` a member without a driver loses nothing.
#[test]
fn a_strict_member_is_not_named() {
    let [d1, d2] = pair();
    let mut bench = Bench::new(strict(), one_unit(), &[d1, d2]);
    let first = bench.claim(1, d1.address);
    assert_eq!(bench.registry.left_out_by(first), []);
    bench.run(&Event::Attach(first)).unwrap();
    assert_eq!(bench.registry.left_out().count(), 0);
}
