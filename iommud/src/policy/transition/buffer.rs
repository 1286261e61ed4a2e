//! Buffers: their allocation, their slots in sessions, their open handles.

use alloc::vec::Vec;

use iommu_protocol::ids::Slot;
use iommu_protocol::status::Refusal;
use iommu_protocol::wire::AllocateFlags;

use crate::addr::{Iova, IovaRange, PAGE_SIZE, PhysAddr};
use crate::policy::collections::ranges::bounds;
use crate::policy::decision::{Decision, full};
use crate::policy::event::{
    Allocate, AllocateRequest, Hold, Import, ImportShared, Placed, Refused,
};
use crate::policy::ids::{BufferId, DomainId, SessionId};
use crate::policy::iova::Wanted;
use crate::policy::journal::{Change, Image};
use crate::policy::state::State;
use crate::policy::state::mappings::Mapping;
use crate::policy::state::memory::{Grants, Memory};
use crate::policy::state::objects::{Account, Buffer, Session, SlotRecord};
use crate::policy::step::Step;
use crate::policy::transition::{Request, charge_of, compat};

/// First address that needs more than 32 bits.
const FOUR_GIB: u64 = 1 << 32;

impl Request for Allocate {
    type Outcome = Placed;

    fn decide(&self, decision: &mut Decision<'_>) -> Result<Placed, Refused> {
        decision.plan.charge = charge_of(decision, self.0);
        Ok(allocate(decision, self.0, &self.1)?)
    }
}

impl Request for Import {
    type Outcome = Slot;

    fn decide(&self, decision: &mut Decision<'_>) -> Result<Slot, Refused> {
        Ok(import(decision, self.0, self.1, false)?)
    }
}

impl Request for ImportShared {
    type Outcome = Slot;

    fn decide(&self, decision: &mut Decision<'_>) -> Result<Slot, Refused> {
        Ok(import(decision, self.0, self.1, true)?)
    }
}

impl Request for Hold {
    type Outcome = BufferId;

    fn decide(&self, decision: &mut Decision<'_>) -> Result<BufferId, Refused> {
        Ok(hold(decision, self.0, self.1)?)
    }
}

fn allocate(
    decision: &mut Decision<'_>,
    id: SessionId,
    request: &AllocateRequest,
) -> Result<Placed, Refusal> {
    let confined = decision.state.admit_within(id, request.length)?.confined;
    check_request(request)?;
    let memory = check_segments(decision.state, request)?;
    let pieces = decision.state.new_pieces(&memory);
    let session = decision.state.session(id)?;
    let (client, domain, number) = (session.client, session.domain, session.free_slot());
    decision.state.check_buffer_share(client, pieces)?;
    let ranges: Vec<_> = request.segments.iter().map(|range| bounds(*range)).collect();
    let taken = compat::take(decision, &ranges)?;
    let length = request.length;
    let record = SlotRecord::new((id, number), request.buffer, length, &memory);
    let unmapped = request.flags.contains(AllocateFlags::UNMAPPED);
    let direct = if confined { None } else { Some(direct_address(request, &memory)?) };
    let buffer = Buffer {
        client,
        length,
        memory,
        taken,
        slots: 0,
        holds: 0,
        unproved: false,
        charged: true,
    };
    let buffer = decision.insert_buffer(buffer)?;
    if let Some(account) = decision.change::<Account>(client) {
        account.memory += length;
        account.taken += pieces;
    }
    let slot = enter_slot(decision, record)?;
    let iova = match (domain, direct) {
        (Some(domain), _) => place(decision, domain, (buffer, slot), request)?,
        (None, Some(iova)) => iova,
        (None, None) => return Err(Refusal::NotReady),
    };
    if !confined && !unmapped {
        use_directly(decision, slot, (0, length), true)?;
    }
    Ok(Placed { slot: number, iova })
}

/// Without a unit: counts one more or one less use of a part of a buffer.
pub(super) fn use_directly(
    decision: &mut Decision<'_>,
    slot: u32,
    (offset, length): (u64, u64),
    more: bool,
) -> Result<(), Refusal> {
    let record = decision.state.slots.get_mut(slot).ok_or(Refusal::BadHandle)?;
    record.count_direct(offset, length, more)?;
    decision.state.charge_slot(slot, 1, more);
    decision.state.tally(slot, length, more);
    decision.journal.keep(Image::Direct { slot, offset, length, more });
    Ok(())
}

