//! Shares of table memory, in frames of 4096 bytes.
//!
//! ```text
//! free + clients' tables = promised + common       (what is kept for units that are not up is neither)
//! promised   GUARANTEE for each domain of a client, and for each group that nobody has claimed yet
//! common     the rest; a client may have a quarter of it on top of what it was promised
//! ```
//!
//! A client has what its own domains were promised, also when groups came later that there is nothing left for.
//! So no three clients together can make another one's claim or attach fail, nor its mappings within a quarter of
//! what is common. Ends of life are not charged: they take no frame, or what there is.
//!
//! Nothing is kept here that could get out of step: shares are added up from the tables when a plan took frames, which
//! is once for each table and not for each mapping.

use super::{Engine, Fault};
use crate::hw::{MemoryError, TableMemory, Unit, UnitError};
use crate::policy::{Charge, Payer};

/// Frames that each domain of a client is promised: a root, the tables of a few regions that firmware reserves, of a
/// second such domain of policy, and of the first mappings. 64 KiB.
pub const GUARANTEE: usize = 16;

/// Of what is common, one client may have one part in so many.
const PARTS: usize = 4;

/// How the frames are shared out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shares {
    /// Frames that nobody has.
    pub free: usize,
    /// Of them, those that are promised.
    pub promised: usize,
    /// The most that a client with one domain may have.
    pub of_one: usize,
}

/// The tables of clients, added up.
#[derive(Default)]
struct Used {
    frames: usize,
    domains: usize,
    /// What domains of other clients were promised and do not use.
    short: usize,
    own_frames: usize,
    own_domains: usize,
}

impl<U: Unit> Engine<U> {
    /// Says how many groups there are: each may be claimed, and is promised its share. More than what half of the
    /// memory can be promised to wait for their turn.
    pub const fn promise(&mut self, groups: usize) {
        self.groups = groups;
    }

    /// How frames are shared out now.
    #[must_use]
    pub fn shares(&self) -> Shares {
        let used = self.used(None);
        let free = self.memory.frames_free();
        let (promised, common) = self.split(&used, free);
        Shares { free, promised, of_one: GUARANTEE + common / PARTS }
    }

    /// Whether a plan may have taken frames, of which `before` were in use when it began.
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
        // What a client was promised it has, also when groups have come since that there is nothing left for.
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

    /// What is promised and not used yet, and what is common, used or not.
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
