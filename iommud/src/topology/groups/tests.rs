//! Partitions of small machines.

use super::*;
use crate::topology::testing::{address, bridge, endpoint, function, multi, with_acs};

fn groups(functions: &[PciFunction]) -> Vec<Vec<(u8, u8, u8)>> {
    let mut table = FunctionTable::default();
    for function in functions {
        table.insert(*function);
    }
    let name = |a: &PciAddress| (a.requester.bus(), a.requester.device(), a.requester.function());
    partition(&table).iter().map(|group| group.iter().map(name).collect()).collect()
}

const fn buses(secondary: u8, subordinate: u8) -> Buses {
    Buses { secondary, subordinate }
}

// The partitions below are those that Linux 6.12 makes of the same QEMU machines.

#[test]
fn a_root_port_with_acs_leaves_its_device_alone() {
    let port = bridge(0, 1, 0, 1, 1);
    let device = endpoint(1, 0, 0);
    assert_eq!(groups(&[with_acs(port), device]), [vec![(0, 1, 0)], vec![(1, 0, 0)]]);
    assert_eq!(groups(&[port, device]), [vec![(0, 1, 0), (1, 0, 0)]]);
}

#[test]
fn capability_without_control_does_not_isolate() {
    let mut port = with_acs(bridge(0, 1, 0, 1, 1));
    port.acs = Some(0b0_1101);
    assert_eq!(groups(&[port, endpoint(1, 0, 0)]).len(), 1, "no upstream forwarding");
    port.acs_capability = 0b0_1101;
    assert_eq!(groups(&[port, endpoint(1, 0, 0)]).len(), 2, "nothing to control");
}

/// A root port with ACS, a switch of two downstream ports, a device behind each.
fn switch(acs: [bool; 2]) -> [PciFunction; 6] {
    let port = |device, bus, acs| {
        let port = function(address(2, device, 0), FunctionKind::DownstreamPort(buses(bus, bus)));
        if acs { with_acs(port) } else { port }
    };
    [
        with_acs(bridge(0, 1, 0, 1, 4)),
        function(address(1, 0, 0), FunctionKind::UpstreamPort(buses(2, 4))),
        port(0, 3, acs[0]),
        port(1, 4, acs[1]),
        endpoint(3, 0, 0),
        endpoint(4, 0, 0),
    ]
}

// Linux makes another partition: see the head of the module `groups`.
#[test]
fn what_is_behind_a_switch_is_one_group_when_one_of_its_ports_lacks_acs() {
    let one = [vec![(0, 1, 0)], vec![(1, 0, 0)], vec![(2, 0, 0), (2, 1, 0), (3, 0, 0), (4, 0, 0)]];
    for acs in [[false, false], [true, false], [false, true]] {
        assert_eq!(groups(&switch(acs)), one, "{acs:?}");
    }
    assert_eq!(groups(&switch([true, true])).len(), 6);
}

#[test]
fn root_ports_without_acs_are_not_joined_by_it() {
    let functions =
        [bridge(0, 1, 0, 1, 1), bridge(0, 2, 0, 2, 2), endpoint(1, 0, 0), endpoint(2, 0, 0)];
    assert_eq!(groups(&functions), [vec![(0, 1, 0), (1, 0, 0)], vec![(0, 2, 0), (2, 0, 0)]]);
}

/// Functions 0, 9 and 0x48 of one device (ARI), and a virtual function on the next bus.
fn ari(port: PciFunction) -> [PciFunction; 5] {
    [
        port,
        multi(endpoint(1, 0, 0)),
        multi(endpoint(1, 1, 1)),
        multi(endpoint(1, 9, 0)),
        multi(endpoint(2, 0, 0)),
    ]
}

#[test]
fn functions_above_7_and_virtual_ones_are_of_the_same_device() {
    let mut functions = ari(with_acs(bridge(0, 1, 0, 1, 2)));
    let device = vec![(1, 0, 0), (1, 1, 1), (1, 9, 0), (2, 0, 0)];
    assert_eq!(groups(&functions), [vec![(0, 1, 0)], device]);
    functions[2] = with_acs(functions[2]);
    let rest = vec![(1, 0, 0), (1, 9, 0), (2, 0, 0)];
    assert_eq!(groups(&functions), [vec![(0, 1, 0)], rest, vec![(1, 1, 1)]]);
    // On a conventional or root bus they would be other devices.
    assert_eq!(groups(&functions[1..]).len(), 4);
}

#[test]
fn a_bus_of_another_bridge_is_not_the_devices_own() {
    let mut functions = ari(with_acs(bridge(0, 1, 0, 1, 3))).to_vec();
    functions[1] = function(address(1, 0, 0), FunctionKind::UpstreamPort(buses(2, 2)));
    functions.push(multi(endpoint(3, 0, 0)));
    let groups = groups(&functions);
    let apart = [vec![(1, 1, 1), (1, 9, 0), (3, 0, 0)], vec![(2, 0, 0)]];
    assert!(apart.iter().all(|group| groups.contains(group)), "{groups:?}");
}

