//! What can happen: events without an outcome, and requests that have one.

use alloc::boxed::Box;
use alloc::vec::Vec;

use iommu_protocol::ids::{PciAddress, RequesterId, Slot};
use iommu_protocol::status::Refusal;
use iommu_protocol::wire::{Access, AllocateFlags, MapFlags};

use crate::addr::{Iova, PhysRange};
use crate::policy::ids::{BufferId, ClientId, DomainId, SessionId, UnitIndex};
use crate::topology::capabilities::UnitCapabilities;
use crate::topology::pci::PciFunction;

/// Something that happened of which there is nothing to tell. Requests of clients, units coming up and failing,
/// functions coming and going and the deaths of clients enter the same queue.
#[derive(Clone, Debug)]
pub enum Event {
    /// A unit was brought up as far as taking entries, or failed and is to come back. Its plan ends with turning
    /// translation on.
    UnitReady(UnitIndex, UnitCapabilities),
    /// A unit can no longer be relied on.
    UnitFailed(UnitIndex),
    /// No unit that has tables of this server is failed any more: each has forgotten what it had cached, so that
    /// nothing reaches what is in quarantine.
    Proved,
    /// A function appeared (the first walk, or hot-plug).
    FunctionAdded(PciFunction),
    /// A function went away.
    FunctionRemoved(PciAddress),
    /// The server took memory that domains of policy `compat` map: it is removed from them.
    MemoryTaken(PhysRange),
    /// The server gave such memory back to the system.
    MemoryReturned(PhysRange),
    /// A requester has too many faults: its unit is to report no more of them, until its entry is moved.
    Storm(UnitIndex, RequesterId),
    /// Attach, detach: into the session's domain, back to policy.
    Attach(SessionId),
    /// See `Attach`.
    Detach(SessionId),
    /// A session gives up a buffer.
    Release(SessionId, Slot),
    /// A buffer's descriptor was closed.
    Drop(BufferId),
    /// A session was closed, or its process died.
    Close(SessionId),
    /// The server stops: every group goes back to policy.
    Shutdown,
    /// An end of life for which there was no memory: the plan takes none. Whatever would have been under a domain of
    /// policy that does not exist is blocked, and owed. Not refused for lack of memory.
    Frugally(Box<Self>),
    /// What the end of something still owes, because there was no memory, is done now.
    Settle(Owed),
}

/// What an end of life has left to be done when there is memory (I9). Nothing that is anybody else's can be reached on its
/// account.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Owed {
    /// A requester is blocked, and is to be under policy.
    Entry(UnitIndex, RequesterId),
    /// The memory of a buffer that nobody has is to go back to policy, and then to the system.
    Buffer(BufferId),
    /// A domain lets its devices do more in a region of firmware's than firmware says: the device that might is gone.
    Regions(DomainId),
}

/// A buffer to be entered.
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
    /// What devices may do.
    pub access: Access,
    /// How.
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
    /// Where, with `MapFlags::FIXED`.
    pub iova: Iova,
    /// What devices may do.
    pub access: Access,
    /// How.
    pub flags: MapFlags,
}

/// Pages of a buffer to be mapped to consecutive addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListRequest {
    /// The buffer.
    pub slot: Slot,
    /// What devices may do.
    pub access: Access,
    /// How.
    pub flags: MapFlags,
    /// Where, with `MapFlags::FIXED`.
    pub iova: Iova,
    /// Numbers of pages, from the buffer's first byte on.
    pub pages: Vec<u32>,
}

/// A device was opened for writing; under a session, when its owner opens another member.
#[derive(Clone, Copy, Debug)]
pub struct Claim {
    /// Whose quota it counts against.
    pub client: ClientId,
    /// The device.
    pub address: PciAddress,
    /// The session it was opened under.
    pub parent: Option<SessionId>,
}

/// A buffer was allocated for a session.
#[derive(Clone, Debug)]
pub struct Allocate(pub SessionId, pub AllocateRequest);

/// Where a buffer was entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    /// Its slot in the session.
    pub slot: Slot,
    /// Where it is mapped or will be.
    pub iova: Iova,
}

/// A session of the same client is given a buffer.
#[derive(Clone, Copy, Debug)]
pub struct Import(pub SessionId, pub BufferId);

/// A session of any client is given a buffer which it expects, by whoever has that. The memory stays charged to the
/// client that allocated it; the slot and its mappings are charged to the session's.
#[derive(Clone, Copy, Debug)]
pub struct ImportShared(pub SessionId, pub BufferId);

/// A buffer's descriptor was opened.
#[derive(Clone, Copy, Debug)]
pub struct Hold(pub SessionId, pub Slot);

/// Maps and unmaps, all or none. A single one is a batch of one. [`Orders::addresses`](crate::policy::Orders::addresses)
/// has an address for each.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a>(pub SessionId, pub &'a [BatchRequest]);

/// Maps pages of a buffer, in any order, to consecutive addresses, as one mapping.
#[derive(Clone, Copy, Debug)]
pub struct MapList<'a>(pub SessionId, pub &'a ListRequest);

/// An event was refused; nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Why.
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
