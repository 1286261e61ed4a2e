//! Notes that outlive the servers of a stack.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;

use iommu_protocol::ids::PciAddress;
use iommud::server::Notes;
use iommud::topology::tags::TagRecord;

/// A callback at every note before it is made or deleted: the function, and whether it is driven.
type Look = Box<dyn FnMut(PciAddress, bool)>;

/// The notes of driven functions and tags; clones share them.
#[derive(Clone, Default)]
pub struct SharedNotes {
    noted: Rc<RefCell<BTreeSet<PciAddress>>>,
    tags: Rc<Cell<Option<TagRecord>>>,
    look: Rc<RefCell<Option<Look>>>,
}

impl SharedNotes {
    /// Every noted function.
    #[must_use]
    pub fn noted(&self) -> Vec<PciAddress> {
        self.noted.borrow().iter().copied().collect()
    }

    /// Restores an earlier set of noted functions.
    pub fn restore(&self, noted: &[PciAddress]) {
        *self.noted.borrow_mut() = noted.iter().copied().collect();
    }

    /// The note about tags.
    #[must_use]
    pub fn tags(&self) -> Option<TagRecord> {
        self.tags.get()
    }

    /// Restores an earlier note about tags.
    pub fn restore_tags(&self, tags: Option<TagRecord>) {
        self.tags.set(tags);
    }

    /// Calls `look` before each note is made or deleted.
    pub fn on_change(&self, look: impl FnMut(PciAddress, bool) + 'static) {
        *self.look.borrow_mut() = Some(Box::new(look));
    }
}

impl Notes for SharedNotes {
    fn copy(&self) -> Option<Box<dyn Notes>> {
        Some(Box::new(self.clone()))
    }

    fn set_tags(&mut self, tags: TagRecord) {
        self.tags.set(Some(tags));
    }

    fn set(&mut self, function: PciAddress, driven: bool) -> bool {
        if let Some(look) = self.look.borrow_mut().as_mut() {
            look(function, driven);
        }
        let mut noted = self.noted.borrow_mut();
        if driven {
            noted.insert(function)
        } else {
            noted.remove(&function)
        };
        true
    }
}
