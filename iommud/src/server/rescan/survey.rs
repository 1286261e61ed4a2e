//! How functions are found, and what came of the last walk.

use alloc::boxed::Box;
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
}

impl Clone for Survey {
    fn clone(&self) -> Self {
        let discovery = self.discovery.as_ref().and_then(|discovery| discovery.copy());
        Self { discovery, last: self.last, missed: self.missed.clone() }
    }
}

impl Survey {
    pub(in crate::server) fn missed(&self) -> &[(PciAddress, Refusal)] {
        &self.missed
    }
}
