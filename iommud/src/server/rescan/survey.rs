//! The way in which functions are found, and the results of the last walk.

use alloc::boxed::Box;
use alloc::collections::BTreeSet;
use alloc::vec::Vec;

use iommu_protocol::{PciAddress, Refusal};

use crate::topology::pci::PciFunction;

/// Ticks until a missed function is looked for again: 200 ms at least. A function-level reset takes 100 ms (PCI
/// Express Base 6.0 section 6.6.2).
const SECOND_LOOK: u32 = 20;

/// The current state of configuration space.
pub trait Discovery {
    /// Every function that can be described, bridges before the functions behind them; `None` when they cannot be
    /// listed now.
    fn walk(&mut self) -> Option<Vec<PciFunction>>;

    /// Whether a function answers at an address, described or not.
    fn answers(&mut self, address: PciAddress) -> bool;

    /// A copy, for a checkpoint of the server in tests; `None` where that makes no sense.
    fn copy(&self) -> Option<Box<dyn Discovery>> {
        None
    }
}

/// The result of a walk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rescanned {
    /// New functions. One that replaced another counts here and among those that are gone.
    pub added: usize,
    /// Functions that are gone, including those behind them.
    pub removed: usize,
}

/// The way in which functions are found, and the results.
#[derive(Default)]
pub(in crate::server) struct Survey {
    pub(super) discovery: Option<Box<dyn Discovery>>,
    pub(super) last: Option<Rescanned>,
    /// Functions that are present and could not be added. Their entries deny.
    pub(super) missed: Vec<(PciAddress, Refusal)>,
    /// Functions that a claim looked for and that were not added. No claim looks for them again before something
    /// changes. They answer, so there are no more of them than functions of the machine.
    pub(super) in_vain: BTreeSet<PciAddress>,
    /// Functions in use that the last walk did not find and that did not answer.
    pub(super) absent: BTreeSet<PciAddress>,
    /// Functions in use that no longer match their known description, as they were found.
    pub(super) kept: Vec<PciFunction>,
    /// The last walk missed a function.
    pub(super) missing: bool,
    /// Ticks until another walk may be due.
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

    /// Records that a session or a function ended. Functions that were not added may be now; changed ones may be
    /// free.
    pub(in crate::server) fn change(&mut self) {
        self.in_vain.clear();
        if !self.kept.is_empty() {
            self.pause.get_or_insert(0);
        }
    }

    /// Resets the results of the walk before. The absent functions stay until they have been compared.
    pub(super) fn begin(&mut self) {
        self.kept.clear();
        (self.missing, self.pause) = (false, None);
    }

    /// Records that a function was missed: it may come back.
    pub(super) const fn expect_back(&mut self) {
        (self.missing, self.pause) = (true, Some(SECOND_LOOK));
    }

    /// Whether a later tick may have to walk again.
    pub(in crate::server) const fn is_due(&self) -> bool {
        self.pause.is_some()
    }

    /// Counts a tick; returns whether another walk may be due now.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::pci::FunctionKind;
    use alloc::vec;

    /// A function 00:03.0.
    fn function() -> PciFunction {
        PciFunction {
            address: PciAddress::new(0, 0, 3, 0).unwrap(),
            vendor: 0x1234,
            device: 0x11e8,
            class: 0x00_ff00,
            kind: FunctionKind::Endpoint,
            multifunction: false,
            acs: None,
            acs_capability: 0,
            hot_plug: false,
        }
    }

    /// One function, which answers.
    struct One;

    impl Discovery for One {
        fn walk(&mut self) -> Option<Vec<PciFunction>> {
            Some(vec![function()])
        }

        fn answers(&mut self, address: PciAddress) -> bool {
            address == function().address
        }

        fn copy(&self) -> Option<Box<dyn Discovery>> {
            Some(Box::new(Self))
        }
    }

    #[test]
    fn a_checkpoint_has_all_results_and_the_way_to_walk() {
        let address = function().address;
        let survey = Survey {
            discovery: Some(Box::new(One)),
            last: Some(Rescanned { added: 2, removed: 3 }),
            missed: vec![(address, Refusal::Busy)],
            in_vain: BTreeSet::from([address]),
            absent: BTreeSet::from([address]),
            kept: vec![function()],
            missing: true,
            pause: Some(7),
        };
        let mut copy = survey.clone();
        assert_eq!((copy.last, copy.missed()), (survey.last, survey.missed()));
        assert_eq!((&copy.in_vain, &copy.absent), (&survey.in_vain, &survey.absent));
        assert_eq!((&copy.kept, copy.missing, copy.pause), (&survey.kept, true, Some(7)));
        assert!(copy.discovery.as_mut().unwrap().answers(address));
    }

    #[test]
    fn a_missed_function_is_looked_for_after_twenty_ticks() {
        let mut survey = Survey::default();
        assert!(!survey.is_due() && !survey.is_time());
        survey.expect_back();
        for tick in 0..20 {
            assert!(survey.is_due() && !survey.is_time(), "tick {tick}");
        }
        assert!(survey.is_due() && survey.is_time());
        assert!(!survey.is_due() && !survey.is_time(), "once");
    }

    #[test]
    fn a_change_makes_a_walk_due_only_where_a_description_is_out_of_date() {
        let mut survey =
            Survey { in_vain: BTreeSet::from([function().address]), ..Survey::default() };
        survey.change();
        assert!(survey.in_vain.is_empty() && !survey.is_due());
        survey.kept.push(function());
        survey.change();
        assert!(survey.is_due() && survey.is_time());
        survey.expect_back();
        survey.change();
        assert!(!survey.is_time(), "a pause that runs goes on");
        survey.begin();
        assert!(!survey.is_due() && survey.kept.is_empty() && !survey.missing);
    }
}
