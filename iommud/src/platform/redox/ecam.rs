//! Configuration space in memory: the windows that the MCFG table describes.
//!
//! PCI Firmware Specification 3.3 section 4.1.2 (MCFG), PCI Express Base 6.0 section 7.2.2 (ECAM: 4096 bytes a
//! function, at bus << 20 | device << 15 | function << 12).

use iommu_protocol::ids::PciAddress;

use crate::addr::{PhysAddr, PhysRange};

/// Bytes of the table before its entries: the header (36) and 8 reserved bytes.
const ENTRIES: usize = 44;

/// Bytes of an entry.
const ENTRY: usize = 16;

/// Bytes of the configuration space of a bus.
const BUS: u64 = 1 << 20;

/// Configuration space of some buses of a segment, in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Physical address of bus 0, even if the window begins at a later bus.
    base: u64,
    segment: u16,
    first: u8,
    last: u8,
}

impl Window {
    /// The windows of a table. Leaves out invalid ones.
    #[must_use]
    pub fn all(mcfg: &[u8]) -> Vec<Self> {
        let entries = mcfg.get(ENTRIES..).unwrap_or_default().chunks_exact(ENTRY);
        entries.filter_map(Self::of).collect()
    }

    /// Decodes an entry: 8 bytes base, 2 bytes segment, first and last bus, 4 bytes reserved.
    fn of(entry: &[u8]) -> Option<Self> {
        let base = u64::from_le_bytes(*entry.first_chunk()?);
        let [low, high, first, last] = *entry.get(8..12)?.first_chunk()?;
        let segment = u16::from_le_bytes([low, high]);
        let usable = base != 0 && base.is_multiple_of(BUS) && first <= last;
        let end = base.checked_add((u64::from(last) + 1) * BUS)?;
        (usable && end <= 1 << 52).then_some(Self { base, segment, first, last })
    }

    /// The physical range of a bus. `None` when the bus is not in this window.
    #[must_use]
    pub fn bus(&self, segment: u16, bus: u8) -> Option<PhysRange> {
        let inside = segment == self.segment && (self.first..=self.last).contains(&bus);
        PhysRange::new(PhysAddr(self.base + u64::from(bus) * BUS), BUS).filter(|_| inside)
    }
}

/// The offset of a function's register from the start of its bus.
#[must_use]
pub fn offset(function: PciAddress, register: u16) -> u32 {
    let id = function.requester;
    u32::from(id.device()) << 15 | u32::from(id.function()) << 12 | u32::from(register & 0xffc)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The entry that QEMU 7.2 gives for q35: base 0xb0000000, segment 0, buses 0 to 255.
    const Q35: [u8; ENTRY] = [0, 0, 0, 0xb0, 0, 0, 0, 0, 0, 0, 0, 255, 0, 0, 0, 0];

    fn table(entries: &[[u8; ENTRY]]) -> Vec<u8> {
        let mut bytes = vec![0; ENTRIES];
        bytes.extend(entries.iter().flatten());
        bytes
    }

    fn range(first: u64, length: u64) -> Option<PhysRange> {
        PhysRange::new(PhysAddr(first), length)
    }

    #[test]
    fn qemus_window_is_read() {
        let windows = Window::all(&table(&[Q35]));
        assert_eq!(windows.len(), 1);
        assert_eq!(windows[0].bus(0, 0), range(0xb000_0000, 0x10_0000));
        assert_eq!(windows[0].bus(0, 255), range(0xbff0_0000, 0x10_0000));
        assert_eq!(windows[0].bus(1, 0), None);
        // The host bridge's word 0 is at 0xb0000000, the AHCI controller's (00:1f.2) class at 0xb00fa008.
        let ahci = PciAddress::new(0, 0, 0x1f, 2).unwrap();
        assert_eq!(offset(ahci, 8), 0xf_a008);
    }

    #[test]
    fn what_makes_no_sense_is_left_out() {
        let mut part = Q35;
        part[8..12].copy_from_slice(&[1, 0, 0x40, 0x7f]);
        let changed = |at: usize, value: u8| {
            let mut entry = Q35;
            entry[at] = value;
            entry
        };
        let bad = [changed(1, 8), changed(7, 0xff), changed(3, 0), changed(10, 255)];
        assert_eq!(Window::all(&table(&bad[..3])), []);
        let windows = Window::all(&table(&[bad[3], part]));
        assert_eq!(windows.len(), 2);
        assert_eq!((windows[0].bus(0, 254), windows[1].bus(1, 0x3f)), (None, None));
        assert_eq!(windows[1].bus(1, 0x40), range(0xb400_0000, 0x10_0000));
        for length in 0..ENTRIES + ENTRY {
            assert_eq!(Window::all(&table(&[Q35])[..length]), [], "{length}");
        }
    }
}
