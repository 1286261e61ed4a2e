//! The registry: the state of units, functions, groups, domains, buffers and sessions ([`State`]), and the four ways
//! to change it.
//!
//! `decide` changes the state and records in the plan's journal how to undo each change. `commit` discards the
//! journal, `abort` replays it backwards.

use alloc::boxed::Box;

use crate::addr::PhysRange;
use crate::policy::config::Config;
use crate::policy::decision::Decision;
use crate::policy::event::Refused;
use crate::policy::plan::{Contents, Plan};
use crate::policy::state::State;
use crate::policy::transition::Request;
use crate::topology::firmware::Firmware;

/// Holds the state, and decides, commits and aborts plans.
#[derive(Clone, Debug)]
pub struct Registry {
    pub(super) state: State,
    spare: Spare,
}

/// The empty lists of the last plan, kept for their capacity.
#[derive(Default)]
struct Spare(Option<Box<Contents>>);

/// A clone has no spare lists: between plans they are empty.
impl Clone for Spare {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl core::fmt::Debug for Spare {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("..")
    }
}

impl Registry {
    /// Creates the registry of a machine whose units are not up and whose functions are not known yet.
    ///
    /// `ram` is the memory of the machine. `own` is the memory that the server keeps from the start: tables, queues,
    /// pools of buffers. No domain of policy maps `own`.
    #[must_use]
    pub fn new(config: Config, firmware: Firmware, ram: &[PhysRange], own: &[PhysRange]) -> Self {
        Self { state: State::new(config, firmware, ram, own), spare: Spare::default() }
    }

    /// Decides a request or event. No other may be decided until the plan is consumed.
    ///
    /// # Errors
    /// The reason for the refusal; nothing has changed.
    pub fn decide<R: Request>(&mut self, request: &R) -> Result<Plan<R::Outcome>, Refused> {
        let mut contents = self.spare.0.take().unwrap_or_default();
        let Contents { orders, journal } = &mut *contents;
        let (state, plan) = (&mut self.state, orders);
        match request.decide(&mut Decision { state, plan, journal, frugal: false }) {
            Ok(outcome) => {
                contents.orders.finish();
                Ok(Plan { contents, outcome })
            }
            Err(refused) => {
                self.abort(Plan { contents, outcome: () });
                Err(refused)
            }
        }
    }

    /// Concludes a plan whose steps were all carried out.
    pub fn commit<T>(&mut self, plan: Plan<T>) -> T {
        let Plan { mut contents, outcome } = plan;
        contents.journal.commit(&mut self.state);
        self.recycle(contents);
        outcome
    }

    /// Concludes a plan that was not carried out and whose steps were undone. Restores the state before
    /// [`Registry::decide`].
    pub fn abort<T>(&mut self, mut plan: Plan<T>) {
        plan.contents.journal.abort(&mut self.state);
        self.recycle(plan.contents);
    }

    /// Like [`Registry::abort`], for steps that are not proved undone (`StepFailure::unproved`). A device may still
    /// reach memory that the plan entered into a domain, so that memory goes to quarantine. The memory of a refused
    /// [`Allocate`](crate::policy::Allocate) must not be freed either.
    pub fn quarantine<T>(&mut self, mut plan: Plan<T>) {
        plan.contents.journal.quarantine(&mut self.state);
        self.recycle(plan.contents);
    }

    /// Keeps the lists of a plan for the next one. There is one plan at a time, so the spare place is empty.
    #[inline]
    fn recycle(&mut self, mut contents: Box<Contents>) {
        contents.clear();
        self.spare.0 = Some(contents);
    }
}
