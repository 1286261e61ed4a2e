//! Addresses. Each kind is its own type; arithmetic on them is done here and never wraps.

use core::fmt;

/// Bytes of a page, the smallest unit of translation.
pub const PAGE_SIZE: u64 = 4096;

macro_rules! address {
    ($($(#[$doc:meta])* $name:ident, $range:ident, $prefix:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub u64);

        impl $name {
            /// The address `bytes` further on; `None` past the end of the address space.
            #[must_use]
            pub const fn checked_add(self, bytes: u64) -> Option<Self> {
                match self.0.checked_add(bytes) { Some(sum) => Some(Self(sum)), None => None }
            }

            /// Whether the address is a multiple of `alignment`, a power of two.
            #[must_use]
            pub const fn is_aligned(self, alignment: u64) -> bool {
                self.0 & alignment.wrapping_sub(1) == 0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, ":{:#x}"), self.0)
            }
        }

        #[doc = concat!("A non-empty range of [`", stringify!($name), "`], by its first and last byte.")]
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $range { first: u64, last: u64 }

        impl $range {
            /// The range of `length` bytes from `start`; `None` when empty or past the end of the
            /// address space.
            #[must_use]
            pub const fn new(start: $name, length: u64) -> Option<Self> {
                if length == 0 { return None; }
                match start.0.checked_add(length - 1) {
                    Some(last) => Some(Self { first: start.0, last }),
                    None => None,
                }
            }

            /// The range from `first` to `last`, both included; `None` when `last` is below `first`.
            #[must_use]
            pub const fn inclusive(first: $name, last: $name) -> Option<Self> {
                if last.0 < first.0 { None } else { Some(Self { first: first.0, last: last.0 }) }
            }

            /// First byte.
            #[must_use]
            pub const fn first(self) -> $name { $name(self.first) }

            /// Last byte (inclusive).
            #[must_use]
            pub const fn last(self) -> $name { $name(self.last) }

            /// Length in bytes; `u64::MAX` for the whole 64-bit space, whose length does not fit.
            #[must_use]
            pub const fn length(self) -> u64 { (self.last - self.first).saturating_add(1) }

            /// Whether the two ranges share a byte.
            #[must_use]
            pub const fn overlaps(self, other: Self) -> bool {
                self.first <= other.last && other.first <= self.last
            }

            /// Whether all of `other` lies in this range.
            #[must_use]
            pub const fn contains(self, other: Self) -> bool {
                self.first <= other.first && other.last <= self.last
            }

            /// The smallest range of whole pages around this one.
            #[must_use]
            pub const fn page_aligned(self) -> Self {
                Self { first: self.first & !(PAGE_SIZE - 1), last: self.last | (PAGE_SIZE - 1) }
            }
        }

        impl fmt::Debug for $range {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, ":{:#x}..={:#x}"), self.first, self.last)
            }
        }
    )*};
}

address! {
    /// An address of physical memory or of a memory-mapped register. Never shown to a client.
    PhysAddr, PhysRange, "phys";
    /// An I/O virtual address, as a device puts it on the bus.
    Iova, IovaRange, "iova";
}

impl PhysRange {
    /// The I/O virtual range with the same numbers, as in an identity mapping.
    #[must_use]
    pub const fn identity(self) -> IovaRange {
        IovaRange { first: self.first, last: self.last }
    }
}

impl IovaRange {
    /// The physical range with the same numbers, as in an identity mapping.
    #[must_use]
    pub const fn identity(self) -> PhysRange {
        PhysRange { first: self.first, last: self.last }
    }
}

/// The interrupt window: a write of a device to it is an interrupt, never translated and never mapped
/// (Intel SDM volume 3, "Message Address Register Format"; VT-d 4.1 section 3.14).
pub const INTERRUPT_WINDOW: IovaRange = IovaRange { first: 0xfee0_0000, last: 0xfeef_ffff };

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_never_wrap() {
        assert_eq!(IovaRange::new(Iova(0x1000), 0), None);
        assert_eq!(IovaRange::new(Iova(u64::MAX), 2), None);
        let last = IovaRange::new(Iova(u64::MAX), 1).unwrap();
        assert_eq!((last.first(), last.last(), last.length()), (Iova(u64::MAX), Iova(u64::MAX), 1));
        assert_eq!(Iova(u64::MAX).checked_add(1), None);
    }

    #[test]
    fn overlap_counts_shared_bytes_only() {
        let page = |n| IovaRange::new(Iova(n * PAGE_SIZE), PAGE_SIZE).unwrap();
        assert!(!page(1).overlaps(page(2)));
        assert!(page(1).overlaps(page(1)));
        let two = IovaRange::new(Iova(PAGE_SIZE), 2 * PAGE_SIZE).unwrap();
        assert!(two.contains(page(2)) && !page(2).contains(two) && !two.overlaps(page(3)));
    }

    #[test]
    fn page_alignment_grows_both_ends() {
        let odd = PhysRange::new(PhysAddr(0x1fff), 2).unwrap();
        assert_eq!(odd.page_aligned(), PhysRange::new(PhysAddr(0x1000), 0x2000).unwrap());
    }
}
