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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::{PhysAddr, PhysRange};

    #[test]
    fn only_the_return_of_the_same_memory_is_forgotten() {
        let range = |first| PhysRange::new(PhysAddr(first), 0x1000).unwrap();
        let [first, second, third] = [0x1000, 0x2000, 0x3000].map(range);
        let mut endings = Endings::default();
        let returned = [first, second].map(Event::MemoryReturned);
        endings.queued.extend([Event::MemoryTaken(first), Event::Shutdown]);
        assert!(!endings.forget(&returned[0]), "it was not queued");
        endings.queued.extend(returned.clone());
        assert!(!endings.forget(&Event::MemoryReturned(third)));
        assert!(!endings.forget(&Event::MemoryTaken(first)) && !endings.forget(&Event::Shutdown));
        assert_eq!(endings.queued.len(), 4);
        assert!(endings.forget(&returned[0]));
        assert!(!endings.forget(&returned[0]), "once");
        let left = |event: &Event| matches!(event, Event::MemoryReturned(r) if *r == second);
        assert_eq!((endings.queued.len(), endings.queued.back().map(left)), (3, Some(true)));
    }
}
