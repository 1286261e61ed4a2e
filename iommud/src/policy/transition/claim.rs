//! A device is opened for writing: its group gets an owner, and a session begins.

use alloc::vec::Vec;

use iommu_protocol::ids::PciAddress;
use iommu_protocol::status::Refusal;

use crate::policy::config::Mode;
use crate::policy::decision::Decision;
use crate::policy::event::{Claim, Refused};
use crate::policy::ids::{ClientId, GroupId, SessionId};
use crate::policy::state::State;
use crate::policy::state::objects::{Account, Owner, OwnerId, Session};
use crate::policy::state::tally::Tally;
use crate::policy::step::Charge;
use crate::policy::transition::{Request, domain, owed};
use crate::topology::firmware::UnitKind;

impl Request for Claim {
    type Outcome = SessionId;

    fn decide(&self, decision: &mut Decision<'_>) -> Result<SessionId, Refused> {
        Ok(claim(decision, self)?)
    }
}

fn claim(decision: &mut Decision<'_>, request: &Claim) -> Result<SessionId, Refusal> {
    let Claim { client, address, parent } = *request;
    let state = &decision.state;
    let (index, function) = state.machine.find(address).ok_or(Refusal::NotProbed)?;
    let (unit, group) = (function.unit, function.group);
    match unit {
        Some(unit) => state.machine.check_unit(unit)?,
        None if function.mode == Mode::Strict => return Err(Refusal::NoUnit),
        None if is_unit(state, address) => return Err(Refusal::Permission),
        None => {}
    }
    let held = state.machine.group(group).ok_or(Refusal::NotProbed)?.state.owner;
    let owner = owner_of(state, client, held, parent)?;
    if function.session.is_some() {
        return Err(Refusal::Busy);
    }
    check_quota(state, client, owner)?;
    let account = account(decision, client)?;
    decision.plan.charge = Charge::Account(account);
    let domain = match unit {
        Some(unit) => Some(domain::for_owner(decision, unit, (owner, account), group)?),
        None => None,
    };
    owed::prepare_end(decision, group)?;
    let owner = match owner {
        Some(owner) => owner,
        None => new_owner(decision, account)?,
    };
    if let Some(owner) = decision.change::<Owner>(owner.0) {
        owner.sessions += 1;
        owner.domain = owner.domain.or(domain);
        if held.is_none() {
            owner.groups.push(group);
        }
    }
    let generation = decision.state.machine.generation(address);
    let id = SessionId(decision.insert(Session {
        address,
        generation,
        function: Some(index),
        group,
        owner,
        client: account,
        unit,
        domain,
        slots: Vec::new(),
        tally: Tally::default(),
        cell: None,
    })?);
    if let Some(group) = decision.change_group(group) {
        group.owner = Some(owner);
        group.sessions += 1;
    }
    if let Some(account) = decision.change::<Account>(account) {
        account.sessions += 1;
    }
    if let Some(function) = decision.change_function(index) {
        function.session = Some(id);
    }
    Ok(id)
}

/// Whether the function is a unit itself (AMD-Vi).
fn is_unit(state: &State, address: PciAddress) -> bool {
    state.machine.firmware.units.iter().any(|unit| {
        matches!(unit.kind, UnitKind::AmdVi { function, .. }
            if function == address.requester && unit.segment == address.segment)
    })
}

/// The owner for a claim of a group whose owner is `held`: that of the parent, or `None` for a new one.
fn owner_of(
    state: &State,
    client: ClientId,
    held: Option<OwnerId>,
    parent: Option<SessionId>,
) -> Result<Option<OwnerId>, Refusal> {
    let Some(parent) = parent else {
        return if held.is_some() { Err(Refusal::NotOwner) } else { Ok(None) };
    };
    let parent = state.session(parent)?;
    let account = state.accounts.get(parent.client).ok_or(Refusal::BadHandle)?;
    if account.client != client {
        return Err(Refusal::BadHandle);
    }
    if parent.function.is_none() {
        return Err(Refusal::NotProbed);
    }
    match held {
        Some(owner) if owner != parent.owner => Err(Refusal::NotOwner),
        _ => Ok(Some(parent.owner)),
    }
}

fn check_quota(state: &State, client: ClientId, owner: Option<OwnerId>) -> Result<(), Refusal> {
    let quotas = &state.machine.config.quotas;
    let account = state.clients.get(&client).and_then(|account| state.accounts.get(*account));
    let (sessions, domains) = account.map_or((0, 0), |account| (account.sessions, account.domains));
    let new = owner.is_none();
    if sessions >= quotas.sessions || new && domains >= quotas.domains {
        return Err(Refusal::Quota);
    }
    if new { state.check_tag_share(domains) } else { Ok(()) }
}

/// The account of a client, created when it has none.
fn account(decision: &mut Decision<'_>, client: ClientId) -> Result<u32, Refusal> {
    if let Some(account) = decision.state.clients.get(&client) {
        return Ok(*account);
    }
    let account = decision.insert(Account::new(client))?;
    decision.state.clients.insert(client, account);
    Ok(account)
}

fn new_owner(decision: &mut Decision<'_>, client: u32) -> Result<OwnerId, Refusal> {
    if let Some(account) = decision.change::<Account>(client) {
        account.domains += 1;
    }
    let groups: Vec<GroupId> = Vec::new();
    Ok(OwnerId(decision.insert(Owner { client, domain: None, sessions: 0, groups })?))
}
