//! The memory that a device reaches now, and the memory that it reached lately.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

use iommu_protocol::fault::{FaultAccess, FaultRecord};
use iommu_protocol::wire::Access;

use super::report::{Bug, Place};

/// Windows that have ended and are remembered.
const ENDED: usize = 1024;

/// Bytes of a page.
const PAGE: u64 = 4096;

/// Why the device reaches memory, and until when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tenure {
    /// A buffer was allocated mapped. It ends with the buffer.
    Buffer,
    /// A transfer of a queue, which has a buffer of its own. It ends with the buffer if the queue is dropped.
    Queue,
    /// The driver mapped or granted it. The driver ends it before it drops the buffer.
    Driver,
}

/// Consecutive addresses at which a device reaches memory of one buffer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    /// The buffer's slot in the session.
    pub(crate) slot: u32,
    pub(crate) iova: u64,
    pub(crate) length: u64,
    pub(crate) access: Access,
    pub(crate) tenure: Tenure,
    pub(crate) granted: Place,
    /// The address of its first byte among the buffer's own addresses, which name the same memory in every window.
    /// `None` if its pages do not follow each other, or the buffer is of another session.
    pub(crate) home: Option<u64>,
}

impl Window {
    fn contains(&self, at: u64) -> bool {
        at >= self.iova && at - self.iova < self.length
    }

    /// Whether an address is in the page before it or behind it.
    fn is_beside(&self, at: u64) -> bool {
        let page = at / PAGE;
        let behind = self.iova.checked_add(self.length).map(|end| end / PAGE);
        page + 1 == self.iova / PAGE || behind == Some(page)
    }

    fn allows(&self, access: FaultAccess) -> bool {
        match access {
            FaultAccess::Unknown => true,
            FaultAccess::Read => self.access.contains(Access::READ),
            FaultAccess::Write => self.access.contains(Access::WRITE),
        }
    }

    /// Whether the device may write some of these bytes of a buffer through it.
    fn writes(&self, bytes: &Range<u64>) -> bool {
        let overlaps = |home| home < bytes.end && bytes.start < home + self.length;
        !bytes.is_empty() && self.access.contains(Access::WRITE) && self.home.is_some_and(overlaps)
    }
}

/// All windows of a session.
#[derive(Default)]
pub(super) struct Windows {
    /// First own address of each buffer, by its slot.
    buffers: BTreeMap<u32, u64>,
    live: Vec<Window>,
    /// The newest last, each with the place that ended it.
    ended: VecDeque<(Window, Option<Place>)>,
}

impl Windows {
    pub(super) fn allocated(&mut self, slot: u32, iova: u64) {
        self.buffers.insert(slot, iova);
    }

    /// The own address of a byte of a buffer.
    pub(super) fn home(&self, slot: u32, offset: u64) -> Option<u64> {
        self.buffers.get(&slot)?.checked_add(offset)
    }

    pub(super) fn granted(&mut self, window: Window) {
        self.live.push(window);
    }

    /// Ends the newest window at this address.
    pub(super) fn ended(&mut self, iova: u64, length: u64, place: Option<Place>) -> Option<Window> {
        let found = self.live.iter().rposition(|w| (w.iova, w.length) == (iova, length))?;
        let window = self.live.swap_remove(found);
        self.remember(window, place);
        Some(window)
    }

    /// Ends all windows of a buffer. Returns those that the driver should have ended.
    pub(super) fn released(&mut self, slot: u32) -> Vec<Window> {
        self.buffers.remove(&slot);
        let ended: Vec<_> = self.live.extract_if(.., |window| window.slot == slot).collect();
        ended.iter().for_each(|window| self.remember(*window, None));
        ended.into_iter().filter(|window| window.tenure == Tenure::Driver).collect()
    }

    fn remember(&mut self, window: Window, place: Option<Place>) {
        if self.ended.len() == ENDED {
            self.ended.pop_front();
        }
        self.ended.push_back((window, place));
    }

    /// A window through which the device may write some of these bytes of a buffer.
    pub(super) fn writable(&self, bytes: &Range<u64>) -> Option<Window> {
        self.live.iter().find(|window| window.writes(bytes)).copied()
    }

    /// A window of a transfer through which the device writes some of these bytes and reads none.
    pub(super) fn written_by_device(&self, bytes: &Range<u64>) -> Option<Window> {
        let only =
            |window: &&Window| window.tenure != Tenure::Buffer && window.access == Access::WRITE;
        self.live.iter().filter(only).find(|window| window.writes(bytes)).copied()
    }

    /// The bug that a fault shows, and the memory.
    pub(super) fn explain(&self, fault: &FaultRecord) -> Option<(Bug, Window)> {
        let (at, access) = (fault.address?, fault.access);
        let newest = self.ended.iter().rev();
        let live = self.live.iter().map(|window| (window, None));
        let known = live.chain(newest.clone().map(|(window, place)| (window, Some(*place))));
        let mut known = known.filter(|(window, _)| window.contains(at));
        if let Some((window, end)) = known.next() {
            return match end {
                _ if !window.allows(access) => Some((Bug::WrongDirection { at, access }, *window)),
                Some(unmapped) => Some((Bug::UseAfterUnmap { at, access, unmapped }, *window)),
                // It was denied before the grant; its time is not known.
                None => None,
            };
        }
        let beside = self.live.iter().chain(newest.map(|(window, _)| window));
        let window = beside.into_iter().find(|window| window.is_beside(at))?;
        Some((Bug::OutOfBounds { at, access }, *window))
    }
}
