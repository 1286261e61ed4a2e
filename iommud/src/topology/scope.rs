//! Finds the unit in front of a function, and the regions that firmware reserves for it.

use alloc::vec::Vec;

use iommu_protocol::ids::{PciAddress, RequesterId};

use crate::topology::firmware::{
    DeviceScope, EntryRange, Firmware, ReservedRegion, ScopeKind, UnitKind,
};
use crate::topology::pci::{Buses, PciFunction};
use crate::topology::table::View;

/// The function that a device scope names on the present machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Resolved {
    address: PciAddress,
    /// The buses behind it, if it is a bridge. They are included even if the scope calls the bridge an endpoint.
    behind: Option<Buses>,
}

impl Resolved {
    /// How precisely this names the function `of`: 256 if it is the function itself, else the secondary bus of the
    /// bridge.
    fn precision(self, of: PciAddress) -> Option<u16> {
        if self.address == of {
            return Some(256);
        }
        self.behind
            .filter(|buses| {
                self.address.segment == of.segment && buses.contains(of.requester.bus())
            })
            .map(|buses| u16::from(buses.secondary))
    }
}

/// Follows the path of a scope through the known bridges.
fn resolve(view: View<'_>, segment: u16, scope: &DeviceScope) -> Option<Resolved> {
    let behind = match scope.kind {
        ScopeKind::Endpoint | ScopeKind::Bridge => true,
        ScopeKind::Namespace(_) => false,
        // These send interrupts and do no DMA.
        ScopeKind::IoApic(_) | ScopeKind::Hpet(_) => return None,
    };
    let address = place(view, segment, scope.start_bus, &scope.path)?;
    let behind = view.find(address).filter(|_| behind).and_then(PciFunction::buses);
    Some(Resolved { address, behind })
}

/// Follows a path of device and function numbers from a bus. `None` while a bridge on the way is not known.
#[must_use]
pub fn place(view: View<'_>, segment: u16, start_bus: u8, path: &[(u8, u8)]) -> Option<PciAddress> {
    let (&(device, function), bridges) = path.split_last()?;
    let mut bus = start_bus;
    for &(device, function) in bridges {
        let bridge = view.find(PciAddress::new(segment, bus, device, function)?)?;
        bus = bridge.buses()?.secondary;
    }
    PciAddress::new(segment, bus, device, function)
}

fn in_entries(entries: &[EntryRange], id: RequesterId) -> Option<u16> {
    entries
        .iter()
        .filter(|entry| entry.first <= id && id <= entry.last)
        .map(|entry| entry.last.0.wrapping_sub(entry.first.0))
        .min()
}

/// The scopes of all units and reserved regions, resolved for one set of bridges.
#[derive(Clone, Debug, Default)]
pub struct Scopes {
    units: Vec<Vec<Resolved>>,
    reserved: Vec<Vec<Resolved>>,
}

impl Scopes {
    /// Resolves every scope. Must be done again when a bridge is added or removed.
    #[must_use]
    pub fn new(firmware: &Firmware, view: View<'_>) -> Self {
        let all = |segment: u16, scopes: &[DeviceScope]| {
            scopes.iter().filter_map(|scope| resolve(view, segment, scope)).collect()
        };
        Self {
            units: firmware.units.iter().map(|unit| all(unit.segment, &unit.scopes)).collect(),
            reserved: firmware
                .reserved
                .iter()
                .map(|region| all(region.segment, &region.scopes))
                .collect(),
        }
    }

    /// Index of the unit in front of a function: the unit that names it most precisely. Most precise is the function
    /// itself, then the innermost bridge, then the smallest range of requester ids. Among equals it is the first in
    /// firmware order. If no unit names the function, it is the one that takes the rest of the segment. A unit that
    /// is a PCI function itself is behind none.
    #[must_use]
    pub fn unit(&self, firmware: &Firmware, function: &PciFunction) -> Option<usize> {
        let segment = function.address.segment;
        let mut best: Option<(u32, usize)> = None;
        let mut offer = |rank: u32, index: usize| {
            if best.is_none_or(|(known, _)| rank > known) {
                best = Some((rank, index));
            }
        };
        for (index, unit) in firmware.units.iter().enumerate() {
            if unit.segment != segment {
                continue;
            }
            if let UnitKind::AmdVi { function: itself, .. } = unit.kind
                && itself == function.address.requester
            {
                return None;
            }
            let scopes = self.units.get(index).map_or(&[][..], Vec::as_slice);
            if let Some(precision) =
                scopes.iter().filter_map(|scope| scope.precision(function.address)).max()
            {
                offer(0x1_0001 + u32::from(precision), index);
            }
            if let Some(span) = in_entries(&unit.entries, function.address.requester) {
                offer(0x1_0000 - u32::from(span), index);
            }
        }
        best.map(|(_, index)| index).or_else(|| firmware.default_unit(segment))
    }

