//! Functions that a server finds when it looks again.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use iommu_protocol::ids::PciAddress;
use iommud::server::Discovery;
use iommud::topology::pci::PciFunction;

/// Functions that are there; all copies are the same.
#[derive(Clone, Debug, Default)]
pub struct Functions {
    there: Rc<RefCell<Vec<PciFunction>>>,
    hidden: Rc<RefCell<Vec<PciAddress>>>,
    walks: Rc<Cell<u32>>,
    broken: Rc<Cell<bool>>,
}

impl Functions {
    pub(super) fn of(functions: Vec<PciFunction>) -> Self {
        Self { there: Rc::new(RefCell::new(functions)), ..Self::default() }
    }

    /// Pulls out what is at an address.
    pub fn pull(&self, address: PciAddress) {
        self.there.borrow_mut().retain(|function| function.address != address);
    }

    /// Plugs a function in, in place of what was there.
    pub fn plug(&self, function: PciFunction) {
        self.pull(function.address);
        self.there.borrow_mut().push(function);
    }

    /// No walk finds what is at an address, although it answers.
    pub fn hide(&self, address: PciAddress) {
        self.hidden.borrow_mut().push(address);
    }

    /// Walks find it again.
    pub fn show(&self, address: PciAddress) {
        self.hidden.borrow_mut().retain(|hidden| *hidden != address);
    }

    /// Functions cannot be listed any more, or can be again.
    pub fn fail(&self, broken: bool) {
        self.broken.set(broken);
    }

    /// How often all functions were looked for.
    #[must_use]
    pub fn walks(&self) -> u32 {
        self.walks.get()
    }
}

impl Discovery for Functions {
    fn walk(&mut self) -> Option<Vec<PciFunction>> {
        self.walks.set(self.walks.get() + 1);
        let hidden = self.hidden.borrow();
        let seen = |function: &&PciFunction| !hidden.contains(&function.address);
        (!self.broken.get()).then(|| self.there.borrow().iter().filter(seen).copied().collect())
    }

    fn answers(&mut self, address: PciAddress) -> bool {
        self.there.borrow().iter().any(|function| function.address == address)
    }
}
