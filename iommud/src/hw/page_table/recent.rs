//! Which tables of pages are remembered: the last one that was looked up, and one that is kept though it is empty.

use crate::addr::PhysAddr;

/// No region of 2 MiB.
pub(super) const NONE: u64 = u64::MAX;

/// Which table of pages stays linked when it is empty.
#[derive(Clone, Copy, Debug)]
pub(super) struct Idle {
    /// Its address over 2 MiB. Whether it is linked and empty, the tables say.
    pub(super) region: u64,
    /// Others that became empty since.
    pub(super) others: u8,
}

impl Idle {
    pub(super) const NOBODY: Self = Self { region: NONE, others: 0 };
}

/// Tables of pages that lie where the last one was looked up.
#[derive(Clone, Copy)]
pub(super) struct Recent {
    /// Address over 2 MiB.
    pub(super) region: u64,
    /// The table of pages.
    pub(super) table: PhysAddr,
    /// The table above it.
    pub(super) parent: PhysAddr,
}

impl Recent {
    /// None was looked up since tables changed.
    pub(super) const NOTHING: Self = Self { region: NONE, table: PhysAddr(0), parent: PhysAddr(0) };
}
