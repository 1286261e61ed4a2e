//! One node of a space: the buddy system over 512 slots of one size.
//!
//! Bit `(order, index)` says that the `2^order` slots from `index * 2^order` on are free as one block, and that
//! the block is not part of a larger free one. The bits are a function of the set of free slots alone.
//!
//! ```text
//! order   0        1        2        3        4        5         6          7          8          9
//! blocks  512      256      128      64       32       16        8          4          2          1
//! bits    0..512   ..768    ..896    ..960    ..992    ..1008    ..1016     ..1020     ..1022     1022
//! ```

use alloc::boxed::Box;

/// Slots of a node, 2^9.
pub(super) const SLOTS: u32 = 512;
/// The order of a block of all slots.
pub(super) const TOP: u32 = 9;
/// No node.
pub(super) const NONE: u32 = u32::MAX;

/// Where a node stands among those with the same largest free block.
#[derive(Clone, Copy, Debug)]
pub(super) struct Links {
    pub(super) previous: u32,
    pub(super) next: u32,
    /// The largest free order it is listed under.
    pub(super) order: Option<u32>,
}

#[derive(Clone, Debug)]
pub(super) struct Node {
    bits: [u64; 16],
    counts: [u16; 10],
    /// Bit `order`: there is a free block of that order.
    orders: u16,
    /// Its number among the nodes of its level: the first page, shifted.
    pub(super) position: u32,
    pub(super) links: Links,
    /// Nodes in place of slots that are partly free.
    pub(super) children: Option<Box<[u32; 512]>>,
}

/// Position of a block's bit.
const fn bit(order: u32, index: u32) -> usize {
    (1024 - (1024 >> order) + index) as usize
}

impl Node {
    /// A node without a free slot.
    pub(super) fn full(position: u32, has_children: bool) -> Self {
        Self {
            bits: [0; 16],
            counts: [0; 10],
            orders: 0,
            position,
            links: Links { previous: NONE, next: NONE, order: None },
            children: has_children.then(|| Box::new([NONE; 512])),
        }
    }

    /// A node of free slots.
    pub(super) fn empty(position: u32, has_children: bool) -> Self {
        let mut node = Self::full(position, has_children);
        node.set(TOP, 0);
        node
    }

    /// The largest free order.
    pub(super) const fn largest(&self) -> Option<u32> {
        self.orders.checked_ilog2()
    }

    /// Whether every slot is free.
    pub(super) const fn is_empty(&self) -> bool {
        self.orders & 1 << TOP != 0
    }

    fn is_set(&self, order: u32, index: u32) -> bool {
        let at = bit(order, index);
        self.bits.get(at >> 6).is_some_and(|word| word >> (at & 63) & 1 != 0)
    }

    fn set(&mut self, order: u32, index: u32) {
        let at = bit(order, index);
        if let (Some(word), Some(count)) =
            (self.bits.get_mut(at >> 6), self.counts.get_mut(order as usize))
        {
            *word |= 1 << (at & 63);
            *count += 1;
            self.orders |= 1 << order;
        }
    }

    fn clear(&mut self, order: u32, index: u32) {
        let at = bit(order, index);
        if let (Some(word), Some(count)) =
            (self.bits.get_mut(at >> 6), self.counts.get_mut(order as usize))
        {
            *word &= !(1 << (at & 63));
            *count -= 1;
            if *count == 0 {
                self.orders &= !(1 << order);
            }
        }
    }

    /// The first free block of exactly this order.
    fn first(&self, order: u32) -> Option<u32> {
        let base = bit(order, 0);
        let end = base + (SLOTS as usize >> order);
        let mut at = base;
        while at < end {
            let word = self.bits.get(at >> 6)? >> (at & 63);
            if word != 0 {
                let found = at + word.trailing_zeros() as usize;
                return u32::try_from(found - base).ok().filter(|_| found < end);
            }
            at = (at | 63) + 1;
        }
        None
    }

    /// Takes the first block of the smallest order that holds `2^order` slots; returns its first slot. What
    /// is not needed stays free.
    pub(super) fn take(&mut self, order: u32) -> Option<u32> {
        let from = order + (u32::from(self.orders) >> order).trailing_zeros();
        if from > TOP {
            return None;
        }
        let mut index = self.first(from)?;
        self.clear(from, index);
        for lower in (order..from).rev() {
            index <<= 1;
            self.set(lower, index | 1);
        }
        Some(index << order)
    }

    /// The order of the free block that `2^order` slots at `index` lie in.
    fn around(&self, order: u32, index: u32) -> Option<u32> {
        let mut orders = u32::from(self.orders) >> order << order;
        while orders != 0 {
            let above = orders.trailing_zeros();
            if self.is_set(above, index >> (above - order)) {
                return Some(above);
            }
            orders &= orders - 1;
        }
        None
    }

    /// Whether all of these slots are free.
    pub(super) fn is_free(&self, first: u32, count: u32) -> bool {
        blocks(first, count).all(|(order, index)| self.around(order, index).is_some())
    }

    /// Whether this slot is free.
    pub(super) fn is_slot_free(&self, slot: u32) -> bool {
        self.around(0, slot).is_some()
    }

    /// Takes these slots, which are free.
    pub(super) fn occupy(&mut self, first: u32, count: u32) {
        for (order, index) in blocks(first, count) {
            self.occupy_block(order, index);
        }
    }

    /// Takes the block of `2^order` slots at `index`; false when it is not free.
    pub(super) fn occupy_block(&mut self, order: u32, index: u32) -> bool {
        let Some(from) = self.around(order, index) else { return false };
        self.clear(from, index >> (from - order));
        for lower in order..from {
            self.set(lower, index >> (lower - order) ^ 1);
        }
        true
    }

    /// Frees these slots, which are not free.
    pub(super) fn vacate(&mut self, first: u32, count: u32) {
        for (order, index) in blocks(first, count) {
            self.vacate_block(order, index);
        }
    }

    /// Frees the block of `2^order` slots at `index`, which are not free.
    pub(super) fn vacate_block(&mut self, mut order: u32, mut index: u32) {
        while order < TOP && self.is_set(order, index ^ 1) {
            self.clear(order, index ^ 1);
            order += 1;
            index >>= 1;
        }
        self.set(order, index);
    }
}

/// The node in place of a slot.
pub(super) fn child(node: &Node, slot: u32) -> Option<u32> {
    let child = *node.children.as_ref()?.get(slot as usize)?;
    (child != NONE).then_some(child)
}

/// The largest aligned blocks that make up a run of slots, as order and index.
fn blocks(mut first: u32, mut count: u32) -> impl Iterator<Item = (u32, u32)> {
    core::iter::from_fn(move || {
        let order = count.checked_ilog2()?.min(first.trailing_zeros()).min(TOP);
        let block = (order, first >> order);
        first += 1 << order;
        count -= 1 << order;
        Some(block)
    })
}
