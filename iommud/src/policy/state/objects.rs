//! Units, functions, groups, owners, sessions, buffers, accounts.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use iommu_protocol::ids::{PciAddress, Slot};
use iommu_protocol::status::Refusal;

use crate::addr::PhysAddr;
use crate::policy::collections::inline_list::InlineList;
use crate::policy::config::Mode;
use crate::policy::ids::{BufferId, ClientId, DomainId, GroupId, SessionId, UnitIndex};
use crate::policy::state::mappings::MappingList;
use crate::policy::state::memory::{Grants, Memory};
use crate::policy::state::tally::Tally;
use crate::policy::step::Binding;
use crate::topology::alias::Aliases;
use crate::topology::capabilities::UnitCapabilities;
use crate::topology::table::FunctionIndex;

/// One unit.
#[derive(Clone, Copy, Debug)]
pub(in crate::policy) enum Unit {
    /// Described by firmware, but not up.
    Parsed,
    /// Translating.
    Enabled {
        capabilities: UnitCapabilities,
        /// Index of its class.
        class: usize,
    },
    /// Not to be relied on.
    Failed,
}

/// The activity of a device for an owner.
///
/// ```text
/// quiet --Attach--> attached --Detach--> quiet
///                      +--Close, UnitFailed, death of a server--> unquiesced --Attach--> attached
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::policy) enum Activity {
    /// It works for no owner.
    Quiet,
    /// In its owner's domain.
    Attached,
    /// It was cut off while it was attached. Its requests may be under way, with addresses of a domain that is gone.
    /// So its group is blocked until it was attached again and detached.
    Unquiesced,
}

/// The state of a function, beside the result of the walk. A machine may have 65,536 and more.
#[derive(Clone, Debug)]
pub(in crate::policy) struct Function {
    pub(in crate::policy) group: GroupId,
    pub(in crate::policy) unit: Option<UnitIndex>,
    pub(in crate::policy) aliases: Aliases,
    pub(in crate::policy) mode: Mode,
    pub(in crate::policy) session: Option<SessionId>,
    pub(in crate::policy) activity: Activity,
    /// Added to a claimed group: blocked until the group is free, unless attached.
    pub(in crate::policy) hot_added: bool,
}

/// The entry of one requester id in one unit.
#[derive(Clone, Debug)]
pub(in crate::policy) struct Source {
    /// Functions whose requests may carry its id, all members of one group.
    pub(in crate::policy) users: InlineList<FunctionIndex>,
    /// `None` when the entry was never written. On some units an entry denies only after it was written.
    pub(in crate::policy) binding: Option<Binding>,
    /// Its faults are suppressed.
    pub(in crate::policy) silenced: bool,
}

/// One isolation group.
#[derive(Clone, Debug, Default)]
pub(in crate::policy) struct Group {
    pub(in crate::policy) members: InlineList<FunctionIndex>,
    pub(in crate::policy) state: GroupState,
}

/// The owner of a group, and the activity of its members.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::policy) struct GroupState {
    pub(in crate::policy) owner: Option<OwnerId>,
    /// Open sessions on members. A session whose device was removed does not count.
    pub(in crate::policy) sessions: u32,
    /// Members attached.
    pub(in crate::policy) attached: u32,
    /// Members unquiesced.
    pub(in crate::policy) unquiesced: u32,
    /// A member was removed while the group was claimed: it may fall apart when it is free.
    pub(in crate::policy) stale: bool,
}

impl GroupState {
    /// Counts one more or one less member with this activity.
    pub(in crate::policy) const fn count(&mut self, activity: Activity, more: bool) {
        let count = match activity {
            Activity::Quiet => return,
            Activity::Attached => &mut self.attached,
            Activity::Unquiesced => &mut self.unquiesced,
        };
        *count = if more { *count + 1 } else { *count - 1 };
    }
}

/// The holder of groups: a first session and those opened under it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::policy) struct OwnerId(pub(in crate::policy) u32);

#[derive(Clone, Debug)]
pub(in crate::policy) struct Owner {
    pub(in crate::policy) client: u32,
    /// The domain of all its devices behind units.
    pub(in crate::policy) domain: Option<DomainId>,
    pub(in crate::policy) sessions: u32,
    pub(in crate::policy) groups: Vec<GroupId>,
}

