//! Adds and removes functions.
//!
//! Groups may join and fall apart, and bridges change the requester ids of functions behind them. So each of these
//! events keeps a copy of the whole machine. The start of a server does without: it adds thousands of functions
//! before any entry is written.

use alloc::boxed::Box;
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

pub(super) fn added(decision: &mut Decision<'_>, function: &PciFunction) -> Result<(), Refusal> {
    let machine = &decision.state.machine;
    if let Some(known) = machine.table.find(function.address) {
        return if known == function { Ok(()) } else { Err(Refusal::Busy) };
    }
    if machine.is_untouched() {
        decision.journal.keep(Image::Add(Box::new(*function)));
        return Ok(());
    }
    let before = Box::new(machine.clone());
    let added = decision.state.machine.add(*function);
    let claimed = joins_claimed(&before, &added);
    let mut keys = Vec::new();
    added.changed.iter().for_each(|index| keys.extend(before.keys_of(*index)));
    decision.journal.keep(Image::Machine(before));
    let machine = &mut decision.state.machine;
    machine.keys(added.group, &mut keys);
    if claimed? {
        let new = machine.table.index(function.address);
        if let Some(new) = new.and_then(|index| machine.function_mut(index)) {
            new.hot_added = true;
        }
    }
    entries::rebind(decision, keys)
}

/// Whether the new function is a member of a claimed group now. `Busy` when a claimed group would join another one,
/// or when an entry of its members would change.
fn joins_claimed(before: &Machine, added: &Added) -> Result<bool, Refusal> {
    let claimed =
        |group: GroupId| before.group(group).is_some_and(|group| group.state.owner.is_some());
    let groups = added.merged.iter().copied().chain([added.group]);
    let groups: Vec<_> = groups.filter(|group| before.group(*group).is_some()).collect();
    let any = groups.iter().any(|group| claimed(*group));
    let moved = added.changed.iter().filter_map(|index| before.function(*index));
    if any && groups.len() > 1 || moved.into_iter().any(|function| claimed(function.group)) {
        return Err(Refusal::Busy);
    }
    Ok(any)
}

pub(super) fn removed(decision: &mut Decision<'_>, address: PciAddress) -> Result<(), Refusal> {
    let machine = &decision.state.machine;
    let (index, _) = machine.find(address).ok_or(Refusal::NotProbed)?;
    let gone: Vec<FunctionIndex> = machine.with_behind(index);
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
