//! Splits a free group into the parts that its members form without those that are gone.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use crate::policy::ids::GroupId;
use crate::policy::state::machine::Machine;
use crate::policy::state::objects::{Group, GroupState};
use crate::topology::groups::{self, Sets};
use crate::topology::table::FunctionIndex;

impl Machine {
    /// Splits a free group into the groups that its members form now; returns the new ones. Removes an empty group.
    pub(in crate::policy) fn fall_apart(&mut self, id: GroupId) -> Vec<GroupId> {
        let Some(group) = self.groups.get(id.0).filter(|group| group.state.owner.is_none()) else {
            return Vec::new();
        };
        let parts = self.parts(&group.members);
        if parts.is_empty() {
            self.groups.remove(id.0);
            return Vec::new();
        }
        let mut new = Vec::new();
        let mut keep = Some(id);
        for part in parts {
            let id = match keep.take() {
                Some(id) => id,
                None => {
                    let Some(id) = self.groups.insert(Group::default()) else { break };
                    new.push(GroupId(id));
                    GroupId(id)
                }
            };
            self.set_members(id, &part);
        }
        new
    }

    /// Sets the members of a free group.
    fn set_members(&mut self, id: GroupId, members: &[FunctionIndex]) {
        let mut state = GroupState::default();
        for member in members {
            if let Some(function) = self.function_mut(*member) {
                function.group = id;
                state.count(function.activity, true);
            }
        }
        if let Some(group) = self.groups.get_mut(id.0) {
            *group = Group { members: members.iter().copied().collect(), state };
        }
    }

    /// The members of a group in the parts that edges and shared requester ids connect, in order of their first
    /// members. Looks at the edges of each member once, because a group may have thousands.
    pub(super) fn parts(&self, members: &[FunctionIndex]) -> Vec<Vec<FunctionIndex>> {
        let places: BTreeMap<FunctionIndex, usize> = members.iter().copied().zip(0..).collect();
        let mut users = BTreeMap::new();
        let mut sets = Sets::new(members.len());
        for (own, index) in members.iter().enumerate() {
            let (Some(known), Some(pci)) = (self.function(*index), self.table.get(*index)) else {
                continue;
            };
            groups::edges(self.table.view(), pci, &mut |to| {
                let to = self.table.index(to).and_then(|to| places.get(&to));
                to.into_iter().for_each(|to| sets.join(own, *to));
            });
            for source in self.sources_of(*index) {
                let user = *users.entry((known.unit, source)).or_insert(own);
                sets.join(user, own);
            }
        }
        let mut parts: Vec<Vec<FunctionIndex>> = Vec::new();
        let mut numbers = BTreeMap::new();
        for (own, index) in members.iter().enumerate() {
            let number = *numbers.entry(sets.find(own)).or_insert(parts.len());
            match parts.get_mut(number) {
                Some(part) => part.push(*index),
                None => parts.push(alloc::vec![*index]),
            }
        }
        parts
    }
}
