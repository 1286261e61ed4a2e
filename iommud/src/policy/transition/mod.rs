//! What comes of each event: one file for each kind, functions over a [`Decision`].

mod buffer;
mod claim;
mod close;
mod compat;
mod domain;
mod entries;
mod hotplug;
mod map;
mod map_list;
mod owed;
mod recovery;
mod release;
mod request;
mod session;
mod unconfined;
mod unit;

use crate::policy::decision::Decision;
use crate::policy::event::{Event, Outcome, Refused};
use crate::policy::ids::SessionId;
use crate::policy::state::State;
use crate::policy::step::Charge;

/// Decides what comes of an event.
pub(super) fn decide(decision: &mut Decision<'_>, event: &Event) -> Result<Outcome, Refused> {
    match event {
        Event::Batch(session, items) => return map::batch(decision, *session, items),
        Event::MapList(session, list) => return map_list::map(decision, *session, list),
        Event::Frugally(event) => {
            decision.frugal = true;
            return decide(decision, event);
        }
        Event::UnitReady(unit, capabilities) => unit::ready(decision, *unit, capabilities)?,
        Event::UnitFailed(unit) => unit::failed(decision, *unit)?,
        Event::Proved => recovery::proved(decision)?,
        Event::FunctionAdded(function) => hotplug::added(decision, function)?,
        Event::FunctionRemoved(address) => hotplug::removed(decision, *address)?,
        Event::Storm(unit, source) => entries::silence(decision, (*unit, *source))?,
        Event::MemoryTaken(range) => compat::memory_taken(decision, *range)?,
        Event::MemoryReturned(range) => compat::memory_returned(decision, *range)?,
        Event::Claim { client, address, parent } => {
            return Ok(claim::claim(decision, *client, *address, *parent)?);
        }
        Event::Attach(session) => session::attach(decision, *session)?,
        Event::Detach(session) => session::detach(decision, *session)?,
        Event::Allocate(session, request) => {
            return Ok(buffer::allocate(decision, *session, request)?);
        }
        Event::Release(session, slot) => release::release(decision, *session, *slot)?,
        Event::Import(session, buffer) => {
            return Ok(buffer::import(decision, *session, *buffer, false)?);
        }
        Event::ImportShared(session, buffer) => {
            return Ok(buffer::import(decision, *session, *buffer, true)?);
        }
        Event::Hold(session, slot) => return Ok(buffer::hold(decision, *session, *slot)?),
        Event::Drop(buffer) => release::drop_hold(decision, *buffer)?,
        Event::Close(session) => close::close(decision, &[*session])?,
        Event::Shutdown => {
            let all = decision.state.sessions.iter().map(|(number, _)| SessionId(number));
            let all: alloc::vec::Vec<_> = all.collect();
            close::close(decision, &all)?;
        }
        Event::Settle(owed) => owed::settle(decision, *owed)?,
    }
    Ok(Outcome::Done)
}

/// Which frames the plan of an event may take.
pub(super) fn charge(state: &State, event: &Event) -> Charge {
    let session = match event {
        Event::Batch(session, _)
        | Event::MapList(session, _)
        | Event::Attach(session)
        | Event::Detach(session)
        | Event::Allocate(session, _)
        | Event::Import(session, _)
        | Event::ImportShared(session, _) => *session,
        Event::Claim { client, .. } => {
            // That of the account that it has or will have.
            let known = state.clients.get(client).copied().or_else(|| state.accounts.next());
            return Charge::Account(known.unwrap_or(u32::MAX));
        }
        Event::Storm(..) | Event::MemoryTaken(_) => return Charge::Server,
        Event::FunctionAdded(_) if state.machine.owners.len() > 0 => return Charge::Server,
        _ => return Charge::Unlimited,
    };
    let session = state.sessions.get(session.0);
    session.map_or(Charge::Server, |session| Charge::Account(session.client))
}
