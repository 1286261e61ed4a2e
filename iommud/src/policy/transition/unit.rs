//! Units that come up, fail, and come back.

use alloc::boxed::Box;
use alloc::vec::Vec;

use iommu_protocol::status::Refusal;

use crate::policy::decision::Decision;
use crate::policy::ids::{Key, UnitIndex};
use crate::policy::journal::{Change, Image};
use crate::policy::state::domain::{Domain, Trust};
use crate::policy::state::objects::{Activity, Unit};
use crate::policy::step::{Binding, Step};
use crate::policy::transition::{domain, entries, recovery};
use crate::topology::capabilities::UnitCapabilities;

pub(super) fn ready(
    decision: &mut Decision<'_>,
    unit: UnitIndex,
    capabilities: &UnitCapabilities,
) -> Result<(), Refusal> {
    let comes_back = match decision.state.machine.unit(unit).ok_or(Refusal::NotFound)? {
        Unit::Enabled { .. } => return Ok(()),
        Unit::Failed => true,
        Unit::Parsed => false,
    };
    if comes_back {
        // Comes first, so that a unit that is still absent costs no memory.
        decision.step(Step::Revive { unit });
    }
    let class = domain::class(decision, capabilities)?;
    decision.set_unit(unit, Unit::Enabled { capabilities: *capabilities, class });
    enter_named(decision, unit);
    let sources = decision.state.machine.sources.of(unit);
    let keys: Vec<Key> = sources.map(|(source, _)| (unit, source)).collect();
    let enter = if comes_back { recovery::enter_again } else { enter_first };
    let late = enter(decision, &keys)?;
    decision.step(Step::Enable { unit });
    // `Enable` has flushed the unit: it holds nothing under any tag.
    decision.plan.steps.extend(late);
    decision.journal.note(Change::Flushed(unit));
    Ok(())
}

/// Creates the entries of devices that firmware names and that are no PCI functions.
fn enter_named(decision: &mut Decision<'_>, unit: UnitIndex) {
    for key in decision.state.machine.named_entries(unit) {
        if decision.state.machine.sources.get(key).is_none() {
            decision.state.machine.sources.enter(key);
            decision.journal.note(Change::Source(key));
        }
    }
}

/// Writes the entries of a unit that does not use them yet. Returns the steps of those that may be opened only after
/// the unit was flushed.
fn enter_first(decision: &mut Decision<'_>, keys: &[Key]) -> Result<Vec<Step>, Refusal> {
    let mut late = Vec::new();
    for &key in keys {
        let now = entries::binding(decision, key)?;
        let (unit, source, was) = (key.0, key.1, Binding::Blocked);
        let set = Step::SetEntry { unit, source, from: was, to: now };
        if entries::opens_late(decision.state, unit, now) {
            decision.step(Step::SetEntry { unit, source, from: was, to: was });
            late.extend([set, Step::InvalidateEntry { unit, source, was }]);
        } else {
            decision.step(set);
        }
        decision.bind(key, now);
    }
    Ok(late)
}

/// Handles the failure of a unit, which may go on using its caches. Clients' devices behind it are denied in its
/// tables. Other devices keep their entries: no client's memory is ever mapped for them. The second time, nothing is
/// left to be done.
pub(super) fn failed(decision: &mut Decision<'_>, unit: UnitIndex) -> Result<(), Refusal> {
    let machine = &decision.state.machine;
    machine.unit(unit).ok_or(Refusal::NotFound)?;
    let entries: Vec<_> = machine.sources.of(unit).collect();
    let users = entries.iter().flat_map(|(_, source)| source.users.iter().copied());
    let users: Vec<_> = users.collect();
    let bound = entries.iter().filter_map(|(source, entry)| match entry.binding {
        Some(Binding::Domain(domain)) => Some(((unit, *source), domain)),
        _ => None,
    });
    let of_client = |domain: u32| decision.state.domains.get(domain).is_some_and(Domain::is_client);
    let bound: Vec<_> = bound.filter(|(_, domain)| of_client(domain.0)).collect();
    decision.set_unit(unit, Unit::Failed);
    decision.journal.keep(Image::Tags(Box::new(decision.state.tags.clone())));
    decision.state.tags.failed(unit);
    let mut keys = Vec::new();
    for user in users {
        let function = decision.state.machine.function(user);
        let Some(function) = function.filter(|f| f.activity == Activity::Attached) else {
            continue;
        };
        let group = function.group;
        // The device is not known to be quiet. When the unit is back, policy must not open its entry.
        decision.set_activity(user, Activity::Unquiesced);
        decision.state.machine.keys(group, &mut keys);
    }
    keys.retain(|key| key.0 != unit);
    for (key, domain) in bound {
        entries::deny(decision, key);
        decision.set_trust(domain, Trust::Suspect);
        decision.bind(key, Binding::Blocked);
    }
    entries::rebind(decision, keys)
}
