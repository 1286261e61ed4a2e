//! Shares of table memory, in frames of 4096 bytes.
//!
//! ```text
//! free + clients' tables = promised + common       (frames reserved for units that are not up are neither)
//! promised   GUARANTEE for each domain of a client, and for each group that is not claimed yet
//! common     the rest; a client may have a quarter of it in addition to its promise
//! ```
//!
//! Where half of the memory is too little for a promise to each group, a client has promises for a quarter of them at most,
//! and for one at least, and a quarter of the memory in all: the domains of one client take no other's.
//!
//! A client has what its own domains were promised, even when too little is left for groups that came later. So three
//! clients together cannot make another client's claim or attach fail, nor its mappings within a quarter of the
//! common part. Ends of life are not charged: they take no frame, or any that is free.
//!
//! Nothing is stored here that could become inconsistent. Shares are added up from the tables when a plan took
//! frames: once for each table, not for each mapping.

use alloc::collections::BTreeMap;

use super::{Engine, Fault};
use crate::hw::{MemoryError, TableMemory, Unit, UnitError};
use crate::policy::{Charge, Payer};

/// Frames that each domain of a client is promised: 64 KiB. They are a root, and tables for a few regions of
/// firmware, for a second such domain of policy, and for the first mappings.
pub const GUARANTEE: usize = 16;

/// One client may have this fraction (1/4) of the common part.
const PARTS: usize = 4;

/// The shares of frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shares {
    /// Frames that are not in use.
    pub free: usize,
    /// Free frames that are promised.
    pub promised: usize,
    /// The most frames that a client with one domain may have.
    pub of_one: usize,
}

/// The tables of clients, added up: of all, and of each by its account.
#[derive(Default)]
struct Used {
    all: Tables,
    of: BTreeMap<u32, Tables>,
}

#[derive(Clone, Copy, Default)]
struct Tables {
    domains: usize,
    frames: usize,
}

/// How the memory is divided.
struct Division {
    /// Most frames that a client may have.
    limit: usize,
    /// Most domains for which a client has a promise.
    most: usize,
    /// Promised frames that are not used yet, those of one client left out.
    promised: usize,
    /// The common frames, used or not.
    common: usize,
}

impl<U: Unit> Engine<U> {
    /// Sets the number of groups, and of owners without one. Each may be claimed, and is promised its share. At most half of the memory is
    /// promised: groups beyond that get no promise yet.
    pub const fn promise(&mut self, groups: usize) {
        self.groups = groups;
    }

    /// The current shares of frames.
    #[must_use]
    pub fn shares(&self) -> Shares {
        let free = self.memory.frames_free();
        let Division { limit, promised, common, .. } = self.divide(&self.used(), free, None);
        Shares { free, promised, of_one: limit.min(GUARANTEE + common / PARTS) }
    }

    /// Refuses unless a plan may have taken frames, of which `before` were in use when it began.
    #[inline(always)]
    pub(super) fn afford(&self, charge: Charge, before: usize) -> Result<(), Fault> {
        if self.memory.frames_in_use() <= before {
            return Ok(());
        }
        self.afford_more(charge)
    }

    #[cold]
    fn afford_more(&self, charge: Charge) -> Result<(), Fault> {
        let account = match charge {
            Charge::Unlimited => return Ok(()),
            Charge::Server => None,
            Charge::Account(account) => Some(account),
        };
        let used = self.used();
        let free = self.memory.frames_free();
        let Division { limit, most, promised, common } = self.divide(&used, free, account);
        let client = account.and_then(|account| used.of.get(&account).copied()).unwrap_or_default();
        // A client has what it was promised, even when too little is left for groups that came since.
        let own = limit.min(client.domains.min(most) * GUARANTEE);
        if account.is_some() && client.frames <= own {
            return Ok(());
        }
        if free < promised {
            return Err(Fault::memory(MemoryError::Exhausted));
        }
        if client.frames > limit.min(own + common / PARTS) {
            return Err(Fault::memory(MemoryError::Share));
        }
        Ok(())
    }

    /// Divides the memory. Promises that `but` does not use yet are left out: it may use them.
    fn divide(&self, used: &Used, free: usize, but: Option<u32>) -> Division {
        let all = free.saturating_add(used.all.frames);
        let wanted = self.groups.max(used.all.domains);
        let places = wanted.min(all / 2 / GUARANTEE);
        let scarce = places < wanted;
        let most = if scarce { (places / PARTS).max(1) } else { usize::MAX };
        let limit = if scarce { all / PARTS } else { all };
        let (mut given, mut short) = (0, 0);
        for (account, tables) in &used.of {
            let promises = tables.domains.min(most);
            given += promises;
            if Some(*account) != but {
                short += (promises * GUARANTEE).saturating_sub(tables.frames);
            }
        }
        let promised = short + places.saturating_sub(given) * GUARANTEE;
        Division { limit, most, promised, common: all - places * GUARANTEE }
    }

    fn used(&self) -> Used {
        let mut used = Used::default();
        for table in self.tables.iter().flatten() {
            let Payer::Account(payer) = table.payer else { continue };
            for sum in [&mut used.all, used.of.entry(payer).or_default()] {
                sum.domains += 1;
                sum.frames += table.frames;
            }
        }
        used
    }
}

impl Fault {
    const fn memory(error: MemoryError) -> Self {
        Self { unit: None, error: UnitError::Memory(error) }
    }
}

