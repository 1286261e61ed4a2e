//! Transitions: one file for each kind of event, functions over a [`Decision`].

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

use core::slice::from_ref;

use iommu_protocol::status::Refusal;

use crate::policy::decision::Decision;
use crate::policy::event::{Event, Refused};
use crate::policy::ids::SessionId;
use crate::policy::step::Charge;

/// A request or event that policy decides.
pub trait Request {
    /// The result, reported once the plan was carried out.
    type Outcome;

    /// Changes the state to the new one, and adds the steps that carry this out.
    ///
    /// # Errors
    /// The reason for the refusal. The journal undoes all changes.
    fn decide(&self, decision: &mut Decision<'_>) -> Result<Self::Outcome, Refused>;
}

impl Request for Event {
    type Outcome = ();

    fn decide(&self, decision: &mut Decision<'_>) -> Result<(), Refused> {
        decision.plan.charge = charge(decision, self);
        match self {
            Self::Frugally(event) => {
                decision.frugal = true;
                return event.decide(decision);
            }
            Self::UnitReady(unit, capabilities) => unit::ready(decision, *unit, capabilities),
            Self::UnitFailed(unit) => unit::failed(decision, *unit),
            Self::Proved => recovery::proved(decision),
            Self::FunctionAdded(function) => hotplug::added(decision, from_ref(function)),
            Self::FunctionsAdded(functions) => hotplug::added(decision, functions),
            Self::FunctionRemoved(address) => hotplug::removed(decision, from_ref(address)),
            Self::FunctionsRemoved(addresses) => hotplug::removed(decision, addresses),
            Self::Storm(unit, source) => entries::silence(decision, (*unit, *source)),
            Self::MemoryTaken(range) => compat::memory_taken(decision, *range),
            Self::MemoryReturned(range) => compat::memory_returned(decision, *range),
            Self::Attach(session) => session::attach(decision, *session),
            Self::Detach(session) => session::detach(decision, *session),
            Self::Release(session, slot) => release::release(decision, *session, *slot),
            Self::Drop(buffer) => release::drop_hold(decision, *buffer),
            Self::Close(session) => close::close(decision, &[*session]),
            Self::Shutdown => close::close_all(decision),
            Self::Settle(owed) => owed::settle(decision, *owed),
        }
        .map_err(Refused::from)
    }
}

/// The frames that the plan of an event may take.
fn charge(decision: &Decision<'_>, event: &Event) -> Charge {
    match event {
        Event::Attach(session) | Event::Detach(session) => charge_of(decision, *session),
        Event::Storm(..) | Event::MemoryTaken(_) => Charge::Server,
        Event::FunctionAdded(_) | Event::FunctionsAdded(_)
            if decision.state.machine.owners.len() > 0 =>
        {
            Charge::Server
        }
        _ => Charge::Unlimited,
    }
}

/// Charges a plan to the client of a session.
fn charge_of(decision: &Decision<'_>, session: SessionId) -> Charge {
    let session: Result<_, Refusal> = decision.state.session(session);
    session.map_or(Charge::Server, |session| Charge::Account(session.client))
}