#[test]
fn functions_that_are_known_to_be_apart_are_and_a_bridge_holds_what_is_behind() {
    let known = |function: PciFunction| with_acs(multi(function));
    let bridge = FunctionKind::ConventionalBridge(buses(2, 2));
    let functions = [
        multi(function(address(0, 20, 0), FunctionKind::Conventional)),
        known(function(address(0, 20, 2), FunctionKind::Conventional)),
        multi(function(address(0, 20, 3), FunctionKind::Conventional)),
        known(function(address(0, 20, 4), bridge)),
        function(address(2, 5, 0), FunctionKind::Conventional),
    ];
    let expected = [vec![(0, 20, 0), (0, 20, 3)], vec![(0, 20, 2)], vec![(0, 20, 4), (2, 5, 0)]];
    assert_eq!(groups(&functions), expected);
}

#[test]
fn below_a_port_without_acs_all_is_one() {
    let functions = [
        bridge(0, 1, 0, 1, 4),
        function(address(1, 0, 0), FunctionKind::UpstreamPort(buses(2, 4))),
        with_acs(function(address(2, 0, 0), FunctionKind::DownstreamPort(buses(3, 3)))),
        with_acs(function(address(2, 1, 0), FunctionKind::DownstreamPort(buses(4, 4)))),
        endpoint(3, 0, 0),
        endpoint(4, 0, 0),
    ];
    assert_eq!(groups(&functions).len(), 1);
}

#[test]
fn a_conventional_bus_is_one_with_its_bridge() {
    let functions = [
        with_acs(bridge(0, 1, 0, 1, 2)),
        function(address(1, 0, 0), FunctionKind::ExpressToConventional(buses(2, 2))),
        function(address(2, 1, 0), FunctionKind::Conventional),
        function(address(2, 2, 0), FunctionKind::Conventional),
    ];
    let expected = [vec![(0, 1, 0)], vec![(1, 0, 0), (2, 1, 0), (2, 2, 0)]];
    assert_eq!(groups(&functions), expected);
}

#[test]
fn functions_of_one_device_are_one_unless_acs_separates_them() {
    let chipset = [0, 2, 3].map(|n| multi(function(address(0, 31, n), FunctionKind::Conventional)));
    assert_eq!(groups(&chipset).len(), 1);
    let nvme = [0, 1].map(|n| multi(endpoint(0, 4, n)));
    assert_eq!(groups(&nvme).len(), 1);
    assert_eq!(groups(&nvme.map(with_acs)).len(), 2);
    assert_eq!(groups(&[with_acs(nvme[0]), nvme[1]]).len(), 2);
}

#[test]
fn devices_on_the_root_bus_are_apart() {
    let functions = [endpoint(0, 2, 0), endpoint(0, 3, 0), endpoint(0x40, 0, 0)];
    assert_eq!(groups(&functions).len(), 3);
}

#[test]
fn a_shared_requester_id_joins() {
    let mut sata = endpoint(3, 0, 0);
    (sata.vendor, sata.device) = (0x1b4b, 0x9230);
    assert_eq!(groups(&[sata, endpoint(3, 0, 1)]).len(), 1);
}

#[test]
fn two_bridges_that_claim_one_bus_are_one() {
    let functions =
        [with_acs(bridge(0, 1, 0, 5, 5)), with_acs(bridge(0, 2, 0, 5, 5)), endpoint(5, 0, 0)];
    assert_eq!(groups(&functions), [vec![(0, 1, 0), (0, 2, 0)], vec![(5, 0, 0)]]);
}

#[test]
fn s23_every_order_of_discovery_gives_the_same_partition_of_a_switch() {
    let mut functions = switch([true, false]).to_vec();
    let expected = groups(&functions);
    permute(&mut functions, 0, &mut |order| assert_eq!(groups(order), expected));
}

#[test]
fn s23_every_order_of_discovery_gives_the_same_partition() {
    let mut functions = vec![
        with_acs(bridge(0, 1, 0, 1, 3)),
        function(address(1, 0, 0), FunctionKind::ExpressToConventional(buses(2, 3))),
        function(address(2, 1, 0), FunctionKind::ConventionalBridge(buses(3, 3))),
        function(address(3, 1, 0), FunctionKind::Conventional),
        multi(endpoint(0, 4, 0)),
        multi(endpoint(0, 4, 1)),
    ];
    let expected = groups(&functions);
    let mut orders = 0;
    permute(&mut functions, 0, &mut |order| {
        assert_eq!(groups(order), expected);
        orders += 1;
    });
    assert_eq!(orders, 720);
}

fn permute(items: &mut [PciFunction], from: usize, visit: &mut dyn FnMut(&[PciFunction])) {
    if from == items.len() {
        return visit(items);
    }
    for at in from..items.len() {
        items.swap(from, at);
        permute(items, from + 1, visit);
        items.swap(from, at);
    }
}
