//! Ends of life that wait for memory.

use alloc::collections::VecDeque;

use crate::policy::Event;

/// Ends of life that were not carried out yet, oldest first.
#[derive(Clone, Default)]
pub(in crate::server) struct Endings {
    pub(super) queued: VecDeque<Event>,
}

impl Endings {
    /// Removes the return of this memory from the queue, because it is tried anew. Returns whether it was queued.
    pub(in crate::server) fn forget(&mut self, event: &Event) -> bool {
        let Event::MemoryReturned(range) = event else { return false };
        let before = self.queued.len();
        let same = |other: &Event| matches!(other, Event::MemoryReturned(r) if r == range);
        self.queued.retain(|other| !same(other));
        self.queued.len() < before
    }
}
