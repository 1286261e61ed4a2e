//! What becomes of the mappings that a batch marked, when its plan is consumed.

use crate::policy::draft::{Change, Changes};
use crate::policy::mappings::MappingIndex;
use crate::policy::registry::Registry;
use crate::policy::slab::Slab;
use crate::policy::state::{Domain, SlotRecord};

impl Registry {
    /// The plan was carried out: what was to leave goes. What it entered is there.
    #[inline]
    pub(super) fn settle_changes(&mut self, changes: &Changes) {
        if changes.unmapped.is_none() {
            return;
        }
        let Some(domain) = self.domains.get_mut(changes.domain.0) else { return };
        let mut left = 0;
        for change in &changes.list {
            if let Change::Leaving(index, slot) = *change {
                left += remove(domain, &mut self.slots, index, slot);
            }
        }
        if domain.mappings.is_sparse() {
            domain.mappings.rebuild(&mut self.slots);
            domain.space.shrink();
        }
        if let Some(account) = self.accounts.get_mut(changes.account) {
            account.mappings -= left;
        }
    }

    /// The plan was not carried out: takes the marks back, last first.
    pub(super) fn take_back_changes(&mut self, changes: &mut Changes) {
        if changes.is_empty() {
            return;
        }
        let Some(domain) = self.domains.get_mut(changes.domain.0) else { return };
        let mut entered = 0;
        while let Some(change) = changes.list.pop() {
            match change {
                Change::Entered(index, slot) => {
                    entered += remove(domain, &mut self.slots, index, slot);
                }
                Change::Leaving(index, _) => domain.mappings.keep(index),
            }
        }
        if let Some(account) = self.accounts.get_mut(changes.account) {
            account.mappings -= entered;
        }
    }

    /// A unit may still reach what the plan mapped.
    pub(super) fn keep_changes_unproved(&mut self, changes: &Changes) {
        let Some(domain) = self.domains.get(changes.domain.0) else { return };
        for change in &changes.list {
            if let Change::Entered(index, _) = change
                && let Some(mapping) = domain.mappings.get(*index)
                && let Some(slot) = self.slots.get(mapping.slot)
                && let Some(buffer) = self.buffers.get_mut(slot.buffer.0)
            {
                buffer.unproved = true;
            }
        }
    }
}

/// Forgets a mapping and gives its addresses back: to the domain, or to the buffer that they are reserved for.
/// Returns what it was charged as.
#[inline(always)]
fn remove(
    domain: &mut Domain,
    slots: &mut Slab<SlotRecord>,
    index: MappingIndex,
    slot: u32,
) -> u32 {
    let Some(slot) = slots.get_mut(slot) else { return 0 };
    let Some(mapping) = domain.mappings.remove(index, &mut slot.mappings) else { return 0 };
    match &mut slot.granted {
        Some(grants) if mapping.grant => {
            grants.set(mapping.offset, mapping.range.length(), false);
        }
        _ => domain.space.free(mapping.range),
    }
    if domain.mappings.len() == 0 {
        domain.space.shrink();
    }
    mapping.charge()
}
