//! Functions that a server finds when it rescans.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use iommu_protocol::ids::PciAddress;
use iommud::server::Discovery;
use iommud::topology::pci::PciFunction;

/// The functions present on the buses. All copies share one state.
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

    /// Removes the function at an address.
    pub fn pull(&self, address: PciAddress) {
        self.there.borrow_mut().retain(|function| function.address != address);
    }

    /// Adds a function, in place of any other at its address.
    pub fn plug(&self, function: PciFunction) {
        self.pull(function.address);
        self.there.borrow_mut().push(function);
    }

    /// Hides the function at an address from walks, although it still answers.
    pub fn hide(&self, address: PciAddress) {
        self.hidden.borrow_mut().push(address);
    }

    /// Lets walks find the function again.
    pub fn show(&self, address: PciAddress) {
        self.hidden.borrow_mut().retain(|hidden| *hidden != address);
    }

    /// Sets whether listing the functions fails.
    pub fn fail(&self, broken: bool) {
        self.broken.set(broken);
    }

    /// Walks over all functions so far.
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
