//! A session from its client's point of view.

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

/// A session from its client's point of view.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// Its handle.
    pub handle: u32,
    /// Its client.
    pub client: Client,
    /// Its device.
    pub device: Device,
    /// Its domain, identified by the handle of the session that created it.
    pub domain: u32,
    /// Whether the device is attached.
    pub attached: bool,
    /// Whether the device was removed.
    pub orphan: bool,
    /// Whether its group has no session on a present member any more. It then no longer holds the group.
    pub lost: bool,
    /// Its buffers: slot, memory.
    pub buffers: Vec<(u32, Segments)>,
    /// Buffers whose pages are granted one by one: slot, and the address of the first page when it is mapped.
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

    /// Enters one mapping of the oldest buffer's pages, in this order. Pages beyond the buffer are skipped.
    pub(super) fn map_list(&mut self, iova: u64, pages: &[u32]) {
        let Some((slot, memory)) = self.buffers.first() else { return };
        let page = |page: &u32| memory.get(usize::try_from(*page).ok()?).copied();
        let memory = pages.iter().filter_map(page).collect();
        self.mappings.push(Mapping { iova, slot: *slot, memory });
    }

    /// Returns slot, address and memory of a page of the first reserved buffer.
    fn page_granted(&self, page: u64) -> Option<(u32, u64, (u64, u64))> {
        let (slot, first) = *self.reserved.first()?;
        let (_, memory) = self.buffers.iter().find(|buffer| buffer.0 == slot)?;
        let memory = *memory.get(usize::try_from(page).ok()?)?;
        Some((slot, first + page * PAGE, memory))
    }

    /// Enters or removes the mapping of a page of the first reserved buffer.
    pub(super) fn grant(&mut self, page: u64, granted: bool) {
        let Some((slot, iova, memory)) = self.page_granted(page) else { return };
        self.mappings.retain(|mapping| mapping.iova != iova);
        if granted {
            self.mappings.push(Mapping { iova, slot, memory: vec![memory] });
        }
    }

    /// Removes the oldest buffer.
    pub(super) fn release(&mut self) {
        let (slot, _) = self.buffers.remove(0);
        self.mappings.retain(|mapping| mapping.slot != slot);
        self.reserved.retain(|reserved| reserved.0 != slot);
    }
}
