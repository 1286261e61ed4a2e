//! Places of device registers, as far as configuration space shows them without being written. It shows where each
//! base address register and each bridge's window begins, but not how long it is.

use crate::topology::pci::{ConfigSpace, PciFunction};

/// Offsets and bits of configuration space (PCI Local Bus Specification 3.0, 6.1 and 6.2.5; PCI-to-PCI Bridge
/// Architecture 1.2, 3.2).
const COMMAND: u16 = 0x04;
const MEMORY_SPACE: u32 = 1 << 1;
const HEADER: u16 = 0x0c;
const HEADER_KIND: u32 = 0x7f << 16;
const BRIDGE: u32 = 1 << 16;
const BARS: u16 = 0x10;
const BAR_PORTS: u32 = 1 << 0;
const BAR_KIND: u32 = 3 << 1;
const BAR_64: u32 = 2 << 1;
const MEMORY_WINDOW: u16 = 0x20;
const PREFETCHABLE_WINDOW: u16 = 0x24;

/// Below this address are the machine's oldest registers, whatever configuration space shows.
const MEBIBYTE: u64 = 1 << 20;

/// The lowest address, from 1 MiB and below 4 GiB, at which a function that answers to memory accesses has
/// registers, or a bridge passes them on. `None` when there is none.
pub fn lowest(space: &mut impl ConfigSpace, functions: &[PciFunction]) -> Option<u64> {
    let mut lowest = None;
    for function in functions {
        let mut read = |offset| space.read(function.address, offset);
        let command = read(COMMAND);
        if command == u32::MAX || command & MEMORY_SPACE == 0 {
            continue;
        }
        let bridge = read(HEADER) & HEADER_KIND == BRIDGE;
        let mut found = bars(&mut read, if bridge { 2 } else { 6 });
        if bridge {
            for offset in [MEMORY_WINDOW, PREFETCHABLE_WINDOW] {
                found = least(found, window(read(offset)));
            }
        }
        lowest = least(lowest, found);
    }
    lowest
}

fn least(one: Option<u64>, other: Option<u64>) -> Option<u64> {
    one.into_iter().chain(other).filter(|address| *address >= MEBIBYTE).min()
}

/// The lowest of the first `count` base address registers.
fn bars(read: &mut impl FnMut(u16) -> u32, count: u16) -> Option<u64> {
    let (mut lowest, mut index) = (None, 0);
    while index < count {
        let bar = read(BARS + 4 * index);
        index += 1;
        if bar & BAR_PORTS != 0 {
            continue;
        }
        let high = if bar & BAR_KIND == BAR_64 {
            index += 1;
            read(BARS + 4 * (index - 1))
        } else {
            0
        };
        if high == 0 {
            lowest = least(lowest, Some(u64::from(bar & !0xf)));
        }
    }
    lowest
}

/// Start of a bridge's window. Bits 31:20 of its base are bits 15:4 of the low half, those of its limit of the high
/// half. A window that ends before it begins is closed. (A prefetchable window above 4 GiB has its upper bits
/// elsewhere. It is treated like one below 4 GiB, which reserves more than necessary.)
fn window(register: u32) -> Option<u64> {
    let (base, limit) = (register << 16 & 0xfff0_0000, register & 0xfff0_0000);
    (base <= limit && base != 0).then_some(base.into())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::vec;

    use iommu_protocol::ids::PciAddress;

    use super::*;
    use crate::topology::testing::{address, endpoint};

    struct Space(BTreeMap<(PciAddress, u16), u32>);

    impl ConfigSpace for Space {
        fn read(&mut self, address: PciAddress, offset: u16) -> u32 {
            self.0.get(&(address, offset)).copied().unwrap_or(0)
        }
    }

    /// Registers as SeaBIOS leaves them on QEMU's q35: an NVMe controller of 64 bits, a network card, a root
    /// port whose window is below both, a controller above 4 GiB, one that does not answer.
    #[test]
    fn what_decodes_lowest_is_found() {
        let on = MEMORY_SPACE;
        let mut words = BTreeMap::new();
        let mut put = |device, offset, word| words.insert((address(0, device, 0), offset), word);
        for device in [1, 2, 3, 4, 6] {
            put(device, COMMAND, on);
        }
        put(1, BARS, 0xfeb6_4004);
        put(2, BARS, 0xfeb4_0000);
        put(2, BARS + 4, 0xc001);
        put(3, HEADER, BRIDGE);
        put(3, MEMORY_WINDOW, 0xfe90_fe80);
        put(3, PREFETCHABLE_WINDOW, 0x0001_fff1);
        put(4, BARS, 0x0000_000c);
        put(4, BARS + 4, 0x8);
        put(5, BARS, 0x1000_0000);
        put(6, BARS, 0);
        let mut space = Space(words);
        let all: vec::Vec<_> = (1..7).map(|device| endpoint(0, device, 0)).collect();
        assert_eq!(lowest(&mut space, &all), Some(0xfe80_0000));
        assert_eq!(lowest(&mut space, &all[..2]), Some(0xfeb4_0000));
        assert_eq!(lowest(&mut space, &all[3..]), None);
        space.0.insert((address(0, 5, 0), COMMAND), on);
        assert_eq!(lowest(&mut space, &all), Some(0x1000_0000));
    }
}
