//! Probing, claiming, and using one device: S1 to S3, S5, S6, S9.

use std::vec::Vec;

use iommu_protocol::ids::Slot;
use iommu_protocol::status::Refusal;

use super::{claim_event, names, permutations, strict, two_units};
use crate::policy::tests::world::*;
use crate::policy::{Batch, Binding, Config, Event, Hold, Import, SessionId, UnitIndex};
use crate::topology::testing::{address, endpoint, multi};

#[test]
fn a_device_is_claimed_attached_used_and_given_back() {
    let mut bench = Bench::compat(&[endpoint(0, 3, 0), endpoint(0, 4, 0)]);
    let before = bench.snapshot();
    let d = address(0, 4, 0);
    let compat = bench.world.entry(0, d);
    assert!(matches!(compat, Binding::Domain(_)));
    let session = bench.claim(1, d);
    assert_eq!(bench.world.entry(0, d), compat, "a claim changes no entry");
    bench.run(&Event::Attach(session)).unwrap();
    let Binding::Domain(own) = bench.world.entry(0, d) else { panic!("translated") };
    assert_ne!(Binding::Domain(own), compat);
    let (slot, iova, _) = bench.buffer(session, 4);
    assert_eq!(bench.world.mapped(own), [(iova, iova + 0x3fff, OWN)]);
    let second = bench.batch(session, &[map(slot, 1, 2)]).unwrap()[0];
    assert_eq!(bench.world.mapped(own).len(), 2);
    bench.batch(session, &[unmap(second, 2)]).unwrap();
    bench.run(&Event::Release(session, slot)).unwrap();
    assert_eq!(bench.world.released.len(), 1);
    bench.run(&Event::Detach(session)).unwrap();
    assert_eq!(bench.world.entry(0, d), compat);
    assert_eq!(bench.run(&Event::Close(session)), Ok(()));
    assert_eq!(bench.world.entry(0, d), compat);
    assert_eq!(bench.world.domain_count(), 1);
    assert_eq!(strip(&bench.snapshot()), strip(&before), "nothing is left behind");
}

/// A snapshot without the one difference that an object may leave behind: the place of the next one.
fn strip(snapshot: &str) -> String {
    let machine = snapshot.split("    base: Ranges").next().unwrap();
    let groups = machine.find("    groups: Pool").unwrap();
    machine[..groups].to_string()
}

#[test]
fn s1_probing_twice_makes_one_record() {
    let mut bench = Bench::compat(&[endpoint(0, 4, 0)]);
    let steps = bench.world.steps.len();
    bench.run(&Event::FunctionAdded(endpoint(0, 4, 0))).unwrap();
    assert_eq!(bench.world.steps.len(), steps, "no second set of hardware writes");
    assert_eq!((bench.registry.counts().functions, bench.registry.counts().groups), (1, 1));
    let mut other = endpoint(0, 4, 0);
    other.device = 0xbeef;
    assert_eq!(bench.refused(&Event::FunctionAdded(other)), Refusal::Busy);
    let first = bench.claim(1, address(0, 4, 0));
    assert_eq!(bench.refused(&claim_event(2, address(0, 4, 0), None)), Refusal::NotOwner);
    assert_eq!(bench.registry.function(address(0, 4, 0)).unwrap().session, Some(first));
}

#[test]
fn s2_members_in_any_order_are_one_group_in_one_domain() {
    let members = [0, 1, 2, 3, 4].map(|number| multi(endpoint(0, 4, number)));
    for order in permutations(members.len()) {
        let functions: Vec<_> = order.iter().map(|at| members[*at]).collect();
        let bench = Bench::compat(&functions);
        let groups: Vec<_> = bench.registry.groups().collect();
        assert_eq!(groups.len(), 1);
        let group = bench.registry.group(groups[0]).unwrap();
        assert_eq!(group.members, members.map(|member| member.address));
        assert_eq!(bench.world.domain_count(), 1, "one default domain");
        let compat = bench.world.entry(0, members[0].address);
        assert!(members.iter().all(|m| bench.world.entry(0, m.address) == compat));
    }
}

#[test]
fn s3_a_claim_before_its_unit_is_up_is_not_ready_and_leaves_nothing() {
    let functions = [endpoint(0, 3, 0), endpoint(0, 4, 0)];
    let mut bench = Bench::cold(Config::default(), two_units());
    for function in functions {
        bench.run(&Event::FunctionAdded(function)).unwrap();
    }
    bench.run(&ready(0)).unwrap();
    assert_eq!(bench.refused(&claim_event(1, address(0, 4, 0), None)), Refusal::NotReady);
    bench.claim(2, address(0, 3, 0));
    bench.run(&ready(1)).unwrap();
    bench.claim(1, address(0, 4, 0));
}

#[test]
fn s5_no_unit_failed_unit_and_unit_not_up_are_three_refusals() {
    let mut firmware = two_units();
    firmware.units[1].include_all = false;
    names(&mut firmware, 1, 4);
    let mut bench = Bench::cold(strict(), firmware);
    for device in [3, 4, 5] {
        bench.run(&Event::FunctionAdded(endpoint(0, device, 0))).unwrap();
    }
    bench.run(&ready(0)).unwrap();
    bench.run(&Event::UnitFailed(UnitIndex(0))).unwrap();
    let refusal =
        |bench: &mut Bench, device| bench.refused(&claim_event(1, address(0, device, 0), None));
    assert_eq!(refusal(&mut bench, 3), Refusal::UnitFailed);
    assert_eq!(refusal(&mut bench, 4), Refusal::NotReady);
    assert_eq!(refusal(&mut bench, 5), Refusal::NoUnit);
    assert_eq!(refusal(&mut bench, 6), Refusal::NotProbed);
    assert_eq!(bench.refused(&ready(9)), Refusal::NotFound);
}

#[test]
fn s6_requests_of_no_session_are_refused() {
    let mut bench = Bench::compat(&[endpoint(0, 4, 0)]);
    let ghost = SessionId(7);
    for event in [
        Event::Attach(ghost),
        Event::Detach(ghost),
        Event::Release(ghost, Slot(0)),
        Event::Close(ghost),
        Event::Drop(crate::policy::BufferId(0)),
    ] {
        assert_eq!(bench.refused(&event), Refusal::BadHandle, "{event:?}");
    }
    let claim = claim_event(1, address(0, 4, 0), Some(ghost));
    assert_eq!(bench.refused(&claim), Refusal::BadHandle);
    let unmap = Batch(ghost, &[unmap(0x1000, 1)]);
    assert_eq!(bench.refused(&unmap), Refusal::BadHandle);
    assert_eq!(bench.refused(&Hold(ghost, Slot(0))), Refusal::BadHandle);
    assert_eq!(bench.refused(&Import(ghost, crate::policy::BufferId(0))), Refusal::BadHandle);
    assert_eq!(bench.refused(&claim_event(1, address(0, 9, 0), None)), Refusal::NotProbed);
}

#[test]
fn s9_the_same_request_again_is_done() {
    let mut bench = Bench::compat(&[endpoint(0, 4, 0)]);
    let session = bench.claim(1, address(0, 4, 0));
    assert_eq!(bench.run(&Event::Detach(session)), Ok(()));
    bench.run(&Event::Attach(session)).unwrap();
    let steps = bench.world.steps.len();
    assert_eq!(bench.run(&Event::Attach(session)), Ok(()));
    assert_eq!(bench.world.steps.len(), steps);
    bench.run(&Event::Detach(session)).unwrap();
    assert_eq!(bench.run(&Event::Detach(session)), Ok(()));
}
