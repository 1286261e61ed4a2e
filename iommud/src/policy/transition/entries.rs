//! Computes the binding that each entry should have, and moves entries to it.

use alloc::vec::Vec;

use iommu_protocol::status::Refusal;

use crate::policy::decision::Decision;
use crate::policy::event::Owed;
use crate::policy::ids::{GroupId, Key, UnitIndex};
use crate::policy::state::State;
use crate::policy::state::machine::{MOST_STRANGERS, TargetBinding};
use crate::policy::state::objects::Unit;
use crate::policy::step::{Binding, PASS_THROUGH_TAG, Step};
use crate::policy::transition::domain;

/// The binding that an entry should have. A domain of policy that this needs is created.
pub(super) fn binding(decision: &mut Decision<'_>, key: Key) -> Result<Binding, Refusal> {
    let machine = &decision.state.machine;
    let shared = match machine.target(key) {
        TargetBinding::Blocked => return Ok(Binding::Blocked),
        TargetBinding::PassThrough => return Ok(Binding::PassThrough),
        TargetBinding::Domain(domain) => return Ok(Binding::Domain(domain)),
        TargetBinding::Shared(shared) => shared,
    };
    if let Some(domain) = machine.shared.get(&shared) {
        return Ok(Binding::Domain(*domain));
    }
    if decision.frugal {
        decision.owe(Owed::Entry(key.0, key.1), true);
        return Ok(Binding::Blocked);
    }
    domain::make_shared(decision, shared).map(Binding::Domain)
}

/// Whether an entry with this binding may be written only after the unit was flushed.
pub(super) fn opens_late(state: &State, unit: UnitIndex, binding: Binding) -> bool {
    let tag = match binding {
        Binding::Blocked => return false,
        Binding::PassThrough => Some(PASS_THROUGH_TAG),
        Binding::Domain(domain) => state.domains.get(domain.0).map(|domain| domain.tag),
    };
    tag.is_none_or(|tag| state.tags.is_stale(unit, tag))
}

/// Moves these entries to the bindings that they should have. A new entry that denies is written too, because an
/// absent entry does not deny on every unit.
pub(super) fn rebind(decision: &mut Decision<'_>, mut keys: Vec<Key>) -> Result<(), Refusal> {
    keys.sort_unstable();
    keys.dedup();
    let mut moves = Vec::new();
    for key in keys {
        let (before, leaves) = decision.state.machine.sources.under_way(key);
        match decision.state.machine.unit(key.0) {
            Some(Unit::Enabled { .. }) => {}
            Some(Unit::Failed) if leaves => {
                // The domain still counts this entry, because the unit may have cached its translations.
                deny(decision, key);
                decision.drop_left(key);
                continue;
            }
            _ => continue,
        }
        let was = before.unwrap_or(Binding::Blocked);
        let now = binding(decision, key)?;
        let silent = decision.state.machine.sources.is_silenced(key);
        if was != now {
            unsilence(decision, key, was);
            moves.push((key, was, now));
        } else if before.is_none() || leaves && silent {
            unsilence(decision, key, was);
            decision.block(key, was);
            decision.bind(key, now);
        }
        if leaves && was == now {
            decision.drop_left(key);
        }
    }
    move_entries(decision, &moves);
    Ok(())
}

/// Denies a requester in the tables of a failed unit.
pub(super) fn deny(decision: &mut Decision<'_>, key: Key) {
    decision.step(Step::Deny { unit: key.0, source: key.1 });
    decision.note_silence(key, false);
}

/// Moves entries. All that allow access are blocked and invalidated before any is opened, so that no two members of a
/// group are ever in different domains.
pub(super) fn move_entries(decision: &mut Decision<'_>, moves: &[(Key, Binding, Binding)]) {
    let blocked = Binding::Blocked;
    let closing = || moves.iter().filter(|(_, was, _)| *was != blocked);
    let opening = || moves.iter().filter(|(_, _, now)| *now != blocked);
    let steps = &mut decision.plan.steps;
    for &((unit, source), from, _) in closing() {
        steps.push(Step::SetEntry { unit, source, from, to: blocked });
    }
    for &((unit, source), was, _) in closing() {
        steps.push(Step::InvalidateEntry { unit, source, was });
    }
    for &((unit, source), _, to) in opening() {
        steps.push(Step::SetEntry { unit, source, from: blocked, to });
    }
    for &((unit, source), ..) in opening() {
        steps.push(Step::InvalidateEntry { unit, source, was: blocked });
    }
    for &(key, _, now) in moves {
        decision.bind(key, now);
        decision.drop_left(key);
    }
}

/// Moves the entries of groups to the bindings that they should have now.
pub(super) fn rebind_groups(
    decision: &mut Decision<'_>,
    groups: &[GroupId],
) -> Result<(), Refusal> {
    let mut keys = Vec::new();
    groups.iter().for_each(|group| decision.state.machine.keys(*group, &mut keys));
    rebind(decision, keys)
}

/// Suppresses the faults of a requester. Its access and its cached translations stay. A requester that is no known
/// function has no access; at most [`MOST_STRANGERS`] of these can be silenced.
pub(super) fn silence(decision: &mut Decision<'_>, key: Key) -> Result<(), Refusal> {
    decision.state.machine.check_unit(key.0)?;
    let sources = &decision.state.machine.sources;
    if sources.is_silenced(key) {
        return Ok(());
    }
    let known = sources.get(key).map(|source| source.binding);
    if known.is_none() && sources.strangers().len() >= MOST_STRANGERS {
        return Err(Refusal::Quota);
    }
    let ((unit, source), was) = (key, known.flatten().unwrap_or(Binding::Blocked));
    decision.step(Step::SuppressFaults { unit, source, silent: true, was });
    decision.step(Step::InvalidateEntry { unit, source, was });
    decision.note_silence(key, true);
    Ok(())
}

/// Reports the faults of a requester again, because its entry is about to be written and invalidated.
pub(super) fn unsilence(decision: &mut Decision<'_>, key: Key, was: Binding) {
    if decision.state.machine.sources.is_silenced(key) {
        let (unit, source) = key;
        decision.step(Step::SuppressFaults { unit, source, silent: false, was });
        decision.note_silence(key, false);
    }
}
