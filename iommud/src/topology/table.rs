//! The PCI functions of the machine, found by address, and the bridges above them.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use iommu_protocol::ids::{PciAddress, RequesterId};

use crate::topology::numbers::AddressNumbers;
use crate::topology::pci::{Buses, FunctionKind, PciFunction};
use crate::topology::pool::{NOWHERE, Pool};

/// Number of a function in a [`FunctionTable`]. Numbers of removed functions are used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FunctionIndex(pub u32);

/// All known functions, and the bridges above them.
#[derive(Clone, Debug, Default)]
pub struct FunctionTable {
    functions: Pool<PciFunction>,
    /// Indices of functions, by address.
    places: AddressNumbers,
    bridges: BTreeMap<(u16, u8), Vec<PciAddress>>,
}

impl FunctionTable {
    /// The index that [`FunctionTable::insert`] will give next.
    #[must_use]
    pub fn next_index(&self) -> FunctionIndex {
        FunctionIndex(self.functions.next())
    }

    /// Makes room for `more` more functions.
    pub fn reserve(&mut self, more: usize) {
        self.functions.reserve(more);
    }

    /// Enters a function. If there is one with the same address, keeps that one and returns its index.
    pub fn insert(&mut self, function: PciFunction) -> FunctionIndex {
        let address = function.address;
        let known = self.functions.len();
        let functions = &mut self.functions;
        let index = self.places.update(address, |present| {
            present.or_else(|| functions.insert(function)).unwrap_or(NOWHERE)
        });
        if self.functions.len() > known
            && let Some(buses) = function.buses()
        {
            let claims = self.bridges.entry((address.segment, buses.secondary)).or_default();
            let at = claims.partition_point(|other| *other < address);
            claims.insert(at, address);
        }
        FunctionIndex(index)
    }

    /// Removes a function and returns it.
    pub fn remove(&mut self, address: PciAddress) -> Option<PciFunction> {
        let index = self.places.remove(address)?;
        let function = self.functions.remove(index)?;
        if let Some(buses) = function.buses() {
            let key = (address.segment, buses.secondary);
            if let Some(claims) = self.bridges.get_mut(&key) {
                claims.retain(|other| *other != address);
                if claims.is_empty() {
                    self.bridges.remove(&key);
                }
            }
        }
        Some(function)
    }

    /// The index of the function at an address.
    #[must_use]
    pub fn index(&self, address: PciAddress) -> Option<FunctionIndex> {
        self.places.get(address).map(FunctionIndex)
    }

    /// The function with an index.
    #[must_use]
    pub fn get(&self, index: FunctionIndex) -> Option<&PciFunction> {
        self.functions.get(index.0)
    }

    /// The function at an address.
    #[must_use]
    pub fn find(&self, address: PciAddress) -> Option<&PciFunction> {
        self.get(self.index(address)?)
    }

    /// All functions, in order of address.
    pub fn iter(&self) -> impl Iterator<Item = &PciFunction> + '_ {
        self.places.iter().filter_map(|index| self.functions.get(index))
    }

    /// Number of functions.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.functions.len()
    }

    /// Whether there is no function.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The table as it is.
    #[must_use]
    pub const fn view(&self) -> View<'_> {
        View { table: self, plus: None, minus: None }
    }

    /// The table as it would be with one more function.
    #[must_use]
    pub const fn with<'a>(&'a self, function: &'a PciFunction) -> View<'a> {
        View { table: self, plus: Some(function), minus: None }
    }

    /// The table as it would be without a function.
    #[must_use]
    pub const fn without(&self, address: PciAddress) -> View<'_> {
        View { table: self, plus: None, minus: Some(address) }
    }
}

/// A table, perhaps with one function more or less. Decisions about hot-plug are made on it.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    table: &'a FunctionTable,
    plus: Option<&'a PciFunction>,
    minus: Option<PciAddress>,
}