#[cfg(test)]
mod tests {
    use super::super::walkers::Walkers;
    use super::*;
    use crate::engine::Table;
    use crate::engine::tests::FakeUnit;
    use crate::hw::page_table::{Detached, PageTable};
    use crate::hw::testing::TestMemory;
    use crate::topology::capabilities::{DomainTag, PageSizes, TableFormat};

    /// Limit, domains with a promise, promised frames, common frames: for this many groups, free frames, and clients with
    /// account, domains and frames.
    fn divided(
        groups: usize,
        free: usize,
        clients: &[(u32, usize, usize)],
        but: Option<u32>,
    ) -> [usize; 4] {
        let mut engine: Engine<FakeUnit> = Engine::new(TestMemory::new());
        engine.promise(groups);
        let mut used = Used::default();
        for (account, domains, frames) in clients.iter().copied() {
            used.of.insert(account, Tables { domains, frames });
            used.all.domains += domains;
            used.all.frames += frames;
        }
        let Division { limit, most, promised, common } = engine.divide(&used, free, but);
        [limit, most, promised, common]
    }

    /// 944 frames are enough for 29 promises of 16.
    #[test]
    fn where_memory_suffices_each_group_has_its_promise() {
        let clients = [(1, 2, 40), (2, 1, 4)];
        // The first has more than its promise, the second lacks 12 of its own; seven groups are not claimed.
        let of = |but| divided(10, 900, &clients, but);
        assert_eq!(of(None), [944, usize::MAX, 12 + 7 * 16, 944 - 160]);
        assert_eq!(of(Some(2)), [944, usize::MAX, 7 * 16, 944 - 160]);
        assert_eq!(of(Some(1)), of(None));
        // More domains than groups: each is promised, and nothing else.
        assert_eq!(divided(1, 900, &clients, None), [944, usize::MAX, 12, 944 - 48]);
    }

    /// 640 frames: half of them are 20 promises.
    #[test]
    fn where_it_does_not_a_client_has_a_quarter() {
        assert_eq!(divided(20, 640, &[], None), [640, usize::MAX, 320, 320]);
        assert_eq!(divided(21, 640, &[], None), [160, 5, 320, 320]);
        // Seven domains, of which five are promised.
        assert_eq!(divided(100, 600, &[(1, 7, 40)], None), [160, 5, 40 + 15 * 16, 320]);
        assert_eq!(divided(100, 600, &[(1, 7, 40)], Some(1)), [160, 5, 15 * 16, 320]);
        // A quarter of one place is one.
        assert_eq!(divided(2, 48, &[], None), [12, 1, 16, 32]);
        assert_eq!(divided(2, 31, &[], None), [7, 1, 0, 31]);
    }

    /// Whether a plan is refused that has taken frames, and why: with this many groups, frames that are free after it,
    /// and tables with an account and frames.
    fn refused(
        groups: usize,
        free: usize,
        tables: &[(u32, usize)],
        charge: Charge,
    ) -> Option<MemoryError> {
        let mut engine: Engine<FakeUnit> = Engine::new(TestMemory::new());
        engine.promise(groups);
        let page_sizes = PageSizes::SIZE_4K;
        let format = TableFormat { levels: 4, page_sizes, coherent: true, forces_snoop: true };
        for (account, frames) in tables.iter().copied() {
            let pages = PageTable::new(&mut engine.memory, format).unwrap();
            let (payer, detached) = (Payer::Account(account), Detached::new());
            let table = Table {
                pages,
                tag: DomainTag(2),
                payer,
                frames,
                detached,
                walkers: Walkers::new(),
            };
            engine.tables.push(Some(table));
        }
        engine.memory.budget = free;
        match engine.afford(charge, 0).err()?.error {
            UnitError::Memory(error) => Some(error),
            other => panic!("{other:?}"),
        }
    }

    /// Four groups, of which one is not claimed: 16 frames are promised to it. The first client has two domains, which
    /// are promised 32, the second has more than its promise. 128 frames in all, so 64 are common.
    #[test]
    fn a_client_has_its_promise_and_a_quarter_of_the_rest() {
        const FIRST: Charge = Charge::Account(1);
        let (nothing_left, too_much) = (Some(MemoryError::Exhausted), Some(MemoryError::Share));
        let of = |free, first: usize, second, charge| {
            refused(4, free, &[(1, first - 10), (1, 10), (2, second)], charge)
        };
        // What it was promised it has, even when too little is left for the group that is not claimed.
        assert_eq!(of(15, 32, 81, FIRST), None);
        assert_eq!(of(15, 33, 80, FIRST), nothing_left);
        assert_eq!(of(16, 33, 79, FIRST), None);
        // And 16 of the 64 that are common.
        assert_eq!(of(40, 48, 40, FIRST), None);
        assert_eq!(of(40, 49, 39, FIRST), too_much);
        // The server has no promise, and no share.
        assert_eq!(of(16, 33, 79, Charge::Server), None);
        assert_eq!(of(15, 33, 80, Charge::Server), nothing_left);
        assert_eq!(of(0, 100, 28, Charge::Unlimited), None);
        // What a client lacks of its promise is not left to others.
        assert_eq!(of(21, 97, 10, FIRST), nothing_left);
        assert_eq!(of(22, 96, 10, FIRST), too_much);
    }

    /// Two groups and 48 frames, of which half are one promise: a client has twelve.
    #[test]
    fn where_memory_is_scarce_a_client_has_a_quarter_of_it() {
        let of = |free, frames| refused(2, free, &[(1, frames)], Charge::Account(1));
        assert_eq!(of(36, 12), None);
        assert_eq!(of(35, 13), Some(MemoryError::Share));
    }
}
