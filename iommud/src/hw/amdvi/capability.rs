//! The unit's capability block in configuration space. It is never written.

use iommu_protocol::ids::PciAddress;

use super::spec::capability::{self, Header};
use crate::addr::PhysAddr;
use crate::topology::pci::ConfigSpace;

/// The capability block (48882 section 3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capability {
    header: Header,
    base: PhysAddr,
    enabled: bool,
    physical_bits: u8,
    virtual_bits: u8,
}

impl Capability {
    /// Reads the block at `offset` (from the IVHD) of the unit's function. `None` when no function answers.
    pub fn read(config: &mut dyn ConfigSpace, unit: PciAddress, offset: u16) -> Option<Self> {
        let mut at = |register: u16| config.read(unit, offset.wrapping_add(register));
        let header = at(0);
        if header == u32::MAX {
            return None;
        }
        let [low, high] = [at(capability::BASE_LOW), at(capability::BASE_HIGH)];
        Some(Self::new(header, low, high, at(capability::MISCELLANEOUS)))
    }

    /// The block with these registers: header, base address low and high, miscellaneous information 0.
    #[must_use]
    pub const fn new(header: u32, low: u32, high: u32, miscellaneous: u32) -> Self {
        let base = (high as u64) << 32 | (low & capability::BASE_BITS) as u64;
        Self {
            header: Header::from_bits_retain(header),
            base: PhysAddr(base),
            enabled: low & capability::BASE_ENABLE != 0,
            physical_bits: capability::physical_bits(miscellaneous),
            virtual_bits: capability::virtual_bits(miscellaneous),
        }
    }

    /// Address of the registers.
    #[must_use]
    pub const fn base(&self) -> PhysAddr {
        self.base
    }

    /// Whether firmware enabled access to the registers.
    #[must_use]
    pub const fn enabled(&self) -> bool {
        self.enabled
    }

    /// The unit caches entries that are not present (NpCache).
    pub(super) const fn caches_absent(&self) -> bool {
        self.header.contains(Header::CACHES_ABSENT)
    }

    /// The extended feature register exists (EFRSup).
    pub(super) const fn extended(&self) -> bool {
        self.header.contains(Header::EXTENDED)
    }

    /// Bits of a physical address (PASize), where the block says so.
    pub(super) const fn physical_bits(&self) -> Option<u8> {
        let stated = self.header.contains(Header::MORE) && self.physical_bits >= 32;
        if stated { Some(self.physical_bits) } else { None }
    }

    /// Bits of an I/O virtual address (VASize), where the block says so.
    pub(super) const fn virtual_bits(&self) -> Option<u8> {
        let stated = self.header.contains(Header::MORE) && self.virtual_bits >= 32;
        if stated { Some(self.virtual_bits) } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Configuration space of one function, with one capability block.
    struct Function {
        address: PciAddress,
        block: u16,
        words: [u32; 5],
    }

    impl ConfigSpace for Function {
        fn read(&mut self, address: PciAddress, offset: u16) -> u32 {
            let words = (self.block..).step_by(4).zip(self.words);
            let mut found = words.filter(|(at, _)| (address, offset) == (self.address, *at));
            found.next().map_or(u32::MAX, |(_, word)| word)
        }
    }

    /// QEMU's block at 0x40, with a base above 4 GiB. 48882 section 3.2: header, base low and high, range,
    /// miscellaneous information 0.
    #[test]
    fn reading() {
        let address = PciAddress::new(1, 0, 0, 2).unwrap();
        let words = [0x1b0b_000f, 0xfed8_3fff, 0x12, 0x5555_5555, 0x0018_2800];
        let mut config = Function { address, block: 0x40, words };
        let block = Capability::read(&mut config, address, 0x40).unwrap();
        assert_eq!((block.base(), block.enabled()), (PhysAddr(0x12_fed8_0000), true));
        assert_eq!((block.physical_bits(), block.virtual_bits()), (Some(40), Some(48)));
        assert_eq!((block.caches_absent(), block.extended()), (false, true));
        let other = PciAddress::new(0, 0, 0, 2).unwrap();
        assert_eq!(Capability::read(&mut config, other, 0x40), None);
    }

    /// NpCache is bit 26 of the header, EFRSup bit 27; the enable bit is bit 0 of the base.
    #[test]
    fn flags() {
        for (header, low, flags) in [
            (0, 0, [false, false, false]),
            (0x0400_0000, 0, [true, false, false]),
            (0x0800_0000, 0, [false, true, false]),
            (0, 1, [false, false, true]),
            (0xf3ff_ffff, 0xffff_fffe, [false, false, false]),
        ] {
            let block = Capability::new(header, low, 0, 0);
            let seen = [block.caches_absent(), block.extended(), block.enabled()];
            assert_eq!(seen, flags, "{header:#x} {low:#x}");
        }
    }

    /// The sizes hold where CapExt (bit 28 of the header) is set, and where they are plausible.
    #[test]
    fn sizes() {
        const MORE: u32 = 0x1000_0000;
        for (header, miscellaneous, sizes) in [
            (MORE, 48 << 15 | 40 << 8, (Some(40), Some(48))),
            (MORE, 32 << 15 | 31 << 8, (None, Some(32))),
            (MORE, 31 << 15 | 32 << 8, (Some(32), None)),
            (MORE, 0, (None, None)),
            (0, 48 << 15 | 40 << 8, (None, None)),
            (0, 0, (None, None)),
        ] {
            let block = Capability::new(header, 0, 0, miscellaneous);
            let seen = (block.physical_bits(), block.virtual_bits());
            assert_eq!(seen, sizes, "{header:#x} {miscellaneous:#x}");
        }
    }
}
