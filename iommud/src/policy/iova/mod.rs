//! The free I/O virtual addresses of a domain.
//!
//! A tree with the geometry of the page tables. A part has a node only while some but not all of it is free. Each
//! node has a bit for each of its 512 slots (`node`):
//!
//! ```text
//! level 2   512 slots of 1 GiB     one node, always there
//! level 1   512 slots of 2 MiB     always there below 4 GiB, else for a slot that is partly free
//! level 0   512 slots of 4 KiB     for a slot that is partly free
//! ```
//!
//! An allocation of n pages takes the first n of a free block of 2^k >= n pages, aligned to its size. The rest of the
//! block stays free. So every range is aligned to its length, rounded up to a power of two. That allows superpages,
//! and the range crosses no boundary that the length allows. Nodes are listed by a bound of their largest free block.
//! A search takes a node with the lowest bound that is high enough. When it finds less, it corrects the bound, which
//! earlier allocations left too high. So the number of ranges does not matter in the long run. Freed short ranges are
//! kept by length (`range_cache`) and reused first. Where alignment leaves no room below 4 GiB for a range longer
//! than 2 MiB, the 2048 slots of 2 MiB are searched for any run.

mod geometry;
mod node;
mod range_cache;
mod reuse;
#[cfg(test)]
mod tests;
mod tree;

use alloc::vec::Vec;

use crate::addr::{Iova, IovaRange, PAGE_SIZE};
use crate::policy::collections::ranges::Ranges;
use geometry::{LOW_SLOTS, Lists, PAGES_1G, Page, ROOT, SPACE_PAGES, Zone, level_shift};
pub use geometry::{SPACE_BITS, Wanted};
use node::{NONE, Node, SLOTS, TOP, child};
use range_cache::Shelf;

/// The free addresses of a domain, from 0 to 2^39.
#[derive(Clone)]
pub struct Space {
    nodes: Vec<Vec<Node>>,
    free_nodes: Vec<u32>,
    count: u32,
    /// By zone, then level 0 and 1.
    lists: [[Lists; 2]; 2],
    /// A node of level 0 that became empty and is kept for the next allocation.
    idle: Option<u32>,
    /// Ranges that are free, but not in the nodes.
    shelf: Shelf,
}

impl Default for Space {
    fn default() -> Self {
        Self::new()
    }
}

impl Space {
    /// A space where every address is free.
    #[must_use]
    pub fn new() -> Self {
        let none = Lists { heads: [NONE; 10], orders: 0 };
        let mut space = Self {
            nodes: Vec::new(),
            free_nodes: Vec::new(),
            count: 0,
            lists: [[none.clone(), none.clone()], [none.clone(), none]],
            idle: None,
            shelf: Shelf::default(),
        };
        space.add(Node::empty(0, true));
        if let Some(root) = space.node_mut(ROOT) {
            root.occupy(0, LOW_SLOTS);
        }
        // The lowest is listed last, so that it comes first.
        for slot in (0..LOW_SLOTS).rev() {
            space.new_node(1, slot, true);
        }
        space
    }

    /// Number of parts, of 2 MiB or more, that are partly free. It measures the page tables that the ranges need.
    /// Ranges freed lately may count until [`Space::tidy`].
    #[must_use]
    #[inline]
    pub const fn fragments(&self) -> u32 {
        self.count - 1 - LOW_SLOTS
    }

    /// Takes a free range; `None` when none meets the requirements.
    #[inline]
    pub fn allocate(&mut self, wanted: Wanted) -> Option<IovaRange> {
        self.allocate_again(wanted).or_else(|| self.allocate_anew(wanted))
    }

    #[inline(never)]
    fn allocate_anew(&mut self, wanted: Wanted) -> Option<IovaRange> {
        let pages = Page::try_from(wanted.length / PAGE_SIZE).ok().filter(|pages| *pages > 0)?;
        let alignment = Page::try_from(wanted.alignment / PAGE_SIZE).ok()?.max(1);
        let order = pages.checked_next_power_of_two()?.max(alignment).ilog2();
        let high = if wanted.above_4g { self.take_in(Zone::High, pages, order) } else { None };
        let first = high
            .or_else(|| self.take_in(Zone::Low, pages, order))
            .or_else(|| self.take_run(pages, alignment, wanted.boundary))?;
        IovaRange::new(Iova(u64::from(first) * PAGE_SIZE), wanted.length)
    }

    /// Takes exactly this range, of whole pages. False when it is not all free, or not all in the space.
    pub fn allocate_at(&mut self, range: IovaRange) -> bool {
        let Some((first, count)) = pages_of(range) else { return false };
        if let Some((at, slot)) = self.node_of(first, count)
            && let Some(node) = self.node_mut(at)
            && node.is_free(slot, count)
        {
            node.occupy(slot, count);
            return true;
        }
        self.settle();
        if !self.is_free(first, count) {
            if self.shelf.is_empty() {
                return false;
            }
            self.tidy();
            self.settle();
            if !self.is_free(first, count) {
                return false;
            }
        }
        self.occupy(first, count);
        true
    }

