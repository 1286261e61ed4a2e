//! What firmware tables say, after parsing and independent of whether it was a DMAR or an IVRS.

use alloc::string::String;
use alloc::vec::Vec;

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
    /// What is wrong with the table, one sentence each; the parts concerned were skipped or read in the
    /// safest way.
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
    /// Its registers.
    pub registers: PhysRange,
    /// The unit takes every device of the segment that no other unit names (DRHD INCLUDE_PCI_ALL).
    pub include_all: bool,
    /// Devices named.
    pub scopes: Vec<DeviceScope>,
    /// AMD-Vi: requester ids named, with their aliases.
    pub entries: Vec<EntryRange>,
}

/// What a scope names.
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
    /// What is named.
    pub kind: ScopeKind,
    /// Bus where the path starts.
    pub start_bus: u8,
    /// Device and function numbers: of the bridges on the way, and last of the device itself. Never empty.
    pub path: Vec<(u8, u8)>,
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

impl UnitDescription {
    /// Address of the unit's registers.
    #[must_use]
    pub const fn base(&self) -> PhysAddr {
        self.registers.first()
    }
}
