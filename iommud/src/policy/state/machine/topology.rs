//! Adds and removes functions, and updates the groups.

mod parts;
#[cfg(test)]
mod tests;

use alloc::collections::BTreeSet;
use alloc::vec::Vec;

use crate::policy::collections::inline_list::InlineList;
use crate::policy::ids::{GroupId, UnitIndex};
use crate::policy::state::machine::Machine;
use crate::policy::state::objects::{Activity, Function, Group};
use crate::topology::alias::{self, Aliases};
use crate::topology::groups;
use crate::topology::pci::PciFunction;
use crate::topology::pool::NOWHERE;
use crate::topology::scope::Scopes;
use crate::topology::table::FunctionIndex;

/// The result of adding a function.
pub(in crate::policy) struct Added {
    pub(in crate::policy) index: FunctionIndex,
    /// The groups of before that became one, or that it joined.
    pub(in crate::policy) joined: Vec<GroupId>,
    /// Functions behind it whose unit or requester ids changed.
    pub(in crate::policy) changed: Vec<FunctionIndex>,
}

impl Machine {
    /// Reserves room for this many more functions, each a group of its own behind one unit.
    pub(in crate::policy) fn reserve(&mut self, more: usize) {
        self.table.reserve(more);
        self.functions.reserve(more);
        self.groups.reserve(more);
        self.sources.reserve(more);
    }

    /// Adds a function that is not known yet. A group that was claimed before stays so, whatever it joins.
    pub(in crate::policy) fn add(&mut self, new: PciFunction) -> Added {
        let index = self.table.insert(new);
        if new.buses().is_some() {
            self.scopes = Scopes::new(&self.firmware, self.table.view());
        }
        // Stays below the number that stands for none.
        let next = |before: Option<u32>| before.unwrap_or(0).saturating_add(1).min(u32::MAX - 1);
        self.generations.update(new.address, next);
        let (unit, aliases) = self.resolve(&new);
        let alone = Group { members: InlineList::One(index), ..Group::default() };
        let own = GroupId(self.groups.insert(alone).unwrap_or(NOWHERE));
        let function = Function {
            group: own,
            unit,
            aliases,
            mode: self.config.mode(&new),
            session: None,
            activity: Activity::Quiet,
            hot_added: false,
        };
        match self.functions.get_mut(index.0 as usize) {
            Some(place) => *place = Some(function),
            // Indices are reused, so this one is the next.
            None => self.functions.push(Some(function)),
        }
        if self.comes_back_driven(&new) {
            self.set_activity(index, Activity::Unquiesced);
        }
        let changed = self.resolve_behind(&new);
        let mut joined = Vec::new();
        for each in core::iter::once(index).chain(changed.iter().copied()) {
            self.enter_sources(each, &mut joined);
        }
        self.join_neighbours(&new, &mut joined);
        // The group that it began with is none of before.
        joined.retain(|group| *group != own);
        Added { index, joined, changed }
    }

    /// Whether a new function may be the one that was driven when it was removed. A different one takes its place for
    /// good.
    fn comes_back_driven(&mut self, new: &PciFunction) -> bool {
        let left = self.left_driven.remove(&new.address);
        left.is_some_and(|identity| identity.is_none_or(|identity| identity == new.identity()))
    }

    fn resolve(&self, function: &PciFunction) -> (Option<UnitIndex>, Aliases) {
        let unit = self.scopes.unit(&self.firmware, function);
        let description = unit.and_then(|unit| self.firmware.units.get(unit));
        let aliases = alias::aliases(self.table.view(), description, function);
        (unit.and_then(|unit| u32::try_from(unit).ok()).map(UnitIndex), aliases)
    }

    /// Updates the functions behind a new bridge, which may stand between them and their unit. Removes those that
    /// change from their entries, and returns them.
    fn resolve_behind(&mut self, bridge: &PciFunction) -> Vec<FunctionIndex> {
        let Some(buses) = bridge.buses() else { return Vec::new() };
        let behind: Vec<PciFunction> =
            self.table.view().behind(bridge.address.segment, buses).copied().collect();
        let mut changed = Vec::new();
        for function in behind {
            let Some(index) = self.table.index(function.address) else { continue };
            let (unit, aliases) = self.resolve(&function);
            let Some(known) = self.function(index) else { continue };
            if known.unit == unit && known.aliases == aliases {
                continue;
            }
            self.leave_sources(index);
            if let Some(known) = self.function_mut(index) {
                known.unit = unit;
                known.aliases = aliases;
            }
            changed.push(index);
        }
        changed
    }

    /// Adds a function to the users of its requester ids. Functions that share one are in one group.
    fn enter_sources(&mut self, index: FunctionIndex, merged: &mut Vec<GroupId>) {
        for number in 0.. {
            let Some(key) = self.key_of(index, number) else { return };
            let Some(entry) = self.sources.enter(key) else { continue };
            let other = entry.users.first().copied();
            entry.users.push(index);
            if let Some(other) = other {
                self.join(index, other, merged);
            }
        }
    }

    fn leave_sources(&mut self, index: FunctionIndex) {
        let keys: Vec<_> = self.keys_of(index).collect();
        for key in keys {
            if let Some(entry) = self.sources.get_mut(key) {
                entry.users.retain(|user| *user != index);
                if entry.users.is_empty() {
                    self.sources.leave(key);
                    self.take_named(key);
                }
            }
        }
    }