/// An open session.
#[derive(Clone, Debug)]
pub(in crate::policy) struct Session {
    pub(in crate::policy) address: PciAddress,
    pub(in crate::policy) generation: u32,
    /// `None` when the device is gone.
    pub(in crate::policy) function: Option<FunctionIndex>,
    pub(in crate::policy) group: GroupId,
    pub(in crate::policy) owner: OwnerId,
    /// Number of its client's account.
    pub(in crate::policy) client: u32,
    pub(in crate::policy) unit: Option<UnitIndex>,
    /// `None` when no unit confines the device.
    pub(in crate::policy) domain: Option<DomainId>,
    /// Number of the slot record, by slot.
    pub(in crate::policy) slots: Vec<Option<u32>>,
    /// What it has mapped and unmapped so far.
    pub(in crate::policy) tally: Tally,
    /// Its cell in the store of facts.
    pub(in crate::policy) cell: Option<u32>,
}

impl Session {
    /// Number of the record of a slot.
    #[inline]
    pub(in crate::policy) fn slot(&self, slot: Slot) -> Result<u32, Refusal> {
        self.slots.get(slot.0 as usize).copied().flatten().ok_or(Refusal::BadHandle)
    }

    /// The lowest slot that is free.
    pub(in crate::policy) fn free_slot(&self) -> Slot {
        let at = self.slots.iter().position(Option::is_none).unwrap_or(self.slots.len());
        Slot(u32::try_from(at).unwrap_or(u32::MAX))
    }

    /// Sets or removes the number of a slot's record.
    pub(in crate::policy) fn set_slot(&mut self, slot: Slot, record: Option<u32>) {
        let at = slot.0 as usize;
        if self.slots.len() <= at {
            self.slots.resize(at + 1, None);
        }
        if let Some(place) = self.slots.get_mut(at) {
            *place = record;
        }
        while self.slots.last() == Some(&None) {
            self.slots.pop();
        }
    }
}

/// DMA memory.
#[derive(Clone, Debug)]
pub(in crate::policy) struct Buffer {
    pub(in crate::policy) client: u32,
    pub(in crate::policy) length: u64,
    pub(in crate::policy) memory: Memory,
    /// Parts that policy `compat` mapped before, to be returned to it.
    pub(in crate::policy) taken: Vec<(u64, u64)>,
    /// Slots of it in sessions.
    pub(in crate::policy) slots: u32,
    /// Open handles.
    pub(in crate::policy) holds: u32,
    /// A failed unit may still reach it: it is not freed until that unit is proved flushed.
    pub(in crate::policy) unproved: bool,
    /// Its memory counts against its client.
    pub(in crate::policy) charged: bool,
}

impl Buffer {
    /// Whether it has no slots and no open handles, and no unit may reach it.
    pub(in crate::policy) const fn is_unused(&self) -> bool {
        self.slots == 0 && self.holds == 0 && !self.unproved
    }
}

/// A buffer in a slot of a session.
#[derive(Clone, Debug)]
pub(in crate::policy) struct SlotRecord {
    pub(in crate::policy) session: SessionId,
    pub(in crate::policy) number: Slot,
    pub(in crate::policy) buffer: BufferId,
    /// Length of the buffer, and first address of its memory if that is in one piece: neither ever changes.
    pub(in crate::policy) length: u64,
    pub(in crate::policy) base: Option<PhysAddr>,
    pub(in crate::policy) mappings: MappingList,
    /// The addresses reserved for grants.
    pub(in crate::policy) granted: Option<Grants>,
    /// Without a unit: the number of uses of each part, by first byte and length.
    pub(in crate::policy) direct: BTreeMap<(u64, u64), u32>,
    /// Its cell in the store of facts.
    pub(in crate::policy) cell: Option<u32>,
}

impl SlotRecord {
    /// Creates the record of a buffer of which nothing is mapped.
    pub(in crate::policy) fn new(
        (session, number): (SessionId, Slot),
        buffer: BufferId,
        length: u64,
        memory: &Memory,
    ) -> Self {
        Self {
            session,
            number,
            buffer,
            length,
            base: memory.base(),
            mappings: MappingList::default(),
            granted: None,
            direct: BTreeMap::new(),
            cell: None,
        }
    }

