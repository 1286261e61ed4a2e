//! Functions that come and go, and memory that policy `compat` may map or not.

use alloc::boxed::Box;
use alloc::vec::Vec;

use iommu_protocol::ids::PciAddress;
use iommu_protocol::status::Refusal;

use crate::addr::PhysRange;
use crate::policy::draft::{Draft, Effect, bounds, hull_of};
use crate::policy::ids::DomainId;
use crate::policy::registry::Registry;
use crate::policy::state::machine::Added;
use crate::policy::state::objects::{Domain, Shared, Unit};
use crate::policy::step::Step;
use crate::policy::units::identity;
use crate::topology::pci::PciFunction;
use crate::topology::table::FunctionIndex;

impl Registry {
    /// Makes room for that many functions more: what it costs to add many of them is mostly memory.
    pub fn expect_functions(&mut self, count: usize) {
        self.machine.reserve(count);
    }

    /// Notes that a function was driven when an earlier server ended. Its group is blocked until it was
    /// attached and detached. Call it between the first walk and the first [`Event::UnitReady`]: it writes no
    /// entry. False when the function is not known, or when a unit translates already.
    ///
    /// [`Event::UnitReady`]: crate::policy::Event::UnitReady
    pub fn cut_off(&mut self, address: PciAddress) -> bool {
        if !self.machine.units.iter().all(|unit| matches!(unit, Unit::Parsed)) {
            return false;
        }
        let Some((index, _)) = self.machine.find(address) else { return false };
        self.machine.set_cut(index, true);
        true
    }

    pub(super) fn function_added(
        &self,
        draft: &mut Draft,
        function: &PciFunction,
    ) -> Result<(), Refusal> {
        if let Some(known) = self.machine.table.find(function.address) {
            return if known == function { Ok(()) } else { Err(Refusal::Busy) };
        }
        let untouched = self.machine.units.iter().all(|unit| matches!(unit, Unit::Parsed));
        if untouched && self.machine.owners.len() == 0 {
            draft.effects.push(Effect::AddFunction(*function));
            return Ok(());
        }
        let mut after = Box::new(self.machine.clone());
        let added = after.add(*function);
        let claimed = self.joins_claimed(&added)?;
        let mut keys = Vec::new();
        for index in &added.changed {
            keys.extend(self.machine.keys_of(*index));
        }
        after.keys(added.group, &mut keys);
        if claimed {
            let new = after.table.index(function.address);
            if let Some(new) = new.and_then(|index| after.function_mut(index)) {
                new.late = true;
            }
        }
        let at = draft.effects.len();
        self.rebind(draft, &after, keys)?;
        after.shared.extend(draft.shared.drain(..));
        draft.effects.insert(at, Effect::Machine(after));
        Ok(())
    }

    /// Whether the new function is a member of a claimed group now. Two groups do not become one, nor do
    /// members of one get another entry, while somebody relies on what they are.
    fn joins_claimed(&self, added: &Added) -> Result<bool, Refusal> {
        let claimed = |group: crate::policy::GroupId| {
            self.machine.group(group).is_some_and(|group| group.owner.is_some())
        };
        let before: Vec<_> = added
            .merged
            .iter()
            .copied()
            .chain([added.group])
            .filter(|group| self.machine.group(*group).is_some())
            .collect();
        let any = before.iter().any(|group| claimed(*group));
        let moved = added.changed.iter().filter_map(|index| self.machine.function(*index));
        if any && before.len() > 1 || moved.into_iter().any(|function| claimed(function.group)) {
            return Err(Refusal::Busy);
        }
        Ok(any)
    }

