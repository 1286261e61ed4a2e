//! One event from decision to commit or abort. Everything that changes the machine goes through here.

use alloc::string::ToString;

use iommu_protocol::Refusal;

use crate::engine::StepFailure;
use crate::hw::{BufferMemory, Unit};
use crate::policy::{Event, Outcome, Plan, Refused};
use crate::server::Server;

/// An event that was not carried out.
pub(super) struct Failed {
    /// Why.
    pub(super) refused: Refused,
    /// Memory that the event brought may still be reached: it must not be given back.
    pub(super) quarantined: bool,
}

impl<U: Unit, B: BufferMemory> Server<U, B> {
    /// Runs one event from decision to commit or abort.
    ///
    /// # Errors
    /// Policy's refusal; or what the failure of a step means to the client. Either way the state is as
    /// before, except that a unit that failed is marked so.
    pub(super) fn run(&mut self, event: &Event) -> Result<Outcome, Refusal> {
        self.run_marked(event).map_err(|failed| failed.refused.refusal)
    }

    /// As [`Server::run`], for those who must know what exactly was refused.
    pub(super) fn run_marked(&mut self, event: &Event) -> Result<Outcome, Failed> {
        let refused = |refused| Failed { refused, quarantined: false };
        self.note_before(event).map_err(|refusal| refused(refusal.into()))?;
        let outcome = match self.registry.decide(event).map_err(refused) {
            Ok(plan) => self.finish(plan),
            Err(failed) => Err(failed),
        };
        self.settle_after(event);
        outcome
    }

    /// Runs a plan, and commits or aborts it.
    fn finish(&mut self, plan: Plan) -> Result<Outcome, Failed> {
        self.counts.plans += 1;
        self.note_tags_of(&plan);
        match self.engine.run(&plan, &mut self.buffers) {
            Ok(()) => Ok(self.registry.commit(plan)),
            Err(failure) => Err(self.give_up(plan, &failure)),
        }
    }

    /// Aborts a plan that the engine could not carry out.
    #[cold]
    fn give_up(&mut self, plan: Plan, failure: &StepFailure) -> Failed {
        if failure.unproved {
            self.registry.quarantine(plan);
        } else {
            self.registry.abort(plan);
        }
        self.counts.plans_undone += 1;
        for unit in &failure.lost {
            self.fail(*unit, failure.error.to_string());
        }
        Failed { refused: failure.refusal().into(), quarantined: failure.unproved }
    }
}