/// Enters a slot record in its session.
fn enter_slot(decision: &mut Decision<'_>, record: SlotRecord) -> Result<u32, Refusal> {
    let (id, at, buffer) = (record.session, record.number, record.buffer);
    let number = decision.insert(record)?;
    let session = decision.change::<Session>(id.0).ok_or(Refusal::BadHandle)?;
    session.set_slot(at, Some(number));
    let client = session.client;
    if let Some(account) = decision.change::<Account>(client) {
        account.buffers += 1;
    }
    if let Some(buffer) = decision.change::<Buffer>(buffer.0) {
        buffer.slots += 1;
    }
    Ok(number)
}

/// Maps a buffer at free addresses, or reserves them for grants. Returns the first address.
fn place(
    decision: &mut Decision<'_>,
    id: DomainId,
    (buffer, slot): (BufferId, u32),
    request: &AllocateRequest,
) -> Result<Iova, Refusal> {
    let state = &mut decision.state;
    let regions = state.machine.config.quotas.regions;
    let domain = state.domains.get_mut(id.0).ok_or(Refusal::BadHandle)?;
    let memory = &state.buffers.get(buffer.0).ok_or(Refusal::BadHandle)?.memory;
    if memory.segments().any(|range| range.last().0 > domain.shape.last_memory()) {
        return Err(Refusal::NoMemory);
    }
    let AllocateRequest { length, alignment, boundary, access, flags, .. } = *request;
    let above_4g = flags.contains(AllocateFlags::ABOVE_4G);
    let range = domain.take_addresses(regions, Wanted { length, alignment, boundary, above_4g })?;
    let record = state.slots.get_mut(slot).ok_or(Refusal::BadHandle)?;
    if flags.contains(AllocateFlags::UNMAPPED) {
        decision.journal.note(Change::Taken(id, range));
        record.granted = Some(Grants::new(range));
        return Ok(range.first());
    }
    let mapping = Mapping { range, slot, offset: 0, access, grant: false, list: false };
    let index = domain.mappings.insert(mapping, &mut record.mappings);
    decision.journal.note(Change::Entered(id, index, slot));
    decision.state.charge_slot(slot, 1, true);
    decision.state.tally(slot, length, true);
    let memory = &decision.state.buffer(buffer)?.memory;
    memory.pieces(0, length, |at, phys, length| {
        let range = IovaRange::new(Iova(range.first().0 + at), length);
        let step = |range| Step::Map { domain: id, range, phys, access };
        decision.plan.steps.extend(range.map(step));
    });
    decision.publish(id, range);
    Ok(range.first())
}

fn import(
    decision: &mut Decision<'_>,
    id: SessionId,
    buffer: BufferId,
    given: bool,
) -> Result<Slot, Refusal> {
    let state = &decision.state;
    let session = state.usable(id)?;
    let known = state.buffer(buffer)?;
    if known.client != session.client && !given {
        return Err(Refusal::Permission);
    }
    if known.unproved {
        return Err(Refusal::Busy);
    }
    if let Some(slot) = state.slot_of(id, buffer) {
        return Ok(slot);
    }
    let account = state.accounts.get(session.client).ok_or(Refusal::BadHandle)?;
    if account.buffers >= state.machine.config.quotas.buffers {
        return Err(Refusal::Quota);
    }
    if let Some(domain) = session.domain {
        let reach = state.domain(domain)?.shape.last_memory();
        if known.memory.segments().any(|range| range.last().0 > reach) {
            return Err(Refusal::NoMemory);
        }
    }
    let number = session.free_slot();
    let record = SlotRecord::new((id, number), buffer, known.length, &known.memory);
    enter_slot(decision, record)?;
    Ok(number)
}

fn hold(decision: &mut Decision<'_>, id: SessionId, slot: Slot) -> Result<BufferId, Refusal> {
    let session = decision.state.session(id)?;
    let buffer = decision.state.slot(session, slot)?.1.buffer;
    let holds = full(decision.state.buffer(buffer)?.holds.checked_add(1))?;
    if let Some(buffer) = decision.change::<Buffer>(buffer.0) {
        buffer.holds = holds;
    }
    Ok(buffer)
}

/// The memory of a request, in whole pages that no other buffer has.
fn check_segments(state: &State, request: &AllocateRequest) -> Result<Memory, Refusal> {
    if Some(request.buffer.0) != state.buffers.next() {
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
        if end >= Some(first) || state.memory.overlapping(first, last).is_some() {
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

/// The address of a buffer for a device that no unit confines.
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