    /// Frees a range that was taken, or a part of one, of whole pages.
    #[inline]
    pub fn free(&mut self, range: IovaRange) {
        let Some((first, count)) = pages_of(range) else { return };
        if self.shelf.put(first, count) {
            return;
        }
        match self.node_of(first, count) {
            Some((at, slot)) => self.vacate_slots(0, at, (slot, count)),
            None => self.vacate(first, count),
        }
    }

    /// The node of level 0 in which a range lies, and the first slot there. `None` when there is no such node, or
    /// when it is the one kept empty.
    fn node_of(&self, first: Page, count: Page) -> Option<(u32, u32)> {
        let slot = first % SLOTS;
        if count > SLOTS - slot {
            return None;
        }
        let at = self.find(0, first).filter(|at| self.idle != Some(*at))?;
        Some((at, slot))
    }

    /// The free ranges, lowest first.
    pub fn free_ranges(&self) -> Vec<IovaRange> {
        let mut found: Vec<IovaRange> = Vec::new();
        let mut add = |first: u64, count: u64| {
            let start = Iova(first * PAGE_SIZE);
            let merged = match found.last() {
                Some(last) if last.last().checked_add(1) == Some(start) => {
                    let whole = last.length() + count * PAGE_SIZE;
                    let first = last.first();
                    found.pop();
                    IovaRange::new(first, whole)
                }
                _ => IovaRange::new(start, count * PAGE_SIZE),
            };
            found.extend(merged);
        };
        let mut tidied = self.clone();
        tidied.tidy();
        tidied.visit(2, ROOT, &mut add);
        found
    }

    fn visit(&self, level: usize, node: u32, add: &mut dyn FnMut(u64, u64)) {
        let Some(of) = self.node(node) else { return };
        for slot in 0..SLOTS {
            let first = u64::from(of.position * SLOTS + slot) << level_shift(level);
            if of.is_slot_free(slot) {
                add(first, 1 << level_shift(level));
            } else if let Some(child) = child(of, slot) {
                self.visit(level - 1, child, add);
            }
        }
    }

    /// Takes a free block of `2^order` pages, aligned to its size.
    fn take(&mut self, zone: Zone, order: u32) -> Option<Page> {
        if order >= TOP {
            self.settle();
        }
        match order {
            0..TOP => self.take_from(zone, 0, order).or_else(|| {
                let first = self.take(zone, TOP)?;
                let at = self.find_or_make(0, first);
                // The slot was taken, so its node begins without a free page.
                let node = self.node_mut(at)?;
                node.vacate(0, SLOTS);
                node.occupy(0, 1 << order);
                self.list_under(0, at, Some(TOP - 1));
                Some(first)
            }),
            TOP..18 => self.take_from(zone, 1, order - TOP).or_else(|| {
                if zone == Zone::Low {
                    return None;
                }
                let first = self.take(zone, 18)?;
                let at = self.find_or_make(1, first);
                let node = self.node_mut(at)?;
                node.vacate(0, SLOTS);
                node.occupy(0, 1 << (order - TOP));
                self.list_under(1, at, Some(TOP - 1));
                Some(first)
            }),
            _ if zone == Zone::High => {
                let slot = self.node_mut(ROOT)?.take(order.checked_sub(18)?)?;
                Some(slot * PAGES_1G)
            }
            _ => None,
        }
    }

    /// Takes a block of `2^order` slots from a node of `level` (0 or 1) with the lowest bound possible. A node whose
    /// bound was too high is listed anew. That happens at most once for each time that its slots were taken.
    fn take_from(&mut self, zone: Zone, level: usize, order: u32) -> Option<Page> {
        loop {
            let lists = self.lists.get(usize::from(zone == Zone::High))?.get(level)?;
            let bound = order + (u32::from(lists.orders) >> order).trailing_zeros();
            let at = *lists.heads.get(bound as usize)?;
            let node = self.node_mut(at)?;
            if let Some(slot) = node.take(order) {
                let first = (node.position * SLOTS + slot) << level_shift(level);
                if self.idle == Some(at) {
                    self.idle = None;
                }
                return Some(first);
            }
            self.lower(level, at, order);
        }
    }

