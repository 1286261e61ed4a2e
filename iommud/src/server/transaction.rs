//! One event from decision to commit or abort. Everything that changes the machine goes through here.

use alloc::string::ToString;

use iommu_protocol::Refusal;

use crate::addr::Iova;
use crate::engine::StepFailure;
use crate::hw::{BufferMemory, Unit};
use crate::policy::{ChangePlan, Decided, Event, Outcome, Plan, Refused, Registry};
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
        self.run_as(event, Registry::decide)
    }

    /// As [`Server::run_marked`], with a decision of one's own.
    pub(super) fn run_as(
        &mut self,
        event: &Event,
        decide: fn(&mut Registry, &Event) -> Result<Plan, Refused>,
    ) -> Result<Outcome, Failed> {
        let refused = |refused| Failed { refused, quarantined: false };
        self.note_before(event).map_err(|refusal| refused(refusal.into()))?;
        let outcome = match decide(&mut self.registry, event).map_err(refused) {
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

    /// Runs one map, unmap, grant or revoke from decision to commit or abort: what [`Server::run`] does with a
    /// batch of one. Returns the address, 0 for an unmap.
    ///
    /// # Errors
    /// As [`Server::run`].
    #[inline(always)]
    pub(super) fn run_change(
        &mut self,
        decide: impl FnOnce(&mut Registry, &mut ChangePlan) -> Result<Decided, Refusal>,
    ) -> Result<Iova, Refused> {
        let mut plan = ChangePlan::default();
        if let Decided::Plan(whole) = decide(&mut self.registry, &mut plan)? {
            return self.run_whole(whole);
        }
        self.counts.plans += 1;
        let iova = plan.iova();
        match self.engine.run_change(&plan, &mut self.buffers) {
            Ok(()) => {
                self.registry.commit_change(plan);
                Ok(iova)
            }
            Err(failure) => Err(self.give_up_change(plan, &failure).refused),
        }
    }

    /// As `run_change`, for a change that takes a list of steps.
    #[cold]
    fn run_whole(&mut self, plan: Plan) -> Result<Iova, Refused> {
        match self.finish(plan) {
            Ok(Outcome::Single(iova)) => Ok(iova),
            Ok(_) => Err(Refusal::BadOperation.into()),
            Err(failed) => Err(failed.refused),
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
        self.given_up(failure)
    }

    /// As `give_up`, for a plan of one change.
    #[cold]
    fn give_up_change(&mut self, plan: ChangePlan, failure: &StepFailure) -> Failed {
        if failure.unproved {
            self.registry.quarantine_change(plan);
        } else {
            self.registry.abort_change(plan);
        }
        self.given_up(failure)
    }

    /// What the failure of a plan that was aborted means.
    fn given_up(&mut self, failure: &StepFailure) -> Failed {
        self.counts.plans_undone += 1;
        for unit in &failure.lost {
            self.fail(*unit, failure.error.to_string());
        }
        Failed { refused: failure.refusal().into(), quarantined: failure.unproved }
    }
}
