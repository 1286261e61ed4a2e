//! A decision, complete before the first register is touched.

use alloc::boxed::Box;
use alloc::vec::Vec;

use crate::addr::{Iova, PhysAddr};
use crate::policy::journal::Journal;
use crate::policy::step::{Charge, Step};
use crate::topology::capabilities::DomainTag;

/// A decision, complete before the first register is touched. [`Registry::commit`] or
/// [`Registry::abort`] consumes it; there is at most one at a time.
///
/// [`Registry::commit`]: crate::policy::Registry::commit
/// [`Registry::abort`]: crate::policy::Registry::abort
#[derive(Debug)]
#[must_use = "a plan is consumed by commit or abort"]
pub struct Plan<T = ()> {
    pub(super) contents: Box<Contents>,
    /// What is to be told, once the plan is carried out.
    pub(super) outcome: T,
}

/// What is to be done, and what takes the decision back.
#[derive(Debug, Default)]
pub(super) struct Contents {
    pub(super) orders: Orders,
    pub(super) journal: Journal,
}

/// What is to be done. Steps that cannot fail come after all that can, so that a failure can always be undone.
#[derive(Debug, Default)]
pub struct Orders {
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
    /// An address for each element of a batch.
    pub(super) addresses: Vec<Iova>,
    /// The last tag it took.
    pub(super) tag: Option<DomainTag>,
}

impl Contents {
    /// Forgets everything but the capacity of the lists. The journal was consumed.
    #[inline]
    pub(super) fn clear(&mut self) {
        let Orders { charge, steps, last, pages, addresses, tag, .. } = &mut self.orders;
        (*tag, *charge) = (None, Charge::Unlimited);
        steps.clear();
        last.clear();
        pages.clear();
        addresses.clear();
    }
}

impl<T> Plan<T> {
    /// What is to be done.
    #[must_use]
    pub const fn orders(&self) -> &Orders {
        &self.contents.orders
    }
}

impl Orders {
    /// Puts the last steps behind the others: the plan is complete.
    #[inline]
    pub(super) fn finish(&mut self) {
        self.fallible = self.steps.len();
        if !self.last.is_empty() {
            self.steps.append(&mut self.last);
        }
    }

    /// All steps, in order.
    #[must_use]
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// How many steps may fail: those behind them can neither fail nor be undone.
    #[must_use]
    pub const fn fallible(&self) -> usize {
        self.fallible
    }

    /// The memory of each page of the plan's `MapList`.
    #[must_use]
    pub fn pages(&self) -> &[PhysAddr] {
        &self.pages
    }

    /// One address for each element of a batch: 0 for an unmap or revoke.
    #[must_use]
    pub fn addresses(&self) -> &[Iova] {
        &self.addresses
    }

    /// Which frames it may take.
    #[must_use]
    pub const fn charge(&self) -> Charge {
        self.charge
    }

    /// These steps, for tests of the engine.
    #[cfg(test)]
    pub(crate) fn of(steps: &[Step]) -> Self {
        Self::with_pages(steps, &[])
    }

    /// As [`Orders::of`], with the memory of a list.
    #[cfg(test)]
    pub(crate) fn with_pages(steps: &[Step], pages: &[PhysAddr]) -> Self {
        let fallible = steps.iter().rposition(|step| !step.is_final()).map_or(0, |at| at + 1);
        Self { steps: steps.into(), pages: pages.into(), fallible, ..Self::default() }
    }
}
