//! What a trace says was granted: sessions, their buffers, and where devices reach them. Policy is not asked.

use std::collections::BTreeMap;

use iommu_protocol::ids::{PciAddress, Slot};
use iommu_protocol::wire::{Access, AllocateFlags};
use iommud::addr::PhysRange;
use iommud::policy::{
    AllocateRequest, BatchRequest, BufferId, ClientId, Event, ListRequest, SessionId,
};
use iommud::trace::{Entry, Said, State};
use iommud_model::machine::{Reach, join};

/// Bytes of a page.
const PAGE: u64 = 4096;

/// A mapping of a session.
#[derive(Clone, Debug)]
struct Leaf {
    iova: u64,
    slot: Slot,
    /// First byte and length of each piece.
    memory: Vec<(u64, u64)>,
    access: Access,
}

/// A session.
#[derive(Clone, Debug)]
pub(super) struct Session {
    /// Its client.
    pub(super) client: ClientId,
    /// Its device.
    pub(super) device: PciAddress,
    /// The device is in the session's domain.
    pub(super) attached: bool,
    /// Sessions of one owner have the same.
    domain: u64,
    slots: BTreeMap<Slot, BufferId>,
    /// First addresses of buffers that are granted range by range.
    reserved: BTreeMap<Slot, u64>,
    leaves: Vec<Leaf>,
}

/// What was granted so far.
#[derive(Clone, Debug, Default)]
pub(super) struct Grants {
    sessions: BTreeMap<SessionId, Session>,
    buffers: BTreeMap<BufferId, Vec<PhysRange>>,
    domains: u64,
}

/// The part of a buffer from `offset` on.
fn part(segments: &[PhysRange], mut offset: u64, mut length: u64) -> Vec<(u64, u64)> {
    let mut out = Vec::new();
    for segment in segments {
        if offset >= segment.length() {
            offset -= segment.length();
            continue;
        }
        let bytes = length.min(segment.length() - offset);
        if bytes > 0 {
            out.push((segment.first().0 + offset, bytes));
        }
        (offset, length) = (0, length - bytes);
    }
    out
}

impl Grants {
    /// The session of this number.
    pub(super) fn session(&self, session: SessionId) -> Option<&Session> {
        self.sessions.get(&session)
    }

    /// All sessions.
    pub(super) fn sessions(&self) -> impl Iterator<Item = (SessionId, &Session)> {
        self.sessions.iter().map(|(id, session)| (*id, session))
    }

    /// The memory of buffers that sessions have.
    pub(super) fn memory(&self) -> impl Iterator<Item = &PhysRange> {
        let slots = self.sessions.values().flat_map(|session| session.slots.values());
        slots.filter_map(|buffer| self.buffers.get(buffer)).flatten()
    }

    /// What a device in the session's domain is to reach.
    pub(super) fn reach(&self, session: &Session) -> Vec<Reach> {
        let same = self.sessions.values().filter(|other| other.domain == session.domain);
        let mut runs = Vec::new();
        for leaf in same.flat_map(|other| &other.leaves) {
            let (read, write) =
                (leaf.access.contains(Access::READ), leaf.access.contains(Access::WRITE));
            let mut iova = leaf.iova;
            for (physical, length) in &leaf.memory {
                let last = iova.saturating_add(length - 1);
                runs.push(Reach { iova, last, physical: *physical, read, write });
                iova = iova.saturating_add(*length);
            }
        }
        runs.sort_unstable();
        let mut joined = Vec::new();
        runs.into_iter().for_each(|run| join(&mut joined, run));
        joined
    }

    /// Enters an entry of the trace.
    pub(super) fn note(&mut self, entry: &Entry) {
        if entry.status.state != State::Committed {
            return;
        }
        match &entry.said {
            Said::Claim(claim) => {
                let parent = claim.parent.and_then(|parent| self.sessions.get(&parent));
                let domain = parent.map_or(self.domains, |parent| parent.domain);
                self.domains += 1;
                let session = Session {
                    client: claim.client,
                    device: claim.address,
                    attached: false,
                    domain,
                    slots: BTreeMap::new(),
                    reserved: BTreeMap::new(),
                    leaves: Vec::new(),
                };
                self.sessions.insert(id(entry.value), session);
            }
            Said::Allocate(allocate) => {
                let (session, request) = (allocate.0, &allocate.1);
                self.allocated(session, request, (entry.value, Slot(entry.status.item)));
            }
            Said::Import(import) => self.imported(import.0, import.1, entry.value),
            Said::ImportShared(import) => self.imported(import.0, import.1, entry.value),
            Said::Batch(session, items) => {
                for (item, address) in items.iter().zip(&entry.addresses) {
                    self.changed(*session, item, address.0);
                }
            }
            Said::MapList(session, list) => self.listed(*session, list, entry.value),
            Said::Event(event) => self.happened(event),
            Said::Life(_) | Said::Hold(_) | Said::Fact(_) | Said::Seal(_) => {}
        }
    }