    /// Takes the first run of whole slots of 2 MiB below 4 GiB that holds `pages` and meets the other requirements.
    fn take_run(&mut self, pages: Page, alignment: Page, boundary: u64) -> Option<Page> {
        if pages <= SLOTS {
            return None;
        }
        let needed = pages.div_ceil(SLOTS);
        let step = (alignment / SLOTS).max(1);
        // Number of slots between two addresses that may not be crossed.
        let end = LOW_SLOTS * SLOTS;
        let limit = match boundary / (PAGE_SIZE * u64::from(SLOTS)) {
            0 => end,
            slots => u32::try_from(slots).map_or(end, |slots| slots.min(end)),
        };
        let mut start = 0;
        let mut at = 0;
        while start + needed <= end {
            let crossed = (start / limit + 1) * limit;
            if start + needed > crossed {
                start = crossed.next_multiple_of(step);
                at = start;
            } else if at == start + needed {
                let first = start * SLOTS;
                self.occupy(first, pages);
                return Some(first);
            } else if self.is_block_free(at) {
                at += 1;
            } else {
                start = (at + 1).next_multiple_of(step);
                at = start;
            }
        }
        None
    }

    /// Whether a slot of 2 MiB is free, counted from 0.
    fn is_block_free(&self, block: u32) -> bool {
        self.find(1, block * SLOTS)
            .and_then(|at| self.node(at))
            .is_some_and(|node| node.is_slot_free(block % SLOTS))
    }

    fn is_free(&self, first: Page, count: Page) -> bool {
        parts(first, count).all(|part| {
            let at = match part.level {
                2 => Some(ROOT),
                level => self.find(level, part.page),
            };
            match at.and_then(|at| self.node(at)) {
                Some(node) => node.is_free(part.slot, part.count),
                // Without a node, the slot above is free or taken as a whole.
                None => {
                    let upper = self.find(1, part.page);
                    match (part.level, upper) {
                        (0, Some(upper)) => self
                            .node(upper)
                            .is_some_and(|node| node.is_slot_free(part.page / SLOTS % SLOTS)),
                        _ => self
                            .node(ROOT)
                            .is_some_and(|root| root.is_slot_free(part.page / PAGES_1G)),
                    }
                }
            }
        })
    }

    /// Takes pages that are free. There must be no idle node.
    fn occupy(&mut self, first: Page, count: Page) {
        for part in parts(first, count) {
            let at = if part.level == 2 { ROOT } else { self.find_or_make(part.level, part.page) };
            if let Some(node) = self.node_mut(at) {
                node.occupy(part.slot, part.count);
            }
        }
    }

    /// Frees pages that are not free.
    fn vacate(&mut self, first: Page, count: Page) {
        for part in parts(first, count) {
            let at = if part.level == 2 { ROOT } else { self.find_or_make(part.level, part.page) };
            self.vacate_slots(part.level, at, (part.slot, part.count));
        }
    }

    fn vacate_slots(&mut self, level: usize, at: u32, (slot, count): (u32, u32)) {
        let Some(node) = self.node_mut(at) else { return };
        node.vacate(slot, count);
        let empty = node.is_empty();
        self.raise(level, at, (slot, count));
        if empty && level == 0 {
            self.settle();
            self.idle = Some(at);
        } else if empty && level == 1 {
            self.dissolve(1, at);
        }
    }
}

impl core::fmt::Debug for Space {
    /// Shows the free ranges: all state that is visible from outside.
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_list().entries(self.free_ranges()).finish()
    }
}

impl PartialEq for Space {
    /// Equal when the same addresses are free.
    fn eq(&self, other: &Self) -> bool {
        self.free_ranges() == other.free_ranges()
    }
}

/// The parts of a set that a space can hand out.
pub(in crate::policy) fn in_space(set: &Ranges) -> impl Iterator<Item = IovaRange> {
    set.within(0, (1 << SPACE_BITS) - 1)
        .filter_map(|(first, last)| IovaRange::inclusive(Iova(first), Iova(last)))
}

fn pages_of(range: IovaRange) -> Option<(Page, Page)> {
    let first = range.first().0 / PAGE_SIZE;
    let count = range.length() / PAGE_SIZE;
    if count == 0 || first.checked_add(count)? > SPACE_PAGES {
        return None;
    }
    Some((Page::try_from(first).ok()?, Page::try_from(count).ok()?))
}

/// Slots of one node.
struct Part {
    level: usize,
    page: Page,
    slot: u32,
    count: u32,
}

/// Splits a run of pages into the largest whole slots, node by node.
fn parts(mut first: Page, mut count: Page) -> impl Iterator<Item = Part> {
    core::iter::from_fn(move || {
        if count == 0 {
            return None;
        }
        let is_high = first >= LOW_SLOTS * PAGES_1G;
        let level = if is_high && first.is_multiple_of(PAGES_1G) && count >= PAGES_1G {
            2
        } else {
            usize::from(first.is_multiple_of(SLOTS) && count >= SLOTS)
        };
        let size = 1 << level_shift(level);
        let slot = first / size % SLOTS;
        let slots = (count / size).min(SLOTS - slot);
        let part = Part { level, page: first, slot, count: slots };
        first += slots * size;
        count -= slots * size;
        Some(part)
    })
}
