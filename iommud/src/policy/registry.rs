//! The registry: all that is known of units, functions, groups, domains, buffers and sessions ([`State`]), and the four
//! ways to change it.
//!
//! `decide` changes the state and notes in the plan's journal how to take that back; `commit` forgets the journal,
//! `abort` follows it backwards.

use alloc::boxed::Box;

use crate::addr::PhysRange;
use crate::policy::config::Config;
use crate::policy::decision::Decision;
use crate::policy::event::{Event, Outcome, Refused};
use crate::policy::journal::Journal;
use crate::policy::plan::Plan;
use crate::policy::state::State;
use crate::policy::transition;
use crate::topology::firmware::Firmware;

/// The state of everything, and what may become of it.
#[derive(Clone, Debug)]
pub struct Registry {
    pub(super) state: State,
    spare: Spare,
}

/// The lists of the last plan, empty, kept for their capacity.
#[derive(Default)]
struct Spare(Option<Plan>);

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

    /// Decides what comes of an event. Until the plan is consumed, no other event may be decided.
    ///
    /// # Errors
    /// What the event is refused for; nothing has changed.
    pub fn decide(&mut self, event: &Event) -> Result<Plan, Refused> {
        let new = || Plan { contents: Box::default(), journal: Journal::default() };
        let Plan { mut contents, mut journal } = self.spare.0.take().unwrap_or_else(new);
        contents.charge = transition::charge(&self.state, event);
        let (state, plan) = (&mut self.state, &mut *contents);
        let mut decision = Decision { state, plan, journal: &mut journal, frugal: false };
        match transition::decide(&mut decision, event) {
            Ok(outcome) => {
                contents.finish(outcome);
                Ok(Plan { contents, journal })
            }
            Err(refused) => {
                self.abort(Plan { contents, journal });
                Err(refused)
            }
        }
    }

    /// Takes note that every step of the plan was carried out.
    pub fn commit(&mut self, mut plan: Plan) -> Outcome {
        plan.journal.commit(&mut self.state);
        let outcome = core::mem::take(&mut plan.contents.outcome);
        self.recycle(plan);
        outcome
    }

    /// Takes note that the plan was not carried out and its steps were undone: everything is as before
    /// [`Registry::decide`].
    pub fn abort(&mut self, mut plan: Plan) {
        plan.journal.abort(&mut self.state);
        self.recycle(plan);
    }

    /// As [`Registry::abort`], when undoing could not be proved (`StepFailure::unproved`): memory that the
    /// plan entered into a domain may still be reached by a device. It goes to quarantine; the memory of a
    /// refused [`Event::Allocate`] must not be given back either.
    pub fn quarantine(&mut self, mut plan: Plan) {
        plan.journal.quarantine(&mut self.state);
        self.recycle(plan);
    }

    /// There is one plan at a time: the place of the spare one is empty.
    #[inline]
    fn recycle(&mut self, mut plan: Plan) {
        plan.contents.clear();
        self.spare.0 = Some(plan);
    }
}
