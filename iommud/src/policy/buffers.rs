//! Buffers: allocated, known to sessions, held by handles, released.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use iommu_protocol::ids::Slot;
use iommu_protocol::status::Refusal;
use iommu_protocol::wire::AllocateFlags;

use crate::addr::{Iova, IovaRange, PAGE_SIZE, PhysAddr};
use crate::policy::change::hull;
use crate::policy::draft::{Draft, Effect, bounds, full};
use crate::policy::event::{AllocateRequest, Outcome, Owed};
use crate::policy::ids::{BufferId, DomainId, SessionId};
use crate::policy::iova::Wanted;
use crate::policy::registry::Registry;
use crate::policy::state::mappings::{Mapping, MappingList};
use crate::policy::state::memory::{Grants, Memory};
use crate::policy::state::objects::{Buffer, Domain, Session, SlotRecord, Trust};
use crate::policy::step::Step;

/// First address that needs more than 32 bits.
const FOUR_GIB: u64 = 1 << 32;

impl Registry {
    /// A session whose device is there and behind no unit that failed.
    pub(super) fn usable(&self, session: SessionId) -> Result<&Session, Refusal> {
        let session = self.open_session(session)?;
        self.machine.check_session(session)?;
        if let Some(domain) = session.domain
            && self.domain(domain)?.trust != Trust::Sound
        {
            return Err(Refusal::UnitFailed);
        }
        Ok(session)
    }

    /// Whether a buffer of `length` bytes may be allocated for a session now, before memory is looked for.
    /// Returns whether a unit confines the device: else the memory must be one segment, and meet the
    /// request's alignment, boundary and reach with its own address.
    ///
    /// # Errors
    /// As [`Event::Allocate`](crate::policy::Event::Allocate) would be refused.
    pub fn admit_buffer(&self, session: SessionId, length: u64) -> Result<bool, Refusal> {
        let session = self.usable(session)?;
        if length == 0 {
            return Err(Refusal::Range);
        }
        if !length.is_multiple_of(PAGE_SIZE) {
            return Err(Refusal::Alignment);
        }
        let account = self.accounts.get(session.client).ok_or(Refusal::BadHandle)?;
        let quotas = &self.machine.config.quotas;
        let memory = account.memory.checked_add(length).ok_or(Refusal::Quota)?;
        if memory > quotas.memory
            || account.buffers >= quotas.buffers
            || account.mappings >= quotas.mappings
        {
            return Err(Refusal::Quota);
        }
        self.check_buffer_share(session.client, length)?;
        full(self.buffers.upcoming(0).and(self.slots.upcoming(0)))?;
        Ok(session.domain.is_some())
    }

    /// The number that the next buffer must have.
    #[must_use]
    pub fn next_buffer(&self) -> BufferId {
        BufferId(self.buffers.upcoming(0).unwrap_or(u32::MAX))
    }

    pub(super) fn allocate(
        &mut self,
        draft: &mut Draft,
        id: SessionId,
        request: &AllocateRequest,
    ) -> Result<Outcome, Refusal> {
        let confined = self.admit_buffer(id, request.length)?;
        check_request(request)?;
        let memory = self.check_segments(request)?;
        let session = self.open_session(id)?;
        let (client, domain) = (session.client, session.domain);
        let ranges: Vec<_> = request.segments.iter().map(|range| bounds(*range)).collect();
        let taken = self.take_from_compat(draft, &ranges)?;
        let slot = full(self.slots.upcoming(0))?;
        let mut record = SlotRecord {
            session: id,
            number: free_slot(session),
            buffer: request.buffer,
            length: request.length,
            base: memory.base(),
            mappings: MappingList::default(),
            granted: None,
            direct: BTreeMap::new(),
        };
        let number = record.number;
        let unmapped = request.flags.contains(AllocateFlags::UNMAPPED);
        let (iova, map) = match domain {
            Some(domain) => self.place(draft, domain, request, &memory, &mut record)?,
            None => (direct_address(request, &memory)?, None),
        };
        if !confined && !unmapped {
            record.direct.insert((0, request.length), 1);
        }
        let buffer = Buffer {
            client,
            length: request.length,
            memory,
            taken,
            slots: 1,
            holds: 0,
            unproved: false,
            charged: true,
        };
        draft.effects.push(Effect::Buffer(Box::new(buffer), Box::new(record)));
        if let (Some(domain), Some(range)) = (domain, map) {
            let access = request.access;
            let mapping = Mapping { range, slot, offset: 0, access, grant: false, list: false };
            draft.effects.push(Effect::Map(domain, mapping));
        }
        Ok(Outcome::Buffer { slot: number, iova })
    }

