//! Calls on a session: a request in, a reply out, in the same payload.

use iommu_protocol::Refusal;
use iommu_protocol::ids::Slot;
use iommu_protocol::wire::{
    AllocateFlags, AllocateResult, BufferResult, Empty, MapResult, Operation, QueryResult, Region,
    RegionsResult, ReplyHeader, RequestHeader, SessionFlags, Short, VERSION, Wire, parse_header,
};

use crate::addr::{Iova, IovaRange};
use crate::hw::{BufferMemory, Constraints, MemoryError, Unit};
use crate::policy::{
    Admitted, Allocate, AllocateRequest, Batch, BatchRequest, Event, ListRequest, MapList, Placed,
    Refused, SessionId,
};
use crate::server::Server;
use crate::server::decode::{self, AllocateArguments, ListArguments, Request};
use crate::server::handles::Handle;
use crate::server::text::LEFT_OUT;
use crate::topology::capabilities::PageSizes;

/// Writes structures one after another behind the reply header.
struct Body<'a> {
    payload: &'a mut [u8],
    length: usize,
}

impl Body<'_> {
    fn put<W: Wire>(&mut self, structure: &W) -> Result<(), Refusal> {
        let out = self.payload.get_mut(self.length..).ok_or(Refusal::BadLength)?;
        structure.encode(out).map_err(|Short| Refusal::BadLength)?;
        self.length += W::SIZE;
        Ok(())
    }

    /// Refuses unless `bytes` more fit. This is checked before anything is done.
    fn room(&self, bytes: usize) -> Result<(), Refusal> {
        let left = self.payload.len().saturating_sub(self.length);
        if left >= bytes { Ok(()) } else { Err(Refusal::BadLength) }
    }
}

impl<U: Unit, B: BufferMemory> Server<U, B> {
    /// Carries out the request in the first `request_length` bytes of `payload` and replaces it by the reply. Returns
    /// the length of the reply. A refused request gets a reply too, with the reason.
    ///
    /// # Errors
    /// `BadHandle`, `BadOperation` (the handle is not a session), `BadLength` (no room for a reply's header): then
    /// there is no reply.
    pub fn call(
        &mut self,
        handle: Handle,
        payload: &mut [u8],
        request_length: usize,
    ) -> Result<usize, Refusal> {
        self.counts.calls += 1;
        let session = self.handles.session(handle)?;
        if payload.len() < ReplyHeader::SIZE || request_length > payload.len() {
            return Err(Refusal::BadLength);
        }
        let bytes = payload.get(..request_length).unwrap_or_default();
        let asked = RequestHeader::decode(bytes).unwrap_or_default();
        let result = match parse_header(bytes) {
            Ok((_, operation, body)) => match decode::decode(operation, body, &mut self.scratch) {
                Ok(request) => self.answer(session, operation, request, payload),
                Err(refused) => Err(refused),
            },
            Err(refusal) => Err(refusal.into()),
        };
        if result.is_err() {
            self.counts.refusals += 1;
        }
        finish(payload, &asked, result)
    }

    /// Carries out a request; returns the length of the reply.
    #[inline(never)]
    fn answer(
        &mut self,
        session: SessionId,
        operation: Operation,
        request: Request,
        payload: &mut [u8],
    ) -> Result<usize, Refused> {
        let mut body = Body { payload, length: ReplyHeader::SIZE };
        body.room(operation.result_size())?;
        self.answer_into(session, request, &mut body)?;
        Ok(body.length)
    }

    fn answer_into(
        &mut self,
        session: SessionId,
        request: Request,
        body: &mut Body<'_>,
    ) -> Result<(), Refused> {
        match request {
            Request::Query => Ok(body.put(&self.query(session)?)?),
            Request::Attach => {
                // Faults from before the attach are not this owner's: the last DMA of a dead driver, for one.
                self.poll_faults();
                let left_out = self.registry.left_out_by(session);
                self.plain(&Event::Attach(session), body)?;
                for device in left_out {
                    log::warn!("{device} reaches {LEFT_OUT}");
                }
                Ok(())
            }
            Request::Detach => self.plain(&Event::Detach(session), body),
            Request::Release(slot) => self.plain(&Event::Release(session, slot), body),
            Request::QueryBuffer(slot) => Ok(body.put(&self.query_buffer(session, slot)?)?),
            Request::Regions => self.regions(session, body),
            Request::Allocate(arguments) => Ok(body.put(&self.allocate(session, &arguments)?)?),
            Request::One(item) => self.one(session, item, body),
            Request::Batch => self.batch(session, body),
            Request::List(arguments) => self.map_list(session, arguments, body),
        }
    }

