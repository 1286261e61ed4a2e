//! Enters the virtual functions of the physical ones that a walk has found.

use alloc::vec::Vec;

use iommu_protocol::ids::{PciAddress, RequesterId};

use super::Walk;
use super::look::look_at_virtual;
use crate::topology::pci::PciFunction;

impl Walk<'_> {
    /// Enters all virtual functions.
    ///
    /// A device may choose these numbers at will. So a virtual function is entered only behind the same bridge as its
    /// physical one, since the bridge lets no other id through. On a bus without a bridge, it is entered only on the
    /// physical one's bus, because no register says which other buses are the device's. At the first id that is in use
    /// already, the rest are left out. Ids that are left out are denied.
    pub(super) fn virtual_functions(&mut self) {
        if self.physical.is_empty() {
            return;
        }
        let above = self.bridges();
        let mut taken = Taken::new(self.found.get(self.first..).unwrap_or_default());
        for (physical, virtuals) in core::mem::take(&mut self.physical) {
            let own = physical.address.requester;
            let bridge = |id: RequesterId| {
                let secondary = above.get(usize::from(id.bus())).copied().unwrap_or(0);
                if secondary == 0 { id.bus() } else { secondary }
            };
            for id in virtuals.ids(own) {
                if bridge(id) != bridge(own) || !taken.take(id) {
                    break;
                }
                self.enter_virtual(&physical, virtuals.device, id);
            }
        }
    }

    fn enter_virtual(&mut self, physical: &PciFunction, device: u16, requester: RequesterId) {
        let address = PciAddress { segment: self.segment, requester };
        let mut function = PciFunction {
            address,
            device,
            multifunction: true,
            acs: None,
            acs_capability: 0,
            ..*physical
        };
        if look_at_virtual(self.config, &mut function) {
            self.found.push(function);
        }
    }

    /// The secondary bus of the innermost bridge around each bus, 0 for none.
    fn bridges(&self) -> [u8; 256] {
        let mut above = [0; 256];
        let of_segment = self.found.get(self.first..).unwrap_or_default();
        for buses in of_segment.iter().filter_map(PciFunction::buses) {
            let range = usize::from(buses.secondary)..=usize::from(buses.subordinate);
            for place in above.get_mut(range).unwrap_or_default() {
                *place = buses.secondary.max(*place);
            }
        }
        above
    }
}

/// Requester ids in use.
struct Taken(Vec<u64>);

impl Taken {
    fn new(functions: &[PciFunction]) -> Self {
        let mut taken = Self(alloc::vec![0; 1024]);
        for function in functions {
            taken.take(function.address.requester);
        }
        taken
    }

    /// Takes an id. Returns whether it was free.
    fn take(&mut self, id: RequesterId) -> bool {
        let bit = 1 << (id.0 % 64);
        let Some(word) = self.0.get_mut(usize::from(id.0 / 64)) else { return false };
        let free = *word & bit == 0;
        *word |= bit;
        free
    }
}