    /// Finds addresses for a buffer and maps it there, or reserves them for grants. Returns the range to be
    /// noted as a mapping.
    fn place(
        &mut self,
        draft: &mut Draft,
        id: DomainId,
        request: &AllocateRequest,
        memory: &Memory,
        record: &mut SlotRecord,
    ) -> Result<(Iova, Option<IovaRange>), Refusal> {
        let regions = self.machine.config.quotas.regions;
        let domain = self.domains.get_mut(id.0).ok_or(Refusal::BadHandle)?;
        if memory.segments().any(|range| range.last().0 > domain.shape.last_memory()) {
            return Err(Refusal::NoMemory);
        }
        let range = take(
            domain,
            regions,
            Wanted {
                length: request.length,
                alignment: request.alignment,
                boundary: request.boundary,
                above_4g: request.flags.contains(AllocateFlags::ABOVE_4G),
            },
        )?;
        if request.flags.contains(AllocateFlags::UNMAPPED) {
            draft.effects.push(Effect::Space(id, range));
            record.granted = Some(Grants::new(range));
            return Ok((range.first(), None));
        }
        if draft.vacate(id, domain, range) {
            draft.last.push(Step::ReleaseTables { domain: id });
        }
        memory.pieces(0, request.length, |at, phys, length| {
            let range = IovaRange::new(Iova(range.first().0 + at), length);
            let step = |range| Step::Map { domain: id, range, phys, access: request.access };
            draft.steps.extend(range.map(step));
        });
        draft.publish(&self.machine, id, domain, range);
        Ok((range.first(), Some(range)))
    }

    /// The memory of a request, which is nobody else's.
    fn check_segments(&self, request: &AllocateRequest) -> Result<Memory, Refusal> {
        if request.buffer != self.next_buffer() {
            return Err(Refusal::BadHandle);
        }
        let mut length = 0_u64;
        let mut sorted: Vec<_> = request.segments.iter().map(|range| bounds(*range)).collect();
        sorted.sort_unstable();
        let mut end = None;
        for (first, last) in sorted {
            if first % PAGE_SIZE != 0 || last % PAGE_SIZE != PAGE_SIZE - 1 {
                return Err(Refusal::Alignment);
            }
            if end >= Some(first) || self.memory.overlapping(first, last).is_some() {
                return Err(Refusal::Busy);
            }
            end = Some(last);
            length = length.checked_add(last - first + 1).ok_or(Refusal::Range)?;
        }
        if length != request.length {
            return Err(Refusal::Range);
        }
        Memory::new(&request.segments).ok_or(Refusal::Range)
    }

    /// The number of a session's slot record.
    pub(super) fn slot(&self, session: &Session, slot: Slot) -> Result<u32, Refusal> {
        session.slots.get(slot.0 as usize).copied().flatten().ok_or(Refusal::BadHandle)
    }

    pub(super) fn release(
        &self,
        draft: &mut Draft,
        id: SessionId,
        slot: Slot,
    ) -> Result<(), Refusal> {
        let session = self.usable(id)?;
        let number = self.slot(session, slot)?;
        let buffer = self.slots.get(number).ok_or(Refusal::BadHandle)?.buffer;
        if let Some(domain) = session.domain {
            self.unmap_slots(draft, domain, [number].into_iter())?;
        }
        draft.effects.push(Effect::DropSlot(number));
        self.release_if_last(draft, buffer, 1, &[])
    }

