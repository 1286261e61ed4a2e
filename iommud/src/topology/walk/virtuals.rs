//! Virtual functions (SR-IOV). Their requester ids follow from registers of their physical function. Configuration
//! space holds no identity of their own (PCI Express Base 6.0 sections 9.2.1.2, 9.3.3, 9.3.4).

use iommu_protocol::ids::RequesterId;

use super::word::{high, low};

/// Offsets in the capability: control, possible number, present number, offset and stride, device id.
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
    /// The device id of each.
    pub(super) device: u16,
}

/// Reads from words of the capability how many virtual functions are possible, and the enabled ones. While they are
/// disabled, their places are not defined.
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
    /// Their requester ids, in ascending order, up to the highest possible id.
    pub(super) fn ids(self, physical: RequesterId) -> impl Iterator<Item = RequesterId> {
        let first = u32::from(physical.0) + u32::from(self.offset);
        (0..u32::from(self.count))
            .map_while(move |n| u16::try_from(first + n * u32::from(self.stride)).ok())
            .map(RequesterId)
    }
}