impl<'a> View<'a> {
    /// The function at an address.
    #[must_use]
    pub fn find(self, address: PciAddress) -> Option<&'a PciFunction> {
        if self.minus == Some(address) {
            return None;
        }
        match self.plus {
            Some(plus) if plus.address == address => Some(plus),
            _ => self.table.find(address),
        }
    }

    /// The other functions of the same device.
    pub fn siblings(self, address: PciAddress) -> impl Iterator<Item = &'a PciFunction> {
        let RequesterId(id) = address.requester;
        (0..8)
            .map(move |n| PciAddress {
                segment: address.segment,
                requester: RequesterId(id & !7 | n),
            })
            .filter(move |other| *other != address)
            .filter_map(move |other| self.find(other))
    }

    /// Whether a bridge leads to a link. One device is at the end of a link. It owns all buses behind that no other
    /// bridge leads to. Functions above 7 (ARI) and virtual functions look like other devices and other buses.
    fn is_link(bridge: &PciFunction) -> bool {
        matches!(bridge.kind, FunctionKind::RootPort(_) | FunctionKind::DownstreamPort(_))
    }

    /// Finds one other function of the device at the end of a link: the nearest below `address` that `accept`s, or
    /// else the nearest above. Such steps lead from each of them to all. `None` also if there is no link.
    pub fn peer_at_link(
        self,
        address: PciAddress,
        accept: impl Fn(&PciFunction) -> bool,
    ) -> Option<&'a PciFunction> {
        let (segment, own) = (address.segment, address.requester);
        let port = self.bridge_above(segment, own.bus()).filter(|port| Self::is_link(port))?;
        let buses = port.buses()?;
        let here = |bus| {
            self.bridge_above(segment, bus).is_some_and(|above| above.address == port.address)
        };
        let is_peer = |function: &&PciFunction| {
            let of = function.address.requester;
            of != own
                && self.minus != Some(function.address)
                && accept(function)
                && (of.bus() == own.bus() || here(of.bus()))
        };
        let places = self.table.places.of(segment);
        let find = |(_, index)| self.table.get(FunctionIndex(index));
        let mut below = places
            .into_iter()
            .flat_map(|places| places.below(own, buses.secondary))
            .filter_map(find);
        let mut above = places
            .into_iter()
            .flat_map(|places| places.range(own.bus()..=buses.subordinate))
            .filter_map(find)
            .filter(|function| function.address.requester > own);
        below.find(is_peer).or_else(|| above.find(is_peer))
    }

    /// The functions of a bus, by address.
    pub fn on_bus(self, segment: u16, bus: u8) -> impl Iterator<Item = &'a PciFunction> {
        self.behind(segment, Buses { secondary: bus, subordinate: bus })
    }

    /// The bridges with this secondary bus, by address. A sane machine has at most one.
    pub fn claims(self, segment: u16, bus: u8) -> impl Iterator<Item = &'a PciFunction> {
        let known = self.table.bridges.get(&(segment, bus)).map_or(&[][..], Vec::as_slice);
        let plus = self.plus.filter(move |function| {
            function.address.segment == segment
                && function.buses().is_some_and(|buses| buses.secondary == bus)
        });
        known.iter().filter_map(move |address| self.find(*address)).chain(plus)
    }

    /// The bridge directly above a bus: the one with this secondary bus (the lowest address, if several claim it), or
    /// else the innermost one whose range contains the bus.
    #[must_use]
    #[inline]
    pub fn bridge_above(self, segment: u16, bus: u8) -> Option<&'a PciFunction> {
        if self.table.bridges.is_empty() && self.plus.is_none() {
            return None;
        }
        self.nearest(segment, bus)
    }

    fn nearest(self, segment: u16, bus: u8) -> Option<&'a PciFunction> {
        if let Some(direct) = self.claims(segment, bus).min_by_key(|bridge| bridge.address) {
            return Some(direct);
        }
        let around = |bridge: &&PciFunction| {
            bridge.address.segment == segment
                && bridge.buses().is_some_and(|buses| buses.contains(bus))
        };
        let known = self
            .table
            .bridges
            .range((segment, 0)..=(segment, bus))
            .rev()
            .flat_map(|(_, addresses)| addresses.iter())
            .filter_map(|address| self.find(*address))
            .find(around);
        known
            .into_iter()
            .chain(self.plus.filter(around))
            .max_by_key(|bridge| bridge.buses().map(|buses| buses.secondary))
    }

    /// The bridges above a function, from the nearest to the root. The iteration ends, because each bridge is on a
    /// lower bus than the one behind it.
    pub fn path(self, address: PciAddress) -> impl Iterator<Item = &'a PciFunction> {
        let above = move |of: PciAddress| self.bridge_above(of.segment, of.requester.bus());
        core::iter::successors(above(address), move |bridge| above(bridge.address))
    }

    /// The functions on the buses behind a bridge, at any depth, by address.
    pub fn behind(self, segment: u16, buses: Buses) -> impl Iterator<Item = &'a PciFunction> {
        let places = self.table.places.of(segment);
        let known = places
            .into_iter()
            .flat_map(move |places| places.range(buses.secondary..=buses.subordinate))
            .filter_map(move |(_, index)| self.table.get(FunctionIndex(index)))
            .filter(move |function| self.minus != Some(function.address));
        let plus = self.plus.filter(move |function| {
            function.address.segment == segment
                && buses.contains(function.address.requester.bus())
                && self.table.index(function.address).is_none()
        });
        known.chain(plus)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::testing::{address, bridge, endpoint};

    #[test]
    fn what_is_entered_is_found_until_removed() {
        let mut table = FunctionTable::default();
        let a = endpoint(0, 3, 0);
        let index = table.insert(a);
        assert_eq!(table.insert(a), index, "entered once");
        assert_eq!(table.find(a.address), Some(&a));
        assert_eq!(table.len(), 1);
        assert_eq!(table.remove(a.address), Some(a));
        assert_eq!((table.len(), table.remove(a.address)), (0, None));
        assert_eq!(table.next_index(), index, "numbers are used again");
    }

    #[test]
    fn path_leads_from_the_nearest_bridge_to_the_root() {
        let mut table = FunctionTable::default();
        for function in [bridge(0, 1, 0, 1, 4), bridge(1, 0, 0, 2, 3), endpoint(2, 0, 0)] {
            table.insert(function);
        }
        let path: Vec<_> =
            table.view().path(address(2, 0, 0)).map(|bridge| bridge.address).collect();
        assert_eq!(path, [address(1, 0, 0), address(0, 1, 0)]);
        assert_eq!(table.view().path(address(0, 1, 0)).count(), 0);
        let nearest = table.view().bridge_above(0, 4).map(|bridge| bridge.address);
        assert_eq!(
            nearest,
            Some(address(0, 1, 0)),
            "a bus inside a range has the innermost bridge"
        );
    }

    #[test]
    fn a_view_adds_and_hides_one_function() {
        let mut table = FunctionTable::default();
        table.insert(endpoint(2, 0, 0));
        let up = bridge(0, 1, 0, 1, 4);
        assert_eq!(table.with(&up).path(address(2, 0, 0)).count(), 1);
        assert_eq!(table.with(&up).behind(0, Buses { secondary: 1, subordinate: 4 }).count(), 1);
        table.insert(up);
        assert_eq!(table.without(up.address).path(address(2, 0, 0)).count(), 0);
        assert_eq!(table.view().path(address(2, 0, 0)).count(), 1);
    }

    #[test]
    fn bridges_that_point_upwards_or_at_themselves_lead_nowhere() {
        let mut table = FunctionTable::default();
        table.insert(bridge(2, 0, 0, 1, 9));
        table.insert(bridge(1, 0, 0, 2, 9));
        table.insert(bridge(3, 0, 0, 3, 3));
        table.insert(bridge(4, 0, 0, 9, 5));
        for bus in 0..=255 {
            assert!(table.view().path(address(bus, 5, 0)).count() <= 1);
        }
    }
}
