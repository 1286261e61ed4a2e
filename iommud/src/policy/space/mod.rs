//! The free I/O virtual addresses of a domain.
//!
//! A tree with the geometry of the page tables, of which only the parts exist where some but not all is
//! free; each node is a buddy system over 512 slots ([`node`]):
//!
//! ```text
//! level 2   512 slots of 1 GiB     one node, always there
//! level 1   512 slots of 2 MiB     always there below 4 GiB, else for a slot that is partly free
//! level 0   512 slots of 4 KiB     for a slot that is partly free
//! ```
//!
//! An allocation of n pages takes the first n of a free block of 2^k >= n pages, aligned to its size; the rest
//! of the block stays free. So every range is aligned to its length, rounded up to a power of two, which
//! allows superpages and crosses no boundary that the length allows. Nodes are listed by their largest free
//! block, and the one with the smallest that is large enough is taken: no step depends on how many ranges
//! there are. Where alignment leaves no room below 4 GiB for something longer than 2 MiB, the 2048 slots
//! of 2 MiB are searched for any run.

mod node;
mod run;
#[cfg(test)]
mod tests;

use alloc::vec::Vec;

use crate::addr::{Iova, IovaRange, PAGE_SIZE};
use node::{Links, NONE, Node, SLOTS, TOP};

/// Number of the page, 4096 bytes each.
type Page = u32;

/// Bits of the I/O virtual addresses that are handed out: what the shallowest page table reaches.
pub const SPACE_BITS: u32 = 39;
const SPACE_PAGES: u64 = 1 << (SPACE_BITS - 12);
/// Slots of level 2 below 4 GiB.
const LOW_SLOTS: u32 = 4;
const PAGES_1G: u32 = 1 << 18;
const ROOT: u32 = 0;

/// What a range must satisfy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Length in bytes, a multiple of 4096, not 0.
    pub length: u64,
    /// Alignment of the first byte, a power of two; less than 4096 counts as 4096.
    pub alignment: u64,
    /// The range does not cross a multiple of this power of two, which is not below the length; 0 for no
    /// limit.
    pub boundary: u64,
    /// Addresses from 4 GiB on are tried first; else they are not handed out.
    pub above_4g: bool,
}

/// Below or above 4 GiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Zone {
    Low,
    High,
}

/// The nodes of one level in one zone, by largest free block.
#[derive(Clone, Debug)]
struct Lists {
    heads: [u32; 10],
    /// Bit `order`: that list is not empty.
    orders: u16,
}

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
}

/// Nodes that are allocated together, so that growing never moves many.
const CHUNK: usize = 16;

