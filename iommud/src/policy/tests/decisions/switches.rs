//! Groups of a switch that join and fall apart.

use iommu_protocol::status::Refusal;

use crate::policy::Event;
use crate::policy::tests::world::*;
use crate::topology::pci::{Buses, FunctionKind, PciFunction};
use crate::topology::testing::{address, bridge, endpoint, function, with_acs};

fn port(number: u8) -> PciFunction {
    let bus = number + 3;
    let buses = Buses { secondary: bus, subordinate: bus };
    function(address(2, number, 0), FunctionKind::DownstreamPort(buses))
}

/// A switch with two ports that isolate, and a device behind each. Each function is a group of its own.
fn switch() -> [PciFunction; 6] {
    let all = Buses { secondary: 2, subordinate: 5 };
    [
        with_acs(bridge(0, 1, 0, 1, 5)),
        function(address(1, 0, 0), FunctionKind::UpstreamPort(all)),
        with_acs(port(0)),
        with_acs(port(1)),
        endpoint(3, 0, 0),
        endpoint(4, 0, 0),
    ]
}

fn groups(bench: &Bench) -> usize {
    bench.registry.groups().count()
}

/// A port without ACS sends requests straight to the others: all behind the switch is one group then.
#[test]
fn hotplug_of_a_port_does_not_join_a_claimed_group_with_others() {
    let mut bench = Bench::compat(&switch());
    assert_eq!(groups(&bench), 6);
    let session = bench.claim(1, address(3, 0, 0));
    assert_eq!(bench.refused(&Event::FunctionAdded(port(2))), Refusal::Busy);
    bench.run(&Event::FunctionAdded(with_acs(port(2)))).unwrap();
    assert_eq!(groups(&bench), 7);
    bench.run(&Event::FunctionRemoved(port(2).address)).unwrap();
    bench.run(&Event::Close(session)).unwrap();
    bench.run(&Event::FunctionAdded(port(2))).unwrap();
    assert_eq!(groups(&bench), 3);
}

/// The port goes while its group is claimed. The group stays one until the last session ends.
#[test]
fn close_of_the_last_session_splits_a_group_that_lost_a_member() {
    let mut bench = Bench::compat(&switch());
    bench.run(&Event::FunctionAdded(port(2))).unwrap();
    let first = bench.claim(1, address(3, 0, 0));
    let second = bench.claim_under(1, address(4, 0, 0), Some(first)).unwrap();
    bench.run(&Event::FunctionRemoved(port(2).address)).unwrap();
    assert_eq!(groups(&bench), 3);
    bench.run(&Event::Close(first)).unwrap();
    assert_eq!(groups(&bench), 3, "the second session has it");
    bench.run(&Event::Close(second)).unwrap();
    assert_eq!(groups(&bench), 6);
    bench.claim(2, address(3, 0, 0));
    bench.claim(3, address(4, 0, 0));
}

/// A group that lost nobody is what it was, and a member that was added meanwhile is under policy.
#[test]
fn close_puts_late_members_under_policy() {
    let late = with_acs(endpoint(0, 4, 1));
    let late = PciFunction { multifunction: true, acs: None, ..late };
    let mut bench = Bench::compat(&[PciFunction { address: address(0, 4, 0), ..late }]);
    let session = bench.claim(1, address(0, 4, 0));
    bench.run(&Event::FunctionAdded(late)).unwrap();
    let policy = bench.world.entry(0, address(0, 4, 0));
    assert_ne!(bench.world.entry(0, late.address), policy, "claimed");
    bench.run(&Event::Close(session)).unwrap();
    assert_eq!(bench.world.entry(0, late.address), policy);
    assert_eq!(groups(&bench), 1);
}

/// Mappings of an owner whose last session ends go with its table: nothing is unmapped one by one.
#[test]
fn close_of_the_last_session_unmaps_nothing() {
    let mut bench = Bench::compat(&[endpoint(0, 3, 0), endpoint(0, 4, 0)]);
    let first = bench.claim(1, address(0, 3, 0));
    let second = bench.claim_under(1, address(0, 4, 0), Some(first)).unwrap();
    bench.buffer(first, 1);
    bench.buffer(second, 1);
    let unmapped = super::kinds(&mut bench, &Event::Close(first));
    assert_eq!(unmapped, ["Unmap", "ReleaseTables", "ReleaseBuffer"]);
    let ended = super::kinds(&mut bench, &Event::Close(second));
    assert_eq!(ended, ["DestroyTable", "ReleaseBuffer"]);
}
