//! The DMAR table (VT-d 4.1 section 8) as typed structures with the fields of the specification.

use super::bytes::{u8_at, u16_at, u32_at, u64_at};
use super::scope::Scopes;
use super::table::{self, Block, Blocks, Layout, Table, TableError};

/// Offset of the first structure.
const FIXED_SIZE: usize = 48;

/// DMAR flags bit 0: the machine can remap interrupts.
pub const INTR_REMAP: u8 = 1 << 0;
/// DMAR flags bit 1: x2APIC mode is not to be used.
pub const X2APIC_OPT_OUT: u8 = 1 << 1;
/// DMAR flags bit 2: keep devices from DMA before drivers run.
pub const DMA_CTRL_PLATFORM_OPT_IN: u8 = 1 << 2;
/// DRHD flags bit 0: the unit takes all devices of the segment that no other names.
pub const INCLUDE_PCI_ALL: u8 = 1 << 0;
/// ATSR flags bit 0: all root ports of the segment support ATS.
pub const ALL_PORTS: u8 = 1 << 0;
/// SATC flags bit 0: the devices need ATS to work.
pub const ATC_REQUIRED: u8 = 1 << 0;

/// A DMAR table. Length and checksum are not checked; see [`Table::verify`].
#[derive(Clone, Copy, Debug)]
pub struct Dmar<'a> {
    /// The table.
    pub table: Table<'a>,
    /// Width of host physical addresses in bits, less one.
    pub host_address_width: u8,
    /// [`INTR_REMAP`], [`X2APIC_OPT_OUT`], [`DMA_CTRL_PLATFORM_OPT_IN`].
    pub flags: u8,
}

/// One remapping structure.
pub type Structure<'a> = table::Structure<'a, Body<'a>>;

/// The fields of a remapping structure.
#[derive(Clone, Debug)]
pub enum Body<'a> {
    /// DMA remapping hardware unit definition, type 0 (section 8.3).
    Drhd {
        /// [`INCLUDE_PCI_ALL`].
        flags: u8,
        /// Bits 3:0: the register set has 2 to the power of this 4 KiB pages.
        size: u8,
        /// PCI segment of the devices.
        segment: u16,
        /// Physical address of the registers.
        register_base_address: u64,
        /// Devices named.
        scopes: Scopes<'a>,
    },
    /// Reserved memory region, type 1 (section 8.4).
    Rmrr {
        /// PCI segment of the devices.
        segment: u16,
        /// First byte.
        base_address: u64,
        /// Last byte (inclusive).
        limit_address: u64,
        /// Devices named.
        scopes: Scopes<'a>,
    },
    /// Root port ATS capability, type 2 (section 8.5).
    Atsr {
        /// [`ALL_PORTS`].
        flags: u8,
        /// PCI segment of the ports.
        segment: u16,
        /// Root ports named.
        scopes: Scopes<'a>,
    },
    /// Remapping hardware static affinity, type 3 (section 8.6).
    Rhsa {
        /// Physical address of the unit's registers.
        register_base_address: u64,
        /// Proximity domain (SRAT).
        proximity_domain: u32,
    },
    /// ACPI name-space device declaration, type 4 (section 8.7).
    Andd {
        /// Number under which scopes name it.
        device_number: u8,
        /// Its path in the name space, up to the first zero.
        object_name: &'a [u8],
    },
    /// SoC integrated address translation cache, type 5 (section 8.8).
    Satc {
        /// [`ATC_REQUIRED`].
        flags: u8,
        /// PCI segment of the devices.
        segment: u16,
        /// Devices named.
        scopes: Scopes<'a>,
    },
    /// SoC integrated device property, type 6 (section 8.9).
    Sidp {
        /// PCI segment of the devices.
        segment: u16,
        /// Devices named; the flags of the scopes are the properties.
        scopes: Scopes<'a>,
    },
    /// A type this specification does not have.
    Unknown,
    /// Too short for the fields of its type; this many bytes are needed.
    TooShort {
        /// Bytes the fields take.
        needed: usize,
        /// The segment, if the structure is long enough to hold it.
        segment: Option<u16>,
    },
    /// The length is below 4 or beyond the end of the table: the walk ends here.
    BadLength,
}

impl<'a> Dmar<'a> {
    /// The DMAR in `table`.
    ///
    /// # Errors
    /// `Signature` and `Short`.
    pub fn new(table: Table<'a>) -> Result<Self, TableError> {
        let bytes = table.fixed(*b"DMAR", FIXED_SIZE)?;
        let byte = |at| u8_at(bytes, at).unwrap_or(0);
        Ok(Self { table, host_address_width: byte(36), flags: byte(37) })
    }

    /// The structures in order.
    pub fn structures(&self) -> impl Iterator<Item = Structure<'a>> + use<'a> {
        Blocks::new(self.table.bytes(), FIXED_SIZE, Layout::WideType).map(Structure::of)
    }
}

impl<'a> table::Structure<'a, Body<'a>> {
    fn of(block: Block<'a>) -> Self {
        let body = if block.whole {
            Body::of(block).unwrap_or_else(|| Body::TooShort {
                needed: needed(block.kind),
                segment: matches!(block.kind, 0 | 1 | 2 | 5 | 6)
                    .then(|| u16_at(block.bytes, 6))
                    .flatten(),
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
            0 => "DRHD",
            1 => "RMRR",
            2 => "ATSR",
            3 => "RHSA",
            4 => "ANDD",
            5 => "SATC",
            6 => "SIDP",
            _ => "unknown",
        }
    }

    /// The device scopes, of structures that have some.
    #[must_use]
    pub fn scopes(&self) -> Option<Scopes<'a>> {
        match &self.body {
            Body::Drhd { scopes, .. }
            | Body::Rmrr { scopes, .. }
            | Body::Atsr { scopes, .. }
            | Body::Satc { scopes, .. }
            | Body::Sidp { scopes, .. } => Some(scopes.clone()),
            _ => None,
        }
    }
}

/// Bytes that the fixed fields of a type take.
const fn needed(kind: u16) -> usize {
    match kind {
        0 => 16,
        1 => 24,
        3 => 20,
        _ => 8,
    }
}

impl<'a> Body<'a> {
    fn of(Block { offset, kind, bytes, .. }: Block<'a>) -> Option<Self> {
        let scopes = || Scopes::new(bytes, offset, needed(kind));
        Some(match kind {
            0 => Self::Drhd {
                flags: u8_at(bytes, 4)?,
                size: u8_at(bytes, 5)?,
                segment: u16_at(bytes, 6)?,
                register_base_address: u64_at(bytes, 8)?,
                scopes: scopes(),
            },
            1 => Self::Rmrr {
                segment: u16_at(bytes, 6)?,
                base_address: u64_at(bytes, 8)?,
                limit_address: u64_at(bytes, 16)?,
                scopes: scopes(),
            },
            2 => {
                Self::Atsr { flags: u8_at(bytes, 4)?, segment: u16_at(bytes, 6)?, scopes: scopes() }
            }
            3 => Self::Rhsa {
                register_base_address: u64_at(bytes, 8)?,
                proximity_domain: u32_at(bytes, 16)?,
            },
            4 => Self::Andd {
                device_number: u8_at(bytes, 7)?,
                object_name: bytes.get(8..)?.split(|byte| *byte == 0).next()?,
            },
            5 => {
                Self::Satc { flags: u8_at(bytes, 4)?, segment: u16_at(bytes, 6)?, scopes: scopes() }
            }
            6 => Self::Sidp { segment: u16_at(bytes, 6)?, scopes: scopes() },
            _ => Self::Unknown,
        })
    }
}
