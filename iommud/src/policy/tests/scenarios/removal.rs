//! Hot-plug: S11 and S14, and the removal of bridges and devices.

use iommu_protocol::status::Refusal;

use super::{claim_event, own_domain, pair, partition, tree};
use crate::policy::tests::world::*;
use crate::policy::{Batch, Binding, Event, UnitIndex};
use crate::topology::pci::{Buses, FunctionKind, PciFunction};
use crate::topology::testing::{address, bridge, endpoint, function};

#[test]
fn s11_a_removed_device_is_blocked_and_flushed_and_its_session_is_dead() {
    let mut bench = Bench::compat(&[endpoint(0, 4, 0)]);
    let d = address(0, 4, 0);
    let session = bench.claim(1, d);
    bench.run(&Event::Attach(session)).unwrap();
    let (slot, ..) = bench.buffer(session, 4);
    bench.run(&Event::FunctionRemoved(d)).unwrap();
    assert_eq!(bench.world.entry(0, d), Binding::Blocked);
    for event in [Event::Attach(session), Event::Detach(session), Event::Release(session, slot)] {
        assert_eq!(bench.refused(&event), Refusal::NotProbed, "{event:?}");
    }
    assert_eq!(bench.refused(&Batch(session, &[map(slot, 0, 1)])), Refusal::NotProbed);
    assert_eq!(bench.refused(&Event::FunctionRemoved(d)), Refusal::NotProbed);
    bench.run(&Event::FunctionAdded(endpoint(0, 4, 0))).unwrap();
    assert_eq!(bench.registry.function(d).unwrap().generation, 2);
    let again = bench.claim(2, d);
    assert_ne!(again, session);
    assert_eq!(bench.registry.session(session).unwrap().generation, 1);
    bench.run(&Event::Close(session)).unwrap();
    assert_eq!(bench.world.released.len(), 1);
    assert!(bench.registry.session(again).is_some(), "the new session is another matter");
    bench.run(&Event::Close(again)).unwrap();
}

/// A walk may have missed a device that was present, and at work, all the time.
#[test]
fn a_device_that_was_driven_when_it_went_is_blocked_when_it_comes_back() {
    let function = endpoint(0, 4, 0);
    let mut bench = Bench::compat(&[function]);
    let d = function.address;
    let policy = bench.world.entry(0, d);
    let session = bench.claim(1, d);
    bench.run(&Event::Attach(session)).unwrap();
    for _ in 0..2 {
        bench.run(&Event::FunctionRemoved(d)).unwrap();
        assert!(bench.registry.may_be_driven(d));
        bench.run(&Event::FunctionAdded(PciFunction { class: 0x02_0000, ..function })).unwrap();
        assert_eq!(bench.world.entry(0, d), Binding::Blocked);
        assert!(bench.registry.function(d).unwrap().cut && !bench.registry.is_at_rest(d));
    }
    bench.run(&Event::FunctionRemoved(d)).unwrap();
    bench.run(&Event::FunctionAdded(PciFunction { device: 0x4321, ..function })).unwrap();
    assert_eq!(bench.world.entry(0, d), policy, "a different device");
    assert!(!bench.registry.may_be_driven(d));
    bench.run(&Event::FunctionRemoved(d)).unwrap();
    bench.run(&Event::FunctionAdded(function)).unwrap();
    assert_eq!(
        bench.world.entry(0, d),
        policy,
        "the first one again, after another: it was pulled out"
    );
}

#[test]
fn s14_what_is_added_to_a_claimed_group_stays_blocked_until_it_is_attached() {
    let [d1, d2] = pair();
    let mut bench = Bench::compat(&[d1]);
    let first = bench.claim(1, d1.address);
    bench.run(&Event::FunctionAdded(d2)).unwrap();
    assert_eq!(bench.world.entry(0, d2.address), Binding::Blocked, "claimed, not attached");
    assert_eq!(bench.registry.groups().count(), 1);
    bench.run(&Event::Attach(first)).unwrap();
    assert_eq!(bench.world.entry(0, d2.address), Binding::Blocked);
    assert_eq!(bench.refused(&claim_event(2, d2.address, None)), Refusal::NotOwner);
    let second = bench.claim_under(1, d2.address, Some(first)).unwrap();
    bench.run(&Event::Attach(second)).unwrap();
    assert_eq!(bench.world.entry(0, d2.address), own_domain(&bench, first));
    for session in [second, first] {
        bench.run(&Event::Detach(session)).unwrap();
        bench.run(&Event::Close(session)).unwrap();
    }
    assert!(matches!(bench.world.entry(0, d2.address), Binding::Domain(_)), "policy again");
    assert_eq!(bench.world.entry(0, d2.address), bench.world.entry(0, d1.address));
}

