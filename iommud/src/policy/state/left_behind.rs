//! Buffers of devices that their client gave up, because somebody holds handles on them.
//!
//! They count as those of the groups that the client gave up: of their next owners, or of what is promised to them while
//! they have none. So a process that opens one connection after another, and keeps all that it is given, has one share
//! in all; and owners of other groups have theirs. The next owner of the same group has less as long as they are held.
//! Its claim does not fail for it.
//!
//! ```text
//! given up      when its share became less than what it has, and since then
//! left behind   what a client has beyond its share; without a session, all that it has
//! charged       one promise to each group that it gave up, as far as that goes; the rest to the last one
//! ```

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use crate::policy::ids::GroupId;
use crate::policy::state::State;
use crate::policy::state::objects::Account;

/// Bytes of the pool that were left behind.
#[derive(Default)]
pub(in crate::policy) struct LeftBehind {
    /// By the account that has the group now.
    of_accounts: BTreeMap<u32, u64>,
    /// By the group, where nobody has it.
    of_groups: BTreeMap<GroupId, u64>,
}

impl LeftBehind {
    /// Bytes that an account is charged for.
    pub(in crate::policy) fn charged(&self, number: u32, account: &Account) -> u64 {
        let inherited = self.of_accounts.get(&number).copied().unwrap_or(0);
        account.taken.saturating_add(inherited)
    }

    /// Bytes of what groups without an owner were promised, `each` so much, that are in use.
    pub(super) fn of_unclaimed(&self, each: u64) -> u64 {
        self.of_groups.values().fold(0, |sum, bytes| sum.saturating_add(each.min(*bytes)))
    }

    fn charge(&mut self, group: GroupId, owner: Option<u32>, bytes: u64) {
        let charged = match owner {
            Some(owner) => self.of_accounts.entry(owner).or_default(),
            None => self.of_groups.entry(group).or_default(),
        };
        *charged = charged.saturating_add(bytes);
    }
}

impl State {
    /// Bytes that a client may have for the devices that it has.
    pub(in crate::policy) fn entitled(&self, account: &Account) -> u64 {
        if account.sessions > 0 { self.share_of(account.domains) } else { 0 }
    }

    /// What clients have of devices that they gave up. Hardly ever is there any.
    pub(in crate::policy) fn left_behind(&self) -> LeftBehind {
        let mut left = LeftBehind::default();
        for (number, account) in self.accounts.iter() {
            let bytes = account.taken.saturating_sub(self.entitled(account));
            if bytes > 0 {
                self.leave(&mut left, &self.given_up(number, account), bytes);
            }
        }
        left
    }

    /// Charges bytes to groups, of which the first was given up last.
    fn leave(&self, left: &mut LeftBehind, groups: &[(GroupId, Option<u32>)], bytes: u64) {
        let number = u32::try_from(groups.len()).unwrap_or(u32::MAX);
        let (promise, each) = self.buffer_promise(number);
        let mut promised = bytes.min(promise);
        let mut rest = bytes - promised;
        for (group, owner) in groups {
            let part = each.min(promised);
            left.charge(*group, *owner, part.saturating_add(core::mem::take(&mut rest)));
            promised -= part;
        }
    }

    /// The groups that a client gave up and has not claimed again, and the accounts of their owners; the last one first.
    /// A device that is gone has no next owner.
    fn given_up(&self, number: u32, account: &Account) -> Vec<(GroupId, Option<u32>)> {
        let (mut groups, mut seen) = (Vec::new(), BTreeSet::new());
        for address in account.given_up.iter().rev() {
            let Some((_, function)) = self.machine.find(*address) else { continue };
            let group = function.group;
            let owner = self.machine.group(group).and_then(|group| group.state.owner);
            let owner = owner.and_then(|owner| self.machine.owner(owner)).map(|owner| owner.client);
            if owner != Some(number) && seen.insert(group) {
                groups.push((group, owner));
            }
        }
        groups
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::config::Config;
    use crate::policy::ids::ClientId;
    use crate::policy::state::objects::{Group, Owner, OwnerId};
    use crate::policy::state::pool::Pool;
    use crate::topology::firmware::Firmware;
    use crate::topology::testing::{address, endpoint, multi};

    /// A promise, which is also a piece of the pool.
    const P: u64 = 64 << 10;

    fn state() -> State {
        let mut state = State::new(Config::default(), Firmware::default(), &[], &[]);
        state.pool = Pool { capacity: 64 * P, granule: P };
        state
    }

    #[test]
    fn what_is_left_behind_is_charged_to_owners_or_to_promises() {
        let mut left = LeftBehind::default();
        assert_eq!(left.of_unclaimed(8), 0);
        for (group, owner, bytes) in [(1, None, 5), (2, None, 3), (3, Some(7), 50), (1, None, 4)] {
            left.charge(GroupId(group), owner, bytes);
        }
        left.charge(GroupId(4), Some(7), 1);
        // Nine bytes of one group and three of another, of each at most its promise.
        assert_eq!([100, 8, 3, 2, 0].map(|each| left.of_unclaimed(each)), [12, 11, 6, 4, 0]);
        let account = Account { taken: 10, ..Account::new(ClientId(1)) };
        assert_eq!((left.charged(7, &account), left.charged(8, &account)), (61, 10));
    }

    /// The group that was given up last is charged first, and with what is more than a promise to each.
    #[test]
    fn each_group_is_charged_a_promise_as_far_as_that_goes() {
        let mut state = state();
        for group in 0..4 {
            assert_eq!(state.machine.groups.insert(Group::default()), Some(group));
        }
        let groups = [(3, None), (2, Some(7)), (1, None)];
        let groups = groups.map(|(group, owner)| (GroupId(group), owner));
        for (bytes, charged) in [
            (0, [0, 0, 0]),
            (P / 4, [P / 4, 0, 0]),
            (P + P / 4, [P, P / 4, 0]),
            (2 * P + P / 4, [P, P, P / 4]),
            (5 * P + P / 4, [3 * P + P / 4, P, P]),
        ] {
            let mut left = LeftBehind::default();
            state.leave(&mut left, &groups, bytes);
            let of_groups = [3, 1].map(|group| left.of_groups[&GroupId(group)]);
            let [first, second, third] = charged;
            assert_eq!((of_groups, left.of_accounts[&7]), ([first, third], second), "{bytes}");
        }
    }

    /// Two functions of one device, one that the client has claimed again, one of another client, and one that is gone.
    #[test]
    fn a_group_that_was_given_up_counts_once_and_for_its_next_owner() {
        let mut state = state();
        let device = [0, 1].map(|number| multi(endpoint(0, 3, number)));
        for function in [device[0], device[1], endpoint(0, 4, 0), endpoint(0, 5, 0)] {
            state.machine.add(function);
        }
        let group = |state: &State, device| {
            state.machine.find(address(0, device, 0)).map(|(_, function)| function.group).unwrap()
        };
        for (device, client) in [(4, 7), (5, 8)] {
            let groups = Vec::from([group(&state, device)]);
            let owner = Owner { client, domain: None, sessions: 1, groups };
            let owner = state.machine.owners.insert(owner).map(OwnerId);
            let group = group(&state, device);
            state.machine.groups.get_mut(group.0).unwrap().state.owner = owner;
        }
        let mut account = Account::new(ClientId(1));
        for (device, function) in [(5, 0), (3, 0), (4, 0), (6, 0), (3, 1)] {
            account.give_up(address(0, device, function));
        }
        let expected = [(group(&state, 3), None), (group(&state, 5), Some(8))];
        assert_eq!(state.given_up(7, &account), expected);
    }
}
