//! Small numbers by address, in an array for each bus that has any.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;
use core::ops::RangeInclusive;

use iommu_protocol::ids::{PciAddress, RequesterId};

/// Stands for no number: see [`Numbers::set`].
const NONE: u32 = u32::MAX;

/// The numbers of one bus, by device and function.
#[derive(Clone)]
struct Bus {
    count: u16,
    slots: [u32; 256],
}

/// Numbers of the requester ids of one segment.
#[derive(Clone, Default)]
pub struct Numbers {
    /// By bus.
    buses: Vec<Option<Box<Bus>>>,
}

impl Numbers {
    /// The number of a requester id.
    #[must_use]
    pub fn get(&self, id: RequesterId) -> Option<u32> {
        let bus = self.buses.get(usize::from(id.bus()))?.as_ref()?;
        bus.slots.get(usize::from(id.devfn())).copied().filter(|number| *number != NONE)
    }

    /// Gives a requester id a number below 2^32 - 1, in place of the one it has.
    pub fn set(&mut self, id: RequesterId, number: u32) {
        self.update(id, |_| number);
    }

    /// Replaces the number of a requester id by the one that `new` returns for it, and returns the new number. Like
    /// [`Numbers::set`], it takes numbers below 2^32 - 1.
    pub fn update(&mut self, id: RequesterId, new: impl FnOnce(Option<u32>) -> u32) -> u32 {
        let at = usize::from(id.bus());
        if self.buses.len() <= at {
            self.buses.resize_with(at + 1, || None);
        }
        let Some(place) = self.buses.get_mut(at) else { return NONE };
        let bus = place.get_or_insert_with(|| Box::new(Bus { count: 0, slots: [NONE; 256] }));
        let Some(slot) = bus.slots.get_mut(usize::from(id.devfn())) else { return NONE };
        let number = new((*slot != NONE).then_some(*slot));
        bus.count += u16::from(*slot == NONE && number != NONE);
        *slot = number;
        number
    }

    /// Removes the number of a requester id, and frees the array of a bus that has none left.
    pub fn remove(&mut self, id: RequesterId) -> Option<u32> {
        let place = self.buses.get_mut(usize::from(id.bus()))?;
        let bus = place.as_mut()?;
        let slot = bus.slots.get_mut(usize::from(id.devfn()))?;
        let number = core::mem::replace(slot, NONE);
        if number == NONE {
            return None;
        }
        bus.count -= 1;
        if bus.count == 0 {
            *place = None;
        }
        Some(number)
    }

    /// All numbers, in order of requester id.
    pub fn iter(&self) -> impl Iterator<Item = (RequesterId, u32)> + '_ {
        self.range(0..=u8::MAX)
    }

    /// The numbers below a requester id, on its bus and on those down to `lowest`, from the highest id down.
    pub fn below(&self, id: RequesterId, lowest: u8) -> impl Iterator<Item = (RequesterId, u32)> {
        (lowest..=id.bus()).rev().flat_map(move |number| {
            let end = if number == id.bus() { usize::from(id.devfn()) } else { 256 };
            let bus = self.buses.get(usize::from(number)).and_then(Option::as_ref);
            let slots = bus.and_then(|bus| bus.slots.get(..end)).unwrap_or_default();
            slots.iter().enumerate().rev().filter(|(_, slot)| **slot != NONE).filter_map(
                move |(devfn, slot)| {
                    let devfn = u8::try_from(devfn).ok()?;
                    Some((RequesterId(u16::from_be_bytes([number, devfn])), *slot))
                },
            )
        })
    }

    /// The numbers of some buses, in order of requester id.
    pub fn range(&self, buses: RangeInclusive<u8>) -> impl Iterator<Item = (RequesterId, u32)> {
        let from = self.buses.get(usize::from(*buses.start())..).unwrap_or_default();
        buses.zip(from).flat_map(|(number, bus)| {
            let slots = bus.as_ref().map(|bus| bus.slots.iter());
            (0..=u8::MAX).zip(slots.into_iter().flatten()).filter(|(_, slot)| **slot != NONE).map(
                move |(devfn, slot)| {
                    (RequesterId(u16::from(number) << 8 | u16::from(devfn)), *slot)
                },
            )
        })
    }
}