#[test]
fn a_removed_bridge_takes_what_is_behind_with_it() {
    let functions = tree();
    let mut bench = Bench::compat(&functions);
    let below = functions[3].address;
    let session = bench.claim(1, below);
    bench.run(&Event::Attach(session)).unwrap();
    bench.run(&Event::FunctionRemoved(functions[1].address)).unwrap();
    assert_eq!(bench.registry.functions().count(), 3);
    for function in &functions[1..4] {
        assert_eq!(bench.world.entry(0, function.address), Binding::Blocked);
    }
    bench.run(&Event::Close(session)).unwrap();
    assert_eq!(bench.registry.groups().count(), 2);
    for function in &functions[1..4] {
        bench.run(&Event::FunctionAdded(*function)).unwrap();
    }
    assert_eq!(partition(&bench), partition(&Bench::compat(&functions)));
}

#[test]
fn hot_plug_behind_a_failed_unit_leaves_its_entries_as_known() {
    let functions = tree();
    let mut bench = Bench::compat(&functions[..1]);
    let below = functions[3];
    bench.run(&Event::FunctionAdded(below)).unwrap();
    let compat = bench.world.entry(0, below.address);
    bench.run(&Event::UnitFailed(UnitIndex(0))).unwrap();
    // A bridge that gives the device another requester id.
    bench.run(&Event::FunctionAdded(functions[1])).unwrap();
    assert_eq!(bench.world.entry(0, below.address), compat);
    bench.run(&Event::FunctionRemoved(below.address)).unwrap();
    assert_eq!(bench.world.entry(0, below.address), Binding::Blocked);
    bench.run(&Event::FunctionAdded(below)).unwrap();
    assert_eq!(bench.registry.function(below.address).unwrap().binding, Binding::Blocked);
}

/// Two devices behind a bridge share its requester id, which the unit cannot tell apart. When a driven one goes, the
/// requests under way may be its: the other is blocked until it was attached and detached.
#[test]
fn a_device_that_shares_the_id_of_a_driven_one_that_went_is_blocked() {
    let behind = Buses { secondary: 2, subordinate: 2 };
    let functions = [
        bridge(0, 1, 0, 1, 2),
        function(address(1, 0, 0), FunctionKind::ExpressToConventional(behind)),
        function(address(2, 1, 0), FunctionKind::Conventional),
        function(address(2, 2, 0), FunctionKind::Conventional),
        endpoint(0, 4, 0),
    ];
    let [driven, quiet, other] = [functions[2], functions[3], functions[4]];
    for attached in [false, true] {
        let mut bench = Bench::compat(&functions);
        let policy = bench.world.entry(0, quiet.address);
        let session = bench.claim(1, driven.address);
        if attached {
            bench.run(&Event::Attach(session)).unwrap();
        }
        bench.run(&Event::FunctionRemoved(driven.address)).unwrap();
        bench.run(&Event::Close(session)).unwrap();
        let left = if attached { Binding::Blocked } else { policy };
        assert_eq!(bench.world.entry(0, quiet.address), left, "attached: {attached}");
        assert_eq!(bench.registry.function(quiet.address).unwrap().cut, attached);
        assert_eq!(bench.world.entry(0, other.address), policy);
        let session = bench.claim(1, quiet.address);
        bench.run(&Event::Attach(session)).unwrap();
        bench.run(&Event::Detach(session)).unwrap();
        bench.run(&Event::Close(session)).unwrap();
        assert_eq!(bench.world.entry(0, quiet.address), policy, "it was shown to be quiet");
    }
}
