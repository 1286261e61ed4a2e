//! The IVRS table (AMD IOMMU 48882 rev 3.10 section 5.2) as typed blocks with the fields of the specification.

use super::bytes::{u8_at, u16_at, u32_at, u64_at};
use super::table::{self, Block, Blocks, Layout, Table, TableError};

pub use super::entry::{BadEntry, Entries, Entry, EntryBody};

/// Offset of the first block.
const FIXED_SIZE: usize = 48;

/// IVMD flags bit 0: to be mapped one to one.
pub const UNITY: u8 = 1 << 0;
/// IVMD flags bit 1: devices may read.
pub const READ: u8 = 1 << 1;
/// IVMD flags bit 2: devices may write.
pub const WRITE: u8 = 1 << 2;
/// IVMD flags bit 3: not to be translated.
pub const EXCLUSION_RANGE: u8 = 1 << 3;

/// An IVRS table. Length and checksum are not checked; see [`Table::verify`].
#[derive(Clone, Copy, Debug)]
pub struct Ivrs<'a> {
    /// The table.
    pub table: Table<'a>,
    /// IVinfo: bit 0 EFRSup, bit 1 DMA remapping is asked for, bits 7:5 GVASize, 14:8 PASize, 21:15 VASize,
    /// 22 HtAtsResv.
    pub iv_info: u32,
}

/// One block.
pub type Structure<'a> = table::Structure<'a, Body<'a>>;

/// The fields of a block.
#[derive(Clone, Debug)]
pub enum Body<'a> {
    /// I/O virtualization hardware definition, types 10h, 11h, 40h (section 5.2.2).
    Ivhd {
        /// HtTunEn, PassPW, ResPassPW, Isoc, IotlbSup, Coherent, PreFSup, PPRSup: bits 0 to 7.
        flags: u8,
        /// Requester id of the unit.
        device_id: u16,
        /// Offset of its capability in configuration space.
        capability_offset: u16,
        /// Physical address of the registers.
        base_address: u64,
        /// PCI segment of the devices.
        segment: u16,
        /// Bits 4:0 MSI number, 12:8 UnitID.
        iommu_info: u16,
        /// IOMMU feature information (10h) or attributes (11h, 40h).
        feature_reporting: u32,
        /// Image of the extended feature register (11h, 40h).
        efr: Option<u64>,
        /// Image of the second extended feature register (11h, 40h).
        efr2: Option<u64>,
        /// Devices named.
        entries: Entries<'a>,
    },
    /// I/O virtualization memory definition, types 20h, 21h, 22h (section 5.2.2.2).
    Ivmd {
        /// [`UNITY`], [`READ`], [`WRITE`], [`EXCLUSION_RANGE`].
        flags: u8,
        /// The device (21h), or the first of the range (22h).
        device_id: u16,
        /// The last device of the range (22h).
        auxiliary: u16,
        /// PCI segment of the devices; reserved, and zero, in older tables.
        segment: u16,
        /// First byte.
        start_address: u64,
        /// Bytes.
        memory_length: u64,
    },
    /// A type this specification does not have.
    Unknown,
    /// Too short for the fields of its type; this many bytes are needed.
    TooShort {
        /// Bytes the fields take.
        needed: usize,
        /// The device, if the structure is long enough to hold it.
        device_id: Option<u16>,
    },
    /// The length is below 4 or beyond the end of the table: the walk ends here.
    BadLength,
}

impl<'a> Ivrs<'a> {
    /// The IVRS in `table`.
    ///
    /// # Errors
    /// `Signature` and `Short`.
    pub fn new(table: Table<'a>) -> Result<Self, TableError> {
        let bytes = table.fixed(*b"IVRS", FIXED_SIZE)?;
        Ok(Self { table, iv_info: u32_at(bytes, 36).unwrap_or(0) })
    }

    /// Width of physical addresses in bits, as the table gives it (IVinfo PASize).
    #[must_use]
    pub const fn physical_bits(&self) -> u8 {
        self.iv_info.to_le_bytes()[1] & 0x7f
    }

    /// The blocks in order.
    pub fn structures(&self) -> impl Iterator<Item = Structure<'a>> + use<'a> {
        Blocks::new(self.table.bytes(), FIXED_SIZE, Layout::NarrowType).map(Structure::of)
    }
}

impl<'a> table::Structure<'a, Body<'a>> {
    fn of(block: Block<'a>) -> Self {
        let body = if block.whole {
            Body::of(block).unwrap_or_else(|| Body::TooShort {
                needed: needed(block.kind),
                device_id: u16_at(block.bytes, 4),
            })
        } else {
            Body::BadLength
        };
        block.with(body)
    }

    /// The specification's name of the type, or "unknown".
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self.kind {
            0x10 | 0x11 | 0x40 => "IVHD",
            0x20..=0x22 => "IVMD",
            _ => "unknown",
        }
    }
}

/// Bytes that the fixed fields of a type take.
const fn needed(kind: u16) -> usize {
    match kind {
        0x10 => 24,
        0x11 | 0x40 => 40,
        _ => 32,
    }
}

impl<'a> Body<'a> {
    fn of(Block { offset, kind, bytes, .. }: Block<'a>) -> Option<Self> {
        match kind {
            0x10 | 0x11 | 0x40 => Self::ivhd(offset, kind, bytes),
            0x20..=0x22 => Some(Self::Ivmd {
                flags: u8_at(bytes, 1)?,
                device_id: u16_at(bytes, 4)?,
                auxiliary: u16_at(bytes, 6)?,
                segment: u16_at(bytes, 8)?,
                start_address: u64_at(bytes, 16)?,
                memory_length: u64_at(bytes, 24)?,
            }),
            _ => Some(Self::Unknown),
        }
    }

    fn ivhd(offset: usize, kind: u16, bytes: &'a [u8]) -> Option<Self> {
        let (efr, efr2) = match kind {
            0x10 => (None, None),
            _ => (Some(u64_at(bytes, 24)?), Some(u64_at(bytes, 32)?)),
        };
        Some(Self::Ivhd {
            flags: u8_at(bytes, 1)?,
            device_id: u16_at(bytes, 4)?,
            capability_offset: u16_at(bytes, 6)?,
            base_address: u64_at(bytes, 8)?,
            segment: u16_at(bytes, 16)?,
            iommu_info: u16_at(bytes, 18)?,
            feature_reporting: u32_at(bytes, 20)?,
            efr,
            efr2,
            entries: Entries::new(bytes, offset, needed(kind)),
        })
    }
}
