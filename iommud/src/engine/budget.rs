//! Shares of table memory, in frames of 4096 bytes.
//!
//! ```text
//! free + clients' tables = promised + common       (frames reserved for units that are not up are neither)
//! promised   GUARANTEE for each domain of a client, and for each group that is not claimed yet
//! common     the rest; a client may have a quarter of it in addition to its promise
//! ```
//!
//! A client has what its own domains were promised, even when too little is left for groups that came later. So three
//! clients together cannot make another client's claim or attach fail, nor its mappings within a quarter of the
//! common part. Ends of life are not charged: they take no frame, or any that is free.
//!
//! Nothing is stored here that could become inconsistent. Shares are added up from the tables when a plan took
//! frames: once for each table, not for each mapping.

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

/// The tables of clients, added up.
#[derive(Default)]
struct Used {
    frames: usize,
    domains: usize,
    /// Frames that domains of other clients were promised and do not use.
    short: usize,
    own_frames: usize,
    own_domains: usize,
}

impl<U: Unit> Engine<U> {
    /// Sets the number of groups. Each may be claimed, and is promised its share. At most half of the memory is
    /// promised: groups beyond that get no promise yet.
    pub const fn promise(&mut self, groups: usize) {
        self.groups = groups;
    }

    /// The current shares of frames.
    #[must_use]
    pub fn shares(&self) -> Shares {
        let used = self.used(None);
        let free = self.memory.frames_free();
        let (promised, common) = self.split(&used, free);
        Shares { free, promised, of_one: GUARANTEE + common / PARTS }
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
        let used = self.used(account);
        let free = self.memory.frames_free();
        let (promised, common) = self.split(&used, free);
        // A client has what it was promised, even when too little is left for groups that came since.
        let own = used.own_domains * GUARANTEE;
        if account.is_some() && used.own_frames <= own {
            return Ok(());
        }
        if free < promised {
            return Err(Fault::memory(MemoryError::Exhausted));
        }
        if used.own_frames > own + common / PARTS {
            return Err(Fault::memory(MemoryError::Share));
        }
        Ok(())
    }

    /// The promised frames that are not used yet, and the common frames, used or not.
    fn split(&self, used: &Used, free: usize) -> (usize, usize) {
        let all = free.saturating_add(used.frames);
        let places = self.groups.max(used.domains).min(all / 2 / GUARANTEE);
        let unclaimed = places.saturating_sub(used.domains) * GUARANTEE;
        (used.short + unclaimed, all - places * GUARANTEE)
    }

    fn used(&self, account: Option<u32>) -> Used {
        let mut used = Used::default();
        for table in self.tables.iter().flatten() {
            let Payer::Account(payer) = table.payer else { continue };
            used.frames += table.frames;
            used.domains += 1;
            if Some(payer) == account {
                used.own_frames += table.frames;
                used.own_domains += 1;
            } else {
                used.short += GUARANTEE.saturating_sub(table.frames);
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