/// Numbers of addresses.
#[derive(Clone, Debug, Default)]
pub struct AddressNumbers {
    /// In order of segment. Most machines have one.
    segments: Vec<(u16, Numbers)>,
}

impl AddressNumbers {
    /// Position of a segment, or the position where to insert it.
    fn position(&self, segment: u16) -> Result<usize, usize> {
        self.segments.binary_search_by_key(&segment, |(number, _)| *number)
    }

    /// The numbers of a segment.
    #[must_use]
    pub fn of(&self, segment: u16) -> Option<&Numbers> {
        Some(&self.segments.get(self.position(segment).ok()?)?.1)
    }

    /// The number of an address.
    #[must_use]
    pub fn get(&self, address: PciAddress) -> Option<u32> {
        self.of(address.segment)?.get(address.requester)
    }

    /// Replaces the number of an address, like [`Numbers::update`].
    pub fn update(&mut self, address: PciAddress, new: impl FnOnce(Option<u32>) -> u32) -> u32 {
        let at = self.position(address.segment).unwrap_or_else(|at| {
            self.segments.insert(at, (address.segment, Numbers::default()));
            at
        });
        let segment = self.segments.get_mut(at);
        segment.map_or(NONE, |(_, numbers)| numbers.update(address.requester, new))
    }

    /// Removes the number of an address, like [`Numbers::remove`].
    pub fn remove(&mut self, address: PciAddress) -> Option<u32> {
        let at = self.position(address.segment).ok()?;
        self.segments.get_mut(at)?.1.remove(address.requester)
    }

    /// All numbers, in order of address.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.segments.iter().flat_map(|(_, numbers)| numbers.iter()).map(|(_, number)| number)
    }
}

impl fmt::Debug for Numbers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_are_apart_and_in_order() {
        let mut numbers = AddressNumbers::default();
        let at = |segment, id| PciAddress { segment, requester: RequesterId(id) };
        for (address, number) in [(at(7, 8), 1), (at(0, 9), 2), (at(0xffff, 8), 3), (at(3, 8), 4)] {
            assert_eq!(numbers.get(address), None);
            assert_eq!(numbers.update(address, |before| before.map_or(number, |_| 9)), number);
            assert_eq!(numbers.get(address), Some(number));
        }
        assert_eq!(numbers.iter().collect::<Vec<_>>(), [2, 4, 1, 3]);
        assert_eq!((numbers.remove(at(3, 8)), numbers.remove(at(3, 8))), (Some(4), None));
        assert_eq!((numbers.get(at(7, 8)), numbers.remove(at(4, 8))), (Some(1), None));
    }

    #[test]
    fn numbers_are_found_in_order_until_removed() {
        let mut numbers = Numbers::default();
        assert_eq!(numbers.get(RequesterId(0xffff)), None);
        for (id, number) in [(0x0520, 7), (0x0008, 1), (0xffff, 0), (0x0521, 9), (0x0520, 8)] {
            numbers.set(RequesterId(id), number);
        }
        let all: Vec<_> = numbers.iter().map(|(id, number)| (id.0, number)).collect();
        assert_eq!(all, [(0x0008, 1), (0x0520, 8), (0x0521, 9), (0xffff, 0)]);
        let some: Vec<_> = numbers.range(1..=5).map(|(id, _)| id.0).collect();
        assert_eq!(some, [0x0520, 0x0521]);
        assert_eq!(numbers.range(0xff..=0xff).count(), 1);
        let below = |id, lowest| -> Vec<_> {
            numbers.below(RequesterId(id), lowest).map(|(id, _)| id.0).collect()
        };
        assert_eq!(below(0x0521, 0), [0x0520, 0x0008]);
        assert_eq!(below(0x0700, 1), [0x0521, 0x0520]);
        assert_eq!(below(0x0520, 5), [0u16; 0]);
        assert_eq!(below(0x0008, 1), [0u16; 0]);
        assert_eq!(numbers.remove(RequesterId(0x0520)), Some(8));
        assert_eq!(numbers.remove(RequesterId(0x0520)), None);
        assert_eq!(numbers.get(RequesterId(0x0520)), None);
        assert_eq!(numbers.get(RequesterId(0x0521)), Some(9));
        assert_eq!(numbers.remove(RequesterId(0x0521)), Some(9));
        assert!(numbers.buses[5].is_none(), "a bus without numbers has no array");
    }
}
