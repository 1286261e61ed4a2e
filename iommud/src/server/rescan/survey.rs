//! How functions are found, and what came of the last walk.

use alloc::boxed::Box;
use alloc::collections::BTreeSet;
use alloc::vec::Vec;

use iommu_protocol::{PciAddress, Refusal};

use crate::topology::pci::PciFunction;

/// Ticks until a function that was missed is looked for again: 200 ms at least. A function-level reset takes 100 ms (PCI
/// Express Base 6.0 section 6.6.2).
const SECOND_LOOK: u32 = 20;

/// Configuration space as it is now.
pub trait Discovery {
    /// Every function that can be described, bridges before what is behind them; `None` when they cannot be listed now.
    fn walk(&mut self) -> Option<Vec<PciFunction>>;

    /// Whether a function answers at an address, described or not.
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
    /// Functions in use that the last walk did not find and that did not answer.
    pub(super) absent: BTreeSet<PciAddress>,
    /// Functions in use that are no longer what they are known as: as they were found.
    pub(super) kept: Vec<PciFunction>,
    /// The last walk missed a function.
    pub(super) missing: bool,
    /// Ticks until it may be time for another walk.
    pause: Option<u32>,
}

impl Clone for Survey {
    fn clone(&self) -> Self {
        let discovery = self.discovery.as_ref().and_then(|discovery| discovery.copy());
        Self {
            discovery,
            last: self.last,
            missed: self.missed.clone(),
            in_vain: self.in_vain.clone(),
            absent: self.absent.clone(),
            kept: self.kept.clone(),
            missing: self.missing,
            pause: self.pause,
        }
    }
}

impl Survey {
    pub(in crate::server) fn missed(&self) -> &[(PciAddress, Refusal)] {
        &self.missed
    }

    /// A session or a function ended: what was not taken in may be now, and what was kept as it was may be free.
    pub(in crate::server) fn change(&mut self) {
        self.in_vain.clear();
        if !self.kept.is_empty() {
            self.pause.get_or_insert(0);
        }
    }

    /// A walk was made. Which functions the one before missed is known until they have been compared.
    pub(super) fn begin(&mut self) {
        self.kept.clear();
        (self.missing, self.pause) = (false, None);
    }

    /// A function was missed: it may come back.
    pub(super) const fn expect_back(&mut self) {
        (self.missing, self.pause) = (true, Some(SECOND_LOOK));
    }

    /// Whether another walk is to be thought of in a later tick.
    pub(in crate::server) const fn is_due(&self) -> bool {
        self.pause.is_some()
    }

    /// Whether it is time for that. Each call is a tick.
    pub(super) fn is_time(&mut self) -> bool {
        match self.pause {
            Some(0) => self.pause.take().is_some(),
            Some(left) => {
                self.pause = Some(left - 1);
                false
            }
            None => false,
        }
    }
}
