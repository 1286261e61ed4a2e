//! Views of the registry: plain copies, never references into its state.

use alloc::string::String;
use alloc::vec::Vec;

use iommu_protocol::ids::{PciAddress, RequesterId, Slot};
use iommu_protocol::wire::{Access, RegionKind};

use crate::addr::IovaRange;
use crate::policy::config::Mode;
use crate::policy::ids::{BufferId, ClientId, DomainId, GroupId, SessionId, UnitIndex};
use crate::policy::step::Binding;
use crate::topology::capabilities::{DomainTag, PageSizes, UnitCapabilities};
use crate::topology::pci::PciFunction;

/// The state of a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnitState {
    /// Firmware describes it, but it is not up.
    Parsed,
    /// It translates.
    Enabled(UnitCapabilities),
    /// It can no longer be relied on.
    Failed,
}

/// One unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnitView {
    /// Its number, in firmware order.
    pub index: UnitIndex,
    /// Its state.
    pub state: UnitState,
    /// Functions behind it.
    pub functions: usize,
    /// Domains that an entry of it points to.
    pub domains: usize,
}

/// A device that firmware names and that is no PCI function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedView {
    /// Its name.
    pub name: String,
    /// Its address; `None` while a bridge above it is not known.
    pub address: Option<PciAddress>,
    /// The access that the entry of its requester id gives.
    pub binding: Binding,
    /// A PCI function is or was known by its requester id. The function then decides the binding of the entry.
    pub is_function: bool,
}

/// Buses without a known function, behind a port where devices come and go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VacantBuses {
    /// The port.
    pub port: PciAddress,
    /// The unit that denies devices that appear there.
    pub unit: UnitIndex,
    /// First bus.
    pub first: u8,
    /// Last bus (inclusive).
    pub last: u8,
}

/// One function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FunctionView {
    /// The function as the walk found it.
    pub function: PciFunction,
    /// Number of times that a function was added at the address, from 1.
    pub generation: u32,
    /// Its group.
    pub group: GroupId,
    /// The unit in front of it.
    pub unit: Option<UnitIndex>,
    /// Its mode while unclaimed.
    pub mode: Mode,
    /// The access that the entry of its own requester id gives. Without a unit, everything.
    pub binding: Binding,
    /// Requester ids under which its requests may arrive, its own first.
    pub sources: Vec<RequesterId>,
    /// The session on it.
    pub session: Option<SessionId>,
    /// It was attached when its session, its unit or an earlier server ended: its group is blocked.
    pub cut: bool,
    /// It is blocked only because another member of its group is attached, and it has no session.
    pub left_out: bool,
    /// Faults under its own requester id are suppressed.
    pub silenced: bool,
}

/// One function, in short.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceView {
    /// Its vendor id.
    pub vendor: u16,
    /// Its device id.
    pub device: u16,
    /// The client that has a session on it.
    pub owner: Option<ClientId>,
    /// Faults under its own requester id are suppressed.
    pub silenced: bool,
}

/// One group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupView {
    /// Its number.
    pub id: GroupId,
    /// Its members, by address.
    pub members: Vec<PciAddress>,
    /// The client that claimed it.
    pub owner: Option<ClientId>,
    /// The domain of its owner, when confined.
    pub domain: Option<DomainId>,
    /// Members attached.
    pub attached: usize,
}

/// One session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionView {
    /// Its device.
    pub address: PciAddress,
    /// Generation of the device.
    pub generation: u32,
    /// The device was removed.
    pub removed: bool,
    /// The group of the device.
    pub group: GroupId,
    /// The client whose quota it counts against.
    pub client: ClientId,
    /// The unit in front of the device.
    pub unit: Option<UnitIndex>,
    /// The unit has failed.
    pub unit_failed: bool,
    /// The device is in the session's domain.
    pub attached: bool,
    /// The device was attached when its last session, its unit or an earlier server ended, and not since.
    pub unquiesced: bool,
    /// The device's faults are suppressed because there were too many.
    pub silenced: bool,
    /// Its domain. `None` when no unit confines the device: then addresses are bus addresses.
    pub domain: Option<DomainView>,
    /// Mappings the client may still make.
    pub mappings_left: u32,
}

/// One domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DomainView {
    /// Its number.
    pub id: DomainId,
    /// Its tag in every unit.
    pub tag: DomainTag,
    /// I/O virtual addresses that mappings may cover.
    pub space: IovaRange,
    /// Sizes of leaves.
    pub page_sizes: PageSizes,
    /// Live mappings.
    pub mappings: u32,
}

/// A buffer that may be allocated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admitted {
    /// A unit confines the device: else the memory must be one segment, and meet the request's alignment, boundary and
    /// reach with its own address.
    pub confined: bool,
    /// Number of the account that the buffer is charged to; never used again for another one.
    pub account: u32,
}

/// One buffer as a session sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BufferView {
    /// Its number.
    pub id: BufferId,
    /// Length in bytes.
    pub length: u64,
    /// First address of the range reserved for it, else of its first mapping in the session, else 0.
    pub iova: crate::addr::Iova,
    /// Live mappings of it in the session.
    pub mappings: u32,
}

/// One buffer that a session knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotView {
    /// Its slot.
    pub slot: Slot,
    /// Length in bytes.
    pub length: u64,
    /// Addresses that are reserved for grants of it.
    pub reserved: Option<IovaRange>,
}

/// One mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MappingView {
    /// The addresses.
    pub range: IovaRange,
    /// First byte in the buffer; `None` when its pages lie anywhere in it.
    pub offset: Option<u64>,
    /// What devices may do.
    pub access: Access,
}

/// A region of I/O virtual addresses that clients may not use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionView {
    /// The addresses.
    pub range: IovaRange,
    /// The reason.
    pub kind: RegionKind,
}

/// Numbers of live objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Counts {
    /// Functions present.
    pub functions: usize,
    /// Groups.
    pub groups: usize,
    /// Groups that are claimed.
    pub groups_claimed: usize,
    /// Open sessions.
    pub sessions: usize,
    /// Sessions whose device is attached.
    pub attached: usize,
    /// Domains, those of policy included.
    pub domains: usize,
    /// Buffers, those in quarantine not included.
    pub buffers: usize,
    /// Bytes of these buffers.
    pub buffer_bytes: u64,
    /// Live mappings of clients.
    pub mappings: usize,
    /// Buffers that cannot be freed, because a unit may still reach them.
    pub quarantined: usize,
    /// Bytes of these buffers.
    pub quarantined_bytes: u64,
    /// Clients with at least one session or buffer.
    pub clients: usize,
}
