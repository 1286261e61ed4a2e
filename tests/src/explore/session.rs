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
    /// No session on a present member of its group is left: it holds the group no longer.
    pub lost: bool,
    /// Its buffers: slot, memory.
    pub buffers: Vec<(u32, Segments)>,
    /// Buffers of which pages are mapped one by one: slot, and where the first page is when it is mapped.
    pub reserved: Vec<(u32, u64)>,
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

    /// Enters one mapping of pages of the oldest buffer, in this order; of those that it has.
    pub(super) fn map_list(&mut self, iova: u64, pages: &[u32]) {
        let Some((slot, memory)) = self.buffers.first() else { return };
        let page = |page: &u32| memory.get(usize::try_from(*page).ok()?).copied();
        let memory = pages.iter().filter_map(page).collect();
        self.mappings.push(Mapping { iova, slot: *slot, memory });
    }

    /// Where a page of the first buffer is that has such an address, and its memory.
    fn page_granted(&self, page: u64) -> Option<(u32, u64, (u64, u64))> {
        let (slot, first) = *self.reserved.first()?;
        let (_, memory) = self.buffers.iter().find(|buffer| buffer.0 == slot)?;
        let memory = *memory.get(usize::try_from(page).ok()?)?;
        Some((slot, first + page * PAGE, memory))
    }

    /// A page of the first buffer that is mapped page by page is, or is no longer.
    pub(super) fn grant(&mut self, page: u64, granted: bool) {
        let Some((slot, iova, memory)) = self.page_granted(page) else { return };
        self.mappings.retain(|mapping| mapping.iova != iova);
        if granted {
            self.mappings.push(Mapping { iova, slot, memory: vec![memory] });
        }
    }

    /// The oldest buffer is given up.
    pub(super) fn release(&mut self) {
        let (slot, _) = self.buffers.remove(0);
        self.mappings.retain(|mapping| mapping.slot != slot);
        self.reserved.retain(|reserved| reserved.0 != slot);
    }
}
