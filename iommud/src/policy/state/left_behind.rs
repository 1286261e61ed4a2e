//! Buffers that outlive all sessions of their client, because somebody holds handles on them.
//!
//! They count as those of the group on which the client had its last session: of its next owner, or of what is promised to
//! it while it has none. So a process that has a session after another one on a device, and keeps all that it is given,
//! has one share in all; and owners of other groups have theirs. The next owner of the same group has less as long as they
//! are held. Its claim does not fail for it.

use alloc::collections::BTreeMap;

use crate::policy::ids::GroupId;
use crate::policy::state::State;
use crate::policy::state::objects::Account;

/// Bytes of the pool that clients without a session have.
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
}

impl State {
    /// What clients have that have no session any more. Hardly ever is there one.
    pub(in crate::policy) fn left_behind(&self) -> LeftBehind {
        let mut left = LeftBehind::default();
        for (_, account) in self.accounts.iter() {
            if account.sessions > 0 || account.taken == 0 {
                continue;
            }
            let function = account.last.and_then(|address| self.machine.find(address));
            // A device that is gone has no next owner.
            let Some((_, function)) = function else { continue };
            let group = self.machine.group(function.group);
            let owner = group.and_then(|group| self.machine.owner(group.state.owner?));
            let bytes = match owner {
                Some(owner) => left.of_accounts.entry(owner.client).or_default(),
                None => left.of_groups.entry(function.group).or_default(),
            };
            *bytes = bytes.saturating_add(account.taken);
        }
        left
    }
}
