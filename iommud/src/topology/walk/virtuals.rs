//! Virtual functions (SR-IOV): their requester ids follow from registers of their physical function, and no
//! identity of their own is in configuration space (PCI Express Base 6.0 sections 9.2.1.2, 9.3.3, 9.3.4).

use alloc::vec::Vec;

use iommu_protocol::ids::{PciAddress, RequesterId};

use super::look::look_at_virtual;
use super::{Walk, high, low};
use crate::topology::pci::PciFunction;

/// Offsets in the capability: control, number that can be, number that is, offset and stride, device id.
const CONTROL: u32 = 0x08;
const TOTAL: u32 = 0x0c;
const NUMBER: u32 = 0x10;
const PLACES: u32 = 0x14;
const DEVICE: u32 = 0x18;
/// Control: VF Enable.
const ENABLE: u32 = 1;

/// The virtual functions of one physical function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Virtuals {
    count: u16,
    /// From the id of the physical function to that of the first virtual one.
    offset: u16,
    /// From one virtual function to the next.
    stride: u16,
    device: u16,
}

/// How many virtual functions there can be, and those there are, from words of the capability. While they are
/// disabled their places are not defined.
pub(super) fn read(word: &mut dyn FnMut(u32) -> u32) -> Option<(u16, Option<Virtuals>)> {
    let mut read = |offset| Some(word(offset)).filter(|word| *word != u32::MAX);
    let total = high(read(TOTAL)?);
    if total == 0 || read(CONTROL)? & ENABLE == 0 {
        return Some((total, None));
    }
    let count = low(read(NUMBER)?).min(total);
    let places = read(PLACES)?;
    let device = high(read(DEVICE)?);
    Some((total, Some(Virtuals { count, offset: low(places), stride: high(places), device })))
}

impl Virtuals {
    /// Their requester ids: ascending, up to the last there can be.
    fn ids(self, physical: RequesterId) -> impl Iterator<Item = RequesterId> {
        let first = u32::from(physical.0) + u32::from(self.offset);
        (0..u32::from(self.count))
            .map_while(move |n| u16::try_from(first + n * u32::from(self.stride)).ok())
            .map(RequesterId)
    }
}

impl Walk<'_> {
    /// Enters all virtual functions.
    ///
    /// A device makes up these numbers. So a virtual function is entered only behind the same bridge as its
    /// physical one, where the bridge lets no other id through; and at the first id that is somebody's already
    /// the rest are left out. Ids that are left out are denied.
    pub(super) fn virtual_functions(&mut self) {
        if self.physical.is_empty() {
            return;
        }
        let above = self.bridges();
        let mut taken = Taken::new(self.found.get(self.first..).unwrap_or_default());
        for (physical, virtuals) in core::mem::take(&mut self.physical) {
            let own = physical.address.requester;
            let bridge = |id: RequesterId| above.get(usize::from(id.bus()));
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
        look_at_virtual(self.config, &mut function);
        self.found.push(function);
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

/// Requester ids that are somebody's.
struct Taken(Vec<u64>);

impl Taken {
    fn new(functions: &[PciFunction]) -> Self {
        let mut taken = Self(alloc::vec![0; 1024]);
        for function in functions {
            taken.take(function.address.requester);
        }
        taken
    }

    /// True when it was nobody's.
    fn take(&mut self, id: RequesterId) -> bool {
        let bit = 1 << (id.0 % 64);
        let Some(word) = self.0.get_mut(usize::from(id.0 / 64)) else { return false };
        let free = *word & bit == 0;
        *word |= bit;
        free
    }
}
