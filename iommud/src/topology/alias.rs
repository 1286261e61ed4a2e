//! Requester ids under which the requests of a function may arrive at a unit.

use alloc::boxed::Box;
use alloc::vec::Vec;

use iommu_protocol::ids::RequesterId;

use crate::topology::firmware::UnitDescription;
use crate::topology::pci::{FunctionKind, PciFunction};
use crate::topology::quirks::dma;
use crate::topology::table::View;

/// The requester ids of a function beside its own, each once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Aliases {
    #[expect(
        clippy::box_collection,
        reason = "few functions have any, and every function has this"
    )]
    ids: Option<Box<Vec<RequesterId>>>,
}

impl Aliases {
    /// All requester ids of the function: `own` first, then the others.
    pub fn with(&self, own: RequesterId) -> impl Iterator<Item = RequesterId> + '_ {
        let others = self.ids.iter().flat_map(|ids| ids.iter());
        core::iter::once(own).chain(others.copied())
    }

    /// The requester id with this number in [`Aliases::with`].
    #[must_use]
    pub fn nth(&self, own: RequesterId, number: usize) -> Option<RequesterId> {
        match number.checked_sub(1) {
            None => Some(own),
            Some(number) => self.ids.as_ref()?.get(number).copied(),
        }
    }

    fn add(&mut self, own: RequesterId, id: RequesterId) {
        if self.with(own).all(|known| known != id) {
            self.ids.get_or_insert_default().push(id);
        }
    }
}

/// Finds the requester ids of a function beside its own.
///
/// Conventional bridges replace the requester id of requests from behind them. A bridge from PCI Express to PCI puts
/// `secondary:00.0` there (PCI Express to PCI/PCI-X Bridge Specification 1.0 section 2.3), another one its own id.
/// The unit's firmware table may name one more id (IVRS alias entries).
#[must_use]
pub fn aliases(view: View<'_>, unit: Option<&UnitDescription>, function: &PciFunction) -> Aliases {
    let own = function.address.requester;
    let mut found = Aliases::default();
    let mut add = |id| found.add(own, id);
    dma::ids(function, &mut add);
    for bridge in view.path(function.address) {
        let secondary = bridge.buses().and_then(|buses| RequesterId::new(buses.secondary, 0, 0));
        match bridge.kind {
            FunctionKind::ExpressToConventional(_) => secondary.into_iter().for_each(&mut add),
            FunctionKind::ConventionalToExpress(_) => add(bridge.address.requester),
            FunctionKind::ConventionalBridge(_) => {
                add(bridge.address.requester);
                if dma::uses_secondary_bus(bridge) {
                    secondary.into_iter().for_each(&mut add);
                }
            }
            _ => {}
        }
    }
    let entries = unit.map_or(&[][..], |unit| &unit.entries);
    let names = entries.iter().rev().find(|entry| entry.first <= own && own <= entry.last);
    names.and_then(|entry| entry.alias).into_iter().for_each(&mut add);
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::{PhysAddr, PhysRange};
    use crate::topology::firmware::{EntryRange, UnitKind};
    use crate::topology::pci::Buses;
    use crate::topology::table::FunctionTable;
    use crate::topology::testing::{address, bridge, endpoint, function};

    fn ids(table: &FunctionTable, of: &PciFunction) -> Vec<u16> {
        let own = of.address.requester;
        aliases(table.view(), None, of).with(own).map(|id| id.0).collect()
    }

    const BUSES: Buses = Buses { secondary: 2, subordinate: 3 };

    #[test]
    fn behind_express_to_pci_requests_come_from_the_secondary_bus() {
        let mut table = FunctionTable::default();
        table.insert(bridge(0, 1, 0, 1, 4));
        table.insert(function(address(1, 0, 0), FunctionKind::ExpressToConventional(BUSES)));
        let device = function(address(2, 5, 1), FunctionKind::Conventional);
        table.insert(device);
        assert_eq!(ids(&table, &device), [0x0229, 0x0200]);
    }

    #[test]
    fn behind_a_conventional_bridge_requests_come_from_the_bridge() {
        let mut table = FunctionTable::default();
        let mut up = function(address(0, 30, 0), FunctionKind::ConventionalBridge(BUSES));
        table.insert(up);
        let device = function(address(2, 1, 0), FunctionKind::Conventional);
        assert_eq!(ids(&table, &device), [0x0208, 0x00f0]);

        (up.vendor, up.device) = (0x8086, 0x244e);
        table.remove(up.address);
        table.insert(up);
        assert_eq!(ids(&table, &device), [0x0208, 0x00f0, 0x0200]);
    }

    #[test]
    fn express_ports_keep_the_id_and_a_function_is_not_its_own_alias() {
        let mut table = FunctionTable::default();
        table.insert(bridge(0, 1, 0, 1, 4));
        assert_eq!(ids(&table, &endpoint(1, 0, 0)), [0x0100]);
        let to_pci = function(address(0, 2, 0), FunctionKind::ExpressToConventional(BUSES));
        table.insert(to_pci);
        assert_eq!(ids(&table, &function(address(2, 0, 0), FunctionKind::Conventional)), [0x0200]);
    }

    #[test]
    fn a_known_device_arrives_as_another_function() {
        let table = FunctionTable::default();
        let mut sata = endpoint(3, 0, 0);
        for (vendor, device) in [(0x1b4b, 0x9230), (0x1b4b, 0x9235), (0x1103, 0x0645)] {
            (sata.vendor, sata.device) = (vendor, device);
            assert_eq!(ids(&table, &sata), [0x0300, 0x0301]);
        }
        sata.address = address(3, 0, 1);
        assert_eq!(ids(&table, &sata), [0x0301], "not its own alias");
    }

    #[test]
    fn firmware_names_an_alias() {
        let entry = |first, last, alias| EntryRange {
            first: RequesterId(first),
            last: RequesterId(last),
            alias,
            settings: 0,
        };
        let unit = UnitDescription {
            kind: UnitKind::Vtd,
            segment: 0,
            registers: Ok(PhysRange::new(PhysAddr(0xfed9_0000), 4096).unwrap()),
            include_all: false,
            scopes: Vec::new(),
            entries: [
                entry(0, 0xffff, None),
                entry(0x0300, 0x03ff, Some(RequesterId(0x00a4))),
                entry(0x0400, 0x04ff, Some(RequesterId(0x00a5))),
            ]
            .into(),
        };
        let table = FunctionTable::default();
        let found = aliases(table.view(), Some(&unit), &endpoint(3, 1, 0));
        let found: Vec<_> = found.with(RequesterId(0x0308)).collect();
        assert_eq!(found, [RequesterId(0x0308), RequesterId(0x00a4)]);
    }
}
