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