    /// Marks those that share a requester id with a function that goes and was driven as unquiesced, as far as they are
    /// quiet: it may still be there, and its requests under way.
    fn suspect_sharers(&mut self, gone: FunctionIndex) {
        if self.function(gone).is_none_or(|function| function.activity == Activity::Quiet) {
            return;
        }
        let keys: Vec<_> = self.keys_of(gone).collect();
        let sources = keys.iter().filter_map(|key| self.sources.get(*key));
        let sharers: Vec<_> = sources.flat_map(|source| source.users.iter().copied()).collect();
        for sharer in sharers.into_iter().filter(|sharer| *sharer != gone) {
            let Some(function) = self.function_mut(sharer) else { continue };
            if function.activity != Activity::Quiet {
                continue;
            }
            function.activity = Activity::Unquiesced;
            let group = function.group;
            if let Some(group) = self.groups.get_mut(group.0) {
                group.state.count(Activity::Unquiesced, true);
            }
        }
    }

    /// Joins groups along the edges of a new function and of those behind it.
    fn join_neighbours(&mut self, new: &PciFunction, merged: &mut Vec<GroupId>) {
        let mut pairs = Vec::new();
        let view = self.table.view();
        groups::edges(view, new, &mut |to| pairs.push((new.address, to)));
        groups::reach(view, new, &mut |buses| {
            for function in view.behind(new.address.segment, buses) {
                groups::edges(view, function, &mut |to| pairs.push((function.address, to)));
            }
        });
        for (a, b) in pairs {
            if let (Some(a), Some(b)) = (self.table.index(a), self.table.index(b)) {
                self.join(a, b, merged);
            }
        }
    }

    /// Joins the groups of two functions. A claimed group keeps its number, else the lower number stays.
    fn join(&mut self, a: FunctionIndex, b: FunctionIndex, merged: &mut Vec<GroupId>) {
        let (Some(a), Some(b)) = (self.function(a), self.function(b)) else { return };
        if a.group == b.group {
            return;
        }
        let claimed =
            |group: GroupId| self.group(group).is_some_and(|group| group.state.owner.is_some());
        let rank = |group: GroupId| (!claimed(group), group);
        let (keep, gone) =
            if rank(a.group) < rank(b.group) { (a.group, b.group) } else { (b.group, a.group) };
        let Some(old) = self.groups.remove(gone.0) else { return };
        for member in old.members.iter() {
            if let Some(function) = self.function_mut(*member) {
                function.group = keep;
            }
        }
        if let Some(group) = self.groups.get_mut(keep.0) {
            old.members.iter().for_each(|member| group.members.push(*member));
            group.state.attached += old.state.attached;
            group.state.unquiesced += old.state.unquiesced;
            group.state.sessions += old.state.sessions;
        }
        for group in [keep, gone] {
            if !merged.contains(&group) {
                merged.push(group);
            }
        }
    }

    /// Removes functions and returns their groups. With a bridge the caller names all functions behind it. A group
    /// without sessions on its members becomes free. A free group that falls apart becomes several.
    pub(in crate::policy) fn remove(&mut self, gone: &[FunctionIndex]) -> Vec<GroupId> {
        let mut touched = Vec::new();
        let mut known = BTreeSet::new();
        let mut bridges = false;
        for index in gone {
            self.suspect_sharers(*index);
            self.leave_sources(*index);
            let Some(function) = self.functions.get_mut(index.0 as usize).and_then(Option::take)
            else {
                continue;
            };
            let address = self.table.get(*index).map(|function| function.address);
            let removed = address.and_then(|address| self.table.remove(address));
            bridges |= removed.is_some_and(|function| function.kind.buses().is_some());
            if let Some(removed) = removed.filter(|_| function.activity != Activity::Quiet) {
                self.left_driven.insert(removed.address, Some(removed.identity()));
            }
            if let Some(group) = self.groups.get_mut(function.group.0) {
                group.state.count(function.activity, false);
                group.state.sessions -= u32::from(function.session.is_some());
                group.state.stale = group.state.owner.is_some();
            }
            if known.insert(function.group) {
                touched.push(function.group);
            }
        }
        if bridges {
            self.scopes = Scopes::new(&self.firmware, self.table.view());
        }
        let groups = touched.clone();
        for group in groups {
            self.drop_members(group);
            self.free_if_unused(group);
            touched.extend(self.fall_apart(group));
        }
        touched
    }

    /// Drops the members of a group that were removed: all at once, since a group may have thousands.
    fn drop_members(&mut self, id: GroupId) {
        let Some(group) = self.groups.get_mut(id.0) else { return };
        let functions = &self.functions;
        let is_known =
            |member: &FunctionIndex| functions.get(member.0 as usize).is_some_and(Option::is_some);
        group.members.retain(is_known);
    }

    /// Frees a group whose members have no session. A session on a removed member does not hold the group.
    fn free_if_unused(&mut self, id: GroupId) {
        let Some(group) = self.groups.get_mut(id.0) else { return };
        let in_use = |member: &FunctionIndex| {
            let function = self.functions.get(member.0 as usize).and_then(Option::as_ref);
            function.is_some_and(|function| function.session.is_some())
        };
        if group.members.iter().any(in_use) {
            return;
        }
        let owner = group.state.owner.take();
        (group.state.sessions, group.state.stale) = (0, false);
        for member in group.members.iter() {
            if let Some(Some(function)) = self.functions.get_mut(member.0 as usize) {
                function.hot_added = false;
            }
        }
        if let Some(owner) = owner.and_then(|owner| self.owners.get_mut(owner.0)) {
            owner.groups.retain(|other| *other != id);
        }
    }

    /// The functions that are removed with this one: itself and those behind it.
    pub(in crate::policy) fn with_behind(&self, index: FunctionIndex) -> Vec<FunctionIndex> {
        let mut all = alloc::vec![index];
        if let Some(function) = self.table.get(index)
            && let Some(buses) = function.buses()
        {
            let behind = self.table.view().behind(function.address.segment, buses);
            all.extend(behind.filter_map(|function| self.table.index(function.address)));
        }
        all
    }
}
