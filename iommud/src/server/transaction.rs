//! One event from decision to commit or abort. Everything that changes the machine goes through here.

use alloc::string::ToString;

use iommu_protocol::Refusal;

use crate::engine::StepFailure;
use crate::hw::{BufferMemory, Unit};
use crate::policy::{Event, Orders, Plan, Refused};
use crate::server::Server;
use crate::trace::Traced;

/// An event that was not carried out.
pub(super) struct Failed {
    /// The reason.
    pub(super) refused: Refused,
    /// A device may still reach memory that the event brought: it must not be given back.
    pub(super) quarantined: bool,
}

impl<U: Unit, B: BufferMemory> Server<U, B> {
    /// Runs one event from decision to commit or abort, and keeps the notes for the next server.
    ///
    /// # Errors
    /// Those of [`Server::run`].
    pub(super) fn run_event(&mut self, event: &Event) -> Result<(), Refusal> {
        self.note_before(event)?;
        let done = self.run(event);
        self.settle_after(event);
        done
    }

    /// Runs one request from decision to commit or abort.
    ///
    /// # Errors
    /// The refusal of policy, or that for a failed step. Either way the state is as before, except that a failed unit
    /// is marked so.
    pub(super) fn run<R: Traced>(&mut self, request: &R) -> Result<R::Outcome, Refusal> {
        self.run_marked(request, |_| ()).map_err(|failed| failed.refused.refusal)
    }

    /// Like [`Server::run`], with the details of a refusal. `told` reads the orders of a plan that was carried out.
    #[inline]
    pub(super) fn run_marked<R: Traced>(
        &mut self,
        request: &R,
        told: impl FnOnce(&Orders),
    ) -> Result<R::Outcome, Failed> {
        self.trace.begin(request);
        let plan = self.registry.decide(request).map_err(|refused| {
            self.trace.refused(refused);
            Failed { refused, quarantined: false }
        })?;
        self.counts.plans += 1;
        self.note_tags_of(plan.orders());
        match self.engine.run(plan.orders(), &mut self.buffers) {
            Ok(()) => {
                self.facts.record(&mut self.registry, &plan);
                self.engine.conclude(plan.orders(), &mut self.buffers);
                told(plan.orders());
                self.trace.committed(request, &plan);
                Ok(self.registry.commit(plan))
            }
            Err(failure) => Err(self.give_up(plan, &failure)),
        }
    }

    /// Aborts a plan that the engine could not carry out.
    #[cold]
    fn give_up<T>(&mut self, plan: Plan<T>, failure: &StepFailure) -> Failed {
        self.trace.undone(&plan, failure.refusal(), failure.unproved);
        if failure.unproved {
            self.registry.quarantine(plan);
        } else {
            self.registry.abort(plan);
        }
        self.counts.plans_undone += 1;
        // All are lost before the failure of one is decided: that plan must not use another.
        for unit in &failure.lost {
            self.lose(*unit);
        }
        for unit in &failure.lost {
            self.fail(*unit, failure.error.to_string());
        }
        Failed { refused: failure.refusal().into(), quarantined: failure.unproved }
    }
}
