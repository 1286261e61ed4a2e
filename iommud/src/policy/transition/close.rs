//! Ends sessions.
//!
//! ```text
//! close    unmap all mappings, invalidate; block attached devices; give memory back to policy; free it
//! end      detach; destroy the page table; free memory
//! ```

use alloc::boxed::Box;
use alloc::vec::Vec;

use iommu_protocol::status::Refusal;

use crate::policy::decision::Decision;
use crate::policy::ids::{BufferId, DomainId, GroupId, SessionId};
use crate::policy::journal::Image;
use crate::policy::state::domain::Trust;
use crate::policy::state::objects::{Account, Activity, Owner, OwnerId, Session};
use crate::policy::transition::{domain, entries, release};

/// Ends sessions, all in one event. A group becomes free when its last session ends.
pub(super) fn close(decision: &mut Decision<'_>, closing: &[SessionId]) -> Result<(), Refusal> {
    let owners = count_owners(decision, closing)?;
    let ends = |owner: OwnerId| owners.iter().any(|(id, ends)| *id == owner && *ends);
    for id in closing {
        let session = decision.state.session(*id)?;
        if !ends(session.owner) {
            unmap(decision, *id)?;
        }
    }
    let groups = leave_groups(decision, closing);
    entries::rebind_groups(decision, &groups)?;
    for (owner, ends) in &owners {
        if *ends {
            end_owner_domain(decision, *owner)?;
        } else {
            domain::narrow(decision, *owner)?;
        }
    }
    let mut buffers = Vec::new();
    for id in closing {
        end(decision, *id, &mut buffers);
    }
    for group in groups {
        disband(decision, group);
    }
    buffers.sort_unstable();
    buffers.dedup();
    buffers.into_iter().try_for_each(|buffer| release::free_if_unused(decision, buffer))
}

/// Ends all sessions.
pub(super) fn close_all(decision: &mut Decision<'_>) -> Result<(), Refusal> {
    let all = decision.state.sessions.iter().map(|(number, _)| SessionId(number));
    let all: Vec<_> = all.collect();
    close(decision, &all)
}

/// The owners of these sessions, and whether all sessions of each owner end.
fn count_owners(
    decision: &Decision<'_>,
    closing: &[SessionId],
) -> Result<Vec<(OwnerId, bool)>, Refusal> {
    let mut owners: Vec<(OwnerId, u32)> = Vec::new();
    for id in closing {
        let owner = decision.state.session(*id)?.owner;
        match owners.iter_mut().find(|(known, _)| *known == owner) {
            Some((_, count)) => *count += 1,
            None => owners.push((owner, 1)),
        }
    }
    let machine = &decision.state.machine;
    let ends = |(id, closing)| {
        (id, machine.owner(id).is_none_or(|owner: &Owner| owner.sessions <= closing))
    };
    Ok(owners.into_iter().map(ends).collect())
}

/// Unmaps all mappings of a session whose domain stays. Does nothing when a failed unit may still use the domain.
fn unmap(decision: &mut Decision<'_>, id: SessionId) -> Result<(), Refusal> {
    let session = decision.state.session(id)?;
    match session.domain {
        Some(domain) if decision.state.domain(domain)?.trust != Trust::Suspect => {
            let slots: Vec<u32> = session.slots.iter().copied().flatten().collect();
            release::unmap_slots(decision, domain, &slots)
        }
        _ => Ok(()),
    }
}

/// Marks the attached devices of sessions as unquiesced, and frees groups without another session. Returns the
/// groups.
fn leave_groups(decision: &mut Decision<'_>, closing: &[SessionId]) -> Vec<GroupId> {
    let mut groups = Vec::new();
    for id in closing {
        let Some(session) = decision.state.sessions.get(id.0) else { continue };
        let (group, owner) = (session.group, session.owner);
        let Some(index) = session.function else { continue };
        let function = decision.state.machine.function(index);
        if function.is_some_and(|function| function.activity == Activity::Attached) {
            decision.set_activity(index, Activity::Unquiesced);
        }
        if let Some(function) = decision.change_function(index) {
            function.session = None;
        }
        if !groups.contains(&group) {
            groups.push(group);
        }
        let Some(state) = decision.change_group(group) else { continue };
        state.sessions -= 1;
        if state.sessions == 0 {
            state.owner = None;
            free_members(decision, group);
            if let Some(owner) = decision.change::<Owner>(owner.0) {
                owner.groups.retain(|other| *other != group);
            }
        }
    }
    groups
}

/// Puts members of a free group under policy that were added while it was claimed.
fn free_members(decision: &mut Decision<'_>, group: GroupId) {
    let machine = &decision.state.machine;
    let Some(group) = machine.group(group) else { return };
    let added = |index| machine.function(index).is_some_and(|function| function.hot_added);
    let members: Vec<_> = group.members.iter().copied().filter(|index| added(*index)).collect();
    for member in members {
        if let Some(function) = decision.change_function(member) {
            function.hot_added = false;
        }
    }
}

/// Ends the domain of an owner. A domain that a failed unit may still use is kept until that unit is proved flushed.
fn end_owner_domain(decision: &mut Decision<'_>, owner: OwnerId) -> Result<(), Refusal> {
    let domain: Option<DomainId> =
        decision.state.machine.owner(owner).and_then(|owner| owner.domain);
    if let Some(id) = domain
        && decision.state.domain(id)?.trust != Trust::Suspect
    {
        decision.end_domain(id);
    }
    Ok(())
}

/// Removes a session and its slots; adds the buffers of these to `buffers`.
fn end(decision: &mut Decision<'_>, id: SessionId, buffers: &mut Vec<BufferId>) {
    let Some(session) = decision.state.sessions.get(id.0) else { return };
    let (client, owner, address) = (session.client, session.owner, session.address);
    let slots: Vec<u32> = session.slots.iter().copied().flatten().collect();
    for slot in slots {
        buffers.extend(decision.state.slots.get(slot).map(|slot| slot.buffer));
        release::drop_slot(decision, slot);
    }
    decision.remove::<Session>(id.0);
    let mut last = false;
    if let Some(owner) = decision.change::<Owner>(owner.0) {
        owner.sessions -= 1;
        last = owner.sessions == 0;
    }
    if last {
        decision.remove::<Owner>(owner.0);
    }
    if let Some(account) = decision.change::<Account>(client) {
        account.sessions -= 1;
        account.domains -= u32::from(last);
        account.give_up(address);
    }
    release::close_account(decision, client);
}

/// Splits a free group that lost members into the groups of those that are left.
fn disband(decision: &mut Decision<'_>, id: GroupId) {
    let machine = &mut decision.state.machine;
    let Some(group) = machine.groups.get_mut(id.0) else { return };
    let stale = group.state.stale || group.members.is_empty();
    if group.state.owner.is_some() || !stale {
        return;
    }
    decision.journal.keep(Image::Machine(Box::new(machine.clone())));
    if let Some(group) = machine.groups.get_mut(id.0) {
        group.state.stale = false;
    }
    machine.fall_apart(id);
}
