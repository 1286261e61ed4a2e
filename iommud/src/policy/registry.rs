//! The registry: all that is known of units, functions, groups, domains, buffers and sessions ([`State`]), and the four
//! ways to change it.
//!
//! `decide` changes the state and notes in the plan's journal how to take that back; `commit` forgets the journal,
//! `abort` follows it backwards.

use alloc::boxed::Box;

use crate::addr::PhysRange;
use crate::policy::config::Config;
use crate::policy::decision::Decision;
use crate::policy::event::Refused;
use crate::policy::plan::{Contents, Plan};
use crate::policy::state::State;
use crate::policy::transition::Request;
use crate::topology::firmware::Firmware;

/// The state of everything, and what may become of it.
#[derive(Clone, Debug)]
pub struct Registry {
    pub(super) state: State,
    spare: Spare,
}

/// The lists of the last plan, empty, kept for their capacity.
#[derive(Default)]
struct Spare(Option<Box<Contents>>);

/// A copy has none: between plans there is nothing in them.
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
    /// A registry of a machine whose units are not up and whose functions are not known yet.
    ///
    /// `ram` is the memory of the machine, `own` what the server keeps for itself from the start: tables,
    /// queues, pools of buffers. No domain of policy maps `own`.
    #[must_use]
    pub fn new(config: Config, firmware: Firmware, ram: &[PhysRange], own: &[PhysRange]) -> Self {
        Self { state: State::new(config, firmware, ram, own), spare: Spare::default() }
    }

    /// Decides what comes of a request or event. Until the plan is consumed, no other may be decided.
    ///
    /// # Errors
    /// What it is refused for; nothing has changed.
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

    /// Takes note that every step of the plan was carried out.
    pub fn commit<T>(&mut self, plan: Plan<T>) -> T {
        let Plan { mut contents, outcome } = plan;
        contents.journal.commit(&mut self.state);
        self.recycle(contents);
        outcome
    }

    /// Takes note that the plan was not carried out and its steps were undone: everything is as before
    /// [`Registry::decide`].
    pub fn abort<T>(&mut self, mut plan: Plan<T>) {
        plan.contents.journal.abort(&mut self.state);
        self.recycle(plan.contents);
    }

    /// As [`Registry::abort`], when undoing could not be proved (`StepFailure::unproved`): memory that the
    /// plan entered into a domain may still be reached by a device. It goes to quarantine; the memory of a
    /// refused [`Allocate`](crate::policy::Allocate) must not be given back either.
    pub fn quarantine<T>(&mut self, mut plan: Plan<T>) {
        plan.contents.journal.quarantine(&mut self.state);
        self.recycle(plan.contents);
    }

    /// There is one plan at a time: the place of the spare one is empty.
    #[inline]
    fn recycle(&mut self, mut contents: Box<Contents>) {
        contents.clear();
        self.spare.0 = Some(contents);
    }
}