    pub(super) fn function_removed(
        &self,
        draft: &mut Draft,
        address: PciAddress,
    ) -> Result<(), Refusal> {
        let (index, _) = self.machine.find(address).ok_or(Refusal::NotProbed)?;
        let gone: Vec<FunctionIndex> = self.machine.with_behind(index);
        let (mut keys, mut orphans, mut owners) = (Vec::new(), Vec::new(), Vec::new());
        keys.extend(gone.iter().flat_map(|index| self.machine.keys_of(*index)));
        for function in gone.iter().filter_map(|index| self.machine.function(*index)) {
            owners.extend(self.machine.group(function.group).and_then(|group| group.owner));
            orphans.extend(function.session.map(Effect::Orphan));
        }
        let mut after = Box::new(self.machine.clone());
        for group in after.remove(&gone) {
            after.keys(group, &mut keys);
        }
        let at = draft.effects.len();
        self.rebind(draft, &after, keys)?;
        owners.sort_unstable();
        owners.dedup();
        for owner in owners {
            self.narrow(draft, &after, owner)?;
        }
        after.shared.extend(draft.shared.drain(..));
        draft.effects.insert(at, Effect::Machine(after));
        draft.effects.append(&mut orphans);
        Ok(())
    }

    pub(super) fn memory_taken(&self, draft: &mut Draft, range: PhysRange) -> Result<(), Refusal> {
        let range = bounds(range.page_aligned());
        self.take_from_compat(draft, &[range])?;
        Ok(())
    }

    pub(super) fn memory_returned(
        &self,
        draft: &mut Draft,
        range: PhysRange,
    ) -> Result<(), Refusal> {
        let (first, last) = bounds(range.page_aligned());
        if self.memory.overlapping(first, last).is_some() {
            return Err(Refusal::Busy);
        }
        let mut back = crate::policy::collections::ranges::Ranges::default();
        self.base.within(first, last).for_each(|(first, last)| back.insert(first, last));
        self.compat.within(first, last).for_each(|(first, last)| back.remove(first, last));
        self.give_to_compat(draft, back.iter().collect())
    }

    fn compat_domains(&self) -> impl Iterator<Item = DomainId> {
        let shared = self.machine.shared.iter();
        shared.filter(|(shared, _)| matches!(shared, Shared::Compat(_))).map(|(_, id)| *id)
    }

    /// Whether a unit that failed may still walk a domain's table.
    fn has_failed_unit(&self, domain: &Domain) -> bool {
        let failed = |unit| matches!(self.machine.unit(unit), Some(Unit::Failed));
        domain.active.iter().any(|(unit, _)| failed(*unit))
    }

    /// Takes memory out of every domain of policy `compat`, and makes every unit forget it. Returns the parts
    /// that were mapped.
    pub(super) fn take_from_compat(
        &self,
        draft: &mut Draft,
        ranges: &[(u64, u64)],
    ) -> Result<Vec<(u64, u64)>, Refusal> {
        let taken: Vec<_> =
            ranges.iter().flat_map(|(first, last)| self.compat.within(*first, *last)).collect();
        if taken.is_empty() {
            return Ok(taken);
        }
        for id in self.compat_domains() {
            let domain = self.domain(id)?;
            if self.has_failed_unit(domain) {
                return Err(Refusal::UnitFailed);
            }
            let pieces = identity(taken.iter().copied(), domain.shape.reach());
            draft.unmap_pieces(id, &pieces);
            if let Some(range) = hull_of(&pieces) {
                draft.invalidate(id, domain, range);
                draft.last.push(Step::ReleaseTables { domain: id });
            }
        }
        draft.effects.push(Effect::Compat(taken.clone(), false));
        Ok(taken)
    }

    /// Lets every domain of policy `compat` map memory again.
    pub(super) fn give_to_compat(
        &self,
        draft: &mut Draft,
        ranges: Vec<(u64, u64)>,
    ) -> Result<(), Refusal> {
        if ranges.is_empty() {
            return Ok(());
        }
        for id in self.compat_domains() {
            let domain = self.domain(id)?;
            let pieces = identity(ranges.iter().copied(), domain.shape.reach());
            draft.map_pieces(id, &pieces);
            for &(unit, _) in &domain.active {
                if let (Some(range), Some(_)) = (hull_of(&pieces), self.machine.class_of(unit)) {
                    draft.steps.push(Step::Publish { unit, domain: id, range });
                }
            }
        }
        draft.effects.push(Effect::Compat(ranges, true));
        Ok(())
    }
}
