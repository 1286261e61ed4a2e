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
        (!self.broken.get()).then(|| self.there.borrow().clone())
    }

    fn answers(&mut self, address: PciAddress) -> bool {
        self.there.borrow().iter().any(|function| function.address == address)
    }
}