    fn plain(&mut self, event: &Event, body: &mut Body<'_>) -> Result<(), Refused> {
        self.run_event(event)?;
        Ok(body.put(&Empty::default())?)
    }

    fn query(&self, session: SessionId) -> Result<QueryResult, Refusal> {
        let view = self.registry.session(session).ok_or(Refusal::NotProbed)?;
        let mut flags = SessionFlags::empty();
        flags.set(SessionFlags::ATTACHED, view.attached);
        flags.set(SessionFlags::CONFINED, view.domain.is_some());
        flags.set(SessionFlags::UNIT_FAILED, view.unit_failed);
        flags.set(SessionFlags::FAULTS, self.faults.pending(session));
        flags.set(SessionFlags::SILENCED, view.silenced);
        flags.set(SessionFlags::UNQUIESCED, view.unquiesced);
        let (space, sizes) = view.domain.map_or((BUS_ADDRESSES, PageSizes::SIZE_4K), |domain| {
            (domain.space, domain.page_sizes)
        });
        Ok(QueryResult {
            flags: flags.bits(),
            group: view.group.0,
            generation: view.generation,
            segment: view.address.segment,
            requester: view.address.requester.0,
            iova_first: space.first().0,
            iova_last: space.last().0,
            page_sizes: sizes.bits(),
            memory_left: self.registry.memory_left(session).unwrap_or(0),
            mappings_left: view.mappings_left,
            faults_lost: self.faults.lost(session),
        })
    }

    fn query_buffer(&self, session: SessionId, slot: Slot) -> Result<BufferResult, Refusal> {
        let view = self.registry.buffer(session, slot).ok_or(Refusal::BadHandle)?;
        Ok(BufferResult {
            iova: view.iova.0,
            length: view.length,
            mappings: view.mappings,
            iotlb_entries: self.footprint_of_buffer(session, slot),
        })
    }

    fn regions(&mut self, session: SessionId, body: &mut Body<'_>) -> Result<(), Refused> {
        let regions = self.registry.regions(session);
        body.room(RegionsResult::SIZE + regions.len() * Region::SIZE)?;
        let count = u32::try_from(regions.len()).unwrap_or(u32::MAX);
        body.put(&RegionsResult { count, reserved: 0 })?;
        for region in regions {
            body.put(&Region {
                first: region.range.first().0,
                last: region.range.last().0,
                kind: region.kind as u32,
                reserved: 0,
            })?;
        }
        Ok(())
    }

    /// The memory belongs to the server until policy has accepted it. Refused memory is released at once, unless a
    /// device may still reach it.
    fn allocate(
        &mut self,
        session: SessionId,
        arguments: &AllocateArguments,
    ) -> Result<AllocateResult, Refusal> {
        let length = arguments.length;
        let admitted = self.registry.admit_within(session, length);
        let Admitted { confined, account } =
            admitted.map_err(|refusal| self.not_admitted(session, length, refusal))?;
        let buffer = self.registry.next_buffer();
        let written_back = !self.registry.forces_snoop();
        let constraints = Constraints { written_back, account, ..constraints(arguments, confined) };
        if !self.buffers.has_room(arguments.length, constraints) {
            self.registry.admit_buffer(session, length).map_err(|refusal| {
                self.growth.refused(session, length);
                self.not_admitted(session, length, refusal)
            })?;
        }
        let segments = self
            .buffers
            .allocate(buffer.0, arguments.length, constraints)
            .map_err(|error: MemoryError| self.growth.not_found(error))?;
        self.growth.found(session);
        let request = AllocateRequest {
            buffer,
            segments,
            length: arguments.length,
            alignment: arguments.alignment,
            boundary: arguments.boundary,
            access: arguments.access,
            flags: arguments.flags,
        };
        match self.run_marked(&Allocate(session, request), |_| ()) {
            Ok(Placed { slot, iova }) => Ok(AllocateResult {
                iova: iova.0,
                length: arguments.length,
                slot: slot.0,
                reserved: 0,
            }),
            Err(failed) => {
                if !failed.quarantined {
                    self.buffers.release(buffer.0);
                }
                Err(failed.refused.refusal)
            }
        }
    }

