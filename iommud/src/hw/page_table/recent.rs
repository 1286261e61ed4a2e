//! The tables of pages that are remembered: the last one that was looked up, and the one that is kept empty.

use crate::addr::PhysAddr;

/// No region of 2 MiB.
pub(super) const NONE: u64 = u64::MAX;

/// The table of pages that stays linked when it is empty.
#[derive(Clone, Copy, Debug)]
pub(super) struct Idle {
    /// Its address divided by 2 MiB. Only the tables themselves show whether it is linked and empty.
    pub(super) region: u64,
    /// Number of other tables that became empty since.
    pub(super) others: u8,
}

impl Idle {
    pub(super) const NOBODY: Self = Self { region: NONE, others: 0 };
}

/// The last table of pages that was looked up.
#[derive(Clone, Copy)]
pub(super) struct Recent {
    /// Its address divided by 2 MiB.
    pub(super) region: u64,
    /// The table of pages.
    pub(super) table: PhysAddr,
    /// The table above it.
    pub(super) parent: PhysAddr,
}

impl Recent {
    /// Nothing was looked up since tables changed.
    pub(super) const NOTHING: Self = Self { region: NONE, table: PhysAddr(0), parent: PhysAddr(0) };
}
