//! One node of a space: 512 slots of one size, each of them free or not.
//!
//! A block is 2^order slots, aligned to its size. All searches are for a free block. They look at the bits of the
//! slots, 64 at a time.

use alloc::boxed::Box;

/// Slots of a node, 2^9.
pub(super) const SLOTS: u32 = 512;
/// The order of a block of all slots.
pub(super) const TOP: u32 = 9;
/// No node.
pub(super) const NONE: u32 = u32::MAX;

/// The bits of a word at which blocks of each order up to 5 begin.
const STARTS: [u64; 6] = [
    !0,
    0x5555_5555_5555_5555,
    0x1111_1111_1111_1111,
    0x0101_0101_0101_0101,
    0x0001_0001_0001_0001,
    0x0000_0001_0000_0001,
];

/// The order of a block of one word.
const WORD: u32 = 6;

/// The place of a node among those with the same bound.
#[derive(Clone, Copy, Debug)]
pub(super) struct Links {
    pub(super) previous: u32,
    pub(super) next: u32,
    /// No free block has a higher order; `None` when no slot is free. The node is listed under this order. Taking
    /// slots does not change it; a search that finds less corrects it.
    pub(super) bound: Option<u32>,
}

#[derive(Clone, Debug)]
pub(super) struct Node {
    /// A bit for each slot, set when it is free.
    free: [u64; 8],
    /// Its number among the nodes of its level: its first page, shifted.
    pub(super) position: u32,
    pub(super) links: Links,
    /// Child nodes of slots that are partly free.
    pub(super) children: Option<Box<[u32; 512]>>,
}

/// The bits of a run of slots in the words that it touches.
#[inline]
fn masks(first: u32, count: u32) -> impl Iterator<Item = (usize, u64)> {
    let (mut at, end) = (first, first + count);
    core::iter::from_fn(move || {
        let left = end.checked_sub(at).filter(|left| *left > 0)?;
        let (word, bit) = (at / 64, at % 64);
        let bits = left.min(64 - bit);
        at += bits;
        Some((word as usize, (u64::MAX >> (64 - bits)) << bit))
    })
}

/// The bits of a word at which free blocks of an order up to 5 begin.
fn blocks(word: u64, order: u32) -> u64 {
    let mut found = word;
    for doubling in 0..order {
        found &= found >> (1 << doubling);
    }
    found & STARTS.get(order as usize).copied().unwrap_or(0)
}

impl Node {
    /// A node without a free slot.
    pub(super) fn full(position: u32, has_children: bool) -> Self {
        Self {
            free: [0; 8],
            position,
            links: Links { previous: NONE, next: NONE, bound: None },
            children: has_children.then(|| Box::new([NONE; 512])),
        }
    }

    /// A node whose slots are all free.
    pub(super) fn empty(position: u32, has_children: bool) -> Self {
        Self { free: [u64::MAX; 8], ..Self::full(position, has_children) }
    }

    /// The first free block of an order.
    fn first(&self, order: u32) -> Option<u32> {
        if order < WORD {
            let found = self.free.iter().map(|word| blocks(*word, order));
            let (at, block) = (0..).zip(found).find(|(_, found)| *found != 0)?;
            return Some(at * 64 + block.trailing_zeros());
        }
        let words = 1_usize << (order - WORD).min(3);
        let all = |words: &[u64]| words.iter().all(|word| *word == u64::MAX);
        let at = self.free.chunks_exact(words).position(all)?;
        u32::try_from(at * words * 64).ok()
    }

    /// The order of the largest free block of those below `order`.
    pub(super) fn largest_below(&self, order: u32) -> Option<u32> {
        (0..order).rev().find(|order| self.first(*order).is_some())
    }

    /// The order of the largest free block around this slot, which is free.
    pub(super) fn around(&self, slot: u32) -> u32 {
        let is_block = |order: &u32| self.is_free(slot >> order << order, 1 << order);
        (1..=TOP).take_while(is_block).last().unwrap_or(0)
    }

    /// Whether every slot is free.
    pub(super) fn is_empty(&self) -> bool {
        self.free == [u64::MAX; 8]
    }

    /// Takes the first free block of an order; returns its first slot.
    pub(super) fn take(&mut self, order: u32) -> Option<u32> {
        let first = self.first(order)?;
        self.occupy(first, 1 << order);
        Some(first)
    }

    /// Whether all of these slots are free.
    #[inline]
    pub(super) fn is_free(&self, first: u32, count: u32) -> bool {
        let is_set =
            |(at, mask): (usize, u64)| self.free.get(at).is_some_and(|word| word & mask == mask);
        masks(first, count).all(is_set)
    }

    /// Whether this slot is free.
    pub(super) fn is_slot_free(&self, slot: u32) -> bool {
        self.is_free(slot, 1)
    }

    /// Takes these slots, which are free.
    #[inline]
    pub(super) fn occupy(&mut self, first: u32, count: u32) {
        for (at, mask) in masks(first, count) {
            if let Some(word) = self.free.get_mut(at) {
                *word &= !mask;
            }
        }
    }

    /// Frees these slots, which are not free.
    #[inline]
    pub(super) fn vacate(&mut self, first: u32, count: u32) {
        for (at, mask) in masks(first, count) {
            if let Some(word) = self.free.get_mut(at) {
                *word |= mask;
            }
        }
    }
}

/// The child node of a slot.
pub(super) fn child(node: &Node, slot: u32) -> Option<u32> {
    let child = *node.children.as_ref()?.get(slot as usize)?;
    (child != NONE).then_some(child)
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    /// The model: looks at each slot.
    fn is_block(slots: &[bool], order: u32, at: usize) -> bool {
        let size = 1_usize << order;
        at.is_multiple_of(size) && slots[at..at + size].iter().all(|free| *free)
    }

    proptest! {
        #[test]
        fn blocks_are_what_slots_say(taken in proptest::collection::vec((0_u32..512, 1_u32..80), 0..12)) {
            let mut node = Node::empty(0, false);
            let mut slots = Vec::from([true; 512]);
            for (first, count) in taken {
                let count = count.min(512 - first);
                let all = slots[first as usize..(first + count) as usize].iter().all(|free| *free);
                prop_assert_eq!(node.is_free(first, count), all);
                node.occupy(first, count);
                slots[first as usize..(first + count) as usize].fill(false);
            }
            for order in 0..=TOP {
                let first = (0..512).find(|at| is_block(&slots, order, *at));
                prop_assert_eq!(node.first(order).map(|at| at as usize), first, "order {}", order);
            }
            for slot in (0..512_u32).filter(|slot| slots[*slot as usize]) {
                let order = node.around(slot);
                let block = |order: u32| is_block(&slots, order, (slot >> order << order) as usize);
                prop_assert!(block(order) && (order == TOP || !block(order + 1)));
            }
            let largest = (0..=TOP).rev().find(|order| (0..512).any(|at| is_block(&slots, *order, at)));
            prop_assert_eq!((node.largest_below(TOP + 1), node.is_empty()), (largest, slots.iter().all(|free| *free)));
        }
    }
}
