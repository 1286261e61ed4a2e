//! Runs of whole blocks, and the state of single pages.

use super::*;

impl Space {
    /// Takes the first run of whole slots of 2 MiB below 4 GiB that holds `pages` and satisfies the rest.
    pub(super) fn take_run(&mut self, pages: Page, alignment: Page, boundary: u64) -> Option<Page> {
        if pages <= SLOTS {
            return None;
        }
        let needed = pages.div_ceil(SLOTS);
        let step = (alignment / SLOTS).max(1);
        // Slots between two places that may not be crossed.
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
    pub(super) fn is_block_free(&self, block: u32) -> bool {
        self.find(1, block * SLOTS)
            .and_then(|at| self.node(at))
            .is_some_and(|node| node.is_slot_free(block % SLOTS))
    }

    pub(super) fn is_free(&self, first: Page, count: Page) -> bool {
        parts(first, count).all(|part| {
            let at = match part.level {
                2 => Some(ROOT),
                level => self.find(level, part.page),
            };
            match at.and_then(|at| self.node(at)) {
                Some(node) => node.is_free(part.slot, part.count),
                // No node: the slot above is free as a whole, or not at all.
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

    /// Takes pages that are free. No node is idle.
    pub(super) fn occupy(&mut self, first: Page, count: Page) {
        for part in parts(first, count) {
            let at = if part.level == 2 { ROOT } else { self.find_or_make(part.level, part.page) };
            if let Some(node) = self.node_mut(at) {
                node.occupy(part.slot, part.count);
            }
            self.relist(part.level, at);
        }
    }

    /// Frees pages that are not free.
    pub(super) fn vacate(&mut self, first: Page, count: Page) {
        for part in parts(first, count) {
            let at = if part.level == 2 { ROOT } else { self.find_or_make(part.level, part.page) };
            let Some(node) = self.node_mut(at) else { continue };
            node.vacate(part.slot, part.count);
            let empty = node.is_empty();
            self.relist(part.level, at);
            if empty && part.level == 0 {
                self.settle();
                self.idle = Some(at);
            } else if empty && part.level == 1 {
                self.dissolve(1, at);
            }
        }
    }

    /// Gives up the node that was kept.
    pub(super) fn settle(&mut self) {
        if let Some(at) = self.idle.take()
            && self.node(at).is_some_and(Node::is_empty)
        {
            self.dissolve(0, at);
        }
    }

    /// Makes an empty node a free slot of its parent again.
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
        self.relist(level, at);
        self.set_child(parent, position % SLOTS, NONE);
        if let Some(node) = self.node_mut(at) {
            node.children = None;
        }
        self.free_nodes.push(at);
        self.count -= 1;
        let Some(node) = self.node_mut(parent) else { return };
        node.vacate(position % SLOTS, 1);
        let empty = node.is_empty();
        self.relist(level + 1, parent);
        if empty && level == 0 {
            self.dissolve(1, parent);
        }
    }
}