    /// Number of mappings that it is charged for.
    pub(in crate::policy) fn charged(&self) -> u32 {
        let direct: u32 = self.direct.values().fold(0, |sum, n| sum.saturating_add(*n));
        direct.saturating_add(self.mappings.charged)
    }

    /// Without a unit: counts one more or one less use of a part.
    pub(in crate::policy) fn count_direct(
        &mut self,
        offset: u64,
        length: u64,
        more: bool,
    ) -> Result<(), Refusal> {
        if more {
            let count = self.direct.entry((offset, length)).or_insert(0);
            *count = count.saturating_add(1);
            return Ok(());
        }
        let count = self.direct.get_mut(&(offset, length)).ok_or(Refusal::NotMapped)?;
        *count -= 1;
        if *count == 0 {
            self.direct.remove(&(offset, length));
        }
        Ok(())
    }
}

/// The resources that a client uses.
#[derive(Clone, Debug)]
pub(in crate::policy) struct Account {
    pub(in crate::policy) client: ClientId,
    /// Bytes of its buffers.
    pub(in crate::policy) memory: u64,
    /// Bytes of the pieces of the pool that its buffers lie in.
    pub(in crate::policy) taken: u64,
    pub(in crate::policy) mappings: u32,
    pub(in crate::policy) sessions: u32,
    pub(in crate::policy) buffers: u32,
    pub(in crate::policy) domains: u32,
    /// Devices of sessions that ended, the last one last. Each is there once.
    pub(in crate::policy) given_up: Vec<PciAddress>,
}

impl Account {
    pub(in crate::policy) const fn new(client: ClientId) -> Self {
        let (memory, taken) = (0, 0);
        let given_up = Vec::new();
        Self { client, memory, taken, mappings: 0, sessions: 0, buffers: 0, domains: 0, given_up }
    }

    /// Records that its session on a device ended.
    pub(in crate::policy) fn give_up(&mut self, device: PciAddress) {
        self.given_up.retain(|known| *known != device);
        self.given_up.push(device);
    }

    /// Charges mappings to it, or takes the charge back.
    pub(in crate::policy) const fn charge(&mut self, mappings: u32, more: bool) {
        self.mappings = match more {
            true => self.mappings.saturating_add(mappings),
            false => self.mappings.saturating_sub(mappings),
        };
    }

    /// Whether nothing is charged to it.
    pub(in crate::policy) const fn is_idle(&self) -> bool {
        self.sessions == 0 && self.buffers == 0 && self.memory == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_there_is_of_every_function_is_small() {
        let sizes = [size_of::<Option<Function>>(), size_of::<Source>(), size_of::<Group>()];
        assert_eq!(sizes, [32, 32, 40]);
        assert_eq!(size_of::<Option<Source>>() + size_of::<Option<Group>>(), 32 + 40);
    }

    #[test]
    fn a_slot_is_charged_for_each_mapping_and_each_use() {
        let memory = Memory::Many(Vec::new());
        let mut slot = SlotRecord::new((SessionId(1), Slot(2)), BufferId(3), 0x4000, &memory);
        assert_eq!(slot.charged(), 0);
        for (offset, length) in [(0, 0x1000), (0, 0x1000), (0, 0x2000), (0x1000, 0x1000)] {
            assert_eq!(slot.count_direct(offset, length, true), Ok(()));
        }
        assert_eq!(slot.charged(), 4);
        slot.mappings.charged = 3;
        assert_eq!(slot.charged(), 7);
        assert_eq!(slot.count_direct(0x2000, 0x1000, false), Err(Refusal::NotMapped));
        for uses in [6, 5] {
            assert_eq!(slot.count_direct(0, 0x1000, false), Ok(()));
            assert_eq!(slot.charged(), uses);
        }
        assert_eq!(slot.count_direct(0, 0x1000, false), Err(Refusal::NotMapped));
    }

    #[test]
    fn a_device_that_is_given_up_again_is_the_last_one() {
        let [a, b] = [3, 4].map(|device| PciAddress::new(0, 0, device, 0).unwrap());
        let mut account = Account::new(ClientId(1));
        for device in [a, b, a] {
            account.give_up(device);
        }
        assert_eq!(account.given_up, [b, a]);
    }
}
