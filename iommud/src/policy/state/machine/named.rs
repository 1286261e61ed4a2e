//! Devices that firmware names and that are no PCI functions: eMMC, I2C or UART controllers that do DMA under a
//! requester id of their own.
//!
//! They cannot be claimed. Policy decides on the entry as on that of an unclaimed function. Once a function was known
//! by the id, the function decides, also after it was removed: later requests may not be those of the named device.

use alloc::vec::Vec;

use iommu_protocol::ids::PciAddress;

use super::{Machine, TargetBinding};
use crate::policy::config::Mode;
use crate::policy::ids::{Key, UnitIndex};
use crate::policy::state::domain::Shared;
use crate::policy::state::objects::Unit;
use crate::topology::firmware::NamedDevice;
use crate::topology::scope;

impl Machine {
    /// The address of a device that firmware names; `None` while a bridge above it is not known.
    pub(in crate::policy) fn place_of(&self, device: &NamedDevice) -> Option<PciAddress> {
        let segment = self.firmware.units.get(device.unit)?.segment;
        scope::place(self.table.view(), segment, device.start_bus, &device.path)
    }

    /// The entries of devices that firmware names behind a unit. They are created before the unit translates, when
    /// the functions of the machine are known.
    pub(in crate::policy) fn named_entries(&self, unit: UnitIndex) -> Vec<Key> {
        let devices = self.firmware.named.iter().filter(|named| named.unit == unit.0 as usize);
        let places = devices.filter_map(|named| self.place_of(named));
        let unused = |place: &PciAddress| {
            let key = (unit, place.requester);
            let taken = self.taken.contains(&key) || self.sources.get(key).is_some();
            !taken && self.generation(*place) == 0
        };
        places.filter(unused).map(|place| (unit, place.requester)).collect()
    }

    /// Records that a function that used a requester id is gone: a named device no longer opens the id.
    pub(super) fn take_named(&mut self, key: Key) {
        if self.firmware.named.iter().any(|named| named.unit == key.0.0 as usize) {
            self.taken.insert(key);
        }
    }

    /// The binding of a requester id that firmware names and no function uses.
    pub(super) fn target_of_named(&self, (unit, requester): Key) -> TargetBinding {
        let description = self.firmware.units.get(unit.0 as usize);
        let (Some(description), Some(Unit::Enabled { capabilities, class })) =
            (description, self.unit(unit))
        else {
            return TargetBinding::Blocked;
        };
        let place = PciAddress { segment: description.segment, requester };
        match self.config.mode_at(place) {
            Mode::Off if capabilities.pass_through => TargetBinding::PassThrough,
            Mode::Off | Mode::Compat => TargetBinding::Shared(Shared::Compat(*class)),
            Mode::Strict => {
                let reserved = self.reserved_at(place);
                if reserved.is_empty() {
                    return TargetBinding::Blocked;
                }
                TargetBinding::Shared(Shared::Reserved(
                    *class,
                    crate::policy::collections::ranges::normal(&reserved),
                ))
            }
        }
    }
}
