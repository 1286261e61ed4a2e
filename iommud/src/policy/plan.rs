//! A decision, complete before the first register is touched.

use alloc::boxed::Box;
use alloc::vec::Vec;

use crate::addr::PhysAddr;
use crate::policy::event::Outcome;
use crate::policy::journal::Journal;
use crate::policy::step::{Charge, Step};
use crate::topology::capabilities::DomainTag;

/// A decision, complete before the first register is touched. [`Registry::commit`] or
/// [`Registry::abort`] consumes it; there is at most one at a time.
///
/// Steps that cannot fail come after all that can, so that a failure can always be undone.
///
/// [`Registry::commit`]: crate::policy::Registry::commit
/// [`Registry::abort`]: crate::policy::Registry::abort
#[derive(Debug)]
#[must_use = "a plan is consumed by commit or abort"]
pub struct Plan {
    pub(super) contents: Box<Contents>,
    pub(super) journal: Journal,
}

/// What is to be done.
#[derive(Debug, Default)]
pub(super) struct Contents {
    /// What is to be told of it, once it is carried out.
    pub(super) outcome: Outcome,
    /// Which frames it may take.
    pub(super) charge: Charge,
    /// Steps, in order. When the plan is complete the last ones are behind them.
    pub(super) steps: Vec<Step>,
    /// How many of them may fail.
    pub(super) fallible: usize,
    /// Steps that cannot fail nor be undone: they come last.
    pub(super) last: Vec<Step>,
    /// The memory of each page of a [`Step::MapList`].
    pub(super) pages: Vec<PhysAddr>,
    /// The last tag it took.
    pub(super) tag: Option<DomainTag>,
}

impl Contents {
    /// Puts the last steps behind the others: the plan is complete.
    #[inline]
    pub(super) fn finish(&mut self, outcome: Outcome) {
        self.fallible = self.steps.len();
        self.steps.append(&mut self.last);
        self.outcome = outcome;
    }

    /// Forgets everything but the capacity of the lists.
    #[inline]
    pub(super) fn clear(&mut self) {
        self.steps.clear();
        self.last.clear();
        self.pages.clear();
        (self.tag, self.charge, self.outcome) = (None, Charge::Unlimited, Outcome::Done);
    }
}

impl Plan {
    /// What is to be done, in order.
    #[must_use]
    pub fn steps(&self) -> &[Step] {
        &self.contents.steps
    }

    /// How many steps may fail: those behind them can neither fail nor be undone.
    #[must_use]
    pub const fn fallible(&self) -> usize {
        self.contents.fallible
    }

    /// The memory of each page of the plan's `MapList`.
    #[must_use]
    pub fn pages(&self) -> &[PhysAddr] {
        &self.contents.pages
    }

    /// Which frames it may take.
    #[must_use]
    pub const fn charge(&self) -> Charge {
        self.contents.charge
    }

    /// A plan of these steps, for tests of the engine.
    #[cfg(test)]
    pub(crate) fn of(steps: &[Step]) -> Self {
        Self::with_pages(steps, &[])
    }

    /// As [`Plan::of`], with the memory of a list.
    #[cfg(test)]
    pub(crate) fn with_pages(steps: &[Step], pages: &[PhysAddr]) -> Self {
        let fallible = steps.iter().rposition(|step| !step.is_final()).map_or(0, |at| at + 1);
        let (steps, pages) = (steps.into(), pages.into());
        let contents = Contents { steps, pages, fallible, ..Contents::default() };
        Self { contents: Box::new(contents), journal: Journal::default() }
    }
}
