//! Units that come back after they failed, and what is given back then.
//!
//! While a unit is failed it is told nothing, since nobody knows what it would make of it. `Step::Revive` makes it
//! forget all that it cached; from there on its entries are what its tables say: those of clients deny, those of
//! policy are as they were. Entries that policy wants otherwise now are moved as ever.

use alloc::vec::Vec;

use iommu_protocol::status::Refusal;

use crate::policy::draft::{Draft, Effect};
use crate::policy::ids::{BufferId, DomainId, Key};
use crate::policy::registry::Registry;
use crate::policy::state::machine::Machine;
use crate::policy::state::objects::{Buffer, Domain, Purpose, Trust};
use crate::policy::step::{Binding, Step};

impl Registry {
    /// Makes the entries of a unit that was revived what they are to be in `after`. Those that stay are written anew
    /// without being blocked on the way: devices under policy may be at work.
    pub(super) fn enter_again(
        &self,
        draft: &mut Draft,
        after: &Machine,
        keys: &[Key],
    ) -> Result<(), Refusal> {
        let mut moves = Vec::new();
        for &key in keys {
            let was = self.machine.sources.get(key).map_or(Binding::Blocked, |s| s.binding);
            let now = self.binding(draft, after, key)?;
            self.unsilence(draft, key, was);
            if was != now {
                moves.push((key, was, now));
                continue;
            }
            let (unit, source) = key;
            draft.steps.push(Step::Renew { unit, source, binding: now });
            draft.steps.push(Step::InvalidateEntry { unit, source, was: now });
        }
        draft.move_entries(&moves);
        Ok(())
    }

    /// Gives back what is in quarantine; see [`crate::policy::Event::Proved`]. What a session still holds of it ends
    /// with the session.
    pub(super) fn proved(&self, draft: &mut Draft) -> Result<(), Refusal> {
        let held: Vec<DomainId> = self.held_domains().collect();
        for (id, domain) in self.domains.iter().filter(|(_, domain)| is_suspect(domain)) {
            let id = DomainId(id);
            if held.contains(&id) {
                draft.effects.push(Effect::Retire(id));
            } else if domain.active.is_empty() {
                draft.last.push(Step::DestroyTable { domain: id });
                draft.effects.push(Effect::DropDomain(id));
            }
        }
        let kept = |buffer: BufferId| {
            let domains = held.iter().filter_map(|id| self.domains.get(id.0));
            domains.into_iter().any(|domain| domain.left.contains(&buffer))
        };
        for (id, buffer) in self.buffers.iter().filter(|(_, buffer)| buffer.unproved) {
            if !kept(BufferId(id)) {
                self.prove(draft, BufferId(id), buffer)?;
            }
        }
        draft.last.push(Step::ReleaseAbandoned);
        Ok(())
    }

    fn prove(&self, draft: &mut Draft, id: BufferId, buffer: &Buffer) -> Result<(), Refusal> {
        if buffer.slots == 0 && buffer.holds == 0 {
            return self.free_memory(draft, id, buffer);
        }
        draft.effects.push(Effect::Proved(id));
        Ok(())
    }

    /// Domains of owners.
    fn held_domains(&self) -> impl Iterator<Item = DomainId> + '_ {
        self.machine.owners.iter().filter_map(|(_, owner)| owner.domain)
    }

    /// Whether anything is kept that [`crate::policy::Event::Proved`] gives back now or later.
    #[must_use]
    pub fn has_quarantine(&self) -> bool {
        self.buffers.iter().any(|(_, buffer)| buffer.unproved)
            || self.domains.iter().any(|(_, domain)| is_suspect(domain))
    }
}

fn is_suspect(domain: &Domain) -> bool {
    domain.purpose == Purpose::Client && domain.trust == Trust::Suspect
}
