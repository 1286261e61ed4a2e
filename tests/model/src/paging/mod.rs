//! The common part of all vendors' units: page tables, walked through caches that evict nothing. A vendor defines the
//! meaning of an entry ([`Format`]).
//!
//! ```text
//! caches.rs   cached translations      walk.rs   from address to memory, filling the caches
//! reach.rs    all that a requester can reach, with and without cached translations
//! previous.rs tables of a previous owner, written word by word
//! ```

mod caches;
mod previous;
mod reach;
mod walk;

pub(crate) use caches::{Caches, Pages};
pub(crate) use previous::Frames;
pub(crate) use reach::{Listing, Start};
pub(crate) use walk::{load_table, look_up, read_table, translate};

/// A cached translation of one page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Leaf {
    /// Its first byte.
    pub(crate) physical: u64,
    pub(crate) read: bool,
    pub(crate) write: bool,
    /// Every access snoops caches, even one with the no-snoop attribute.
    pub(crate) snoops: bool,
}

/// A table below another, with the rights that the entries on the way to it grant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Upper {
    pub(crate) table: u64,
    /// Its level; entries of level 1 map 4 KiB.
    pub(crate) level: u8,
    pub(crate) read: bool,
    pub(crate) write: bool,
}

/// A decoded page table entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Slot {
    Absent,
    Reserved,
    Table(Upper),
    /// A page of 2^`bits` bytes, in as many equal entries as that size takes.
    Page {
        leaf: Leaf,
        bits: u32,
    },
}

/// Why an address is not translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    /// An entry on the way is absent.
    Absent,
    /// All entries are present, and one denies the access.
    Forbidden,
    /// An entry on the way has reserved bits set.
    Reserved,
    /// A table lies where there is no memory.
    Unreadable,
}

/// Page tables of a vendor's unit.
pub(crate) trait Format {
    /// Decodes an entry found at `level` (1: maps 4 KiB).
    fn decode(&self, entry: u64, level: u8) -> Slot;

    /// Whether absent entries are cached too.
    fn caches_absent(&self) -> bool;
}

/// Bytes that an entry at `level` covers, as a power of two.
#[must_use]
pub(crate) const fn shift(level: u8) -> u32 {
    12 + 9 * (level as u32 - 1)
}

/// Mask of the bits below `width`.
#[must_use]
pub const fn below(width: u32) -> u64 {
    if width >= 64 { u64::MAX } else { (1 << width) - 1 }
}