    /// Ends all that a session mapped, while its domain goes on.
    pub(super) fn unmap_session(&self, draft: &mut Draft, id: SessionId) -> Result<(), Refusal> {
        let session = self.open_session(id)?;
        match session.domain {
            // A unit that failed may reach it all the same: left as it is, and never given to anyone else.
            Some(domain) if self.domain(domain)?.trust == Trust::Suspect => Ok(()),
            Some(domain) => {
                self.unmap_slots(draft, domain, session.slots.iter().copied().flatten())
            }
            None => Ok(()),
        }
    }

    fn unmap_slots(
        &self,
        draft: &mut Draft,
        id: DomainId,
        slots: impl Iterator<Item = u32>,
    ) -> Result<(), Refusal> {
        let domain = self.domain(id)?;
        let mut around = None;
        for slot in slots.filter_map(|slot| self.slots.get(slot)) {
            for (_, mapping) in domain.mappings.list(&slot.mappings) {
                draft.steps.push(Step::Unmap { domain: id, range: mapping.range });
                around = Some(hull(around, mapping.range));
            }
        }
        if let Some(range) = around {
            draft.invalidate(id, domain, range);
            draft.last.push(Step::ReleaseTables { domain: id });
        }
        Ok(())
    }

    /// Frees a buffer's memory when the `slots` that go are the last, and nothing holds it.
    pub(super) fn release_if_last(
        &self,
        draft: &mut Draft,
        id: BufferId,
        slots: u32,
        closing: &[SessionId],
    ) -> Result<(), Refusal> {
        let buffer = self.buffers.get(id.0).ok_or(Refusal::BadHandle)?;
        if buffer.slots > slots || buffer.holds > 0 || buffer.unproved {
            return Ok(());
        }
        let stuck = closing.iter().any(|session| self.is_stuck(*session, id));
        if stuck { Ok(()) } else { self.free_memory(draft, id, buffer) }
    }

    /// Whether a session maps a buffer where a failed unit may reach it.
    pub(super) fn is_stuck(&self, session: SessionId, buffer: BufferId) -> bool {
        let Some(session) = self.sessions.get(session.0) else { return false };
        let domain = session.domain.and_then(|domain| self.domains.get(domain.0));
        domain.is_some_and(|domain| domain.trust == Trust::Suspect)
            && session
                .slots
                .iter()
                .flatten()
                .filter_map(|slot| self.slots.get(*slot))
                .any(|slot| slot.buffer == buffer && slot.mappings.count > 0)
    }

    pub(super) fn free_memory(
        &self,
        draft: &mut Draft,
        id: BufferId,
        buffer: &Buffer,
    ) -> Result<(), Refusal> {
        if draft.frugal && !buffer.taken.is_empty() {
            draft.effects.push(Effect::Owe(Owed::Buffer(id), true));
            return Ok(());
        }
        self.give_to_compat(draft, buffer.taken.clone())?;
        draft.last.push(Step::ReleaseBuffer { buffer: id });
        draft.effects.push(Effect::Release(id));
        Ok(())
    }

    pub(super) fn import(
        &self,
        draft: &mut Draft,
        id: SessionId,
        buffer: BufferId,
        given: bool,
    ) -> Result<Outcome, Refusal> {
        let session = self.usable(id)?;
        let known = self.buffers.get(buffer.0).ok_or(Refusal::BadHandle)?;
        if known.client != session.client && !given {
            return Err(Refusal::Permission);
        }
        if known.unproved {
            return Err(Refusal::Busy);
        }
        if let Some(slot) = self.slot_of(id, buffer) {
            return Ok(Outcome::Held(buffer, slot));
        }
        let account = self.accounts.get(session.client).ok_or(Refusal::BadHandle)?;
        if account.buffers >= self.machine.config.quotas.buffers {
            return Err(Refusal::Quota);
        }
        if let Some(domain) = session.domain {
            let reach = self.domain(domain)?.shape.last_memory();
            if known.memory.segments().any(|range| range.last().0 > reach) {
                return Err(Refusal::NoMemory);
            }
        }
        full(self.slots.upcoming(0))?;
        let number = free_slot(session);
        draft.effects.push(Effect::Import(Box::new(SlotRecord {
            session: id,
            number,
            buffer,
            length: known.length,
            base: known.memory.base(),
            mappings: MappingList::default(),
            granted: None,
            direct: BTreeMap::new(),
        })));
        Ok(Outcome::Held(buffer, number))
    }

