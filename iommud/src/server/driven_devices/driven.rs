//! The functions that are noted as driven.

use alloc::boxed::Box;
use alloc::collections::BTreeSet;

use iommu_protocol::{PciAddress, Refusal};

use crate::topology::tags::TagRecord;

/// Where notes are kept: memory or a file that the death of the process leaves as it is.
pub trait Notes {
    /// Notes that a function is driven, or no longer. What is noted when this returns is what the next
    /// server finds. False when there is no room for it.
    fn set(&mut self, function: PciAddress, driven: bool) -> bool;

    /// Notes which tags units may hold, in place of what was noted of them before. The next server finds one or the
    /// other, never a mixture. Without room nothing is noted: then it takes all tags for held.
    fn set_tags(&mut self, tags: TagRecord);

    /// Notes in the same place, for a checkpoint of the server in tests; `None` where that makes no sense.
    fn copy(&self) -> Option<Box<dyn Notes>> {
        None
    }
}

/// The functions that are noted.
#[derive(Default)]
pub struct Driven {
    noted: BTreeSet<PciAddress>,
    notes: Option<Box<dyn Notes>>,
    /// What is noted of tags, if anything is.
    tags: Option<TagRecord>,
}

impl Clone for Driven {
    fn clone(&self) -> Self {
        let notes = self.notes.as_ref().and_then(|notes| notes.copy());
        Self { noted: self.noted.clone(), notes, tags: self.tags }
    }
}

impl Driven {
    /// Goes on from what earlier servers noted. `Driven::default()` notes nothing anywhere.
    #[must_use]
    pub fn new(found: impl IntoIterator<Item = PciAddress>, notes: Box<dyn Notes>) -> Self {
        Self { noted: found.into_iter().collect(), notes: Some(notes), tags: None }
    }

    /// With what the server before noted of tags. Without this, or with `None`, a unit that is found translating may
    /// hold any.
    #[must_use]
    pub fn after(self, tags: Option<TagRecord>) -> Self {
        Self { tags, ..self }
    }

    pub(in crate::server) const fn tags(&self) -> Option<TagRecord> {
        self.tags
    }

    pub(in crate::server) fn note_tags(&mut self, tags: TagRecord) {
        if let Some(notes) = &mut self.notes
            && self.tags != Some(tags)
        {
            notes.set_tags(tags);
            self.tags = Some(tags);
        }
    }

    pub(in crate::server) fn iter(&self) -> impl Iterator<Item = PciAddress> + '_ {
        self.noted.iter().copied()
    }

    pub(super) fn note(&mut self, function: PciAddress) -> Result<(), Refusal> {
        let Some(notes) = &mut self.notes else { return Ok(()) };
        if self.noted.contains(&function) {
            return Ok(());
        }
        if !notes.set(function, true) {
            return Err(Refusal::NoMemory);
        }
        self.noted.insert(function);
        Ok(())
    }

    pub(super) fn forget(&mut self, function: PciAddress) {
        if self.noted.remove(&function)
            && let Some(notes) = &mut self.notes
        {
            notes.set(function, false);
        }
    }
}
