//! Releases buffers that sessions give up, and memory that is no longer used.

use alloc::vec::Vec;

use iommu_protocol::ids::Slot;
use iommu_protocol::status::Refusal;

use crate::policy::collections::ranges::hull;
use crate::policy::decision::Decision;
use crate::policy::event::Owed;
use crate::policy::ids::{BufferId, DomainId, SessionId};
use crate::policy::journal::Change;
use crate::policy::state::domain::Trust;
use crate::policy::state::objects::{Account, Buffer, Session, SlotRecord};
use crate::policy::state::tally::Tally;
use crate::policy::step::Step;
use crate::policy::transition::compat;

pub(super) fn release(
    decision: &mut Decision<'_>,
    id: SessionId,
    slot: Slot,
) -> Result<(), Refusal> {
    let session = decision.state.usable(id)?;
    let domain = session.domain;
    let (number, record) = decision.state.slot(session, slot)?;
    let buffer = record.buffer;
    if let Some(domain) = domain {
        unmap_slots(decision, domain, &[number])?;
    }
    drop_slot(decision, number);
    free_if_unused(decision, buffer)
}

/// Unmaps all mappings of these slots, and removes them.
pub(super) fn unmap_slots(
    decision: &mut Decision<'_>,
    id: DomainId,
    slots: &[u32],
) -> Result<(), Refusal> {
    let state = &mut decision.state;
    let domain = state.domains.get_mut(id.0).ok_or(Refusal::BadHandle)?;
    let mut around = None;
    for slot in slots {
        let Some(record) = state.slots.get_mut(*slot) else { continue };
        let all: Vec<_> = domain.mappings.list(&record.mappings).collect();
        let charged = record.mappings.charged;
        let mut ended = Tally::default();
        for (index, mapping) in all {
            ended.unmap(mapping.range.length());
            decision.plan.steps.push(Step::Unmap { domain: id, range: mapping.range });
            around = Some(hull(around, mapping.range));
            domain.mappings.take_out_at(index, &mut record.mappings);
            decision.journal.note(Change::Left(id, index, *slot));
        }
        let Some(session) = state.sessions.get_mut(record.session.0) else { continue };
        session.tally = session.tally.plus(ended);
        if let Some(account) = state.accounts.get_mut(session.client) {
            account.charge(charged, false);
        }
    }
    if let Some(range) = around {
        decision.invalidate(id, range);
        decision.release_tables(id);
    }
    Ok(())
}

/// Removes a slot record. Its mappings stay where a failed unit may still use them, and nobody else gets the memory.
pub(super) fn drop_slot(decision: &mut Decision<'_>, number: u32) {
    let Some(record) = decision.state.slots.get(number) else { return };
    let (id, slot, buffer, charged) =
        (record.session, record.number, record.buffer, record.charged());
    let mapped = record.mappings.count > 0;
    let direct = ended_uses(record);
    let reserved = record.granted.as_ref().map(|grants| grants.range);
    let Some(session) = decision.change::<Session>(id.0) else { return };
    session.set_slot(slot, None);
    session.tally = session.tally.plus(direct);
    let (client, domain) = (session.client, session.domain);
    let domain = domain.and_then(|id| Some((id, decision.state.domains.get_mut(id.0)?)));
    let mut stuck = false;
    if let Some((id, domain)) = domain {
        if domain.trust == Trust::Suspect {
            stuck = mapped;
            if stuck {
                domain.left.push(buffer);
                decision.journal.note(Change::LeftMapped(id));
            }
        } else if let Some(range) = reserved {
            decision.journal.note(Change::Free(id, range));
        }
    }
    decision.remove::<SlotRecord>(number);
    if let Some(account) = decision.change::<Account>(client) {
        account.buffers -= 1;
        account.charge(charged, false);
    }
    if let Some(buffer) = decision.change::<Buffer>(buffer.0) {
        buffer.slots -= 1;
        buffer.unproved |= stuck;
    }
}

/// Without a unit: counts all uses of a buffer as ended.
fn ended_uses(record: &SlotRecord) -> Tally {
    record.direct.iter().fold(Tally::default(), |sum, ((_, length), uses)| {
        let unmaps = u64::from(*uses);
        let unmapped_bytes = length.wrapping_mul(unmaps);
        sum.plus(Tally { unmaps, unmapped_bytes, ..Tally::default() })
    })
}

/// Frees the memory of a buffer without slots and open handles that no unit may reach.
pub(super) fn free_if_unused(decision: &mut Decision<'_>, id: BufferId) -> Result<(), Refusal> {
    if decision.state.buffer(id)?.is_unused() { free(decision, id) } else { Ok(()) }
}

/// Gives the memory of a buffer back: to policy, then to the system.
pub(super) fn free(decision: &mut Decision<'_>, id: BufferId) -> Result<(), Refusal> {
    let buffer = decision.state.buffer(id)?;
    if decision.frugal && !buffer.taken.is_empty() {
        decision.owe(Owed::Buffer(id), true);
        return Ok(());
    }
    let (client, length, charged) = (buffer.client, buffer.length, buffer.charged);
    let (taken, memory) = (buffer.taken.clone(), buffer.memory.clone());
    compat::give(decision, &taken)?;
    decision.last(Step::ReleaseBuffer { buffer: id });
    decision.remove_buffer(id);
    let pieces = decision.state.new_pieces(&memory);
    if let Some(account) = decision.change::<Account>(client).filter(|_| charged) {
        account.memory -= length;
        account.taken = account.taken.saturating_sub(pieces);
    }
    close_account(decision, client);
    Ok(())
}

/// Closes an account to which nothing is charged. Forgets which devices a client gave up that has no more than its
/// share: it left nothing behind with them.
pub(super) fn close_account(decision: &mut Decision<'_>, number: u32) {
    let Some(account) = decision.state.accounts.get(number) else { return };
    if account.is_idle() {
        decision.state.clients.remove(&account.client);
        decision.remove::<Account>(number);
    } else if !account.given_up.is_empty()
        && account.taken <= decision.state.entitled(account)
        && let Some(account) = decision.change::<Account>(number)
    {
        account.given_up.clear();
    }
}

pub(super) fn drop_hold(decision: &mut Decision<'_>, id: BufferId) -> Result<(), Refusal> {
    if decision.state.buffer(id)?.holds == 0 {
        return Err(Refusal::BadHandle);
    }
    if let Some(buffer) = decision.change::<Buffer>(id.0) {
        buffer.holds -= 1;
    }
    free_if_unused(decision, id)
}
