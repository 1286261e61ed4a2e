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
    /// The result of the request, returned by commit.
    pub(super) outcome: T,
}

/// The steps of a plan, and the journal that undoes its decision.
#[derive(Debug, Default)]
pub(super) struct Contents {
    pub(super) orders: Orders,
    pub(super) journal: Journal,
}

/// The steps of a plan and their data. Steps that cannot fail come after all others, so that every failure can be
/// undone.
#[derive(Debug, Default)]
pub struct Orders {
    /// The frames that the plan may take.
    pub(super) charge: Charge,
    /// Steps, in order. `finish` appends the last ones.
    pub(super) steps: Vec<Step>,
    /// Number of steps that may fail.
    pub(super) fallible: usize,
    /// Steps that can neither fail nor be undone: they come last.
    pub(super) last: Vec<Step>,
    /// The memory of each page of a [`Step::MapList`].
    pub(super) pages: Vec<PhysAddr>,
    /// An address for each element of a batch.
    pub(super) addresses: Vec<Iova>,
    /// The last tag that the plan took.
    pub(super) tag: Option<DomainTag>,
}

impl Contents {
    /// Empties all lists but keeps their capacity. The journal was consumed before.
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
    /// The steps of the plan and their data.
    #[must_use]
    pub const fn orders(&self) -> &Orders {
        &self.contents.orders
    }

    /// The result that commit returns.
    #[must_use]
    pub const fn outcome(&self) -> &T {
        &self.outcome
    }
}

impl Orders {
    /// Appends the last steps to the others, which completes the plan.
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

    /// Number of steps that may fail. The steps behind them can neither fail nor be undone.
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

    /// The frames that the plan may take.
    #[must_use]
    pub const fn charge(&self) -> Charge {
        self.charge
    }

    /// Creates orders with these steps, for tests of the engine.
    #[cfg(test)]
    pub(crate) fn of(steps: &[Step]) -> Self {
        Self::with_pages(steps, &[])
    }

    /// Like [`Orders::of`], with the memory of each page of a list.
    #[cfg(test)]
    pub(crate) fn with_pages(steps: &[Step], pages: &[PhysAddr]) -> Self {
        let fallible = steps.iter().rposition(|step| !step.is_final()).map_or(0, |at| at + 1);
        Self { steps: steps.into(), pages: pages.into(), fallible, ..Self::default() }
    }
}
