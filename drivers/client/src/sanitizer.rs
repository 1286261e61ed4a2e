//! Finds bugs in a driver's use of DMA memory, and reports each with the place that granted the memory.

use std::collections::HashSet;
use std::fmt;
use std::io::Write;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use iommu_protocol::fault::FaultRecord;
use iommu_protocol::ids::PciAddress;

use crate::sanitizer::blocks::Blocks;
use crate::sanitizer::reads::Reads;
use crate::sanitizer::windows::Windows;

mod blocks;
mod reads;
mod report;
mod windows;

pub(crate) use blocks::POISON;
pub use report::{Bug, BugReport, Place};
pub(crate) use windows::{Tenure, Window};

/// Receives reports.
type Hook = Arc<dyn Fn(&BugReport) + Send + Sync>;

/// Watches the memory of one session. It makes no request to the server.
pub(crate) struct Sanitizer {
    device: PciAddress,
    hook: Mutex<Hook>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    windows: Windows,
    reads: Reads,
    blocks: Blocks,
    /// Bugs that were reported, by their names and places.
    reported: HashSet<(&'static str, Place, Option<Place>)>,
}

/// A bug, and the memory: its first address, its length and the place that granted it.
type Finding = (Bug, (u64, u64, Place));

fn memory(window: &Window) -> (u64, u64, Place) {
    (window.iova, window.length, window.granted)
}

/// Locks a mutex. A hook that panicked elsewhere has left nothing half done.
fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Sanitizer {
    /// Watches a session from now on, and writes its reports to standard error.
    pub(crate) fn new(device: PciAddress) -> Self {
        let hook: Hook = Arc::new(|report| {
            // A driver without standard error goes on without reports.
            let _ = writeln!(std::io::stderr(), "iommu-client: {report}");
        });
        Self { device, hook: Mutex::new(hook), state: Mutex::default() }
    }

    pub(crate) fn set_hook(&self, hook: impl Fn(&BugReport) + Send + Sync + 'static) {
        *lock(&self.hook) = Arc::new(hook);
    }

    /// Changes the state, and reports the bugs that this finds. The hook runs without a lock, so it may use the device.
    fn watch<I: IntoIterator<Item = Finding>>(&self, change: impl FnOnce(&mut State) -> I) {
        let mut state = lock(&self.state);
        let found: Vec<_> = change(&mut state).into_iter().collect();
        let device = self.device;
        let mut reports = Vec::new();
        for (bug, (iova, length, granted)) in found {
            if state.reported.insert((bug.name(), granted, bug.place())) {
                reports.push(BugReport { device, bug, iova, length, granted });
            }
        }
        drop(state);
        let hook = lock(&self.hook).clone();
        reports.iter().for_each(|report| hook(report));
    }

    /// A buffer was allocated. Its own addresses start at `iova`.
    pub(crate) fn allocated(&self, slot: u32, iova: u64) {
        lock(&self.state).windows.allocated(slot, iova);
    }

    /// The device reaches memory. Without an own address, `offset` in the buffer gives it.
    pub(crate) fn granted(&self, window: Window, offset: Option<u64>) {
        let mut state = lock(&self.state);
        let home = offset.and_then(|offset| state.windows.home(window.slot, offset));
        state.windows.granted(Window { home, ..window });
        state.reads.forget(&bytes_of(home, window.length));
    }

    /// The device no longer reaches memory.
    pub(crate) fn ended(&self, iova: u64, length: u64, place: Option<Place>) {
        let mut state = lock(&self.state);
        if let Some(window) = state.windows.ended(iova, length, place) {
            state.reads.forget(&bytes_of(window.home, length));
        }
    }

    /// The device no longer reaches a part of a buffer at the buffer's own address.
    pub(crate) fn revoked(&self, slot: u32, offset: u64, length: u64, place: Option<Place>) {
        let iova = lock(&self.state).windows.home(slot, offset);
        iova.into_iter().for_each(|iova| self.ended(iova, length, place));
    }

    /// A buffer ends, with its mappings and grants.
    pub(crate) fn released(&self, slot: u32, length: u64) {
        self.watch(|state| {
            let bytes = bytes_of(state.windows.home(slot, 0), length);
            state.reads.forget(&bytes);
            state.blocks.forget(bytes);
            let left = state.windows.released(slot);
            left.into_iter().map(|window| (Bug::FreedWhileMapped, memory(&window)))
        });
    }

    /// The driver reads bytes of a buffer, given by their own addresses.
    pub(crate) fn read(&self, bytes: Range<u64>, place: Place) {
        self.watch(|state| {
            let window = state.windows.writable(&bytes)?;
            state.read(bytes, place, memory(&window))
        });
    }

    /// The driver reads bytes of a block.
    pub(crate) fn read_block(&self, block: (u64, u64), bytes: Range<u64>, place: Place) {
        self.watch(|state| {
            state.windows.writable(&bytes)?;
            let granted = state.blocks.place(block.0)?;
            state.read(bytes, place, (block.0, block.1, granted))
        });
    }

    /// The driver copies bytes, to look at the copy alone.
    pub(crate) fn snapshot(&self, bytes: Range<u64>, place: Place) {
        let mut state = lock(&self.state);
        if state.windows.writable(&bytes).is_some() {
            state.reads.note(bytes, place);
        }
    }

    /// The driver writes bytes of a buffer or block.
    pub(crate) fn written(&self, bytes: Range<u64>, place: Place) {
        self.watch(|state| {
            state.reads.forget(&bytes);
            let window = state.windows.written_by_device(&bytes)?;
            Some((Bug::WrittenWhileGranted { at: place }, memory(&window)))
        });
    }

    /// A block was taken with these bytes in it.
    pub(crate) fn taken(&self, iova: u64, bytes: &[u8], place: Place) {
        self.watch(|state| {
            let length = u64::try_from(bytes.len()).unwrap_or(0);
            state.reads.forget(&bytes_of(Some(iova), length));
            let (before, at) = state.blocks.taken(iova, bytes, place)?;
            Some((Bug::WrittenAfterFree { at: iova + at }, (iova, length, before)))
        });
    }

    /// A block was given back and filled with poison.
    pub(crate) fn poisoned(&self, iova: u64) {
        lock(&self.state).blocks.poisoned(iova);
    }

    /// The unit blocked an access of the device.
    pub(crate) fn fault(&self, fault: &FaultRecord) {
        self.watch(|state| {
            state.windows.explain(fault).map(|(bug, window)| (bug, memory(&window)))
        });
    }
}

impl State {
    fn read(
        &mut self,
        bytes: Range<u64>,
        place: Place,
        memory: (u64, u64, Place),
    ) -> Option<Finding> {
        let first = self.reads.find(&bytes);
        self.reads.note(bytes, place);
        first.map(|first| (Bug::ReadTwice { first, again: place }, memory))
    }
}

/// Bytes from an address on; none without an address.
fn bytes_of(first: Option<u64>, length: u64) -> Range<u64> {
    first.map_or(0..0, |first| first..first.saturating_add(length))
}

impl fmt::Debug for Sanitizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sanitizer").field("device", &self.device).finish_non_exhaustive()
    }
}