    /// The regions that firmware reserves for the function at an address.
    pub fn reserved<'a>(
        &'a self,
        firmware: &'a Firmware,
        address: PciAddress,
    ) -> impl Iterator<Item = &'a ReservedRegion> {
        firmware.reserved.iter().enumerate().filter_map(move |(index, region)| {
            let scopes = self.reserved.get(index).map_or(&[][..], Vec::as_slice);
            let named = region.segment == address.segment
                && (scopes.iter().any(|scope| scope.precision(address).is_some())
                    || in_entries(&region.entries, address.requester).is_some());
            named.then_some(region)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::{PhysAddr, PhysRange};
    use crate::topology::firmware::{UnitDefect, UnitDescription};
    use crate::topology::table::FunctionTable;
    use crate::topology::testing::{bridge, endpoint};

    fn unit(include_all: bool, scopes: Vec<DeviceScope>) -> UnitDescription {
        UnitDescription {
            kind: UnitKind::Vtd,
            segment: 0,
            registers: Ok(PhysRange::new(PhysAddr(0xfed9_0000), 4096).unwrap()),
            include_all,
            scopes,
            entries: Vec::new(),
        }
    }

    fn scope(kind: ScopeKind, start_bus: u8, path: &[(u8, u8)]) -> DeviceScope {
        DeviceScope { kind, start_bus, path: path.to_vec() }
    }

    fn units(units: Vec<UnitDescription>) -> Firmware {
        Firmware { units, ..Firmware::default() }
    }

    fn machine() -> FunctionTable {
        let mut table = FunctionTable::default();
        for function in [
            bridge(0, 1, 0, 1, 4),
            bridge(1, 2, 0, 3, 4),
            endpoint(3, 0, 0),
            endpoint(1, 3, 0),
            endpoint(0, 2, 0),
        ] {
            table.insert(function);
        }
        table
    }

    fn unit_of(firmware: &Firmware, function: &PciFunction) -> Option<usize> {
        Scopes::new(firmware, machine().view()).unit(firmware, function)
    }

    #[test]
    fn what_no_unit_names_may_be_behind_a_unit_that_cannot_be_used() {
        let mut broken = unit(true, Vec::new());
        broken.registers = Err(UnitDefect::BadScope { offset: 64 });
        let firmware = units(vec![unit(true, Vec::new()), broken]);
        let functions = FunctionTable::default();
        let scopes = Scopes::new(&firmware, functions.view());
        assert_eq!(scopes.unit(&firmware, &endpoint(0, 4, 0)), Some(1));
    }

    #[test]
    fn explicit_scope_before_include_all_in_any_order() {
        let display = scope(ScopeKind::Endpoint, 0, &[(2, 0)]);
        for order in [
            [unit(true, vec![]), unit(false, vec![display.clone()])],
            [unit(false, vec![display.clone()]), unit(true, vec![])],
        ] {
            let firmware = units(order.to_vec());
            let named = usize::from(order[0].include_all);
            assert_eq!(unit_of(&firmware, &endpoint(0, 2, 0)), Some(named));
            assert_eq!(unit_of(&firmware, &endpoint(0, 3, 0)), Some(1 - named));
        }
    }

    #[test]
    fn a_bridge_scope_takes_all_behind_and_a_closer_name_wins() {
        let firmware = units(vec![
            unit(false, vec![scope(ScopeKind::Bridge, 0, &[(1, 0)])]),
            unit(false, vec![scope(ScopeKind::Bridge, 0, &[(1, 0), (2, 0)])]),
            unit(false, vec![scope(ScopeKind::Endpoint, 0, &[(1, 0), (2, 0), (0, 0)])]),
        ]);
        assert_eq!(unit_of(&firmware, &bridge(0, 1, 0, 1, 4)), Some(0));
        assert_eq!(unit_of(&firmware, &endpoint(1, 3, 0)), Some(0));
        assert_eq!(unit_of(&firmware, &bridge(1, 2, 0, 3, 4)), Some(1));
        assert_eq!(unit_of(&firmware, &endpoint(3, 1, 0)), Some(1));
        assert_eq!(unit_of(&firmware, &endpoint(3, 0, 0)), Some(2));
        assert_eq!(unit_of(&firmware, &endpoint(0, 2, 0)), None);
    }

    #[test]
    fn a_path_through_an_unknown_bridge_names_nothing_until_it_is_known() {
        let firmware =
            units(vec![unit(false, vec![scope(ScopeKind::Endpoint, 0, &[(9, 0), (0, 0)])])]);
        let device = endpoint(8, 0, 0);
        let mut table = machine();
        assert_eq!(Scopes::new(&firmware, table.view()).unit(&firmware, &device), None);
        table.insert(bridge(0, 9, 0, 8, 8));
        assert_eq!(Scopes::new(&firmware, table.view()).unit(&firmware, &device), Some(0));
    }

    #[test]
    fn other_segments_and_other_kinds_of_scope_do_not_match() {
        let mut firmware = units(vec![
            unit(false, vec![scope(ScopeKind::IoApic(2), 0, &[(2, 0)])]),
            unit(true, vec![]),
        ]);
        assert_eq!(unit_of(&firmware, &endpoint(0, 2, 0)), Some(1));
        firmware.units[1].segment = 1;
        assert_eq!(unit_of(&firmware, &endpoint(0, 2, 0)), None);
    }

    #[test]
    fn requester_ranges_match_by_the_smallest_and_the_unit_itself_is_behind_none() {
        let mut all = unit(false, vec![]);
        all.kind =
            UnitKind::AmdVi { function: RequesterId(2), capability: 64, flags: 0, features: None };
        let range = |first, last| EntryRange {
            first: RequesterId(first),
            last: RequesterId(last),
            alias: None,
            settings: 0,
        };
        let mut one = all.clone();
        all.entries = vec![range(0, 0xffff)];
        one.entries = vec![range(0x0300, 0x0307)];
        let firmware = units(vec![all, one]);
        assert_eq!(unit_of(&firmware, &endpoint(3, 0, 0)), Some(1));
        assert_eq!(unit_of(&firmware, &endpoint(3, 1, 0)), Some(0));
        assert_eq!(unit_of(&firmware, &endpoint(0, 0, 2)), None);
    }

    #[test]
    fn reserved_regions_are_found_by_scope_and_by_requester_range() {
        let region = |start, scopes, entries| ReservedRegion {
            segment: 0,
            range: PhysRange::new(PhysAddr(start), 4096).unwrap(),
            read: true,
            write: true,
            exclusion: false,
            scopes,
            entries,
        };
        let entry = EntryRange {
            first: RequesterId(0x0300),
            last: RequesterId(0x03ff),
            alias: None,
            settings: 0,
        };
        let firmware = Firmware {
            reserved: vec![
                region(0x1000, vec![scope(ScopeKind::Endpoint, 0, &[(2, 0)])], vec![]),
                region(0x2000, vec![], vec![entry]),
                region(0x3000, vec![scope(ScopeKind::Bridge, 0, &[(1, 0)])], vec![]),
            ],
            ..Firmware::default()
        };
        let scopes = Scopes::new(&firmware, machine().view());
        let of = |function: PciFunction| -> Vec<u64> {
            scopes
                .reserved(&firmware, function.address)
                .map(|region| region.range.first().0)
                .collect()
        };
        assert_eq!(of(endpoint(0, 2, 0)), [0x1000]);
        assert_eq!(of(endpoint(3, 0, 0)), [0x2000, 0x3000]);
        assert_eq!(of(endpoint(0, 3, 0)), [0u64; 0]);
    }
}
