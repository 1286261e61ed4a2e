//! The nodes of a space: their storage, their lists, their creation and removal.

use alloc::vec::Vec;

use super::Space;
use super::geometry::{CHUNK, LOW_SLOTS, Lists, PAGES_1G, Page, ROOT};
use super::node::{Links, NONE, Node, SLOTS, TOP, child};

impl Space {
    pub(super) fn node(&self, at: u32) -> Option<&Node> {
        self.nodes.get(at as usize / CHUNK)?.get(at as usize % CHUNK)
    }

    pub(super) fn node_mut(&mut self, at: u32) -> Option<&mut Node> {
        self.nodes.get_mut(at as usize / CHUNK)?.get_mut(at as usize % CHUNK)
    }

    pub(super) fn add(&mut self, node: Node) -> u32 {
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

    /// Creates the node with this position in its level, with all slots free or none.
    pub(super) fn new_node(&mut self, level: usize, position: u32, empty: bool) -> u32 {
        let children = level > 0;
        let node =
            if empty { Node::empty(position, children) } else { Node::full(position, children) };
        let at = self.add(node);
        let parent = if level == 1 { Some(ROOT) } else { self.child_of_root(position / SLOTS) };
        if let Some(parent) = parent {
            self.set_child(parent, position % SLOTS, at);
        }
        self.list_under(level, at, empty.then_some(TOP));
        at
    }

    pub(super) fn set_child(&mut self, parent: u32, slot: u32, at: u32) {
        if let Some(children) = self.node_mut(parent).and_then(|node| node.children.as_mut())
            && let Some(place) = children.get_mut(slot as usize)
        {
            *place = at;
        }
    }

    pub(super) fn child_of_root(&self, slot: u32) -> Option<u32> {
        child(self.node(ROOT)?, slot)
    }

    /// The node of `level` (0 or 1) that holds a page, if it exists.
    pub(super) fn find(&self, level: usize, page: Page) -> Option<u32> {
        let upper = self.child_of_root(page / PAGES_1G)?;
        if level == 1 { Some(upper) } else { child(self.node(upper)?, page / SLOTS % SLOTS) }
    }

    /// The node of `level` that holds a page. It is created where the whole slot is free or taken.
    pub(super) fn find_or_make(&mut self, level: usize, page: Page) -> u32 {
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

    /// Puts a node in place of a slot of `parent`, which is a node of `level`.
    pub(super) fn split(&mut self, level: usize, parent: u32, slot: u32) -> u32 {
        let Some(node) = self.node_mut(parent) else { return NONE };
        let position = node.position * SLOTS + slot;
        let free = node.is_slot_free(slot);
        if free {
            node.occupy(slot, 1);
        }
        self.new_node(level - 1, position, free)
    }

    /// Lists a node without a free block of this order under the order of its largest one.
    pub(super) fn lower(&mut self, level: usize, at: u32, order: u32) {
        if let Some(largest) = self.node(at).map(|node| node.largest_below(order)) {
            self.list_under(level, at, largest);
        }
    }

    /// Lists a node of level 0 or 1 under the order of the largest block around slots that became free, if that is
    /// larger than its bound.
    pub(super) fn raise(&mut self, level: usize, at: u32, (first, count): (u32, u32)) {
        let Some(node) = self.node(at) else { return };
        // A block larger than the bound contains a block of the next order.
        let next = node.links.bound.map_or(0, |bound| bound + 1);
        let blocks = (first >> next..=(first + count - 1) >> next).map(|block| block << next);
        let free = |slot: &u32| next <= TOP && node.is_free(*slot, 1 << next);
        let larger = blocks.filter(free).map(|slot| node.around(slot)).max();
        if larger.is_some() {
            self.list_under(level, at, larger);
        }
    }

    /// Lists a node of level 0 or 1 under a bound.
    pub(super) fn list_under(&mut self, level: usize, at: u32, now: Option<u32>) {
        let Some(node) = self.node(at) else { return };
        let Links { previous, next, bound: before } = node.links;
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
            node.links = Links { previous: NONE, next: head, bound: now };
        }
    }

    pub(super) fn lists(&mut self, level: usize, position: u32) -> Option<&mut Lists> {
        let low = position < LOW_SLOTS * if level == 0 { SLOTS } else { 1 };
        self.lists.get_mut(usize::from(!low))?.get_mut(level)
    }

    /// Dissolves the node that was kept, if it is still empty.
    pub(super) fn settle(&mut self) {
        if let Some(at) = self.idle.take()
            && self.node(at).is_some_and(Node::is_empty)
        {
            self.dissolve(0, at);
        }
    }

    /// Turns an empty node into a free slot of its parent.
    pub(super) fn dissolve(&mut self, level: usize, at: u32) {
        let Some(position) = self.node(at).map(|node| node.position) else { return };
        if level == 1 && position < LOW_SLOTS {
            return;
        }
        let parent = if level == 1 { Some(ROOT) } else { self.child_of_root(position / SLOTS) };
        let Some(parent) = parent else { return };
        if let Some(node) = self.node_mut(at) {
            node.occupy(0, SLOTS);
        }
        self.list_under(level, at, None);
        self.set_child(parent, position % SLOTS, NONE);
        if let Some(node) = self.node_mut(at) {
            node.children = None;
        }
        self.free_nodes.push(at);
        self.count -= 1;
        let Some(node) = self.node_mut(parent) else { return };
        node.vacate(position % SLOTS, 1);
        let empty = node.is_empty();
        self.raise(level + 1, parent, (position % SLOTS, 1));
        if empty && level == 0 {
            self.dissolve(1, parent);
        }
    }

    /// Moves nodes to the lowest numbers and gives back the memory of the others. There must be no idle node.
    pub(super) fn compact(&mut self) {
        let mut free = core::mem::take(&mut self.free_nodes);
        free.sort_unstable();
        let end = u32::try_from(free.len()).map_or(NONE, |free| self.count.saturating_add(free));
        let (mut holes, live) = (free.iter(), self.count);
        for at in (live..end).filter(|at| free.binary_search(at).is_err()) {
            if let Some(hole) = holes.next() {
                self.move_node(at, *hole);
            }
        }
        let live = live as usize;
        self.nodes.truncate(live.div_ceil(CHUNK));
        self.nodes.shrink_to_fit();
        if let Some(last) = self.nodes.last_mut() {
            last.truncate(live - (live - 1) / CHUNK * CHUNK);
        }
    }

    /// Moves the node at `from`, which is not the root, to a free number.
    fn move_node(&mut self, from: u32, to: u32) {
        let Some(place) = self.node_mut(from) else { return };
        let node = core::mem::replace(place, Node::full(0, false));
        let (level, position) = (usize::from(node.children.is_some()), node.position);
        let Links { previous, next, bound } = node.links;
        if let Some(node) = self.node_mut(next) {
            node.links.previous = to;
        }
        if let Some(node) = self.node_mut(previous) {
            node.links.next = to;
        } else if let (Some(order), Some(lists)) = (bound, self.lists(level, position)) {
            lists.set(order, to);
        }
        let parent = if level == 1 { Some(ROOT) } else { self.child_of_root(position / SLOTS) };
        if let Some(parent) = parent {
            self.set_child(parent, position % SLOTS, to);
        }
        if let Some(place) = self.node_mut(to) {
            *place = node;
        }
    }
}
