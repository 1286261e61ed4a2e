//! Short forms of events.

use std::vec::Vec;

use iommu_protocol::ids::{PciAddress, Slot};
use iommu_protocol::wire::{Access, AllocateFlags, MapFlags};

use super::{Bench, PAGE, capabilities, phys, read_write};
use crate::addr::{Iova, PhysRange};
use crate::policy::{
    Allocate, AllocateRequest, Batch, BatchRequest, BufferId, Claim, ClientId, Event, ListRequest,
    MapRequest, Placed, Refused, SessionId, UnitIndex,
};

impl Bench {
    pub(in crate::policy::tests) fn claim(
        &mut self,
        client: u32,
        address: PciAddress,
    ) -> SessionId {
        self.claim_under(client, address, None).unwrap()
    }

    pub(in crate::policy::tests) fn claim_under(
        &mut self,
        client: u32,
        address: PciAddress,
        parent: Option<SessionId>,
    ) -> Result<SessionId, Refused> {
        let client = ClientId(client);
        self.run(&Claim { client, address, parent })
    }

    pub(in crate::policy::tests) fn allocate(
        &mut self,
        session: SessionId,
        length: u64,
        flags: AllocateFlags,
    ) -> Result<(Slot, u64, BufferId), Refused> {
        let first = self.next;
        let event = self.allocation(session, &[phys(first, length)], flags);
        self.next += length;
        self.allocated(&event)
    }

    pub(in crate::policy::tests) fn allocation(
        &self,
        session: SessionId,
        segments: &[PhysRange],
        flags: AllocateFlags,
    ) -> Allocate {
        Allocate(
            session,
            AllocateRequest {
                buffer: self.registry.next_buffer(),
                segments: segments.to_vec(),
                length: segments.iter().map(|segment| segment.length()).sum(),
                alignment: 0,
                boundary: 0,
                access: Access::READ | Access::WRITE,
                flags,
            },
        )
    }

    /// Runs an allocation; the memory belongs to the buffer from then on.
    pub(in crate::policy::tests) fn allocated(
        &mut self,
        allocate: &Allocate,
    ) -> Result<(Slot, u64, BufferId), Refused> {
        let Allocate(_, request) = allocate;
        let Placed { slot, iova } = self.run(allocate)?;
        for segment in &request.segments {
            self.world.buffers.insert(segment.first().0, (segment.last().0, request.buffer.0));
        }
        Ok((slot, iova.0, request.buffer))
    }

    pub(in crate::policy::tests) fn buffer(
        &mut self,
        session: SessionId,
        pages: u64,
    ) -> (Slot, u64, BufferId) {
        self.allocate(session, pages * PAGE, AllocateFlags::empty()).unwrap()
    }

    pub(in crate::policy::tests) fn batch(
        &mut self,
        session: SessionId,
        items: &[BatchRequest],
    ) -> Result<Vec<u64>, Refused> {
        self.run(&Batch(session, items))?;
        Ok(self.addresses.iter().map(|iova| iova.0).collect())
    }
}

pub(in crate::policy::tests) fn ready(unit: usize) -> Event {
    Event::UnitReady(UnitIndex(u32::try_from(unit).unwrap()), capabilities())
}

pub(in crate::policy::tests) fn map(slot: Slot, page: u64, pages: u64) -> BatchRequest {
    BatchRequest::Map(request(slot, page, pages))
}

pub(in crate::policy::tests) fn fixed(
    slot: Slot,
    page: u64,
    pages: u64,
    iova: u64,
) -> BatchRequest {
    let request =
        MapRequest { iova: Iova(iova), flags: MapFlags::FIXED, ..request(slot, page, pages) };
    BatchRequest::Map(request)
}

pub(in crate::policy::tests) fn request(slot: Slot, page: u64, pages: u64) -> MapRequest {
    MapRequest {
        slot,
        offset: page * PAGE,
        length: pages * PAGE,
        iova: Iova(0),
        access: Access::from_bits_truncate(read_write()),
        flags: MapFlags::empty(),
    }
}

/// Pages of a buffer at consecutive addresses: at `iova`, or anywhere for 0.
pub(in crate::policy::tests) fn list(slot: Slot, pages: &[u32], iova: u64) -> ListRequest {
    ListRequest {
        slot,
        access: Access::READ,
        flags: if iova == 0 { MapFlags::empty() } else { MapFlags::FIXED },
        iova: Iova(iova),
        pages: pages.to_vec(),
    }
}

pub(in crate::policy::tests) fn unmap(iova: u64, pages: u64) -> BatchRequest {
    BatchRequest::Unmap { iova: Iova(iova), length: pages * PAGE }
}
