//! Notes that outlive servers of a stack.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;

use iommu_protocol::ids::PciAddress;
use iommud::server::Notes;
use iommud::topology::tags::TagRecord;

/// Looks at the machine whenever a note is made or taken back.
type Look = Box<dyn FnMut(PciAddress, bool)>;

/// Functions that are noted; clones share them.
#[derive(Clone, Default)]
pub struct SharedNotes {
    noted: Rc<RefCell<BTreeSet<PciAddress>>>,
    tags: Rc<Cell<Option<TagRecord>>>,
    look: Rc<RefCell<Option<Look>>>,
}

impl SharedNotes {
    /// Every function that is noted.
    #[must_use]
    pub fn noted(&self) -> Vec<PciAddress> {
        self.noted.borrow().iter().copied().collect()
    }

    /// Puts back what was noted at some time.
    pub fn restore(&self, noted: &[PciAddress]) {
        *self.noted.borrow_mut() = noted.iter().copied().collect();
    }

    /// What is noted of tags.
    #[must_use]
    pub fn tags(&self) -> Option<TagRecord> {
        self.tags.get()
    }

    /// Puts back what was noted of tags at some time.
    pub fn restore_tags(&self, tags: Option<TagRecord>) {
        self.tags.set(tags);
    }

    /// Calls `look` at each note before it is made or taken back.
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