    fn allocated(&mut self, id: SessionId, request: &AllocateRequest, (iova, slot): (u64, Slot)) {
        self.buffers.insert(request.buffer, request.segments.clone());
        let Some(session) = self.sessions.get_mut(&id) else { return };
        session.slots.insert(slot, request.buffer);
        if request.flags.contains(AllocateFlags::UNMAPPED) {
            session.reserved.insert(slot, iova);
        } else {
            let memory = part(&request.segments, 0, request.length);
            session.leaves.push(Leaf { iova, slot, memory, access: request.access });
        }
    }

    fn imported(&mut self, session: SessionId, buffer: BufferId, slot: u64) {
        let slot = Slot(u32::try_from(slot).unwrap_or(u32::MAX));
        if let Some(session) = self.sessions.get_mut(&session) {
            session.slots.insert(slot, buffer);
        }
    }

    fn changed(&mut self, id: SessionId, item: &BatchRequest, address: u64) {
        let Self { sessions, buffers, .. } = self;
        let Some(session) = sessions.get_mut(&id) else { return };
        match item {
            BatchRequest::Map(map) | BatchRequest::Grant(map) => {
                let segments = session.slots.get(&map.slot).and_then(|buffer| buffers.get(buffer));
                let memory = part(segments.map_or(&[], |list| &list[..]), map.offset, map.length);
                let (iova, slot, access) = (address, map.slot, map.access);
                session.leaves.push(Leaf { iova, slot, memory, access });
            }
            BatchRequest::Unmap { iova, .. } => session.end_at(iova.0),
            BatchRequest::Revoke { slot, offset, .. } => {
                let first = session.reserved.get(slot).copied().unwrap_or(0);
                session.end_at(first.saturating_add(*offset));
            }
        }
    }

    fn listed(&mut self, id: SessionId, list: &ListRequest, iova: u64) {
        let Self { sessions, buffers, .. } = self;
        let Some(session) = sessions.get_mut(&id) else { return };
        let segments = session.slots.get(&list.slot).and_then(|buffer| buffers.get(buffer));
        let segments = segments.map_or(&[][..], |list| &list[..]);
        let pages =
            list.pages.iter().flat_map(|page| part(segments, u64::from(*page) * PAGE, PAGE));
        let (slot, memory, access) = (list.slot, pages.collect(), list.access);
        session.leaves.push(Leaf { iova, slot, memory, access });
    }

    fn happened(&mut self, event: &Event) {
        match event {
            Event::Frugally(event) => self.happened(event),
            Event::Attach(session) | Event::Detach(session) => {
                if let Some(session) = self.sessions.get_mut(session) {
                    session.attached = matches!(event, Event::Attach(_));
                }
            }
            Event::Release(session, slot) => {
                if let Some(session) = self.sessions.get_mut(session) {
                    session.slots.remove(slot);
                    session.reserved.remove(slot);
                    session.leaves.retain(|leaf| leaf.slot != *slot);
                }
            }
            Event::Close(session) => {
                self.sessions.remove(session);
            }
            Event::Shutdown => self.sessions.clear(),
            Event::FunctionRemoved(device) => self.cut_off(|one| one == *device),
            Event::FunctionsRemoved(devices) => self.cut_off(|one| devices.contains(&one)),
            _ => {}
        }
    }

    /// These devices are in no session's domain until they are attached again: they were removed, or are behind a unit
    /// that failed.
    pub(super) fn cut_off(&mut self, is_meant: impl Fn(PciAddress) -> bool) {
        let sessions = self.sessions.values_mut().filter(|session| is_meant(session.device));
        sessions.for_each(|session| session.attached = false);
    }
}

impl Session {
    fn end_at(&mut self, iova: u64) {
        self.leaves.retain(|leaf| leaf.iova != iova);
    }
}

fn id(value: u64) -> SessionId {
    SessionId(u32::try_from(value).unwrap_or(u32::MAX))
}
