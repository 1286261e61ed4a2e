//! The memory that policy `compat` maps: all except that of buffers and of the server.

use alloc::boxed::Box;
use alloc::vec::Vec;

use iommu_protocol::status::Refusal;

use crate::addr::PhysRange;
use crate::policy::collections::ranges::{Ranges, bounds, hull_of, identity, reserved_parts};
use crate::policy::decision::Decision;
use crate::policy::ids::{DomainId, UnitIndex};
use crate::policy::journal::Image;
use crate::policy::state::State;
use crate::policy::state::domain::{Domain, Shared};
use crate::policy::state::machine::Machine;
use crate::policy::state::objects::Unit;
use crate::policy::step::Step;

/// Refused where firmware reserves memory for a device: domains map such a region whatever `compat` maps. What the
/// server has had from the start they never map.
pub(super) fn memory_taken(decision: &mut Decision<'_>, range: PhysRange) -> Result<(), Refusal> {
    let State { machine, base, .. } = &*decision.state;
    let reserved = reserved_parts(&machine.firmware.reserved, &[range]);
    let mapped = |part: PhysRange| base.within(part.first().0, part.last().0).next().is_some();
    if reserved.into_iter().any(mapped) {
        return Err(Refusal::Reserved);
    }
    take(decision, &[bounds(range.page_aligned())]).map(drop)
}

pub(super) fn memory_returned(
    decision: &mut Decision<'_>,
    range: PhysRange,
) -> Result<(), Refusal> {
    let state = &decision.state;
    let (first, last) = bounds(range.page_aligned());
    if state.memory.overlapping(first, last).is_some() {
        return Err(Refusal::Busy);
    }
    let mut back = Ranges::default();
    state.base.within(first, last).for_each(|(first, last)| back.insert(first, last));
    state.compat.within(first, last).for_each(|(first, last)| back.remove(first, last));
    let back: Vec<_> = back.iter().collect();
    give(decision, &back)
}

fn domains(state: &State) -> Vec<DomainId> {
    let compat = state.machine.shared.iter().filter(|(of, _)| matches!(of, Shared::Compat(_)));
    compat.map(|(_, id)| *id).collect()
}

/// Whether a failed unit may still walk a domain's table.
fn has_failed_unit(state: &State, domain: &Domain) -> bool {
    domain.active.iter().any(|(unit, _)| has_failed(&state.machine, *unit))
}

fn has_failed(machine: &Machine, unit: UnitIndex) -> bool {
    matches!(machine.unit(unit), Some(Unit::Failed))
}

/// Removes memory from every domain of policy `compat`, and invalidates it in every unit. Returns the parts that were
/// mapped.
pub(super) fn take(
    decision: &mut Decision<'_>,
    ranges: &[(u64, u64)],
) -> Result<Vec<(u64, u64)>, Refusal> {
    let compat = &decision.state.compat;
    let within = ranges.iter().flat_map(|(first, last)| compat.within(*first, *last));
    let taken: Vec<_> = within.collect();
    if taken.is_empty() {
        return Ok(taken);
    }
    let machine = &decision.state.machine;
    if machine.suspect.iter().any(|unit| has_failed(machine, *unit)) {
        return Err(Refusal::UnitFailed);
    }
    for id in domains(decision.state) {
        let domain = decision.state.domain(id)?;
        if has_failed_unit(decision.state, domain) {
            return Err(Refusal::UnitFailed);
        }
        let pieces = identity(taken.iter().copied(), domain.shape.reach());
        decision.unmap_pieces(id, &pieces);
        if let Some(range) = hull_of(&pieces) {
            decision.invalidate(id, range);
            decision.release_tables(id);
        }
    }
    change(decision, &taken, Ranges::remove);
    Ok(taken)
}

/// Maps memory again in every domain of policy `compat`.
pub(super) fn give(decision: &mut Decision<'_>, ranges: &[(u64, u64)]) -> Result<(), Refusal> {
    if ranges.is_empty() {
        return Ok(());
    }
    for id in domains(decision.state) {
        let reach = decision.state.domain(id)?.shape.reach();
        let pieces = identity(ranges.iter().copied(), reach);
        decision.map_pieces(id, &pieces);
        let Some(range) = hull_of(&pieces) else { continue };
        let domain = decision.state.domain(id)?;
        let units = domain.active.iter().map(|(unit, _)| *unit);
        let up = units.filter(|unit| decision.state.machine.class_of(*unit).is_some());
        let steps = up.map(|unit| Step::Publish { unit, domain: id, range });
        decision.plan.steps.extend(steps);
    }
    change(decision, ranges, Ranges::insert);
    Ok(())
}

fn change(decision: &mut Decision<'_>, ranges: &[(u64, u64)], change: fn(&mut Ranges, u64, u64)) {
    decision.journal.keep(Image::Compat(Box::new(decision.state.compat.clone())));
    for (first, last) in ranges {
        change(&mut decision.state.compat, *first, *last);
    }
}