    /// The slot under which a session knows a buffer.
    #[must_use]
    pub fn slot_of(&self, session: SessionId, buffer: BufferId) -> Option<Slot> {
        let slots = self.sessions.get(session.0)?.slots.iter().flatten();
        slots
            .filter_map(|slot| self.slots.get(*slot))
            .find(|slot| slot.buffer == buffer)
            .map(|slot| slot.number)
    }

    pub(super) fn hold(
        &self,
        draft: &mut Draft,
        id: SessionId,
        slot: Slot,
    ) -> Result<Outcome, Refusal> {
        let session = self.open_session(id)?;
        let number = self.slot(session, slot)?;
        let buffer = self.slots.get(number).ok_or(Refusal::BadHandle)?.buffer;
        let known = self.buffers.get(buffer.0).ok_or(Refusal::BadHandle)?;
        full(known.holds.checked_add(1))?;
        draft.effects.push(Effect::Hold(buffer, true));
        Ok(Outcome::Held(buffer, slot))
    }

    pub(super) fn drop_hold(&self, draft: &mut Draft, id: BufferId) -> Result<(), Refusal> {
        let buffer = self.buffers.get(id.0).ok_or(Refusal::BadHandle)?;
        if buffer.holds == 0 {
            return Err(Refusal::BadHandle);
        }
        draft.effects.push(Effect::Hold(id, false));
        if buffer.holds == 1 && buffer.slots == 0 && !buffer.unproved {
            return self.free_memory(draft, id, buffer);
        }
        Ok(())
    }
}

/// Takes addresses of a domain, as long as its page tables stay within bounds.
#[inline(always)]
pub(super) fn take(
    domain: &mut Domain,
    regions: u32,
    wanted: Wanted,
) -> Result<IovaRange, Refusal> {
    let range = domain.space.allocate(wanted).ok_or(Refusal::NoSpace)?;
    if domain.space.exceeds(regions) {
        domain.space.free(range);
        return Err(Refusal::Quota);
    }
    Ok(range)
}

/// The lowest slot that a session has free.
fn free_slot(session: &Session) -> Slot {
    let at = session.slots.iter().position(Option::is_none).unwrap_or(session.slots.len());
    Slot(u32::try_from(at).unwrap_or(u32::MAX))
}

fn check_request(request: &AllocateRequest) -> Result<(), Refusal> {
    if request.access.is_empty() || request.access.bits() & !3 != 0 {
        return Err(Refusal::BadAccess);
    }
    let AllocateRequest { alignment, boundary, length, .. } = *request;
    if alignment != 0 && (!alignment.is_power_of_two() || alignment < PAGE_SIZE) {
        return Err(Refusal::Alignment);
    }
    if boundary != 0 && (!boundary.is_power_of_two() || boundary < length) {
        return Err(Refusal::Range);
    }
    Ok(())
}

/// The address of a buffer that a device reaches without a unit.
fn direct_address(request: &AllocateRequest, memory: &Memory) -> Result<Iova, Refusal> {
    let Memory::One(range) = memory else { return Err(Refusal::NoMemory) };
    let (PhysAddr(first), PhysAddr(last)) = (range.first(), range.last());
    let low = request.flags.contains(AllocateFlags::ABOVE_4G) || last < FOUR_GIB;
    let crosses = request.boundary != 0 && first / request.boundary != last / request.boundary;
    if !low || crosses || !range.first().is_aligned(request.alignment.max(1)) {
        return Err(Refusal::NoMemory);
    }
    Ok(Iova(first))
}
