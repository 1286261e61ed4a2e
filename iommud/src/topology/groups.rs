//! Isolation groups: which functions the hardware cannot tell apart, or can reach each other behind the back
//! of every unit.
//!
//! Groups are the connected components of a graph whose edges depend only on which functions exist, so
//! the order in which they are discovered cannot matter. The edges of a function:
//!
//! ```text
//! to its other functions   when it and they lack ACS and the device has several functions
//! to the bridge above      when any bridge on the way to the root lacks ACS, or is conventional
//! to bridges that claim    the same secondary bus (a machine that is not sane)
//! ```
//!
//! Functions that share a requester id are members of one group too: see [`crate::topology::alias`].

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use iommu_protocol::ids::PciAddress;

use crate::topology::alias;
use crate::topology::pci::{FunctionKind, PciFunction};
use crate::topology::table::{FunctionTable, View};

/// ACS controls that isolation needs: source validation, peer-to-peer request redirect, completion redirect,
/// upstream forwarding (PCI Express Base 6.0 section 7.7.11.3, bits 0, 2, 3, 4).
const REQUIRED: u16 = 1 | 1 << 2 | 1 << 3 | 1 << 4;

/// Whether requests of, or through, this function cannot be turned round to its peers before a unit has seen
/// them.
///
/// A control whose capability bit is absent counts as in force: the specification makes it either mandatory or
/// irrelevant for such a port. Conventional bridges and buses have no ACS. An upstream port or endpoint
/// with one function has no peers and needs none (PCI Express Base 6.0 section 6.12.1).
#[must_use]
pub fn is_isolating(function: &PciFunction) -> bool {
    let controls = || match function.acs {
        Some(control) => {
            let needed = REQUIRED & function.acs_capability;
            control & needed == needed
        }
        None => false,
    };
    match function.kind {
        FunctionKind::RootPort(_) | FunctionKind::DownstreamPort(_) => controls(),
        FunctionKind::Endpoint
        | FunctionKind::RootComplexEndpoint
        | FunctionKind::UpstreamPort(_) => !function.multifunction || controls(),
        FunctionKind::Conventional
        | FunctionKind::ExpressToConventional(_)
        | FunctionKind::ConventionalToExpress(_)
        | FunctionKind::ConventionalBridge(_)
        | FunctionKind::EventCollector => false,
    }
}

/// Tells `sink` every function that an edge of `function` leads to.
pub fn edges(view: View<'_>, function: &PciFunction, sink: &mut dyn FnMut(PciAddress)) {
    let address = function.address;
    if !is_isolating(function) {
        for sibling in view.siblings(address) {
            if (function.multifunction || sibling.multifunction) && !is_isolating(sibling) {
                sink(sibling.address);
            }
        }
    }
    if let Some(above) = view.bridge_above(address.segment, address.requester.bus())
        && !(is_isolating(above) && view.path(above.address).all(is_isolating))
    {
        sink(above.address);
    }
    if let Some(buses) = function.buses() {
        view.claims(address.segment, buses.secondary)
            .filter(|other| other.address != address)
            .for_each(|other| sink(other.address));
    }
}

/// Disjoint sets of small numbers: union by size, with path halving.
#[derive(Clone, Debug)]
struct Sets {
    parent: Vec<usize>,
    size: Vec<u32>,
}

impl Sets {
    fn new(count: usize) -> Self {
        Self { parent: (0..count).collect(), size: alloc::vec![1; count] }
    }

    fn find(&mut self, mut at: usize) -> usize {
        while let Some(&up) = self.parent.get(at)
            && up != at
        {
            let over = self.parent.get(up).copied().unwrap_or(up);
            if let Some(place) = self.parent.get_mut(at) {
                *place = over;
            }
            at = over;
        }
        at
    }

    fn join(&mut self, a: usize, b: usize) {
        let (a, b) = (self.find(a), self.find(b));
        if a == b {
            return;
        }
        let size = |at: usize| self.size.get(at).copied().unwrap_or(0);
        let sum = size(a).saturating_add(size(b));
        let (root, leaf) = if size(a) < size(b) { (b, a) } else { (a, b) };
        if let (Some(parent), Some(size)) = (self.parent.get_mut(leaf), self.size.get_mut(root)) {
            *parent = root;
            *size = sum;
        }
    }
}

/// The partition of all functions of a table into groups: each sorted by address, and in order of their
/// first members. Requester ids that firmware alone knows of are not considered.
#[must_use]
pub fn partition(table: &FunctionTable) -> Vec<Vec<PciAddress>> {
    let functions: Vec<&PciFunction> = table.iter().collect();
    let mut at = alloc::vec![0; functions.len()];
    let mut sets = Sets::new(functions.len());
    for (position, function) in functions.iter().enumerate() {
        if let Some(index) = table.index(function.address)
            && let Some(place) = at.get_mut(index.0 as usize)
        {
            *place = position;
        }
    }
    let position =
        |of: PciAddress| table.index(of).and_then(|index| at.get(index.0 as usize)).copied();
    let mut users = BTreeMap::new();
    for (own, function) in functions.iter().enumerate() {
        edges(table.view(), function, &mut |to| {
            position(to).into_iter().for_each(|to| sets.join(own, to));
        });
        let aliases = alias::aliases(table.view(), None, function);
        for source in aliases.with(function.address.requester) {
            let user = *users.entry((function.address.segment, source)).or_insert(own);
            sets.join(user, own);
        }
    }
    let mut groups: BTreeMap<usize, Vec<PciAddress>> = BTreeMap::new();
    for (own, function) in functions.iter().enumerate() {
        groups.entry(sets.find(own)).or_default().push(function.address);
    }
    let mut groups: Vec<_> = groups.into_values().collect();
    groups.sort_unstable();
    groups
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::pci::Buses;
    use crate::topology::testing::{address, bridge, endpoint, function, multi, with_acs};

    fn groups(functions: &[PciFunction]) -> Vec<Vec<(u8, u8, u8)>> {
        let mut table = FunctionTable::default();
        for function in functions {
            table.insert(*function);
        }
        let name =
            |a: &PciAddress| (a.requester.bus(), a.requester.device(), a.requester.function());
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

    #[test]
    fn each_downstream_port_of_a_switch_is_a_group_with_its_device() {
        let functions = [
            with_acs(bridge(0, 1, 0, 1, 4)),
            function(address(1, 0, 0), FunctionKind::UpstreamPort(buses(2, 4))),
            function(address(2, 0, 0), FunctionKind::DownstreamPort(buses(3, 3))),
            function(address(2, 1, 0), FunctionKind::DownstreamPort(buses(4, 4))),
            endpoint(3, 0, 0),
            endpoint(4, 0, 0),
        ];
        let expected = [
            vec![(0, 1, 0)],
            vec![(1, 0, 0)],
            vec![(2, 0, 0), (3, 0, 0)],
            vec![(2, 1, 0), (4, 0, 0)],
        ];
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
        let chipset =
            [0, 2, 3].map(|n| multi(function(address(0, 31, n), FunctionKind::Conventional)));
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
}
