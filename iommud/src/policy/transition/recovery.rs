//! Units that come back after a failure, and the release of the quarantine then.
//!
//! A failed unit gets no commands, since its reaction to them is unknown. `Step::Revive` flushes its caches if it walks
//! our tables, and from then on the entries in its tables count. Those of clients deny; those of policy are as they
//! were. Entries whose binding should be a different one now are moved as usual. If the unit does not walk our tables,
//! only `Step::Enable` flushes it: an entry that may be open only then denies until then.

use alloc::vec::Vec;

use iommu_protocol::status::Refusal;

use crate::policy::decision::Decision;
use crate::policy::ids::{BufferId, DomainId, Key};
use crate::policy::state::domain::{Domain, Trust};
use crate::policy::state::objects::Buffer;
use crate::policy::step::{Binding, Step};
use crate::policy::transition::{entries, release};

/// Gives the entries of a revived unit the bindings that they should have. Those that stay the same are written anew
/// without being blocked in between: devices under policy may be at work. Returns the steps of those that may be opened
/// only after the unit was flushed.
pub(super) fn enter_again(decision: &mut Decision<'_>, keys: &[Key]) -> Result<Vec<Step>, Refusal> {
    let (mut moves, mut late, mut opened) = (Vec::new(), Vec::new(), Vec::new());
    for &key in keys {
        let (before, _) = decision.state.machine.sources.under_way(key);
        let was = before.unwrap_or(Binding::Blocked);
        let now = entries::binding(decision, key)?;
        let (unit, source) = key;
        entries::unsilence(decision, key, was);
        if was == now {
            decision.step(Step::SetEntry { unit, source, from: now, to: now });
            decision.step(Step::InvalidateEntry { unit, source, was: now });
            decision.bind(key, now);
        } else if entries::opens_late(decision.state, unit, now) {
            let blocked = Binding::Blocked;
            if was == blocked {
                decision.step(Step::SetEntry { unit, source, from: blocked, to: blocked });
            }
            moves.push((key, was, blocked));
            late.push(Step::SetEntry { unit, source, from: blocked, to: now });
            late.push(Step::InvalidateEntry { unit, source, was: blocked });
            opened.push((key, now));
        } else {
            moves.push((key, was, now));
        }
    }
    entries::move_entries(decision, &moves);
    opened.into_iter().for_each(|(key, now)| decision.bind(key, now));
    Ok(late)
}

/// Releases the quarantine; see [`crate::policy::Event::Proved`]. A part that a session still holds is released with
/// the session.
pub(super) fn proved(decision: &mut Decision<'_>) -> Result<(), Refusal> {
    let state = &decision.state;
    let owners = state.machine.owners.iter();
    let held: Vec<DomainId> = owners.filter_map(|(_, owner)| owner.domain).collect();
    let suspect = state.domains.iter().filter(|(_, domain)| domain.is_suspect());
    let suspect: Vec<_> = suspect.map(|(id, domain)| (DomainId(id), is_unused(domain))).collect();
    let kept = |buffer: BufferId| {
        let domains = held.iter().filter_map(|id| state.domains.get(id.0));
        domains.into_iter().any(|domain| domain.left.contains(&buffer))
    };
    let unproved = state.buffers.iter().filter(|(_, buffer)| buffer.unproved);
    let unproved = unproved.map(|(id, _)| BufferId(id)).filter(|id| !kept(*id));
    let unproved: Vec<BufferId> = unproved.collect();
    for (id, unused) in suspect {
        if held.contains(&id) {
            decision.set_trust(id, Trust::Retired);
        } else if unused {
            decision.end_domain(id);
        }
    }
    for id in unproved {
        if let Some(buffer) = decision.change::<Buffer>(id.0) {
            buffer.unproved = false;
        }
        release::free_if_unused(decision, id)?;
    }
    decision.last(Step::ReleaseAbandoned);
    Ok(())
}

fn is_unused(domain: &Domain) -> bool {
    domain.active.is_empty()
}
