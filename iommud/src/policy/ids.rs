//! Numbers of objects. They are the server's own: a client never names one.

use iommu_protocol::ids::RequesterId;

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u32);
    )*};
}

ids! {
    /// A unit, in firmware order.
    UnitIndex;
    /// An isolation group: the smallest set of functions the hardware can tell apart.
    GroupId;
    /// An I/O address space.
    DomainId;
    /// An open writable handle on a device.
    SessionId;
    /// DMA memory owned by the server.
    BufferId;
    /// The client whose quota a request counts against: a connection, or an owner's first session.
    ClientId;
}

/// An entry: a requester id in a unit.
pub(super) type Key = (UnitIndex, RequesterId);
