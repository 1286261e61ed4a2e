//! The functions that are noted as driven.

use alloc::boxed::Box;
use alloc::collections::BTreeSet;

use iommu_protocol::{PciAddress, Refusal};

use crate::topology::tags::TagRecord;

/// Storage for notes: memory or a file that survives the death of the process.
pub trait Notes {
    /// Notes that a function is driven, or no longer. When this returns, the next server will find the note. False
    /// when there is no room for it.
    fn set(&mut self, function: PciAddress, driven: bool) -> bool;

    /// Notes the tags that units may hold, in place of those noted before. The next server finds one or the other,
    /// never a mixture. Without room nothing is noted, and the next server takes all tags for held.
    fn set_tags(&mut self, tags: TagRecord);

    /// The same storage, for a checkpoint of the server in tests; `None` where that makes no sense.
    fn copy(&self) -> Option<Box<dyn Notes>> {
        None
    }
}

/// The functions that are noted as driven, and the storage of the notes.
#[derive(Default)]
pub struct Driven {
    noted: BTreeSet<PciAddress>,
    notes: Option<Box<dyn Notes>>,
    /// The tags that are noted, if any.
    tags: Option<TagRecord>,
}

impl Clone for Driven {
    fn clone(&self) -> Self {
        let notes = self.notes.as_ref().and_then(|notes| notes.copy());
        Self { noted: self.noted.clone(), notes, tags: self.tags }
    }
}

impl Driven {
    /// Continues from the notes of earlier servers. `Driven::default()` stores no notes.
    #[must_use]
    pub fn new(found: impl IntoIterator<Item = PciAddress>, notes: Box<dyn Notes>) -> Self {
        Self { noted: found.into_iter().collect(), notes: Some(notes), tags: None }
    }

    /// Adds the tags that the server before noted. Without this, or with `None`, a unit that is found translating may
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

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::rc::Rc;
    use alloc::vec::Vec;
    use core::cell::RefCell;

    /// Notes that only a test reads. Copies share them.
    #[derive(Clone, Default)]
    struct Written(Rc<RefCell<Vec<(PciAddress, bool)>>>);

    impl Notes for Written {
        fn set(&mut self, function: PciAddress, driven: bool) -> bool {
            self.0.borrow_mut().push((function, driven));
            true
        }

        fn set_tags(&mut self, _: TagRecord) {}

        fn copy(&self) -> Option<Box<dyn Notes>> {
            Some(Box::new(self.clone()))
        }
    }

    #[test]
    fn a_checkpoint_has_the_notes_and_their_storage() {
        let [first, second] = [3, 4].map(|device| PciAddress::new(0, 0, device, 0).unwrap());
        let written = Written::default();
        let tags = TagRecord::from_bits(0x0002_0005);
        let driven = Driven::new([first], Box::new(written.clone())).after(Some(tags));
        let mut copy = driven.clone();
        assert_eq!((copy.iter().collect::<Vec<_>>(), copy.tags()), (vec![first], Some(tags)));
        assert_eq!(copy.note(second), Ok(()));
        assert_eq!(*written.0.borrow(), [(second, true)]);
        assert_eq!(driven.iter().collect::<Vec<_>>(), [first], "it is as it was");
    }
}
