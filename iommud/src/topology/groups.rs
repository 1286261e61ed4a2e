//! Isolation groups. The hardware cannot distinguish the functions of a group, or they can reach each other without
//! passing a unit.
//!
//! Groups are the connected components of a graph. Its edges depend only on which functions exist, so the order of
//! discovery does not matter. The edges of a function:
//!
//! ```text
//! to its other functions   when it and they lack ACS and the device has several functions
//! to the bridge above      when any bridge on the way to the root lacks ACS, or is conventional
//! to the ports beside      when it is a downstream port, and one of its switch lacks ACS
//! to bridges that claim    the same secondary bus (a machine that is not sane)
//! ```
//!
//! The other functions of a device include those above 7 (ARI) and virtual functions. A virtual function without ACS
//! is in the group of its physical function if that lacks ACS as well. (Linux keeps them apart.)
//!
//! A downstream port without ACS sends a request of the device behind it straight to the port whose window holds the
//! address, and no unit sees it. ACS of the port where the request leaves the switch does not help. So everything
//! behind the ports of a switch is one group if one port lacks ACS. (Linux up to 6.18 makes a group of each port and
//! everything behind it. Two drivers would then rely on an isolation that their devices lack: each could write to the
//! other's registers.) Root ports are treated differently, because requests between them pass the root complex, where
//! units are.
//!
//! Functions that share a requester id are also in one group: see [`crate::topology::alias`].

#[cfg(test)]
mod tests;

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use iommu_protocol::ids::PciAddress;

use crate::topology::alias;
use crate::topology::pci::{Buses, FunctionKind, PciFunction};
use crate::topology::table::{FunctionTable, View};

/// ACS controls that isolation needs: source validation, peer-to-peer request redirect, completion redirect,
/// upstream forwarding (PCI Express Base 6.0 section 7.7.11.3, bits 0, 2, 3, 4).
pub const REQUIRED: u16 = 1 | 1 << 2 | 1 << 3 | 1 << 4;

/// Whether no request of this function can be turned round to a peer before a unit has checked it.
///
/// A control whose capability bit is absent counts as in force: the specification makes it either mandatory or
/// irrelevant for such a port. Conventional bridges and functions have no ACS, but a few are known not to
/// reach the other functions of their device. An upstream port or endpoint with one function has no peers and needs
/// none (PCI Express Base 6.0 section 6.12.1).
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
        FunctionKind::Endpoint
        | FunctionKind::RootComplexEndpoint
        | FunctionKind::UpstreamPort(_) => !function.multifunction || controls(),
        FunctionKind::EventCollector => false,
        _ => controls(),
    }
}

/// Whether all requests from behind a bridge pass a unit before they reach anything beside or in front of it.
#[must_use]
pub fn is_tight(view: View<'_>, bridge: &PciFunction) -> bool {
    match bridge.kind {
        FunctionKind::RootPort(_) | FunctionKind::UpstreamPort(_) => is_isolating(bridge),
        FunctionKind::DownstreamPort(_) => {
            is_isolating(bridge) && ports_beside(view, bridge).all(is_isolating)
        }
        // Devices behind a conventional bridge see each other's requests.
        _ => false,
    }
}

/// The other downstream ports of a switch.
pub fn ports_beside<'a>(
    view: View<'a>,
    port: &PciFunction,
) -> impl Iterator<Item = &'a PciFunction> + use<'a> {
    let own = port.address;
    view.on_bus(own.segment, own.requester.bus()).filter(move |other| {
        other.address != own && matches!(other.kind, FunctionKind::DownstreamPort(_))
    })
}

/// Calls `sink` with every function that an edge of `function` leads to. Of several functions at the end of a link,
/// one is enough, because such steps lead to all of them.
pub fn edges(view: View<'_>, function: &PciFunction, sink: &mut dyn FnMut(PciAddress)) {
    #[cfg(test)]
    crate::topology::testing::look();
    let address = function.address;
    if !is_isolating(function) {
        for sibling in view.siblings(address) {
            if (function.multifunction || sibling.multifunction) && !is_isolating(sibling) {
                sink(sibling.address);
            }
        }
        if let Some(peer) = view.peer_at_link(address, |other| !is_isolating(other)) {
            sink(peer.address);
        }
    }
    if matches!(function.kind, FunctionKind::DownstreamPort(_)) && !is_tight(view, function) {
        ports_beside(view, function).for_each(|port| sink(port.address));
    }
    if let Some(above) = view.bridge_above(address.segment, address.requester.bus())
        && !(is_tight(view, above) && view.path(above.address).all(|up| is_tight(view, up)))
    {
        sink(above.address);
    }
    if let Some(buses) = function.buses() {
        view.claims(address.segment, buses.secondary)
            .filter(|other| other.address != address)
            .for_each(|other| sink(other.address));
    }
}

/// Calls `sink` with the buses on which functions may have other edges because `function` was added. These are the
/// buses behind it, and those behind the ports beside it.
pub fn reach(view: View<'_>, function: &PciFunction, sink: &mut dyn FnMut(Buses)) {
    function.buses().into_iter().for_each(&mut *sink);
    if matches!(function.kind, FunctionKind::DownstreamPort(_)) {
        ports_beside(view, function).filter_map(PciFunction::buses).for_each(sink);
    }
}

/// Disjoint sets of small numbers: union by size, with path halving.
#[derive(Clone, Debug)]
pub(crate) struct Sets {
    parent: Vec<usize>,
    size: Vec<u32>,
}

impl Sets {
    pub(crate) fn new(count: usize) -> Self {
        Self { parent: (0..count).collect(), size: alloc::vec![1; count] }
    }

    pub(crate) fn find(&mut self, mut at: usize) -> usize {
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

    pub(crate) fn join(&mut self, a: usize, b: usize) {
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

/// The partition of all functions of a table into groups: each sorted by address, and in order of their first
/// members. Requester ids that only firmware knows are not considered.
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
