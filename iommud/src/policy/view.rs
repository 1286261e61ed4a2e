//! What others may see of the registry: plain copies, never references into its state.

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

/// Where a unit stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnitState {
    /// Firmware describes it; it is not up.
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
    /// Where it stands.
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
    /// Where it is; `None` while a bridge above it is not known.
    pub address: Option<PciAddress>,
    /// What the entry of its requester id lets it do.
    pub binding: Binding,
    /// A PCI function is, or was, known by its requester id. Then that one decides what the entry is.
    pub is_function: bool,
}

/// Buses behind a port where devices come and go, and where no function is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VacantBuses {
    /// The port.
    pub port: PciAddress,
    /// The unit that denies what appears there.
    pub unit: UnitIndex,
    /// First bus.
    pub first: u8,
    /// Last bus (inclusive).
    pub last: u8,
}

/// One function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FunctionView {
    /// What the walk found.
    pub function: PciFunction,
    /// How often the address was taken by a new device, from 1.
    pub generation: u32,
    /// Its group.
    pub group: GroupId,
    /// The unit in front of it.
    pub unit: Option<UnitIndex>,
    /// Its mode while unclaimed.
    pub mode: Mode,
    /// What the entry of its own requester id lets it do. Without a unit, everything.
    pub binding: Binding,
    /// Requester ids under which its requests may arrive, its own first.
    pub sources: Vec<RequesterId>,
    /// The session on it.
    pub session: Option<SessionId>,
    /// Its last session ended while it was attached: its group is blocked.
    pub cut: bool,
    /// Faults under its own requester id are not reported.
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
    /// Whose quota it counts against.
    pub client: ClientId,
    /// The unit in front of the device.
    pub unit: Option<UnitIndex>,
    /// The unit has failed.
    pub unit_failed: bool,
    /// The device is in the session's domain.
    pub attached: bool,
    /// The device's faults are not reported: there were too many.
    pub silenced: bool,
    /// Its domain; `None` when no unit confines the device: addresses are bus addresses.
    pub domain: Option<DomainView>,
    /// Bytes of buffers the client may still allocate.
    pub memory_left: u64,
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

/// One buffer as a session sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BufferView {
    /// Its number.
    pub id: BufferId,
    /// Length in bytes.
    pub length: u64,
    /// First address of its first mapping in the session, or the range reserved for it, or 0.
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
    /// Why.
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
    /// Buffers never to be freed, because a unit may still reach them.
    pub quarantined: usize,
    /// Bytes of these buffers.
    pub quarantined_bytes: u64,
    /// Clients with at least one session or buffer.
    pub clients: usize,
}
