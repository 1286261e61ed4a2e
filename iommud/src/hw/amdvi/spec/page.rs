//! Page tables of version 1 (48882 section 2.2.3, "I/O Page Tables for Host Translations").

use super::ADDRESS_BITS;
use crate::hw::fields::{bits, byte};

/// PR: present.
pub(crate) const PRESENT: u64 = 1 << 0;
/// FC: the device's accesses snoop caches, whatever the device asks for. Leaves only.
pub(crate) const FORCE_COHERENT: u64 = 1 << 60;
/// IR: reading allowed. Permissions of all levels are ANDed.
pub(crate) const READ: u64 = 1 << 61;
/// IW: writing allowed.
pub(crate) const WRITE: u64 = 1 << 62;

/// Next Level of a leaf of the size that its table's level has. (1 to 6 are links to a table of that level.)
pub(crate) const LEAF: u8 = 0;

/// Next Level of a leaf whose size is encoded in its address: the lowest clear bit from bit 12 on, bit n, says
/// 2^(n+1) bytes. All entries that the page takes are the same.
pub(crate) const SIZED_LEAF: u8 = 7;

/// The address field of a leaf of 2^`bits` bytes (13 and up) at `address`, a multiple of that.
pub(crate) const fn sized(address: u64, bits: u32) -> u64 {
    address | ((1 << (bits - 1)) - (1 << 12))
}

/// The size of a leaf whose size is encoded, as a power of two of bytes, and its first byte.
pub(crate) const fn size_of(entry: u64) -> (u32, u64) {
    let bits = (address(entry) | 0xfff).trailing_ones() + 1;
    (bits, address(entry) & !((1 << bits) - 1))
}

/// An entry that points to a table or page at `address`; `next` is the Next Level field, 0 to 7.
pub(crate) const fn entry(address: u64, next: u8, permissions: u64) -> u64 {
    address & ADDRESS_BITS | (next as u64 & 7) << 9 | permissions | PRESENT
}

/// The Next Level field.
pub(crate) const fn next_level(entry: u64) -> u8 {
    byte(bits(entry, 9, 3), 0)
}

/// The address field.
pub(crate) const fn address(entry: u64) -> u64 {
    entry & ADDRESS_BITS
}
