//! What a unit remembers (VT-d 4.1 section 6.2). Nothing is ever evicted: what is not invalidated stays.

use super::walk::{Context, Fault};
use crate::machine::Map;

/// A cached context entry; with caching mode also one that could not be had.
#[derive(Clone, Copy, Debug)]
pub(super) struct CachedContext {
    pub(super) entry: Result<Context, Fault>,
    /// The domain id it is invalidated by: 0 for entries that are absent or faulty.
    pub(super) tag: u16,
}

/// A cached translation of one page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Leaf {
    pub(super) physical: u64,
    pub(super) read: bool,
    pub(super) write: bool,
}

/// A cached entry of a table above the leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Upper {
    pub(super) table: u64,
    pub(super) read: bool,
    pub(super) write: bool,
}

/// Domain id, level of the entry (1: maps 4 KiB), address above what the entry covers.
pub(super) type Key = (u16, u8, u64);

/// Bytes that an entry at `level` covers, as a power of two.
#[must_use]
pub(super) const fn shift(level: u8) -> u32 {
    12 + 9 * (level as u32 - 1)
}

/// All caches of a unit.
#[derive(Default)]
pub(super) struct Caches {
    pub(super) contexts: Map<u16, CachedContext>,
    pub(super) leaves: Map<Key, Leaf>,
    /// With caching mode: entries that were absent or faulty, with the reason other than permission.
    pub(super) absent: Map<Key, Option<u16>>,
    pub(super) uppers: Map<Key, Upper>,
}

/// What an IOTLB invalidation is to drop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pages {
    Global,
    Domain(u16),
    Selective { domain: u16, first: u64, last: u64, leaves_only: bool },
}

impl Caches {
    pub(super) fn drop_all_contexts(&mut self) {
        self.contexts.clear();
    }

    pub(super) fn drop_domain_contexts(&mut self, domain: u16) {
        self.contexts.retain(|_, cached| cached.tag != domain);
    }

    /// Drops entries of sources that are equal outside of `mask`, cached under `domain`.
    pub(super) fn drop_device_contexts(&mut self, domain: u16, source: u16, mask: u16) {
        self.contexts.retain(|of, cached| cached.tag != domain || (of ^ source) & !mask != 0);
    }

    pub(super) fn drop_pages(&mut self, pages: Pages) {
        let (domain, first, last, leaves_only) = match pages {
            Pages::Global => {
                self.leaves.clear();
                self.absent.clear();
                self.uppers.clear();
                return;
            }
            Pages::Domain(domain) => (domain, 0, u64::MAX, false),
            Pages::Selective { domain, first, last, leaves_only } => {
                (domain, first, last, leaves_only)
            }
        };
        let stays = |(of, level, page): &Key| {
            let start = page << shift(*level);
            let end = start | super::bits::below(shift(*level));
            *of != domain || end < first || start > last
        };
        self.leaves.retain(|key, _| stays(key));
        // An absent entry of an upper level is a paging-structure entry: IH leaves it in place.
        self.absent.retain(|key, _| stays(key) || leaves_only && key.1 > 1);
        if !leaves_only {
            self.uppers.retain(|key, _| stays(key));
        }
    }

    /// The cached translation of an address, whatever the page's size.
    pub(super) fn leaf(&self, domain: u16, iova: u64) -> Option<(u8, Leaf)> {
        (1..=3).find_map(|level| {
            let key = (domain, level, iova >> shift(level));
            self.leaves.get(&key).map(|leaf| (level, *leaf))
        })
    }

    /// Whether the address was found absent, and why.
    pub(super) fn absence(&self, domain: u16, iova: u64) -> Option<Option<u16>> {
        (1..=5).find_map(|level| {
            let key = (domain, level, iova >> shift(level));
            self.absent.get(&key).copied()
        })
    }

    /// The deepest cached table on the way to an address: its level and the entry that points to it.
    pub(super) fn deepest(&self, domain: u16, iova: u64, levels: u8) -> Option<(u8, Upper)> {
        (2..=levels).find_map(|level| {
            let key = (domain, level, iova >> shift(level));
            self.uppers.get(&key).map(|upper| (level - 1, *upper))
        })
    }
}
