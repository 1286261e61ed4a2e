//! Events, which have no outcome, and requests, which have one.

use alloc::boxed::Box;
use alloc::vec::Vec;

use iommu_protocol::ids::{PciAddress, RequesterId, Slot};
use iommu_protocol::status::Refusal;
use iommu_protocol::wire::{Access, AllocateFlags, MapFlags};

use crate::addr::{Iova, PhysRange};
use crate::policy::ids::{BufferId, ClientId, DomainId, SessionId, UnitIndex};
use crate::topology::capabilities::UnitCapabilities;
use crate::topology::pci::PciFunction;

/// An event without an outcome. The registry decides requests of clients, units that come up or fail, functions that
/// come and go, and deaths of clients one after the other.
#[derive(Clone, Debug)]
pub enum Event {
    /// A unit was brought up until it accepts entries, or failed and is to come back. The plan ends with turning
    /// translation on.
    UnitReady(UnitIndex, UnitCapabilities),
    /// A unit can no longer be relied on.
    UnitFailed(UnitIndex),
    /// No unit with tables of this server is failed any more. Each has flushed its caches, so that no device reaches
    /// memory in quarantine.
    Proved,
    /// A function appeared (the first walk, or hot-plug).
    FunctionAdded(PciFunction),
    /// Functions appeared, each after the bridges above it. All are added, or none.
    FunctionsAdded(Vec<PciFunction>),
    /// A function went away.
    FunctionRemoved(PciAddress),
    /// Functions went away.
    FunctionsRemoved(Vec<PciAddress>),
    /// The server took memory that domains of policy `compat` map: it is removed from them.
    MemoryTaken(PhysRange),
    /// The server gave such memory back to the system.
    MemoryReturned(PhysRange),
    /// A requester has too many faults: its unit is to suppress them until its entry is moved.
    Storm(UnitIndex, RequesterId),
    /// Moves the device of a session into the session's domain.
    Attach(SessionId),
    /// Moves the device of a session back to policy.
    Detach(SessionId),
    /// A session gives up a buffer.
    Release(SessionId, Slot),
    /// A buffer's descriptor was closed.
    Drop(BufferId),
    /// A session was closed, or its process died.
    Close(SessionId),
    /// The server stops: every group goes back to policy.
    Shutdown,
    /// An event that ends something and for which there was no memory: this plan takes none. Entries that belong in a
    /// domain of policy that does not exist are blocked, and owed. Never refused for lack of memory.
    Frugally(Box<Self>),
    /// Carries out owed work, which was put off because there was no memory.
    Settle(Owed),
}

/// Work that the end of a session or device left undone for lack of memory (I9). No device can reach memory of others
/// because of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Owed {
    /// A requester is blocked, but belongs under policy.
    Entry(UnitIndex, RequesterId),
    /// The memory of an unused buffer is to go back to policy, and then to the system.
    Buffer(BufferId),
    /// A domain allows more in a region of firmware than firmware says. The device that needed this is gone.
    Regions(DomainId),
}

/// The buffer of an allocation.
#[derive(Clone, Debug)]
pub struct AllocateRequest {
    /// Its number, not in use.
    pub buffer: BufferId,
    /// Its memory, in order.
    pub segments: Vec<PhysRange>,
    /// Length in bytes: the sum of the segments.
    pub length: u64,
    /// Alignment of the I/O virtual address, a power of two from 4096 on.
    pub alignment: u64,
    /// Boundary that the range may not cross, 0 for none.
    pub boundary: u64,
    /// Access of devices.
    pub access: Access,
    /// Flags.
    pub flags: AllocateFlags,
}

/// One element of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BatchRequest {
    /// Map.
    Map(MapRequest),
    /// Unmap exactly one mapping.
    Unmap {
        /// Its first address.
        iova: Iova,
        /// Its length in bytes.
        length: u64,
    },
    /// Map at the buffer's own reserved address.
    Grant(MapRequest),
    /// Undo exactly one grant.
    Revoke {
        /// The buffer.
        slot: Slot,
        /// First byte in the buffer.
        offset: u64,
        /// Length in bytes.
        length: u64,
    },
}

/// A range of a buffer to be mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapRequest {
    /// The buffer.
    pub slot: Slot,
    /// First byte in the buffer.
    pub offset: u64,
    /// Length in bytes.
    pub length: u64,
    /// The first address, with `MapFlags::FIXED`.
    pub iova: Iova,
    /// Access of devices.
    pub access: Access,
    /// Flags.
    pub flags: MapFlags,
}

/// Pages of a buffer to be mapped to consecutive addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListRequest {
    /// The buffer.
    pub slot: Slot,
    /// Access of devices.
    pub access: Access,
    /// Flags.
    pub flags: MapFlags,
    /// The first address, with `MapFlags::FIXED`.
    pub iova: Iova,
    /// Numbers of pages, from the buffer's first byte on.
    pub pages: Vec<u32>,
}

/// Claims a device that was opened for writing, or that an owner opens under one of its sessions.
#[derive(Clone, Copy, Debug)]
pub struct Claim {
    /// The client whose quota it counts against.
    pub client: ClientId,
    /// The device.
    pub address: PciAddress,
    /// The session it was opened under.
    pub parent: Option<SessionId>,
}

/// Allocates a buffer for a session.
#[derive(Clone, Debug)]
pub struct Allocate(pub SessionId, pub AllocateRequest);

/// The place of a new buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    /// Its slot in the session.
    pub slot: Slot,
    /// The first address where it is mapped, or that is reserved for it.
    pub iova: Iova,
}

/// Gives a buffer to a session of the same client.
#[derive(Clone, Copy, Debug)]
pub struct Import(pub SessionId, pub BufferId);

/// Gives a buffer to a session of any client, which expects it from a holder of the buffer. The memory stays charged
/// to the client that allocated it. The slot and its mappings are charged to the session's client.
#[derive(Clone, Copy, Debug)]
pub struct ImportShared(pub SessionId, pub BufferId);

/// Records that a descriptor of a buffer was opened.
#[derive(Clone, Copy, Debug)]
pub struct Hold(pub SessionId, pub Slot);

/// Maps and unmaps, all or none. A single request is a batch of one. The outcome has one address for each element, in
/// [`Orders::addresses`](crate::policy::Orders::addresses).
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a>(pub SessionId, pub &'a [BatchRequest]);

/// Maps pages of a buffer, in any order, to consecutive addresses, as one mapping.
#[derive(Clone, Copy, Debug)]
pub struct MapList<'a>(pub SessionId, pub &'a ListRequest);

/// The refusal of a request or event; nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The reason.
    pub refusal: Refusal,
    /// Index of the element of a batch, or of the page of a list, that was refused; else 0.
    pub item: u32,
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        Self { refusal, item: 0 }
    }
}

impl From<Refused> for Refusal {
    fn from(refused: Refused) -> Self {
        refused.refusal
    }
}
