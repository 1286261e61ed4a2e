//! Maps and unmaps for a device that no unit confines. Addresses are physical, and only the number of uses is
//! recorded.

use iommu_protocol::status::Refusal;
use iommu_protocol::wire::MapFlags;

use crate::addr::Iova;
use crate::policy::decision::Decision;
use crate::policy::event::BatchRequest;
use crate::policy::ids::SessionId;
use crate::policy::state::State;
use crate::policy::state::memory::Memory;
use crate::policy::transition::buffer::use_directly;
use crate::policy::transition::request::check;

/// The part of a buffer that an element names.
struct Part {
    /// Number of the slot record.
    slot: u32,
    offset: u64,
    length: u64,
    /// A use begins; otherwise one ends.
    more: bool,
}

/// Carries out one element; returns its address, 0 for an unmap or revoke.
pub(super) fn carry_out(
    decision: &mut Decision<'_>,
    id: SessionId,
    item: &BatchRequest,
) -> Result<Iova, Refusal> {
    let part = part(decision.state, id, item)?;
    let state = &decision.state;
    if part.more {
        let account = state.session(id).map(|session| session.client)?;
        let used = state.accounts.get(account).map_or(u32::MAX, |account| account.mappings);
        if used >= state.machine.config.quotas.mappings {
            return Err(Refusal::Quota);
        }
    }
    let record = state.slots.get(part.slot).ok_or(Refusal::BadHandle)?;
    let iova = match &state.buffer(record.buffer)?.memory {
        Memory::One(range) => {
            let offset = range.first().0.checked_add(part.offset);
            Iova(offset.ok_or(Refusal::NotMapped)?)
        }
        Memory::Many(_) => return Err(Refusal::NoMemory),
    };
    if let BatchRequest::Map(request) = item
        && request.flags.contains(MapFlags::FIXED)
        && request.iova != iova
    {
        return Err(Refusal::Unsupported);
    }
    use_directly(decision, part.slot, (part.offset, part.length), part.more)?;
    Ok(if part.more { iova } else { Iova(0) })
}

fn part(state: &State, id: SessionId, item: &BatchRequest) -> Result<Part, Refusal> {
    let session = state.session(id)?;
    match item {
        BatchRequest::Map(request) | BatchRequest::Grant(request) => {
            let (slot, record) = state.slot(session, request.slot)?;
            check(request, record.length)?;
            let (offset, length) = (request.offset, request.length);
            Ok(Part { slot, offset, length, more: true })
        }
        BatchRequest::Revoke { slot, offset, length } => {
            let (slot, _) = state.slot(session, *slot)?;
            Ok(Part { slot, offset: *offset, length: *length, more: false })
        }
        BatchRequest::Unmap { iova, length } => {
            let buffer = state.memory.overlapping(iova.0, iova.0).ok_or(Refusal::NotMapped)?;
            let slot = state.slot_of(id, buffer).ok_or(Refusal::NotMapped)?;
            let Memory::One(range) = &state.buffer(buffer)?.memory else {
                return Err(Refusal::NotMapped);
            };
            let (slot, _) = state.slot(session, slot)?;
            let offset = iova.0 - range.first().0;
            Ok(Part { slot, offset, length: *length, more: false })
        }
    }
}
