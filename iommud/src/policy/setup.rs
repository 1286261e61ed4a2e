//! Facts that the registry gets before the first event, and between events. They need no plan.

use alloc::vec::Vec;

use iommu_protocol::ids::PciAddress;

use crate::policy::ids::{SessionId, UnitIndex};
use crate::policy::plan::Orders;
use crate::policy::registry::Registry;
use crate::policy::state::objects::Unit;
use crate::policy::state::pool::Pool;
use crate::policy::state::tags::{Holds, Tags};
use crate::topology::tags::{HeldTags, TagRecord, TagRing};

impl Registry {
    /// Reserves room for `count` more functions: most of the cost of adding many is allocation.
    pub fn expect_functions(&mut self, count: usize) {
        self.state.machine.reserve(count);
    }

    /// Sets the time, in milliseconds since the server started. Nothing is decided by it: it is told of ranges that are
    /// unmapped from now on.
    pub const fn set_time(&mut self, milliseconds: u32) {
        self.state.time = milliseconds;
    }

    /// Records that a function was driven when an earlier server ended. Its group is blocked until the function was
    /// attached and detached. Call this between the first walk and the first [`Event::UnitReady`]: it writes no
    /// entry. Returns false when the function is not known, or when a unit translates already.
    ///
    /// A function that the walk missed is blocked from the moment it is found.
    ///
    /// [`Event::UnitReady`]: crate::policy::Event::UnitReady
    pub fn cut_off(&mut self, address: PciAddress) -> bool {
        let machine = &mut self.state.machine;
        if !machine.units.iter().all(|unit| matches!(unit, Unit::Parsed)) {
            return false;
        }
        machine.note_left_driven(address)
    }

    /// Sets the capacity of the memory for buffers, in use or not, and its granule, both in bytes. Without this call
    /// the capacity is unlimited. True when the capacity changes.
    pub const fn set_buffer_pool(&mut self, capacity: u64, granule: u64) -> bool {
        let before = self.state.pool.capacity;
        self.state.pool = Pool { capacity, granule };
        capacity != before
    }

    /// Whether less than 1/`parts` of the memory for buffers is free.
    #[must_use]
    pub fn pool_is_below(&self, parts: u64) -> bool {
        let accounts = self.state.accounts.iter();
        let taken = accounts.map(|(_, account)| account.taken).fold(0, u64::saturating_add);
        let capacity = self.state.pool.capacity;
        capacity.saturating_sub(taken) < capacity / parts.max(1)
    }

    /// Whether a session is refused a buffer of `length` bytes only for lack of memory for buffers.
    pub fn lacks_pool(&mut self, session: SessionId, length: u64) -> bool {
        if self.admit_buffer(session, length).is_ok() {
            return false;
        }
        let pool = core::mem::take(&mut self.state.pool);
        let admitted = self.admit_buffer(session, length).is_ok();
        self.state.pool = pool;
        admitted
    }

    /// Sets the tags that units may hold from earlier servers. `held` are the tags. `units` says for each unit, by
    /// index, which of them it may hold. `last` is the highest tag that every unit can hold.
    pub fn begin_tags(&mut self, held: HeldTags, units: Vec<Holds>, last: u16) {
        let held = if units.contains(&Holds::Earlier) { held } else { HeldTags::Nothing };
        let ring = TagRing::new(held, last);
        self.state.tags = Tags::of(ring, held, units);
    }

    /// Records that translation of a unit was off. When its owner left no note, the contents of its caches are not
    /// used again.
    pub fn found_off(&mut self, unit: UnitIndex) {
        if self.state.tags.holds(unit) == Holds::Anything {
            self.state.tags.set_holds(unit, Holds::Nothing);
        }
    }

    /// Records that a unit can no longer be relied on. No plan uses it from now on; what its failure means for its
    /// devices is decided by [`Event::UnitFailed`](crate::policy::Event::UnitFailed), which comes next.
    pub fn lose(&mut self, unit: UnitIndex) {
        self.state.machine.set_unit(unit, Unit::Failed);
    }

    /// Records the tags of a plan that is about to be run. From now on [`Registry::tag_record`] includes them.
    /// Returns true when it did not before.
    pub fn take_tags_of(&mut self, orders: &Orders) -> bool {
        orders.tag.is_some_and(|tag| self.state.tags.reach(tag))
    }

    /// The tags that units may hold, for the next server.
    #[must_use]
    pub fn tag_record(&self) -> TagRecord {
        self.state.tags.record()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::config::Config;
    use crate::policy::ids::ClientId;
    use crate::policy::state::objects::Account;
    use crate::topology::firmware::Firmware;

    fn registry() -> Registry {
        Registry::new(Config::default(), Firmware::default(), &[], &[])
    }

    #[test]
    fn the_pool_is_low_when_less_than_a_part_is_free() {
        // Two clients have 48 of 64 bytes, or another number.
        for (second, parts, low) in [
            (28, 4, false),
            (29, 4, true),
            (28, 3, true),
            (22, 3, false),
            (28, 1, true),
            (28, 0, true),
            (99, 4, true),
        ] {
            let mut registry = registry();
            registry.set_buffer_pool(64, 1);
            assert!(!registry.pool_is_below(1), "nothing is taken");
            for (client, taken) in [(1, 20), (2, second)] {
                let account = Account { taken, ..Account::new(ClientId(client)) };
                registry.state.accounts.insert(account);
            }
            assert_eq!(registry.pool_is_below(parts), low, "{second} and 1/{parts}");
        }
    }

    #[test]
    fn a_unit_that_was_off_holds_only_what_is_recorded() {
        let mut registry = registry();
        let units = alloc::vec![Holds::Anything, Holds::Earlier, Holds::Failed, Holds::Nothing];
        registry.begin_tags(HeldTags::Everything, units, 255);
        (0..4).for_each(|unit| registry.found_off(UnitIndex(unit)));
        let holds = [0, 1, 2, 3].map(|unit| registry.state.tags.holds(UnitIndex(unit)));
        assert_eq!(holds, [Holds::Nothing, Holds::Earlier, Holds::Failed, Holds::Nothing]);
    }
}
