//! Views of requester ids without a known function: devices that firmware names, and buses where devices may come.

use alloc::vec::Vec;

use crate::policy::ids::UnitIndex;
use crate::policy::registry::Registry;
use crate::policy::step::Binding;
use crate::policy::view::{NamedView, VacantBuses};
use crate::topology::pci::PciFunction;

impl Registry {
    /// The devices behind a unit that firmware names and that are no PCI functions, in the order of the firmware
    /// table.
    pub fn named(&self, unit: UnitIndex) -> impl Iterator<Item = NamedView> + '_ {
        let machine = &self.state.machine;
        let of_unit =
            machine.firmware.named.iter().filter(move |named| named.unit == unit.0 as usize);
        of_unit.map(move |named| {
            let address = machine.place_of(named);
            let entry = address.and_then(|at| machine.sources.get((unit, at.requester)));
            NamedView {
                name: named.name.clone(),
                address,
                binding: entry.and_then(|entry| entry.binding).unwrap_or(Binding::Blocked),
                is_function: address.is_some_and(|at| machine.generation(at) > 0),
            }
        })
    }

    /// Buses without a known function, behind ports where devices come and go. Devices that appear there are denied
    /// until they are known. In order of the ports' addresses; only behind ports that have a unit in front of them.
    #[must_use]
    pub fn vacant_buses(&self) -> Vec<VacantBuses> {
        let mut found: Vec<VacantBuses> = Vec::new();
        for port in self.state.machine.table.iter().filter(|port| port.hot_plug) {
            let unit = self.state.machine.find(port.address).and_then(|(_, known)| known.unit);
            let (Some(unit), Some(buses)) = (unit, port.buses()) else { continue };
            for bus in buses.secondary..=buses.subordinate {
                if !self.is_vacant(port, bus) {
                    continue;
                }
                match found.last_mut() {
                    Some(known)
                        if known.port == port.address && known.last.checked_add(1) == Some(bus) =>
                    {
                        known.last = bus;
                    }
                    _ => {
                        found.push(VacantBuses { port: port.address, unit, first: bus, last: bus })
                    }
                }
            }
        }
        found
    }

    /// Whether a bus has no function, and `port` is the nearest port above it where devices come and go.
    fn is_vacant(&self, port: &PciFunction, bus: u8) -> bool {
        let view = self.state.machine.table.view();
        let segment = port.address.segment;
        if view.on_bus(segment, bus).next().is_some() {
            return false;
        }
        let Some(nearest) = view.bridge_above(segment, bus) else { return false };
        let mut above = core::iter::once(nearest).chain(view.path(nearest.address));
        let is_slot = |bridge: &&PciFunction| bridge.hot_plug;
        above.find(is_slot).is_some_and(|slot| slot.address == port.address)
    }
}
