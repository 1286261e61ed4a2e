//! A session as its client knows it.

use super::act::{Client, Segments};
use super::ledger::PAGE;
use super::scene::Device;

/// A mapping.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Mapping {
    /// Its first address.
    pub iova: u64,
    /// The slot of its buffer.
    pub slot: u32,
    /// Its memory.
    pub memory: Segments,
}

/// A session as its client knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// Its handle.
    pub handle: u32,
    /// Whose it is.
    pub client: Client,
    /// Its device.
    pub device: Device,
    /// The domain: the handle of the session that made it.
    pub domain: u32,
    /// The device is attached.
    pub attached: bool,
    /// The device was removed.
    pub orphan: bool,
    /// All members of the group were removed: what comes to their places is another group.
    pub lost: bool,
    /// Its buffers: slot, memory.
    pub buffers: Vec<(u32, Segments)>,
    /// Its mappings, oldest first.
    pub mappings: Vec<Mapping>,
}

impl Session {
    /// Enters mappings of pages of the oldest buffer: address, first byte in the buffer.
    pub(super) fn map(&mut self, new: &[(u64, u64)]) {
        let Some((slot, memory)) = self.buffers.first().cloned() else { return };
        for (iova, offset) in new {
            let page = usize::try_from(offset / PAGE).expect("few pages");
            let memory = vec![memory[page]];
            self.mappings.push(Mapping { iova: *iova, slot, memory });
        }
    }
}
