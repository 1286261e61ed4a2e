//! What becomes of the mappings that a batch marked, when its plan is consumed.

use crate::policy::change::{Change, Changes};
use crate::policy::collections::slab::Slab;
use crate::policy::ids::DomainId;
use crate::policy::registry::Registry;
use crate::policy::state::mappings::Mapping;
use crate::policy::state::objects::{Domain, SlotRecord};

impl Registry {
    /// The plan was carried out: what was to leave goes. What it entered is there.
    #[inline]
    pub(super) fn settle_changes(&mut self, changes: &Changes) {
        if changes.unmapped.is_some() {
            self.settle(changes.domain, changes.account, &changes.list);
        }
    }

    /// What was to leave goes: its addresses are given back, and its charge.
    #[inline(always)]
    pub(super) fn settle(&mut self, domain: DomainId, account: u32, changes: &[Change]) {
        let Some(domain) = self.domains.get_mut(domain.0) else { return };
        let mut left = 0;
        for change in changes {
            if let Change::Left(index, slot) = *change
                && let Some(mapping) = domain.mappings.forget(index)
            {
                give_back(domain, &mut self.slots, slot, &mapping);
                left += mapping.charge();
            }
        }
        domain.shrink();
        if domain.mappings.is_sparse() {
            let slots = &mut self.slots;
            domain.mappings.rebuild(|slot, change| {
                if let Some(record) = slots.get_mut(slot) {
                    change(&mut record.mappings);
                }
            });
            domain.space.shrink();
        }
        if let Some(account) = self.accounts.get_mut(account) {
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
                Change::Entered(index, number) => {
                    let slot = self.slots.get_mut(number);
                    let list = slot.map(|slot| &mut slot.mappings);
                    let mapping = list.and_then(|list| domain.mappings.remove(index, list));
                    if let Some(mapping) = mapping {
                        give_back(domain, &mut self.slots, number, &mapping);
                        entered += mapping.charge();
                    }
                }
                Change::Left(index, slot) => {
                    if let Some(slot) = self.slots.get_mut(slot) {
                        domain.mappings.put_back(index, &mut slot.mappings);
                    }
                }
            }
        }
        domain.shrink();
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

/// Gives the addresses of a mapping that is gone back: to the domain, or to the buffer that they are reserved for.
#[inline(always)]
fn give_back(domain: &mut Domain, slots: &mut Slab<SlotRecord>, slot: u32, mapping: &Mapping) {
    if mapping.grant
        && let Some(SlotRecord { granted: Some(grants), .. }) = slots.get_mut(slot)
    {
        grants.set(mapping.offset, mapping.range.length(), false);
    } else {
        domain.space.free(mapping.range);
    }
}
