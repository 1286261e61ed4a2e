//! Pages, levels and zones of a space.

use super::node::NONE;

/// Number of a page of 4096 bytes.
pub(super) type Page = u32;

/// Bits of the I/O virtual addresses that are handed out: the reach of the shallowest page table. The window of
/// HyperTransport, 0xfd00000000 to 0xffffffffff, lies beyond. AMD-Vi does not translate it.
pub const SPACE_BITS: u32 = 39;
pub(super) const SPACE_PAGES: u64 = 1 << (SPACE_BITS - 12);
/// Slots of level 2 below 4 GiB.
pub(super) const LOW_SLOTS: u32 = 4;
pub(super) const PAGES_1G: u32 = 1 << 18;
pub(super) const ROOT: u32 = 0;

/// The requirements of a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Length in bytes, a multiple of 4096, not 0.
    pub length: u64,
    /// Alignment of the first byte, a power of two; less than 4096 counts as 4096.
    pub alignment: u64,
    /// The range does not cross a multiple of this power of two, which is not below the length; 0 for no
    /// limit.
    pub boundary: u64,
    /// Addresses from 4 GiB on are tried first. Otherwise they are not handed out.
    pub above_4g: bool,
}

/// Below or above 4 GiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Zone {
    Low,
    High,
}

/// The nodes of one level in one zone, by largest free block.
#[derive(Clone, Debug)]
pub(super) struct Lists {
    pub(super) heads: [u32; 10],
    /// Bit `order`: that list is not empty.
    pub(super) orders: u16,
}

/// Number of nodes that are allocated together, so that growing never moves many.
pub(super) const CHUNK: usize = 16;

/// Logarithm of the number of pages in a slot of `level`.
pub(super) const fn level_shift(level: usize) -> u32 {
    match level {
        0 => 0,
        1 => 9,
        _ => 18,
    }
}

impl Lists {
    pub(super) fn set(&mut self, order: u32, head: u32) {
        if let Some(place) = self.heads.get_mut(order as usize) {
            *place = head;
        }
        if head == NONE {
            self.orders &= !(1 << order);
        } else {
            self.orders |= 1 << order;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_is_known_while_its_list_has_a_node() {
        let mut lists = Lists { heads: [NONE; 10], orders: 0 };
        for (order, head, orders) in [
            (3, 7, 0b1000),
            (0, 8, 0b1001),
            (9, 7, 0b10_0000_1001),
            (3, NONE, 0b10_0000_0001),
            (3, NONE, 0b10_0000_0001),
            (0, NONE, 0b10_0000_0000),
        ] {
            lists.set(order, head);
            assert_eq!((lists.orders, lists.heads[order as usize]), (orders, head));
        }
    }
}
