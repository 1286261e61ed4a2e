//! A decision, complete before the first register is touched; and a plan of one change.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::convert::Infallible;

use crate::addr::{IovaRange, PhysAddr};
use crate::policy::draft::Draft;
use crate::policy::ids::{DomainId, UnitIndex};
use crate::policy::step::{Charge, Step};

/// Who is given steps, one after the other, in order.
pub trait Sink {
    /// Why no step follows.
    type Error;

    /// Takes the next step.
    ///
    /// # Errors
    /// No step follows: this one was not carried out.
    fn step(&mut self, step: Step) -> Result<(), Self::Error>;
}

/// A list takes every step.
impl Sink for Vec<Step> {
    type Error = Infallible;

    fn step(&mut self, step: Step) -> Result<(), Infallible> {
        self.push(step);
        Ok(())
    }
}

/// The steps that follow the maps and unmaps of a domain, until the sink takes no more. `unmapped` and `mapped` are
/// ranges around all of them, `units` those that have entries of the domain, and whether each is to be told of new
/// translations; `release` says whether tables may have been unlinked.
#[inline(always)]
pub(super) fn follow<S: Sink>(
    domain: DomainId,
    unmapped: Option<IovaRange>,
    mapped: Option<IovaRange>,
    units: impl Iterator<Item = (UnitIndex, bool)> + Clone,
    release: bool,
    sink: &mut S,
) -> Result<(), S::Error> {
    if let Some(range) = unmapped {
        for (unit, _) in units.clone() {
            sink.step(Step::Invalidate { unit, domain, range })?;
        }
    }
    if let Some(range) = mapped {
        for (unit, _) in units.filter(|(_, publish)| *publish) {
            sink.step(Step::Publish { unit, domain, range })?;
        }
    }
    if release { sink.step(Step::ReleaseTables { domain }) } else { Ok(()) }
}

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
    pub(super) draft: Box<Draft>,
}

impl Plan {
    /// What is to be done, in order.
    #[must_use]
    pub fn steps(&self) -> &[Step] {
        &self.draft.steps
    }

    /// The memory of each page of the plan's `MapList`.
    #[must_use]
    pub fn pages(&self) -> &[PhysAddr] {
        &self.draft.pages
    }

    /// Which frames it may take.
    #[must_use]
    pub const fn charge(&self) -> Charge {
        self.draft.charge
    }

    /// A plan of these steps, for tests of the engine.
    #[cfg(test)]
    pub(crate) fn of(steps: &[Step]) -> Self {
        Self::with_pages(steps, &[])
    }

    /// As [`Plan::of`], with the memory of a list.
    #[cfg(test)]
    pub(crate) fn with_pages(steps: &[Step], pages: &[PhysAddr]) -> Self {
        let draft = Draft { steps: steps.into(), pages: pages.into(), ..Draft::default() };
        Self { draft: Box::new(draft) }
    }
}
