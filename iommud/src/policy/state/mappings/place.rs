//! The place of a mapping's record: its leaf, and the slot in it.

use crate::addr::{Iova, PAGE_SIZE};

/// No record, leaf or directory.
pub(super) const NONE: u32 = u32::MAX;
/// Bits of the number of a page.
pub(super) const PAGE_MASK: u32 = (1 << 27) - 1;

/// A leaf, and a slot in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) level: u8,
    /// Number of the leaf among those of its level.
    pub(super) leaf: u32,
    pub(super) slot: u32,
}

impl Place {
    #[inline]
    pub(super) fn new(page: u32, pages: u32) -> Self {
        let level = if pages < 512 || !page.is_multiple_of(512) {
            0
        } else if pages >= 1 << 18 && page.is_multiple_of(1 << 18) {
            2
        } else {
            1
        };
        let slot = page >> (9 * u32::from(level));
        Self { level, leaf: slot >> 9, slot: slot & 511 }
    }

    /// A place in no leaf.
    pub(super) const NOWHERE: Self = Self { level: u8::MAX, leaf: NONE, slot: 0 };

    /// The place of a mapping of this range, if there can be one.
    #[inline]
    pub(super) fn of(iova: Iova, length: u64) -> Option<Self> {
        let (page, pages) = (iova.0 / PAGE_SIZE, length / PAGE_SIZE);
        if page > u64::from(PAGE_MASK) || (iova.0 | length) & (PAGE_SIZE - 1) != 0 {
            return None;
        }
        Some(Self::new(u32::try_from(page).ok()?, u32::try_from(pages).ok()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_at_the_level_that_start_and_length_fill() {
        for (iova, length, level, leaf, slot) in [
            (0, 0x1000, 0, 0, 0),
            (0x1f_f000, 0x1000, 0, 0, 511),
            (0x20_0000, 0x1f_f000, 0, 1, 0),
            (0x20_0000, 0x20_0000, 1, 0, 1),
            (0x20_1000, 0x20_0000, 0, 1, 1),
            (0x4000_0000, 0x3fff_f000, 1, 1, 0),
            (0x4000_0000, 0x4000_0000, 2, 0, 1),
            (0x7f_ffff_f000, 0x1000, 0, 0x3_ffff, 511),
            (0x7f_ffe0_0000, 0x20_0000, 1, 511, 511),
            (0x7f_c000_0000, 0x4000_0000, 2, 0, 511),
        ] {
            let expected = Some(Place { level, leaf, slot });
            assert_eq!(Place::of(Iova(iova), length), expected, "{iova:#x} {length:#x}");
        }
        for (iova, length) in [
            (0x80_0000_0000, 0x1000),
            (0x800, 0x1000),
            (0x1000, 0x800),
            (0x1800, 0x1800),
            (0x1001, 0x2001),
            (0x1000, 0x1000_0000_0000),
        ] {
            assert_eq!(Place::of(Iova(iova), length), None, "{iova:#x} {length:#x}");
        }
    }
}
