//! Requests about buffers and mappings.

use iommu_protocol::wire::{
    Access, Allocate, AllocateFlags, AllocateResult, Batch, BatchItem, BufferRequest, Empty, Grant,
    Map, MapFlags, MapList, MapResult, Operation, ReplyHeader, RequestHeader, Unmap, Wire,
};
use iommud::server::Handle;

use super::words::{done, refused, size};
use super::{Real, caller, put};
use crate::explore::act::{Act, Answer, Client};
use crate::explore::backend::Backend;
use crate::explore::ledger::{Ledger, PAGE, Session};

/// The first buffer of a session.
fn first(session: Option<&Session>) -> u32 {
    session.and_then(|session| session.buffers.first()).map_or(0, |buffer| buffer.0)
}

impl<T: Backend, const CARELESS: u8> Real<T, CARELESS>
where
    T::Unit: Clone,
{
    pub(super) fn of_memory(&mut self, ledger: &Ledger, client: Client, act: Act) -> Answer {
        let Some(device) = super::super::history::device_of(act) else {
            unreachable!("{act:?} is no request about memory");
        };
        let session = ledger.session(client, device);
        let (handle, slot) = (Self::handle(ledger, client, device), first(session));
        match act {
            Act::Allocate(_, pages) => self.allocate(handle, pages, AllocateFlags::empty()),
            Act::Reserve(_, pages) => self.allocate(handle, pages, AllocateFlags::UNMAPPED),
            Act::Map(_) => self.map(handle, slot, None),
            Act::MapFixed(_, iova) => self.map(handle, slot, Some(iova)),
            Act::List(_, iova, pages) => self.map_list(handle, slot, iova, pages),
            Act::Grant(_, page) => self.grant(handle, session, page),
            Act::Revoke(_, page) => self.revoke(handle, session, page),
            Act::Unmap(_) => {
                let mapping = session.and_then(|session| session.mappings.first());
                let (iova, length) =
                    mapping.map_or((PAGE, PAGE), |mapping| (mapping.iova, size(&mapping.memory)));
                self.unmap(handle, iova, length)
            }
            Act::UnmapAt(_, iova) => self.unmap(handle, iova, PAGE),
            Act::Release(_) => {
                let body = BufferRequest { slot, reserved: 0 };
                done(self.call::<Empty>(handle, Operation::Release, &body).map(drop))
            }
            Act::Batch(_) => self.batch(handle, slot),
            Act::Import(_, owner, owned) => self.import(ledger, handle, (owner, owned)),
            _ => unreachable!("{act:?} is no request about memory"),
        }
    }

    fn allocate(&mut self, handle: Handle, pages: u64, flags: AllocateFlags) -> Answer {
        let before = self.stack.machine.buffers_in_use();
        let (access, flags) = (Access::all().bits(), flags.bits());
        let body = Allocate { length: pages * PAGE, access, flags, ..Allocate::default() };
        let result: Result<AllocateResult, _> = self.call(handle, Operation::Allocate, &body);
        refused(result, |result| {
            let now = self.stack.machine.buffers_in_use();
            let new = now.iter().find(|id| !before.contains(id)).expect("a buffer of its own");
            let segments = self.stack.machine.buffer_segments(*new);
            let memory = segments.iter().map(|range| (range.first().0, range.length())).collect();
            let (slot, iova) = (result.slot, result.iova);
            if flags == 0 {
                Answer::Buffer { slot, iova, memory }
            } else {
                Answer::Reserved { slot, iova, memory }
            }
        })
    }

    fn map(&mut self, handle: Handle, slot: u32, at: Option<u64>) -> Answer {
        let body = Map {
            slot,
            access: Access::all().bits(),
            length: PAGE,
            iova: at.unwrap_or(0),
            flags: if at.is_some() { MapFlags::FIXED.bits() } else { 0 },
            ..Map::default()
        };
        let result: Result<MapResult, _> = self.call(handle, Operation::Map, &body);
        refused(result, |result| Answer::Mapped(vec![(result.iova, 0)]))
    }

    pub(super) fn unmap(&mut self, handle: Handle, iova: u64, length: u64) -> Answer {
        done(self.call::<Empty>(handle, Operation::Unmap, &Unmap { iova, length }).map(drop))
    }

    /// Maps three pages in one request, last page first, at addresses of the server's choice. The reply overwrites
    /// the request's bytes. The mappings must match the request all the same.
    fn batch(&mut self, handle: Handle, slot: u32) -> Answer {
        let offsets = [2 * PAGE, PAGE, 0];
        let mut payload = [0; 512];
        let mut at = RequestHeader::SIZE;
        at += put(&mut payload[at..], &Batch { count: 3, reserved: 0 });
        for offset in offsets {
            let item = BatchItem {
                operation: Operation::Map.code(),
                slot,
                access: Access::all().bits(),
                offset,
                length: PAGE,
                ..BatchItem::default()
            };
            at += put(&mut payload[at..], &item);
        }
        let reply = match self.send(handle, Operation::Batch, &mut payload, at) {
            Ok(reply) => reply,
            Err(refusal) => return Answer::Refused(refusal),
        };
        let results = &payload[ReplyHeader::SIZE + Empty::SIZE..reply];
        let results =
            results.chunks(MapResult::SIZE).map(|bytes| MapResult::decode(bytes).unwrap());
        let mapped = results.zip(offsets).map(|(result, offset)| (result.iova, offset)).collect();
        // The client overwrites the request afterwards.
        payload.fill(0xff);
        Answer::Mapped(mapped)
    }

    fn map_list(&mut self, handle: Handle, slot: u32, iova: u64, pages: &[u32]) -> Answer {
        let flags = if iova == 0 { 0 } else { MapFlags::FIXED.bits() };
        let count = u32::try_from(pages.len()).unwrap();
        let body = MapList { slot, access: Access::all().bits(), flags, count, iova };
        let mut payload = [0; 128];
        let mut at = RequestHeader::SIZE;
        at += put(&mut payload[at..], &body);
        for page in pages {
            payload[at..at + 4].copy_from_slice(&page.to_le_bytes());
            at += 4;
        }
        let result = self.send(handle, Operation::MapList, &mut payload, at);
        let result = result.map(|_| MapResult::decode(&payload[ReplyHeader::SIZE..]).unwrap());
        refused(result, |result| Answer::Listed(result.iova))
    }

    fn grant(&mut self, handle: Handle, session: Option<&Session>, page: u64) -> Answer {
        let slot = granted(session);
        let body = Grant { slot, access: Access::all().bits(), offset: page * PAGE, length: PAGE };
        done(self.call::<MapResult>(handle, Operation::Grant, &body).map(drop))
    }

    fn revoke(&mut self, handle: Handle, session: Option<&Session>, page: u64) -> Answer {
        let body = Grant { slot: granted(session), access: 0, offset: page * PAGE, length: PAGE };
        done(self.call::<Empty>(handle, Operation::Revoke, &body).map(drop))
    }

    /// The owner opens its buffer and passes the descriptor on. The receiver imports it and closes it.
    fn import(&mut self, ledger: &Ledger, to: Handle, (owner, owned): (Client, usize)) -> Answer {
        let theirs = ledger.session(owner, owned);
        let path = format!("buffers/{}", first(theirs));
        let below = Some(Self::handle(ledger, owner, owned));
        let server = &mut self.stack.server;
        let imported = server.open(caller(owner), below, &path, true).and_then(|buffer| {
            let imported = server.import(to, buffer);
            server.close(buffer);
            imported
        });
        refused(imported, Answer::Imported)
    }
}

/// The first buffer whose pages are granted one by one.
fn granted(session: Option<&Session>) -> u32 {
    session.and_then(|session| session.reserved.first()).map_or(0, |reserved| reserved.0)
}