    /// Carries out a map, unmap, grant or revoke.
    fn one(
        &mut self,
        session: SessionId,
        item: BatchRequest,
        body: &mut Body<'_>,
    ) -> Result<(), Refused> {
        let maps = matches!(item, BatchRequest::Map(_) | BatchRequest::Grant(_));
        let mut told = 0;
        let done = self.run_marked(&Batch(session, &[item]), |orders| {
            told = orders.addresses().first().map_or(0, |iova| iova.0);
        });
        done.map_err(|failed| failed.refused)?;
        Ok(if maps { body.put(&MapResult { iova: told }) } else { body.put(&Empty::default()) }?)
    }

    fn batch(&mut self, session: SessionId, body: &mut Body<'_>) -> Result<(), Refused> {
        body.room(Empty::SIZE + self.scratch.items.len() * MapResult::SIZE)?;
        body.put(&Empty::default())?;
        let items = core::mem::take(&mut self.scratch.items);
        let mut told = Ok(());
        let done = self.run_marked(&Batch(session, &items), |orders| {
            let mut addresses = orders.addresses().iter();
            told = addresses.try_for_each(|iova| body.put(&MapResult { iova: iova.0 }));
        });
        // Its capacity is reused.
        self.scratch.items = items;
        done.map_err(|failed| failed.refused)?;
        Ok(told?)
    }

    fn map_list(
        &mut self,
        session: SessionId,
        arguments: ListArguments,
        body: &mut Body<'_>,
    ) -> Result<(), Refused> {
        let ListArguments { slot, access, flags, iova } = arguments;
        let pages = core::mem::take(&mut self.scratch.pages);
        let request = ListRequest { slot, access, flags, iova, pages };
        let mapped = self.run_marked(&MapList(session, &request), |_| ());
        self.scratch.pages = request.pages;
        let Iova(iova) = mapped.map_err(|failed| failed.refused)?;
        Ok(body.put(&MapResult { iova })?)
    }
}

/// Writes the header of the reply in front of its body; returns the length of the reply.
#[inline(always)]
fn finish(
    payload: &mut [u8],
    asked: &RequestHeader,
    result: Result<usize, Refused>,
) -> Result<usize, Refusal> {
    let (refusal, item, length) = match result {
        Ok(length) => (0, 0, length),
        Err(refused) => (refused.refusal.code(), refused.item, ReplyHeader::SIZE),
    };
    let header = ReplyHeader {
        version: VERSION,
        operation: asked.operation,
        length: u32::try_from(length).unwrap_or(u32::MAX),
        cookie: asked.cookie,
        refusal,
        reserved: 0,
        item,
    };
    header.encode(payload).map_err(|Short| Refusal::BadLength)?;
    Ok(length)
}

/// The addresses of a session without a unit: any bus address.
const BUS_ADDRESSES: IovaRange = match IovaRange::inclusive(Iova(0), Iova(u64::MAX)) {
    Some(range) => range,
    None => unreachable!(),
};

/// A unit makes any memory look contiguous and low. Without one the memory itself must be.
fn constraints(arguments: &AllocateArguments, confined: bool) -> Constraints {
    if confined {
        return Constraints { alignment: crate::addr::PAGE_SIZE, ..Constraints::default() };
    }
    Constraints {
        below_4g: !arguments.flags.contains(AllocateFlags::ABOVE_4G),
        contiguous: true,
        alignment: arguments.alignment,
        boundary: arguments.boundary,
        ..Constraints::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use iommu_protocol::wire::Access;

    #[test]
    fn only_memory_that_no_unit_translates_must_meet_the_request() {
        let asked = |flags| AllocateArguments {
            length: 0x3000,
            alignment: 0x1_0000,
            boundary: 0x4000,
            access: Access::all(),
            flags,
        };
        let (low, any) = (AllocateFlags::empty(), AllocateFlags::ABOVE_4G);
        let page = Constraints {
            below_4g: false,
            contiguous: false,
            alignment: 0x1000,
            boundary: 0,
            written_back: false,
            account: 0,
        };
        for flags in [low, any] {
            assert_eq!(constraints(&asked(flags), true), page);
        }
        let whole = Constraints { contiguous: true, alignment: 0x1_0000, boundary: 0x4000, ..page };
        assert_eq!(constraints(&asked(any), false), whole);
        assert_eq!(constraints(&asked(low), false), Constraints { below_4g: true, ..whole });
    }
}