/// Logarithm of the pages that a slot of `level` has.
const fn level_shift(level: usize) -> u32 {
    match level {
        0 => 0,
        1 => 9,
        _ => 18,
    }
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
        };
        space.add(Node::empty(0, true));
        if let Some(root) = space.node_mut(ROOT) {
            root.occupy(0, LOW_SLOTS);
        }
        // The lowest is listed last, and so comes first.
        for slot in (0..LOW_SLOTS).rev() {
            space.new_node(1, slot, true);
        }
        space
    }

    /// Parts of the space of 2 MiB or more that are partly free: a measure of the page tables that its
    /// ranges need.
    #[must_use]
    pub const fn fragments(&self) -> u32 {
        self.count - 1 - LOW_SLOTS
    }

    /// Takes a range; `None` when no free one satisfies what is wanted.
    pub fn allocate(&mut self, wanted: Wanted) -> Option<IovaRange> {
        let pages = Page::try_from(wanted.length / PAGE_SIZE).ok().filter(|pages| *pages > 0)?;
        let alignment = Page::try_from(wanted.alignment / PAGE_SIZE).ok()?.max(1);
        let order = pages.checked_next_power_of_two()?.max(alignment).ilog2();
        let first = if wanted.above_4g { self.take(Zone::High, order) } else { None }
            .or_else(|| self.take(Zone::Low, order));
        let first = match first {
            Some(first) => {
                let block = 1 << order;
                if pages < block {
                    self.vacate(first + pages, block - pages);
                }
                first
            }
            None => self.take_run(pages, alignment, wanted.boundary)?,
        };
        IovaRange::new(Iova(u64::from(first) * PAGE_SIZE), wanted.length)
    }

    /// Takes exactly this range, of whole pages. False when it is not all free, or not all in the space.
    pub fn allocate_at(&mut self, range: IovaRange) -> bool {
        let Some((first, count)) = pages_of(range) else { return false };
        self.settle();
        if !self.is_free(first, count) {
            return false;
        }
        self.occupy(first, count);
        true
    }

    /// Gives back a range that was taken, or a part of one, of whole pages.
    pub fn free(&mut self, range: IovaRange) {
        if let Some((first, count)) = pages_of(range) {
            self.vacate(first, count);
        }
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
        self.visit(2, ROOT, &mut add);
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

    fn node(&self, at: u32) -> Option<&Node> {
        self.nodes.get(at as usize / CHUNK)?.get(at as usize % CHUNK)
    }

    fn node_mut(&mut self, at: u32) -> Option<&mut Node> {
        self.nodes.get_mut(at as usize / CHUNK)?.get_mut(at as usize % CHUNK)
    }

    fn add(&mut self, node: Node) -> u32 {
        self.count += 1;
        if let Some(at) = self.free_nodes.pop() {
            if let Some(place) = self.node_mut(at) {
                *place = node;
            }
            return at;
        }
        if self.nodes.last().is_none_or(|chunk| chunk.len() == CHUNK) {
            self.nodes.push(Vec::with_capacity(CHUNK));
        }
        let chunk = self.nodes.len() - 1;
        let within = self.nodes.last_mut().map_or(0, |last| {
            last.push(node);
            last.len() - 1
        });
        u32::try_from(chunk * CHUNK + within).unwrap_or(NONE)
    }

    /// A new node in place of the slot at `position` of its level's parent, free or not.
    fn new_node(&mut self, level: usize, position: u32, empty: bool) -> u32 {
        let children = level > 0;
        let node =
            if empty { Node::empty(position, children) } else { Node::full(position, children) };
        let at = self.add(node);
        let parent = if level == 1 { Some(ROOT) } else { self.child_of_root(position / SLOTS) };
        if let Some(parent) = parent {
            self.set_child(parent, position % SLOTS, at);
        }
        self.relist(level, at);
        at
    }

    fn set_child(&mut self, parent: u32, slot: u32, at: u32) {
        if let Some(children) = self.node_mut(parent).and_then(|node| node.children.as_mut())
            && let Some(place) = children.get_mut(slot as usize)
        {
            *place = at;
        }
    }

    fn child_of_root(&self, slot: u32) -> Option<u32> {
        child(self.node(ROOT)?, slot)
    }

    /// The node of `level` (0 or 1) that holds a page, if its parts exist.
    fn find(&self, level: usize, page: Page) -> Option<u32> {
        let upper = self.child_of_root(page / PAGES_1G)?;
        if level == 1 { Some(upper) } else { child(self.node(upper)?, page / SLOTS % SLOTS) }
    }

    /// The node of `level` that holds a page; made, where the whole slot is free or is not.
    fn find_or_make(&mut self, level: usize, page: Page) -> u32 {
        let slot = page / PAGES_1G;
        let upper = match self.child_of_root(slot) {
            Some(upper) => upper,
            None => self.split(2, ROOT, slot),
        };
        if level == 1 {
            return upper;
        }
        let slot = page / SLOTS % SLOTS;
        match self.node(upper).and_then(|node| child(node, slot)) {
            Some(lower) => lower,
            None => self.split(1, upper, slot),
        }
    }

    /// Puts a node in place of a slot of `parent`, which has `level`.
    fn split(&mut self, level: usize, parent: u32, slot: u32) -> u32 {
        let Some(node) = self.node_mut(parent) else { return NONE };
        let position = node.position * SLOTS + slot;
        let free = node.is_slot_free(slot);
        if free {
            node.occupy(slot, 1);
            self.relist(level, parent);
        }
        self.new_node(level - 1, position, free)
    }

    /// Lists a node of level 0 or 1 by its largest free block.
    fn relist(&mut self, level: usize, at: u32) {
        let Some(node) = self.node(at) else { return };
        let (now, Links { previous, next, order: before }) = (node.largest(), node.links);
        if level == 2 || now == before {
            return;
        }
        let position = node.position;
        if let Some(order) = before {
            if let Some(node) = self.node_mut(next) {
                node.links.previous = previous;
            }
            if let Some(node) = self.node_mut(previous) {
                node.links.next = next;
            } else if let Some(lists) = self.lists(level, position) {
                lists.set(order, next);
            }
        }
        let mut head = NONE;
        if let (Some(order), Some(lists)) = (now, self.lists(level, position)) {
            head = lists.heads.get(order as usize).copied().unwrap_or(NONE);
            lists.set(order, at);
        }
        if let Some(node) = self.node_mut(head) {
            node.links.previous = at;
        }
        if let Some(node) = self.node_mut(at) {
            node.links = Links { previous: NONE, next: head, order: now };
        }
    }

    fn lists(&mut self, level: usize, position: u32) -> Option<&mut Lists> {
        let low = position < LOW_SLOTS * if level == 0 { SLOTS } else { 1 };
        self.lists.get_mut(usize::from(!low))?.get_mut(level)
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
                // The slot was taken; its node begins without a free page, like any other's.
                let node = self.node_mut(at)?;
                node.vacate(0, SLOTS);
                let slot = node.take(order)?;
                self.relist(0, at);
                Some(first + slot)
            }),
            TOP..18 => self.take_from(zone, 1, order - TOP).or_else(|| {
                if zone == Zone::Low {
                    return None;
                }
                let first = self.take(zone, 18)?;
                let at = self.find_or_make(1, first);
                let node = self.node_mut(at)?;
                node.vacate(0, SLOTS);
                let slot = node.take(order - TOP)?;
                self.relist(1, at);
                Some(first + slot * SLOTS)
            }),
            _ if zone == Zone::High => {
                let slot = self.node_mut(ROOT)?.take(order.checked_sub(18)?)?;
                Some(slot * PAGES_1G)
            }
            _ => None,
        }
    }

    /// Takes a block of `2^order` slots from the node of `level` (0 or 1) that it fits best.
    fn take_from(&mut self, zone: Zone, level: usize, order: u32) -> Option<Page> {
        let lists = self.lists.get(usize::from(zone == Zone::High))?.get(level)?;
        let best = order + (u32::from(lists.orders) >> order).trailing_zeros();
        let at = *lists.heads.get(best as usize)?;
        let node = self.node_mut(at)?;
        let slot = node.take(order)?;
        let first = (node.position * SLOTS + slot) << level_shift(level);
        if self.idle == Some(at) {
            self.idle = None;
        }
        self.relist(level, at);
        Some(first)
    }
}

impl Lists {
    fn set(&mut self, order: u32, head: u32) {
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

impl core::fmt::Debug for Space {
    /// The free ranges: all there is to know from outside.
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

fn child(node: &Node, slot: u32) -> Option<u32> {
    let child = *node.children.as_ref()?.get(slot as usize)?;
    (child != NONE).then_some(child)
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

/// The largest whole slots that make up a run of pages, node by node.
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
