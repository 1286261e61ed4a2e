//! Contents of firmware tables after parsing, in the same form for DMAR and IVRS.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use iommu_protocol::ids::RequesterId;

use crate::addr::{PhysAddr, PhysRange};

/// Everything the server takes from a firmware table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Firmware {
    /// Width of host physical addresses in bits, where the table states it.
    pub host_address_width: Option<u8>,
    /// The table asks the operating system to keep devices from DMA before drivers run (DMAR flags bit 2).
    pub dma_opt_in: bool,
    /// The units, in firmware order.
    pub units: Vec<UnitDescription>,
    /// Regions that some devices must go on reaching.
    pub reserved: Vec<ReservedRegion>,
    /// Devices that do DMA without being PCI functions.
    pub named: Vec<NamedDevice>,
    /// Defects of the table, one sentence each. The affected parts were skipped or read in the safest way.
    pub anomalies: Vec<String>,
}

/// Which family a unit belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnitKind {
    /// Intel VT-d (DRHD).
    Vtd,
    /// AMD-Vi (IVHD): the unit is itself a PCI function.
    AmdVi {
        /// Requester id of the unit.
        function: RequesterId,
        /// Offset of its capability block in configuration space.
        capability: u16,
        /// Initial flag bits from the IVHD (coherency, HtTunEn, PassPW, ResPassPW, Isoc), as in the table.
        flags: u8,
        /// Extended feature register as the table gives it (IVHD 11h, 40h).
        features: Option<u64>,
    },
}

/// One unit as firmware describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitDescription {
    /// Vendor family.
    pub kind: UnitKind,
    /// PCI segment of all devices behind it.
    pub segment: u16,
    /// The unit's registers, or why the unit cannot be used. A unit that cannot be used keeps its place and its
    /// scopes. So the devices behind it are reported as behind a failed unit, and not as without a unit.
    pub registers: Result<PhysRange, UnitDefect>,
    /// The unit takes every device of the segment that no other unit names (DRHD INCLUDE_PCI_ALL). Also set if a
    /// defect leaves open which devices the unit takes. See [`Firmware::default_unit`].
    pub include_all: bool,
    /// Devices named.
    pub scopes: Vec<DeviceScope>,
    /// AMD-Vi: requester ids named, with their aliases. Where two overlap, the later one holds.
    pub entries: Vec<EntryRange>,
}

/// Why a unit that a table describes cannot be used. Offsets are bytes from the start of the table, units
/// are indices into [`Firmware::units`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnitDefect {
    /// The structure at `offset` is too short for its fields.
    TooShort {
        /// Offset of the structure.
        offset: usize,
    },
    /// The table cannot be walked past `offset`; the rest may describe units.
    RestUnreadable {
        /// Offset where the walk ended.
        offset: usize,
    },
    /// The address of the registers is zero, all ones, unaligned, or not an address of this machine.
    BadAddress {
        /// The address as the table gives it.
        address: u64,
    },
    /// The registers overlap those of another unit.
    SharedRegisters {
        /// The unit that has them.
        unit: usize,
    },
    /// A device scope cannot be read, so it is not known which devices are behind the unit.
    BadScope {
        /// Offset of the scope.
        offset: usize,
    },
    /// Another unit takes all other devices of the segment already.
    SecondIncludeAll {
        /// The unit that takes them.
        unit: usize,
    },
}

impl fmt::Display for UnitDefect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::TooShort { offset } => {
                write!(f, "its structure at offset {offset} is too short")
            }
            Self::RestUnreadable { offset } => {
                write!(f, "the table cannot be read from offset {offset} on")
            }
            Self::BadAddress { address } => write!(f, "{address:#x} cannot be its registers"),
            Self::SharedRegisters { unit } => {
                write!(f, "its registers overlap those of unit {unit}")
            }
            Self::BadScope { offset } => {
                write!(f, "its device scope at offset {offset} cannot be read")
            }
            Self::SecondIncludeAll { unit } => {
                write!(f, "unit {unit} takes the other devices of the segment already")
            }
        }
    }
}

/// The kind of object that a scope names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScopeKind {
    /// One PCI function.
    Endpoint,
    /// A PCI bridge and everything behind it.
    Bridge,
    /// An I/O APIC, with its id.
    IoApic(u8),
    /// An HPET, with its number.
    Hpet(u8),
    /// A device of the ACPI name space, with its number (ANDD).
    Namespace(u8),
}

/// A device named by a path from a start bus (DMAR device scope structure).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceScope {
    /// The kind of object.
    pub kind: ScopeKind,
    /// Bus where the path starts.
    pub start_bus: u8,
    /// Device and function numbers: of the bridges on the way, and last of the device itself. Never empty.
    pub path: Vec<(u8, u8)>,
}

/// A device of the ACPI name space that does DMA: an eMMC, I2C or UART controller (DMAR ANDD with its device scope,
/// IVHD entry F0h). I/O APICs and HPETs, which tables name in a similar way, send interrupts and do no DMA.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedDevice {
    /// The unit in front of it: an index into [`Firmware::units`].
    pub unit: usize,
    /// Bus where the path starts.
    pub start_bus: u8,
    /// Device and function numbers of its requester id: of the bridges on the way, and last its own.
    pub path: Vec<(u8, u8)>,
    /// Its path in the ACPI name space, its hardware id, or both. Printable.
    pub name: String,
}

/// A range of requester ids that an IVHD names (both ends included).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryRange {
    /// First requester id.
    pub first: RequesterId,
    /// Last requester id (inclusive).
    pub last: RequesterId,
    /// Requests of these functions arrive under this requester id instead.
    pub alias: Option<RequesterId>,
    /// Data setting byte of the device table entry (LINT, NMI, EInt, INIT pass; SysMgt), as in the table.
    pub settings: u8,
}

/// Memory that named devices must go on reaching, one to one (VT-d RMRR, AMD-Vi IVMD).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReservedRegion {
    /// PCI segment of the devices.
    pub segment: u16,
    /// The memory.
    pub range: PhysRange,
    /// Devices may read.
    pub read: bool,
    /// Devices may write.
    pub write: bool,
    /// The range is not to be translated or used for anything else (IVMD exclusion).
    pub exclusion: bool,
    /// Devices named by scope (DMAR).
    pub scopes: Vec<DeviceScope>,
    /// Devices named by requester id (IVRS).
    pub entries: Vec<EntryRange>,
}

impl Firmware {
    /// Index of the unit in front of those devices of `segment` that no unit names. A unit that cannot be used comes
    /// before one that can: such a device may be behind it, and must not be reported as confined.
    #[must_use]
    pub fn default_unit(&self, segment: u16) -> Option<usize> {
        let takes = |unit: &UnitDescription| {
            unit.include_all && (unit.segment == segment || unit.may_be_in_any_segment())
        };
        self.units
            .iter()
            .position(|unit| takes(unit) && unit.registers.is_err())
            .or_else(|| self.units.iter().position(takes))
    }
}

impl UnitDescription {
    /// Address of the unit's registers; `None` for a unit that cannot be used.
    #[must_use]
    pub fn base(&self) -> Option<PhysAddr> {
        self.registers.ok().map(PhysRange::first)
    }

    /// Whether the unit's segment could not be read either.
    const fn may_be_in_any_segment(&self) -> bool {
        matches!(
            self.registers,
            Err(UnitDefect::TooShort { .. } | UnitDefect::RestUnreadable { .. })
        )
    }
}
