//! The caches of page tables in a unit. Nothing is ever evicted: an item stays until it is invalidated.
//!
//! A page invalidation drops a translation only where its address mask covers the translation's whole range. A page
//! of 2 MiB takes a mask of at least 9 (VT-d 4.1 section 6.5.2.3, "Address Mask"), whatever part of it was unmapped.
//! QEMU's unit compares only the bits above the larger of the two masks. It drops more, but software may not rely on
//! it.

use super::{Leaf, Upper, Why, below};
use crate::machine::{Cached, Map};

/// A key: domain id, range of the entry as a power of two of bytes, address above that.
type Key = (u16, u32, u64);

/// The caches of page tables of a unit.
#[derive(Clone, Default)]
pub(crate) struct Caches {
    leaves: Map<Key, Leaf>,
    /// Cached absent or faulty entries, and which of the two they were.
    absent: Map<Key, Why>,
    uppers: Map<Key, Upper>,
    /// The powers of two in the keys of each map.
    sizes: Sizes,
}

/// Powers of two by kind, each kind a set of bits.
#[derive(Clone, Copy, Default)]
struct Sizes {
    leaves: u64,
    absent: u64,
    uppers: u64,
}

/// The scope of an invalidation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pages {
    Global,
    Domain(u16),
    Selective { domain: u16, first: u64, last: u64, leaves_only: bool },
}

const fn above(iova: u64, bits: u32) -> u64 {
    if bits >= 64 { 0 } else { iova >> bits }
}

const fn bit(bits: u32) -> u64 {
    if bits >= 64 { 0 } else { 1 << bits }
}

/// Iterates over the members of a set, lowest first.
fn ascending(mut set: u64) -> impl Iterator<Item = u32> {
    std::iter::from_fn(move || {
        let lowest = (set != 0).then(|| set.trailing_zeros());
        set &= set.wrapping_sub(1);
        lowest
    })
}

impl Caches {
    pub(crate) fn drop_pages(&mut self, pages: Pages) {
        let (domain, first, last, leaves_only) = match pages {
            Pages::Global => {
                *self = Self::default();
                return;
            }
            Pages::Domain(domain) => (domain, 0, u64::MAX, false),
            Pages::Selective { domain, first, last, leaves_only } => {
                (domain, first, last, leaves_only)
            }
        };
        let range = |(_, bits, page): &Key| {
            let start = page.checked_shl(*bits).unwrap_or(0);
            (start, start | below(*bits))
        };
        let stays = |key: &Key| {
            let (start, end) = range(key);
            key.0 != domain || end < first || start > last
        };
        self.leaves.retain(|key, _| {
            let (start, end) = range(key);
            key.0 != domain || start < first || end > last
        });
        // An absent entry of an upper level counts as one of the upper levels, which the invalidation may leave
        // cached.
        self.absent.retain(|key, _| stays(key) || leaves_only && key.1 > 12);
        if !leaves_only {
            self.uppers.retain(|key, _| stays(key));
        }
    }

    pub(super) fn keep_leaf(&mut self, domain: u16, bits: u32, iova: u64, leaf: Leaf) {
        self.sizes.leaves |= bit(bits);
        self.leaves.insert((domain, bits, above(iova, bits)), leaf);
    }

    pub(super) fn keep_absence(&mut self, domain: u16, bits: u32, iova: u64, why: Why) {
        self.sizes.absent |= bit(bits);
        self.absent.insert((domain, bits, above(iova, bits)), why);
    }

    pub(super) fn keep_upper(&mut self, domain: u16, bits: u32, iova: u64, upper: Upper) {
        self.sizes.uppers |= bit(bits);
        self.uppers.insert((domain, bits, above(iova, bits)), upper);
    }

    /// Returns the cached translation of an address, whatever the page's size.
    pub(crate) fn leaf(&self, domain: u16, iova: u64) -> Option<(u32, Leaf)> {
        ascending(self.sizes.leaves).find_map(|bits| {
            let key = (domain, bits, above(iova, bits));
            self.leaves.get(&key).map(|leaf| (bits, *leaf))
        })
    }

    /// Returns why the address was found absent, if that is cached.
    pub(super) fn absence(&self, domain: u16, iova: u64) -> Option<Why> {
        ascending(self.sizes.absent)
            .find_map(|bits| self.absent.get(&(domain, bits, above(iova, bits))).copied())
    }

    /// Returns the deepest cached table on the way to an address, by an entry that covers at most 2^`most` bytes.
    pub(super) fn deepest(&self, domain: u16, iova: u64, most: u32) -> Option<Upper> {
        ascending(self.sizes.uppers)
            .take_while(|bits| *bits <= most)
            .find_map(|bits| self.uppers.get(&(domain, bits, above(iova, bits))).copied())
    }

    /// Iterates over the cached tables of a domain, with the first address that each translates.
    pub(super) fn uppers(&self, domain: u16) -> impl Iterator<Item = (u64, Upper)> {
        let of = move |((_, bits, page), upper): (&Key, &Upper)| (page << bits, *upper);
        self.uppers.iter().filter(move |(key, _)| key.0 == domain).map(of)
    }

    /// Lists everything cached.
    pub(crate) fn list(&self) -> Vec<Cached> {
        let mut all = Vec::new();
        let pages = self.leaves.iter().map(|((domain, bits, page), leaf)| Cached::Page {
            domain: *domain,
            bits: *bits,
            page: *page,
            physical: leaf.physical,
        });
        all.extend(pages);
        let (absent, uppers) = (self.absent.keys(), self.uppers.keys());
        all.extend(absent.map(|&(domain, bits, page)| Cached::Absent { domain, bits, page }));
        all.extend(uppers.map(|&(domain, bits, page)| Cached::Table { domain, bits, page }));
        all
    }

    /// Iterates over the cached translations of a domain: first address, size as a power of two, page.
    pub(super) fn leaves(&self, domain: u16) -> impl Iterator<Item = (u64, u32, Leaf)> {
        let of = |((_, bits, page), leaf): (&Key, &Leaf)| {
            (page.checked_shl(*bits).unwrap_or(0), *bits, *leaf)
        };
        self.leaves.iter().filter(move |(key, _)| key.0 == domain).map(of)
    }
}
