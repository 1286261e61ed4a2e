//! Adds and removes functions.
//!
//! Groups may join and fall apart, and bridges change the requester ids of functions behind them. So each of these
//! events keeps a copy of the whole machine. One device may bring or withdraw thousands of virtual functions at once:
//! one event has them all, because a copy for each would keep everybody waiting. The start of a server does without:
//! it adds thousands of functions before any entry is written.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use iommu_protocol::ids::PciAddress;
use iommu_protocol::status::Refusal;

use crate::policy::decision::Decision;
use crate::policy::ids::GroupId;
use crate::policy::journal::Image;
use crate::policy::state::machine::{Added, Machine};
use crate::policy::state::objects::Session;
use crate::policy::transition::{domain, entries};
use crate::topology::pci::PciFunction;
use crate::topology::table::FunctionIndex;

/// Adds functions, all or none: in their order, those that are known already left out.
pub(super) fn added(decision: &mut Decision<'_>, functions: &[PciFunction]) -> Result<(), Refusal> {
    let machine = &decision.state.machine;
    let mut new = Vec::with_capacity(functions.len());
    let mut named = BTreeMap::new();
    for function in functions {
        let address = function.address;
        match machine.table.find(address).or_else(|| named.get(&address).copied()) {
            Some(known) if known == function => continue,
            Some(_) => return Err(Refusal::Busy),
            None => new.push(*function),
        }
        named.insert(address, function);
    }
    if new.is_empty() {
        return Ok(());
    }
    if machine.is_untouched() {
        new.into_iter().for_each(|function| decision.journal.keep(Image::Add(Box::new(function))));
        return Ok(());
    }
    let before = Box::new(machine.clone());
    let entered = enter(&mut decision.state.machine, &new);
    let mut keys = Vec::new();
    if let Ok(changed) = &entered {
        changed.iter().for_each(|index| keys.extend(before.keys_of(*index)));
    }
    decision.journal.keep(Image::Machine(before));
    entered?;
    let machine = &decision.state.machine;
    let known = new.iter().filter_map(|function| machine.find(function.address));
    let groups: BTreeSet<GroupId> = known.map(|(_, function)| function.group).collect();
    groups.into_iter().for_each(|group| machine.keys(group, &mut keys));
    entries::rebind(decision, keys)
}

/// Adds functions to the machine; returns those behind them whose entries change. Stops at the first that may not be
/// added.
fn enter(machine: &mut Machine, new: &[PciFunction]) -> Result<Vec<FunctionIndex>, Refusal> {
    let mut changed = Vec::new();
    for function in new {
        let added = machine.add(*function);
        if joins_claimed(machine, &added)?
            && let Some(function) = machine.function_mut(added.index)
        {
            function.hot_added = true;
        }
        changed.extend(added.changed);
    }
    Ok(changed)
}

/// Whether the new function is a member of a claimed group now. `Busy` when a claimed group would join another one,
/// or when an entry of its members would change.
fn joins_claimed(machine: &Machine, added: &Added) -> Result<bool, Refusal> {
    // A group that was claimed before is claimed now, as is each that it joined.
    let claimed =
        |group: GroupId| machine.group(group).is_some_and(|group| group.state.owner.is_some());
    let any = added.joined.iter().any(|group| claimed(*group));
    let mut moved = added.changed.iter().filter_map(|index| machine.function(*index));
    if any && added.joined.len() > 1 || moved.any(|function| claimed(function.group)) {
        return Err(Refusal::Busy);
    }
    Ok(any)
}

/// Removes the known ones of these functions, and those behind them.
pub(super) fn removed(
    decision: &mut Decision<'_>,
    addresses: &[PciAddress],
) -> Result<(), Refusal> {
    let machine = &decision.state.machine;
    let known = addresses.iter().filter_map(|address| machine.find(*address));
    let mut seen = BTreeSet::new();
    let gone: Vec<FunctionIndex> = known
        .flat_map(|(index, _)| machine.with_behind(index))
        .filter(|index| seen.insert(*index))
        .collect();
    if gone.is_empty() {
        return Err(Refusal::NotProbed);
    }
    let mut keys: Vec<_> = gone.iter().flat_map(|index| machine.keys_of(*index)).collect();
    let (mut orphans, mut owners) = (Vec::new(), Vec::new());
    for function in gone.iter().filter_map(|index| machine.function(*index)) {
        owners.extend(machine.group(function.group).and_then(|group| group.state.owner));
        orphans.extend(function.session);
    }
    decision.journal.keep(Image::Machine(Box::new(machine.clone())));
    for group in decision.state.machine.remove(&gone) {
        decision.state.machine.keys(group, &mut keys);
    }
    entries::rebind(decision, keys)?;
    owners.sort_unstable();
    owners.dedup();
    owners.into_iter().try_for_each(|owner| domain::narrow(decision, owner))?;
    for session in orphans {
        if let Some(session) = decision.change::<Session>(session.0) {
            session.function = None;
        }
    }
    Ok(())
}
