//! How functions are found, and what came of the last walk.

use alloc::boxed::Box;
use alloc::collections::BTreeSet;
use alloc::vec::Vec;

use iommu_protocol::{PciAddress, Refusal};

use crate::topology::pci::PciFunction;

/// Configuration space as it is now.
pub trait Discovery {
    /// Every function, bridges before what is behind them; `None` when they cannot be listed now.
    fn walk(&mut self) -> Option<Vec<PciFunction>>;

    /// Whether a function answers at an address.
    fn answers(&mut self, address: PciAddress) -> bool;

    /// The same, for a checkpoint of the server in tests; `None` where that makes no sense.
    fn copy(&self) -> Option<Box<dyn Discovery>> {
        None
    }
}

/// What came of a walk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rescanned {
    /// Functions that are new. One that is another than before counts here and among those that are gone.
    pub added: usize,
    /// Functions that are gone, with what was behind them.
    pub removed: usize,
}

/// How functions are found, and what came of it.
#[derive(Default)]
pub(in crate::server) struct Survey {
    pub(super) discovery: Option<Box<dyn Discovery>>,
    pub(super) last: Option<Rescanned>,
    /// Functions that are there and could not be taken in. Their entries deny.
    pub(super) missed: Vec<(PciAddress, Refusal)>,
    /// Functions that a claim had looked for and that were not taken in: no claim has them looked for again before
    /// something changes. They answer, so there are no more of them than functions of the machine.
    pub(super) in_vain: BTreeSet<PciAddress>,
}

impl Clone for Survey {
    fn clone(&self) -> Self {
        let discovery = self.discovery.as_ref().and_then(|discovery| discovery.copy());
        let (missed, in_vain) = (self.missed.clone(), self.in_vain.clone());
        Self { discovery, last: self.last, missed, in_vain }
    }
}

impl Survey {
    pub(in crate::server) fn missed(&self) -> &[(PciAddress, Refusal)] {
        &self.missed
    }

    /// A session or a function ended: what was not taken in may be now.
    pub(in crate::server) fn change(&mut self) {
        self.in_vain.clear();
    }
}
